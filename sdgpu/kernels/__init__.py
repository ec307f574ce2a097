"""Kernels: a statistic of two rows and an elementwise profile, each formula written once.

Import them from here or, the common ones, from :mod:`sdgpu`. ``as_kernel`` turns what public calls
accept (an object, a name, a function) into a kernel.
"""

from __future__ import annotations

from sdgpu.kernels.columns import On
from sdgpu.kernels.compact_support import Wendland
from sdgpu.kernels.dot_product import ArcCosine, Cosine, Linear, Polynomial, Tanimoto
from sdgpu.kernels.empirical_ntk import EmpiricalNTK
from sdgpu.kernels.histograms import AdditiveChiSquared, ChiSquared, HistogramIntersection
from sdgpu.kernels.infinite_width import NNGP, NTK
from sdgpu.kernels.kernel import Kernel, Product, Scaled, Sum
from sdgpu.kernels.periodic import Periodic, SpectralMixture
from sdgpu.kernels.precomputed import FunctionKernel, Precomputed
from sdgpu.kernels.registry import as_kernel
from sdgpu.kernels.splines import BrownianBridge, CubicGreen, CubicSpline
from sdgpu.kernels.stationary import (
    Gaussian,
    Laplacian,
    Matern,
    RationalQuadratic,
    median_distance,
    scale_gamma,
)

__all__ = [
    "NNGP",
    "NTK",
    "AdditiveChiSquared",
    "ArcCosine",
    "BrownianBridge",
    "ChiSquared",
    "Cosine",
    "CubicGreen",
    "CubicSpline",
    "EmpiricalNTK",
    "FunctionKernel",
    "Gaussian",
    "HistogramIntersection",
    "Kernel",
    "Laplacian",
    "Linear",
    "Matern",
    "On",
    "Periodic",
    "Polynomial",
    "Precomputed",
    "Product",
    "RationalQuadratic",
    "Scaled",
    "SpectralMixture",
    "Sum",
    "Tanimoto",
    "Wendland",
    "as_kernel",
    "median_distance",
    "scale_gamma",
]
