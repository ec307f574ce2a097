"""What the symbols of a formula have in common: operators, functions, and what is known of the numbers.

A profile is run once on symbols, which write an instruction for each operation: of LLVM
(:class:`~sdgpu.kernels.compiled.vectors.Vector`) or of Triton's language
(:class:`~sdgpu.kernels.compiled.source_numbers.SourceNumber`). Each knows bounds of its numbers, so that
what cannot happen need not be checked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Self

from sdgpu.kernels.compiled import elementary_functions as elementary

__all__ = ["DEPENDS", "Symbol"]

#: Why a profile cannot be written down that asks for the truth of a comparison.
DEPENDS = "a formula that depends on its own values cannot become machine code"


class Symbol(ABC):
    """Numbers, low <= x <= high, that a formula is written of.

    A subclass says how an operation is written: `write` for one of add, sub, mul, div (of two), fma (of
    three: self factor + term), neg, abs and sqrt; `compare` and `choose`; `like`, a number of its kind.
    """

    low: float
    high: float

    @property
    @abstractmethod
    def dtype(self) -> str:
        """Of the numbers: "float32" or "float64"."""

    @abstractmethod
    def write(self, operation: str, *others: Self) -> Self:
        """The operation with these numbers as the first operand; nothing is known of the result."""

    @abstractmethod
    def compare(self, sign: str, other: Self) -> Any:
        """A condition; sign is one of < <= == > >=. NaN fulfils none."""

    @abstractmethod
    def choose(self, condition: Any, other: Self) -> Self:
        """These numbers where the condition holds, the others elsewhere."""

    @abstractmethod
    def like(self, number: float) -> Self:
        """The number, of the same kind."""

    @abstractmethod
    def known(self, low: float, high: float) -> Self:
        """The same numbers, of which low <= x <= high is known; NaN is no bound."""

    @abstractmethod
    def times_power(self, shifted: Self) -> Self:
        """These numbers times 2^k, added to the bits of the exponent.

        `shifted` is k + 1.5 2^(bits of the fraction), whose lowest bits are k. The product must be normal.
        """

    @property
    def steps(self) -> int:
        """16 where registers hold a table of the powers 2^(k / 16), 0 <= k < 16; else 1."""
        return 1

    def nearest_power(self) -> Self:
        """2^(k / 16), where the lowest bits of these numbers are the whole number k.

        They are (k + 1.5 2^(bits of the fraction)) / 16. Only where `steps` is 16.
        """
        raise NotImplementedError

    @abstractmethod
    def split_power(self) -> tuple[Self, Self]:
        """(n, m) with x = 2^n m, m from sqrt(1/2) to sqrt(2), of normal x > 0."""

    def other(self, value: Any) -> Self:
        """A symbol as it is, a number as one."""
        return value if isinstance(value, type(self)) else self.like(float(value))

    def __add__(self, value: Any) -> Self:
        right = self.other(value)
        if right.low == right.high == 0.0:
            return self
        return self.write("add", right).known(self.low + right.low, self.high + right.high)

    def __radd__(self, value: Any) -> Self:
        return self + value

    def __sub__(self, value: Any) -> Self:
        right = self.other(value)
        return self.write("sub", right).known(self.low - right.high, self.high - right.low)

    def __rsub__(self, value: Any) -> Self:
        return self.other(value) - self

    def __mul__(self, value: Any) -> Self:
        right = self.other(value)
        if right.low == right.high == 1.0:
            return self
        if right.low == right.high and math.isfinite(right.low) and right.low != 0:
            ends = sorted((self.low * right.low, self.high * right.low))
            return self.write("mul", right).known(*ends)
        positive = self.low >= 0 and right.low >= 0
        return self.write("mul", right).known(0.0 if positive else -math.inf, math.inf)

    def __rmul__(self, value: Any) -> Self:
        return self * value

    def __truediv__(self, value: Any) -> Self:
        if not isinstance(value, type(self)):
            return self * (1.0 / float(value))
        positive = self.low >= 0 and value.low >= 0
        return self.write("div", value).known(0.0 if positive else -math.inf, math.inf)

    def __rtruediv__(self, value: Any) -> Self:
        return self.other(value) / self

    def __neg__(self) -> Self:
        return self.write("neg").known(-self.high, -self.low)

    def __pow__(self, power: float) -> Self:
        found: Self = elementary.power(self, float(power))
        return found

    def __abs__(self) -> Self:
        return self if self.low >= 0 else self.write("abs").known(0.0, math.inf)

    def __bool__(self) -> bool:
        raise TypeError(DEPENDS)

    def __lt__(self, value: Any) -> Any:
        return self.compare("<", self.other(value))

    def __le__(self, value: Any) -> Any:
        return self.compare("<=", self.other(value))

    def __gt__(self, value: Any) -> Any:
        return self.compare(">", self.other(value))

    def __ge__(self, value: Any) -> Any:
        return self.compare(">=", self.other(value))

    def __eq__(self, value: Any) -> Any:
        return self.compare("==", self.other(value))

    __hash__ = None  # type: ignore[assignment]

    def fma(self, factor: Any, term: Any) -> Self:
        """self factor + term, rounded once where the processor can."""
        return self.write("fma", self.other(factor), self.other(term))

    def where(self, condition: Any, value: Any) -> Self:
        """These numbers where the condition holds, `value` elsewhere."""
        right = self.other(value)
        low, high = min(self.low, right.low), max(self.high, right.high)
        return self.choose(condition, right).known(low, high)

    def clip(self, low: float | None, high: float | None) -> Self:
        """Clamped to [low, high]; None is no bound."""
        result = self
        if low is not None and result.low < low:
            result = result.larger(low).known(low, max(result.high, low))
        if high is not None and result.high > high:
            result = result.smaller(high).known(min(result.low, high), high)
        return result

    def ifelse(self, value: Any, other: Any) -> Self:
        """`value` where these numbers are >= 0, else `other`: as lazy tensors have it."""
        return self.other(value).where(self >= 0.0, other)

    def smaller(self, value: Any) -> Self:
        """The smaller of two."""
        right = self.other(value)
        chosen = self.where(self < right, right)
        return chosen.known(min(self.low, right.low), min(self.high, right.high))

    def larger(self, value: Any) -> Self:
        """The larger of two."""
        right = self.other(value)
        chosen = self.where(self > right, right)
        return chosen.known(max(self.low, right.low), max(self.high, right.high))

    def abs(self) -> Self:
        """Without sign."""
        return self.__abs__()

    def relu(self) -> Self:
        """At least 0."""
        return self.clip(0.0, None)

    def sqrt(self) -> Self:
        """Square root."""
        return self.write("sqrt").known(0.0, math.inf)

    def exp2(self) -> Self:
        """2^x."""
        found: Self = elementary.exp2(self)
        return found

    def exp(self) -> Self:
        """e^x."""
        return (self * math.log2(math.e)).exp2()

    def log2(self) -> Self:
        """Logarithm to the base 2, of positive normal numbers."""
        found: Self = elementary.log2(self)
        return found

    def log(self) -> Self:
        """Natural logarithm, of positive normal numbers."""
        return self.log2() * math.log(2)

    def atan2(self, x: Any) -> Self:
        """Angle of (x, self), in [-pi, pi]."""
        found: Self = elementary.atan2(self, self.other(x))
        return found

    def asin(self) -> Self:
        """Inverse sine."""
        return self.atan2((-(self * self) + 1.0).clip(0.0, None).sqrt())
