"""Fixtures shared by all tests, and the visible skip of tests that need a GPU."""

from __future__ import annotations

import os
from pathlib import Path

# KeOps compiles into its cache, which has no lock: one inside the build folder for each worker
_CACHE = (
    Path(__file__).parent.parent
    / "build"
    / f"keops-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
)
_CACHE.mkdir(parents=True, exist_ok=True)
os.environ["KEOPS_CACHE_FOLDER"] = str(_CACHE)

import array_api_strict
import numpy as np
import pytest

from sdgpu.device.backend import NumpyBackend, PlainBackend, TorchBackend, cuda_count

BACKENDS = {
    "numpy": NumpyBackend(),
    "torch": TorchBackend("cpu"),
    "strict": PlainBackend(array_api_strict),
}


def pytest_collection_modifyitems(items):
    if cuda_count():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(params=list(BACKENDS))
def backend(request):
    """Every backend that runs without a GPU."""
    return BACKENDS[request.param]


@pytest.fixture
def rng():
    return np.random.default_rng(7)
