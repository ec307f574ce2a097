"""How fast is a product with a kernel matrix that is not stored, against KeOps and against its bound?

The bound of a Gaussian product in float32, measured in the same run: the larger of n^2 / 2 exponentials
and of the matrix product that makes their arguments. KeOps computes all n^2 values.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

import sdgpu
from benchmarks.conftest import REPORT, seconds
from sdgpu.operators import TiledOperator, keops

N = 20_000


def rows(n: int, d: int, device: str) -> Any:
    X = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    return torch.tensor(X, device=device)


def bound(d: int, device: str) -> float:
    """Seconds of the larger of exponentials and products for n^2 / 2 pairs."""
    size = 1024
    tiles = N * N / 2 / size**2
    arguments = torch.empty(size, size, device=device).uniform_(-3, 0)
    values, left = torch.empty_like(arguments), torch.randn(size, d + 2, device=device)
    spent = []
    for work in (
        lambda: torch.exp(arguments, out=values),
        lambda: torch.mm(left, left.T, out=values),
    ):
        work()
        rounds = []
        for _ in range(30):
            start = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            rounds.append(time.perf_counter() - start)
        spent.append(tiles * float(np.median(rounds)))
    return max(spent)


@pytest.mark.parametrize(
    ("d", "least"),
    [(10, 6)]
    + [pytest.param(*case, marks=pytest.mark.full) for case in ((3, 6), (50, 6), (784, 50))],
)
@pytest.mark.filterwarnings("ignore")
def test_against_keops(race: Any, device: str, d: int, least: float) -> None:
    if keops.why_not():
        pytest.skip(keops.why_not())
    # KeOps needs minutes at 784 features: a tenth of the rows, a hundredth of the pairs
    from pykeops.torch import LazyTensor

    few = N if d < 100 else N // 10
    kernel = sdgpu.Gaussian(0.5 / d)
    ours = TiledOperator(kernel, rows(N, d, device))
    # KeOps as its own tutorials write it, which is faster than our augmented product in KeOps
    left, right = (
        LazyTensor(x) for x in (rows(few, d, device)[:, None], rows(few, d, device)[None])
    )
    theirs = (((left - right) ** 2).sum(-1) * (-0.5 / d)).exp()
    V, short = (torch.ones(n, 1, dtype=torch.float32, device=device) for n in (N, few))
    note = "" if few == N else f", KeOps timed at n = {few:,}"
    race(
        f"product, n = {N:,}, d = {d}, float32, one column, against KeOps{note}",
        lambda: ours.matmat(V),
        lambda: theirs @ short,
        times=(N / few) ** 2,
        at_least=least,
        rounds=2,
    )


@pytest.mark.parametrize("d", [3, 10, 50])
def test_against_the_bound(race: Any, device: str, d: int) -> None:
    operator = TiledOperator(sdgpu.Gaussian(0.5 / d), rows(N, d, device))
    V = torch.ones(N, 1, dtype=torch.float32, device=device)
    race(
        f"product, n = {N:,}, d = {d}, float32, one column, against its bound",
        lambda: operator.matmat(V),
        lambda: bound(d, device),
        at_most=1 / 0.6,
        rounds=7,
    )


@pytest.mark.parametrize("precision", ["float32", "mixed", "float64"])
def test_sixteen_columns(race: Any, device: str, precision: str) -> None:
    operator = TiledOperator(sdgpu.Gaussian(0.05), rows(N, 10, device), precision)
    one, many = (torch.randn(N, c, dtype=torch.float64, device=device) for c in (1, 16))
    race(
        f"product, n = {N:,}, d = 10, {precision}, 16 columns against one",
        lambda: operator.matmat(many),
        lambda: operator.matmat(one),
        at_most=2.2
        if precision == "float32"
        else None,  # one column has become too fast in the others
        rounds=7,
    )


def test_report_of_the_bound(device: str) -> None:
    """The bound itself, for the reader of the table."""
    REPORT.rows.append(
        (
            f"(that bound at d = 10: {N * N // 2:,} exponentials)",
            "",
            seconds(bound(10, device)),
            "",
            "",
        )
    )
