"""Rows without end: the Earth against NumPy, time and memory as n grows, clusters, merging, sparse rows."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from threadpoolctl import threadpool_limits

import sdgpu
from benchmarks.conftest import REPORT, seconds
from sdgpu.solvers.moment_sums import MomentSums

K, BLOCK = 256, 8192


@dataclass(frozen=True)
class Lines:
    """The first lines of the Earth as a source."""

    source: Any
    first: int
    count: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    n = None

    def blocks(self, rows: int) -> Any:
        return itertools.islice(self.source.blocks(rows), self.first, self.first + self.count)


@pytest.fixture(scope="module")
def earth():
    """300 lines from 45 degrees north on, 13 million points, and landmarks."""
    globe = pytest.importorskip("sdgpu.study.real_data.globe")
    try:
        mask = globe.land_mask()
    except ImportError as error:
        pytest.skip(str(error))
    points = np.random.default_rng(0).standard_normal((20_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    kernel = sdgpu.Gaussian(K / 20)
    landmarks = sdgpu.Nystrom(K).prepare(kernel, points, 3, 0).landmarks
    return Lines(globe.GlobeRows(mask), 5400, 300), kernel, landmarks


@pytest.mark.parametrize("whitened", [True, False], ids=["whitened", "raw"])
def test_the_earth_against_a_prototype(race, earth, whitened):
    """NumPy on arrays in memory, two threads: float32 inner products, exp, and Phi'W Phi.

    `raw` leaves the whitening out, as sums of float32 kernel values are no use where lam is small; ours
    whiten the sums of each block, read, cut and check the rows, and sum some in float64.
    """
    source, kernel, landmarks = earth
    blocks = list(source.blocks(BLOCK))
    X = np.concatenate([block.X for block in blocks])
    Y = np.concatenate([block.Y for block in blocks]).astype(np.float32)
    root = np.sqrt(np.concatenate([block.weights for block in blocks])).astype(np.float32)[:, None]
    S = np.float32(landmarks)
    W = np.float32(sdgpu.Nystrom(landmarks=landmarks).prepare(kernel, None, 3, 0).whitening)
    twice = np.float32(2 * kernel.gamma)

    def product(start: int) -> None:
        rows = slice(start, start + BLOCK)
        phi = X[rows] @ S.T
        phi *= twice
        phi -= twice
        np.exp(phi, out=phi)
        if whitened:
            phi = phi @ W
        phi *= root[rows]
        _ = phi.T @ phi, phi.T @ (Y[rows] * root[rows])

    def theirs() -> None:
        with threadpool_limits(1), ThreadPoolExecutor(2) as pool:
            list(pool.map(product, range(0, len(X), BLOCK)))

    features = sdgpu.Nystrom(landmarks=landmarks)
    race(
        f"{len(X):,} points of the Earth, k = {K}, against NumPy on arrays in memory, "
        + ("whitened block by block" if whitened else "without whitening"),
        lambda: sdgpu.fit(source, None, kernel, [1e-5 * len(X)], features=features, intercept=True),
        theirs,
        rounds=3,
    )


PROBE = """
import sys
from pathlib import Path
import numpy as np
import sdgpu
n, d, k = map(int, sys.argv[1:4])
folder = sys.argv[4]
X, Y = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in "XY")
features = sdgpu.Nystrom(landmarks=np.random.default_rng(1).standard_normal((k, d)))
for rows in (20_000, n):  # the first for threads and pages
    fit = sdgpu.fit(X[:rows], Y[:rows], sdgpu.Gaussian(0.05), [1e-4 * rows], features=features)
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(fit.info.seconds["rows"], 1024 * int(peak))
"""


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """1e7 rows of 10 features in float32 files, written block by block."""
    folder = tmp_path_factory.mktemp("mapped")
    n, rng = 10_000_000, np.random.default_rng(0)
    X, Y = (
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        for name, shape in (("X", (n, 10)), ("Y", (n, 1)))
    )
    for start in range(0, n, 10**6):
        rows = slice(start, start + 10**6)
        X[rows] = rng.standard_normal((10**6, 10), dtype=np.float32)
        Y[rows] = np.sin(X[rows, :1])
    X.flush()
    Y.flush()
    return folder


def probe(n: int, k: int, folder: Any) -> tuple[float, float]:
    """Seconds of the pass and peak of a fresh process, imports and mapped pages included."""
    command = [sys.executable, "-W", "ignore", "-c", PROBE, str(n), "10", str(k), str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(found[0]), float(found[1])


@pytest.mark.full
def test_time_and_memory_as_rows_grow(mapped):
    probe(100_000, K, mapped)
    found = {n: probe(n, K, mapped) for n in (100_000, 1_000_000, 10_000_000)}
    rates = {n: n / spent for n, (spent, _) in found.items()}
    for n in (1_000_000, 10_000_000):
        REPORT.rows.append(
            (
                f"a pass over {n:,} x 10 of a float32 memory map, k = {K}, against that of 100,000 times "
                f"{n // 100_000}; peak of the process {found[n][1] / 1e9:.2f} GB",
                seconds(found[n][0]),
                seconds(found[100_000][0] * n / 100_000),
                f"{rates[100_000] / rates[n]:.2f}",
                "0.9 .. 1.1",
            )
        )
    assert found[10_000_000][1] < 1.2e9


@pytest.mark.full
def test_memory_of_many_features(mapped):
    spent, peak = probe(1_000_000, 2000, mapped)
    REPORT.rows.append(
        (
            "peak memory [GB] of a process that fits 1,000,000 x 10 of a memory map, k = 2,000, imports "
            "and mapped pages, and the seconds of its pass",
            f"{peak / 1e9:.2f}",
            seconds(spent),
            "",
            "<= 1.2",
        )
    )
    assert peak < 1.2e9


def test_merging_moments():
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((2000, 2000))
    part = MomentSums.of_block(phi, phi[:, :1], None, np.zeros(1))
    total = MomentSums.zeros(2000, 1)
    start = time.perf_counter()
    for _ in range(64):
        total.merge(part)
    spent = time.perf_counter() - start
    REPORT.rows.append(("merging 64 moments of k = 2,000", seconds(spent), "", "", "< 2 s"))
    assert spent < 2


@pytest.mark.full
def test_two_processes_of_a_cluster():
    """The same partitions on one and on two workers of one thread."""
    da = pytest.importorskip("dask.array")
    distributed = pytest.importorskip("distributed")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng = np.random.default_rng(0)
    landmarks = rng.standard_normal((1000, 10))

    def fit(workers: int) -> float:
        with (
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            ) as cluster,
            distributed.Client(cluster),
        ):
            X = da.random.default_rng(0).standard_normal((1_000_000, 10), chunks=(25_000, 10))
            X = X.astype("float32").persist()
            Y = da.sin(X[:, :1]).persist()
            distributed.wait([X, Y])
            how = {"features": sdgpu.Nystrom(landmarks=landmarks), "dtype": "float32"}
            sdgpu.fit(X[:50_000], Y[:50_000], sdgpu.Gaussian(0.05), [1.0], **how)
            found = sdgpu.fit(X, Y, sdgpu.Gaussian(0.05), [1.0], **how)
            return found.info.seconds["rows"]

    one, two = (min(fit(workers) for _ in range(2)) for workers in (1, 2))
    REPORT.rows.append(
        (
            "1,000,000 x 10 of a dask array, k = 1,000: two processes of one thread against one",
            seconds(two),
            seconds(one),
            f"{one / two:.2f}",
            ">= 1.8",
        )
    )


def test_sparse_rows(race):
    X: Any = scipy.sparse.random_array(
        (100_000, 2000), density=0.025, format="csr", rng=np.random.default_rng(0)
    )
    y = X @ np.random.default_rng(1).standard_normal(2000)
    race(
        "sums of 100,000 x 2,000 sparse rows with 50 entries each, against SciPy's X'X",
        lambda: sdgpu.Moments(sdgpu.Linear(), sdgpu.Explicit(), d=2000).add(X, y),
        lambda: (X.transpose() @ X).toarray(),
        rounds=3,
    )
