"""The function that a choice of a sweep stands for."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdgpu.engine.path import Model, Predictor
from sdgpu.selection.best_point import Best
from sdgpu.solvers.solution import Solution

__all__ = ["chosen_dual", "chosen_predictor"]


def chosen_predictor(solution: Solution, model: Model, best: Best) -> Predictor:
    """The predictor of a choice, of all outputs or of each.

    Raises
    ------
    MemoryError
        If the steps of a chain do not fit.
    """
    if not best.per_output and np.isinf(best.step):
        return Predictor(*model.alone(solution.limit(best.lam, best.alpha)[0]))
    return Predictor(*model.alone(chosen_dual(solution, model, best)))


def chosen_dual(solution: Solution, model: Model, best: Best) -> Any:
    """Dual coefficients (n, c) of the chosen steps.

    Notes
    -----
    n k T c multiplications for each lam among the choices. A schedule that waits serves outputs of
    different steps at once: with a weight of 1 a step is the ordinary fit again, so that weights
    1, .., 1, alpha, .., alpha end after t steps of alpha at step T, for each output its own t.
    """
    xp, n, c = model.backend.xp, model.operator.n, solution.outputs
    steps = int(np.max(best.step))
    model.afford(model.share_of(2 * n * c * steps), f"a path of {steps} steps")
    if not best.per_output:
        weights = 0.0 if steps == 1 else best.alpha
        alphas = np.array(np.broadcast_to(np.asarray(weights, dtype=float), (steps - 1,)))
        return xp.asarray(solution.chain(best.lam, alphas).dual[steps - 1, ...], copy=True)
    waits = np.arange(1, steps)[:, None] <= steps - best.step  # (T - 1, c)
    alphas = np.where(waits, 1.0, np.nan_to_num(best.alpha))
    alphas = alphas if steps > 1 else np.zeros(0)
    dual = None
    for lam in np.unique(best.lam):
        last = solution.chain(float(lam), alphas).dual[steps - 1, ...]
        own = model.backend.asarray((best.lam == lam).astype(np.float64))
        dual = last * own if dual is None else dual + last * own
    return dual
