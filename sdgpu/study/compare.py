"""Ridge only, the best fixed weight, Algorithm 1 and the joint optimum, on held-out test data."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.progress import Progress
from sdgpu.backend.ranks import OneRank, Ranks
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import Features
from sdgpu.selection.sweep import Best, Sweep
from sdgpu.study.rank_shares import mean_of_ranks, share_of
from sdgpu.study.real_data.datasets import Split
from sdgpu.study.real_data.large_data import LargeData

__all__ = ["Comparison", "Row", "compare", "default_lams"]

ROWS = {
    "ridge": "ridge only",
    "fixed": "best fixed alpha",
    "star": "alpha* chain",
    "joint": "joint optimum",
}


@dataclass(frozen=True)
class Row:
    """One way to choose, judged on data that had no part in the choice.

    Attributes
    ----------
    name : str
    best : Best
        What the validation part chose.
    test_mse : float
    test_accuracy : float
        Share of right classes; NaN for regression.
    note : str
        A reason to doubt the choice, known before the test rows are looked at; empty if there is none.
    """

    name: str
    best: Best
    test_mse: float
    test_accuracy: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The table of one data set, with its sweep.

    Attributes
    ----------
    name : str
    rows : tuple of Row
    fit : Fit
    sweep : Sweep
    refits : int
        Separate fits that the sweep replaced.
    seconds : float
        Of the fit and the sweep.
    """

    name: str
    rows: tuple[Row, ...]
    fit: Fit
    sweep: Sweep
    refits: int
    seconds: float


def default_lams(n: int, count: int = 30) -> np.ndarray:
    """Regularisations 1e-6 n .. n in geometric steps."""
    return np.geomspace(1e-6, 1.0, count) * n


@underflow_is_zero
def compare(
    data: Split | LargeData,
    kernel: Kernel,
    *,
    features: Features | None = None,
    lams: np.ndarray | None = None,
    alphas: np.ndarray | None = None,
    steps: int = 10,
    device: str = "auto",
    memory: int | float | str | None = None,
    method: str = "auto",
    operator: str = "auto",
    tol: float = 1e-6,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Comparison:
    """Fit the training part, choose on the validation part, judge on the test part.

    Parameters
    ----------
    data : Split or LargeData
        The second only with features: its training rows are read in blocks.
    kernel : Kernel
    features : Features, optional
        Of a feature model in place of the kernel.
    lams : array (L,), optional
        :func:`default_lams` by default.
    alphas : array (A,), optional
        0, 0.01, .., 1 by default.
    steps : int, default 10
    device, memory, method, operator, tol, checkpoint, progress
        As in :func:`sdgpu.fit`.
    ranks : Ranks, optional
        Those that share the rows of every part; all call, with all of `data`, and have the same table.

    Raises
    ------
    ValueError
        For data that are read in blocks, on several ranks.
    """
    start = time.perf_counter()
    classes = bool(data.classes) and np.ptp(np.argmax(data.Y_val, axis=1)) > 0
    if ranks is not None:
        if isinstance(data, LargeData):
            raise ValueError(
                f"{data.name} is read in blocks, which several ranks do not share: run it on one"
            )
        data = share_of(data, ranks)
    if isinstance(data, LargeData):
        rows: tuple[Any, Any] = (data.train, None)
        n = data.train.n or 0
    else:
        rows, n = (data.X_train, data.Y_train), len(data.X_train)
    n = n if ranks is None else sum(ranks.gather(n))
    grid = default_lams(n) if lams is None else lams
    fitted = fit(
        *rows,
        kernel,
        grid,
        features=features,
        device=device,
        memory=memory,
        method=method,
        operator=operator,
        tol=tol,
        steps=steps,
        intercept=features is not None,
        checkpoint=checkpoint,
        progress=progress,
        distributed=False if ranks is None else ranks,
    )
    sweep = fitted.sweep(data.X_val, data.Y_val, alphas=alphas, steps=steps, classes=classes)
    seconds = time.perf_counter() - start
    others = OneRank() if ranks is None else ranks
    choices = [(name, sweep.best(over)) for over, name in ROWS.items()]
    table = tuple(_judge(name, best, fitted, data, others) for name, best in choices)
    refits = int(sweep.dataset.attrs["refits_replaced"])
    return Comparison(
        name=data.name, rows=table, fit=fitted, sweep=sweep, refits=refits, seconds=seconds
    )


def _judge(name: str, best: Best, fitted: Fit, data: Split | LargeData, ranks: Ranks) -> Row:
    step = int(best.step)
    alphas = best.alpha if step > 1 else 0.0
    note = _doubts(best, fitted, data) if name == ROWS["joint"] else ""
    try:
        predicted = fitted.path(best.lam, alphas, step).predict(data.X_test)[-1]
    except ValueError as error:  # weights that overflow, say: no reason to lose the other rows
        return Row(name, best, float("nan"), float("nan"), str(error))
    mse = float(mean_of_ranks((predicted - data.Y_test) ** 2, ranks))
    if not data.classes:
        return Row(name, best, mse, float("nan"), note)
    correct = predicted.argmax(axis=1) == data.Y_test.argmax(axis=1)
    return Row(name, best, mse, float(mean_of_ranks(correct, ranks)), note)


def _doubts(best: Best, fitted: Fit, data: Split | LargeData) -> str:
    """What the joint optimum at this lam warns of: chosen on parts of the rows, judged on the others."""
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always", UserWarning)
        fitted.joint_alphas(data.X_val, data.Y_val, lam=best.lam, steps=int(best.step))
    return "; ".join(str(w.message) for w in records if issubclass(w.category, UserWarning))
