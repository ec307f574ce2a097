"""Partitions of dask as workers: a message from each, made where its rows lie."""

import numpy as np
import pytest

import sdgpu
from sdgpu import federated
from tests.local_cluster import local_cluster
from tests.problems import assert_near

pytest.importorskip("distributed")
dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

CHUNKS = (300, 1, 77, 150)
KERNEL, FEATURES = sdgpu.Gaussian(0.3), sdgpu.RandomFourier(20)
SPACE = federated.FeatureSpace(KERNEL, FEATURES, d=3, c=2)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the sockets and loops of distributed


def arrays():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((sum(CHUNKS), 3))
    return X, np.sin(X[:, :2]) + 0.1 * rng.standard_normal((len(X), 2))


def chunked(X, Y):
    return da.from_array(X, chunks=(CHUNKS, -1)), da.from_array(Y, chunks=(CHUNKS, -1))


def parts():
    ends = np.cumsum(CHUNKS)
    return [
        tuple(array[end - n : end] for array in arrays())
        for n, end in zip(CHUNKS, ends, strict=True)
    ]


@pytest.fixture(scope="module", params=[None, 1, 2])
def client(request):
    if request.param is None:
        yield None
        return
    with local_cluster(request.param) as client:
        yield client


@pytest.mark.parametrize("rank", [None, 4])
def test_a_message_from_each_partition(client, rank):
    found = federated.spectra(SPACE, *chunked(*arrays()), rank=rank)
    wanted = [SPACE.spectrum(X, Y, rank=rank) for X, Y in parts()]
    assert [one.rows for one in found] == list(CHUNKS)
    assert [one.fingerprint for one in found] == [SPACE.fingerprint] * len(CHUNKS)
    new = np.random.default_rng(3).standard_normal((7, 3))
    fits = [SPACE.fit(sent, [0.1, 1.0]) for sent in (found, wanted)]
    one, other = (fit.path(0.1, 0.3, steps=3).predict(new) for fit in fits)
    assert_near(one, other, 1e-9)
    if rank is None:
        pooled = sdgpu.fit(*arrays(), KERNEL, [0.1, 1.0], features=FEATURES)
        assert_near(one, pooled.path(0.1, 0.3, steps=3).predict(new), 1e-9)


def test_no_rows_come_back(client):
    for message in federated.spectra(SPACE, *chunked(*arrays()), rank=3):
        arrays_of = [value for value in vars(message).values() if isinstance(value, np.ndarray)]
        assert all(message.rows not in array.shape or message.rows == 1 for array in arrays_of)


def test_errors_name_the_partition(client):
    X, Y = arrays()
    X[CHUNKS[0] + CHUNKS[1] + 5, 1] = np.nan
    with pytest.raises(ValueError, match=r"partition 2.*row 5 .* is NaN or infinite"):
        federated.spectra(SPACE, *chunked(X, Y))


def test_partitions_without_rows(client):
    rows = [dask.delayed(lambda part: part)(part) for part in parts()]
    none = dask.delayed(lambda: (np.zeros((0, 3)), np.zeros((0, 2))))()
    found = federated.spectra(SPACE, [rows[0], none, rows[2]])
    assert [one.rows for one in found] == [CHUNKS[0], CHUNKS[2]]


def test_refusals():
    X, Y = arrays()
    with pytest.raises(TypeError, match="has no partitions: pass a collection of dask"):
        federated.spectra(SPACE, X, Y)
    with pytest.raises(ValueError, match="rows of 2 features and 2 outputs do not go with d=3"):
        federated.spectra(SPACE, *chunked(X[:, :2], Y))
