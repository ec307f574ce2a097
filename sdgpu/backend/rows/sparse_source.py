"""Sparse rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import Template, beside, dtype_name, same_place, slices, targets
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.conversion import column_names
from sdgpu.backend.rows.source import Block
from sdgpu.backend.sparse_rows import csr_rows

__all__ = ["SparseSource"]


@dataclass(frozen=True, eq=False)
class SparseSource:
    """CSR rows of SciPy with dense targets.

    Attributes
    ----------
    X : csr_array (n, d)
    Y : array (n, c) or None
    weights : array (n,) or None
    template : Template
        Where results go.
    """

    X: Any
    Y: Any
    weights: Any
    template: Template
    columns: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None

    @classmethod
    def of(cls, X: Any, Y: Any = None, weights: Any = None) -> SparseSource:
        """Check a sparse matrix or tensor, and what belongs to its rows.

        Raises
        ------
        TypeError, ValueError
            As :func:`sdgpu.backend.sparse_rows.csr_rows` and :func:`sdgpu.backend.arrays.targets`, and for
            targets of another library or device.
        """
        rows = csr_rows(X, "X")
        n, d = (int(size) for size in rows.shape)
        if not n:
            raise ValueError("X has no rows")
        xp: Any = np
        place: dict[str, Any] = {}
        if compat.is_torch_array(X):
            import torch as xp

            place = {"device": X.device}
        sample = xp.zeros((0, d), dtype=getattr(xp, str(rows.dtype)), **place)
        truth, flat, kinds = None, False, {str(rows.dtype)}
        if Y is not None:
            truth, flat = targets(Y, "Y", rows=n)
            truth = beside(Y, truth, sample)
            same_place(sample, truth, "X", "Y")
            kinds.add(dtype_name(truth))
            truth = to_numpy(truth)
        if weights is not None:
            weights = to_numpy(targets(weights, "weights", rows=n, outputs=1)[0])[:, 0]
        dtype = "float64" if "float64" in kinds else "float32"
        outputs = None if Y is None else column_names(Y)
        template = Template(sample, dtype, flat, None, outputs)
        return cls(rows, truth, weights, template, outputs=outputs)

    @property
    def d(self) -> int:
        """Features of a row."""
        return int(self.X.shape[1])

    @property
    def c(self) -> int:
        """Outputs; 0 without targets."""
        return 0 if self.Y is None else int(self.Y.shape[1])

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.X.shape[0])

    @property
    def dtype(self) -> str:
        """Always float64: entries are few, and their sums are made once."""
        return "float64"

    @property
    def rereadable(self) -> bool:
        """Always."""
        return True

    def blocks(self, rows: int) -> Iterator[Block]:
        """Slices, one after the other, sparse."""
        for part in slices(self.n, rows):
            Y, weights = (None if x is None else x[part] for x in (self.Y, self.weights))
            yield Block(self.X[part], Y, weights, f"X, row {part.start:,}")
