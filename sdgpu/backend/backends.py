"""Backends: where the float64 work of a fit is done, and with which library.

======================  =======================================  =====================
backend                 used for                                 eigendecomposition
======================  =======================================  =====================
:class:`NumpyBackend`   ``device="cpu"``                         LAPACK ``dsyevd``
:class:`CupyBackend`    ``device="cuda"`` with CuPy installed    cuSOLVER ``Xsyevd``
:class:`TorchBackend`   ``device="cuda"`` without CuPy           ``torch.linalg.eigh``
:class:`PlainBackend`   any array API namespace (tests)          ``xp.linalg.eigh``
======================  =======================================  =====================

A backend knows no kernel and no filter. It moves arrays, and it factors symmetric matrices.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import array_api_compat as compat
import array_api_compat.numpy as xnp
import numpy as np
import scipy.linalg  # at once: its BLAS takes memory, and waits for ever if a limit then forbids it

from sdgpu.backend.arrays import Array, Template, library
from sdgpu.backend.checks import choice
from sdgpu.backend.one_device import (
    LARGEST_DSYEVD,
    NOT_POSITIVE,
    TILE_CPU,
    TILE_GPU,
    Backend,
    OneDevice,
    eigh_failure,
    small_eigh,
)
from sdgpu.backend.sharded_arrays import own_part
from sdgpu.backend.sparse_rows import is_csr

__all__ = [
    "LARGEST_DSYEVD",
    "NOT_POSITIVE",
    "TILE_GPU",
    "Backend",
    "NumpyBackend",
    "OneDevice",
    "PlainBackend",
    "TorchBackend",
    "eigh_failure",
    "resolve",
    "rows_on",
    "small_eigh",
    "taken_rows",
    "to_numpy",
    "torch_beside",
]


@dataclass(frozen=True)
class NumpyBackend(OneDevice):
    """NumPy arrays, LAPACK through SciPy: divide and conquer, which is fastest for all vectors."""

    name: str = "numpy on cpu"
    device: str = "cpu"
    tile: int = TILE_CPU

    @property
    def xp(self) -> Any:
        return xnp

    def asarray(self, array: Array) -> np.ndarray:
        return to_numpy(array).astype(np.float64, copy=False)

    def eigh(self, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # K is symmetric, so its transpose is the column-major matrix that LAPACK overwrites with
        # the eigenvectors: K, V and the 2 n^2 of workspace make 3 n^2 doubles at the peak.
        # Its 2 n^2 + 6 n + 1 numbers of workspace have to be counted in 32 bits; relatively robust
        # representations need some n, and take longer.
        driver: Literal["evd", "evr"] = "evd" if K.shape[0] <= LARGEST_DSYEVD else "evr"
        return scipy.linalg.eigh(K.T, driver=driver, overwrite_a=True, check_finite=False)

    def cholesky(self, K: np.ndarray) -> np.ndarray:
        try:
            return scipy.linalg.cholesky(K.T, lower=True, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError as error:
            raise ValueError(NOT_POSITIVE) from error

    def cho_solve(self, factor: np.ndarray, B: np.ndarray) -> np.ndarray:
        return scipy.linalg.cho_solve((factor, True), B, check_finite=False)

    def synchronize(self) -> None:
        pass  # the CPU has no queue


@dataclass(frozen=True)
class TorchBackend(OneDevice):
    """Torch tensors on one device: CUDA where CuPy is missing, and the CPU in tests."""

    device: Any

    @property
    def name(self) -> str:
        return f"torch on {self.device}"

    @property
    def xp(self) -> Any:
        import array_api_compat.torch as xtorch

        return xtorch

    @property
    def tile(self) -> int:
        return TILE_CPU if str(self.device) == "cpu" else TILE_GPU

    def asarray(self, array: Array) -> Any:
        import torch

        if library(array) == "torch":
            tensor = array
        elif library(array) == "cupy":
            tensor = torch.from_dlpack(array)
        else:
            host = to_numpy(array)
            # torch has neither read-only nor negative-stride tensors
            shareable = host.flags.writeable and min(host.strides, default=0) >= 0
            tensor = torch.from_numpy(host if shareable else host.copy())
        # Memory that is not pinned is copied before the call returns, so there is no need to wait for the
        # device; to the host one must wait.
        at_once = (
            "cuda" in str(self.device) and tensor.device.type == "cpu" and not tensor.is_pinned()
        )
        return tensor.to(device=self.device, dtype=torch.float64, non_blocking=at_once)

    def eigh(self, K: Any) -> tuple[Any, Any]:
        import torch

        if str(self.device) == "cpu" and torch.get_num_threads() == 1:
            return self.eigh_by_scipy(K)
        try:
            eigenvalues, vectors = self.xp.linalg.eigh(K)
        except (
            RuntimeError
        ) as error:  # torch's LinAlgError and its out-of-memory error are such too
            if str(self.device) == "cpu" or "out of memory" in str(error):
                raise
            raise eigh_failure(int(K.shape[0]), error) from error
        return eigenvalues, vectors

    def eigh_by_scipy(self, K: Any) -> tuple[Any, Any]:
        """The same of a tensor on the CPU, on one thread 0.6 of the time of torch's LAPACK."""
        import torch

        eigenvalues, vectors = NumpyBackend().eigh(K.numpy())
        return torch.from_numpy(eigenvalues), torch.from_numpy(vectors)

    def cholesky(self, K: Any) -> Any:
        import torch

        factor, status = torch.linalg.cholesky_ex(K)
        if int(status):
            raise ValueError(NOT_POSITIVE)
        return factor

    def cho_solve(self, factor: Any, B: Any) -> Any:
        import torch

        return torch.cholesky_solve(B, factor)

    def synchronize(self) -> None:
        if str(self.device).startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class PlainBackend(OneDevice):
    """Any array API namespace with the ``linalg`` extension and nothing more.

    It is what proves that the shared code needs nothing that a CuPy array might lack: the tests
    run it with array-api-strict.
    """

    xp: Any
    device: Any = None
    tile: int = TILE_CPU

    def __reduce__(self) -> Any:  # modules have no pickle
        return _plain_backend, (self.xp.__name__, self.device, self.tile)

    @property
    def name(self) -> str:
        return f"{self.xp.__name__} on {self.device or 'its default device'}"

    def asarray(self, array: Array) -> Array:
        if compat.is_array_api_obj(array) and not isinstance(array, np.ndarray):
            if compat.array_namespace(array) is self.xp:
                return self.xp.astype(array, self.xp.float64, copy=False)
            array = to_numpy(array)
        return self.xp.asarray(array, dtype=self.xp.float64, device=self.device)

    def eigh(self, K: Array) -> tuple[Array, Array]:
        eigenvalues, vectors = self.xp.linalg.eigh(K)
        return eigenvalues, vectors

    def cholesky(self, K: Array) -> Array:
        try:
            return self.xp.linalg.cholesky(K)
        except np.linalg.LinAlgError as error:
            raise ValueError(NOT_POSITIVE) from error

    def cho_solve(self, factor: Array, B: Array) -> Array:
        # The standard has no triangular solve; a general one is slower and as accurate.
        half = self.xp.linalg.solve(factor, B)
        return self.xp.linalg.solve(factor.T, half)

    def synchronize(self) -> None:
        pass  # the standard has no queue to wait for


def _plain_backend(namespace: str, device: Any, tile: int) -> PlainBackend:
    return PlainBackend(importlib.import_module(namespace), device, tile)


def resolve(device: str | Backend, data: Array = None) -> Backend:
    """Turn ``device=`` of a public call into a backend.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:0", ...} or Backend
        "auto" takes the device of `data` if that is CUDA, else the first CUDA device if there is
        one, else the CPU. On CUDA the work goes to CuPy where it is installed and works, otherwise
        to torch.
    data : Array, optional
        Data that are already somewhere.

    Raises
    ------
    ValueError
        For an unknown device, or CUDA where there is none.
    """
    if not isinstance(device, str):
        if isinstance(device, Backend):
            return device
        raise TypeError(f"device={device!r} must be a name or a Backend")
    if device == "mps":
        raise ValueError(
            "device='mps' has no float64, which the decomposition needs: use device='cpu'"
        )
    if device == "auto" and data is not None and "cuda" in str(compat.device(data)):
        device = str(compat.device(data))  # where the data are
    kind, _, index = device.partition(":")
    choice("device", kind, ("auto", "cpu", "cuda"))
    if index and kind != "cuda":
        raise ValueError(f"device={device!r}: only cuda takes an index; use device={kind!r}")
    if kind == "cpu" or (kind == "auto" and not cuda_count()):
        return NumpyBackend()
    if index and not index.isdigit():
        raise ValueError(f"device={device!r}: the index after the colon must be a number")
    number = int(index or 0)
    if number >= cuda_count():
        devices = f"{cuda_count()} CUDA devices" if cuda_count() else "no CUDA device"
        raise ValueError(f"device={device!r}, but torch sees {devices}: use device='cpu' or 'auto'")
    from sdgpu.backend import cupy_backend

    if cupy_backend.works():
        return cupy_backend.CupyBackend(number)
    return TorchBackend(f"cuda:{number}")


def backend_of(array: Array) -> Backend:
    """The backend whose arrays `array` is one of: where operators used on their own compute.

    Of sparse rows in CSR NumPy.
    """
    if is_csr(array):
        return NumpyBackend()
    kind = library(array)
    if kind == "numpy":
        return NumpyBackend()
    if kind == "torch":
        return TorchBackend(str(array.device))
    if kind == "cupy":
        from sdgpu.backend.cupy_backend import CupyBackend

        return CupyBackend(int(array.device.id))
    return PlainBackend(compat.array_namespace(array), compat.device(array))


def torch_beside(backend: Backend) -> TorchBackend:
    """Torch on the device of a backend: where operators in tiles and derivatives are computed."""
    if isinstance(backend, TorchBackend):
        return backend
    return TorchBackend(f"cuda:{backend.device.id}" if "cupy" in backend.name else "cpu")


def rows_on(backend: Backend, rows: Array) -> Array:
    """Rows as a backend works with them: an array of its own, or CSR on the host, in float64."""
    return rows.astype(np.float64, copy=False) if is_csr(rows) else backend.asarray(rows)


def taken_rows(rows: Array, indices: Any) -> Array:
    """Some of the rows by their numbers: of an array, or of CSR."""
    if is_csr(rows):
        return rows[np.asarray(indices, dtype=np.int64)]
    xp = compat.array_namespace(rows)
    index = xp.asarray(np.asarray(indices, dtype=np.int64), device=compat.device(rows))
    return xp.take(rows, index, axis=0)


def cuda_count() -> int:
    """Number of CUDA devices that torch can use.

    Without an NVIDIA driver the answer is 0 and torch, which takes a second to import, stays out.
    """
    if not _driver_present():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@cache
def _driver_present() -> bool:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def to_numpy(array: Array) -> np.ndarray:
    """Bring an array of any library to the host; without a copy if it is there already."""
    kind = library(array)
    if kind == "numpy":
        return array
    if kind == "torch":
        return array.detach().cpu().numpy()
    if kind == "cupy":
        return array.get()
    try:
        return np.from_dlpack(array)
    except (BufferError, AttributeError, TypeError, RuntimeError):
        return np.asarray(array)


def give_back(
    template: Template, array: Array, *, axis: bool = True, exact: bool = False, copy: bool = False
) -> Array:
    """Hand a result to the caller: library, device and dtype of the data that came in.

    Parameters
    ----------
    template : Template
        What came in.
    array : Array
        The result.
    axis : bool, default True
        Whether the last axis is c, which is dropped for 1-D targets.
    exact : bool, default False
        Keep float64 whatever the data were: spectra and filters.
    copy : bool, default False
        Never hand out memory that the fit itself goes on to use.

    Of an array whose rows are on several ranks the own rows are given.
    """
    array = own_part(array)
    if copy:
        array = compat.array_namespace(array).asarray(array, copy=True)
    if axis and template.flat:
        array = array[..., 0]
    target_library, source_library = library(template.sample), library(array)
    xp = compat.array_namespace(template.sample)
    dtype = xp.float64 if exact else getattr(xp, template.dtype)
    if target_library == "numpy":
        return np.ascontiguousarray(to_numpy(array)).astype(dtype, copy=False)
    device = compat.device(template.sample)
    if target_library == "torch":
        tensor = array if source_library == "torch" else TorchBackend(device).asarray(array)
        return tensor.to(device=device, dtype=dtype)
    if target_library == "cupy" and source_library == "torch":
        array = xp.from_dlpack(array)
    elif target_library != source_library:
        array = xp.asarray(to_numpy(array), device=device)
    return xp.astype(array, dtype, copy=False)
