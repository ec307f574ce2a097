"""Containers: neither the home folder nor that of the package can be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def child(script, **environment):
    usual = {"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "KEOPS_CACHE_FOLDER"}
    own = {name: value for name, value in os.environ.items() if name not in usual}
    # not even the superuser writes below /proc
    own |= {"HOME": "/proc/nonexistent", "PYTHONPATH": str(ROOT)} | environment
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=own)
    assert run.returncode == 0, run.stderr
    return run.stdout


pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")


def test_compiled_loops_need_no_folder():
    pytest.importorskip("llvmlite")
    out = child(
        """
import numpy as np, sdgpu
X = np.zeros((5_000, 1))
operator = sdgpu.operators.TiledOperator(sdgpu.Matern(), X, "float32")
print(operator.compiled, np.allclose(operator.matmat(np.ones((5_000, 1))), 5_000))
"""
    )
    assert out.split() == ["True", "True"]


def test_keops_has_a_folder_of_its_own():
    pytest.importorskip("pykeops")
    out = child(
        """
from sdgpu.operators import keops
keops._ensure_cache_folder()
import os, pykeops
print(os.environ["KEOPS_CACHE_FOLDER"])
"""
    )
    folder = Path(out.splitlines()[-1])
    assert "sdgpu-keops" in folder.name
    assert not folder.exists()  # gone with the process


def test_figures_are_drawn():
    child(
        "import io, sdgpu\nfrom sdgpu.study import pictures\nfrom matplotlib.figure import Figure\n"
        "Figure().savefig(io.BytesIO())",
        MPLCONFIGDIR="/proc/nonexistent",
    )
