"""How the seconds of each method grow with the rows: slopes of log seconds over log n.

All by the same smooth problem, ten lam from 1e-4 n, ten steps. Decompositions are bound by 9 n^3
operations, grown bases by n^2 kernel values for each pass, feature models by n k^2.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

import sdgpu
from benchmarks.conftest import REPORT, seconds
from benchmarks.problem import make

pytestmark = pytest.mark.full

METHODS = {
    "eigh": ([1000, 2000, 4000], {"method": "eigh"}, 3.2),
    "lanczos, tiled": ([2000, 4000, 8000], {"method": "lanczos", "operator": "tiled"}, 2.4),
    "subspace, tiled": ([2000, 4000, 8000], {"method": "subspace", "operator": "tiled"}, 2.4),
    "cg, tiled": ([2000, 4000, 8000], {"method": "cg", "operator": "tiled"}, 2.4),
    "300 Nystrom features": ([20_000, 60_000, 180_000], {"features": sdgpu.Nystrom(300)}, 1.2),
    "500 random features": ([20_000, 60_000, 180_000], {"features": sdgpu.RandomFourier(500)}, 1.2),
}
ROUNDS = 3


@pytest.mark.parametrize("name", METHODS)
def test_slopes(name):
    sizes, how, most = METHODS[name]
    problems = [make(n, d=6) for n in sizes]
    least = np.full(len(sizes), np.inf)
    for _ in range(ROUNDS):  # in turns, so that a drift of the machine meets all sizes
        for place, data in enumerate(problems):
            lams = np.geomspace(1e-4, 1e-1, 10) * len(data.X)
            start = time.perf_counter()
            sdgpu.fit(data.X, data.Y, data.kernel, lams, tol=1e-4, **how)
            least[place] = min(least[place], time.perf_counter() - start)
    slope = float(np.polyfit(np.log(sizes), np.log(least), 1)[0])
    times = ", ".join(seconds(float(value)) for value in least)
    question = f"{name}: fits of {', '.join(f'{n:,}' for n in sizes)} rows take {times}: slope"
    REPORT.rows.append((question, seconds(float(least[-1])), "", f"{slope:.2f}", f"<= {most:g}"))
    assert slope <= most
