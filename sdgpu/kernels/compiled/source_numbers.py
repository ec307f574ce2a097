"""Symbols that write the text of a Triton function: what a profile is applied to for a GPU.

A :class:`SourceNumber` is the name of a variable, or a constant, and what is known of its numbers; its
operators write lines into a :class:`SourceText`. Nothing here imports Triton. Whoever compiles the text
gives it Triton's language as ``tl``, its compiler as ``jit``, and functions: ``square_root(x)``,
``quotient(x, y)``, ``reciprocal(x)`` and ``power_of_two(t, polynomial_power, POLYNOMIAL)``, 2^t by the
hardware and for a share of the numbers by the polynomial. Powers, logarithms and angles are those of
:mod:`~sdgpu.kernels.compiled.elementary_functions`, in float32.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.kernels.compiled import elementary_functions as elementary
from sdgpu.kernels.compiled.symbols import DEPENDS, Symbol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SourceMask", "SourceNumber", "SourceText", "polynomial_power"]

_SIGNS = {"add": "+", "sub": "-", "mul": "*"}
_FUNCTIONS = {"fma": "tl.fma", "abs": "tl.abs", "sqrt": "square_root", "div": "quotient"}
_LIMITS = np.finfo(np.float32)
_HIGHEST = _LIMITS.maxexp - 1.0  # whose power is a number, and so is that of what it is rounded to
_HALF, _ONE = (int(np.float32(number).view(np.int32)) for number in (math.sqrt(0.5), 1.0))


class SourceText:
    """Lines of a function that is being written; equal expressions are computed once."""

    def __init__(self, head: str) -> None:
        self._lines, self._indent, self._count = [head], 1, 0
        self._known: list[dict[str, str]] = [{}]

    def line(self, text: str) -> None:
        """A line as it is."""
        self._lines.append("    " * self._indent + text)

    def assign(self, expression: str, name: str | None = None) -> str:
        """The variable that holds the expression: `name`, or a new one unless there is one already."""
        if name is None:
            for known in self._known:
                if expression in known:
                    return known[expression]
            name = f"v{self._count}"
            self._count += 1
            self._known[-1][expression] = name
        self.line(f"{name} = {expression}")
        return name

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Indented lines under a head such as "for k in range(3):"; their variables end with them."""
        self.line(head)
        self._indent += 1
        self._known.append({})
        yield
        self._known.pop()
        self._indent -= 1

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


class SourceMask:
    """A condition."""

    def __init__(self, source: SourceText, text: str) -> None:
        self.source, self.text = source, text

    def __or__(self, other: SourceMask) -> SourceMask:
        return SourceMask(self.source, self.source.assign(f"{self.text} | {other.text}"))

    def __and__(self, other: SourceMask) -> SourceMask:
        return SourceMask(self.source, self.source.assign(f"{self.text} & {other.text}"))

    def __bool__(self) -> bool:
        raise TypeError(DEPENDS)


class SourceNumber(Symbol):
    """Numbers of float32 in a variable of the text, or a constant.

    Parameters
    ----------
    source : SourceText
    text : str
        Name of the variable, or the constant.
    low, high : float
        What is known.
    tile : bool
        Whether there is one for each pair of rows: else for each row of one side, or a constant.
    """

    __array_ufunc__ = None

    def __init__(
        self,
        source: SourceText,
        text: str,
        low: float = -math.inf,
        high: float = math.inf,
        *,
        tile: bool = True,
    ) -> None:
        self.source, self.text, self.low, self.high, self.tile = source, text, low, high, tile
        self.flushed = False  # whether 0 is in place of all subnormal numbers

    @property
    def dtype(self) -> str:
        return "float32"

    def _new(self, expression: str, *others: SourceNumber) -> SourceNumber:
        tile = self.tile or any(one.tile for one in others)
        return SourceNumber(self.source, self.source.assign(expression), tile=tile)

    def write(self, operation: str, *others: SourceNumber) -> SourceNumber:
        names = [self.text, *(one.text for one in others)]
        if operation in _SIGNS:
            return self._new(f" {_SIGNS[operation]} ".join(names), *others)
        if operation == "neg":
            return self._new(f"-{self.text}")
        if operation == "div" and self.low == self.high:  # a constant
            inverse = others[0]._new(f"reciprocal({names[1]})")
            return inverse if self.low == 1.0 else self.write("mul", inverse)
        return self._new(f"{_FUNCTIONS[operation]}({', '.join(names)})", *others)

    def known(self, low: float, high: float) -> SourceNumber:
        low = -math.inf if math.isnan(low) else low
        high = math.inf if math.isnan(high) else high
        return SourceNumber(self.source, self.text, low, high, tile=self.tile)

    def compare(self, sign: str, other: SourceNumber) -> SourceMask:
        return SourceMask(self.source, self.source.assign(f"{self.text} {sign} {other.text}"))

    def choose(self, condition: SourceMask, other: SourceNumber) -> SourceNumber:
        return self._new(f"tl.where({condition.text}, {self.text}, {other.text})", other)

    def like(self, number: float) -> SourceNumber:
        if not math.isfinite(number):
            raise TypeError(f"a formula with the constant {number} cannot become a Triton function")
        return SourceNumber(self.source, repr(float(number)), number, number, tile=False)

    def smaller(self, value: Any) -> SourceNumber:
        """The smaller of two, one instruction; NaN stays NaN."""
        return self._extreme("minimum", min, value)

    def larger(self, value: Any) -> SourceNumber:
        """The larger of two, one instruction; NaN stays NaN."""
        return self._extreme("maximum", max, value)

    def _extreme(self, name: str, end: Any, value: Any) -> SourceNumber:
        right = self.other(value)
        # the hardware's own would make a NaN of the data a number, such as a kernel value of 1
        call = f"tl.{name}({self.text}, {right.text}, propagate_nan=tl.PropagateNan.ALL)"
        return self._new(call, right).known(end(self.low, right.low), end(self.high, right.high))

    def without_subnormals(self) -> SourceNumber:
        """0 for what is smaller than every normal number, of numbers >= 0."""
        if self.flushed:
            return self
        return self.like(0.0).where(self < float(_LIMITS.smallest_normal), self)

    def exp2(self) -> SourceNumber:
        """2^x, exactly 0 below the smallest normal number; by the hardware or by the polynomial.

        The polynomial serves the numbers of pairs that are known not to overflow.
        """
        high = 2.0**self.high if self.high <= _HIGHEST else math.inf
        polynomial = "POLYNOMIAL" if self.tile and self.high <= _HIGHEST else "0"
        value = self._new(f"power_of_two({self.text}, polynomial_power, {polynomial})").known(
            0.0, high
        )
        value.flushed = True
        return value

    def times_power(self, shifted: SourceNumber) -> SourceNumber:
        # by a product, not by adding to the bits: of NaN that would make a number
        power = self.source.assign(f"({shifted._bits} << {_LIMITS.nmant}) + {_ONE}")
        return self._new(f"{self.text} * {power}.to(tl.float32, bitcast=True)", shifted)

    def split_power(self) -> tuple[SourceNumber, SourceNumber]:
        bits = self._bits
        n = self.source.assign(f"({bits} - {_HALF}) >> {_LIMITS.nmant}")
        m = self._new(f"({bits} - ({n} << {_LIMITS.nmant})).to(tl.float32, bitcast=True)")
        return self._new(f"{n}.to(tl.float32)"), m

    @property
    def _bits(self) -> str:
        return self.source.assign(f"{self.text}.to(tl.int32, bitcast=True)")


def polynomial_power() -> str:
    """The function ``polynomial_power(t)``, 2^t for t <= 127 to 2 units in the last place, 0 below -126.

    t = k + f with |f| <= 1/2, a sum and two differences that are exact; 2^f is a polynomial of degree 6 at
    Chebyshev nodes, off by 2e-9; k goes into the bits of the exponent.
    """
    source = SourceText("@jit\ndef polynomial_power(t):")
    t = SourceNumber(source, "t", -math.inf, _HIGHEST)
    source.line(f"return {elementary.exp2(t).text}")
    return str(source)
