"""Which layout a fit on several ranks takes: by the model that a plan on paper goes by, and by memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdgpu.backend.device_classes import CLASSES, DeviceClass
from sdgpu.engine.costs import expected_passes
from sdgpu.engine.planner import EXACT_METHODS, Plan
from sdgpu.engine.scaling_parts import Layout, ScalingProblem
from sdgpu.engine.scaling_plan import chosen_layout, layouts_of

__all__ = ["TRAVEL", "class_of_device", "layout_of_fit"]

#: What the operator calls the layouts of the model.
TRAVEL = {"alone": "gather", "gather": "gather", "ring": "ring", "1.5D": "copies"}


def class_of_device(device: Any) -> DeviceClass:
    """The class of data sheets that comes nearest to a torch device."""
    if str(device) == "cpu":
        return CLASSES["cpu"]
    import torch

    name = torch.cuda.get_device_name(device).lower()
    return CLASSES[next((known for known in CLASSES if known in name), "a100")]


def layout_of_fit(
    sizes: tuple[int, int, int], lams: np.ndarray, plan: Plan, place: dict[str, Any], ranks: int
) -> Layout:
    """How the rows of a fit travel; the same on all ranks, which need not ask each other.

    Parameters
    ----------
    sizes : tuple
        n, d and c.
    lams : array (L,)
    plan : Plan
    place : dict
        `device`, a torch device; `memory`, bytes of each rank; `copies`, of ready rows over X.
    ranks : int
    """
    n, d, c = sizes
    device = class_of_device(place["device"])
    problem = ScalingProblem(n, d, c, np.asarray(lams), plan.steps, plan.tol, device)
    block = max(plan.block, c, 1)
    layouts = layouts_of(problem, ranks, block, copies=place["copies"])
    # an eigendecomposition has the memory of rank 0, and no rows beside it
    rest = 0 if plan.method in EXACT_METHODS else plan.bytes // ranks
    guesses = expected_passes(n, c, float(np.min(lams)), plan.tol)
    passes = next((way[3] for way in guesses if way[0] == plan.method), 1.0)
    how: dict[str, Any] = {"layouts": layouts, "room": place["memory"] - rest, "passes": passes}
    return chosen_layout(problem, ranks, block, **how)
