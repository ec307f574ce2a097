"""Kernels of infinitely wide ReLU networks: NNGP and NTK, any depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat

from sdgpu.checks import integer, positive
from sdgpu.kernels.base import Profile, lengthscales, scaled_rows
from sdgpu.kernels.product import unit_rows
from sdgpu.kernels.statistics import Rows, clip_, distance_rows, sqrt_

__all__ = ["NNGP", "NTK"]


@dataclass(frozen=True)
class _ReLU(Profile):
    """What both share: the recursion over layers, on the gap 1 - cos theta between two rows.

    S = w x.x' / d + b is an inner product of rows with one entry more, sqrt(b); theta is their angle,
    and s = w |x|^2 / d + b their squared length. A layer makes

        S <- w sqrt(s s') (sin theta + (pi - theta) cos theta) / (2 pi) + b,    s <- w s / 2 + b,
        Theta <- S + w (pi - theta) / (2 pi) Theta.

    The angle is kept as its gap, which starts as half the squared chord of the unit rows and has an
    update of its own: an arccos would lose half of the digits of nearly parallel rows, and the
    derivative of the network is linear in the angle there.
    """

    depth: int = 1
    weight_var: float = 2.0
    bias_var: float = 0.0
    lengthscale: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", integer("depth", self.depth, 1))
        object.__setattr__(self, "weight_var", positive("weight_var", self.weight_var))
        object.__setattr__(self, "bias_var", positive("bias_var", self.bias_var, zero=True))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        xp = compat.array_namespace(X)
        values = scaled_rows(X, None, self.lengthscale) * math.sqrt(self.weight_var / X.shape[1])
        if self.bias_var:
            bias = xp.full_like(values[:, :1], math.sqrt(self.bias_var))
            values = xp.concat([values, bias], axis=1)
        unit, norms, largest = unit_rows(values)
        return replace(distance_rows(unit), norms=norms * largest * largest)

    def _layers(self, tile: Any, p: Any, q: Any) -> tuple[Any, Any]:
        """NNGP and NTK from squared chords of unit rows; p and q are the squared lengths."""
        w, b = self.weight_var, self.bias_var
        gap = clip_(tile, 0.0, 4.0) / 2
        length = sqrt_(p * q)
        S = length * (1 - gap)
        tangent = S
        for _ in range(self.depth):
            half = sqrt_(gap / 2)  # sin(theta / 2)
            theta = 2 * _asin(half)
            sine = 2 * half * sqrt_(1 - half * half)
            away = math.pi - theta
            # 1 - (sin theta + (pi - theta) cos theta) / pi, without cancellation
            lost = gap + (theta * (1 - gap) - sine) / math.pi
            A = (w / 2) * length
            S = A * (1 - lost) + b
            tangent = S + (w / (2 * math.pi)) * away * tangent
            p, q = w / 2 * p + b, w / 2 * q + b
            length = sqrt_(p * q)
            gap = lost
            if b:
                # sqrt((A_1 + b)(A_2 + b)) - A - b, A_1 = p - b, again without cancellation
                apart = sqrt_(p - b) - sqrt_(q - b)
                gap = (b * apart * apart / (length + A + b) + A * lost) / length
            gap = clip_(gap, 0.0, 2.0)
        return S, tangent

    def _diagonals(self, rows: Rows) -> tuple[Any, Any]:
        s = rows.norms
        tangent = s
        for _ in range(self.depth):
            s = self.weight_var / 2 * s + self.bias_var
            tangent = s + self.weight_var / 2 * tangent
        return s, tangent


@dataclass(frozen=True)
class NNGP(_ReLU):
    """Covariance of an infinitely wide ReLU network at its random initialisation.

    Parameters
    ----------
    depth : int, default 1
        Hidden layers.
    weight_var, bias_var : float, default 2 and 0
        Variances of weights (times fan-in) and biases; 2 and 0 keep the size of the signal (He).
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first.

    Raises
    ------
    TypeError, ValueError
        For depth < 1 or variances out of range.

    References
    ----------
    Cho and Saul (2009); Lee et al. (2018).

    Examples
    --------
    >>> import numpy as np
    >>> NNGP(depth=3)(np.array([[1.0, 1.0], [1.0, -1.0]])).round(4)
    array([[2.    , 1.2097],
           [1.2097, 2.    ]])
    """

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return self._layers(tile, a_norms, b_norms)[0]

    def diagonal(self, rows: Rows) -> Any:
        return self._diagonals(rows)[0]


@dataclass(frozen=True)
class NTK(_ReLU):
    """Tangent kernel of an infinitely wide ReLU network: what gradient descent trains it with.

    The paper's Appendix C: distilling such a network is distilling kernel regression with this
    kernel. Parameters and errors as :class:`NNGP`.

    References
    ----------
    Jacot, Gabriel and Hongler (2018); Borup and Andersen (2021), Appendix C.
    """

    @property
    def exact_near(self) -> bool:
        return True  # linear in the angle

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return self._layers(tile, a_norms, b_norms)[1]

    def diagonal(self, rows: Rows) -> Any:
        return self._diagonals(rows)[1]


def _asin(tile: Any) -> Any:
    return compat.array_namespace(tile).asin(tile) if compat.is_array_api_obj(tile) else tile.asin()
