"""Kernels: a statistic of two rows and an elementwise profile, each formula written once.

Import them from here or, the common ones, from :mod:`sdgpu`. ``as_kernel`` turns what public calls
accept (an object, a name, a function) into a kernel.
"""

from __future__ import annotations

from sdgpu.kernels.dot_product import ArcCosine, Cosine, Linear, Polynomial
from sdgpu.kernels.empirical_ntk import EmpiricalNTK
from sdgpu.kernels.infinite_width import NNGP, NTK
from sdgpu.kernels.kernel import Kernel, Product, Scaled, Sum
from sdgpu.kernels.precomputed import FunctionKernel, Precomputed
from sdgpu.kernels.registry import as_kernel
from sdgpu.kernels.splines import BrownianBridge, CubicGreen, CubicSpline
from sdgpu.kernels.stationary import Gaussian, Laplacian, Matern, median_distance

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
