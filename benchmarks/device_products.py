"""The fused product on a GPU: whether it agrees with torch's tiles in float64, and how fast both are.

`python -m benchmarks.device_products` prints both, for CUDA; :func:`disagreements` and :func:`timings` are
for other programs. With TRITON_INTERPRET=1 the first works on the CPU too, slowly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

import sdgpu
from sdgpu.kernels import Kernel
from sdgpu.operators import TiledOperator
from sdgpu.operators.fused_cuda import FusedCuda

__all__ = ["KERNELS", "Agreement", "agreement", "disagreements", "timings"]

#: One kernel of each kind of formula and of statistic.
KERNELS: dict[str, Kernel] = {
    "Gaussian": sdgpu.Gaussian(0.7),
    "Laplacian": sdgpu.Laplacian(0.5),
    "Matern 1/2": sdgpu.Matern(0.5, 1.5),
    "Matern 7/2": sdgpu.Matern(3.5, 2.0),
    "RationalQuadratic": sdgpu.RationalQuadratic(0.7),
    "Periodic": sdgpu.Periodic(3.0, 2.0),
    "Linear": sdgpu.Linear(),
    "Polynomial": sdgpu.Polynomial(3),
    "Cosine": sdgpu.Cosine(),
    "Tanimoto": sdgpu.Tanimoto(),
    "ChiSquared": sdgpu.ChiSquared(0.5),
    "AdditiveChiSquared": sdgpu.AdditiveChiSquared(),
    "HistogramIntersection": sdgpu.HistogramIntersection(),
    "ArcCosine 0": sdgpu.ArcCosine(0),
    "ArcCosine 1": sdgpu.ArcCosine(1),
    "NNGP": sdgpu.NNGP(2, bias_var=0.1),
    "NTK": sdgpu.NTK(3),
    "Sum": sdgpu.Gaussian(0.3) + 0.5 * sdgpu.Laplacian(0.2),
    "Product": sdgpu.Matern(1.5, 2.0) * sdgpu.Polynomial(2),
    "On": sdgpu.On(0, sdgpu.Periodic(1.7)) * sdgpu.On([0, 1], sdgpu.Gaussian(0.5)),
}
_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Agreement:
    """The largest error of a product, over what rounding allows: at most 1 is right.

    Rounding allows an entry of K the kernel's own bound in float32 twice, as split TF32 has less bits, and
    errors of entries are taken to be independent.
    """

    kernel: str
    d: int
    columns: int
    what: str
    error: float


def agreement(name: str, n: int, d: int, c: int, device: str) -> list[Agreement]:
    """Products of `c` columns with K and with new rows, in both precisions and with polynomials."""
    import torch

    rng = np.random.default_rng(n + d)
    X = np.abs(rng.standard_normal((n, d))) / d**0.5
    X[-1] = X[0]
    kernel, rows = KERNELS[name], torch.tensor(X, device=device)
    new = rows[: max(1, n // 3)] * 1.1
    single = TiledOperator(kernel, rows, "float32")
    double = TiledOperator(kernel, rows, "float64")
    V = torch.tensor(rng.standard_normal((c, n)), device=device)
    root, new_root = double.diag().abs().sqrt(), double.cross(new).diag().abs().sqrt()
    allowed = 2 * _EPS * (kernel.rounding(single.rows) + 4) * (V * root).norm(dim=1)[:, None]
    fused = FusedCuda(kernel, single.rows)
    polynomial = FusedCuda(kernel, single.rows, polynomial=2)
    gram, cross = double.matmat(V.T).T, double.cross(new).matmat(V.T).T
    ready = single.cross(new).new
    found = {
        "K V": (fused.gram(V.float()), gram, root),
        "K V, mixed": (fused.gram(V), gram, root),
        "K V, polynomials": (polynomial.gram(V.float()), gram, root),
        "new rows": (fused.cross(ready, V.float()), cross, new_root),
        "new rows, mixed": (fused.cross(ready, V), cross, new_root),
    }
    return [
        Agreement(name, d, c, what, float(((one - wanted).abs() / (allowed * scale)).max()))
        for what, (one, wanted, scale) in found.items()
    ]


def disagreements(device: str = "cuda", n: int = 3000) -> list[Agreement]:
    """What is further from torch's tiles in float64 than rounding allows: nothing, if all is well."""
    cases = [(name, d, c) for name in KERNELS for d in (2, 20, 100) for c in (1, 7, 32)]
    cases += [("Gaussian", 1024, 32), ("Gaussian", 64, 33), ("Laplacian", 1, 2)]
    found = [one for name, d, c in cases for one in agreement(name, n, d, c, device)]
    return [one for one in found if not one.error <= 1]  # NaN is none


def timings(device: str = "cuda", n: int = 100_000) -> list[tuple[str, int, int, float, float]]:
    """(kernel, d, columns, seconds fused, seconds by tiles) of a product in float32: medians of five."""
    import torch

    results = []
    for name in ("Gaussian", "Matern 1/2", "Laplacian", "NTK"):
        for d, c in ((10, 1), (10, 32), (100, 1), (100, 32)):
            rng = torch.Generator(device).manual_seed(0)
            X = torch.rand(n, d, generator=rng, device=device)
            V = torch.rand(n, c, generator=rng, device=device)
            fused = TiledOperator(KERNELS[name], X, "float32", triton=True)
            tiles = TiledOperator(KERNELS[name], X, "float32")
            results.append((name, d, c, _median(fused.matmat, V), _median(tiles.matmat, V)))
    return results


def _median(function: Callable[[Any], Any], V: Any) -> float:
    """Seconds of a call, the median of five after one that compiles."""
    import torch

    seconds = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = perf_counter()
        function(V)
        torch.cuda.synchronize()
        seconds.append(perf_counter() - start)
    return float(np.median(seconds[1:]))


def main() -> int:
    """Print what disagrees and the times."""
    wrong = disagreements()
    for one in wrong:
        print(
            f"{one.kernel}, d = {one.d}, c = {one.columns}, {one.what}: {one.error:.2g} of rounding"
        )
    print(f"{len(wrong)} products disagree with tiles in float64")
    for name, d, c, fused, tiles in timings():
        print(f"{name}, d = {d}, c = {c}: {fused:.4f} s fused, {tiles:.4f} s by tiles")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
