"""The table of a study for rounds of labels that its fits made themselves."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import model_validator

from sdgpu.study.grid_study.key_types import (
    Count,
    Names,
    StudyTable,
    Weights,
    check_choice,
    check_key,
    fault_of,
    require_different,
)

__all__ = ["SyntheticLabelsTable"]


class SyntheticLabelsTable(StudyTable):
    """Rounds of labels that the fit made itself, as :func:`sdgpu.synthetic_labels` has them.

    The clean targets are the truth, `levels` of ``[noise]`` the noise of true and of made labels, and risk
    is that at the test rows. "replace" is "mix" at the weight 0.
    """

    rounds: Count
    schemes: Names = ("mix", "accumulate")
    weights: Weights = tuple(np.linspace(0, 1, 11).tolist())
    true_labels: Literal["fresh", "same"] = "fresh"

    @model_validator(mode="after")
    def _shares(self) -> SyntheticLabelsTable:
        if "replace" in self.schemes:
            raise fault_of("schemes", "'replace' is 'mix' at the weight 0: take that")
        for scheme in self.schemes:
            check_choice("schemes", scheme, ("mix", "accumulate"))
        for name in ("schemes", "weights"):
            check_key(name, require_different, getattr(self, name))
        outside = [w for w in self.weights if not 0 <= w <= 1]
        if outside:
            raise fault_of("weights", f"{outside[0]:g} is no share of true labels: in [0, 1]")
        return self
