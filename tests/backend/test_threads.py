"""Pools of threads: settings that come back, and children that were forked."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import threadpoolctl

from sdgpu.backend.threads import only_torch

ROOT = Path(__file__).parent.parent.parent

FORK = """
import multiprocessing, os, sys
import numpy as np, sdgpu
rng = np.random.default_rng(0)
X, y = rng.standard_normal((800, 3)), rng.standard_normal(800)

def values():
    fitted = sdgpu.fit(X, y, sdgpu.Gaussian(0.3), lams=1.0, method="subspace")
    return fitted.path(steps=2).fitted

def child(path):
    np.save(path, values())

import torch
torch.set_num_threads(2)
torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # the caller's own
values()
process = multiprocessing.get_context("fork").Process(target=child, args=(sys.argv[1],))
process.start()
process.join(30)
if process.is_alive():
    process.kill()
    sys.exit("the child hangs")
assert process.exitcode == 0
here, there = values(), np.load(sys.argv[1])
assert (np.linalg.norm(here - there, axis=1) <= 2e-6 * np.linalg.norm(here, axis=1)).all()
"""


def blas_threads():
    pools = threadpoolctl.threadpool_info()
    return [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]


def test_the_pools_of_blas_come_back_after_two_callers():
    """The one that came second leaves first, or last: neither may keep the other's setting."""
    if not blas_threads():
        pytest.skip("no BLAS that threadpoolctl knows")
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        for first in (0, 1):
            came, leave, left = threading.Event(), threading.Event(), threading.Event()

            def other(came=came, leave=leave, left=left):
                with only_torch():
                    came.set()
                    leave.wait(10)
                left.set()

            thread = threading.Thread(target=other)
            with only_torch():
                thread.start()
                assert came.wait(10)
                assert set(blas_threads()) == {1}
                if first == 0:
                    leave.set()
                    assert left.wait(10)
                    assert set(blas_threads()) == {1}  # this one is still inside
            if first == 1:
                assert set(blas_threads()) == {1}
                leave.set()
            thread.join(10)
            assert blas_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")
def test_a_fit_in_a_forked_child_ends(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    command = [sys.executable, "-c", FORK, str(tmp_path / "child.npy")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert run.returncode == 0, run.stderr
