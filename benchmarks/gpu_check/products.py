"""A pass over K: torch's tiles, Triton's kernel, KeOps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import sdgpu
from benchmarks import device_products
from benchmarks.gpu_check.check import Setting, Skipped, timed
from sdgpu.operators import KeOpsOperator, TiledOperator, fused_cuda

__all__ = ["every_kernel", "keops", "tiles", "triton"]

KERNELS = {
    "gaussian": sdgpu.Gaussian(0.5),
    "laplacian": sdgpu.Laplacian(0.3),
    "matern12": sdgpu.Matern(0.5),
    "ntk": sdgpu.NTK(2),
}


def _data(setting: Setting, n: int, d: int, c: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    rows, V = rng.standard_normal((n, d)) / d**0.5, rng.standard_normal((n, c))
    return torch.tensor(rows, device=setting.device), torch.tensor(V, device=setting.device)


def tiles(setting: Setting) -> dict[str, Any]:
    """Seconds of a pass by kernel, precision and columns."""
    n, found = setting.size(100_000, 500), {}
    for name, kernel in KERNELS.items():
        for precision in ("float32", "mixed", "float64"):
            for c in (1, 16, 64):
                if c != 16 and (name != "gaussian" or precision == "mixed"):
                    continue
                X, V = _data(setting, n, 10, c)
                K = TiledOperator(kernel, X, precision)
                seconds = timed(setting, lambda K=K, V=V: K.matmat(V))  # type: ignore[misc]
                found[f"{name}, {precision}, {c} columns"] = {
                    "seconds": seconds,
                    "values a second": n * n / seconds,
                }
    return found


def triton(setting: Setting) -> dict[str, Any]:
    """The fused product against tiles in float64, and its seconds beside those of float32 tiles."""
    reason = fused_cuda.why_not(torch.device(setting.device))
    if reason:
        raise Skipped(reason)
    n, kernel, found = setting.size(100_000, 500), sdgpu.Gaussian(0.5), {}
    for d in (10, 100):
        for c in (1, 16, 64):
            X, V = _data(setting, n, d, c)
            exact = TiledOperator(kernel, X, "float64").matmat(V)
            plain, fused = (TiledOperator(kernel, X, "float32", triton=on) for on in (False, True))
            errors = [
                float((K.matmat(V) - exact).abs().max() / exact.abs().max()) for K in (plain, fused)
            ]
            assert errors[1] < 5e-5, f"d = {d}, c = {c}: off by {errors[1]:.1e}"
            seconds = [timed(setting, lambda K=K, V=V: K.matmat(V), 2) for K in (plain, fused)]  # type: ignore[misc]
            found[f"{d} features, {c} columns"] = {
                "errors of tiles and Triton": errors,
                "seconds of tiles and Triton": seconds,
            }
    return found


def every_kernel(setting: Setting) -> dict[str, Any]:
    """The fused products of every kind of kernel against tiles in float64, and some seconds."""
    reason = fused_cuda.why_not(torch.device(setting.device))
    if reason:
        raise Skipped(reason)
    wrong = device_products.disagreements(setting.device, setting.size(3000, 100))
    assert not wrong, "; ".join(
        f"{one.kernel}, d = {one.d}, c = {one.columns}, {one.what}: {one.error:.2g} of what is allowed"
        for one in wrong[:20]
    )
    return {
        f"{name}, {d} features, {c} columns": {"seconds of Triton and tiles": [fused, plain]}
        for name, d, c, fused, plain in device_products.timings(setting.device)
    }


def keops(setting: Setting) -> dict[str, Any]:
    """KeOps against tiles."""
    n, found = setting.size(50_000, 300), {}
    for name in ("gaussian", "laplacian"):
        X, V = _data(setting, n, 10, 16)
        exact = TiledOperator(KERNELS[name], X, "float64").matmat(V)
        try:
            K = KeOpsOperator(KERNELS[name], X, "float32")
            found_product = K.matmat(V)
        except (ImportError, RuntimeError) as reason:
            raise Skipped(str(reason).splitlines()[0]) from reason
        error = float((found_product - exact).abs().max() / exact.abs().max())
        assert error < 1e-3, f"{name}: off by {error:.1e}"
        found[name] = {"error": error, "seconds": timed(setting, lambda K=K, V=V: K.matmat(V))}  # type: ignore[misc]
    return found
