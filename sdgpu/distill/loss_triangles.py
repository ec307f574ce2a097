"""Validation losses of every schedule from one small triangle per lam.

For one lam the predictions of every step of every schedule are u_1 + sum_j s_j D_j (see
:func:`sdgpu.distill.filters.step_dual_filters`). With the residual E = u_1 - Y_val, the sum of
squared errors is ||E + D s||^2. A QR factorisation of [D_1 .. D_{T-1}, E] leaves a (T, T) triangle R
with ||E + D s|| = ||R (s, 1)||: it is all that the sweep, alpha* (16) and the joint optimum need, it
costs nothing more for more weights, and it keeps the digits that the normal equations would lose.

The columns are stored in this order, D first: then the first t - 1 columns, with the last, belong to
step t, and one factorisation serves the least-squares problems of all steps.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

__all__ = ["grid_losses", "in_units", "merge_rows", "step_columns", "step_losses"]

_CHUNK = 2**22  # doubles of one intermediate of `grid_losses`: 32 MiB


def step_columns(basis: Any, targets: Any) -> Any:
    """Columns [D_1 .. D_{T-1}, u_1 - Y] of the loss.

    Parameters
    ----------
    basis : array (..., m, T)
        u_1, D_1, .., D_{T-1} at m rows.
    targets : array (..., m)

    Returns
    -------
    array (..., m, T)
    """
    xp = compat.array_namespace(basis)
    error = basis[..., 0] - targets
    return xp.concat([basis[..., 1:], error[..., None]], axis=-1)


def merge_rows(triangle: Any | None, columns: Any) -> Any:
    """Triangle R (..., T, T) of all rows so far: QR of the previous triangle over new columns.

    Parameters
    ----------
    triangle : array (..., T, T) or None
        What earlier row blocks left.
    columns : array (..., m, T)
        New rows.

    Notes
    -----
    Householder QR, O(m T^2) for each leading index. Fewer rows than columns are padded with zeros,
    which change no norm.
    """
    xp = compat.array_namespace(columns)
    steps = columns.shape[-1]
    parts = [columns] if triangle is None else [triangle, columns]
    missing_rows = steps - sum(part.shape[-2] for part in parts)
    if missing_rows > 0:
        shape = (*columns.shape[:-2], missing_rows, steps)
        parts.append(xp.zeros(shape, dtype=columns.dtype, device=compat.device(columns)))
    rows = xp.concat(parts, axis=-2) if len(parts) > 1 else columns
    return xp.linalg.qr(rows, mode="reduced")[1]


def grid_losses(triangle: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Sums of squared errors of all fixed weights and all steps.

    Parameters
    ----------
    triangle : array (L, T, T)
        R of each lam.
    grid : array (A, T)
        Tails (1, s_1, .., s_{T-1}) of each weight, :func:`sdgpu.distill.schedules.grid_tails`.

    Returns
    -------
    array (L, A, T)
        Entry t - 1 of the last axis is step t.

    Notes
    -----
    O(L A T^3) multiplications as one matrix product for each step, a few milliseconds for 30,300 grid
    points.
    """
    L, T, _ = triangle.shape
    A = grid.shape[0]
    losses = np.empty((T, L, A))  # weights last: every pass below runs along them
    columns = np.ascontiguousarray(grid.T)  # (T, A)
    width = max(1, _CHUNK // (L * T))
    for start in range(0, A, width):
        part = columns[:, start : start + width]
        for t in range(1, T + 1):
            _one_step(triangle, part, t, losses[t - 1, :, start : start + width])
    return np.ascontiguousarray(losses.transpose(1, 2, 0))


def _one_step(triangle: np.ndarray, columns: np.ndarray, t: int, out: np.ndarray) -> None:
    """Write ||R (s_1..s_{t-1}, 0, .., 1)||^2 of every lam and weight to `out` (L, A)."""
    L, T, _ = triangle.shape
    error = triangle[:, :, T - 1]  # E
    # rows that no D_j of this step reaches: R is upper triangular
    out[...] = np.sum(error[:, t - 1 :] ** 2, axis=1)[:, None]
    if t == 1:
        return
    differences = triangle[:, : t - 1, : t - 1].transpose(1, 0, 2).reshape(-1, t - 1)  # row, lam
    residual = (differences @ columns[1:t]).reshape(t - 1, L, -1)
    residual += error[:, : t - 1].T[:, :, None]
    residual *= residual
    out += residual.sum(axis=0)


def step_losses(triangle: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Sums of squared errors ||R (s, 1)||^2 for given tails.

    Parameters
    ----------
    triangle : array (..., T, T)
    products : array (..., t - 1)
        Tails s_1..s_{t-1} of step t <= T.

    Returns
    -------
    array (...)
    """
    t = products.shape[-1] + 1
    residual = triangle[..., :, -1] + np.einsum(
        "...ij,...j->...i", triangle[..., :, : t - 1], products
    )
    return np.einsum("...i,...i->...", residual, residual)


def in_units(triangle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (.., T, T) of entries near 1 and their units (.., 1): squares stay inside the range."""
    largest = np.max(np.abs(triangle), axis=(-2, -1))
    valid = np.isfinite(largest) & (largest > 0)
    unit = np.ldexp(1.0, np.frexp(np.where(valid, largest, 1.0))[1] - 1)
    return triangle / unit[..., None, None], unit[..., None]
