"""TF32 is switched and comes back, by whichever interface the caller has set it."""

import subprocess
import sys

import pytest

CHECK = """
import torch
from sdgpu.backend.precision import tf32

{setting}

def state():
    found = [torch._C._get_fp32_precision_getter(b, o) for b, o in (
        ("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"),
        ("mkldnn", "all"), ("mkldnn", "matmul"))]
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("refused")
    return found

before = state()
for allowed in (True, False):
    with tf32(allowed=allowed):
        wanted = "tf32" if allowed else "ieee"
        found = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
        assert {{s.fp32_precision for s in found}} == {{wanted}}, state()
    assert state() == before, (before, state())
    try:
        with tf32(allowed=allowed):
            raise KeyError
    except KeyError:
        assert state() == before
"""


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "torch.set_float32_matmul_precision('high')",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cudnn.fp32_precision = 'ieee'",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'; torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    ],
)
def test_whatever_was_set_before_comes_back(setting):
    torch = pytest.importorskip("torch")
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("torch before 2.9 has one interface")
    subprocess.run([sys.executable, "-c", CHECK.format(setting=setting)], check=True, timeout=300)
