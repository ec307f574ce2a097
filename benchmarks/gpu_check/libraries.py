"""The libraries themselves: what is there, and whether CuPy, cuSOLVER and torch decompose as SciPy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch

from benchmarks.gpu_check.check import Setting, Skipped, timed
from sdgpu.backend import cupy_backend
from sdgpu.backend.backends import Backend, NumpyBackend, TorchBackend, to_numpy
from sdgpu.backend.environment import backends, versions

__all__ = ["eigendecompositions", "failures", "largest", "machine"]

QUERIES = (20_000, 24_000, 26_000, 32_000, 46_000, 60_000)  # 46,341 squared is 2^31


def machine(setting: Setting) -> dict[str, Any]:
    """Versions, the device, and what works."""
    found: dict[str, Any] = {"versions": dict(versions())}
    found["backends"] = {row.name: row.detail for row in backends()}
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "devices": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
        }
    return found


def _backends(setting: Setting) -> list[Backend]:
    if setting.device == "cpu":
        return [NumpyBackend(), TorchBackend("cpu")]
    found: list[Backend] = [TorchBackend("cuda:0")]
    return [*found, cupy_backend.CupyBackend(0)] if cupy_backend.works() else found


def eigendecompositions(setting: Setting) -> dict[str, Any]:
    """Eigenvalues, residuals and factors against LAPACK's, of a kernel matrix with a fast decay too."""
    n, found = setting.size(6000, 150), dict[str, Any]()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, 5))
    squares = (rows**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)
    for name, K in (
        ("wishart", rows @ rows.T / 5 + np.eye(n)),
        ("gaussian", np.exp(-0.5 * distances)),
    ):
        wanted = scipy.linalg.eigh(K, eigvals_only=True)
        for backend in _backends(setting):
            here = backend.asarray(K)

            def work(backend: Backend = backend, here: Any = here) -> Any:
                return backend.eigh(backend.xp.asarray(here, copy=True))

            values, V = (to_numpy(x) for x in work())
            eigenvalue_error = float(np.abs(values - wanted).max() / wanted[-1])
            residual = float(np.abs(K @ V - V * values).max() / wanted[-1])
            orthogonality = float(np.abs(V.T @ V - np.eye(n)).max())
            assert max(eigenvalue_error, residual, orthogonality) < 1e-11 * n**0.5, (
                name,
                backend.name,
            )
            figures = {
                "eigenvalues": eigenvalue_error,
                "residual": residual,
                "orthogonality": orthogonality,
                "seconds": timed(setting, work),
            }
            found[f"{name}, {backend.name}"] = figures
    if len(found) < 4:
        found["cupy"] = cupy_backend.why_not()
    return found


def failures(setting: Setting) -> dict[str, Any]:
    """A matrix that is not positive, and one of NaN: an error on every backend."""
    found = {}
    for backend in _backends(setting):
        for name, matrix, method in (
            ("cholesky", np.diag([1.0, -1.0, 2.0]), backend.cholesky),
            ("eigh", np.full((40, 40), np.nan), backend.eigh),
        ):
            try:
                made = method(backend.asarray(matrix))
            except (ValueError, RuntimeError) as error:
                found[f"{backend.name}, {name}"] = str(error).splitlines()[0]
            else:
                values = to_numpy(made[0] if isinstance(made, tuple) else made)
                # NaN that stays NaN is not silent either; numbers are
                assert not np.isfinite(values).all(), f"{backend.name}: {name} gave numbers"
                found[f"{backend.name}, {name}"] = "NaN"
    return found


def largest(setting: Setting) -> dict[str, Any]:
    """The workspace that cuSOLVER asks for, or its refusal, by the rows; then a decomposition."""
    found: dict[str, Any] = {}
    if setting.device == "cuda":
        if not cupy_backend.works():
            raise Skipped(cupy_backend.why_not())
        found |= _workspaces()
    n = setting.size(26_000, 200)
    free = torch.cuda.mem_get_info()[0] if setting.device == "cuda" else 2**33
    if free < 6 * 8 * n * n:
        return {**found, "decomposition": f"{n:,} rows need more than {free:,} bytes"}
    rng, d = np.random.default_rng(0), 8
    backend = _backends(setting)[-1]
    rows = backend.asarray(rng.standard_normal((n, d)))
    K = rows @ rows.T
    before = _used(setting)
    values, _ = backend.eigh(K)
    trace = float(backend.xp.sum(values))
    assert abs(trace - float(backend.xp.sum(rows * rows))) < 1e-9 * trace
    return {**found, "rows": n, "trace": trace, "bytes over n^2": (_used(setting) - before) / n**2}


def _used(setting: Setting) -> int:
    if setting.device == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _workspaces() -> dict[str, Any]:
    import cupy
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas, cusolver

    handle, params = device.Device().cusolver_handle, cusolver.createParams()
    found = dict[str, Any]()
    K, w = cupy.empty(1), cupy.empty(1)  # only their addresses are looked at
    double = 1  # CUDA_R_64F
    mode = cusolver.CUSOLVER_EIG_MODE_VECTOR, cublas.CUBLAS_FILL_MODE_LOWER
    try:
        for n in QUERIES:
            try:
                matrix, values = (double, K.data.ptr, n), (double, w.data.ptr, double)
                sizes = cusolver.xsyevd_bufferSize(handle, params, *mode, n, *matrix, *values)
                found[f"{n:,} rows"] = {"workspace over n^2": sizes[0] / n**2, "host": sizes[1]}
            except RuntimeError as error:
                found[f"{n:,} rows"] = f"refused: {str(error).splitlines()[0]}"
    finally:
        cusolver.destroyParams(params)
    return found
