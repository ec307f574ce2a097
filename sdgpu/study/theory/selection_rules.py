"""Rules that choose lam, alpha and step from training data alone, beside a split and an oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.kernels import Kernel
from sdgpu.selection.sweep import Best
from sdgpu.study.real_data.datasets import Split

__all__ = ["Choice", "select"]


@dataclass(frozen=True)
class Choice:
    """What one rule chose, judged on test rows that had no part in it.

    Attributes
    ----------
    rule : str
    best : Best
        Its value is what the rule minimised: no two rules mean the same by it.
    test_mse : float
    """

    rule: str
    best: Best
    test_mse: float


@underflow_is_zero
def select(data: Split, kernel: Kernel, lams: np.ndarray, *, steps: int = 10) -> list[Choice]:
    """Choose on the training part by every rule, and judge on the test part.

    Rules: leave-one-out and generalised cross-validation over the whole grid; the one-shot weight of
    step 2 with the lam of its smallest estimate; ridge alone by leave-one-out; the validation rows; and
    the oracle, which sees the test rows. All predict from the same fit.

    Parameters
    ----------
    data : Split
    kernel : Kernel
    lams : array (L,)
    steps : int, default 10

    Returns
    -------
    list of Choice
    """
    fitted = fit(data.X_train, data.Y_train, kernel, lams=lams, method="eigh")
    loo_sweep = fitted.sweep(steps=steps)
    curve = fitted.gcv() if len(lams) > 1 else None
    choices = {
        "oracle": fitted.sweep(data.X_test, data.Y_test, steps=steps).best(),
        "validation rows": fitted.sweep(data.X_val, data.Y_val, steps=steps).best(),
        "leave-one-out": loo_sweep.best(),
        "ridge by leave-one-out": loo_sweep.best("ridge"),
        "GCV": loo_sweep.best("gcv"),
    }
    if curve is not None:
        i = int(np.argmin(curve.score))
        lam, alpha, score = float(lams[i]), float(curve.alpha[i]), float(curve.score[i])
        choices["one-shot"] = Best(
            lam=lam, alpha=alpha, step=2, mse=np.nan, criterion="gcv", value=score
        )
    return [Choice(rule, best, _test_mse(fitted, best, data)) for rule, best in choices.items()]


def _test_mse(fitted: Fit, best: Best, data: Split) -> float:
    step = int(best.step)
    path = fitted.path(best.lam, best.alpha if step > 1 else 0.0, step)
    return float(np.mean((path.predict(data.X_test)[-1] - data.Y_test) ** 2))
