"""Validation rows of each rank, checked by all together."""

from __future__ import annotations

from typing import Any

from sdgpu.backend.common_checks import together
from sdgpu.engine.model import Model
from sdgpu.selection.validation_rows import RankRows

__all__ = ["rows_of_ranks"]


def rows_of_ranks(model: Model, X_val: Any, Y_val: Any, outputs: int) -> tuple[RankRows, Any]:
    """The own rows, and the targets (m, c) of all ranks; some ranks may have none.

    Raises
    ------
    TypeError, ValueError
        On all ranks; also if none has rows.
    """
    assert model.ranks is not None
    ranks, backend = model.ranks, model.backend

    def checked() -> tuple[Any, Any]:
        rows = model.template.rows(X_val, "X_val", model.operator.d, empty=True)
        how = {"rows": int(rows.shape[0]), "outputs": outputs}
        return rows, model.template.truth(Y_val, "Y_val", **how)[0]

    rows, truth = together(ranks, checked)
    cross, targets = model.operator.cross(model.on_device(rows)), backend.asarray(truth)
    everyone = ranks.gather_rows(targets)
    if not everyone.shape[0]:
        raise ValueError("X_val has no rows on any rank: at least one is needed")
    targets = targets if model.offset is None else targets - model.offset
    counts = tuple(ranks.gather(int(targets.shape[0])))
    return RankRows(cross, targets, model.offset, ranks=ranks, counts=counts), everyone
