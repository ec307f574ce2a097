"""Symbols that write machine code: numbers in vector registers, conditions, whole numbers.

A :class:`Vector` is as many numbers as fit a register, one in each lane. Its operators and functions write
instructions into a :class:`~sdgpu.kernels.compiled.machine_code.Code`; it is what the profile of a kernel
is applied to when the kernel is compiled.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from sdgpu.kernels.compiled.symbols import DEPENDS, Symbol

if TYPE_CHECKING:
    from sdgpu.kernels.compiled.machine_code import Code

__all__ = ["REALS", "Index", "Mask", "Vector"]

BOOL = ir.IntType(1)
REALS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
# a product and a sum may become one instruction; nothing else may be rounded differently
_FLAGS = ("contract",)
#: Bits of the fraction of a number.
_FRACTION = {"float32": 23, "float64": 52}
#: Bits of 2^(k / 16) in float64, less those that k adds when it is moved to the exponent together with n.
_STEPS, _KEPT = 16, 48
_POWERS = [
    struct.unpack("<q", struct.pack("<d", 2.0 ** (k / _STEPS)))[0] - (k << _KEPT)
    for k in range(_STEPS)
]


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

    def number(self, dtype: str) -> Vector:
        """As a number of a dtype, rounded."""
        return Vector(self.code, self.code.builder.sitofp(self.value, REALS[dtype]))


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
        raise TypeError(DEPENDS)


class Vector(Symbol):
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

    def write(self, operation: str, *others: Vector) -> Vector:
        builder, values = self.code.builder, [self.value, *(one.value for one in others)]
        if operation in ("add", "sub", "mul", "div"):
            return Vector(self.code, getattr(builder, f"f{operation}")(*values, flags=_FLAGS))
        if operation == "neg":
            return Vector(self.code, builder.fneg(self.value))
        return self._function({"abs": "fabs", "fma": "fmuladd"}.get(operation, operation), *others)

    def known(self, low: float, high: float) -> Vector:
        low, high = (
            (-math.inf if math.isnan(low) else low),
            (math.inf if math.isnan(high) else high),
        )
        return Vector(self.code, self.value, low, high)

    def compare(self, sign: str, other: Vector) -> Mask:
        return Mask(self.code, self.code.builder.fcmp_ordered(sign, self.value, other.value))

    def choose(self, condition: Mask, other: Vector) -> Vector:
        chosen = self.code.builder.select(condition.value, self.value, other.value)
        return Vector(self.code, chosen)

    def times_power(self, shifted: Vector) -> Vector:
        builder = self.code.builder
        exponent = builder.shl(shifted.bits(), self.word(_FRACTION[self.dtype]))
        return self.from_bits(builder.add(self.bits(), exponent))

    @property
    def steps(self) -> int:
        """16 doubles are two registers of AVX-512, of which one instruction picks eight."""
        return _STEPS if self.dtype == "float64" and self.lanes == 8 else 1

    def nearest_power(self) -> Vector:
        builder, bits = self.code.builder, self.bits()
        tables = [ir.Constant(self.words, _POWERS[first : first + 8]) for first in (0, 8)]
        picked = self.code.call(
            "llvm.x86.avx512.vpermi2var.q.512", self.words, [tables[0], bits, tables[1]]
        )
        return self.from_bits(builder.add(picked, builder.shl(bits, self.word(_KEPT))))

    def split_power(self) -> tuple[Vector, Vector]:
        builder, bits, fraction = self.code.builder, self.bits(), self.word(_FRACTION[self.dtype])
        half = self.like(math.sqrt(0.5)).bits()
        n_bits = builder.ashr(builder.sub(bits, half), fraction)
        m = self.from_bits(builder.sub(bits, builder.shl(n_bits, fraction)))
        return self.from_whole(n_bits), m

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
