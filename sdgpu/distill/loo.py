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

from sdgpu.distill.filters import shrinkage

__all__ = ["leave_one_out", "ridge_leave_one_out"]


def leave_one_out(basis: Any, eigenvalues: Any, Z: Any, lams: Any, steps: int) -> Any:
    """Predictions at each row of steps 1..T with alpha = 0, fitted without that row.

    Parameters
    ----------
    basis : array (n, n)
        V, all eigenvectors of K.
    eigenvalues : array (n,)
    Z : array (n, c)
        V'Y.
    lams : array (L,)
    steps : int
        T.

    Returns
    -------
    array (L, T, n, c)
        u_1^(-i)(x_i), .., u_T^(-i)(x_i).

    Raises
    ------
    ValueError
        If a row determines itself, H_ii = 1: names the row.

    Notes
    -----
    O(n^2 L T (c + 1)) for the powers, as two products, and O(n c L T^2) for the chains.
    """
    xp = compat.array_namespace(basis)
    a = shrinkage(eigenvalues, lams)  # (L, k)
    powers = [xp.ones_like(a)]
    for _ in range(steps):
        powers.append(powers[-1] * a)
    stacked = xp.stack(powers, axis=1)  # (L, T + 1, k)
    diagonal = _spread(basis * basis, stacked[..., None])  # diag(H^q), (L, T + 1, n, 1)
    fitted = _spread(basis, stacked[..., None] * Z)  # H^q Y, (L, T + 1, n, c)
    rest = _rest(basis, eigenvalues, lams)
    corrections: list[Any] = []  # of e_i, H e_i, ..: newest first
    found = []
    for tau in range(1, steps + 1):
        # u = H^(tau-1) Y + sum_q b_q H^q e_i, and H u; b_q of the step before is now b_(q+1)
        mixed, image = fitted[:, tau - 1, ...], fitted[:, tau, ...]
        for q, b in enumerate(corrections, start=1):
            mixed = mixed + b * diagonal[:, q, ...]
            image = image + b * diagonal[:, q + 1, ...]
        f = (image - diagonal[:, 1, ...] * mixed) / rest
        found.append(f)
        corrections.insert(0, f - mixed)
    return xp.stack(found, axis=1)


def ridge_leave_one_out(basis: Any, eigenvalues: Any, Z: Any, lams: Any) -> Any:
    """Leave-one-out errors Y_i - f_i = (Y - H Y)_i / (1 - H_ii) of ridge alone, (L, n, c).

    The limit of infinitely many steps is ridge with lam / alpha, equation (17), on the data without
    the row as on all: this is its leave-one-out too.
    """
    xp = compat.array_namespace(basis)
    ridge = xp.asarray(lams, dtype=basis.dtype, device=compat.device(basis))[:, None]
    filters = ridge / (eigenvalues + ridge)  # 1 - a
    return _spread(basis, filters[..., None] * Z) / _rest(basis, eigenvalues, lams)


def _rest(basis: Any, eigenvalues: Any, lams: Any) -> Any:
    """1 - H_ii (L, n, 1), from its own sum so that it does not cancel where lam is small."""
    xp = compat.array_namespace(basis)
    ridge = xp.asarray(lams, dtype=basis.dtype, device=compat.device(basis))[:, None]
    rest = _spread(basis * basis, (ridge / (eigenvalues + ridge))[..., None])
    lowest = float(xp.min(rest))
    if not lowest > 1e-14:
        flat = int(xp.argmin(rest))
        row, lam = flat % basis.shape[0], float(ridge[flat // basis.shape[0], 0])
        raise ValueError(
            f"row {row} determines itself at lam = {lam:g} (leverage 1): without it nothing is known of "
            "it; raise lam or remove the row"
        )
    return rest


def _spread(matrix: Any, small: Any) -> Any:
    """matrix (n, k) times each of small (..., k, c) as one product: (..., n, c)."""
    xp = compat.array_namespace(matrix)
    *lead, k, c = small.shape
    columns = xp.reshape(xp.moveaxis(small, -2, 0), (k, -1))
    return xp.moveaxis(xp.reshape(matrix @ columns, (matrix.shape[0], *lead, c)), 0, -2)
