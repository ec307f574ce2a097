"""Feature models of rows that are on several ranks: k x k sums of each rank, added in their order.

The features are the same on all ranks: landmarks are picked from candidates of all rows, those that one
process would pick, and rank 0 tells the map. What comes out is on every rank, and predicts there alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdgpu.backend.arrays import dtype_name, targets
from sdgpu.backend.backends import Backend
from sdgpu.backend.checks import LEAST_NORM, choice, lam_grid
from sdgpu.backend.common_checks import together
from sdgpu.backend.memory import require
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.ranks import Ranks
from sdgpu.backend.rows import ArraySource, Block, RowSource
from sdgpu.backend.sharded_arrays import RowLayout
from sdgpu.backend.sparse_rows import is_sparse
from sdgpu.engine.feature_fitting import FeatureModel, FitSums, StreamOptions, fit_moments
from sdgpu.engine.fitted import Fit
from sdgpu.engine.moments import Moments
from sdgpu.engine.rank_fitting import OwnRows, agree_on_arguments, agree_on_rows, checked_rows
from sdgpu.engine.rank_pass import RankPass
from sdgpu.engine.rank_plans import memory_of_rank
from sdgpu.engine.rank_sums import sums_of_ranks
from sdgpu.engine.row_reservoir import RowReservoir
from sdgpu.engine.source_folds import SourceFolds
from sdgpu.engine.streaming import MOST_ROWS, block_rows, feature_bytes, sum_rows
from sdgpu.kernels import Kernel, as_kernel
from sdgpu.kernels.feature_maps import FeatureMap, Features
from sdgpu.kernels.feature_maps.feature_map import as_features
from sdgpu.kernels.feature_maps.stored import stored_map
from sdgpu.solvers.moment_sums import MomentSums

__all__ = ["fit_features_on_ranks"]


@dataclass(frozen=True, eq=False)
class _OwnPart:
    """What this rank brings, checked."""

    rows: OwnRows
    weights: Any
    kernel: Kernel
    features: Any
    lams: np.ndarray
    precision: str


def fit_features_on_ranks(
    data: tuple[Any, Any, Any],
    kernel: Any,
    lams: Any,
    features: Features,
    *,
    ranks: Ranks,
    backend: Backend,
    options: StreamOptions,
) -> Fit:
    """A feature model of the rows of all ranks; all of them call.

    Raises
    ------
    TypeError, ValueError, MemoryError
        On all ranks: as :func:`sdgpu.fit`, for arguments that are not the same everywhere, and for rows
        that are no arrays.
    """
    part = together(ranks, lambda: _own_part(data, kernel, lams, features, options))
    asked = {name: getattr(options, name) for name in ("tol", "precision", "intercept", "seed")}
    path = options.checkpoint
    asked["checkpoint"] = None if path is None else os.fspath(path)
    asked |= {"memory": options.memory, "features": repr(part.features).partition(" at 0x")[0]}
    agree_on_arguments(ranks, part.kernel, part.lams, asked)
    agree_on_rows(ranks, part.rows)
    ranks.agree("sample_weight (given or not)", part.weights is not None)
    counts = ranks.gather(int(part.rows.X.shape[0]))
    if not sum(counts):
        raise ValueError("X has no rows on any rank: at least one is needed")
    watch = Stopwatch(backend.synchronize, progress=options.progress)
    with watch.stage("features"):
        feature_map = _feature_map(part, ranks, counts, options.seed)
    k, c = feature_map.size, int(part.rows.Y.shape[1])
    allowed = min(ranks.gather(memory_of_rank(options.memory, backend.name)))
    require(feature_bytes(k, c, part.precision), allowed, f"{k:,} features", "take fewer features")
    sums = MomentSums.zeros(k, c)
    source = ArraySource(part.rows.X, part.rows.Y, part.weights, may_be_empty=True)
    with watch.stage("rows"):
        how: dict[str, Any] = {"precision": part.precision, "rows": block_rows(k)}
        kept = None
        if options.checkpoint is not None:
            known: dict[str, Any] = {
                "kernel": part.kernel,
                "layout": RowLayout(ranks, tuple(counts)),
            }
            kept = RankPass.of(options.checkpoint, source, feature_map, **known, **how)
            kept.load(k, c)
        sum_rows(source, feature_map, sums, backend, watch=watch, kept=kept, **how)
        sums = sums_of_ranks(sums, ranks) if kept is None else kept.finish(sums)
    model = FeatureModel(feature_map, part.kernel, part.rows.template, backend, part.precision)
    fitted = fit_moments(sums, model, part.lams, watch, options)
    refit = FitSums(model, replace(options, progress=None))
    again: dict[str, Any] = {"rows": sum(counts), "memory": allowed, "refit": refit}
    again |= {"template": model.template, "ranks": ranks}
    folds = SourceFolds(source, feature_map, backend, part.precision, **again)
    return replace(fitted, _model=replace(fitted._model, ranks=ranks, source=source, folds=folds))


def _own_part(
    data: tuple[Any, Any, Any], kernel: Any, lams: Any, features: Features, options: StreamOptions
) -> _OwnPart:
    X, Y, sample_weight = data
    if isinstance(X, (RowSource, Moments)) or is_sparse(X):
        raise ValueError(
            f"X is {type(X).__name__}: ranks take arrays with features=; add sdgpu.Moments of each, or sum "
            "partitions on a dask cluster"
        )
    grid = lam_grid("lams", lams, zero=True)
    if grid[0] == LEAST_NORM:
        raise ValueError("lams=0, the fit of least norm, is not for features=: take a small lam")
    rows, weights = checked_rows(X, Y), None
    if sample_weight is not None:
        count = int(rows.X.shape[0])
        weights = targets(sample_weight, "sample_weight", rows=count, outputs=1)[0][:, 0]
    precision = dtype_name(rows.X)
    if options.precision is not None:
        choice("dtype", options.precision, ("float32", "mixed", "float64"))
        precision = "float64" if options.precision == "float64" else "float32"
    return _OwnPart(rows, weights, as_kernel(kernel), as_features(features), grid, precision)


def _feature_map(part: _OwnPart, ranks: Ranks, counts: list[int], seed: int) -> FeatureMap:
    """The features that rank 0 makes of candidates from all ranks."""
    X, rows = part.rows.X, None
    if part.features.sample_rows:
        reservoir = RowReservoir(part.features.sample_rows, seed)
        first = sum(counts[: ranks.rank])
        for start in range(first - first % MOST_ROWS, first + counts[ranks.rank], MOST_ROWS):
            inside = slice(max(start - first, 0), start + MOST_ROWS - first)
            block = Block(X[inside, :], part.rows.Y[inside, :], None)
            reservoir.add(start, block, skip=max(first - start, 0))
        reservoir.of_all_ranks(ranks)
        rows = reservoir.rows[0]
    d = int(X.shape[1])
    made = together(ranks, lambda: part.features.prepare(part.kernel, rows, d, seed))
    try:
        state = list(made.state())
    except TypeError:  # functions, which do not travel: each rank has its own
        return made
    description, arrays = ranks.first(state)
    return stored_map(description, arrays, part.kernel)
