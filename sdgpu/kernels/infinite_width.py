"""Kernels of infinitely wide ReLU networks: NNGP and NTK, any depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import array_api_compat as compat

from sdgpu.backend.arrays import lies_on_device
from sdgpu.backend.checks import integer, positive
from sdgpu.backend.sparse_rows import is_csr, with_column
from sdgpu.kernels.augmented_rows import Rows, chords, distance_rows, reciprocal_sine
from sdgpu.kernels.dot_product import unit_rows
from sdgpu.kernels.elementwise import asin, atan2, clip_, root, sqrt_, where
from sdgpu.kernels.kernel import Profile, lengthscales, scaled_rows

__all__ = ["NNGP", "NTK"]


class _WideLayer(NamedTuple):
    """One layer of pairs of rows: squared length of x, and of the angle before and after."""

    p: Any
    length: Any
    gap: Any
    sine: Any
    supplement: Any
    A: Any
    layer_gap: Any


class _ChordSlopes(NamedTuple):
    """Derivatives by the squared chord and by the squared length of x."""

    chord: Any
    length: Any


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
    takes_sparse = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", integer("depth", self.depth, 1))
        object.__setattr__(self, "weight_var", positive("weight_var", self.weight_var))
        object.__setattr__(self, "bias_var", positive("bias_var", self.bias_var, zero=True))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        values = scaled_rows(X, None, self.lengthscale) * math.sqrt(self.weight_var / X.shape[1])
        bias = math.sqrt(self.bias_var)
        if bias and is_csr(values):
            values = with_column(values, bias)
        elif bias:
            xp = compat.array_namespace(values)
            values = xp.concat([values, xp.full_like(values[:, :1], bias)], axis=1)
        unit, norms, largest = unit_rows(values)
        return unit, norms * largest * largest

    def rows(self, X: Any, centre: Any) -> Rows:
        unit, norms = self.coordinates(X, centre)
        return replace(distance_rows(unit), norms=norms)

    def _angles(self, tile: Any, p: Any, q: Any) -> Iterator[_WideLayer]:
        """The layers in turn, from squared chords of unit rows; p and q are the squared lengths."""
        w, b = self.weight_var, self.bias_var
        chord, across = chords(tile, marked=self.exact_opposite)
        opposite = across is not None  # of some pairs
        wide = opposite or _reaches(chord, 3.5)
        gap = chord / 2
        length = root(p) * root(q)  # p q may leave the range
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
            yield _WideLayer(p, length, gap, sine, supplement, A, layer_gap)
            A1, A2 = w / 2 * p, w / 2 * q
            p, q = A1 + b, A2 + b
            length = root(p) * root(q)
            gap = layer_gap
            if b:
                # sqrt((A1 + b)(A2 + b)) - A - b, again without cancellation
                difference = root(A1) - root(A2)
                gap = (b * difference * difference / (length + A + b) + A * layer_gap) / length
            gap = clip_(gap, 0.0, 2.0)

    def _layers(self, tile: Any, p: Any, q: Any) -> tuple[Any, Any]:
        """NNGP and NTK from squared chords of unit rows; p and q are the squared lengths."""
        w, b, tangent = self.weight_var, self.bias_var, None
        for layer in self._angles(tile, p, q):
            tangent = layer.length * (1 - layer.gap) if tangent is None else tangent
            S = layer.A * (1 - layer.layer_gap) + b
            tangent = S + (w / (2 * math.pi)) * layer.supplement * tangent
        return S, tangent

    def _layer_slopes(self, tile: Any, p: Any, q: Any) -> tuple[_ChordSlopes, _ChordSlopes]:
        """Their derivatives by the squared chord and by p.

        Of cos theta = 1 - gap derivatives stay finite: d(layer_gap) = (pi - theta) / pi d(gap), and with
        A1 = w p / 2, p' = A1 + b and cos theta' = (A (1 - layer_gap) + b) / L',

            d(gap') = (A d(layer_gap) + b (1 - A (1 - layer_gap) / A1) dp' / (2 p')) / L'.

        Only d(theta) = d(gap) / sin theta does not; it is 0 at the angles 0 and pi of the data.
        """
        w, b = self.weight_var, self.bias_var
        bend = reciprocal_sine(tile) if self.exact_opposite else None
        dp, gap, tangent, slopes = 1.0, _ChordSlopes(0.5, 0.0), None, _ChordSlopes(0.0, 0.0)
        for number, layer in enumerate(self._angles(tile, p, q)):
            L, A, cosine = layer.length, layer.A, 1 - layer.layer_gap
            grown = dp / (2 * layer.p)  # d L / L by the length of x alone
            if tangent is None:
                S = L * (1 - layer.gap)
                tangent, slopes = S, _ChordSlopes(-L / 2, S * grown)
            step = layer.supplement / math.pi
            inner = _ChordSlopes(step * gap.chord, step * gap.length)
            S = A * cosine + b
            S_slopes = _ChordSlopes(-A * inner.chord, A * cosine * grown - A * inner.length)
            if bend is not None:
                turn = bend if number == 0 else _reciprocal(layer.sine)
                turn = turn * (w / (2 * math.pi)) * tangent
                rate = (w / (2 * math.pi)) * layer.supplement
                slopes = _ChordSlopes(
                    S_slopes.chord + rate * slopes.chord - turn * gap.chord,
                    S_slopes.length + rate * slopes.length - turn * gap.length,
                )
                tangent = S + rate * tangent
            after, A1 = w / 2 * layer.p + b, w / 2 * layer.p
            dp = w / 2 * dp
            across = root(after) * root(w / 2 * q + b)
            gap = (
                _ChordSlopes(
                    A * inner.chord / across,
                    (A * inner.length + b * (1 - A * cosine / A1) * dp / (2 * after)) / across,
                )
                if b
                else inner
            )
            q = w / 2 * q + b
        return S_slopes, slopes

    @property
    def smooth_at_zero(self) -> bool:
        return self.bias_var > 0

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

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        return self._layer_slopes(tile, a_norms, b_norms)[0]

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

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        return self._layer_slopes(tile, a_norms, b_norms)[1]

    def diagonal(self, rows: Rows) -> Any:
        return self._diagonals(rows)[1]


def _reciprocal(sine: Any) -> Any:
    """1 / sine, 0 for 0."""
    xp, apart = compat.array_namespace(sine), sine > 0
    return xp.where(apart, 1 / xp.where(apart, sine, xp.ones_like(sine)), 0 * sine)


def _reaches(tile: Any, limit: float) -> bool:
    """Whether an entry is beyond the limit; of a lazy tensor of KeOps, or on a GPU, one may be."""
    if not compat.is_array_api_obj(tile) or lies_on_device(tile):
        return True
    return bool(compat.size(tile)) and float(compat.array_namespace(tile).max(tile)) > limit
