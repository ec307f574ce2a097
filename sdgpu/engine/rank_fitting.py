"""A fit of rows that are on several ranks: what all must agree on, and what rank 0 decides.

The solvers are those of one device. Their arrays are sharded (:mod:`sdgpu.backend.sharded_arrays`), and so
is the operator (:mod:`sdgpu.operators.sharded`): each rank has its own rows of X, Y and the basis, and all
small numbers. Rank 0 makes the plan; small decompositions and the errors by which a basis stops to grow are
told by it too.
"""

from __future__ import annotations

import os
import platform
import sys
import warnings
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdgpu.backend.arrays import Template, beside, dtype_name, inputs, library, targets
from sdgpu.backend.backends import (
    Backend,
    TorchBackend,
    cuda_count,
    resolve,
    to_numpy,
    torch_beside,
)
from sdgpu.backend.checks import LEAST_NORM, integer, lam_grid
from sdgpu.backend.common_checks import together
from sdgpu.backend.conversion import column_names, warn_if_followed
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.ranks import Ranks, failing_together
from sdgpu.backend.sharded_arrays import RowLayout, ShardedArray
from sdgpu.backend.sharded_backend import ShardedBackend
from sdgpu.engine.decomposing import basis_checkpoint, decomposed
from sdgpu.engine.fitted import Fit
from sdgpu.engine.planner import EXACT_METHODS, Plan
from sdgpu.engine.rank_data import RankData, weighting_of_ranks
from sdgpu.engine.rank_folds import RankFolds
from sdgpu.engine.rank_layouts import TRAVEL, layout_of_fit
from sdgpu.engine.rank_plans import KNOWN, RankRequest, memory_of_rank, plan_of_ranks
from sdgpu.engine.solving import Problem
from sdgpu.engine.training_data import own_memory, value_precision
from sdgpu.kernels import Kernel, as_kernel
from sdgpu.kernels.precomputed import NEGATIVE
from sdgpu.kernels.row_preparation import row_copies
from sdgpu.solvers.checkpoint import Checkpoint
from sdgpu.solvers.rank_checkpoint import RankCheckpoint, rows_digest
from sdgpu.solvers.trace_estimation import GROUPS

__all__ = [
    "OwnRows",
    "agree_on_arguments",
    "agree_on_rows",
    "as_ranks",
    "check_probes",
    "checked_rows",
    "device_of_rank",
    "fit_on_ranks",
    "home_of_rank",
    "joined_ranks",
    "problem_on_ranks",
]

LOOKED_AT = 1000  # rows by which copies are known


@dataclass(frozen=True, eq=False)
class OwnRows:
    """Checked rows of this rank."""

    X: Any
    Y: Any
    template: Template


def joined_ranks(device: str | Backend) -> Ranks:
    """The ranks of this process: those of ``torchrun``, or of the group that the caller has started."""
    from sdgpu.backend.torch_ranks import join_ranks

    return join_ranks(str(device_of_rank(device).device))


def home_of_rank(device: str | Backend) -> Backend:
    """The backend of this rank: of "auto" and "cuda" each on a host has the device of its own number."""
    if device in ("auto", "cuda") and cuda_count():
        return resolve(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return resolve(device)


def device_of_rank(device: str | Backend) -> TorchBackend:
    """Torch on the same device."""
    return torch_beside(home_of_rank(device))


def as_ranks(distributed: Any, device: str | Backend) -> Ranks:
    """The ranks of this process, or those that the caller has.

    Raises
    ------
    TypeError
        If `distributed` is neither True nor ranks.
    """
    if distributed is True:
        return joined_ranks(device)
    if not all(hasattr(distributed, name) for name in ("rank", "size", "gather_rows")):
        raise TypeError(
            f"distributed={distributed!r} must be True, False or sdgpu.backend.ranks.Ranks"
        )
    return distributed


def fit_on_ranks(
    data: tuple[Any, Any, Any],
    kernel: Any,
    lams: Any,
    *,
    ranks: Ranks,
    inner: TorchBackend,
    request: RankRequest,
) -> Fit:
    """Fit X, Y, weights of all ranks, who all call. Errors are those of :func:`problem_on_ranks`."""
    how: dict[str, Any] = {"ranks": ranks, "inner": inner, "request": request}
    problem, template, context = problem_on_ranks(data, kernel, lams, **how)
    with failing_together(ranks):
        found = decomposed(problem, template, context, request.progress, depth=6)
    plan = problem.plan
    again = replace(
        request,
        method=plan.method,
        operator=plan.operator,
        tol=plan.tol,
        dtype=plan.precision,
        steps=plan.steps,
        plan=None,
        progress=None,
        checkpoint=None,
    )
    refit = _FitOfRanks(problem.data.kernel, ranks, inner, again)
    return replace(found, _model=replace(found._model, folds=RankFolds.of(problem, refit)))


@dataclass(frozen=True, eq=False)
class _FitOfRanks:
    """The same fit of other rows."""

    kernel: Kernel
    ranks: Ranks
    inner: TorchBackend
    request: RankRequest

    def __call__(self, X: Any, Y: Any, weights: Any, lam: float) -> Fit:
        how: dict[str, Any] = {"ranks": self.ranks, "inner": self.inner, "request": self.request}
        return fit_on_ranks((X, Y, weights), self.kernel, [lam], **how)


def problem_on_ranks(
    data: tuple[Any, Any, Any],
    kernel: Any,
    lams: Any,
    *,
    ranks: Ranks,
    inner: TorchBackend,
    request: RankRequest,
) -> tuple[Problem, Template, dict[str, Any]]:
    """What all ranks are to solve together, checked and planned.

    Raises
    ------
    TypeError, ValueError, MemoryError
        On all ranks: as :func:`sdgpu.fit`, and for arguments that are not the same everywhere, rows that
        do not go together, and what several ranks cannot do.
    """
    X, Y, sample_weight = data
    grid, kernel = together(ranks, lambda: _arguments(kernel, lams, request))
    names = ("method", "operator", "tol", "dtype", "steps", "memory", "seed", "probes", "intercept")
    asked = {name: getattr(request, name) for name in names}
    asked["plan"] = None if request.plan is None else repr(request.plan)
    asked["checkpoint"] = None if request.checkpoint is None else os.fspath(request.checkpoint)
    agree_on_arguments(ranks, kernel, grid, asked)
    rows = together(ranks, lambda: checked_rows(X, Y))
    c = int(rows.Y.shape[1])
    agree_on_rows(ranks, rows)
    layout = RowLayout.of(ranks, int(rows.X.shape[0]))
    if not layout.n:
        raise ValueError("X has no rows on any rank: at least one is needed")
    backend = ShardedBackend(inner, layout)
    allowed = min(ranks.gather(memory_of_rank(request.memory, inner.name))) // request.beside
    place = {"device": inner, "memory": allowed, "kernel": kernel}
    sizes = (layout.n, int(rows.X.shape[1]), c)
    plan = plan_of_ranks(ranks, sizes, grid, place, request)
    spread = {"device": inner.device, "memory": allowed, "copies": row_copies(kernel)}
    way = layout_of_fit(sizes, grid, plan, spread, ranks.size)
    own_X = own_memory(inner.asarray(rows.X), X, kernel)
    targets, offset = ShardedArray(inner.asarray(rows.Y), 0, layout), None
    weighting = weighting_of_ranks(sample_weight, layout, inner, intercept=request.intercept)
    if weighting is not None:
        targets, offset = weighting.targets(targets)
    known = RankData(
        kernel=kernel,
        X=ShardedArray(own_X, 0, layout),
        Y=targets,
        weighting=weighting,
        offset=offset,
        dtype=_value_precision(ranks, kernel, X, rows, inner),
        home=backend,
        travel=TRAVEL[way.name],
        copies=way.copies,
    )
    problem = Problem(
        plan=plan,
        data=known,
        lams=grid,
        seed=request.seed,
        probes=request.probes,
        watch=Stopwatch(backend.synchronize, progress=request.progress),
        checkpoint=_checkpoint(ranks, plan, known, grid, request),
    )
    context = {"device": inner, "memory": allowed, "kernel": kernel, "precomputed": False}
    return problem, rows.template, context


def _checkpoint(
    ranks: Ranks, plan: Plan, data: RankData, lams: np.ndarray, request: RankRequest
) -> RankCheckpoint | None:
    """Where the basis is saved: rank 0 has the file."""
    path, layout = request.checkpoint, data.X.layout
    if path is None:
        return None
    arrays = [data.X, data.Y] + ([] if data.weighting is None else [data.weighting.roots])
    rows = [rows_digest(ranks, array.local, layout) for array in arrays]

    def file() -> Checkpoint | None:
        if ranks.rank:
            return None
        return basis_checkpoint(path, plan, data, lams, request.seed, rows=rows)

    return RankCheckpoint(together(ranks, file), layout)


def _arguments(kernel: Any, lams: Any, request: RankRequest) -> tuple[np.ndarray, Kernel]:
    """lams and kernel, and a word for what ranks cannot do."""
    grid, checked = lam_grid("lams", lams, zero=True), as_kernel(kernel)
    if grid[0] == LEAST_NORM and request.method not in EXACT_METHODS:
        raise ValueError(
            "lams=0 needs all eigenvalues: take method='eigh', by which rank 0 finds them"
        )
    if checked.is_precomputed:
        raise ValueError("kernel='precomputed' has no rows to spread over ranks: fit on one rank")
    method = request.method if isinstance(request.method, str) else "a solver from elsewhere"
    if method not in ("auto", *KNOWN):
        raise ValueError(
            f"method={method!r} is not for rows of several ranks: take 'lanczos', 'subspace' or 'cg', "
            "which need products with K alone, or 'eigh', by rank 0"
        )
    if request.operator not in ("auto", "dense", "tiled"):
        raise ValueError(
            f"operator={request.operator!r} is not for rows of several ranks: take 'tiled', or 'dense', "
            "which keeps the tiles of each rank"
        )
    check_probes(request.probes)
    integer("steps", request.steps, 1)
    return grid, checked


def check_probes(probes: int) -> None:
    """Refuse a number of probes of which groups cannot be made.

    Raises
    ------
    ValueError
    """
    if integer("probes", probes, GROUPS) % GROUPS:
        raise ValueError(
            f"probes={probes} must be a multiple of {GROUPS}, to tell how far they spread"
        )


def agree_on_arguments(
    ranks: Ranks, kernel: Kernel, lams: np.ndarray, asked: dict[str, Any]
) -> None:
    """Refuse ranks with other versions or other arguments; what differs is named."""
    import torch

    versions = [
        sys.modules["sdgpu"].__version__,
        platform.python_version(),
        np.__version__,
        str(torch.__version__),
    ]
    ranks.agree("versions (sdgpu, Python, NumPy, torch)", versions)
    ranks.agree("processors", platform.machine())
    ranks.agree("kernel", repr(kernel).partition(" at 0x")[0])
    ranks.agree("lams", lams.tolist())
    for name, value in asked.items():
        ranks.agree(name, value)


def checked_rows(X: Any, Y: Any) -> OwnRows:
    """Rows and targets of this rank, of which there may be none."""
    warn_if_followed(X=X, Y=Y)
    rows = inputs(X, "X", empty=True)
    truth, flat = targets(Y, "Y", rows=int(rows.shape[0]))
    rows, truth = beside(X, rows, truth), beside(Y, truth, rows)
    template = Template.of(rows, truth, flat=flat)
    template = replace(template, columns=column_names(X), outputs=column_names(Y))
    return OwnRows(rows, truth, template)


def agree_on_rows(ranks: Ranks, rows: OwnRows) -> None:
    """Refuse rows that do not go together; what differs is named."""
    template = rows.template
    ranks.agree("numbers of features of X", int(rows.X.shape[1]))
    ranks.agree("numbers of outputs of Y", int(rows.Y.shape[1]))
    ranks.agree("libraries", library(rows.X))
    ranks.agree("dtypes of X and Y", [dtype_name(rows.X), dtype_name(rows.Y)])
    ranks.agree("axes of Y", 1 if template.flat else 2)
    ranks.agree("columns of X", template.columns)
    if ranks.size > 1:
        _warn_of_copies(ranks, rows)


def _warn_of_copies(ranks: Ranks, rows: OwnRows) -> None:
    """Warn, on rank 0, if all ranks have brought the same rows: each should bring its own."""
    first = np.ascontiguousarray(to_numpy(rows.X[:LOOKED_AT, ...]))
    told = [int(rows.X.shape[0]), zlib.crc32(first.reshape(-1).view(np.uint8).data)]
    everyone = ranks.gather(told)
    if told[0] > 1 and ranks.rank == 0 and all(one == told for one in everyone):
        warnings.warn(
            f"all {ranks.size} ranks have brought the same {told[0]:,} rows, which count {ranks.size} "
            "times now: pass each rank its own part of X and Y",
            stacklevel=7,
        )


def _value_precision(
    ranks: Ranks, kernel: Kernel, X: Any, rows: OwnRows, inner: TorchBackend
) -> str:
    """The precision in which kernel values are known: the least of the ranks that have rows."""
    own = value_precision(kernel, X, rows.X, inner) if rows.X.shape[0] else None
    known = [name for name in ranks.gather(own) if name is not None]
    return min(known, key=list(reversed(NEGATIVE)).index)
