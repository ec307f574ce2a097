"""Machine code of loops over vectors of numbers, written by symbols and compiled by LLVM (extra ``fast``).

A :class:`Code` is a module of functions that are being written: `loop` and `when` are ``with`` blocks, an
:class:`Array` is memory, a :class:`Variable` what changes from turn to turn. Vectors are as wide as the
processor has them, so nothing depends on whether a compiler recognises a loop.

Compiling takes some 20 ms, once for each text; nothing is kept on disk. The compiled functions know neither
Python nor its lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from threading import Lock
from typing import Any

from llvmlite import binding, ir

from sdgpu.kernels.compiled.vectors import REALS, Index, Vector

__all__ = ["Array", "Code", "Machine", "Variable", "compiled", "group_size", "vector_lanes"]

INT, BYTE = ir.IntType(64), ir.IntType(8)
KEPT = 128  # compiled modules
#: Kinds of arguments: memory of numbers, of whole numbers, of bytes, and a whole number itself.
_KINDS = {
    **{name: real.as_pointer() for name, real in REALS.items()},
    "indices": INT.as_pointer(),
    "bytes": BYTE.as_pointer(),
    "index": INT,
}


@cache
def _vector_bytes() -> int:
    """Bytes of the widest vector register of this processor."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx") else 16


def vector_lanes(dtype: str) -> int:
    """Numbers that fit a register."""
    return _vector_bytes() // (4 if dtype == "float32" else 8)


def group_size(dtype: str) -> int:
    """Columns of a tile that are worked on at once: two vectors."""
    return 2 * vector_lanes(dtype)


class Array:
    """Memory that holds numbers of one type."""

    def __init__(self, code: Code, pointer: Any) -> None:
        self.code, self.pointer = code, pointer

    @property
    def _real(self) -> Any:
        return self.pointer.type.pointee

    @property
    def dtype(self) -> str:
        """Of the numbers."""
        return "float32" if self._real == REALS["float32"] else "float64"

    def at(self, index: Any) -> Array:
        """The memory from the index on."""
        place = self.code.builder.gep(self.pointer, [self.code.index(index).value])
        return Array(self.code, place)

    def load(self, index: Any, lanes: int = 1) -> Vector:
        """Numbers from the index on."""
        place = self.at(index).pointer
        if lanes > 1:
            kind = ir.VectorType(self._real, lanes).as_pointer()
            place = self.code.builder.bitcast(place, kind)
        value = self.code.builder.load(place)
        value.align = 4 if self.dtype == "float32" else 8
        return Vector(self.code, value)

    def store(self, index: Any, vector: Vector) -> None:
        """Keep numbers from the index on."""
        place = self.at(index).pointer
        if vector.lanes > 1:
            place = self.code.builder.bitcast(place, vector.value.type.as_pointer())
        kept = self.code.builder.store(vector.value, place)
        kept.align = 4 if self.dtype == "float32" else 8

    def add(self, index: Any, vector: Vector) -> None:
        """Add numbers from the index on."""
        self.store(index, self.load(index, vector.lanes) + vector)


class Variable:
    """A vector or whole number that changes; a register, once compiled."""

    def __init__(self, code: Code, value: Vector | Index) -> None:
        self.code, self._kind = code, type(value)
        with code.builder.goto_entry_block():
            self._place = code.builder.alloca(value.value.type)
        self.set(value)

    def set(self, value: Vector | Index) -> None:
        """Replace it."""
        self.code.builder.store(value.value, self._place)

    @property
    def value(self) -> Any:
        """As it is now."""
        return self._kind(self.code, self.code.builder.load(self._place))


class Code:
    """A module of functions that are being written, one after the other."""

    def __init__(self) -> None:
        self.module = ir.Module()
        self.module.triple = binding.get_process_triple()
        self.builder: Any = None

    def function(self, name: str, **kinds: str) -> dict[str, Any]:
        """Begin a function of arguments by name; gives their symbols.

        Kinds are "float32" and "float64" (memory of such numbers), "indices", "bytes" and "index".
        """
        kind = ir.FunctionType(ir.VoidType(), [_KINDS[one] for one in kinds.values()])
        function = ir.Function(self.module, kind, name)
        with suppress(Exception):  # another llvmlite: narrower vectors are right too
            set.add(function.attributes, '"prefer-vector-width"="512"')
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        arguments: dict[str, Any] = {}
        for (label, one), value in zip(kinds.items(), function.args, strict=True):
            value.name = label
            symbol = Index if one == "index" else (lambda _, v: v)
            arguments[label] = Array(self, value) if one in REALS else symbol(self, value)
        return arguments

    def end(self) -> None:
        """End the function that is being written."""
        self.builder.ret_void()

    def run(self, name: str, *arguments: Any) -> None:
        """Call a function of this module that has been written."""
        values = [getattr(one, "pointer", getattr(one, "value", one)) for one in arguments]
        self.builder.call(self.module.get_global(name), values)

    def run_at(self, address: Index, *arguments: Any) -> None:
        """Call a function of another module at an address."""
        values = [getattr(one, "pointer", getattr(one, "value", one)) for one in arguments]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values]).as_pointer()
        self.builder.call(self.builder.inttoptr(address.value, kind), values)

    def call(self, name: str, result: Any, values: Sequence[Any], flags: Sequence[str] = ()) -> Any:
        """Call an intrinsic function of LLVM."""
        function = self.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(result, [value.type for value in values])
            function = ir.Function(self.module, kind, name)
        return self.builder.call(function, values, fastmath=flags)

    def index(self, value: Any) -> Index:
        """A whole number as a symbol."""
        return value if isinstance(value, Index) else Index(self, ir.Constant(INT, int(value)))

    def zeros(self, dtype: str, lanes: int) -> Vector:
        """0 in every lane."""
        real = REALS[dtype]
        kind = real if lanes == 1 else ir.VectorType(real, lanes)
        number = ir.Constant(real, 0.0)
        value = number if lanes == 1 else ir.Constant(kind, [number] * lanes)
        return Vector(self, value, 0.0, 0.0)

    def address(self, indices: Any, position: Any, dtype: str | None = None) -> Any:
        """The entry of an array of whole numbers: as an :class:`Index`, or as memory of a dtype."""
        place = self.builder.gep(indices, [self.index(position).value])
        number = self.builder.load(place)
        if dtype is None:
            return Index(self, number)
        return Array(self, self.builder.inttoptr(number, _KINDS[dtype]))

    @contextmanager
    def loop(self, start: Any, stop: Any, step: Any = 1) -> Iterator[Index]:
        """What is written within runs for start, start + step, .. below stop."""
        builder = self.builder
        function, last = builder.function, self.index(stop)
        counter = Variable(self, self.index(start))
        head, body, end = (function.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        builder.cbranch(counter.value.compare("<", last), body, end)
        builder.position_at_end(body)
        now = counter.value
        yield now
        counter.set(now + step)
        builder.branch(head)
        builder.position_at_end(end)

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """What is written within runs where the condition holds."""
        with self.builder.if_then(condition):
            yield

    @contextmanager
    def either(self, condition: Any) -> Iterator[Any]:
        """Two blocks: what is written in the first runs where the condition holds, else the second."""
        with self.builder.if_else(condition) as blocks:
            yield blocks

    def room(self, dtype: str, count: int) -> Array:
        """Memory of the function itself for so many numbers."""
        with self.builder.goto_entry_block():
            return Array(self, self.builder.alloca(REALS[dtype], size=count))

    @contextmanager
    def vectors(self, width: Any, dtype: str) -> Iterator[Index]:
        """A loop over whole vectors that cover a row; its memory must be as long as whole vectors."""
        with self.loop(0, width, vector_lanes(dtype)) as place:
            yield place


class Machine:
    """Compiled functions, alive as long as this object is."""

    def __init__(self, text: str) -> None:
        module = binding.parse_assembly(text)
        module.verify()
        target = _target_machine()
        options = binding.create_pipeline_tuning_options(speed_level=3)
        # it is written as vectors, and its blocks fill the registers
        options.slp_vectorization = options.loop_vectorization = options.loop_unrolling = False
        builder = binding.create_pass_builder(target, options)
        builder.getModulePassManager().run(module, builder)
        self._engine = binding.create_mcjit_compiler(module, target)
        self._engine.finalize_object()
        self._functions: dict[str, Any] = {}

    def function(self, name: str, arguments: int) -> Callable[..., None]:
        """A compiled function of so many addresses and whole numbers; it lets other threads run."""
        if name not in self._functions:
            kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
            function: Any = kind(self.address(name))
            function.machine = self  # the code is there as long as anything can call it
            self._functions[name] = function
        return self._functions[name]

    def address(self, name: str) -> int:
        """Where a compiled function lies."""
        return int(self._engine.get_function_address(name))


def _target_machine() -> Any:
    """A new one each time: the engine that compiles with it owns it, and frees it."""
    target, name, features = _host()
    return target.create_target_machine(
        cpu=name, features=features, opt=3, codemodel="jitdefault", jit=True
    )


@cache
def _host() -> tuple[Any, str, str]:
    """What this processor is, and can do."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = binding.get_host_cpu_features().flatten()
    return binding.Target.from_default_triple(), binding.get_host_cpu_name(), features


def compiled(text: str) -> Machine:
    """The functions of a text of :class:`Code`, compiled once in a process, by one thread at a time."""
    with _COMPILING:
        return _machine(text)


_COMPILING = Lock()


@lru_cache(maxsize=KEPT)
def _machine(text: str) -> Machine:
    return Machine(text)
