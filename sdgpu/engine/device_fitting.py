"""A fit on several devices of one host: a thread for each, and one fit that comes back.

The rows are cut into as many runs as there are devices, and fitted as those of ranks are
(:mod:`sdgpu.engine.rank_fitting`); the basis then comes to the first device, which answers what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sdgpu.backend.arrays import Template, pair
from sdgpu.backend.backends import Backend, NumpyBackend, resolve, torch_beside
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.ranks import Ranks, row_shares
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.sharded_arrays import own_part
from sdgpu.backend.thread_ranks import run_threads
from sdgpu.engine.cross_intervals import ArrayFolds
from sdgpu.engine.decomposing import decomposed
from sdgpu.engine.fitted import Fit
from sdgpu.engine.model import Model
from sdgpu.engine.rank_fitting import problem_on_ranks
from sdgpu.engine.rank_plans import METHODS, RankRequest
from sdgpu.engine.solving import Problem
from sdgpu.engine.training_data import (
    OperatorRemade,
    TrainingData,
    own_memory,
    row_weighting,
    row_weights,
)
from sdgpu.operators.weighted_rows import RowWeighting
from sdgpu.solvers.leverage import Estimated
from sdgpu.solvers.spectral_solution import SpectralSolution
from sdgpu.solvers.units import Units

__all__ = ["fit_on_devices"]


def fit_on_devices(
    data: tuple[Any, Any, Any],
    kernel: Any,
    lams: Any,
    *,
    devices: Sequence[Any],
    request: RankRequest,
    folds: Callable[[Problem, int], ArrayFolds | None],
) -> Fit:
    """Fit the rows on all devices.

    Parameters
    ----------
    data : tuple
        X, Y and weights or None, as in :func:`sdgpu.fit`.
    kernel, lams
        As there.
    devices : sequence of str or Backend
        One thread each; the first one has the results.
    request : RankRequest
    folds : callable
        Makes what fits without folds of the rows are made by.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As :func:`sdgpu.fit`, and for an empty list and methods that keep more than a basis.

    Notes
    -----
    n k numbers come to the first device at the end.
    """
    if not devices:
        raise ValueError("device=[] names no device: leave it out, or name one for each thread")
    if request.method not in ("auto", *METHODS):
        raise ValueError(
            f"method={request.method!r} is not for several devices in one process: take 'lanczos' or "
            "'subspace', or processes of torchrun with distributed=True"
        )
    given_X, Y, sample_weight = data
    X, Y, template = pair(given_X, Y)
    homes = [resolve(device) for device in devices]
    shares = row_shares(int(X.shape[0]), len(homes))
    shared = sum("cpu" in home.name for home in homes)
    weighting = row_weighting(sample_weight, X, homes[0], intercept=request.intercept)
    weights = None if sample_weight is None else row_weights(sample_weight, len(X), NumpyBackend())

    @underflow_is_zero
    def work(ranks: Ranks) -> tuple[Problem, Fit, dict[str, Any]]:
        rows, first = shares[ranks.rank], ranks.rank == 0
        own = replace(request, progress=request.progress if first else None, beside=max(shared, 1))
        inner = torch_beside(homes[ranks.rank])
        problem, _, context = problem_on_ranks(
            (X[rows, :], Y[rows, :], None if weights is None else weights[rows]),
            kernel,
            lams,
            ranks=ranks,
            inner=inner,
            request=own,
        )
        return problem, decomposed(problem, template, context, own.progress, depth=6), context

    parts = run_threads(work, len(homes))
    return _together(parts, (given_X, X, Y, weighting), homes[0], template, folds)


def _together(
    parts: list[tuple[Problem, Fit, dict[str, Any]]],
    data: tuple[Any, Any, Any, RowWeighting | None],
    home: Backend,
    template: Template,
    folds: Callable[[Problem, int], ArrayFolds | None],
) -> Fit:
    """The fit on the first device, from what each of them has."""
    given_X, X, Y, weighting = data
    problem, first, context = parts[0]
    kernel, targets, offset = problem.data.kernel, home.asarray(Y), None
    if weighting is not None:
        targets, offset = weighting.targets(targets)
    single = TrainingData(
        kernel=kernel,
        X=own_memory(home.asarray(X), given_X, kernel),
        Y=targets,
        weighting=weighting,
        offset=offset,
        dtype=problem.data.dtype,
        home=home,
    )
    problem = replace(problem, data=single)
    solutions: list[Any] = [fitted._solution for _, fitted, _ in parts]

    def whole(array_of: Callable[[Any], Any], axis: int = 0) -> Any:
        """An array of all rows, from those of each device."""
        import torch

        device = torch_beside(home).device
        own = [own_part(array_of(solution)).to(device) for solution in solutions]
        return torch.cat(own, dim=axis)

    small, basis = solutions[0].spectrum, home.asarray(whole(lambda s: s.spectrum.basis))
    numbers = {"eigenvalues": home.asarray(small.eigenvalues), "Z": home.asarray(small.Z)}
    spectrum = replace(small, basis=basis, **numbers)
    estimates = _estimates(problem, solutions[0], whole)
    solution = SpectralSolution(spectrum, estimates, weighting=weighting)
    how: dict[str, Any] = {"offset": offset, "weighting": weighting}
    model = Model(single.hold(problem.plan, home), home, template, context["memory"], **how)
    model = replace(model, folds=folds(problem, context["memory"]))
    info = replace(first.info, backend=f"{home.name}, {len(parts)} devices")
    return replace(first, info=info, _solution=solution, _model=model)


def _estimates(problem: Problem, solution: Any, whole: Callable[..., Any]) -> Estimated | None:
    """What stands for the eigenvectors that the basis has not seen, with all rows on one device."""
    estimates = solution.estimates
    if estimates is None:
        return None
    data, probes = problem.data, estimates.probes
    backend = torch_beside(data.home)
    ritz = replace(probes.ritz, basis=whole(lambda s: s.estimates.probes.ritz.basis))
    sketch = probes.sketch
    if sketch is not None:
        rows = {
            "F": whole(lambda s: s.estimates.probes.sketch.F, 1),
            "top": whole(lambda s: s.estimates.probes.sketch.top, 1),
        }
        sketch = replace(sketch, **rows)
    remade = probes.operator
    units: Units = remade.units
    operator = OperatorRemade(remade.plan, data, backend, units)
    watch = Stopwatch(data.home.synchronize)
    how: dict[str, Any] = {"sketch": sketch, "ritz": ritz, "watch": watch}
    found = replace(probes, operator=operator, backend=backend, **how)
    return Estimated(found, data.home, estimates.unit)
