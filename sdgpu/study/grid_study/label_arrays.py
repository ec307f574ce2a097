"""What a cell keeps of rounds of synthetic labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdgpu.engine.fitted import Fit
from sdgpu.engine.synthetic_labels import synthetic_labels
from sdgpu.study.grid_study.label_table import SyntheticLabelsTable
from sdgpu.study.real_data.datasets import Split

__all__ = ["LABEL_AXES", "label_arrays"]

#: Axes of what is kept, after those of the cell; "lam" is that of the grid.
LABEL_AXES = {
    **dict.fromkeys(
        ("synthetic_risk", "synthetic_bias", "synthetic_variance"),
        ("scheme", "lam", "label_weight", "round"),
    ),
    "synthetic_best_weight": ("scheme", "lam"),
}


def label_arrays(
    fitted: Fit, parts: Split, table: SyntheticLabelsTable, *, lams: np.ndarray, noise: float
) -> dict[str, np.ndarray]:
    """Expected risk, squared bias and variance at the test rows, and the best share of true labels.

    Parameters
    ----------
    fitted : Fit
        With all eigenvalues; its targets do not matter.
    parts : Split
    table : SyntheticLabelsTable
    lams : array (L,)
        Of the grid: a round has one, whatever later steps of distillation have.
    noise : float
        Standard deviation of the noise of true and of made labels.
    """
    by_scheme, best = [], []
    for scheme in table.schemes:
        how: dict[str, Any] = {"rounds": table.rounds, "true_labels": table.true_labels}
        how |= {"scheme": scheme, "weights": table.weights, "noise": noise, "lams": lams}
        made = synthetic_labels(
            fitted, parts.Y_train, X_new=parts.X_test, truth_new=parts.Y_test, **how
        )
        found = made.dataset
        by_scheme.append([found[name].values for name in ("risk", "bias", "variance")])
        best.append(made.best_weight()["weight"].values)
    values = np.stack(by_scheme, axis=1)  # (3, schemes, L, A, R)
    names = list(LABEL_AXES)
    return {**dict(zip(names[:3], values, strict=True)), names[3]: np.stack(best)}
