"""Kernels as plain values and back, for files: names and numbers, nothing that is code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sdgpu.kernels.columns import On
from sdgpu.kernels.compact_support import Wendland
from sdgpu.kernels.dot_product import ArcCosine, Cosine, Linear, Polynomial, Tanimoto
from sdgpu.kernels.histograms import AdditiveChiSquared, ChiSquared, HistogramIntersection
from sdgpu.kernels.infinite_width import NNGP, NTK
from sdgpu.kernels.kernel import Kernel, Product, Scaled, Sum
from sdgpu.kernels.periodic import Periodic, SpectralMixture
from sdgpu.kernels.splines import BrownianBridge, CubicGreen, CubicSpline
from sdgpu.kernels.stationary import Gaussian, Laplacian, Matern, RationalQuadratic

__all__ = ["describe_kernel", "described_kernel"]

_CLASSES: dict[str, type[Kernel]] = {
    kind.__name__: kind
    for kind in (
        AdditiveChiSquared,
        ArcCosine,
        BrownianBridge,
        ChiSquared,
        Cosine,
        CubicGreen,
        CubicSpline,
        Gaussian,
        HistogramIntersection,
        Laplacian,
        Linear,
        Matern,
        NNGP,
        NTK,
        Periodic,
        Polynomial,
        RationalQuadratic,
        SpectralMixture,
        Tanimoto,
        Wendland,
    )
}
_JOINED: dict[str, type[Sum] | type[Product]] = {"Sum": Sum, "Product": Product}
DEEPEST = 50  # sums of products of sums in a file


def describe_kernel(kernel: Kernel) -> dict[str, Any]:
    """Class and parameters, as JSON can hold them.

    Raises
    ------
    TypeError
        For a kernel that is a function, a network or a matrix.

    Examples
    --------
    >>> describe_kernel(2.0 * Gaussian(0.5))
    {'kind': 'Scaled', 'scale': 2.0, 'kernel': {'kind': 'Gaussian', 'gamma': 0.5, 'lengthscale': None}}
    """
    name = type(kernel).__name__
    if isinstance(kernel, Scaled):
        return {"kind": name, "scale": kernel.scale, "kernel": describe_kernel(kernel.kernel)}
    if type(kernel) is On:
        columns, inside = _plain(kernel.columns), describe_kernel(kernel.kernel)
        return {"kind": name, "columns": columns, "kernel": inside}
    if isinstance(kernel, (Sum, Product)):
        return {"kind": name, "kernels": [describe_kernel(part) for part in kernel.kernels]}
    if type(kernel) is not _CLASSES.get(name):
        raise TypeError(f"{kernel!r} cannot go into a file: it is no formula of this package")
    values = {field.name: getattr(kernel, field.name) for field in fields(kernel)}  # type: ignore[arg-type]
    return {"kind": name, **{key: _plain(value) for key, value in values.items()}}


def _plain(value: Any) -> Any:
    """Tuples as lists."""
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def described_kernel(description: Any, *, depth: int = 0) -> Kernel:
    """The kernel that :func:`describe_kernel` described.

    Raises
    ------
    ValueError
        For anything else.
    """
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} kernels inside each other")
    if not isinstance(description, Mapping):
        raise ValueError(f"a {type(description).__name__} describes no kernel")
    values = dict(description)
    kind = values.pop("kind", None)
    if not isinstance(kind, str):
        raise ValueError(f"the kind of a kernel is a str, not {type(kind).__name__}")
    try:
        if kind == "Scaled" and set(values) == {"scale", "kernel"}:
            return described_kernel(values["kernel"], depth=depth + 1) * values["scale"]
        if kind == "On" and set(values) == {"columns", "kernel"}:
            return On(values["columns"], described_kernel(values["kernel"], depth=depth + 1))
        if kind in _JOINED and set(values) == {"kernels"}:
            parts = tuple(described_kernel(part, depth=depth + 1) for part in values["kernels"])
            if not parts:
                raise ValueError(f"a {kind} of no kernels")
            return _JOINED[kind](parts)
        if kind in _CLASSES:
            return _CLASSES[kind](**values)
    except (TypeError, RecursionError) as error:  # the repr of lists in lists is no message
        raise ValueError(f"{kind} of a file has other parameters: {error}") from error
    raise ValueError(f"{kind!r} is no kernel that a file may name")
