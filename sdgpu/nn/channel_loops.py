"""Machine code of the passes of batch norm over (b, C, ...) in memory, and of its vectors of C numbers.

Where torch needs dozens of small operations and a pass too many, each pass here reads its arrays once, sums
stay in registers, and what becomes of the vectors is one call. It all runs on the thread that calls it.

Memory is (outer, C, inner). With inner = 1 channels lie side by side in `outer` rows, which are worked on
in blocks that stay in the nearest cache; else a channel is a run of numbers in each of `outer` images.

Sums are of the dtype within a block or run, and of float64 over these. Their order depends on the sizes
alone, so that whatever is repeated has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import Any

from sdgpu.kernels.compiled.machine_code import (
    Array,
    Code,
    Machine,
    Variable,
    compiled,
    vector_lanes,
)
from sdgpu.kernels.compiled.vectors import Index, Vector

__all__ = ["LINES", "channel_loops"]

#: Vectors (C,) of a layer: mean, 1 / sqrt(variance + eps), weight times that, and bias; then the slope and
#: constant of what is linear in X - mean in the gradient. One more number is the count of all places.
LINES = 6
MEAN, INVERSE, SLOPE, SHIFT, GRADIENT_SLOPE, GRADIENT_SHIFT = range(LINES)
BLOCK = 4096  # numbers of a block of rows, which the nearest cache holds twice
RUN = 4096  # numbers of a run that are added up before they are added to others
AT_ONCE = 4  # vectors worked on at once: sums wait for each other
FIRST = 64  # numbers of a channel from which its mean is guessed
FAR = 4.0  # variances that the square of its error may be: five times the rounding

Terms = Callable[..., tuple[Vector, Vector]]


@cache
def channel_loops(dtype: str) -> Machine:
    """The compiled functions for a precision.

    moments(X, own, outer, C, inner)
        own (2C + 1,) becomes means and variances of the channels, and the number of places.
    statistics(parts, weight, bias, running_means, running_variances, lines, settings, ranks, C)
        From own of all ranks the lines, and the running statistics anew; settings are momentum and eps.
    normalise(X, Y, lines, outer, C, inner)
        Y becomes batch norm of X.
    gradient_sums(X, dY, lines, own, outer, C, inner)
        own (2, C) becomes the sums of dY times the normalised X, and of dY.
    gradient_lines(parts, lines, ranks, C)
        From own of all ranks the lines of the gradient.
    gradient(X, dY, dX, lines, outer, C, inner)
        dX becomes the gradient by X.
    """
    code = Code()
    _write_sums(code, dtype, "square_sums", ("X",), lambda x: (x, x * x))
    _write_sums(code, dtype, "product_sums", ("X", "dY"), lambda x, dy: (dy, x * dy))
    _write_moments(code, dtype)
    _write_statistics(code, dtype)
    _write_gradient_sums(code, dtype)
    _write_gradient_lines(code, dtype)

    def normal(params: list[Vector], x: Vector) -> Vector:
        mean, slope, shift = params
        return (x - mean).fma(slope, shift)

    def gradient(params: list[Vector], x: Vector, dy: Vector) -> Vector:
        mean, slope, by_x, constant = params
        return dy.fma(slope, (x - mean).fma(by_x, constant))

    kinds = dict.fromkeys(("X", "Y", "lines"), dtype)
    _write_map(code, "normalise", kinds, (MEAN, SLOPE, SHIFT), normal)
    kinds = dict.fromkeys(("X", "dY", "dX", "lines"), dtype)
    lines = (MEAN, SLOPE, GRADIENT_SLOPE, GRADIENT_SHIFT)
    _write_map(code, "gradient", kinds, lines, gradient)
    return compiled(str(code.module))


def _sizes(*names: str) -> dict[str, str]:
    return dict.fromkeys(names or ("outer", "C", "inner"), "index")


def _pieces(code: Code, length: Index, lanes: int) -> Iterator[tuple[Index, Index, int, int]]:
    """Start, stop, vectors at once and lanes of loops over numbers that lie side by side."""
    start = code.index(0)
    for count, width in ((AT_ONCE, lanes), (1, lanes), (1, 1)):
        stop = length // (count * width) * (count * width)
        yield start, stop, count, width
        start = stop


# Channels side by side.


@contextmanager
def _blocks(code: Code, outer: Index, C: Index) -> Iterator[tuple[Index, Index]]:
    """A loop over blocks of places: the first, and how many."""
    size = (code.index(BLOCK) // C) // AT_ONCE * AT_ONCE + 4 * AT_ONCE
    with code.loop(0, outer, size) as first:
        yield first, (outer - first).smaller(size)


def _turns(code: Code, places: Index, turns: int) -> Iterator[tuple[Index, Index, int]]:
    """Start, stop and step of loops over places: several at once, then those that are left."""
    whole = places // turns * turns
    yield code.index(0), whole, turns
    if turns > 1:
        yield whole, places, 1


def _vectors(memory: Array, place: Any, count: int, lanes: int) -> list[Vector]:
    return [memory.load(place + v * lanes, lanes) for v in range(count)]


def _row_sums(code: Code, given: dict[str, Any], memories: list[Array], terms: Terms) -> None:
    C, dtype = given["C"], memories[0].dtype
    with _blocks(code, given["outer"], C) as (first, places):
        blocks = [memory.at(first * C) for memory in memories]
        for start, stop, count, lanes in _pieces(code, C, vector_lanes(dtype)):
            turns = AT_ONCE // count
            with code.loop(start, stop, count * lanes) as c:
                shifts = _vectors(given["shifts"], c, count, lanes)
                sums = [_Sums(code, dtype, turns, lanes) for _ in range(count)]
                for begin, end, step in _turns(code, places, turns):
                    with code.loop(begin, end, step) as p:
                        for turn, v in product(range(step), range(count)):
                            place = (p + turn) * C + c + v * lanes
                            values = [block.load(place, lanes) for block in blocks]
                            sums[v].add(turn, terms(values[0] - shifts[v], *values[1:]))
                for v, k in product(range(count), range(2)):
                    given["sums"].add(C * k + c + v * lanes, sums[v].total(k))


def _row_map(code: Code, given: dict[str, Any], lines: list[Array], arrays: Any) -> None:
    (memories, out, value), C = arrays, given["C"]
    with _blocks(code, given["outer"], C) as (first, places):
        *blocks, result = (memory.at(first * C) for memory in (*memories, out))
        for start, stop, count, lanes in _pieces(code, C, vector_lanes(out.dtype)):
            turns = AT_ONCE // count
            with code.loop(start, stop, count * lanes) as c:
                own = [_vectors(line, c, count, lanes) for line in lines]
                for begin, end, step in _turns(code, places, turns):
                    with code.loop(begin, end, step) as p:
                        for turn, v in product(range(step), range(count)):
                            place = (p + turn) * C + c + v * lanes
                            values = [block.load(place, lanes) for block in blocks]
                            result.store(place, value([line[v] for line in own], *values))


# Channels as runs of numbers.


def _run_sums(code: Code, given: dict[str, Any], memories: list[Array], terms: Terms) -> None:
    C, dtype, lanes = given["C"], memories[0].dtype, vector_lanes(memories[0].dtype)
    with code.loop(0, C) as c:
        shift = given["shifts"].load(c)
        wide, single = (_Sums(code, "float64", 1, size) for size in (lanes, 1))
        with code.loop(0, given["outer"]) as b, code.loop(0, given["inner"], RUN) as first:
            place = (b * C + c) * given["stride"] + first
            runs = [memory.at(place) for memory in memories]
            length = (given["inner"] - first).smaller(RUN)
            sums = {size: _Sums(code, dtype, AT_ONCE, size) for size in (lanes, 1)}
            for start, stop, count, size in _pieces(code, length, lanes):
                with code.loop(start, stop, count * size) as j:
                    for v in range(count):
                        values = [run.load(j + v * size, size) for run in runs]
                        sums[size].add(v, terms(values[0] - shift.spread(size), *values[1:]))
            for total, size in ((wide, lanes), (single, 1)):
                total.add(0, (sums[size].total(0), sums[size].total(1)))
        for k in range(2):
            given["sums"].store(C * k + c, wide.total(k).sum() + single.total(k))


def _run_map(code: Code, given: dict[str, Any], lines: list[Array], arrays: Any) -> None:
    (memories, out, value), C = arrays, given["C"]
    with code.loop(0, given["outer"]) as b, code.loop(0, C) as c:
        place, own = (b * C + c) * given["inner"], [line.load(c) for line in lines]
        *runs, result = (memory.at(place) for memory in (*memories, out))
        for start, stop, count, lanes in _pieces(code, given["inner"], vector_lanes(out.dtype)):
            spread = [line.spread(lanes) for line in own]
            with code.loop(start, stop, count * lanes) as j:
                for v in range(count):
                    values = [run.load(j + v * lanes, lanes) for run in runs]
                    result.store(j + v * lanes, value(spread, *values))


# The functions.


class _Sums:
    """Two sums in registers, several of each that take turns."""

    def __init__(self, code: Code, dtype: str, count: int, lanes: int) -> None:
        zero = code.zeros(dtype, lanes)
        self._sums = [[Variable(code, zero) for _ in range(count)] for _ in range(2)]

    def add(self, turn: int, terms: tuple[Vector, Vector]) -> None:
        """Add to both."""
        for sums, term in zip(self._sums, terms, strict=True):
            sums[turn].set(sums[turn].value + term)

    def total(self, which: int) -> Vector:
        """One of the two, in float64."""
        values: list[Vector] = [one.value for one in self._sums[which]]
        while len(values) > 1:
            half = len(values) // 2
            values = [values[k] + values[k + half] for k in range(half)]
        return values[0].round_to("float64")


def _write_sums(code: Code, dtype: str, name: str, names: tuple[str, ...], terms: Terms) -> None:
    """A function of two sums over each channel, (2, C) in float64: of terms of X less a shift, and dY."""
    kinds = {**dict.fromkeys((*names, "shifts"), dtype), "sums": "float64"}
    given = code.function(name, **kinds, **_sizes("outer", "C", "inner", "stride"))
    with code.loop(0, given["C"] * 2) as c:
        given["sums"].store(c, code.zeros("float64", 1))
    memories = [given[one] for one in names]
    with code.either(given["stride"].compare("==", 1)) as (rows, runs):
        with rows:
            _row_sums(code, given, memories, terms)
        with runs:
            _run_sums(code, given, memories, terms)
    code.end()
    code.module.get_global(name).linkage = "internal"  # compiled once, where it is called


def _write_map(
    code: Code, name: str, kinds: dict[str, str], lines: tuple[int, ...], value: Any
) -> None:
    """A function that makes of each number, and of lines of its channel, the last of the arrays."""
    given = code.function(name, **kinds, **_sizes())
    *memories, out, rows_of_lines = (given[one] for one in kinds)
    own = [rows_of_lines.at(given["C"] * k) for k in lines]
    with code.either(given["inner"].compare("==", 1)) as (rows, runs):
        with rows:
            _row_map(code, given, own, (memories, out, value))
        with runs:
            _run_map(code, given, own, (memories, out, value))
    code.end()


def _channels(code: Code, C: Index, write: Callable[[Index, int], None]) -> None:
    """What is written for channels from an index on, in vectors of float64 and then one by one."""
    lanes = vector_lanes("float64")
    whole = C // lanes * lanes
    for start, stop, step in ((code.index(0), whole, lanes), (whole, C, 1)):
        with code.loop(start, stop, step) as c:
            write(c, step)


def _wide(memory: Array, place: Any, lanes: int) -> Vector:
    return memory.load(place, lanes).round_to("float64")


def _write_moments(code: Code, dtype: str) -> None:
    """Sums around a mean guessed from some of the numbers; if that was far off, again around the mean.

    So a mean that is large against what is around it costs no digit, and reading twice is rare.
    """
    given = code.function("moments", X=dtype, own=dtype, **_sizes())
    C, X, own = given["C"], given["X"], given["own"]
    outer, inner = given["outer"], given["inner"]
    sums = code.room("float64", (C * 2).value)
    far, n = Variable(code, code.index(1)), Variable(code, code.zeros("float64", 1))

    def guess(c: Index, lanes: int) -> None:
        """One that is not finite would make a mean NaN that is infinite."""
        mean = own.load(c, lanes)
        own.store(c, mean.where(mean - mean == 0.0, 0.0))

    def follow(c: Index, lanes: int) -> None:
        count = n.value.spread(lanes)
        off, mean = sums.load(c, lanes) / count, _wide(own, c, lanes)
        variance = sums.load(C + c, lanes) / count - off * off
        variance = variance.like(0.0).where(variance < 0.0, variance)
        own.store(c, (mean + off).round_to(dtype))
        own.store(C + c, variance.round_to(dtype))
        with code.when((off * off > variance * FAR).any()):
            far.set(code.index(1))

    with code.loop(0, C) as c:
        own.store(c, X.load(c * inner))
    rows, length = (Variable(code, code.index(1)) for _ in range(2))
    with code.either(inner.compare("==", 1)) as (beside, runs):
        with beside:
            rows.set(outer.smaller(FIRST))
        with runs:
            length.set(inner.smaller(FIRST))
    with code.loop(0, 3) as turn, code.when(far.value.compare("==", 1)):
        _channels(code, C, guess)
        n.set((rows.value * length.value).number("float64"))
        code.run("square_sums", X, own, sums, rows.value, C, length.value, inner)
        far.set(code.index(0))
        _channels(code, C, follow)
        with code.when(turn.compare("==", 0)):
            far.set(code.index(1))
        rows.set(outer)
        length.set(inner)
    own.store(C * 2, (outer * inner).number(dtype))
    code.end()


def _write_statistics(code: Code, dtype: str) -> None:
    """Means and variances of all ranks, merged in their order and without cancellation; what follows."""
    vectors = ("parts", "weight", "bias", "running_means", "running_variances", "lines")
    given = code.function(
        "statistics", **dict.fromkeys(vectors, dtype), settings="float64", **_sizes("ranks", "C")
    )
    C, parts, ranks, lines = given["C"], given["parts"], given["ranks"], given["lines"]
    momentum, eps = (given["settings"].load(k) for k in range(2))
    size, total = C * 2 + 1, Variable(code, code.zeros("float64", 1))
    with code.loop(0, ranks) as r:
        total.set(total.value + _wide(parts, r * size + C * 2, 1))
    n = total.value
    lines.store(C * LINES, n.round_to(dtype))

    def merge(c: Index, lanes: int) -> None:
        mean, variance = (Variable(code, code.zeros("float64", lanes)) for _ in range(2))
        with code.loop(0, ranks) as r:
            share = (_wide(parts, r * size + C * 2, 1) / n).spread(lanes)
            mean.set(share.fma(_wide(parts, r * size + c, lanes), mean.value))
        with code.loop(0, ranks) as r:
            share = (_wide(parts, r * size + C * 2, 1) / n).spread(lanes)
            apart = _wide(parts, r * size + c, lanes) - mean.value
            within = _wide(parts, r * size + C + c, lanes)
            variance.set(share.fma(apart.fma(apart, within), variance.value))
        inverse = 1.0 / (variance.value + eps.spread(lanes)).sqrt()
        slope = inverse * _wide(given["weight"], c, lanes)
        found = (mean.value, inverse, slope, _wide(given["bias"], c, lanes))
        for k, line in enumerate(found):
            lines.store(C * k + c, line.round_to(dtype))
        unbiased = variance.value * (n / (n - 1.0)).spread(lanes)
        for name, new in (("running_means", mean.value), ("running_variances", unbiased)):
            old = _wide(given[name], c, lanes)
            followed = (new - old).fma(momentum.spread(lanes), old)
            given[name].store(c, followed.round_to(dtype))

    _channels(code, C, merge)
    code.end()


def _write_gradient_sums(code: Code, dtype: str) -> None:
    arrays = dict.fromkeys(("X", "dY", "lines", "own"), dtype)
    given = code.function("gradient_sums", **arrays, **_sizes())
    C, lines, own = given["C"], given["lines"], given["own"]
    sums = code.room("float64", (C * 2).value)
    numbers = (given["outer"], C, given["inner"], given["inner"])
    code.run("product_sums", given["X"], given["dY"], lines.at(C * MEAN), sums, *numbers)

    def write(c: Index, lanes: int) -> None:
        scale = sums.load(C + c, lanes) * _wide(lines, C * INVERSE + c, lanes)
        own.store(c, scale.round_to(dtype))
        own.store(C + c, sums.load(c, lanes).round_to(dtype))

    _channels(code, C, write)
    code.end()


def _write_gradient_lines(code: Code, dtype: str) -> None:
    """dX = slope (dY - mean of dY - normalised X times the mean of dY times it)."""
    given = code.function("gradient_lines", parts=dtype, lines=dtype, **_sizes("ranks", "C"))
    C, parts, lines = given["C"], given["parts"], given["lines"]
    total = _wide(lines, C * LINES, 1)

    def write(c: Index, lanes: int) -> None:
        both = _Sums(code, "float64", 1, lanes)
        with code.loop(0, given["ranks"]) as r:
            own = parts.at(C * 2 * r)
            both.add(0, (_wide(own, c, lanes), _wide(own, C + c, lanes)))
        scale, mean = (both.total(k) / total.spread(lanes) for k in range(2))
        slope = _wide(lines, C * SLOPE + c, lanes)
        by_x = scale * slope * _wide(lines, C * INVERSE + c, lanes)
        lines.store(C * GRADIENT_SLOPE + c, (-by_x).round_to(dtype))
        lines.store(C * GRADIENT_SHIFT + c, (-(slope * mean)).round_to(dtype))

    _channels(code, C, write)
    code.end()
