"""Containers: neither the home folder nor that of the package can be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def child(script, **environment):
    usual = {
        "NUMBA_CACHE_DIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "MPLCONFIGDIR",
        "KEOPS_CACHE_FOLDER",
    }
    own = {name: value for name, value in os.environ.items() if name not in usual}
    # not even the superuser writes below /proc
    own |= {"HOME": "/proc/nonexistent", "PYTHONPATH": str(ROOT)} | environment
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=own)
    assert run.returncode == 0, run.stderr
    return run.stdout


pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")


def test_the_compiled_loop_is_compiled_anew():
    pytest.importorskip("numba")
    # the tests may run as root, whom no permission stops
    out = child(
        """
import numba.core.caching as caching
def read_only(self):
    raise PermissionError("read-only file system")
caching._CacheLocator.ensure_cache_path = read_only
import numpy as np, sdgpu
operator = sdgpu.operators.TiledOperator(sdgpu.Gaussian(0.1), np.zeros((10_000, 1)), "float32")
from sdgpu.operators import fused_cpu
tile = -np.arange(6.0).reshape(2, 3)
wanted = np.exp2(tile)
fused_cpu.values(tile)
print(operator.compiled, np.allclose(tile, wanted))
""",
        NUMBA_CACHE_DIR="/proc/nonexistent",
    )
    assert out.split() == ["True", "True"]


def test_the_compiled_loop_is_kept_for_other_processes(tmp_path):
    pytest.importorskip("numba")
    script = """
import numpy as np, sdgpu
from sdgpu.operators import fused_cpu, tiled
tiled.FUSED_ROWS = 100
X = np.random.default_rng(0).standard_normal((200, 2))
sdgpu.operators.TiledOperator(sdgpu.Gaussian(0.1), X, "float32").matmat(np.ones((200, 1)))
seen = fused_cpu.share.stats
print(sum(seen.cache_hits.values()), sum(seen.cache_misses.values()))
"""
    found = [child(script, NUMBA_CACHE_DIR=str(tmp_path)).split() for _ in range(2)]
    assert found == [["0", "1"], ["1", "0"]]


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
