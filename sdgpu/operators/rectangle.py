"""Both sides of a rectangle of the kernel matrix: the values between two sets of rows, used twice."""

from __future__ import annotations

from typing import Any

from sdgpu.backend.arrays import slices
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.operators.tiled import TiledOperator

__all__ = ["both_sides", "sides_of_rows"]

ALIGNED = 64  # rows that whole vectors of machine code begin at


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


def sides_of_rows(
    operator: TiledOperator, rows: tuple[Any, Any], blocks: tuple[Any, Any]
) -> tuple[Any, Any]:
    """The same of rows X (m, d) and X' (n, d) that are not ready, by the compiled loop where it pays.

    Parameters
    ----------
    operator : TiledOperator
        Whose kernel, precision, centre and threads are taken.
    rows : pair of tensors
    blocks : pair of tensors
        V (m, c) and W (n, c), float64.
    """
    import torch

    (left, right), (V, W) = rows, blocks
    filled = (
        -len(right) % ALIGNED
    )  # with rows that are multiplied by 0, and whose products are left out
    joined = torch.cat([right, right[-1:].expand(filled, -1), left])
    both = operator.of_rows(joined)
    if not len(left) or not len(right) or not both.compiled:
        narrow = [x.float() if operator.precision == "float32" else x for x in (V, W)]
        ready = operator.ready(left), operator.ready(right)
        return both_sides(operator.kernel, ready, (narrow[0], narrow[1]), tile=operator.tile_rows)
    block = torch.cat([W, W.new_zeros((filled, W.shape[1])), V])
    corner = len(right) + filled
    made = both.corner_product(block, corner)
    return made[corner:], made[: len(right)]
