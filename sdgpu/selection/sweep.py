"""The sweep: losses of every (lam, alpha, step) from one decomposition, as an xarray dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.checks import choice
from sdgpu.backend.datafiles import check_target, read_dataset, write_dataset
from sdgpu.selection.best_point import Best, best_of_each, simplest_within
from sdgpu.selection.metrics import CLASSES, METRICS, named_metric

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Best", "Sweep", "check_target", "open_sweep", "write_dataset"]

#: Loss variables among which :meth:`Sweep.best` chooses.
FAMILIES = {
    "fixed": "mse",
    "ridge": "ridge_mse",
    "star": "star_mse",
    "clipped": "clipped_mse",
    "joint": "joint_mse",
    "limit": "limit_mse",
    "gcv": "gcv",
}
#: The dimension of schedules of lam, one for each step, in the place of "lam".
SCHEDULE = "schedule"
_GRID, _CHAIN = ("lam", "alpha", "step"), ("lam", "step")
_DIMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mse", "mse_error", "train_mse", "degrees_of_freedom", "gcv"), _GRID),
    **dict.fromkeys(("degrees_of_freedom_error", "gcv_error"), _GRID),
    **dict.fromkeys(
        ("alpha_star", "star_mse", "alpha_clipped", "clipped_mse", "joint_mse"), _CHAIN
    ),
    **{"limit_mse": ("lam", "alpha"), "ridge_mse": ("lam",), "joint_condition": ("lam",)},
    "joint_alpha": ("lam", "chain", "step"),
    **{name: (name,) for name in ("lam", "alpha", "step", "chain")},
}


@dataclass(frozen=True, eq=False)
class Sweep:
    """Validation losses of a grid.

    Attributes
    ----------
    dataset : xarray.Dataset
        Coordinates lam (L), alpha (A), step (T); of a lam for each step the dimension `schedule` (S) in the
        place of lam, which is a coordinate (schedule, step) then, and no limits. Variables:

        ==========================  ==================  ==========================================
        mse                         (lam, alpha, step)  mean squared validation error
        mse_error                   (lam, alpha, step)  its standard error where leave-one-out is
                                                        estimated, else 0
        train_mse                   (lam, alpha, step)  the same on the training data
        degrees_of_freedom          (lam, alpha, step)  trace of the smoother, sum of B; NaN if it is
                                                        neither known nor asked for
        gcv                         (lam, alpha, step)  generalised cross-validation: train_mse over
                                                        (1 - degrees_of_freedom / n)^2
        degrees_of_freedom_error,   (lam, alpha, step)  standard errors, 0 where all eigenvalues are
        gcv_error                                       known
        limit_mse                   (lam, alpha)        step to infinity (17); NaN if divergent
        ridge_mse                   (lam)               step 1, the ordinary fit
        alpha_star, star_mse        (lam, step)         Algorithm 1 (16)
        alpha_clipped, clipped_mse  (lam, step)         the same, each weight clipped to [0, 1]
        joint_mse                   (lam, step)         best chain over all weights, among those
                                                        that keep this loss when carried out
        joint_alpha                 (lam, chain, step)  its weights for chains of 1..T steps
        joint_condition             (lam)               condition of that least-squares problem
        accuracy, nll, brier, ece   (lam, alpha, step)  of one-hot targets, with classes=True: share of
                                                        right classes, mean -log p of the right one,
                                                        mean ||p - e||^2, calibration error
        others by their names       (lam, alpha, step)  of metrics=[..], :mod:`sdgpu.selection.metrics`
        mse_se, mae_se, ..          (lam, alpha, step)  standard errors over rows of means, with
                                                        standard_errors=True
        mse_per_output, ..          (.., step, output)  of each output, with per_output=True
        ==========================  ==================  ==========================================
    """

    dataset: xr.Dataset

    def best(
        self, over: str = "fixed", *, one_standard_error: bool = False, per_output: bool = False
    ) -> Best:
        """The point with the smallest validation loss; of an estimate, with its standard error added.

        Parameters
        ----------
        over : {"fixed", "ridge", "star", "clipped", "joint", "limit", "gcv"} or a metric
            Among fixed weights, ordinary ridge only, the chains of Algorithm 1, joint optima, limits; or
            among fixed weights by generalised cross-validation on the training data alone, or by a metric
            that the sweep has, such as the largest "accuracy" or the smallest "nll", "brier" or "ece" (a
            model that gives every row the shares of the classes has an ece of 0 and knows nothing).
            "mse" is "fixed".
        one_standard_error : bool, default False
            The most regularised point within one standard error of the best in its place: the largest
            lam, then the fewest steps. For "fixed", "ridge" and metrics that are means over rows, of a
            sweep with standard_errors=True.
        per_output : bool, default False
            The best point of each output: lam, alpha, step, mse and value are arrays (c,). For "fixed",
            "ridge" and metrics, of a sweep with per_output=True.

        Returns
        -------
        Best

        Raises
        ------
        ValueError
            For an unknown `over`, for what the sweep does not have, or if every loss is NaN.
        """
        over = "fixed" if over == "mse" else getattr(over, "name", over)
        name = self._variable(over)
        larger = bool(self.dataset[name].attrs.get("larger_is_better"))
        if per_output:
            if SCHEDULE in self.dataset.dims:
                raise ValueError("per_output: a schedule of lam is chosen for all outputs together")
            if one_standard_error:
                raise ValueError("one_standard_error is of all outputs together: per_output=False")
            return self._best_of_each(over, "mse" if over == "ridge" else name, larger=larger)
        losses = self.dataset[name]
        if f"{name}_error" in self.dataset:  # the smallest of many estimates is one of the luckiest
            losses = losses + self.dataset[f"{name}_error"]
        if not bool(losses.notnull().any()):
            raise ValueError(f"every {name} of this sweep is NaN: it is not known for this fit")
        losses = -losses if larger else losses
        if one_standard_error:
            if SCHEDULE in losses.dims:
                raise ValueError("one_standard_error: schedules of lam have no order of their own")
            errors = self._standard_errors(over, name)
            lams = self.dataset["lam"].values
            indices = simplest_within(losses.values, errors, lams, steps="step" in losses.dims)
            return self._point(over, name, dict(zip(losses.dims, indices, strict=True)))
        found = losses.argmin(dim=list(losses.dims))
        return self._point(over, name, {dim: int(index) for dim, index in found.items()})

    def _variable(self, over: str) -> str:
        """The variable that chooses.

        Raises
        ------
        ValueError
            For a name that is none, or one that this sweep has not.
        """
        metrics = self._metrics
        if over in FAMILIES or over in metrics:
            name = (FAMILIES | metrics)[over]
            if name not in self.dataset and SCHEDULE in self.dataset.dims:
                raise ValueError(f"schedules of lam, one for each step, have no {name}")
            if name not in self.dataset:
                raise ValueError(f"this sweep has no {name}: only over='gcv' can choose")
            return name
        try:
            metric = named_metric(over)
        except ValueError:
            choice("over", over, (*FAMILIES, *metrics, *METRICS))
            raise
        remedy = "classes=True" if metric in CLASSES else f"metrics=[{over!r}]"
        raise ValueError(f"this sweep has no {over}: ask for it with {remedy}")

    def _point(self, over: str, name: str, where: dict[Any, int]) -> Best:
        """What a place in the grid says."""
        point = self.dataset[name].isel(where)
        metric = over in self._metrics
        mse_name = "mse" if name == "gcv" or metric else name
        mse = float(self.dataset[mse_name].isel(where)) if mse_name in self.dataset else np.nan
        step = (
            float(point["step"]) if "step" in point.coords else (np.inf if over == "limit" else 1)
        )
        if over in ("fixed", "limit", "gcv") or metric:
            alpha: Any = float(point["alpha"]) if step != 1 else np.nan
        elif over == "ridge" or step == 1:
            alpha = np.nan
        else:
            alpha = self._chain(over, where, int(step))
        if SCHEDULE in where:
            lam: Any = self.dataset["lam"].values[where[SCHEDULE], : int(step)].copy()
        else:
            lam = float(point["lam"])
        return Best(
            lam=lam,
            alpha=alpha,
            step=step if np.isinf(step) else int(step),
            mse=mse,
            criterion=name,
            value=float(point),
        )

    def _standard_errors(self, over: str, name: str) -> np.ndarray:
        """Those of a variable, in its shape.

        Raises
        ------
        ValueError
            If it has none.
        """
        base = "mse" if over == "ridge" else name
        if f"{base}_se" not in self.dataset:
            raise ValueError(
                f"this sweep has no standard error of {base}: ask for it with fit.sweep(.., "
                "standard_errors=True); the squared error and metrics that are means over rows ('mae', "
                "'nll', 'accuracy', ..) have one, others ('r2', 'rmse', 'auc', ..) and chosen chains none"
            )
        errors = self.dataset[f"{base}_se"].values
        return errors[:, 0, 0] if over == "ridge" else errors

    def _best_of_each(self, over: str, name: str, *, larger: bool) -> Best:
        """The best of each output."""
        if f"{name}_per_output" not in self.dataset or not (
            over in ("fixed", "ridge") or over in self._metrics
        ):
            raise ValueError(
                f"this sweep has no {name} of each output: fit.sweep(.., per_output=True) has it, for "
                "over='fixed', 'ridge' and metrics of real targets"
            )
        values = self.dataset[f"{name}_per_output"].values
        where = best_of_each(
            (-values if larger else values)[:, :, : 1 if over == "ridge" else None]
        )
        rows = np.arange(values.shape[-1])
        step = self.dataset["step"].values[where[2]]
        return Best(
            lam=self.dataset["lam"].values[where[0]],
            alpha=np.where(step == 1, np.nan, self.dataset["alpha"].values[where[1]]),
            step=step,
            mse=self.dataset["mse_per_output"].values[(*where, rows)],
            criterion=f"{name}_per_output",
            value=values[(*where, rows)],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to NetCDF (``.nc``) or zarr (``.zarr``) with checksums, complete or not at all.

        The file is made in memory, written beside `path` and renamed once: what stood there stays whole
        until the new one is, whatever comes between. Of folders only a ``.zarr`` of ours is replaced.

        Raises
        ------
        ValueError
            For another ending, or a folder that would be replaced and holds anything else.
        OSError
            For a folder that does not exist or cannot be written, a full disk: names `path`.
        """
        write_dataset(self.dataset, path)

    @property
    def _metrics(self) -> dict[str, str]:
        """Variables that are metrics, by their names."""
        names = (str(name) for name, var in self.dataset.items() if "larger_is_better" in var.attrs)
        return {name: name for name in names}

    def _chain(self, over: str, where: dict[Any, int], step: int) -> np.ndarray:
        """Weights of steps 2..step of the chain that reached a place."""
        name = {"star": "alpha_star", "clipped": "alpha_clipped", "joint": "joint_alpha"}[over]
        row = {axis: i for axis, i in where.items() if axis in ("lam", SCHEDULE)}
        chain = self.dataset[name].isel(row)
        if over == "joint":
            chain = chain.sel(chain=step)
        return chain.sel(step=slice(2, step)).values.copy()


def open_sweep(path: str | os.PathLike[str]) -> Sweep:
    """Read a sweep that :meth:`Sweep.save` wrote, and nothing else; nothing in the file is executed.

    Everything is checked before an array is touched: checksums, formats, links, filters and sizes
    (:func:`sdgpu.backend.datafiles.read_dataset`). A sweep of an older version has no checksums: it is
    opened with a warning, and has them when it is saved again.

    Parameters
    ----------
    path : path
        ``.nc`` or ``.zarr``. Takes twice its size in memory.

    Raises
    ------
    ValueError
        For another ending; for damage, by the names of file and variables; for what :meth:`Sweep.save`
        never writes; for a file that is no sweep.
    FileNotFoundError, PermissionError
        If there is none, or it may not be read.
    """
    source = FilePath(path)
    suffix = choice("file ending", source.suffix, (".nc", ".zarr"))
    if not source.exists() and suffix == ".nc":
        raise FileNotFoundError(f"there is no sweep at {source}")
    dataset = read_dataset(source)
    by_step = SCHEDULE in dataset.dims
    loss_names = [name for name in FAMILIES.values() if not (by_step and name == "limit_mse")]
    has_losses = any(name in dataset for name in loss_names if name != "gcv")
    required = loss_names if has_losses else ("gcv",)  # a sweep of GCV has no other losses
    missing = [name for name in required if name not in dataset]
    if missing:
        raise ValueError(f"{source} holds no sweep: {', '.join(missing)} is missing")
    for name, variable in dataset.variables.items():
        known = name in _DIMS or "larger_is_better" in variable.attrs
        dims = _DIMS.get(str(name), _GRID if known else variable.dims)
        if str(name).endswith(("_se", "_per_output")):
            known, dims = True, _GRID if str(name).endswith("_se") else (*_GRID, "output")
        if by_step:
            dims = tuple(SCHEDULE if axis == "lam" else axis for axis in dims)
            dims = (SCHEDULE, "step") if name == "lam" else dims
        if variable.dims != dims or (known and variable.dtype.kind not in "fi"):
            raise ValueError(
                f"{source} holds no sweep: {name} has dimensions {variable.dims} and type "
                f"{variable.dtype}, where numbers over {dims} are wanted"
            )
    return Sweep(dataset)
