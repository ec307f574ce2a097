"""All eigenvalues of rows that are on several ranks: rank 0 decomposes, and every rank gets its rows of V.

An eigendecomposition does not fall apart into rows. Rank 0 makes it, from the rows of all: n^2 numbers
then travel once, 8 n^2 bytes beside 9 n^3 operations, and each rank holds its rows of the basis. If all
made it, each host would need p times 3 n^2 doubles, and p times the work on the same cores, for the same
numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, NumpyBackend, TorchBackend
from sdgpu.backend.checks import LEAST_NORM
from sdgpu.backend.common_checks import together
from sdgpu.backend.sharded_arrays import RowLayout, ShardedArray
from sdgpu.engine.solving import Problem, Solved
from sdgpu.engine.training_data import TrainingData
from sdgpu.operators.weighted_rows import RowWeighting
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.primal import Primal
from sdgpu.solvers.spectral_solution import SpectralSolution
from sdgpu.solvers.spectrum import Spectrum, above_rounding

__all__ = ["solve_all_on_ranks"]

NUMBERS = 2**22  # of the basis that travel at once: 32 MiB
SMALL = ("below_rounding", "most_negative", "method")


def solve_all_on_ranks(problem: Problem) -> Solved:
    """All eigenvalues, those of rank 0; all ranks call.

    Raises
    ------
    TypeError, ValueError, MemoryError
        On all ranks, what rank 0 finds.
    """
    data: Any = problem.data
    layout, home = data.X.layout, data.home
    whole = _whole_data(data, home.inner)

    def decomposed() -> Spectrum | None:
        if layout.ranks.rank:
            return None
        backend = whole.home
        solver = Primal(backend) if problem.plan.method == "primal" else Eigh(backend)
        spectrum = solver.decompose(whole.dense(backend), whole.Y, problem.watch)
        return above_rounding(spectrum, whole.Y) if least_norm else spectrum

    least_norm = problem.lams[0] == LEAST_NORM
    spectrum = spread_spectrum(together(layout.ranks, decomposed), layout, home.inner)
    weighting = data.weighting
    return Solved(
        solution=SpectralSolution(spectrum, Y=data.Y if least_norm else None, weighting=weighting),
        spectrum=spectrum,
        most_negative=spectrum.most_negative,
        operator=data.dense(home),
        error=0.0,
        status="",
        passes=1,
        iterations=0,
    )


def _whole_data(data: Any, inner: TorchBackend) -> TrainingData:
    """Rows, targets and weights of all ranks, which each is told: n (d + c) numbers."""
    ranks = data.X.layout.ranks
    backend: Backend = NumpyBackend() if str(inner.device) == "cpu" else inner
    X, Y = (backend.asarray(ranks.gather_rows(x.local.contiguous())) for x in (data.X, data.Y))
    weighting = data.weighting
    if weighting is not None:
        roots = backend.asarray(ranks.gather_rows(weighting.roots.local))
        weighting = RowWeighting(roots, weighting.intercept)
    how: dict[str, Any] = {"dtype": data.dtype, "home": backend, "weighting": weighting}
    return TrainingData(kernel=data.kernel, X=X, Y=Y, **how)


def spread_spectrum(spectrum: Spectrum | None, layout: RowLayout, inner: TorchBackend) -> Spectrum:
    """A spectrum that rank 0 has, on all ranks: small numbers everywhere, of V the own rows.

    Notes
    -----
    n k numbers are received by every rank, of which it keeps its rows.
    """
    ranks = layout.ranks
    if spectrum is None:
        small, numbers = None, None
    else:
        small = {name: getattr(spectrum, name) for name in SMALL}
        known = (spectrum.eigenvalues, spectrum.Z, spectrum.outside)
        numbers = [None if x is None else _host(x) for x in known]
    small, (eigenvalues, Z, outside) = ranks.first([small, numbers])
    k = len(eigenvalues)
    local = np.empty((layout.counts[ranks.rank], k))
    for part in slices(layout.n, max(1, NUMBERS // max(k, 1))):
        block = np.zeros((part.stop - part.start, k))
        if spectrum is not None:
            block[...] = _host(spectrum.basis[part, :])
        block = ranks.sum(block)  # the others add 0
        low, high = max(part.start, layout.own.start), min(part.stop, layout.own.stop)
        if low < high:
            own = slice(low - layout.own.start, high - layout.own.start)
            local[own] = block[low - part.start : high - part.start]
    found = Spectrum(
        eigenvalues=inner.asarray(eigenvalues),
        basis=ShardedArray(inner.asarray(local), 0, layout),
        Z=inner.asarray(Z),
        **small,
    )
    return found if outside is None else replace(found, outside=inner.asarray(outside))


def _host(array: Any) -> np.ndarray:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array, dtype=np.float64)
