"""Validation rows of each rank, checked by all together."""

from __future__ import annotations

from typing import Any

from sdgpu.backend.common_checks import together
from sdgpu.engine.model import Model
from sdgpu.engine.training_data import check_largest_weight, row_weights
from sdgpu.selection.validation_rows import RankRows

__all__ = ["rows_of_ranks"]


def rows_of_ranks(
    model: Model, X_val: Any, Y_val: Any, outputs: int, sample_weight: Any = None
) -> tuple[RankRows, Any]:
    """The own rows with their weights, and the targets (m, c) of all ranks; some may have no rows.

    Raises
    ------
    TypeError, ValueError
        On all ranks; also if none has rows, or a weight.
    """
    assert model.ranks is not None
    ranks, backend = model.ranks, model.backend

    ranks.agree("sample_weight of X_val (given or not)", sample_weight is not None)

    def checked() -> tuple[Any, Any, Any]:
        rows = model.template.rows(X_val, "X_val", model.operator.d, empty=True)
        how = {"rows": int(rows.shape[0]), "outputs": outputs}
        truth = model.template.truth(Y_val, "Y_val", **how)[0]
        if sample_weight is None:
            return rows, truth, None
        return rows, truth, row_weights(sample_weight, int(rows.shape[0]), backend)

    rows, truth, weights = together(ranks, checked)
    cross, targets = model.operator.cross(model.on_device(rows)), backend.asarray(truth)
    everyone = ranks.gather_rows(targets)
    if not everyone.shape[0]:
        raise ValueError("X_val has no rows on any rank: at least one is needed")
    if weights is not None:
        own = float(backend.xp.max(weights)) if weights.shape[0] else 0.0
        check_largest_weight(max(ranks.gather(own)))
    targets = targets if model.offset is None else targets - model.offset
    counts = tuple(ranks.gather(int(targets.shape[0])))
    return RankRows(cross, targets, model.offset, weights, ranks=ranks, counts=counts), everyone
