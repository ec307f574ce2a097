"""Functions fitted without each row, at every step, and the intervals of the jackknife+.

With Q = (A + lam I)^-1 the fit to targets t without row i has the coefficients

    c = Q t - Q e_i (Q t)_i / Q_ii,

those of the fit to all rows with t_i replaced by what the fit without it predicts there,
t_i - (Q t)_i / Q_ii: then c_i = 0. The next step's targets are alpha y + (1 - alpha) (t' - lam c), with t'
the replaced ones: a path of its own for each row, so that a step costs a product of n x n matrices.

An unpenalised direction q, A q = 0, of an intercept: Q - q q' / lam takes the place of Q.

CV+ leaves out folds of rows F instead: Q_FF^-1 (Q t)_F takes the place of (Q t)_i / Q_ii, and all rows of a
fold share a function. Its guarantee is that of the jackknife+ less at most (2 / n)^1/2.

References
----------
Barber, Candes, Ramdas and Tibshirani (2021), Predictive inference with the jackknife+; CV+ in Section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import array_api_compat as compat
import numpy as np

__all__ = [
    "fewest_rows",
    "folded_functions",
    "interval_ranks",
    "left_out_functions",
    "merged_ends",
    "resolvent",
]

HALVINGS = 120  # of an interval of doubles: to the last bit


def resolvent(eigenvalues: Any, basis: Any, lam: float, unpenalised: Any = None) -> Any:
    """(A + lam I)^-1 (n, n), less q q' / lam.

    Parameters
    ----------
    eigenvalues : array (k,)
    basis : array (n, k)
        All eigenvectors, or those of which A is 0 outside.
    lam : float
    unpenalised : array (n,), optional
        q, of length 1.

    Notes
    -----
    n^2 k multiplications.
    """
    xp, (n, k) = compat.array_namespace(basis), basis.shape
    if k == n:
        Q = (basis / (eigenvalues + lam)) @ basis.T
    else:
        Q = -(basis * (eigenvalues / (lam * (eigenvalues + lam)))) @ basis.T
        Q = Q + xp.eye(n, dtype=basis.dtype, device=compat.device(basis)) / lam
    if unpenalised is None:
        return Q
    return Q - unpenalised[:, None] * unpenalised[None, :] / lam


def left_out_functions(
    Q: Any, truth: Any, alphas: np.ndarray, lam: float
) -> Iterator[tuple[Any, Any]]:
    """Steps 1..T of one output without each row.

    Parameters
    ----------
    Q : array (n, n)
        Of :func:`resolvent`.
    truth : array (n,)
    alphas : array (T - 1,)
    lam : float

    Yields
    ------
    coefficients : array (n, n)
        Column i is the function that was fitted without row i.
    targets : array (n, n)
        What it was fitted to, with its own prediction in the place of row i: on the diagonal.

    Notes
    -----
    n^3 multiplications a step, 7 n^2 numbers at the peak.

    Raises
    ------
    ValueError
        If a row determines itself.
    """
    xp, n = compat.array_namespace(Q), int(Q.shape[0])
    diagonal = xp.linalg.diagonal(Q)
    if not float(xp.min(diagonal)) * lam > 1e-14:  # 1 - H_ii
        row = int(xp.argmin(diagonal))
        raise ValueError(
            f"row {row} determines itself at lam = {lam:g} (leverage 1): without it nothing is known of "
            "it; raise lam or remove the row"
        )
    identity = xp.eye(n, dtype=Q.dtype, device=compat.device(Q))
    fitted = xp.broadcast_to(truth[:, None], (n, n))
    for alpha in (1.0, *map(float, alphas)):
        targets = alpha * truth[:, None] + (1 - alpha) * fitted
        product = Q @ targets
        excess = xp.linalg.diagonal(product) / diagonal
        coefficients = product - Q * excess[None, :]
        targets = targets - identity * excess[None, :]
        yield coefficients, targets
        fitted = targets - lam * coefficients


def folded_functions(
    Q: Any, truth: Any, alphas: np.ndarray, lam: float, folds: list[np.ndarray]
) -> Iterator[tuple[Any, Any]]:
    """Steps 1..T of one output without each fold.

    Parameters
    ----------
    Q, truth, alphas, lam
        As :func:`left_out_functions`.
    folds : list of K arrays of int
        Rows of each.

    Yields
    ------
    coefficients, targets : array (n, K)
        Of the function without fold k, and what it was fitted to, with its own predictions in the fold.

    Notes
    -----
    n^2 K multiplications a step, and the cubes of the sizes of the folds.

    Raises
    ------
    ValueError
        If a fold determines itself.
    """
    xp, n = compat.array_namespace(Q), int(Q.shape[0])
    places = [xp.asarray(rows, device=compat.device(Q)) for rows in folds]
    inverses = []
    for number, rows in enumerate(places):
        block = xp.take(xp.take(Q, rows, axis=0), rows, axis=1)
        eigenvalues, vectors = xp.linalg.eigh((block + block.T) / 2)
        if rows.shape[0] and not float(eigenvalues[0]) * lam > 1e-14:
            raise ValueError(
                f"fold {number} determines itself at lam = {lam:g}: without it nothing is known of a part "
                "of it; raise lam"
            )
        inverses.append((vectors / eigenvalues) @ vectors.T)
    # row i has entry order[i] of the excesses of all folds, one after the other; 0 if it is in none
    members = np.concatenate(folds)
    order = np.full(n, len(members))
    order[members] = np.arange(len(members))
    member = np.zeros((n, len(folds)))
    for number, rows in enumerate(folds):
        member[rows, number] = 1.0
    place, own = (xp.asarray(array, device=compat.device(Q)) for array in (order, member))
    fitted = xp.broadcast_to(truth[:, None], (n, len(folds)))
    for alpha in (1.0, *map(float, alphas)):
        targets = alpha * truth[:, None] + (1 - alpha) * fitted
        product, columns, excesses = Q @ targets, [], []
        for number, (rows, inverse) in enumerate(zip(places, inverses, strict=True)):
            excess = inverse @ xp.take(product[:, number], rows, axis=0)
            columns.append(product[:, number] - xp.take(Q, rows, axis=1) @ excess)
            excesses.append(excess)
        spread = xp.take(xp.concat([*excesses, 0 * truth[:1]]), place, axis=0)
        coefficients, targets = xp.stack(columns, axis=1), targets - own * spread[:, None]
        yield coefficients, targets
        fitted = targets - lam * coefficients


def merged_ends(
    values: np.ndarray, errors: list[np.ndarray], ranks: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends (m,) of CV+, without the m n numbers that are ordered.

    Parameters
    ----------
    values : array (K, m)
        Predictions of new rows without each fold.
    errors : list of K arrays
        Absolute errors of each function at the rows of its fold.
    ranks : pair of int
        Of :func:`interval_ranks`, for all rows together.

    Notes
    -----
    The number of that rank among v_k + e_ki is found by halving, with a search in the ordered errors of
    each fold: K m log(n) for each of 120 halvings. The lower end is the upper one of -v.
    """
    ordered = [np.sort(part) for part in errors]
    n = sum(map(len, ordered))
    return -_merged(-values, ordered, n - 1 - ranks[0]), _merged(values, ordered, ranks[1])


def _merged(values: np.ndarray, ordered: list[np.ndarray], rank: int) -> np.ndarray:
    """The rank-th smallest, from 0, of v_k + e_ki for each column of v (K, m), e_k ordered."""
    folds = [(v, e) for v, e in zip(values, ordered, strict=True) if len(e)]
    low = np.min([v + e[0] for v, e in folds], axis=0)
    high = np.max([v + e[-1] for v, e in folds], axis=0)

    def count(ends: np.ndarray) -> np.ndarray:
        return sum(np.searchsorted(e, ends - v, side="right") for v, e in folds)

    for _ in range(HALVINGS):
        middle = low + (high - low) / 2
        if not ((low < middle) & (middle < high)).any():
            break
        enough = count(middle) > rank
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    # what the halving found to rounding, as the number itself
    near = [
        v + e[np.clip(k + step, 0, len(e) - 1)]
        for v, e in folds
        for k in [np.searchsorted(e, high - v)]
        for step in (-1, 0)
    ]
    candidates = np.stack(near)
    nearest = np.abs(candidates - high).argmin(axis=0)
    return np.take_along_axis(candidates, nearest[None], axis=0)[0]


def interval_ranks(n: int, coverage: float) -> tuple[int, int]:
    """Which of n ordered numbers, from 0, are the lower and the upper end; -1 and n where there is none.

    The upper end is the ceil(c (n + 1))-th smallest of f_-i(x) + |r_i|, the lower the
    floor((1 - c) (n + 1))-th smallest of f_-i(x) - |r_i|.
    """
    low = int(np.floor((1 - coverage) * (n + 1) * (1 + 1e-12)))
    high = int(np.ceil(coverage * (n + 1) * (1 - 1e-12)))
    return low - 1, high - 1


def fewest_rows(coverage: float) -> int:
    """Rows from which both ends exist."""
    n = int(np.floor(coverage / (1 - coverage)))
    while min(interval_ranks(n, coverage)[0], n - 1 - interval_ranks(n, coverage)[1]) < 0:
        n += 1
    return n
