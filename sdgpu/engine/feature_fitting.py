"""`fit(.., features=)`: one pass over the rows, then k x k numbers answer everything.

K ~ Phi Phi' for the features of a map; see :mod:`sdgpu.solvers.feature_solution` for the algebra and
:mod:`sdgpu.solvers.moment_sums` for what is kept of the rows.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import Template, dtype_name, library
from sdgpu.backend.backends import Backend, resolve, to_numpy
from sdgpu.backend.checks import LEAST_NORM, choice
from sdgpu.backend.conversion import warn_if_followed
from sdgpu.backend.memory import budget, require
from sdgpu.backend.progress import Progress, Stopwatch
from sdgpu.backend.rows import ArraySource, RowSource, SparseSource, as_source, checked_blocks
from sdgpu.engine.cluster_sums import active_client, sum_partitions
from sdgpu.engine.feature_certificate import feature_certificate, some_lams
from sdgpu.engine.fitted import Fit
from sdgpu.engine.kernel_sample import SAMPLE, kernel_difference
from sdgpu.engine.model import Model
from sdgpu.engine.moments import Moments
from sdgpu.engine.pass_checkpoint import PassCheckpoint
from sdgpu.engine.results import Info, Seconds
from sdgpu.engine.row_reservoir import RowReservoir
from sdgpu.engine.source_folds import SourceFolds
from sdgpu.engine.streaming import block_rows, feature_bytes, sample_rows, sum_rows, takes_sparse
from sdgpu.kernels import Kernel, as_kernel
from sdgpu.kernels.feature_maps import Explicit, FeatureMap, Features
from sdgpu.kernels.feature_maps.explicit import own_size
from sdgpu.kernels.feature_maps.feature_map import as_features
from sdgpu.operators.feature_rows import FeatureOperator
from sdgpu.solvers.feature_solution import FeatureSolution, decompose_moments
from sdgpu.solvers.moment_sums import MomentSums

__all__ = [
    "FitSums",
    "StreamOptions",
    "features_for_sparse",
    "fit_features",
    "fit_moment_sums",
    "refuse_options",
]

PROBED = 2000  # rows from which the offset of targets is taken


@dataclass(frozen=True)
class StreamOptions:
    """How a feature model is made.

    Attributes
    ----------
    precision : {"float32", "mixed", "float64"} or None
        Of features and products within a block; None follows the rows.
    intercept : bool
        Whether a mean is fitted that no penalty holds down.
    memory : int, str or None
        Bytes that may be used, as in :func:`sdgpu.fit`.
    seed : int
    tol : float
    progress : callable or None
    checkpoint : path, optional
        Where the sums of the pass are saved.
    """

    precision: str | None
    intercept: bool
    memory: int | float | str | None
    seed: int
    tol: float
    progress: Progress | None
    checkpoint: str | os.PathLike[str] | None = None


def refuse_options(what: str, options: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse options that do not go with the kind of fit.

    Raises
    ------
    ValueError
        Names them.
    """
    others = [
        name
        for name, value in options.items()
        if value is not None and not (isinstance(value, str) and value == defaults.get(name))
    ]
    if others:
        raise ValueError(f"{', '.join(others)}: not for {what}; leave that out")


def fit_features(
    data: tuple[Any, Any, Any],
    kernel: Any,
    lams: np.ndarray,
    features: Features | None,
    *,
    device: str | Backend,
    options: StreamOptions,
) -> Fit:
    """A feature model of arrays, a source or moments: choose the features, read the rows once, decompose.

    Raises
    ------
    TypeError, ValueError
        For a source without targets or without `features`, and for what
        :func:`sdgpu.backend.rows.checked_blocks` finds in it.
    MemoryError
        Before the pass, if it does not fit.
    """
    X, Y, sample_weight = data
    if lams[0] == LEAST_NORM:
        raise ValueError(
            "lams=0, the fit of least norm, is not for features=, which sparse rows of few features take: "
            "take a small lam, or method='eigh'"
        )
    if isinstance(X, Moments):
        others = {"Y": Y, "kernel": kernel, "features": features, "sample_weight": sample_weight}
        return _of_moments(X, lams, others, options)
    if features is None:
        raise ValueError(
            "features= is missing: rows of a source are fitted by sdgpu.Nystrom, sdgpu.RandomFourier or "
            "sdgpu.Explicit"
        )
    features = as_features(features)
    source, template = _source(X, Y, sample_weight)
    sparse = isinstance(source, SparseSource)
    template = replace(template, takes_sparse=takes_sparse(features, wanted=sparse))
    kernel = as_kernel(kernel)
    # sparse rows are summed on the host
    backend = resolve("cpu") if sparse else resolve(device, getattr(source, "X", None))
    watch = Stopwatch(backend.synchronize, progress=options.progress)
    with watch.stage("features"):
        rows = None
        if features.sample_rows:
            rows = sample_rows(source, features.sample_rows, options.seed)
        feature_map = features.prepare(kernel, rows, source.d, options.seed)
    precision, k = _precision(options.precision, source, sparse=sparse), feature_map.size
    allowed = budget(options.memory, backend.name)
    require(
        feature_bytes(k, source.c, precision), allowed, f"{k:,} features", "take fewer features"
    )
    sums = MomentSums.zeros(k, source.c)
    how: dict[str, Any] = {
        "precision": precision,
        "rows": block_rows(k, sparse=sparse),
        "watch": watch,
    }
    model = FeatureModel(feature_map, kernel, template, backend, precision)
    sample = _sample(model, options.seed)
    with watch.stage("rows"):
        kept: dict[str, Any] = {"kernel": kernel, "checkpoint": options.checkpoint}
        sums = _pass(source, feature_map, sums, backend, how={**how, "sample": sample}, **kept)
    fitted = _compared(fit_moments(sums, model, lams, watch, options), sums, sample, options)
    if not source.rereadable:
        return fitted
    refit = FitSums(model, replace(options, progress=None))
    how = {"rows": sums.rows, "memory": allowed, "refit": refit, "template": template}
    folds = SourceFolds(source, feature_map, backend, precision, **how)
    return replace(fitted, _model=replace(fitted._model, source=source, folds=folds))


@dataclass(frozen=True, eq=False)
class FitSums:
    """The same fit of other sums."""

    model: FeatureModel
    options: StreamOptions

    def __call__(self, sums: MomentSums, lam: float) -> Fit:
        watch = Stopwatch(self.model.backend.synchronize)
        return fit_moments(sums, self.model, np.array([lam]), watch, self.options)


def _sample(model: FeatureModel, seed: int) -> RowReservoir | None:
    """Rows to compare features and kernel on, if these features stand for one."""
    if not getattr(model.map, "approximates", False):
        return None
    return RowReservoir(SAMPLE, seed, targets=True)


def _compared(
    fitted: Fit, sums: MomentSums, sample: RowReservoir | None, options: StreamOptions
) -> Fit:
    """The fit, and what its features leave out of the kernel."""
    if sample is None or not sample.rows:
        return fitted
    operator, kernel, shares = fitted._model.operator, fitted.kernel, fitted.lams / sums.weight
    error = kernel_difference(
        sample, kernel, operator.map, some_lams(shares), intercept=options.intercept
    )
    rows = len(sample.rows[0])
    status = f"{fitted.info.status}; on {rows} rows the kernel itself differs by {error:.1e}"
    return replace(fitted, info=replace(fitted.info, kernel_difference=error, status=status))


def features_for_sparse(X: Any, kernel: Any, *, exact: bool) -> Explicit | None:
    """What a fit takes for rows that are sparse: the kernel's own features, or None for the kernel itself.

    Features where they are not more than the rows and a method of the kernel matrix is not asked for
    (`exact`).

    Raises
    ------
    TypeError
        For a kernel that has neither values nor few features of sparse rows.
    """
    kernel = as_kernel(kernel)
    if X.ndim != 2:
        return None  # which is refused as it would be dense
    n, d = (int(size) for size in X.shape)
    size = None if kernel.is_precomputed or not d else own_size(kernel, d)
    if size is not None and size <= n and not exact:
        return Explicit()
    if not kernel.takes_sparse:
        raise TypeError(
            f"X is sparse ({type(X).__name__}), and {kernel!r} has no values of sparse rows: pass "
            "X.toarray() (of torch: X.to_dense()), or take a kernel of inner products and lengths, such as "
            "sdgpu.Gaussian or sdgpu.Tanimoto"
        )
    return None


def _pass(
    source: RowSource,
    feature_map: FeatureMap,
    sums: MomentSums,
    backend: Backend,
    *,
    kernel: Kernel,
    checkpoint: str | os.PathLike[str] | None,
    how: dict[str, Any],
) -> MomentSums:
    """All rows of a source: here, or where its partitions lie; from where a checkpoint left off."""
    client = active_client() if hasattr(source, "partitions") else None
    if client is not None:
        if checkpoint is not None:
            raise ValueError(
                "checkpoint= is for rows that are read here: the cluster keeps its own sums"
            )
        sums = sums.shifted(_offset(source))
        how = {name: value for name, value in how.items() if name != "sample"}
        sum_partitions(source, feature_map, sums, client=client, **how)
        return sums
    if checkpoint is None:
        sum_rows(source, feature_map, sums, backend, **how)
        return sums
    kept = PassCheckpoint.of(
        checkpoint, source, feature_map, kernel=kernel, precision=how["precision"], rows=how["rows"]
    )
    restored = kept.load(sums.size, sums.outputs)
    done = 0 if restored is None else restored.rows
    sums = sums if restored is None else restored
    try:
        sum_rows(source, feature_map, sums, backend, kept=kept, **how)
    finally:
        if sums.rows > done:
            kept.save(sums)
    return sums


def _of_moments(
    moments: Moments, lams: np.ndarray, others: dict[str, Any], options: StreamOptions
) -> Fit:
    others = {**others, "dtype": options.precision, "checkpoint": options.checkpoint}
    refuse_options("moments, which have their own", others, {"kernel": "rbf"})
    watch = Stopwatch(moments.backend.synchronize, progress=options.progress)
    return fit_moments(moments.sums, _model_of(moments), lams, watch, options)


def fit_moment_sums(moments: Moments, lams: np.ndarray, *, intercept: bool, tol: float) -> Fit:
    """The fit of moments, as :func:`sdgpu.fit` makes it.

    Raises
    ------
    ValueError
        Without rows.
    """
    options = StreamOptions(None, intercept, None, 0, tol, None)
    watch = Stopwatch(moments.backend.synchronize)
    return fit_moments(moments.sums, _model_of(moments), lams, watch, options)


def _model_of(moments: Moments) -> FeatureModel:
    sample = np.zeros((0, moments.d), dtype=moments.dtype)
    # targets may have had more digits than features have
    template = Template(
        sample, "float64", flat=moments.c == 1, takes_sparse=takes_sparse(moments.map)
    )
    return FeatureModel(moments.map, moments.kernel, template, moments.backend, moments.dtype)


def _source(X: Any, Y: Any, sample_weight: Any) -> tuple[RowSource, Template]:
    """What the rows come from, and where results go; nothing is read yet."""
    warn_if_followed(X=X, Y=Y, sample_weight=sample_weight)
    source = as_source(X, Y, sample_weight)
    if not source.c:
        raise ValueError("the source has no targets: name a target, or pass Y")
    if isinstance(source, SparseSource):
        return source, source.template
    dtype, flat = source.dtype, source.c == 1
    sample: Any = np.zeros((0, source.d), dtype=source.dtype)
    if isinstance(source, ArraySource):
        flat = len(source.Y.shape) == 1
        dtype = "float32" if {source.dtype, dtype_name(source.Y)} == {"float32"} else "float64"
        # arrays of other libraries are read by torch, but what comes back is theirs
        own = X if compat.is_array_api_obj(X) and library(X) not in ("jax", "dask") else source.X
        if compat.is_array_api_obj(own):
            xp, device = compat.array_namespace(own), compat.device(own)
            sample = xp.zeros((0, source.d), dtype=getattr(xp, source.dtype), device=device)
    return source, Template(sample, dtype, flat, source.columns, source.outputs)


@dataclass(frozen=True, eq=False)
class FeatureModel:
    """Features of a kernel, and where they are made.

    Attributes
    ----------
    map : FeatureMap
    kernel : Kernel
    template : Template
    backend : Backend
    precision : {"float32", "float64"}
    """

    map: FeatureMap
    kernel: Kernel
    template: Template
    backend: Backend
    precision: str


def fit_moments(
    sums: MomentSums,
    model: FeatureModel,
    lams: np.ndarray,
    watch: Stopwatch,
    options: StreamOptions,
) -> Fit:
    """The fit that sums over rows make, without the rows.

    Raises
    ------
    ValueError
        Without rows, or with weights that are all 0.
    """
    if not sums.weight > 0:
        raise ValueError(f"moments of {sums.rows} rows of weight {sums.weight:g}: add rows first")
    backend, precision, k = model.backend, model.precision, model.map.size
    with watch.stage("eigh"):
        spectrum = decompose_moments(sums, backend, intercept=options.intercept)
    squares = float(sums.centred(intercept=options.intercept)[2].sum())
    solution = FeatureSolution(spectrum, sums.rows, sums.weight, squares, options.intercept)
    trust: dict[str, Any] = {"intercept": options.intercept, "tol": options.tol}
    error, status = feature_certificate(sums, solution, lams, precision, **trust)
    if not status.startswith("exact"):
        warnings.warn(status, stacklevel=5)
    mean = sums.feature_mean if options.intercept else np.zeros(k)
    operator = FeatureOperator(model.map, backend, backend.asarray(mean), precision)
    offset = backend.asarray(sums.target_mean) if options.intercept else None
    info = Info(
        method="features",
        operator=type(model.map).__name__,
        precision=precision,
        backend=backend.name,
        n=sums.rows,
        d=model.map.d,
        c=sums.outputs,
        k=k,
        passes=1,
        iterations=0,
        error_estimate=float(error),
        residual=float("nan"),
        below_rounding=spectrum.below_rounding,
        seconds=Seconds(watch.seconds),
        bytes=feature_bytes(k, sums.outputs, precision),
        status=status,
    )
    return Fit(
        kernel=model.kernel,
        lams=lams,
        info=info,
        _solution=solution,
        _model=Model(
            operator, backend, model.template, budget(options.memory, backend.name), offset
        ),
        _progress=options.progress,
    )


def _precision(asked: str | None, source: RowSource, *, sparse: bool) -> str:
    """Of the features: "mixed" is float32 with sums in float64, which is what float32 means here.

    Of sparse rows float64: their entries are few.
    """
    if asked is None:
        return source.dtype
    choice("dtype", asked, ("float32", "mixed", "float64"))
    return "float64" if sparse or asked == "float64" else "float32"


def _offset(source: RowSource) -> np.ndarray:
    """The mean of the targets over the first rows: less it they are near 0 and keep their digits."""
    for _, block in checked_blocks(source, PROBED):
        return to_numpy(block.Y).mean(axis=0)
    return np.zeros(source.c)
