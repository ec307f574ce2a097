"""The text of a Triton function with the values of a kernel, for a block of pairs of rows.

The rows of all parts of a kernel lie in two arrays a side (:mod:`sdgpu.operators.device_rows`): `rows`
(n, F), features side by side, which tensor cores multiply; and `columns` (S, n), coordinate by coordinate,
with what is a number for each row. A :class:`StatisticLayout` says what lies where.

The statistic of a part is made in one of three ways: by products of features on tensor cores; as a sum over
coordinates on the FMA units, of a term such as |x - x'|, or of (x - x')^2 where a distance must be exact
near 0 and features are few; or by products first, and for blocks of pairs with one that needs care (near,
or nearly opposite unit rows) by the sum too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.kernels.compiled.formula import Formula, Part
from sdgpu.kernels.compiled.source_numbers import SourceNumber, SourceText, polynomial_power
from sdgpu.kernels.coordinate_sums import TERMS

__all__ = ["DIRECT", "NAME", "Place", "StatisticLayout", "layout_of", "source_of"]

NAME = "values"
#: Up to so many features a sum over them is cheaper than a product padded to the tensor cores' 16.
DIRECT = 2
#: Up to so many, distances that must be exact near 0 are sums for all pairs: no block asks which are near.
DIRECT_NEAR = 16

_SELF = "(i + tl.arange(0, ROWS))[:, None] == (j + tl.arange(0, STEP))[None, :]"
_LIMITS = np.finfo(np.float32)
_SMALL = float(_LIMITS.eps) ** (1 / 3)
_HEAD = (
    f"@jit\ndef {NAME}(left, right, left_columns, right_columns, i, j, m, n, ROWS: tl.constexpr, "
    "STEP: tl.constexpr, SAME: tl.constexpr, SPLIT: tl.constexpr, POLYNOMIAL: tl.constexpr):"
)


@dataclass(frozen=True)
class Place:
    """Where a part lies: -1 is nowhere.

    Attributes
    ----------
    d : int
        Its features, without augmentation.
    first, width : int
        Its first feature in `rows`, and how many there are with padding; of no width without products.
    coordinates, squares, norms : int
        Rows of `columns`: the first of d coordinates, |x|^2 of the statistic, |x|^2 of the profile.
    """

    d: int
    first: int = -1
    width: int = 0
    coordinates: int = -1
    squares: int = -1
    norms: int = -1


@dataclass(frozen=True)
class StatisticLayout:
    """Where the parts of a formula lie, and the sizes of both arrays."""

    places: tuple[Place, ...]
    features: int
    columns: int


def layout_of(formula: Formula, widths: tuple[int, ...]) -> StatisticLayout:
    """The layout of parts with so many features each, augmentation not counted."""
    places, features, columns = [], 0, 0
    for part, d in zip(formula.parts, widths, strict=True):
        place = {"d": d}
        products = _has_products(part, d)
        if products:
            place["first"], place["width"] = features, _padded_width(d)
            features += place["width"]
        if not products or part.near or part.opposite:
            place["coordinates"], columns = columns, columns + d
        if part.profile.statistic == "product" and part.profile.distance and products:
            place["squares"], columns = columns, columns + 1
        if part.has_norms:
            place["norms"], columns = columns, columns + 1
        places.append(Place(**place))
    return StatisticLayout(tuple(places), features, columns)


def _has_products(part: Part, d: int) -> bool:
    if part.profile.statistic in TERMS or d <= DIRECT:
        return False
    return not (part.near and part.profile.distance and d <= DIRECT_NEAR)


def _padded_width(d: int) -> int:
    """A multiple of 16, which is that of a product of 16-bit halves; of 32 beyond it, of slices."""
    return 16 if d <= 16 else -(-d // 32) * 32


def source_of(formula: Formula, layout: StatisticLayout) -> str:
    """The function `values` of a block (ROWS, STEP) of kernel values in float32.

    Its arguments are the arrays of both sides, the first row of the block on each side, how many rows there
    are, and constants: the size of the block, whether both sides are the same rows (then distances of a row
    to itself are 0), how products are split, and how many eighths of the powers are polynomials.

    Raises
    ------
    TypeError, AttributeError, NotImplementedError
        For a formula that cannot be written down.
    """
    source = SourceText(_HEAD)
    source.line("m, n = m.to(tl.int64), n.to(tl.int64)")

    def leaf(p: int, part: Part) -> Any:
        place = layout.places[p]
        low = 0.0 if part.profile.statistic in TERMS else -np.inf
        _write_statistic(source, part, place, p, layout)
        t = SourceNumber(source, source.assign(f"t{p}", f"s{p}"), low)
        if not part.has_norms:
            return part.profile.profile(t, None, None)
        pair = (
            SourceNumber(source, _column(source, side, place.norms), 0.0, tile=False)
            for side in ("left", "right")
        )
        return part.profile.profile(t, *pair)

    value = formula.value(leaf)
    if not isinstance(value, SourceNumber) or not value.tile:
        raise TypeError("its values do not depend on the rows")
    source.line(f"return {value.text}")
    text = str(source)
    return f"{polynomial_power()}\n\n{text}" if "polynomial_power" in text else text


def _column(source: SourceText, side: str, number: int | str) -> str:
    """A number for each row of one side, as a column of the block or as a row of it."""
    place, size, turned = {
        "left": ("m + i", "ROWS", "[:, None]"),
        "right": ("n + j", "STEP", "[None, :]"),
    }[side]
    # one address for all threads, to which each adds its own place
    start = f"{side}_columns + ({number} * {place})"
    return source.assign(f"tl.load({start} + tl.arange(0, {size})){turned}")


def _write_statistic(
    source: SourceText, part: Part, place: Place, p: int, layout: StatisticLayout
) -> None:
    """Lines for the statistic of part p, the variable t<p>."""
    name, profile = f"t{p}", part.profile
    distance = profile.statistic == "product" and profile.distance
    if not place.width:
        kind = profile.statistic if not distance else "squared_distance"
        _write_sum(source, place, name, kind)
        if distance and profile.sign != 1.0:
            source.assign(f"{name} * {float(profile.sign)!r}", name)
    else:
        sizes = f"{layout.features}, {place.first}, {place.width}"
        source.assign(f"inner_products(left, right, i, j, {sizes}, ROWS, STEP, SPLIT)", name)
        if distance:
            _write_distance(source, part, place, name)
    if part.opposite:
        _write_opposite(source, place, name)
    if profile.distance:
        with source.block("if SAME:"):
            source.assign(f"tl.where({_SELF}, 0.0, {name})", name)


def _write_distance(source: SourceText, part: Part, place: Place, name: str) -> None:
    """sign |x - x'|^2 from x . x', near 0 by the direct sum where it must be exact."""
    sign = float(part.profile.sign)
    squares = " + ".join(_column(source, side, place.squares) for side in ("left", "right"))
    total = source.assign(squares)
    # fma, not +: a sum would become the start of the tensor cores' accumulator, which truncates
    term = total if sign == 1.0 else f"-{total}" if sign == -1.0 else f"{total} * {sign!r}"
    source.assign(f"tl.fma({name}, {-2.0 * sign!r}, {term})", name)
    if part.near:
        near = source.assign(f"{name} * {sign!r} < {total} * {_SMALL!r}")
        with source.block(f"if any_of({near}):"):
            _write_sum(source, place, "direct", "squared_distance")
            source.assign(f"tl.where({near}, direct * {sign!r}, {name})", name)


def _write_opposite(source: SourceText, place: Place, name: str) -> None:
    """-|u + u'|^2 < 0 of nearly opposite unit rows, as :func:`augmented_rows.mark_opposite` has it."""
    across = source.assign(f"{name} > {4.0 * (1.0 - _SMALL)!r}")
    with source.block(f"if any_of({across}):"):
        _write_sum(source, place, "direct", "squared_sum")
        smallest = float(_LIMITS.smallest_normal)  # that 0 has a sign
        source.assign(f"tl.where({across}, -tl.maximum(direct, {smallest!r}), {name})", name)


def _write_sum(source: SourceText, place: Place, name: str, kind: str) -> None:
    """The sum over coordinates of a term of x and y."""
    source.assign("tl.zeros((ROWS, STEP), tl.float32)", name)
    with source.block(f"for k in range({place.d}):"):
        row = f"({place.coordinates} + k)"
        x, y = (
            SourceNumber(source, _column(source, side, row), tile=True)
            for side in ("left", "right")
        )
        if kind in TERMS:
            nonnegative = kind != "l1"
            x, y = (one.known(0.0 if nonnegative else -np.inf, np.inf) for one in (x, y))
            source.assign(f"{name} + {TERMS[kind](x, y).text}", name)
        elif kind == "product":
            source.assign(f"tl.fma({x.text}, {y.text}, {name})", name)
        else:
            sign = "+" if kind == "squared_sum" else "-"
            entry = source.assign(f"{x.text} {sign} {y.text}")
            source.assign(f"tl.fma({entry}, {entry}, {name})", name)
