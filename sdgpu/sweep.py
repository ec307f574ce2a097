"""The sweep: losses of every (lam, alpha, step) from one decomposition, as an xarray dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import xarray as xr

from sdgpu.backend.checks import choice
from sdgpu.backend.datafiles import check_target, read_dataset, write_dataset
from sdgpu.backend.progress import Stopwatch
from sdgpu.distill.gcv import jackknife_error
from sdgpu.distill.joint_weights import ROUNDING, steady_joint_weights
from sdgpu.distill.limit_interpolation import limit_nodes
from sdgpu.distill.loss_triangles import grid_losses
from sdgpu.distill.optimal_weights import greedy_weights
from sdgpu.distill.schedules import grid_tails
from sdgpu.distill.scores import SCORES
from sdgpu.operators.dense import Cross
from sdgpu.results import Info
from sdgpu.solvers.solution import Solution
from sdgpu.tally import ClassTally
from sdgpu.training_error import training_losses
from sdgpu.validation import Validation, leave_one_out, validate

__all__ = [
    "Best",
    "Sweep",
    "check_target",
    "open_sweep",
    "run_sweep",
    "training_dataset",
    "write_dataset",
]

#: Loss variables among which :meth:`Sweep.best` chooses.
FAMILIES = {
    "fixed": "mse",
    "ridge": "ridge_mse",
    "star": "star_mse",
    "clipped": "clipped_mse",
    "joint": "joint_mse",
    "limit": "limit_mse",
    "gcv": "gcv",
    **{name: name for name in SCORES},
}
_FIXED = ("fixed", "limit", "gcv", *SCORES)  # families of fixed weights
_GRID, _CHAIN = ("lam", "alpha", "step"), ("lam", "step")
_DIMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mse", "mse_error", "train_mse", "degrees_of_freedom", "gcv", *SCORES), _GRID),
    **dict.fromkeys(("degrees_of_freedom_error", "gcv_error"), _GRID),
    **dict.fromkeys(
        ("alpha_star", "star_mse", "alpha_clipped", "clipped_mse", "joint_mse"), _CHAIN
    ),
    **{"limit_mse": ("lam", "alpha"), "ridge_mse": ("lam",), "joint_condition": ("lam",)},
    "joint_alpha": ("lam", "chain", "step"),
    **{name: (name,) for name in ("lam", "alpha", "step", "chain")},
}


@dataclass(frozen=True, eq=False)
class Best:
    """The best point of a sweep. Two are equal if all their numbers are.

    Attributes
    ----------
    lam : float
    alpha : float or array (step - 1,)
        The fixed weight, or the weights of steps 2..step of a chosen chain; NaN at step 1, which has
        no weight.
    step : float
        The distillation step; infinite for the limit.
    mse : float
        Its mean squared validation error; NaN where none is known, as for GCV without validation data.
    criterion : str
        The variable of the dataset that chose it: "mse", "star_mse", "gcv", "accuracy", ..
    value : float
        That variable there.
    """

    lam: float
    alpha: Any
    step: float
    mse: float
    criterion: str = "mse"
    value: float = np.nan

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Best):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(
            a == b if isinstance(a, str) else np.array_equal(a, b, equal_nan=True) for a, b in pairs
        )

    def __hash__(self) -> int:
        return hash((self.lam, self.step, self.criterion))


@dataclass(frozen=True, eq=False)
class Sweep:
    """Validation losses of a grid.

    Attributes
    ----------
    dataset : xarray.Dataset
        Coordinates lam (L), alpha (A), step (T). Variables:

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
        ==========================  ==================  ==========================================
    """

    dataset: xr.Dataset

    def best(self, over: str = "fixed") -> Best:
        """The point with the smallest validation loss; of an estimate, with its standard error added.

        Parameters
        ----------
        over : {"fixed", "ridge", "star", "clipped", "joint", "limit", "gcv"} or a score of classes
            Among fixed weights, ordinary ridge only, the chains of Algorithm 1, joint optima, limits; or
            among fixed weights by generalised cross-validation on the training data alone, or by the
            largest "accuracy", or the smallest "nll", "brier" or "ece" (a model that gives every row the
            shares of the classes has an ece of 0 and knows nothing).

        Returns
        -------
        Best

        Raises
        ------
        ValueError
            For an unknown `over`, or if every loss is NaN.
        """
        name = FAMILIES[choice("over", over, FAMILIES)]
        if name not in self.dataset:
            remedy = (
                "ask for it with classes=True" if name in SCORES else "only over='gcv' can choose"
            )
            raise ValueError(f"this sweep has no {name}: {remedy}")
        losses = self.dataset[name]
        if f"{name}_error" in self.dataset:  # the smallest of many estimates is one of the luckiest
            losses = losses + self.dataset[f"{name}_error"]
        if not bool(losses.notnull().any()):
            raise ValueError(f"every {losses.name} of this sweep is NaN")
        where = (-losses if name == "accuracy" else losses).argmin(dim=list(losses.dims))
        point = losses.isel(where)
        lam, value = float(point["lam"]), float(self.dataset[name].isel(where))
        shown = "mse" if name in ("gcv", *SCORES) else name
        mse = float(self.dataset[shown].isel(where)) if shown in self.dataset else np.nan
        step = (
            float(point["step"]) if "step" in point.coords else (np.inf if over == "limit" else 1)
        )
        if over in _FIXED:
            alpha: Any = float(point["alpha"]) if step != 1 else np.nan
        elif over == "ridge" or step == 1:
            alpha = np.nan
        else:
            alpha = self._chain(over, int(where["lam"]), int(step))
        return Best(lam, alpha, step if np.isinf(step) else int(step), mse, name, value)

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

    def labelled(self, info: Info, kernel: object, seconds: float) -> Sweep:
        """The same, with what made it in the attributes of the dataset."""
        self.dataset.attrs.update(
            kernel=repr(kernel), training_rows=info.n, features=info.d, backend=info.backend,
            sweep_seconds=seconds, fit_seconds=sum(info.seconds.values()),
            error_estimate=info.error_estimate,
        )  # fmt: skip
        return self

    def _chain(self, over: str, row: int, step: int) -> np.ndarray:
        """Weights of steps 2..step of the chain that reached the point, at lam number `row`."""
        name = {"star": "alpha_star", "clipped": "alpha_clipped", "joint": "joint_alpha"}[over]
        chain = self.dataset[name].isel(lam=row)
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
    kind = choice("file ending", source.suffix, (".nc", ".zarr"))
    if not source.exists() and kind == ".nc":
        raise FileNotFoundError(f"there is no sweep at {source}")
    dataset = read_dataset(source)
    losses = [name for name in FAMILIES.values() if name not in SCORES]
    known = any(name in dataset for name in losses if name != "gcv")
    wanted = losses if known else ("gcv",)  # a sweep of GCV has no other losses
    missing = [name for name in wanted if name not in dataset]
    if missing:
        raise ValueError(f"{source} holds no sweep: {', '.join(missing)} is missing")
    for name, variable in dataset.variables.items():
        dims = _DIMS.get(str(name), variable.dims)
        if variable.dims != dims or (name in _DIMS and variable.dtype.kind not in "fi"):
            raise ValueError(
                f"{source} holds no sweep: {name} has dimensions {variable.dims} and type "
                f"{variable.dtype}, where numbers over {dims} are wanted"
            )
    return Sweep(dataset)


def run_sweep(
    solution: Solution,
    cross: Cross | None,
    targets: Any,
    lams: np.ndarray,
    alphas: np.ndarray,
    steps: int,
    watch: Stopwatch,
    *,
    classes: bool = False,
    accuracy: float = 0.0,
) -> Sweep:
    """Losses of the grid (L, A, T): one pass over the validation rows, then small algebra.

    Parameters are those of :meth:`sdgpu.Fit.sweep`, checked and on the device; without `cross` each
    training row is judged by the fit without it. `accuracy` is the relative error of the predictions.
    """
    largest = np.array([solution.largest_bound])  # whether a limit exists depends on it alone
    nodes = limit_nodes(largest, lams, alphas)
    with watch.stage("sweep"):
        asked, grid = (nodes.lams, nodes.alphas), grid_tails(alphas, steps)
        tally = ClassTally(grid, len(lams)) if classes else None
        if cross is None:
            seen = leave_one_out(solution, lams, steps, limits=asked, tally=tally)
        else:
            seen = validate(
                solution, cross, targets, lams, steps, limits=asked, tally=tally, watch=watch
            )
        scale = seen.scale
        mse = scale * grid_losses(seen.triangles, grid)
        error = np.zeros_like(mse)
        if seen.replicates is not None:
            each = np.stack([scale * grid_losses(triangle, grid) for triangle in seen.replicates])
            # what all probes have wrong alike: mse goes with (1 - H_ii)^-2
            by = solution.leverages
            rest = solution.rows - by.traces(lams, 1).mean(axis=0)  # (L, 1)
            alike = 2 * mse * (by.bias(lams, steps) / rest)[:, None, :]
            error = np.hypot(jackknife_error(each, mse), alike)
        known = solution.leverages.exact or cross is None
        own = training_losses(solution, lams, alphas, steps, estimate=known, accuracy=accuracy)
        limit = scale * nodes.spread(seen.limits, seen.zero)
        more = {"mse_error": error, **own, **(tally.scores() if tally is not None else {})}
        return Sweep(_dataset(lams, alphas, steps, mse, more, limit, seen, scale, accuracy))


def _dataset(
    lams: np.ndarray,
    alphas: np.ndarray,
    steps: int,
    mse: np.ndarray,
    own: dict[str, np.ndarray],
    limit: np.ndarray,
    seen: Validation,
    scale: float,
    accuracy: float,
) -> xr.Dataset:
    nothing = np.full((len(lams), 1), np.nan)  # step 1 has no weight
    star, clipped = (greedy_weights(seen.triangles, clip=clip) for clip in (False, True))
    # what is promised must survive the errors of the predictions that are combined
    noise = np.full(len(lams), np.clip(accuracy, ROUNDING, 1.0) * np.sqrt(seen.zero))
    joint = steady_joint_weights(seen.triangles, noise)
    grid, chain = ("lam", "alpha", "step"), ("lam", "step")
    first = np.full((len(lams), steps, 1), np.nan)
    variables = {
        "mse": (grid, mse),
        **{name: (grid, values) for name, values in own.items()},
        "limit_mse": (("lam", "alpha"), limit),
        "ridge_mse": (("lam",), mse[:, 0, 0]),
        "alpha_star": (chain, np.hstack([nothing, star.alphas])),
        "star_mse": (chain, scale * star.losses),
        "alpha_clipped": (chain, np.hstack([nothing, clipped.alphas])),
        "clipped_mse": (chain, scale * clipped.losses),
        "joint_mse": (chain, scale * joint.losses),
        "joint_alpha": (
            ("lam", "chain", "step"),
            np.concatenate([first, joint.schedules], axis=-1),
        ),
        "joint_condition": (("lam",), joint.condition),
    }
    dataset = _described(variables, lams, alphas, steps)
    dataset.attrs["validation_rows"] = seen.rows
    dataset.attrs["outputs"] = seen.outputs
    dataset.attrs["refits_replaced"] = len(lams) * (len(alphas) * (steps - 1) + 1)
    return dataset


def training_dataset(
    lams: np.ndarray, alphas: np.ndarray, steps: int, own: dict[str, np.ndarray]
) -> xr.Dataset:
    """The variables of :func:`training_losses` as a dataset."""
    grid = ("lam", "alpha", "step")
    return _described({name: (grid, values) for name, values in own.items()}, lams, alphas, steps)


def _described(
    variables: dict[str, Any], lams: np.ndarray, alphas: np.ndarray, steps: int
) -> xr.Dataset:
    numbers = np.arange(1, steps + 1)
    dataset = xr.Dataset(
        variables, coords={"lam": lams, "alpha": alphas, "step": numbers, "chain": numbers}
    )
    for name, text in _MEANING.items():
        if name in dataset:
            dataset[name].attrs["long_name"] = text
    return dataset


_MEANING = {
    "lam": "ridge of K + lam I",
    "alpha": "weight of the ground truth at steps 2..T",
    "step": "distillation step, 1 is the ordinary fit",
    "chain": "number of steps for which the weights were chosen together",
    "mse": "mean squared validation error",
    "mse_error": "standard error of mse, where it is an estimate",
    "train_mse": "mean squared training error",
    "degrees_of_freedom": "trace of the smoother",
    "degrees_of_freedom_error": "standard error of the trace",
    "gcv": "generalised cross-validation",
    "gcv_error": "standard error of gcv",
    "limit_mse": "mean squared validation error of infinitely many steps",
    "accuracy": "share of validation rows with the right class",
    "nll": "mean -log probability of the right class",
    "brier": "mean squared distance of probabilities from the one-hot truth",
    "ece": "expected calibration error, 15 bins",
    "ridge_mse": "mean squared validation error of step 1",
    "alpha_star": "weight by Algorithm 1",
    "star_mse": "mean squared validation error of the chain of Algorithm 1",
    "alpha_clipped": "weight by Algorithm 1, clipped to [0, 1]",
    "clipped_mse": "mean squared validation error of the clipped chain",
    "joint_mse": "mean squared validation error of the joint optimum",
    "joint_alpha": "weights of the joint optimum",
    "joint_condition": "condition number of the joint problem",
}
