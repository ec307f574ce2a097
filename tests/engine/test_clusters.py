"""Sums over the partitions of real dask processes: the same bits whatever the workers, and if one dies."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import sdgpu
from tests.local_cluster import local_cluster

pytest.importorskip("distributed")
dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

N, PART = 5000, 300
LANDMARKS = np.random.default_rng(2).standard_normal((25, 4))
FEATURES = sdgpu.Nystrom(landmarks=LANDMARKS)
KERNEL = sdgpu.Gaussian(0.2)
NEW = np.random.default_rng(3).standard_normal((7, 4))

pytestmark = pytest.mark.filterwarnings("ignore")  # of the sockets and loops of distributed


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((N, 4))
    return X, np.sin(X[:, :1] * [1.0, 2.0]) + 0.1 * rng.standard_normal((N, 2))


@pytest.fixture(scope="module", params=[1, 2])
def client(request):
    with local_cluster(request.param) as client:
        yield client


def chunked(X, Y):
    return da.from_array(X, chunks=(PART, -1)), da.from_array(Y, chunks=(PART, -1))


def predictions(fit):
    return fit.path(0.1, alphas=0.3, steps=3).predict(NEW)


def test_partitions_are_the_rows(arrays, client):
    events = []
    fit = sdgpu.fit(*chunked(*arrays), KERNEL, [0.1], features=FEATURES, progress=events.append)
    whole = sdgpu.fit(*arrays, KERNEL, [0.1], features=FEATURES)
    np.testing.assert_allclose(predictions(fit), predictions(whole), rtol=0, atol=1e-11)
    assert fit.info.n == N
    done = [event.done for event in events if event.stage == "partitions"]
    assert done == sorted(done)
    assert done[-1] == -(-N // PART)


_BITS = {}


def test_the_number_of_workers_changes_no_bit(arrays, client):
    for dtype in ("float64", "float32"):
        fit = sdgpu.fit(*chunked(*arrays), KERNEL, [0.1], features=FEATURES, dtype=dtype)
        _BITS.setdefault(dtype, predictions(fit))
        assert np.array_equal(predictions(fit), _BITS[dtype])


def test_errors_name_the_partition(arrays, client):
    X, Y = arrays
    damaged = X.copy()
    damaged[4 * PART + 7, 1] = np.nan
    with pytest.raises(ValueError, match=r"partition 4.*row 7 .* is NaN or infinite"):
        sdgpu.fit(*chunked(damaged, Y), KERNEL, [0.1], features=FEATURES)


def slow_block(number, rows):
    time.sleep(0.2)
    X = np.random.default_rng(number).standard_normal((rows, 4))
    return X, np.sin(X[:, :1])


def test_a_worker_that_dies_changes_no_bit():
    """Killed by SIGKILL in the middle: what it held is computed again."""
    parts = [dask.delayed(slow_block, pure=True)(number, 200) for number in range(24)]
    options = {"features": FEATURES, "progress": None}
    with local_cluster(2) as client:
        calm = sdgpu.fit(sdgpu.rows.as_source(parts), None, KERNEL, [0.1], **options)
        pid = next(iter(client.run(os.getpid).values()))
        killer = threading.Timer(0.8, os.kill, (pid, signal.SIGKILL))
        killer.start()
        fit = sdgpu.fit(sdgpu.rows.as_source(parts), None, KERNEL, [0.1], **options)
        killer.join()
        pids = set(client.run(os.getpid).values())
        assert pid not in pids
    assert np.array_equal(predictions(fit), predictions(calm))
