"""Kernels by name: what public calls accept in place of an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sdgpu.backend.checks import choice
from sdgpu.kernels.compact_support import Wendland
from sdgpu.kernels.dot_product import ArcCosine, Cosine, Linear, Polynomial, Tanimoto
from sdgpu.kernels.histograms import AdditiveChiSquared, ChiSquared, HistogramIntersection
from sdgpu.kernels.infinite_width import NNGP, NTK
from sdgpu.kernels.kernel import Kernel
from sdgpu.kernels.periodic import Periodic
from sdgpu.kernels.precomputed import FunctionKernel, Precomputed
from sdgpu.kernels.splines import BrownianBridge, CubicGreen, CubicSpline
from sdgpu.kernels.stationary import Gaussian, Laplacian, Matern, RationalQuadratic

__all__ = ["NAMED", "as_kernel"]


class Parameters(NamedTuple):
    """The parameters that scikit-learn gives its named kernels."""

    gamma: float
    degree: int
    coef0: float

    @property
    def lengthscale(self) -> float:
        """The width of the Gaussian with the same gamma."""
        return float((2 * self.gamma) ** -0.5)


NAMED: dict[str, Callable[[Parameters], Kernel]] = {
    "rbf": lambda p: Gaussian(p.gamma),
    "gaussian": lambda p: Gaussian(p.gamma),
    "laplacian": lambda p: Laplacian(p.gamma),
    "matern12": lambda p: Matern(0.5, p.lengthscale),
    "matern32": lambda p: Matern(1.5, p.lengthscale),
    "matern52": lambda p: Matern(2.5, p.lengthscale),
    "matern72": lambda p: Matern(3.5, p.lengthscale),
    "rationalquadratic": lambda p: RationalQuadratic(1.0, p.lengthscale),
    "periodic": lambda p: Periodic(1.0, p.lengthscale),
    "wendland": lambda p: Wendland(1, p.lengthscale * 20**0.5),
    "poly": lambda p: Polynomial(p.degree, p.gamma, p.coef0),
    "polynomial": lambda p: Polynomial(p.degree, p.gamma, p.coef0),
    "linear": lambda p: Linear(),
    "cosine": lambda p: Cosine(),
    "tanimoto": lambda p: Tanimoto(),
    "chi2": lambda p: ChiSquared(p.gamma),
    "additivechi2": lambda p: AdditiveChiSquared(),
    "histogramintersection": lambda p: HistogramIntersection(),
    "arccosine": lambda p: ArcCosine(),
    "nngp": lambda p: NNGP(),
    "ntk": lambda p: NTK(),
    "cubicgreen": lambda p: CubicGreen(),
    "cubicspline": lambda p: CubicSpline(),
    "brownianbridge": lambda p: BrownianBridge(),
    "precomputed": lambda p: Precomputed(),
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
        Names: rbf or gaussian, laplacian, matern12, matern32, matern52, matern72, rationalquadratic,
        periodic, wendland, poly or polynomial, linear, cosine, tanimoto, chi2, additivechi2,
        histogramintersection, arccosine, nngp, ntk, cubicgreen, cubicspline, brownianbridge, precomputed.
    gamma, degree, coef0
        Parameters of the named kernels, with scikit-learn's meaning. Matern kernels, "rationalquadratic"
        (of power 1) and "periodic" (of period 1) take lengthscale = 1 / sqrt(2 gamma), the width of the
        Gaussian with the same gamma; "wendland" (of order 1, for up to 3 features) the radius sqrt(20)
        times that, which gives it the curvature of that Gaussian at 0; "arccosine" is of degree 1, "nngp"
        and "ntk" have one hidden layer.

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
    return NAMED[choice("kernel", kernel, NAMED)](Parameters(gamma, degree, coef0))
