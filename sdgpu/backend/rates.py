"""What devices do in a second: the fixed numbers at which operators and solvers state their costs.

A choice must not depend on what else runs on the machine, nor on how many threads do: it compares counted
work at the rates of a class of machines.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdgpu.backend.backends import Backend

__all__ = ["Rates", "nominal"]


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    Attributes
    ----------
    products, products32 : float
        Multiply-adds of a matrix product in float64 and float32.
    powers, powers32 : float
        Kernel values of a tile (profile and passes) in float64 and float32.
    bandwidth : float
        Bytes read by a product with a stored matrix.
    tiles, tiles32 : float
        Kernel values of a product that recomputes them: the powers, but for the compiled loop.
    """

    products: float
    products32: float
    powers: float
    powers32: float
    bandwidth: float
    tiles: float
    tiles32: float


#: Of two cores with AVX2. What chooses are the ratios, which more cores leave as they are.
NOMINAL = Rates(
    products=4e10, products32=8e10, powers=3e8, powers32=6e8, bandwidth=1e10, tiles=3e8, tiles32=6e8
)
#: Of a GPU with full float64, from data sheets: not measured.
NOMINAL_CUDA = Rates(
    products=2e12,
    products32=8e12,
    powers=5e10,
    powers32=2e11,
    bandwidth=5e11,
    tiles=5e10,
    tiles32=2e11,
)


def nominal(backend: Backend) -> Rates:
    """The fixed rates of a backend's class of machines."""
    return NOMINAL_CUDA if "cuda" in backend.name else NOMINAL
