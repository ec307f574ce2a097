"""What a fit needs of a device, what it must know of it, and what one device answers for several."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.linalg  # at once: its BLAS takes memory, and waits for ever if a limit then forbids it

from sdgpu.backend.arrays import Array

__all__ = ["Backend", "OneDevice", "eigh_failure", "small_eigh"]

LARGEST_DSYEVD = 32_766  # rows for LAPACK's divide and conquer with 32-bit integers
# Rows beyond which cuSOLVER's 64-bit eigensolver refused float64 matrices in 2025, whatever memory there
# was (NVIDIA/CUDALibrarySamples issue 246); where a version does not, nothing stands in its way.
KNOWN_XSYEVD = 25_000
TILE_CPU = 256  # rows of a Gram tile: 256 x 256 doubles (512 KiB) stay in cache between passes
TILE_GPU = 4096  # fewer, larger launches
NOT_POSITIVE = (
    "K + lam I is not positive definite in float64: raise lam, or check that the kernel is "
    "positive semi-definite"
)


def small_eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (k,) ascending and eigenvectors (k, k) of a small matrix on the host.

    By torch, whose threads are those of the products: twice as fast as NumPy at k = 800. Where LAPACK's
    divide and conquer does not converge, as for some Gram matrices of dependent rows, by QR iterations.
    """
    import torch

    try:
        eigenvalues, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    except torch.linalg.LinAlgError:
        return scipy.linalg.eigh(matrix, driver="ev")
    return eigenvalues.numpy(), vectors.numpy()


def eigh_failure(n: int, error: Exception) -> Exception:
    """What to raise for a decomposition of n rows that failed on a GPU."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if n > KNOWN_XSYEVD:
        return MemoryError(
            f"cuSOLVER did not decompose {n:,} rows ({reason}): versions of it refuse float64 matrices of "
            f"more than about {KNOWN_XSYEVD:,} rows whatever memory there is. Update CUDA, or use "
            "method='subspace', or device='cpu'"
        )
    return ValueError(
        f"the eigendecomposition of {n:,} rows failed on the GPU ({reason}): use device='cpu'"
    )


@runtime_checkable
class Backend(Protocol):
    """What a fit needs of a device.

    Attributes
    ----------
    name : str
        For reports, for example ``"numpy on cpu"``.
    xp : module
        Array API namespace.
    device : object
        Device of that namespace.
    tile : int
        Rows of a Gram tile.
    """

    @property
    def name(self) -> str: ...
    @property
    def xp(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def tile(self) -> int: ...

    def asarray(self, array: Array) -> Array:
        """Bring an array of any library here, as float64; no copy if it is here already."""

    def eigh(self, K: Array) -> tuple[Array, Array]:
        """Eigenvalues (n,) ascending and eigenvectors (n, n) of K, which may be overwritten."""

    def cholesky(self, K: Array) -> Array:
        """Lower factor of K (n, n), which may be overwritten; ValueError if not positive."""

    def cho_solve(self, factor: Array, B: Array) -> Array:
        """Solve K W = B (n, c) with the lower factor of K."""

    def synchronize(self) -> None:
        """Wait until everything queued on the device is done."""

    def small_eigh(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:func:`small_eigh`, with the same bits on all ranks."""

    def empty_rows(self, count: int, n: int, dtype: str = "float64") -> Array:
        """An array (count, n), not filled, whose second axis counts the training rows."""

    def spread(self, array: Array, axis: int) -> Array:
        """Bring an array here, as float64, of which `axis` counts all training rows."""

    def rows_here(self, n: int) -> slice:
        """Which of the n training rows are on this rank."""

    def told(self, value: Any) -> Any:
        """A small value by which the work goes on: that of the first rank."""

    def own(self, array: Array) -> Array:
        """The rows of an array that are on this rank, as an ordinary array."""

    def from_ranks(self, array: Array) -> list[Array]:
        """An ordinary array of every rank, all of one shape."""

    def everywhere(self, truth: Any) -> bool:
        """Whether something is true on all ranks."""


class OneDevice:
    """What a backend of one device answers where those of several have to talk: all rows are here."""

    def small_eigh(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return small_eigh(matrix)

    def empty_rows(self: Any, count: int, n: int, dtype: str = "float64") -> Array:
        return self.xp.empty((count, n), dtype=getattr(self.xp, dtype), device=self.device)

    def spread(self: Any, array: Array, axis: int) -> Array:
        return self.asarray(array)

    def rows_here(self, n: int) -> slice:
        return slice(0, n)

    def told(self, value: Any) -> Any:
        return value

    def own(self, array: Array) -> Array:
        return array

    def from_ranks(self, array: Array) -> list[Array]:
        return [array]

    def everywhere(self, truth: Any) -> bool:
        return bool(truth)
