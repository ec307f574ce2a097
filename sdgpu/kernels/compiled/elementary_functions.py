"""Powers, logarithms and angles of vectors of numbers, as polynomials that machine code evaluates.

Written with the operators of :class:`~sdgpu.kernels.compiled.symbols.Symbol`. The polynomials interpolate
at Chebyshev nodes; their errors are below half a unit in the last place, so what is left is rounding.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["atan2", "exp2", "log2", "power"]

#: 2^f on [-1/2, 1/2], lowest power first.
_EXP2 = {
    "float32": (
        1.0,
        0.6931472067028326,
        0.24022650922288757,
        0.05550327226670302,
        0.009618056678524637,
        0.0013400428177615838,
        0.0001546144469856913,
    ),
    "float64": (
        1.0,
        0.6931471805599453,
        0.24022650695910158,
        0.055504108664821625,
        0.009618129107587256,
        0.001333355814640647,
        0.00015403530463724353,
        1.5252733841556773e-05,
        1.3215432535912375e-06,
        1.0178057087733941e-07,
        7.074194297288521e-09,
        4.4558179083360645e-10,
    ),
}
#: (2^f - 1) / f on [-1/32, 1/32].
_EXP2_NEAR = (
    0.6931471805599468,
    0.24022650695910086,
    0.05550410865209357,
    0.009618129106525682,
    0.001333381881538924,
    0.0001540375624545771,
)
#: log2((1 + s) / (1 - s)) / s in s^2, for (1 + s) / (1 - s) between 1 / sqrt(2) and sqrt(2).
_LOG2 = {
    "float32": (2.8853900798033365, 0.96179883880211, 0.5767151860190234, 0.43171769745887384),
    "float64": (
        2.8853900817779268,
        0.9617966939259898,
        0.5770780163455203,
        0.4121985858409005,
        0.32059853491395984,
        0.262334352504183,
        0.2209130842311768,
        0.2136589569431927,
    ),
}
#: atan(z) / z in z^2, on [0, 1].
_ATAN = {
    "float32": (
        0.9999999995535376,
        -0.33333322488911593,
        0.19999558100363982,
        -0.14278576024807985,
        0.1105077127584966,
        -0.08785043282362845,
        0.06685281517877424,
        -0.04392841073326746,
        0.021912945865448393,
        -0.007030669470424213,
        0.001057607438057242,
    ),
    "float64": (
        1.0,
        -0.3333333333333286,
        0.19999999999929946,
        -0.14285714281592693,
        0.11111110982087126,
        -0.09090906605656898,
        0.0769227555520563,
        -0.06666371187721098,
        0.05880342002401543,
        -0.052527255573225747,
        0.04719723992321112,
        -0.042125723963855326,
        0.03651081352721035,
        -0.02970071773623423,
        0.021740213830758134,
        -0.013674139288399478,
        0.007038646202989813,
        -0.0028047655531701315,
        0.0008033604181626027,
        -0.00014617088163625013,
        1.2631178430477426e-05,
    ),
}
#: Adding it rounds to a whole number, which is then in the lowest bits.
_ROUND = {"float32": 1.5 * 2.0**23, "float64": 1.5 * 2.0**52}
#: Exponent of the smallest normal number.
_LOWEST = {"float32": -126, "float64": -1022}


def polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    """Horner's rule, a fused multiplication and addition for each coefficient."""
    value = x.like(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value.fma(x, coefficient)
    return value


def exp2(t: Any) -> Any:
    """2^t; exactly 0 below the smallest normal number, for denormal numbers halve the speed.

    t is split as n + f with |f| <= 1/2: n goes into the bits of the exponent. Where registers hold a table
    of 2^(k / 16) it is n + k / 16 + f with |f| <= 1/32, whose polynomial has half the length. What is
    known about t saves the check for overflow.
    """
    dtype, lowest = t.dtype, _LOWEST[t.dtype]
    largest = 2.0 - lowest  # 2^largest is infinite
    t_low = t
    if not t.high < largest:
        t_low = t.clip(None, largest)
    steps = t.steps if t.high < largest - 1.0 else 1  # what is nearest stays finite
    rounder = t.like(_ROUND[dtype] / steps)
    shifted = t_low + rounder
    f = (rounder - shifted) + t_low  # of -s one operation less than t - (shifted - rounder)
    if steps == 1:
        value = polynomial(f, _EXP2[dtype]).times_power(shifted)
    else:
        nearest = shifted.nearest_power()
        value = (f * polynomial(f, _EXP2_NEAR)).fma(nearest, nearest)
    if not t.low >= lowest:
        value = value.like(0.0).where(t < float(lowest), value)  # NaN stays NaN
    high = 2.0**t.high if t.high < largest else math.inf
    return value.known(0.0, high)


def log2(x: Any) -> Any:
    """Logarithm to the base 2 of normal numbers > 0."""
    n, m = x.split_power()
    s = (m - 1.0) / (m + 1.0)
    return (s * polynomial(s * s, _LOG2[x.dtype]) + n).known(-math.inf, math.inf)


def power(x: Any, exponent: float) -> Any:
    """x^exponent: by products for whole exponents, for others of x > 0 by 2^(exponent log2 x)."""
    if exponent == 0.5:
        return x.sqrt()
    if exponent != int(exponent) or abs(exponent) > 64:
        return exp2(log2(x) * exponent)
    whole, square, result = abs(int(exponent)), x, None
    while whole:
        if whole % 2:
            result = square if result is None else result * square
        whole //= 2
        if whole:
            square = square * square
    if result is None:
        return x.like(1.0)
    if int(exponent) % 2 == 0:
        result = result.known(0.0, math.inf)
    return 1.0 / result if exponent < 0 else result


def atan2(y: Any, x: Any) -> Any:
    """Angle of the point (x, y) in [-pi, pi]; of the origin 0."""
    across, along = abs(y), abs(x)
    larger, smaller = across.larger(along), across.smaller(along)
    z = smaller / larger.clip(2.0 ** _LOWEST[y.dtype], None)
    angle = z * polynomial(z * z, _ATAN[y.dtype])
    angle = (math.pi / 2 - angle).where(across > along, angle)
    if not x.low >= 0:
        angle = (math.pi - angle).where(x < 0.0, angle)
    if not y.low >= 0:
        angle = (-angle).where(y < 0.0, angle)
        return angle.known(-math.pi, math.pi)
    return angle.known(0.0, math.pi)
