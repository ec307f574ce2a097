"""Ready rows as compiled code reads them: a table of addresses, and the arrays that must stay alive."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.compiled.formula import Formula
from sdgpu.kernels.compiled.machine_code import group_size
from sdgpu.kernels.compiled.tile_code import FIELDS, LEFT, NORMS, PACKED, RIGHT, SQUARES, WIDTH

__all__ = ["RowTable", "packed_rows"]


def packed_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (n, k) in groups of two vectors, feature by feature: (groups, k, size), filled up with 0."""
    (n, k), size = rows.shape, group_size(rows.dtype.name)
    packed = np.zeros((-(-n // size), k, size), rows.dtype)
    whole = n // size
    packed[:whole] = rows[: whole * size].reshape(whole, size, k).transpose(0, 2, 1)
    if whole < len(packed):
        packed[whole, :, : n - whole * size] = rows[whole * size :].T
    return packed


def _filled_up(values: np.ndarray) -> np.ndarray:
    """Numbers (n,) of whole groups, filled up with 0."""
    return np.pad(values, (0, -len(values) % group_size(values.dtype.name)))


class RowTable:
    """Addresses and widths of the ready rows of all parts, for compiled code; keeps the arrays alive.

    Rows are read where they lie; packed ones are a copy.
    """

    def __init__(self, formula: Formula, parts: list[Rows]) -> None:
        self._entries = np.zeros((len(parts), FIELDS), dtype=np.int64)
        self._arrays: list[np.ndarray] = []
        for entry, part, rows in zip(self._entries, formula.parts, parts, strict=True):
            factor = np.ascontiguousarray(to_numpy(rows.right))
            entry[LEFT], entry[RIGHT] = self._address(rows.left), self._address(factor)
            entry[PACKED] = self._address(packed_rows(factor))
            if rows.norms is not None:
                entry[NORMS] = self._address(_filled_up(to_numpy(rows.norms)))
            if part.near:
                entry[SQUARES] = self._address(_filled_up(factor[:, -1]))
            entry[WIDTH] = factor.shape[1]

    @property
    def parts(self) -> int:
        """Of the kernel."""
        return len(self._entries)

    @property
    def address(self) -> int:
        """Of the entries."""
        return int(self._entries.ctypes.data)

    def _address(self, array: Any) -> int:
        host = np.ascontiguousarray(to_numpy(array))
        self._arrays.append(host)
        return int(host.ctypes.data)
