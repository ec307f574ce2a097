"""Rows of a kernel's parts as the fused product reads them: two arrays a side, padded to whole blocks."""

from __future__ import annotations

from typing import Any

from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.compiled.formula import Formula
from sdgpu.operators.device_source import StatisticLayout

__all__ = ["DeviceRows", "packed_block", "part_widths", "split"]

#: Bits of a float32 that TF32 has not.
_DROPPED = 13


def part_widths(formula: Formula, parts: list[Rows]) -> tuple[int, ...]:
    """Features of each part, augmentation not counted."""
    widths = []
    for part, rows in zip(formula.parts, parts, strict=True):
        augmented = part.profile.statistic == "product" and part.profile.distance
        widths.append(int(rows.right.shape[1]) - 2 * augmented)
    return tuple(widths)


def split(values: Any) -> tuple[Any, Any]:
    """(high, low), numbers of TF32 with high + low = values to 2^-23 of each: rounded to nearest."""
    high = _rounded(values)
    return high, _rounded(values - high)


def _rounded(values: Any) -> Any:
    """To the 11 bits that tensor cores read of a float32; they would cut the others off."""
    import torch

    half, mask = 1 << (_DROPPED - 1), -(1 << _DROPPED)
    return ((values.view(torch.int32) + half) & mask).view(torch.float32)


class DeviceRows:
    """The arrays of one side.

    Rows beyond the last are copies of it: their values are those of rows, so they meet the zeros of a block
    without making a NaN.

    Parameters
    ----------
    formula : Formula
    layout : StatisticLayout
    parts : list of Rows
        Of torch, in float32.
    side : {"left", "right"}
        Of the kernel's products that are none of distances.
    block : int
        The number of rows is a multiple of it.
    halves : bool
        Whether features are split for TF32: `rows` is then (n, 2 F), high parts and low ones.

    Attributes
    ----------
    rows, columns : Tensor (n, F) or (n, 2 F), and (S, n)
    n : int
        Rows with padding.
    """

    def __init__(
        self,
        formula: Formula,
        layout: StatisticLayout,
        parts: list[Rows],
        side: str,
        *,
        block: int,
        halves: bool,
    ) -> None:
        count = int(parts[0].right.shape[0])
        self.count, self.n = count, -(-count // block) * block
        like = parts[0].right
        rows = like.new_zeros((self.n, layout.features * (2 if halves else 1)))
        self.columns = like.new_zeros((max(layout.columns, 1), self.n))
        for part, place, own in zip(formula.parts, layout.places, parts, strict=True):
            distance = part.profile.statistic == "product" and part.profile.distance
            factor = own.left if side == "left" and not distance else own.right
            features = factor[:, : place.d]
            if place.width:
                pieces = split(features.contiguous()) if halves else (features,)
                for number, piece in enumerate(pieces):
                    first = place.first + number * layout.features
                    rows[:count, first : first + place.d] = piece
            if place.coordinates >= 0:
                self.columns[place.coordinates : place.coordinates + place.d, :count] = features.T
            if place.squares >= 0:
                self.columns[place.squares, :count] = own.right[:, -1]
            if place.norms >= 0:
                self.columns[place.norms, :count] = own.norms
        rows[count:] = rows[count - 1]
        self.columns[:, count:] = self.columns[:, count - 1 : count]
        self.rows = rows


def packed_block(V: Any, n: int, columns: int, *, halves: bool) -> Any:
    """A block V (c, m) as programs read it: (groups, n, columns) or, of halves, (groups, n, 2 columns).

    Halves are high and low parts side by side, and of each eight rows the even ones first: so a thread
    multiplies on tensor cores the values that it made.
    """
    import torch

    c, m = V.shape
    groups = -(-c // columns)
    block = V.new_zeros((groups * columns, n))
    block[:c, :m] = V
    block = block.view(groups, columns, n).transpose(1, 2)
    if halves:
        # position 4 b + t of eight holds row 2 t + b
        order = torch.arange(8, device=V.device).view(4, 2).T.reshape(-1)
        block = block.reshape(groups, n // 8, 8, columns)[:, :, order].reshape(groups, n, columns)
        block = torch.cat(split(block), dim=2)
    return block.contiguous()
