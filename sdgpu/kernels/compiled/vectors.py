"""Symbols that write machine code: numbers in vector registers, conditions, whole numbers.

A :class:`Vector` is as many numbers as fit a register, one in each lane. Its operators and functions write
instructions into a :class:`~sdgpu.kernels.compiled.machine_code.Code`; it is what the profile of a kernel
is applied to when the kernel is compiled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from sdgpu.kernels.compiled import elementary_functions as elementary

if TYPE_CHECKING:
    from sdgpu.kernels.compiled.machine_code import Code

__all__ = ["REALS", "Index", "Mask", "Vector"]

BOOL = ir.IntType(1)
REALS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
# a product and a sum may become one instruction; nothing else may be rounded differently
_FLAGS = ("contract",)


class Index:
    """A whole number of 64 bits while the machine code runs."""

    def __init__(self, code: Code, value: Any) -> None:
        self.code, self.value = code, value

    def _with(self, other: Any, operation: str) -> Index:
        right = self.code.index(other).value
        return Index(self.code, getattr(self.code.builder, operation)(self.value, right))

    def __add__(self, other: Any) -> Index:
        return self._with(other, "add")

    def __sub__(self, other: Any) -> Index:
        return self._with(other, "sub")

    def __mul__(self, other: Any) -> Index:
        return self._with(other, "mul")

    def __floordiv__(self, other: Any) -> Index:
        return self._with(other, "sdiv")

    def __mod__(self, other: Any) -> Index:
        return self._with(other, "srem")

    def compare(self, sign: str, other: Any) -> Any:
        """A condition for :meth:`Code.when`: sign is one of < <= == != > >=."""
        return self.code.builder.icmp_signed(sign, self.value, self.code.index(other).value)

    def smaller(self, other: Any) -> Index:
        """The smaller of the two."""
        right = self.code.index(other)
        condition = self.compare("<", right)
        return Index(self.code, self.code.builder.select(condition, self.value, right.value))


class Mask:
    """A truth value for each lane of a vector."""

    def __init__(self, code: Code, value: Any) -> None:
        self.code, self.value = code, value

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.code, self.code.builder.or_(self.value, other.value))

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.code, self.code.builder.and_(self.value, other.value))

    def any(self) -> Any:
        """A condition for :meth:`Code.when`: whether one lane is true."""
        if not isinstance(self.value.type, ir.VectorType):
            return self.value
        lanes = self.value.type.count
        name = f"llvm.vector.reduce.or.v{lanes}i1"
        return self.code.call(name, BOOL, [self.value])

    def __bool__(self) -> bool:
        raise TypeError("a formula that depends on its own values cannot become machine code")


class Vector:
    """Numbers in a register, one in each lane; operators and functions write machine code.

    What is known about the numbers, low <= x <= high, saves what need not be checked.
    """

    __array_ufunc__ = None

    def __init__(
        self, code: Code, value: Any, low: float = -math.inf, high: float = math.inf
    ) -> None:
        self.code, self.value, self.low, self.high = code, value, low, high

    @property
    def dtype(self) -> str:
        """Of the lanes."""
        return "float32" if self._real == REALS["float32"] else "float64"

    @property
    def lanes(self) -> int:
        """How many numbers there are."""
        kind = self.value.type
        return kind.count if isinstance(kind, ir.VectorType) else 1

    @property
    def _real(self) -> Any:
        kind = self.value.type
        return kind.element if isinstance(kind, ir.VectorType) else kind

    def like(self, number: float) -> Vector:
        """The number in every lane."""
        constant = ir.Constant(self._real, float(number))
        lanes = self.lanes
        if lanes > 1:
            constant = ir.Constant(self.value.type, [constant] * lanes)
        return Vector(self.code, constant, number, number)

    def other(self, value: Any) -> Vector:
        """A vector as it is, a number in every lane."""
        if isinstance(value, Vector):
            return value
        return self.like(float(value))

    def _with(self, value: Any, operation: str, *, turned: bool = False) -> Vector:
        left, right = (self.other(value), self) if turned else (self, self.other(value))
        write = getattr(self.code.builder, operation)
        return Vector(self.code, write(left.value, right.value, flags=_FLAGS))

    def __add__(self, value: Any) -> Vector:
        right = self.other(value)
        return self._with(right, "fadd").known(self.low + right.low, self.high + right.high)

    __radd__ = __add__

    def __sub__(self, value: Any) -> Vector:
        right = self.other(value)
        return self._with(right, "fsub").known(self.low - right.high, self.high - right.low)

    def __rsub__(self, value: Any) -> Vector:
        return self.other(value) - self

    def __mul__(self, value: Any) -> Vector:
        right = self.other(value)
        if right.low == right.high and math.isfinite(right.low) and right.low != 0:
            ends = sorted((self.low * right.low, self.high * right.low))
            return self._with(right, "fmul").known(*ends)
        positive = self.low >= 0 and right.low >= 0
        return self._with(right, "fmul").known(0.0 if positive else -math.inf, math.inf)

    __rmul__ = __mul__

    def __truediv__(self, value: Any) -> Vector:
        if not isinstance(value, Vector):
            return self * (1.0 / float(value))
        positive = self.low >= 0 and value.low >= 0
        return self._with(value, "fdiv").known(0.0 if positive else -math.inf, math.inf)

    def __rtruediv__(self, value: Any) -> Vector:
        return self.other(value) / self

    def __neg__(self) -> Vector:
        return Vector(self.code, self.code.builder.fneg(self.value), -self.high, -self.low)

    def __pow__(self, power: float) -> Vector:
        return elementary.power(self, float(power))

    def __abs__(self) -> Vector:
        return self._function("fabs").known(0.0, math.inf)

    def __bool__(self) -> bool:
        raise TypeError("a formula that depends on its own values cannot become machine code")

    def known(self, low: float, high: float) -> Vector:
        """The same numbers, of which low <= x <= high is known."""
        low, high = (
            (-math.inf if math.isnan(low) else low),
            (math.inf if math.isnan(high) else high),
        )
        return Vector(self.code, self.value, low, high)

    def fma(self, factor: Any, term: Any) -> Vector:
        """self factor + term, rounded once where the processor can."""
        return self._function("fmuladd", self.other(factor), self.other(term))

    def _compare(self, sign: str, value: Any) -> Mask:
        right = self.other(value).value
        return Mask(self.code, self.code.builder.fcmp_ordered(sign, self.value, right))

    def __lt__(self, value: Any) -> Mask:
        return self._compare("<", value)

    def __le__(self, value: Any) -> Mask:
        return self._compare("<=", value)

    def __gt__(self, value: Any) -> Mask:
        return self._compare(">", value)

    def __ge__(self, value: Any) -> Mask:
        return self._compare(">=", value)

    def __eq__(self, value: Any) -> Mask:  # type: ignore[override]
        return self._compare("==", value)

    __hash__ = None  # type: ignore[assignment]

    def where(self, condition: Mask, value: Any) -> Vector:
        """These numbers where the condition holds, `value` elsewhere."""
        right = self.other(value)
        chosen = self.code.builder.select(condition.value, self.value, right.value)
        low, high = min(self.low, right.low), max(self.high, right.high)
        return Vector(self.code, chosen, low, high)

    def clip(self, low: float | None, high: float | None) -> Vector:
        """Clamped to [low, high]; None is no bound."""
        result = self
        if low is not None and result.low < low:
            result = result.where(result > low, low).known(low, max(result.high, low))
        if high is not None and result.high > high:
            result = result.where(result < high, high).known(min(result.low, high), high)
        return result

    def ifelse(self, value: Any, other: Any) -> Vector:
        """`value` where these numbers are >= 0, else `other`: as lazy tensors have it."""
        return self.other(value).where(self >= 0.0, other)

    def smaller(self, value: Any) -> Vector:
        """The smaller of two."""
        right = self.other(value)
        chosen = self.where(self < right, right)
        return chosen.known(min(self.low, right.low), min(self.high, right.high))

    def larger(self, value: Any) -> Vector:
        """The larger of two."""
        right = self.other(value)
        chosen = self.where(self > right, right)
        return chosen.known(max(self.low, right.low), max(self.high, right.high))

    def abs(self) -> Vector:
        """Without sign."""
        return abs(self)

    def relu(self) -> Vector:
        """At least 0."""
        return self.clip(0.0, None)

    def sqrt(self) -> Vector:
        """Square root."""
        return self._function("sqrt").known(0.0, math.inf)

    def exp2(self) -> Vector:
        """2^x."""
        return elementary.exp2(self)

    def exp(self) -> Vector:
        """e^x."""
        return elementary.exp2(self * math.log2(math.e))

    def log2(self) -> Vector:
        """Logarithm to the base 2, of positive normal numbers."""
        return elementary.log2(self)

    def log(self) -> Vector:
        """Natural logarithm, of positive normal numbers."""
        return elementary.log2(self) * math.log(2)

    def atan2(self, x: Any) -> Vector:
        """Angle of (x, self), in [-pi, pi]."""
        return elementary.atan2(self, self.other(x))

    def asin(self) -> Vector:
        """Inverse sine."""
        return elementary.atan2(self, (1.0 - self * self).clip(0.0, None).sqrt())

    def bits(self) -> Any:
        """The bits as whole numbers of the same size, for the builder."""
        return self.code.builder.bitcast(self.value, self.words)

    def from_bits(self, words: Any) -> Vector:
        """Numbers of the same kind from their bits."""
        return Vector(self.code, self.code.builder.bitcast(words, self.value.type))

    def from_whole(self, words: Any) -> Vector:
        """Numbers of the same kind from whole numbers of the same size."""
        return Vector(self.code, self.code.builder.sitofp(words, self.value.type))

    @property
    def words(self) -> Any:
        """Type of the bits."""
        word = ir.IntType(32 if self.dtype == "float32" else 64)
        return word if self.lanes == 1 else ir.VectorType(word, self.lanes)

    def word(self, number: int) -> Any:
        """A whole number in every lane of the bits."""
        if self.lanes == 1:
            return ir.Constant(self.words, number)
        return ir.Constant(self.words, [number] * self.lanes)

    def round_to(self, dtype: str) -> Vector:
        """The numbers in another precision."""
        if dtype == self.dtype:
            return self
        real = REALS[dtype]
        kind = real if self.lanes == 1 else ir.VectorType(real, self.lanes)
        convert = self.code.builder.fpext if dtype == "float64" else self.code.builder.fptrunc
        return Vector(self.code, convert(self.value, kind), self.low, self.high)

    def sum(self) -> Vector:
        """Sum over the lanes, a vector of one."""
        if self.lanes == 1:
            return self
        suffix = f"v{self.lanes}f{32 if self.dtype == 'float32' else 64}"
        zero = ir.Constant(self._real, -0.0)
        name = f"llvm.vector.reduce.fadd.{suffix}"
        return Vector(self.code, self.code.call(name, self._real, [zero, self.value], ("reassoc",)))

    def shuffle(self, other: Vector, lanes: list[int]) -> Vector:
        """Lanes of this vector (0, 1, ..) and of another (the numbers after them)."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return Vector(self.code, self.code.builder.shuffle_vector(self.value, other.value, mask))

    def spread(self, lanes: int) -> Vector:
        """The single number in every one of so many lanes."""
        if lanes == 1:
            return self
        kind, builder = ir.VectorType(self.value.type, lanes), self.code.builder
        empty = ir.Constant(kind, ir.Undefined)
        first = builder.insert_element(empty, self.value, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return Vector(self.code, builder.shuffle_vector(first, empty, zeros), self.low, self.high)

    def _function(self, name: str, *others: Vector) -> Vector:
        size = f"f{32 if self.dtype == 'float32' else 64}"
        suffix = size if self.lanes == 1 else f"v{self.lanes}{size}"
        values = [self.value, *(one.value for one in others)]
        written = self.code.call(f"llvm.{name}.{suffix}", self.value.type, values, _FLAGS)
        return Vector(self.code, written)
