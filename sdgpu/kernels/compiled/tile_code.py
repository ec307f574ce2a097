"""Machine code for a tile of a kernel: statistics of pairs of rows, and the kernel's own formula of them.

A kernel is a formula of one or several *parts* (:meth:`~sdgpu.kernels.kernel.Kernel.symbolic`), each a
:class:`~sdgpu.kernels.kernel.Profile` of one statistic. A statistic is a sum over features, of products of
augmented rows or of a term such as |x - x'|, in blocks of registers; pairs that need care are recomputed.
What the formula makes of them is written by running the profiles once on symbols.

The rows of all parts are handed over as a table of addresses
(:class:`~sdgpu.kernels.compiled.row_table.RowTable`), so that one code serves all data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from sdgpu.kernels.compiled.formula import Formula, Part
from sdgpu.kernels.compiled.machine_code import (
    KEPT,
    Array,
    Code,
    Machine,
    Variable,
    compiled,
    group_size,
    vector_lanes,
)
from sdgpu.kernels.compiled.vectors import Index, Mask, Vector
from sdgpu.kernels.coordinate_sums import TERMS

__all__ = [
    "FIELDS",
    "LEFT",
    "NORMS",
    "PACKED",
    "RIGHT",
    "SQUARES",
    "WIDTH",
    "TileCode",
    "tile_machine",
]

#: Entries of a part in a table of rows: addresses of the rows as left factor, as right factor, of the right
#: rows packed feature by feature in groups, of norms and of squares, and the width of a row.
FIELDS = 6
LEFT, RIGHT, PACKED, NORMS, SQUARES, WIDTH = range(FIELDS)
ROWS_AT_ONCE = 4  # with two vectors of columns eight sums in registers, and room for what is added


def tile_machine(formula: Formula, dtype: str, out: str) -> Machine | None:
    """The compiled function "tile" of a kernel (:class:`TileCode`).

    None where machine code cannot hold the formula (one that depends on its own values, or calls what no
    vector has), or where compiled code must not be run.
    """
    try:
        hash(formula)
    except TypeError:  # the user's own kernel, with a list for a parameter
        return _tile_machine.__wrapped__(formula, dtype, out)
    return _tile_machine(formula, dtype, out)


@lru_cache(maxsize=KEPT)
def _tile_machine(formula: Formula, dtype: str, out: str) -> Machine | None:
    code = Code()
    try:
        TileCode(code, formula, dtype, out)
        return compiled(str(code.module))
    except (TypeError, AttributeError, NotImplementedError, RuntimeError, OSError, MemoryError):
        return None


class TileCode:
    """Writes the functions of a kernel's tile into a :class:`Code`; "tile" is the one to call.

    It fills `out` (h, w) of stride `out_stride` with kernel values of the rows i0 .. of one table and the
    rows j0 .. of another, j0 a whole number of groups, in any precision. `same` is 1 where both are the
    same rows. `statistic` is room for (P, h, stride) numbers, w <= stride a whole number of groups.

    Parameters
    ----------
    code : Code
    formula : Formula
    dtype, out : {"float32", "float64"}
        Precision of the rows, and of the values.
    """

    def __init__(self, code: Code, formula: Formula, dtype: str, out: str) -> None:
        self.code, self.formula, self.dtype, self.out = code, formula, dtype, out
        self.parts = formula.parts
        self.careful = any(part.near or part.opposite for part in self.parts)
        for statistic in sorted({part.profile.statistic for part in self.parts}):
            self._write_sums(statistic)
        if self.careful:
            self._write_squared_sums()
        self._write_statistics()
        self._write_values()
        self._write_tile()

    def _value(self, given: dict[str, Any], r: Any, c: Any, statistics: list[Vector]) -> Vector:
        """Kernel values of row i0 + r with the rows from j0 + c on, from the statistics of the parts."""
        code, lanes = self.code, statistics[0].lanes

        def norms(side: str, at: Any, lanes: int, p: int) -> Vector:
            memory = code.address(given[side], p * FIELDS + NORMS, self.dtype)
            return memory.load(at, lanes).known(0.0, math.inf)

        def leaf(p: int, part: Part) -> Any:
            t = statistics[p]
            if part.profile.statistic in TERMS:  # terms >= 0
                t = t.known(0.0, math.inf)
            if not part.has_norms:
                return part.profile.profile(t, None, None)
            a_norms = norms("left", given["i0"] + r, 1, p).spread(lanes)
            return part.profile.profile(t, a_norms, norms("right", given["j0"] + c, lanes, p))

        return self.formula.value(leaf).round_to(self.out)

    def _begin(self, name: str) -> dict[str, Any]:
        numbers = ("i0", "j0", "h", "w", "same", "stride", "out_stride")
        kinds = {"left": "indices", "right": "indices", "statistic": self.dtype, "out": self.out}
        return self.code.function(name, **kinds, **dict.fromkeys(numbers, "index"))

    def _write_tile(self) -> None:
        """The tile by statistics and values; in one go where there is one part and no care is needed."""
        code, given = self.code, self._begin("tile")
        arguments = list(given.values())
        if len(self.parts) > 1 or self.careful:
            code.run("statistics", *arguments)
            code.run("values", *arguments)
        else:
            with code.either(given["same"].compare("!=", 0)) as (one, other):
                with one:
                    code.run("statistics", *arguments)
                    code.run("values", *arguments)
                with other:
                    self._write_at_once(given)
        code.end()

    def _write_values(self) -> None:
        """Kernel values of the statistics of a tile."""
        code, given = self.code, self._begin("values")
        room = given["h"] * given["stride"]
        lanes, group = vector_lanes(self.dtype), group_size(self.dtype)
        with code.loop(0, given["h"]) as r, code.loop(0, given["w"], group) as c0:
            values = []
            for c in (c0, c0 + lanes):
                place = r * given["stride"] + c
                parts = range(len(self.parts))
                statistics = [given["statistic"].load(room * p + place, lanes) for p in parts]
                values.append(self._value(given, r, c, statistics))
            self._store(given, r, c0, values)
        code.end()

    def _write_at_once(self, given: dict[str, Any]) -> None:
        """Values from the sums while these are in registers: additions and products then overlap."""
        code, dtype, (part,) = self.code, self.dtype, self.parts
        lanes = vector_lanes(dtype)
        width = code.address(given["left"], WIDTH)
        a = code.address(given["left"], LEFT, dtype).at(given["i0"] * width)
        b = code.address(given["right"], PACKED, dtype).at(given["j0"] * width)

        def finish(r: Any, c0: Index, sums: list[Vector]) -> None:
            places = [c0 + v * lanes for v in range(2)]
            values = [self._value(given, r, c, [one]) for c, one in zip(places, sums, strict=True)]
            self._store(given, r, c0, values)

        sizes = (given["h"], given["w"], width)
        _sums(code, part.profile.statistic, (a, b), sizes, finish)

    def _store(self, given: dict[str, Any], r: Any, c0: Index, values: list[Vector]) -> None:
        """Keep the values of a group of columns, of the last one those that are below the width."""
        code, lanes = self.code, vector_lanes(self.dtype)
        place, count = given["out"].at(r * given["out_stride"] + c0), given["w"] - c0
        with code.either(count.compare(">=", 2 * lanes)) as (whole, some):
            with whole:
                for v, value in enumerate(values):
                    place.store(v * lanes, value)
            with some:
                spill = code.room(self.out, 2 * lanes)
                for v, value in enumerate(values):
                    spill.store(v * lanes, value)
                with code.loop(0, count) as c:
                    place.store(c, spill.load(c))

    def _write_sums(self, statistic: str) -> None:
        """A function of the sums over features of a term of all pairs, (h, w) of stride."""
        code, dtype = self.code, self.dtype
        numbers = dict.fromkeys(("h", "w", "k", "stride"), "index")
        given = code.function(f"sums_{statistic}", a=dtype, packed=dtype, out=dtype, **numbers)

        def finish(r: Any, c0: Index, sums: list[Vector]) -> None:
            for v, one in enumerate(sums):
                place = r * given["stride"] + c0 + v * vector_lanes(dtype)
                given["out"].store(place, one)

        sizes = (given["h"], given["w"], given["k"])
        _sums(code, statistic, (given["a"], given["packed"]), sizes, finish)
        code.end()

    def _write_statistics(self) -> None:
        code, dtype, given = self.code, self.dtype, self._begin("statistics")
        i0, j0, h, w = (given[name] for name in ("i0", "j0", "h", "w"))
        for p, part in enumerate(self.parts):
            tile = given["statistic"].at(h * given["stride"] * p)
            width = code.address(given["left"], p * FIELDS + WIDTH)
            a = code.address(given["left"], p * FIELDS + LEFT, dtype).at(i0 * width)
            b = code.address(given["right"], p * FIELDS + PACKED, dtype).at(j0 * width)
            code.run(f"sums_{part.profile.statistic}", a, b, tile, h, w, width, given["stride"])
            if part.near or part.opposite:
                self._write_care(part, given, p, tile, width)
            if part.profile.distance:
                first = i0 - j0  # column of the diagonal
                with (
                    code.when(given["same"].compare("!=", 0)),
                    code.loop(0, h.smaller(w - first)) as r,
                ):
                    tile.store(r * given["stride"] + first + r, code.zeros(dtype, 1))
        code.end()

    def _write_care(
        self, part: Part, given: dict[str, Any], p: int, tile: Array, width: Index
    ) -> None:
        """Recompute the statistic of near and of nearly opposite pairs, as the passes over arrays do."""
        code, dtype = self.code, self.dtype
        limits, sign = np.finfo(dtype), part.profile.sign
        small = float(limits.eps) ** (1 / 3)

        def squares(side: str, at: Any, lanes: int) -> Vector:
            return code.address(given[side], p * FIELDS + SQUARES, dtype).load(at, lanes)

        def is_near(r: Any, c: Any, t: Vector) -> Mask:
            x = squares("left", given["i0"] + r, 1).spread(t.lanes)
            return t * sign < (x + squares("right", given["j0"] + c, t.lanes)) * small

        if part.near:
            self._recompute(
                "squared_distance", is_near, lambda found: found * sign, (given, p, tile, width)
            )
        if part.opposite:
            self._recompute(
                "squared_sum",
                lambda r, c, t: t > 4.0 * (1.0 - small),
                lambda found: -found.larger(float(limits.smallest_normal)),  # that 0 has a sign
                (given, p, tile, width),
            )

    def _recompute(
        self,
        name: str,
        condition: Callable[[Any, Any, Vector], Mask],
        finish: Callable[[Vector], Vector],
        place: tuple[dict[str, Any], int, Array, Index],
    ) -> None:
        code, (given, p, tile, width) = self.code, place
        a, b = (
            code.address(given[side], p * FIELDS + RIGHT, self.dtype).at(given[first] * width)
            for side, first in (("left", "i0"), ("right", "j0"))
        )
        with code.loop(0, given["h"]) as r:
            row = tile.at(r * given["stride"])
            lanes = vector_lanes(self.dtype)
            with (
                code.vectors(given["w"], self.dtype) as first,
                code.when(condition(r, first, row.load(first, lanes)).any()),
                code.loop(first, given["w"].smaller(first + lanes)) as c,
                code.when(condition(r, c, row.load(c)).any()),
            ):
                code.run(name, a.at(r * width), b.at(c * width), row.at(c), width - 2)
                row.store(c, finish(row.load(c)))

    def _write_squared_sums(self) -> None:
        """|x - x'|^2 and |x + x'|^2 of two rows, directly."""
        code, dtype = self.code, self.dtype
        for name, sign in (("squared_distance", -1.0), ("squared_sum", 1.0)):
            given = code.function(name, x=dtype, y=dtype, out=dtype, d="index")
            total = Variable(code, code.zeros(dtype, 1))
            with code.loop(0, given["d"]) as j:
                entry = given["x"].load(j) + given["y"].load(j) * sign
                total.set(entry.fma(entry, total.value))
            given["out"].store(0, total.value)
            code.end()


def _sums(
    code: Code,
    statistic: str,
    factors: tuple[Array, Array],
    sizes: tuple[Index, Index, Index],
    finish: Callable[[Any, Index, list[Vector]], None],
) -> None:
    """Sums over features of a term of all pairs, in blocks of registers: finish(row, column, two vectors).

    The right rows are packed, so that a vector holds one feature of several rows. What bounds it are the
    instructions of the terms: one for each vector of products, three for absolute differences.
    """
    (left, packed), (h, w, k) = factors, sizes
    lanes, group = vector_lanes(left.dtype), group_size(left.dtype)

    def add(total: Vector, x: Vector, y: Vector) -> Vector:
        return x.fma(y, total) if statistic == "product" else total + TERMS[statistic](x, y)

    whole = (h // ROWS_AT_ONCE) * ROWS_AT_ONCE
    with code.loop(0, w, group) as c0:
        panel = packed.at(c0 * k)
        for start, stop, rows in ((0, whole, ROWS_AT_ONCE), (whole, h, 1)):
            with code.loop(start, stop, rows) as r0:
                a, zero = left.at(r0 * k), code.zeros(left.dtype, lanes)
                sums = [[Variable(code, zero) for _ in range(2)] for _ in range(rows)]
                with code.loop(0, k) as j:
                    others = [panel.load(j * group + v * lanes, lanes) for v in range(2)]
                    for r, pair in enumerate(sums):
                        x = a.load(k * r + j).spread(lanes)
                        for total, y in zip(pair, others, strict=True):
                            total.set(add(total.value, x, y))
                for r, pair in enumerate(sums):
                    finish(r0 + r, c0, [total.value for total in pair])
