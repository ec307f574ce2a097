"""Products with a kernel on the CPU as one compiled loop, whatever its formula (extra ``fast``).

For each tile the loop makes the statistics of its parts, turns them into values a few rows at a time, and
multiplies these from both sides while they are in the nearest cache. It needs neither Python's lock, for
which the threads would queue six times a tile, nor a second pool of threads.

What bounds a pass is the count of its arithmetic instructions: a multiplication and addition for each
feature and two for each column, and 13 (float64: 15) instructions for the values of a Gaussian.

Import it where it is used: without llvmlite everything works by torch's own passes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.compiled.formula import formula_of
from sdgpu.kernels.compiled.machine_code import (
    Array,
    Code,
    Machine,
    Variable,
    compiled,
    group_size,
    vector_lanes,
)
from sdgpu.kernels.compiled.row_table import RowTable
from sdgpu.kernels.compiled.tile_code import tile_machine
from sdgpu.kernels.compiled.vectors import Index

__all__ = ["FusedProducts", "fused_products"]

STRIP = 16  # rows of a tile whose values are multiplied while they are in the nearest cache
ROWS_AT_ONCE, COLUMNS_AT_ONCE = 4, 4  # of K, and of the block it multiplies: 16 sums in registers


def fused_products(kernel: Kernel, rows: Rows, multiply: str) -> FusedProducts | None:
    """The compiled products of a kernel with blocks in the precision `multiply`; None where it has none.

    That is without a formula or with one that machine code cannot hold (a function of its own values), on
    another device than the CPU, or where compiled code must not be run.
    """
    if rows.sample.device.type != "cpu":
        return None
    found = formula_of(kernel, rows)
    if found is None:
        return None
    dtype = str(rows.sample.dtype).removeprefix("torch.")
    tile = tile_machine(found[0], dtype, multiply)
    return None if tile is None else FusedProducts(tile, RowTable(*found), dtype, multiply)


class FusedProducts:
    """Products with the kernel matrix of ready rows, on the CPU.

    Parameters
    ----------
    tile : Machine
        The compiled tile of the kernel, of rows in `dtype` and values in `multiply`.
    table : RowTable
    dtype, multiply : {"float32", "float64"}
        Precision of the rows, which evaluates, and of values and blocks when they are multiplied.
    """

    def __init__(self, tile: Machine, table: RowTable, dtype: str, multiply: str) -> None:
        self.dtype, self.multiply = dtype, multiply
        self._tile, self._table = tile, table
        self._share = _products(dtype, multiply).function("share", 18)

    def share(
        self,
        V: np.ndarray,
        tile: int,
        first: int,
        step: int,
        flag: np.ndarray,
        *,
        corner: int | None = None,
    ) -> np.ndarray:
        """Products of every step-th tile, from the first, with V (c, n) from both sides: (c, n) float64.

        Each pair of rows is in one of the tiles. Ends early when flag[0] is set. With a `corner` they are
        the pairs of one of the first so many rows and one of the others alone, a rectangle of K.
        """
        (c, n), group = V.shape, group_size(self.dtype)
        start, stop = (0, n) if corner is None else (corner, corner)
        tile = -(-min(tile, n) // group) * group  # tiles and blocks are whole groups wide
        wide = -(-n // group) * group
        block = np.zeros((c, wide), self.multiply)
        block[:, :n] = V
        high, low = np.zeros((n, c)), np.zeros((c, wide))
        statistic = np.empty(self._table.parts * STRIP * tile, self.dtype)
        values = np.empty(STRIP * tile, self.multiply)
        scratch = np.empty(2 * tile * c, self.multiply)  # the second half is written to, never read
        arrays = (block, high, low, statistic, values, scratch, flag)
        addresses = (array.ctypes.data for array in arrays)
        numbers = (n, wide, c, tile, first, step, 0, start, stop)
        self._share(self._table.address, self._tile.address("tile"), *addresses, *numbers)
        return low[:, :n] + high.T


@cache
def _products(dtype: str, multiply: str) -> Machine:
    """The loop over tiles, for every kernel: one in a process for each pair of precisions."""
    code = Code()
    _write_both_sides(code, multiply)
    _write_share(code, dtype, multiply)
    return compiled(str(code.module))


def _write_both_sides(code: Code, multiply: str) -> None:
    """Products of some rows K (h, w) of a tile with a block V (c, n) from both sides.

    high (h, c) grows by K right' and scratch (c, w) by left K. Sums over a row are in registers.
    """
    counts = dict.fromkeys(("h", "w", "n", "c", "stride"), "index")
    given = code.function(
        "both_sides",
        **dict.fromkeys(("K", "left", "right", "scratch"), multiply),
        high="float64",
        **counts,
    )
    h, c = given["h"], given["c"]
    rows, columns = (h // ROWS_AT_ONCE) * ROWS_AT_ONCE, (c // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE
    for r_start, r_stop, height in ((0, rows, ROWS_AT_ONCE), (rows, h, 1)):
        for q_start, q_stop, width in ((0, columns, COLUMNS_AT_ONCE), (columns, c, 1)):
            with code.loop(r_start, r_stop, height) as r, code.loop(q_start, q_stop, width) as q:
                _write_block(code, given, (r, height), (q, width))
    code.end()


def _write_block(code: Code, given: dict[str, Any], rows: Any, columns: Any) -> None:
    """The products of a few rows with a few columns: each value is used for all of them."""
    (r0, height), (q0, width) = rows, columns
    n, stride, multiply = given["n"], given["stride"], given["K"].dtype
    pairs = [(r, q) for r in range(height) for q in range(width)]
    weights = {(r, q): given["left"].load((q0 + q) * n + r0 + r) for r, q in pairs}
    lanes = vector_lanes(multiply)
    sums = {pair: Variable(code, code.zeros(multiply, lanes)) for pair in pairs}
    spread = {pair: weight.spread(lanes) for pair, weight in weights.items()}
    with code.vectors(given["w"], multiply) as column:
        K = [given["K"].load((r0 + r) * stride + column, lanes) for r in range(height)]
        for q in range(width):
            v = given["right"].load((q0 + q) * n + column, lanes)
            place = (q0 + q) * stride + column
            below = given["scratch"].load(place, lanes)
            for r in range(height):
                sums[r, q].set(K[r].fma(v, sums[r, q].value))
                below = K[r].fma(spread[r, q], below)
            given["scratch"].store(place, below)
    for (r, q), total in sums.items():
        place = (r0 + r) * given["c"] + q0 + q
        given["high"].add(place, total.value.sum().round_to("float64"))


def _write_share(code: Code, dtype: str, multiply: str) -> None:
    """All of a thread's tiles, (i, j) with j <= i in order, every step-th from the first."""
    kinds = {
        "table": "indices",
        "tile_code": "index",
        "V": multiply,
        "high": "float64",
        "low": "float64",
        "statistic": dtype,
        "values": multiply,
        "scratch": multiply,
        "flag": "bytes",
    }
    names = ("n", "wide", "c", "tile", "first", "step", "zero", "start", "stop")
    counts = dict.fromkeys(names, "index")
    given = code.function("share", **kinds, **counts)
    n, tile = given["n"], given["tile"]
    pair = Variable(code, given["zero"])
    # rows from `start` on, with columns up to `stop` or their own
    with (
        code.loop(given["start"], n, tile) as i0,
        code.loop(0, (i0 + 1).smaller(given["stop"]), tile) as j0,
    ):
        own = (pair.value % given["step"]).compare("==", given["first"])
        pair.set(pair.value + 1)
        stopped = code.builder.load(given["flag"])
        going = code.builder.icmp_signed("==", stopped, stopped.type(0))
        with code.when(own), code.when(going):
            _write_one_tile(code, given, i0, j0)
    code.end()


def _write_one_tile(code: Code, given: dict[str, Any], i0: Index, j0: Index) -> None:
    """Values of a whole tile, then products a few rows at a time.

    Of a tile on the diagonal those of a row and the rows before it, used on both sides, and the squares of
    a few rows, used on one.
    """
    n, wide, c, tile = (given[name] for name in ("n", "wide", "c", "tile"))
    V, values, scratch, table = (given[name] for name in ("V", "values", "scratch", "table"))
    h, w = (n - i0).smaller(tile), (given["stop"] - j0).smaller(tile)
    same = Index(code, code.builder.zext(i0.compare("==", j0), i0.value.type))
    _fill(scratch, c * tile)
    # of the last tiles some columns are beyond the rows: they have no values, and count as 0
    with code.when(w.compare("<", tile)):
        _fill(values, tile * STRIP)
    with code.loop(0, h, STRIP) as r:
        i, rows = i0 + r, (h - r).smaller(STRIP)
        before = w + same * (r - w)  # columns that count twice
        sizes = (i, j0, rows, before + same * rows, same, tile, tile)
        code.run_at(given["tile_code"], table, table, given["statistic"], values, *sizes)
        high, strides = given["high"].at(i * c), (wide, c, tile)
        code.run("both_sides", values, V.at(i), V.at(j0), scratch, high, rows, before, *strides)
        with code.when(same.compare("!=", 0)):
            unread = scratch.at(c * tile)
            arrays = (values.at(r), V.at(i), V.at(i), unread, high)
            code.run("both_sides", *arrays, rows, rows, *strides)
    with code.loop(0, c) as q:
        low, terms = given["low"].at(q * wide + j0), scratch.at(q * tile)
        with code.vectors(w, "float64") as place:
            low.add(place, terms.load(place, vector_lanes("float64")).round_to("float64"))


def _fill(memory: Array, count: Index) -> None:
    """Zeros."""
    code = memory.code
    with code.vectors(count, memory.dtype) as place:
        memory.store(place, code.zeros(memory.dtype, vector_lanes(memory.dtype)))
