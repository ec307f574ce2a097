"""Kernels: a statistic of two rows and an elementwise profile, each formula written once.

Import them from here or, the common ones, from :mod:`sdgpu`. ``as_kernel`` turns what public calls
accept (an object, a name, a function) into a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdgpu.checks import choice
from sdgpu.kernels.base import Kernel, Product, Scaled, Sum
from sdgpu.kernels.distance import Gaussian, Laplacian, Matern, median_distance
from sdgpu.kernels.empirical import EmpiricalNTK
from sdgpu.kernels.given import FunctionKernel, Precomputed
from sdgpu.kernels.green import BrownianBridge, CubicGreen, CubicSpline
from sdgpu.kernels.network import NNGP, NTK
from sdgpu.kernels.product import ArcCosine, Cosine, Linear, Polynomial

__all__ = [
    "NNGP",
    "NTK",
    "ArcCosine",
    "BrownianBridge",
    "Cosine",
    "CubicGreen",
    "CubicSpline",
    "EmpiricalNTK",
    "FunctionKernel",
    "Gaussian",
    "Kernel",
    "Laplacian",
    "Linear",
    "Matern",
    "Polynomial",
    "Precomputed",
    "Product",
    "Scaled",
    "Sum",
    "as_kernel",
    "median_distance",
]

NAMES = {
    "rbf": "gaussian",
    "gaussian": "gaussian",
    "laplacian": "laplacian",
    "matern12": "matern12",
    "matern32": "matern32",
    "matern52": "matern52",
    "poly": "polynomial",
    "polynomial": "polynomial",
    "linear": "linear",
    "cosine": "cosine",
    "arccosine": "arccosine",
    "nngp": "nngp",
    "ntk": "ntk",
    "cubicgreen": "cubicgreen",
    "cubicspline": "cubicspline",
    "brownianbridge": "brownianbridge",
    "precomputed": "precomputed",
}


def as_kernel(
    kernel: Kernel | str | Callable[[Any, Any], Any],
    *,
    gamma: float = 1.0,
    degree: int = 3,
    coef0: float = 1.0,
) -> Kernel:
    """Turn a kernel, a name or a function of two matrices, or of two rows, into a kernel.

    Parameters
    ----------
    kernel : Kernel, str or callable
        Names: rbf or gaussian, laplacian, matern12, matern32, matern52, poly or polynomial, linear,
        cosine, arccosine, nngp, ntk, cubicgreen, cubicspline, brownianbridge, precomputed.
    gamma, degree, coef0
        Parameters of the named kernels, with scikit-learn's meaning. A Matern kernel takes
        lengthscale = 1 / sqrt(2 gamma), the width of the Gaussian with the same gamma; "arccosine"
        is of degree 1, "nngp" and "ntk" have one hidden layer.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest known one.
    TypeError
        For something else.

    Examples
    --------
    >>> as_kernel("rbf", gamma=2.0)
    Gaussian(gamma=2.0, lengthscale=None)
    """
    if isinstance(kernel, Kernel):
        return kernel
    if isinstance(kernel, type) and issubclass(kernel, Kernel):
        raise TypeError(f"kernel is the class {kernel.__name__}: make one, {kernel.__name__}(...)")
    if callable(kernel):
        return FunctionKernel(kernel)
    if not isinstance(kernel, str):
        raise TypeError(f"kernel={kernel!r} must be a Kernel, a name or a function of two matrices")
    name = NAMES[choice("kernel", kernel, NAMES)]
    if name.startswith("matern"):
        return Matern(int(name[-2]) / int(name[-1]), lengthscale=(2 * gamma) ** -0.5)
    return {
        "gaussian": lambda: Gaussian(gamma),
        "laplacian": lambda: Laplacian(gamma),
        "polynomial": lambda: Polynomial(degree, gamma, coef0),
        "linear": Linear,
        "cosine": Cosine,
        "arccosine": ArcCosine,
        "nngp": NNGP,
        "ntk": NTK,
        "cubicgreen": CubicGreen,
        "cubicspline": CubicSpline,
        "brownianbridge": BrownianBridge,
        "precomputed": Precomputed,
    }[name]()
