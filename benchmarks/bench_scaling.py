"""Scaling on paper against threads of one core each: products by both ways of travel, a pass of features.

The rival is the model of `sdgpu.engine.scaling_plan` at the rates that one thread has just been measured to
have, so a ratio of 1.1 is an error of 10 %. Seconds are those of a core that each rank has for itself: the
processor's time of its thread, as more ranks than cores share them, and others do.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import sdgpu
from benchmarks.calibration import calibrate
from benchmarks.conftest import REPORT, seconds
from sdgpu.backend.device_classes import DeviceClass
from sdgpu.backend.ranks import row_shares
from sdgpu.backend.rates import Rates
from sdgpu.backend.rows import ArraySource, checked_blocks
from sdgpu.backend.thread_ranks import run_threads
from sdgpu.engine.costs import features_seconds
from sdgpu.engine.rank_layouts import TRAVEL
from sdgpu.engine.scaling_parts import ScalingProblem
from sdgpu.engine.scaling_plan import layouts_of, product_seconds
from sdgpu.engine.streaming import block_moments, block_rows
from sdgpu.operators import ShardedOperator, TiledOperator
from sdgpu.solvers.moment_sums import MomentSums

N, D, COLUMNS = 12_000, 9, 8
ROWS, K = 60_000, 256
RANKS = [1, 2, 4]


@pytest.fixture(autouse=True)
def one_thread():
    """Of every library: ranks are the threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def best(work, rounds=5):
    """Seconds of the quickest round."""
    spent = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        spent.append(time.thread_time() - start)
    return min(spent)


def here():
    """What a thread does on this machine, measured on problems half as large."""
    X = np.random.default_rng(1).standard_normal((N // 2, D))
    K_small = TiledOperator(sdgpu.Gaussian(0.1), X, "float64", workers=1)
    V, W = (torch.ones((N // 2, c), dtype=torch.float64) for c in (1, 1 + COLUMNS))
    K_small.matmat(V)
    narrow, wide = best(lambda: K_small.matmat(V)), best(lambda: K_small.matmat(W))
    m = N // 2
    products = m * m * COLUMNS / max(wide - narrow, 1e-9)
    values = m * m / 2 / max(narrow - m * m / products, 1e-9)
    square = torch.randn(512, 512, dtype=torch.float64)
    large = 512**3 / best(lambda: square @ square)
    big = torch.ones(2**21, dtype=torch.float64)
    copied = 2**24 / best(big.clone)
    plain = TiledOperator(
        sdgpu.Gaussian(0.1), X[:4000], "float64", workers=1
    )  # below the compiled loop
    few = V[:4000]
    plain.matmat(few)
    passes = 4000**2 / 2 / best(lambda: plain.matmat(few))
    rates = Rates(
        products=products,
        products32=large,
        powers=passes,
        powers32=passes,
        bandwidth=copied,
        tiles=values,
        tiles32=values,
    )
    return DeviceClass("here", rates, 2**34, RANKS[-1], copied, copied, 1e-4, "measured now")


def told(question, measured, predicted):
    """A row of the table: the ratio is the error of the model; twice is a fault."""
    ratio = measured / predicted
    REPORT.rows.append(
        (question, seconds(measured), seconds(predicted), f"{ratio:,.2f}", "0.5 .. 2")
    )
    figure = {"question": question, "sdgpu": [measured], "rival": [predicted]}
    REPORT.figures.append({**figure, "calibration": [calibrate()], "one_thread": {}})
    assert 0.5 <= ratio <= 2.0, question


@pytest.mark.parametrize(
    ("travel", "ranks"), [*product(["gather", "ring"], RANKS), ("copies", RANKS[-1])]
)
def test_a_product_on_threads_by_the_model(travel, ranks):
    X = np.random.default_rng(0).standard_normal((N, D))
    V = np.random.default_rng(1).standard_normal((N, COLUMNS))
    shares, copies = row_shares(N, ranks), 2 if travel == "copies" else 1

    def start(thread):
        rows = shares[thread.rank]
        how = {"precision": "float64", "travel": travel, "workers": 1, "copies": copies}
        operator = ShardedOperator(sdgpu.Gaussian(0.1), torch.from_numpy(X[rows]), thread, **how)
        operator.matmat(torch.from_numpy(V[rows]))
        thread.barrier("the clock starts")
        return best(lambda: operator.matmat(torch.from_numpy(V[rows])), rounds=3)

    measured = max(run_threads(start, ranks))
    problem = ScalingProblem(N, D, 1, np.array([1.0]), 10, 1e-12, here())
    layout = next(
        one
        for one in layouts_of(problem, ranks, COLUMNS)
        if TRAVEL[one.name] == travel or one.name == "alone"
    )
    predicted, _ = product_seconds(problem, ranks, layout, COLUMNS)
    told(
        f"a product, {N:,} rows, {travel}, {ranks} ranks of a thread, by the model",
        measured,
        predicted,
    )


@pytest.mark.parametrize("ranks", RANKS)
def test_a_pass_of_features_on_threads_by_the_model(ranks):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((ROWS, D)), rng.standard_normal(ROWS)
    features = sdgpu.Nystrom(K).prepare(sdgpu.Gaussian(0.1), X[:2000], D, 0)
    shares, rows = row_shares(ROWS, ranks), block_rows(K)

    def one_pass(thread):
        source = ArraySource(X[shares[thread.rank]], y[shares[thread.rank]])
        sums = MomentSums.zeros(K, 1)
        for _, block in checked_blocks(source, rows):
            sums.merge(
                block_moments(block, features, sums.offset, precision="float64", audited=False)
            )
        return thread.sum(sums.gram)

    def start(thread):
        one_pass(thread)
        thread.barrier("the clock starts")
        return best(lambda: one_pass(thread), rounds=3)

    measured = max(run_threads(start, ranks))
    device = here()
    fast = replace(device.rates, products=device.rates.products32)  # of large products
    setup = features_seconds(ROWS, 0, K, "float64", fast)
    travel = 16.0 * K * K * (ranks - 1) / ranks / device.link
    predicted = features_seconds(ROWS, ROWS // ranks, K, "float64", fast) - setup + travel
    told(
        f"a pass, {ROWS:,} rows, {K} features, {ranks} ranks of a thread, by the model",
        measured,
        predicted,
    )
