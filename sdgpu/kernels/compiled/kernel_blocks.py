"""Blocks of kernel values in memory by machine code: Gram matrices, and those between two sets of rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.threads import cores
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.compiled.formula import formula_of
from sdgpu.kernels.compiled.machine_code import Code, Machine, Variable, compiled, vector_lanes
from sdgpu.kernels.compiled.row_table import RowTable
from sdgpu.kernels.compiled.tile_code import tile_machine
from sdgpu.kernels.compiled.vectors import Vector
from sdgpu.kernels.kernel import Kernel

__all__ = ["fill_block", "fill_gram"]

TILE = 256  # rows of a tile: half of a core's second cache in float64
STRIP = 16  # rows of a tile on the diagonal
STRIDE = TILE + 16  # from row to row of one that is turned: columns lie in different sets


def fill_gram(kernel: Kernel, rows: Rows, out: Any) -> bool:
    """Write the Gram matrix of ready rows into `out` (n, n), each pair computed once; False if it cannot.

    On as many threads as torch, or OMP_NUM_THREADS, allows. n^2 / 2 kernel values, and n^2 numbers written.
    """
    return _fill("gram", kernel, (rows, rows), out)


def fill_block(kernel: Kernel, a: Rows, b: Rows, out: Any) -> bool:
    """Write the kernel values of two sets of ready rows into `out` (m, n); False if it cannot."""
    return _fill("block", kernel, (a, b), out)


def _fill(name: str, kernel: Kernel, both: tuple[Rows, Rows], out: Any) -> bool:
    host = to_numpy(out)
    dtype = host.dtype.name
    if dtype not in ("float32", "float64") or not host.flags.c_contiguous:
        return False
    left, right = _alike(*both), _alike(*reversed(both))
    found = [formula_of(kernel, rows) for rows in (left, right)]
    if found[0] is None or found[1] is None:
        return False
    formula = found[0][0]
    tile = tile_machine(formula, dtype, dtype)
    if tile is None:
        return False
    tables = [RowTable(*found[0])]
    if name == "block":
        tables.append(RowTable(*found[1]))
    addresses = [tables[0].address, tables[-1].address, tile.address("tile")]
    run, (m, n) = _blocks(dtype).function(name, 10), host.shape
    workers = min(cores(), -(-m // TILE) * -(-n // TILE))

    def work(first: int) -> None:
        room = len(formula.parts) * TILE * TILE
        scratch = np.empty(room + (TILE * STRIDE if name == "gram" else 0), dtype)
        sizes = (room if name == "gram" else m, n, first, workers, 0)
        run(*addresses, scratch.ctypes.data, host.ctypes.data, *sizes)

    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    elif workers:
        work(0)
    return True


def _alike(a: Rows, b: Rows) -> Rows:
    """Rows a that are taken for far from their centre where those of b are."""
    parts = tuple(_alike(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    return replace(a, parts=parts, far=a.far or b.far)


@cache
def _blocks(dtype: str) -> Machine:
    """The loops over tiles, for every kernel: one in a process for each precision."""
    code = Code()
    _write_mirror(code, dtype)
    _write_copy(code, dtype)
    _write_gram(code, dtype)
    _write_block(code, dtype)
    return compiled(str(code.module))


def _begin(code: Code, name: str, dtype: str) -> dict[str, Any]:
    numbers = dict.fromkeys(("m", "n", "first", "step", "zero"), "index")
    kinds = {"left": "indices", "right": "indices", "tile_code": "index"}
    return code.function(name, **kinds, statistic=dtype, out=dtype, **numbers)


def _write_block(code: Code, dtype: str) -> None:
    """Every step-th tile from the first, where it belongs."""
    given = _begin(code, "block", dtype)
    m, n, count = given["m"], given["n"], Variable(code, given["zero"])
    with code.loop(0, m, TILE) as i, code.loop(0, n, TILE) as j:
        own = (count.value % given["step"]).compare("==", given["first"])
        count.set(count.value + 1)
        with code.when(own):
            place = given["out"].at(i * n + j)
            _run_tile(
                code, given, place, (i, j, 0), ((m - i).smaller(TILE), (n - j).smaller(TILE), n)
            )
    code.end()


def _write_gram(code: Code, dtype: str) -> None:
    """Every step-th tile (i, j), j <= i, from the first: made in the cache, then written to both places."""
    given = _begin(code, "gram", dtype)
    n, out, count = given["n"], given["out"], Variable(code, given["zero"])
    made = given["statistic"].at(given["m"])  # room for values, beyond that for statistics
    with code.loop(0, n, TILE) as i, code.loop(0, i + 1, TILE) as j:
        own = (count.value % given["step"]).compare("==", given["first"])
        count.set(count.value + 1)
        with code.when(own):
            h, w = (n - i).smaller(TILE), (n - j).smaller(TILE)
            with code.either(i.compare("==", j)) as (diagonal, below):
                with diagonal:
                    with code.loop(0, h, STRIP) as r:  # each with the columns up to its own
                        rows, strip = (h - r).smaller(STRIP), made.at(r * STRIDE)
                        _run_tile(code, given, strip, (i + r, j, 1), (rows, r + rows, STRIDE))
                    with code.loop(0, h) as r, code.loop(0, r) as c:
                        made.store(c * STRIDE + r, made.load(r * STRIDE + c))
                with below:
                    _run_tile(code, given, made, (i, j, 0), (h, w, STRIDE))
                    code.run("mirror", made, out.at(j * n + i), h, w, n)
            code.run("copy", made, out.at(i * n + j), h, w, n)
    code.end()


def _run_tile(code: Code, given: dict[str, Any], out: Any, place: Any, sizes: Any) -> None:
    (i, j, same), (h, w, stride) = place, sizes
    tables = (given["left"], given["right"], given["statistic"])
    numbers = map(code.index, (i, j, h, w, same, TILE, stride))
    code.run_at(given["tile_code"], *tables, out, *numbers)


def _write_copy(code: Code, dtype: str) -> None:
    """out (h, w) with a stride becomes the tile (h, w)."""
    given = code.function("copy", tile=dtype, out=dtype, h="index", w="index", stride="index")
    lanes = vector_lanes(dtype)
    whole = (given["w"] // lanes) * lanes
    with code.loop(0, given["h"]) as r:
        row, out = given["tile"].at(r * STRIDE), given["out"].at(r * given["stride"])
        with code.loop(0, whole, lanes) as c:
            out.store(c, row.load(c, lanes))
        with code.loop(whole, given["w"]) as c:
            out.store(c, row.load(c))
    code.end()


def _write_mirror(code: Code, dtype: str) -> None:
    """out (w, h) with a stride becomes the transpose of the tile (h, w), squares of it in registers."""
    given = code.function("mirror", tile=dtype, out=dtype, h="index", w="index", stride="index")
    tile, out, stride = given["tile"], given["out"], given["stride"]
    lanes = vector_lanes(dtype)
    high, wide = ((given[name] // lanes) * lanes for name in "hw")
    with code.loop(0, wide, lanes) as c, code.loop(0, high, lanes) as r:
        rows = [tile.load((r + k) * STRIDE + c, lanes) for k in range(lanes)]
        for k, column in enumerate(_turned(rows)):
            out.store((c + k) * stride + r, column)

    def copy(r0: Any, r1: Any, c0: Any, c1: Any) -> None:
        with code.loop(r0, r1) as r, code.loop(c0, c1) as c:
            out.store(c * stride + r, tile.load(r * STRIDE + c))

    copy(high, given["h"], 0, given["w"])
    copy(0, high, wide, given["w"])
    code.end()


def _turned(rows: list[Vector]) -> list[Vector]:
    """The columns of a square of numbers in registers, by exchanges of ever smaller quarters."""
    lanes, rows = len(rows), list(rows)
    distance = lanes // 2
    while distance:
        for k in range(lanes):
            if not k & distance:
                a, b = rows[k], rows[k + distance]
                first = [q if not q & distance else lanes + q - distance for q in range(lanes)]
                second = [q + distance if not q & distance else lanes + q for q in range(lanes)]
                rows[k], rows[k + distance] = a.shuffle(b, first), a.shuffle(b, second)
        distance //= 2
    return rows
