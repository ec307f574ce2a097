"""TF32 on CUDA: switched for a while, whichever of torch's two interfaces the caller has used before.

torch refuses to read a setting by the old interface (``set_float32_matmul_precision``, ``allow_tf32``)
once the new one (``fp32_precision``) has said something else, so both are kept in step where the old one
can be read, and only the new one is touched where not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["tf32"]


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in products and convolutions on CUDA; the caller's settings come back."""
    import torch

    cudnn = torch.backends.cudnn
    settings = _new_settings()
    values = [setting.fp32_precision for setting in settings]
    matmul_precision = _old_setting(torch.get_float32_matmul_precision)
    convolution_tf32 = _old_setting(lambda: cudnn.allow_tf32)
    try:
        if matmul_precision is not None:
            torch.set_float32_matmul_precision("high" if allowed else "highest")
        if convolution_tf32 is not None:
            cudnn.allow_tf32 = allowed
        for setting in settings[:3]:
            setting.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        if matmul_precision is not None:
            torch.set_float32_matmul_precision(matmul_precision)
        if convolution_tf32 is not None:
            cudnn.allow_tf32 = convolution_tf32
        for setting, value in zip(settings, values, strict=True):
            setting.fp32_precision = value


def _new_settings() -> list[Any]:
    """What the new interface holds, the CPU's last (the old one changes it too); none before torch 2.9."""
    import torch

    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return []
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]


def _old_setting(read: Any) -> Any:
    """A setting by the old interface; None where the new one contradicts it."""
    try:
        return read()
    except RuntimeError:
        return None
