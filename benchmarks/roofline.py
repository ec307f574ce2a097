"""What the fused product should reach on an H100, on paper: `python -m benchmarks.roofline`.

The instructions of a pair of rows are counted in the code that the compiler makes for sm_90
(:mod:`benchmarks.device_code`), and each unit of a multiprocessor is given what it can do in a clock. The
slowest is the bound. Nothing is run: no GPU is needed, and none has confirmed it.

Rates of an H100 SXM, by NVIDIA's whitepaper and the programming guide: 132 multiprocessors, 1.755 GHz; in
a clock 4 instructions of 32 threads, 16 special functions (powers, roots, reciprocals: 3.7e12 a second), 32
loads of a thread from the nearest memory, 1,024 TF32 products and additions on tensor cores, 128 in
float64; 5.5e12 bytes a second from the second-level cache, as others have measured. Latencies, and what
units do to each other, are not in it: 0.7 of it would be good.

``--check`` compiles every variant for sm_80, sm_90 and sm_100 and fails where registers are spilled in the
long loop, or a program has more shared memory than the chip.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.device_code import LIMITS, Compiled, compiled, variant
from sdgpu import (
    NTK,
    ArcCosine,
    ChiSquared,
    Gaussian,
    HistogramIntersection,
    Laplacian,
    Linear,
    Matern,
    Periodic,
    Polynomial,
    RationalQuadratic,
    SpectralMixture,
    Tanimoto,
)
from sdgpu.kernels import Kernel
from sdgpu.kernels.compiled.formula import Formula
from sdgpu.operators.device_source import StatisticLayout, source_of

__all__ = ["UNITS", "VARIANTS", "Bound", "bound_of", "main"]

MULTIPROCESSORS, CLOCK = 132, 1.755e9
#: Clocks of a multiprocessor for one: an instruction of a thread, a special function, a load, a product.
UNITS = {
    "issue": 1 / 128,
    "special": 1 / 16,
    "loads": 1 / 32,
    "tensor": 1 / 1024,
    "tensor64": 1 / 128,
    "cache": MULTIPROCESSORS * CLOCK / 5.5e12,
}
#: Loads and stores of registers in a turn of hundreds of instructions: what the assembler may trade for one
#: program more on a multiprocessor.
SPILLS = 8
_LOADS = ("LDG", "LDS", "STS", "SHFL", "LDGSTS", "LDSM")

_MIXTURE = SpectralMixture([1.0, 0.5], means=[[0.1, 0.2], [0.5, 0.5]], variances=[[0.1, 0.1]] * 2)
#: Kernels, features and columns of the table, and what multiplies.
VARIANTS: list[tuple[str, Kernel, int, int, str]] = [
    *(("Gaussian", Gaussian(), d, c, "tf32x3") for d in (10, 50, 784, 1024) for c in (1, 16, 32)),
    ("Gaussian, mixed", Gaussian(), 10, 1, "float64"),
    ("Gaussian, mixed", Gaussian(), 10, 32, "float64"),
    *(("Matern 3/2", Matern(1.5), d, c, "tf32x3") for d in (10, 784) for c in (1, 32)),
    *(("Matern 1/2", Matern(0.5), d, c, "tf32x3") for d in (10, 50) for c in (1, 32)),
    *(("RationalQuadratic", RationalQuadratic(0.7), 10, c, "tf32x3") for c in (1, 32)),
    *(("Periodic", Periodic(), 10, c, "tf32x3") for c in (1, 32)),
    *(("Laplacian", Laplacian(), d, c, "tf32x3") for d in (10, 100) for c in (1, 16, 32)),
    *(("ChiSquared", ChiSquared(), 100, c, "tf32x3") for c in (1, 32)),
    *(("HistogramIntersection", HistogramIntersection(), 100, c, "tf32x3") for c in (1, 32)),
    *(("Linear", Linear(), 50, c, "tf32x3") for c in (1, 32)),
    *(("Polynomial 3", Polynomial(3), 50, c, "tf32x3") for c in (1, 32)),
    *(("Tanimoto", Tanimoto(), 784, c, "tf32x3") for c in (1, 32)),
    *(("ArcCosine 1", ArcCosine(1), 50, c, "tf32x3") for c in (1, 32)),
    *((f"NTK, depth {depth}", NTK(depth), 50, c, "tf32x3") for depth in (1, 3) for c in (1, 32)),
    *(("Gaussian + Laplacian", Gaussian() + Laplacian(), 10, c, "tf32x3") for c in (1, 32)),
    *(("Gaussian x Matern 3/2", Gaussian() * Matern(1.5), 50, c, "tf32x3") for c in (1, 32)),
    *(("SpectralMixture 2 x 2", _MIXTURE, 2, c, "tf32x3") for c in (1, 32)),
]


@dataclass(frozen=True)
class Bound:
    """Clocks of a multiprocessor for each pair of rows, by unit."""

    clocks: dict[str, float]

    @property
    def unit(self) -> str:
        """The one that takes longest."""
        return max(self.clocks, key=lambda unit: self.clocks[unit])

    @property
    def pairs(self) -> float:
        """Pairs of rows in a second."""
        return MULTIPROCESSORS * CLOCK / self.clocks[self.unit]


def trips_of(formula: Formula, layout: StatisticLayout) -> Iterator[float]:
    """How often loops over features run in a turn, in the order of the text; those of care hardly do."""
    for part, place in zip(formula.parts, layout.places, strict=True):
        if place.width > 64:
            yield place.width / 32 - 1
        if not place.width:
            yield float(place.d)
        elif part.near:
            yield 0.0
        if part.opposite:
            yield 0.0


def bytes_per_pair(code: Compiled, layout: StatisticLayout, kind: str) -> float:
    """From the second-level cache: what a step loads serves all rows of a program.

    Features in more than two slices do not fit a multiprocessor: the program's own rows come again.
    """
    shape, numbers = code.shape, layout.columns
    size = 8 if kind != "ieee" else 4
    block = shape.columns * (4 if shape.columns == 1 and kind != "float64" else 8)
    right = size * layout.features + 4 * numbers + block
    again = size * sum(place.width for place in layout.places if place.width > 64)
    return right / shape.rows + again / shape.step


def bound_of(code: Compiled, what: tuple[Formula, StatisticLayout], kind: str) -> Bound:
    """The roofline of a program for sm_90."""
    trips = list(trips_of(*what))
    if len(trips) != len(code.inner):  # the compiler has unrolled them
        trips = []
    width = sum(place.width for place in what[1].places)
    columns = code.shape.columns if code.shape.columns > 1 else 0
    products = {
        "tensor": 3.0 * (width + (0 if kind == "float64" else columns)),
        "tensor64": float(columns) if kind == "float64" else 0.0,
    }
    counts = {
        "issue": code.per_pair((), trips),
        "special": code.per_pair(("MUFU",), trips),
        "loads": code.per_pair(_LOADS, trips),
        "cache": bytes_per_pair(code, what[1], kind),
        **products,
    }
    return Bound({unit: counts[unit] * clocks for unit, clocks in UNITS.items()})


def share_of_polynomials(bound: Bound, powers: int, cost: float) -> float:
    """The best share of powers by polynomials of `cost` instructions each: 0 if powers are not the bound.

    Each takes 1/16 clock from the special functions and adds cost / 128 to the instructions.
    """
    if not powers:
        return 0.0
    special, others = (
        bound.clocks["special"],
        max(clocks for unit, clocks in bound.clocks.items() if unit != "special"),
    )
    if special <= others:
        return 0.0
    meet = (special - bound.clocks["issue"]) / (powers * (1 / 16 + cost / 128))
    return max(0.0, min(1.0, meet))


def main(arguments: list[str] | None = None) -> int:
    """Print the table; with --check compile for every architecture, and fail beyond a limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="every architecture against its limits"
    )
    options = parser.parse_args(arguments)
    return check() if options.check else table()


def table() -> int:
    """The roofline of every variant."""
    polynomial, none = (
        compiled(variant(Gaussian(), 10), 90, 1, polynomial=eighths).per_pair()
        for eighths in (8, 0)
    )
    cost = polynomial - none + 1
    print(f"A polynomial is {cost:.1f} instructions more than a power of the hardware.\n")
    print(
        "| kernel | d | c | block | registers | programs | instructions | special | bound | pairs/s | "
        "n = 1e6 | polynomials |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name, kernel, d, c, kind in VARIANTS:
        what = variant(kernel, d)
        code = compiled(what, 90, c, kind=kind)
        bound = bound_of(code, what, kind)
        powers = source_of(*what).count(", POLYNOMIAL)")
        share = share_of_polynomials(bound, powers, cost)
        cells = (
            name,
            d,
            c,
            f"{code.shape.rows} x {code.shape.step}",
            code.registers,
            code.programs,
            f"{bound.clocks['issue'] * 128:.1f}",
            f"{bound.clocks['special'] * 16:.1f}",
            bound.unit,
            f"{bound.pairs:.1e}",
            f"{1e12 / bound.pairs:.2f} s",
            f"{share:.0%}",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return 0


def check() -> int:
    """Registers, local and shared memory, and instructions of every variant and architecture."""
    print("| kernel | d | c | sm | block | registers | spills | shared | programs | instructions |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    beyond = 0
    for name, kernel, d, c, kind in VARIANTS:
        what = variant(kernel, d)
        for architecture, memory in LIMITS.items():
            code = compiled(what, architecture, c, kind=kind)
            bad = code.spills > SPILLS or code.shared > memory
            beyond += bad
            found = [
                word
                for word in ("wgmma", "tcgen05.mma", "mma.sync", "ex2.approx.ftz")
                if word in code.ptx
            ]
            cells = (
                *(name, d, c, architecture, f"{code.shape.rows} x {code.shape.step}"),
                *(code.registers, code.spills, code.shared, code.programs),
                f"{', '.join(found)}{' BEYOND' if bad else ''}",
            )
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\n{beyond} beyond a limit")
    return int(beyond > 0)


if __name__ == "__main__":
    sys.exit(main())
