"""The CuPy backend: dense Gram matrices and eigendecompositions with cuBLAS and cuSOLVER.

The only module that imports cupy. It needs the extra ``cuda12`` or ``cuda13`` and a GPU. Its manners are
held by a stand-in (tests/cupy_stand_in.py), what only a GPU shows by tests marked ``gpu`` and ``make
gpu-check``. CuPy and torch share memory through DLPack, never through the host.

CuPy looks at cuSOLVER's status only inside ``cupyx.errstate(linalg="raise")``: without it a decomposition
that failed gives numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sdgpu.backend.arrays import Array, library
from sdgpu.backend.backends import NOT_POSITIVE, TILE_GPU, OneDevice, eigh_failure

__all__ = ["CupyBackend", "why_not", "works"]


@cache
def why_not() -> str:
    """Why CuPy cannot be used here, as a sentence; empty if it can."""
    try:
        import cupy

        cupy.arange(3).sum().item()
    except ImportError:
        return "CuPy is not installed: pip install 'sdgpu[cuda12]' or 'sdgpu[cuda13]'"
    except Exception as error:  # CuPy raises many types for a missing driver, runtime or NVRTC
        return f"CuPy is installed but fails at its first array: {error}".splitlines()[0]
    return ""


def works() -> bool:
    """Whether CuPy can compute here."""
    return not why_not()


@dataclass(frozen=True)
class CupyBackend(OneDevice):
    """CuPy arrays on one CUDA device."""

    index: int = 0
    tile: int = TILE_GPU

    @property
    def name(self) -> str:
        return f"cupy on cuda:{self.index}"

    @property
    def xp(self) -> Any:
        import array_api_compat.cupy as xcupy

        return xcupy

    @property
    def device(self) -> Any:
        import cupy

        return cupy.cuda.Device(self.index)

    def asarray(self, array: Array) -> Any:
        import cupy

        with self.device:
            kind = library(array)
            if kind == "torch":
                # A tensor on this GPU is shared; one on the host or another GPU is moved once.
                array = cupy.from_dlpack(array.detach().contiguous().to(f"cuda:{self.index}"))
            elif kind not in ("cupy", "numpy"):
                array = np.asarray(array)
            return cupy.asarray(array, dtype=cupy.float64)

    def eigh(self, K: Any) -> tuple[Any, Any]:
        import cupy
        import cupyx

        # cusolverDnXsyevd, whose sizes have 64 bits; its status is ignored unless CuPy is told to look
        with self.device, cupyx.errstate(linalg="raise"):
            try:
                return cupy.linalg.eigh(K)
            except (np.linalg.LinAlgError, RuntimeError) as error:
                raise eigh_failure(int(K.shape[0]), error) from error

    def cholesky(self, K: Any) -> Any:
        import cupy
        import cupyx

        with self.device, cupyx.errstate(linalg="raise"):
            try:
                return cupy.linalg.cholesky(K)
            except np.linalg.LinAlgError as error:
                raise ValueError(NOT_POSITIVE) from error

    def cho_solve(self, factor: Any, B: Any) -> Any:
        from cupyx.scipy.linalg import solve_triangular

        with self.device:
            half = solve_triangular(factor, B, lower=True)
            return solve_triangular(factor, half, lower=True, trans="T")

    def synchronize(self) -> None:
        self.device.synchronize()
