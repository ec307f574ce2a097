"""One chain of steps on split data as a dataset: predictions and losses of every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sdgpu.backend.ranks import OneRank, Ranks
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.engine.fitted import Fit
from sdgpu.study.rank_shares import mean_of_ranks, rows_of_ranks_joined
from sdgpu.study.real_data.datasets import Split

__all__ = ["chain_dataset"]


@underflow_is_zero
def chain_dataset(
    fitted: Fit, data: Split, alphas: Any, steps: int, *, ranks: Ranks | None = None
) -> xr.Dataset:
    """Predictions and mean squared errors of steps 1..T on all three parts.

    Parameters
    ----------
    fitted : Fit
        Of the training part, with one lam.
    data : Split
    alphas : number or array (T - 1,)
    steps : int
        T.
    ranks : Ranks, optional
        Those whose rows were fitted together; `data` are those of this rank, and the result is of all.

    Returns
    -------
    xarray.Dataset
        ``{train,validation,test}_mse`` (step), ``{validation,test}_prediction`` (step, row, output),
        ``alpha`` (step), NaN at step 1.
    """
    others = OneRank() if ranks is None else ranks
    path = fitted.path(alphas=alphas, steps=steps)
    parts = {
        "train": (path.fitted, data.Y_train),
        "validation": (path.predict(data.X_val), data.Y_val),
        "test": (path.predict(data.X_test), data.Y_test),
    }
    variables: dict[str, Any] = {"alpha": ("step", np.concatenate([[np.nan], path.alphas]))}
    for name, (predicted, truth) in parts.items():
        variables[f"{name}_mse"] = ("step", mean_of_ranks((predicted - truth) ** 2, others, axes=1))
        if name != "train":
            joined = rows_of_ranks_joined(predicted, others)
            variables[f"{name}_prediction"] = (("step", f"{name}_row", "output"), joined)
    dataset = xr.Dataset(variables, coords={"step": np.arange(1, steps + 1)})
    dataset.attrs.update(
        lam=path.lam,
        kernel=repr(fitted.kernel),
        training_rows=fitted.info.n,
        error_estimate=fitted.info.error_estimate,
        data=data.name,
    )
    return dataset
