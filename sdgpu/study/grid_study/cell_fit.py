"""The work on one decomposition: fit once; for each cell sweep, choose by every rule, judge the choices."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

import sdgpu
from sdgpu.backend.rounding import mean_and_spread, underflow_is_zero
from sdgpu.engine.fitted import Fit
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import Features
from sdgpu.selection.metrics import Metric, PredictedRows, as_metrics
from sdgpu.selection.sweep import Best, Sweep
from sdgpu.study.grid_study.cells import Cell, Decomposition, KernelPoint, MethodPoint
from sdgpu.study.grid_study.configuration import SIMPLE, DataTable
from sdgpu.study.grid_study.interval_cells import interval_losses
from sdgpu.study.grid_study.label_arrays import label_arrays
from sdgpu.study.grid_study.shared_distances import forget_distances, share_distances
from sdgpu.study.grid_study.student_cells import StudentCell, student_cell
from sdgpu.study.real_data.datasets import Dataset, Split, load, sample, split
from sdgpu.study.real_data.large_data import LargeData, load_large
from sdgpu.study.theory.noise import gaussian, symmetric

__all__ = ["CellResult", "fit_cells", "forget_data", "kernel_of", "load_data", "split_of"]

#: Variables of a sweep that a cell keeps whatever it keeps of the grid: small ones.
CURVES = ("ridge_mse", "star_mse", "alpha_star", "clipped_mse", "joint_mse")


@dataclass(frozen=True, eq=False)
class CellResult:
    """What a cell has found.

    Attributes
    ----------
    record : dict
        Labels, sizes, choices and their test losses, seconds, warnings: what JSON can hold.
    arrays : dict of str to array
        lam (L,), and losses of the grid.
    """

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]


@lru_cache(maxsize=2)
def load_data(table: DataTable) -> Dataset:
    """All rows of a data set."""
    how = table.model_dump(exclude={"source", "target", "rows", "validation", "test"})
    return load(table.path, table.target, **how)


@lru_cache(maxsize=2)
def split_of(table: DataTable, seed: int) -> Split | LargeData:
    """Training, validation and test rows of a seed, standardised."""
    if table.is_large:
        return load_large(table.source, rows=table.rows, seed=seed)
    data = sample(load_data(table), table.rows, seed)
    return split(data, validation=table.validation, test=table.test, seed=seed)


@lru_cache(maxsize=2)
def _median_distance(table: DataTable, seed: int) -> float:
    return sdgpu.median_distance(_some_rows(split_of(table, seed)))


def forget_data() -> None:
    """Read data anew from here on: files may have changed since an earlier run of this process."""
    for cached in (load_data, split_of, _median_distance):
        cached.cache_clear()
    forget_distances()


def _some_rows(parts: Split | LargeData) -> np.ndarray:
    return parts.sample if isinstance(parts, LargeData) else parts.X_train


def kernel_of(point: KernelPoint, table: DataTable, seed: int) -> Kernel:
    """The kernel, its width in units of the median distance of training rows where it is given so."""
    parameters: dict[str, Any] = dict(point.parameters)
    width = parameters.pop("width_over_median", None)
    if width is not None:
        length = width * _median_distance(table, seed)
        of_width = {"gaussian": 0.5 / length**2, "laplacian": 1 / length}
        parameters["gamma" if point.name in of_width else "lengthscale"] = of_width.get(
            point.name, length
        )
    if point.name == "wendland":
        parameters["dimension"] = _some_rows(split_of(table, seed)).shape[1]
    return KERNEL_CLASSES[point.name](**parameters)


ADVISED = 5  # most steps of the rule "advice"
KERNEL_CLASSES: dict[str, Callable[..., Kernel]] = {
    "gaussian": sdgpu.Gaussian,
    "laplacian": sdgpu.Laplacian,
    "matern": sdgpu.Matern,
    "rationalquadratic": sdgpu.RationalQuadratic,
    "periodic": sdgpu.Periodic,
    "wendland": sdgpu.Wendland,
    "polynomial": sdgpu.Polynomial,
    "linear": sdgpu.Linear,
    "cosine": sdgpu.Cosine,
    "tanimoto": sdgpu.Tanimoto,
    "arccosine": sdgpu.ArcCosine,
    "nngp": sdgpu.NNGP,
    "ntk": sdgpu.NTK,
}


def _features(
    method: MethodPoint, kernel: Kernel, parts: Split | LargeData, seed: int
) -> Features | None:
    if method.features is None:
        return None
    if method.features == "own":
        return sdgpu.Explicit()
    assert method.size is not None
    if method.features == "fourier":
        return sdgpu.RandomFourier(method.size)
    recipe = sdgpu.Nystrom(method.size, method.landmarks)
    if not isinstance(parts, LargeData):
        return recipe
    # a source is read once: landmarks are of the sample that came with it
    sample = np.asarray(parts.sample, dtype=np.float64)
    return sdgpu.Nystrom(landmarks=recipe.prepare(kernel, sample, sample.shape[1], seed).landmarks)


@underflow_is_zero
def fit_cells(job: Decomposition, *, device: str = "auto", memory: Any = None) -> list[CellResult]:
    """Fit, and all cells of it.

    Noise is drawn for training and validation targets from the seed of the cell; one eigendecomposition
    serves all levels of it, other methods fit each anew, as their bases grow from the targets.

    Parameters
    ----------
    job : Decomposition
    device : str, default "auto"
    memory : bytes or "8GiB", optional
        As for :func:`sdgpu.fit`.
    """
    start = time.perf_counter()
    parts = split_of(job.data, job.seed)
    kernel = kernel_of(job.kernel, job.data, job.seed)
    alone = (
        job.method.learn is None and job.config.teacher is None
    )  # who else needs rows and kernel
    if not isinstance(parts, LargeData) and alone:
        parts, kernel = share_distances(parts, kernel, job)
    rows = parts.train.n if isinstance(parts, LargeData) else len(parts.X_train)
    lams = job.config.grid.ridges(rows or 0)
    loaded, fitted, results = time.perf_counter() - start, None, []

    def fit_to(Y: Any, Y_val: Any) -> Fit:
        own = _learned(kernel, job, parts, (Y, Y_val))
        features = _features(job.method, own, parts, job.seed)
        return sdgpu.fit(
            parts.train if isinstance(parts, LargeData) else parts.X_train,
            None if isinstance(parts, LargeData) else Y,
            own,
            np.unique(_schedules(job, lams)),
            features=features,
            method=_method(job),
            operator=job.method.operator,
            device=device,
            memory=memory,
            tol=job.config.compute.tol,
            dtype=job.precision,
            steps=job.config.grid.steps,
            intercept=job.method.has_intercept,
            smoother=job.method.smoother,
            seed=job.seed,
        )

    for cell in job.cells:
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", UserWarning)
            Y_train, Y_val = _noisy(parts, job, cell)
            # a kernel that is learned from the targets is another one for others
            shared = fitted is not None and fitted.info.method == "eigh" and not job.method.learn
            fitted = fitted.with_targets(Y_train) if fitted and shared else fit_to(Y_train, Y_val)
            seconds = {"load": 0.0 if shared else loaded, "fit": time.perf_counter() - start}
            taught = _taught(job, fitted, parts, (Y_train, Y_val), device=device, memory=memory)
            result = _judged(
                job, cell, fitted, parts, Y_val, lams=lams, seconds=seconds, taught=taught
            )
        texts = dict.fromkeys(str(w.message) for w in heard if issubclass(w.category, UserWarning))
        result.record["warnings"] = list(texts)
        if job.method.learn is not None:
            result.record["learned"] = repr(fitted.kernel)
        results.append(result)
    return results


def _method(job: Decomposition) -> str:
    """That of the fit: rounds of labels, and a lam for each step, take all eigenvalues."""
    whole = job.config.synthetic_labels is not None or job.method.later_lam != 1
    return "eigh" if whole and job.method.features is None else job.method.name


def _schedules(job: Decomposition, lams: np.ndarray) -> np.ndarray:
    """lam (L,) of the grid, or those of every step (L, T) where later ones have others."""
    if job.method.later_lam == 1:
        return lams
    factors = np.full(job.config.grid.steps, job.method.later_lam)
    factors[0] = 1.0
    return lams[:, None] * factors


def _taught(
    job: Decomposition,
    fitted: Fit,
    parts: Split | LargeData,
    targets: tuple[Any, Any],
    *,
    device: str,
    memory: Any,
) -> StudentCell | None:
    """The student of a cell, where the study has a teacher."""
    table = job.config.teacher
    if table is None or isinstance(parts, LargeData):
        return None
    point = KernelPoint(
        table.name, tuple((name, values[0]) for name, values in table.given.items())
    )
    teacher_kernel = kernel_of(point, job.data, job.seed)
    features = _features(job.method, fitted.kernel, parts, job.seed)
    how = {"kernel": fitted.kernel, "features": features, "device": device, "memory": memory}
    return student_cell(job, parts, *targets, teacher_kernel=teacher_kernel, how=how)


def _learned(
    kernel: Kernel, job: Decomposition, parts: Split | LargeData, targets: tuple[Any, Any]
) -> Kernel:
    """The kernel of a cell, its parameters learned where the study asks for it."""
    method = job.method
    if method.learn is None:
        return kernel
    if isinstance(parts, LargeData):
        raise ValueError(f"learn={list(method.learn)} needs rows in memory: leave it out here")
    by = (parts.X_val, targets[1]) if method.learn_by == "validation" else method.learn_by
    lams = job.config.grid.ridges(len(parts.X_train))
    intercept = method.has_intercept and method.learn_by != "validation"
    return sdgpu.tune(
        parts.X_train, targets[0], kernel, lams, over=method.learn, by=by, intercept=intercept
    ).kernel


def _noisy(parts: Split | LargeData, job: Decomposition, cell: Cell) -> tuple[Any, Any]:
    """Training and validation targets with the noise of a cell."""
    if isinstance(parts, LargeData):
        return None, parts.Y_val
    if cell.noise == 0:
        return parts.Y_train, parts.Y_val
    draws = np.random.default_rng([job.seed, 1]), np.random.default_rng([job.seed, 2])
    both = zip((parts.Y_train, parts.Y_val), draws, strict=True)
    if job.config.noise.kind == "symmetric":
        noisy = [symmetric(Y, cell.noise, draw).Y for Y, draw in both]
    else:
        noisy = [gaussian(Y, draw, std=_deviation(parts, cell)).Y for Y, draw in both]
    return noisy[0], noisy[1]


def _deviation(parts: Split, cell: Cell) -> float:
    """Standard deviation of the noise of a cell."""
    return cell.noise * float(np.sqrt(np.mean(mean_and_spread(parts.Y_train)[1] ** 2)))


def _judged(
    job: Decomposition,
    cell: Cell,
    fitted: Fit,
    parts: Split | LargeData,
    Y_val: Any,
    *,
    lams: np.ndarray,
    seconds: dict[str, float],
    taught: StudentCell | None = None,
) -> CellResult:
    """Sweep, choose, judge."""
    config, start = job.config, time.perf_counter()
    grid: dict[str, Any] = {"lams": _schedules(job, lams), "steps": config.grid.steps}
    grid["alphas"] = np.array(config.grid.alphas)
    metrics = as_metrics(config.choose.metrics)
    sweep = fitted.sweep(
        parts.X_val, Y_val, **grid, metrics=metrics, standard_errors=config.choose.standard_errors
    )
    seconds["sweep"] = time.perf_counter() - start
    start = time.perf_counter()
    chosen = {}
    for rule in config.choose.rules:
        if rule == "student":
            assert taught is not None
            chosen[rule] = _test_student(taught, parts, metrics)
            continue
        try:
            best = _best(rule, fitted, sweep, parts, grid)
            chosen[rule] = _test(best, fitted, parts, metrics)
            if config.interval is not None:
                test = parts.X_test, parts.Y_test
                chosen[rule] |= interval_losses(best, fitted, test, config.interval, job.seed)
        except (ValueError, FloatingPointError) as error:  # one rule costs not the others
            chosen[rule] = {**chosen.get(rule, {}), "note": str(error)}
    seconds["choose"] = time.perf_counter() - start
    info = fitted.info
    record = {
        "key": cell.key,
        "study": config.name,
        **cell.labels,
        "kernel_repr": repr(kernel_of(job.kernel, job.data, job.seed)),
        "n": info.n,
        "d": _some_rows(split_of(job.data, job.seed)).shape[1],
        "c": info.c,
        "classes": len(parts.classes),
        "chosen": chosen,
        "seconds": seconds,
        "refits_replaced": int(sweep.dataset.attrs.get("refits_replaced", 0)),
        "fit": {
            "method": info.method,
            "operator": info.operator,
            "precision": info.precision,  # of the work: exact fits are float64 whatever was asked for
            "backend": info.backend,
            "k": info.k,
            "passes": info.passes,
            "error_estimate": info.error_estimate,
            "kernel_difference": info.kernel_difference,
            "bytes": info.bytes,
            "status": info.status,
        },
    }
    arrays = _kept(sweep, lams, config.results.keep, metrics)
    if taught is not None:
        arrays.update(taught.arrays)
    if config.synthetic_labels is not None:
        assert not isinstance(parts, LargeData)
        table, noise = config.synthetic_labels, _deviation(parts, cell)
        arrays.update(label_arrays(fitted, parts, table, lams=lams, noise=noise))
    return CellResult(record, arrays)


def _kept(
    sweep: Sweep, lams: np.ndarray, keep: tuple[str, ...], metrics: tuple[Metric, ...]
) -> dict[str, np.ndarray]:
    names = [name for name in keep if name != "metrics"]
    if "metrics" in keep:
        names += [metric.name for metric in metrics]
    arrays = {
        name: sweep.dataset[name].values for name in (*CURVES, *names) if name in sweep.dataset
    }
    if "limit_mse" in names and "limit_mse" not in arrays:  # a lam for each step has no limit
        arrays["limit_mse"] = np.full(sweep.dataset["mse"].shape[:2], np.nan)
    return {"lam": lams, **arrays}


def _best(
    rule: str, fitted: Fit, sweep: Sweep, parts: Split | LargeData, grid: dict[str, Any]
) -> Best:
    if rule == "oracle":
        return fitted.sweep(parts.X_test, parts.Y_test, **grid).best()
    if rule == "advice":
        return fitted.advise(steps=min(max(2, grid["steps"]), ADVISED)).best
    if rule in ("loo", "ridge_loo"):
        left_out = fitted.sweep(**grid)
        return left_out.best("fixed" if rule == "loo" else "ridge")
    if rule.endswith(SIMPLE):
        return sweep.best(rule.removesuffix(SIMPLE), one_standard_error=True)
    return sweep.best(rule)


def _test(
    best: Best, fitted: Fit, parts: Split | LargeData, metrics: tuple[Metric, ...]
) -> dict[str, Any]:
    """The choice and its losses on the test rows."""
    if np.isinf(best.step):
        predicted = fitted.limit(best.lam, best.alpha).predict(parts.X_test)
    else:
        step = int(best.step)
        weights = best.alpha if step > 1 else 0.0
        predicted = fitted.path(best.lam, weights, step).predict(parts.X_test)[-1]
    losses = _test_losses(predicted, parts, metrics)
    weights = np.atleast_1d(np.asarray(best.alpha, dtype=np.float64)).tolist()
    choice = {"lam": float(np.ravel(best.lam)[0]), "alpha": weights, "step": best.step}
    return {**choice, "criterion": best.criterion, "value": best.value, **losses, "note": ""}


def _test_student(
    taught: StudentCell, parts: Split | LargeData, metrics: tuple[Metric, ...]
) -> dict[str, Any]:
    """The same of a student."""
    losses = _test_losses(taught.predict(parts.X_test), parts, metrics)
    best = dict(taught.best)
    choice = {"lam": best["lam"], "alpha": [best["alpha"]], "step": best["step"]}
    choice |= {"teacher_lam": best["teacher_lam"], "criterion": "mse", "value": best["mse"]}
    return {**choice, **losses, "note": ""}


def _test_losses(
    predicted: Any, parts: Split | LargeData, metrics: tuple[Metric, ...]
) -> dict[str, float]:
    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(parts.Y_test, np.float64)
    losses = {"test_mse": float(np.mean((predicted - truth) ** 2))}
    rows = PredictedRows(predicted.T, truth.T)
    for metric in metrics:
        losses[f"test_{metric.name}"] = float(metric.result(metric.update(rows), len(truth)))
    if parts.classes and "test_accuracy" not in losses:
        right = predicted.argmax(axis=1) == truth.argmax(axis=1)
        losses["test_accuracy"] = float(np.mean(right))
    return losses
