"""Functions fitted without each row, at every step, and the intervals of the jackknife+.

With Q = (A + lam I)^-1 the fit to targets t without row i has the coefficients

    c = Q t - Q e_i (Q t)_i / Q_ii,

those of the fit to all rows with t_i replaced by what the fit without it predicts there,
t_i - (Q t)_i / Q_ii: then c_i = 0. The next step's targets are alpha y + (1 - alpha) (t' - lam c), with t'
the replaced ones: a path of its own for each row, so that a step costs a product of n x n matrices.

An unpenalised direction q, A q = 0, of an intercept: Q - q q' / lam takes the place of Q.

References
----------
Barber, Candes, Ramdas and Tibshirani (2021), Predictive inference with the jackknife+.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import array_api_compat as compat
import numpy as np

__all__ = ["fewest_rows", "interval_ranks", "left_out_functions", "resolvent"]


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
