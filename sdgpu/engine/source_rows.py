"""Rows of a source as a feature model judges them: the first block is looked at before all are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from sdgpu.backend.rows import Block, RowSource
from sdgpu.backend.scaling import safe_unit
from sdgpu.engine.model import Model
from sdgpu.selection.validation_rows import StreamedRows

__all__ = ["PROBED", "first_block", "streamed_rows"]

PROBED = 2000  # rows of a source whose targets metrics look at first


def streamed_rows(model: Model, source: RowSource, solution: Any) -> StreamedRows:
    """Rows of a source as the fit sees them.

    Raises
    ------
    ValueError
        For a fit without features, or a source with other numbers of features or outputs.
    """
    operator = model.operator
    if not hasattr(operator, "features"):
        raise ValueError(
            "rows of a source are judged by fits with features=: pass X_val and Y_val as arrays"
        )
    if (source.d, source.c) != (operator.d, solution.outputs):
        raise ValueError(
            f"X_val has {source.d} features and {source.c} outputs, but the fit has {operator.d} and "
            f"{solution.outputs}"
        )
    return StreamedRows(source, operator, safe_unit(solution.target_rms), model.offset)


@dataclass(frozen=True, eq=False)
class _Resumed:
    """A source that can be read once, of which a block was read."""

    source: RowSource
    first: Block
    rest: Iterator[Block]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def blocks(self, rows: int) -> Iterator[Block]:
        """The block that was read, and the rest."""
        return chain([self.first], self.rest)


def first_block(data: StreamedRows) -> tuple[StreamedRows, Any, bool]:
    """The rows, none of them lost, the targets of their first block as they are, and if it has weights.

    Raises
    ------
    ValueError
        Without rows.
    """
    blocks = data.source.blocks(PROBED)
    first = next((block for block in blocks if block.rows), None)
    if first is None:
        raise ValueError("X_val has no rows: at least one is needed")
    if not data.source.rereadable:
        data = replace(data, source=_Resumed(data.source, first, blocks))
    truth = None if first.Y is None else data.operator.backend.asarray(first.Y)
    return data, truth, first.weights is not None
