"""Exact leave-one-out predictions of every step, without a refit.

With H = K (K + lam)^-1, a fit without row i predicts at x_i what the fit to all rows with the target u_i
replaced by that very prediction f_i would,

    f_i = ((H u)_i - H_ii u_i) / (1 - H_ii).

The next step starts from the path of the fit without row i, H (u - (u_i - f_i) e_i). That path is a
combination of H^q Y and of H^q e_i, so all that is needed are (H^q Y)_i and the diagonals of H^q, q <= T.
The shortcut (y - S y) / (1 - S_ii) with the smoother S of a later step is wrong: its targets have seen
row i.

By Theorem 4.1, applied to the data without row i, the steps of every schedule are combinations of the
steps with alpha = 0: those are all that is computed here.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat

from sdgpu.distill.filters import flat_product, shrinkage

__all__ = [
    "chain_filters",
    "diagonals",
    "leave_one_out",
    "leave_one_out_of_chain",
    "powers",
    "rest",
    "ridge_errors",
]


def leave_one_out(fitted: Any, diagonal: Any, rest: Any) -> Any:
    """Predictions at each row of steps 1..T with alpha = 0, fitted without that row.

    Parameters
    ----------
    fitted : array (L, T + 1, n, c)
        Y, H Y, .., H^T Y.
    diagonal : array (L, T + 1, n, 1)
        Diagonals of 1, H, .., H^T: exact, or estimates.
    rest : array (L, n, 1)
        1 - H_ii, from its own sum where that is known.

    Returns
    -------
    array (L, T, n, c)
        u_1^(-i)(x_i), .., u_T^(-i)(x_i).

    Notes
    -----
    O(n c L T^2).
    """
    xp = compat.array_namespace(fitted)
    corrections: list[Any] = []  # of e_i, H e_i, ..: newest first
    predictions = []
    for tau in range(1, fitted.shape[1]):
        # u = H^(tau-1) Y + sum_q b_q H^q e_i, and H u; b_q of the step before is now b_(q+1)
        u, Hu = fitted[:, tau - 1, ...], fitted[:, tau, ...]
        for q, b in enumerate(corrections, start=1):
            u = u + b * diagonal[:, q, ...]
            Hu = Hu + b * diagonal[:, q + 1, ...]
        f = (Hu - diagonal[:, 1, ...] * u) / rest
        predictions.append(f)
        corrections.insert(0, f - u)
    return xp.stack(predictions, axis=1)


def leave_one_out_of_chain(fitted: list[Any], diagonals: list[list[Any]], rests: list[Any]) -> Any:
    """What the last step of a chain with alpha = 0 and a lam for each step predicts at each row without it.

    Parameters
    ----------
    fitted : list of T + 1 arrays (n, c)
        Y, H_1 Y, .., H_T .. H_1 Y.
    diagonals : list of lists of arrays (n, 1)
        Entry [t - 1][q] is the diagonal of H_t .. H_(t-q), q < t.
    rests : list of arrays (n, 1)
        1 - (H_t)_ii.

    Returns
    -------
    array (n, c)
    """
    corrections: list[Any] = []  # of e_i, H_(t-1) e_i, ..: newest first
    for t, own in enumerate(diagonals):
        u, Hu = fitted[t], fitted[t + 1]
        for q, b in enumerate(corrections):
            u = u + b * diagonals[t - 1][q]
            Hu = Hu + b * own[q + 1]
        f = (Hu - own[0] * u) / rests[t]
        corrections.insert(0, f - u)
    return f


def chain_filters(a: Any) -> list[list[Any]]:
    """Filters of H_t .. H_(t-q), [t - 1][q], from the shrinkages (T, k) of T steps."""
    filters: list[list[Any]] = []
    for t in range(a.shape[0]):
        before = [a[t, :] * kept for kept in filters[-1]] if filters else []
        filters.append([a[t, :], *before])
    return filters


def powers(basis: Any, eigenvalues: Any, Z: Any, lams: Any, steps: int) -> Any:
    """H^q Y for q = 0..T from eigenvectors that hold Y, (L, T + 1, n, c)."""
    return flat_product(basis, _filters(eigenvalues, lams, steps)[..., None] * Z)


def diagonals(basis: Any, eigenvalues: Any, lams: Any, steps: int) -> Any:
    """diag(H^q) for q = 0..T, (L, T + 1, n, 1); O(n^2 L T).

    From all eigenvectors whose eigenvalue is not 0.
    """
    diagonal = flat_product(basis * basis, _filters(eigenvalues, lams, steps)[..., None])
    if basis.shape[1] == basis.shape[0]:
        return diagonal
    xp = compat.array_namespace(basis)  # H^0 is the identity, outside of the basis too
    return xp.concat([xp.ones_like(diagonal[:, :1, ...]), diagonal[:, 1:, ...]], axis=1)


def rest(basis: Any, eigenvalues: Any, lams: Any) -> Any:
    """1 - H_ii (L, n, 1), by its own sum so that it does not cancel for small lam.

    From all eigenvectors whose eigenvalue is not 0.

    Raises
    ------
    ValueError
        If a row determines itself, H_ii = 1: names the row.
    """
    xp = compat.array_namespace(basis)
    ridge = xp.asarray(lams, dtype=basis.dtype, device=compat.device(basis))[:, None]
    squares = basis * basis
    complement = flat_product(squares, (ridge / (eigenvalues + ridge))[..., None])
    if basis.shape[1] < basis.shape[0]:  # what is outside of the basis
        complement = complement + xp.clip(1 - xp.sum(squares, axis=1), 0.0, 1.0)[:, None]
    lowest = float(xp.min(complement))
    if not lowest > 1e-14:
        index = int(xp.argmin(complement))
        row, lam = index % basis.shape[0], float(ridge[index // basis.shape[0], 0])
        raise ValueError(
            f"row {row} determines itself at lam = {lam:g} (leverage 1): without it nothing is known of "
            "it; raise lam or remove the row"
        )
    return complement


def ridge_errors(basis: Any, eigenvalues: Any, Z: Any, lams: Any) -> Any:
    """Y - H Y of ridge (L, n, c), from eigenvectors that hold Y.

    Over 1 - H_ii these are the leave-one-out errors of ridge alone. The limit of infinitely many steps is
    ridge with lam / alpha, equation (17), on the data without the row as on all: of it too.
    """
    xp = compat.array_namespace(basis)
    ridge = xp.asarray(lams, dtype=basis.dtype, device=compat.device(basis))[:, None]
    filters = ridge / (eigenvalues + ridge)  # 1 - a
    return flat_product(basis, filters[..., None] * Z)


def _filters(eigenvalues: Any, lams: Any, steps: int) -> Any:
    """1, a, .., a^T: (L, T + 1, k)."""
    xp = compat.array_namespace(eigenvalues)
    a = shrinkage(eigenvalues, lams)
    filters = [xp.ones_like(a)]
    for _ in range(steps):
        filters.append(filters[-1] * a)
    return xp.stack(filters, axis=1)
