"""Fixtures shared by all tests, and the visible skip of tests that need a GPU."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

# KeOps compiles into its cache, which has no lock: one inside the build folder for each worker
_CACHE = (
    Path(__file__).parent.parent
    / "build"
    / f"keops-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
)
_CACHE.mkdir(parents=True, exist_ok=True)
os.environ["KEOPS_CACHE_FOLDER"] = str(_CACHE)
# threads of OpenMP wait by spinning, which takes the other workers' time: thrice the time of the tests
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# a shell that starts the tests in the background has them ignore Ctrl-C, which some of them send
signal.signal(signal.SIGINT, signal.default_int_handler)

import array_api_strict
import hypothesis
import numpy as np
import pytest
import torch

from sdgpu.backend.backends import NumpyBackend, PlainBackend, TorchBackend, cuda_count

BACKENDS = {
    "numpy": NumpyBackend(),
    "torch": TorchBackend("cpu"),
    "strict": PlainBackend(array_api_strict),
}

# the same examples in every run, like all other random numbers; a busy machine fails no test
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "seeded"))


def seed_all():
    """The same random numbers for every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


# Hooks rather than a fixture: modules draw as they are imported, and a fixture of a module or a
# session is made in whatever test comes first.
def pytest_collectstart(collector):
    if isinstance(collector, pytest.Module):
        seed_all()


def pytest_fixture_setup():
    seed_all()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    seed_all()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs):
    """Each worker has its share of the cores for OpenBLAS, whose threads spin whatever they are told.

    Said before a worker starts: it has loaded NumPy when it comes to this file.
    """
    share = (os.cpu_count() or 1) // len(specs)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(share, 1)))


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
