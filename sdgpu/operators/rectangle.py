"""Both sides of a rectangle of the kernel matrix: the values between two sets of rows, used twice."""

from __future__ import annotations

from typing import Any

from sdgpu.backend.arrays import slices
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows

__all__ = ["both_sides"]


def both_sides(
    kernel: Kernel, rows: tuple[Rows, Rows], blocks: tuple[Any, Any], *, tile: int
) -> tuple[Any, Any]:
    """K W and K'V for K = kappa(left, right) (m, n), of which each value is computed once.

    Parameters
    ----------
    kernel : Kernel
    rows : pair of Rows
        Left (m) and right (n), ready.
    blocks : pair of tensors
        V (m, c) and W (n, c), in the precision that multiplies.
    tile : int
        Rows and columns of a tile.

    Returns
    -------
    pair of tensors
        (m, c) and (n, c), sums across tiles in float64.

    Notes
    -----
    m n kernel values and 4 m n c operations.
    """
    import torch

    (left, right), (V, W) = rows, blocks
    high, low = (torch.zeros(x.shape, dtype=torch.float64, device=x.device) for x in (V, W))
    for i in slices(len(left), tile):
        for j in slices(len(right), tile):
            values = kernel.tile(left[i], right[j])
            if values.dtype != V.dtype:  # "mixed"
                values = values.to(V.dtype)
            high[i].add_(values @ W[j])
            low[j].add_(values.T @ V[i])
    return high, low
