"""Kernels of infinitely wide ReLU networks: NNGP and NTK, any depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat

from sdgpu.backend.checks import integer, positive
from sdgpu.kernels.augmented_rows import Rows, chords, distance_rows
from sdgpu.kernels.dot_product import unit_rows
from sdgpu.kernels.elementwise import asin, atan2, clip_, root, sqrt_, where
from sdgpu.kernels.kernel import Profile, lengthscales, scaled_rows

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
        chord, across = chords(tile, marked=self.exact_opposite)
        opposite = across is not None  # of some pairs
        wide = opposite or _reaches(chord, 3.5)
        gap = chord / 2
        length = root(p) * root(q)  # p q may leave the range
        S = length * (1 - gap)
        tangent = S
        for layer in range(self.depth):
            if layer == 0 and wide:  # sine and angle must both be right for angles near pi
                across = across if opposite else 4.0 - chord
                sin_half, cos_half = sqrt_(chord) / 2, sqrt_(across) / 2  # of theta / 2
                theta = 2 * atan2(sin_half, cos_half)
                supplement = math.pi - theta
                if opposite:
                    supplement = where(cos_half < sin_half, 2 * asin(cos_half), supplement)
            else:  # of the outputs of ReLUs angles are at most right ones
                sin_half = sqrt_(gap / 2)
                cos_half = sqrt_(1 - sin_half * sin_half)
                theta = 2 * asin(sin_half)
                supplement = math.pi - theta
            sine = 2 * sin_half * cos_half
            # 1 - (sin theta + (pi - theta) cos theta) / pi, without cancellation
            layer_gap = gap + (theta * (1 - gap) - sine) / math.pi
            A = (w / 2) * length
            S = A * (1 - layer_gap) + b
            tangent = S + (w / (2 * math.pi)) * supplement * tangent
            A1, A2 = w / 2 * p, w / 2 * q
            p, q = A1 + b, A2 + b
            length = root(p) * root(q)
            gap = layer_gap
            if b:
                # sqrt((A1 + b)(A2 + b)) - A - b, again without cancellation
                difference = root(A1) - root(A2)
                gap = (b * difference * difference / (length + A + b) + A * layer_gap) / length
            gap = clip_(gap, 0.0, 2.0)
        return S, tangent

    def rounding(self, rows: Rows) -> float:
        return super().rounding(rows) + 8.0 * self.depth

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

    @property
    def exact_opposite(self) -> bool:
        return True

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return self._layers(tile, a_norms, b_norms)[1]

    def diagonal(self, rows: Rows) -> Any:
        return self._diagonals(rows)[1]


def _reaches(tile: Any, limit: float) -> bool:
    """Whether an entry is beyond the limit; of a lazy tensor of KeOps one may be."""
    if not compat.is_array_api_obj(tile):
        return True
    return bool(compat.size(tile)) and float(compat.array_namespace(tile).max(tile)) > limit
