"""Registers, memory and instructions of the fused product, compiled for a GPU that need not be there.

Triton compiles for any target, and its package has NVIDIA's assembler and disassembler. Nothing is run.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdgpu.kernels import Kernel
from sdgpu.kernels.compiled.formula import Formula
from sdgpu.kernels.kernel import column_means
from sdgpu.operators import device_functions
from sdgpu.operators.device_source import StatisticLayout
from sdgpu.operators.fused_cuda import Shape, constants_of, formula_and_layout, shape_of

__all__ = ["LIMITS", "Compiled", "compiled", "variant"]

#: Bytes of shared memory that a program may have, by architecture.
LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
_MULTIPROCESSOR = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
_LABEL = re.compile(r"(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)")


@dataclass(frozen=True)
class Compiled:
    """One program for one architecture.

    Attributes
    ----------
    shape : Shape
    registers, spills, shared : int
        Of a thread (32-bit words); its loads and stores of registers in local memory in a turn of the long
        loop; bytes of shared memory of a program.
    outer : Counter
        Instructions of one turn of the long loop, of a warp, by the first part of their name.
    inner : tuple of Counter
        Of one turn of each loop inside of it.
    turns : int
        Blocks of pairs in one turn: the compiler may unroll it.
    ptx : str
    """

    architecture: int
    shape: Shape
    registers: int
    spills: int
    shared: int
    outer: Counter[str]
    inner: tuple[Counter[str], ...]
    turns: int
    ptx: str

    @property
    def programs(self) -> int:
        """That fit a multiprocessor at once, by registers and shared memory."""
        threads = 32 * self.shape.warps
        by_registers = 65536 // (-(-self.registers // 8) * 8 * threads)
        by_memory = _MULTIPROCESSOR[self.architecture] // (self.shared + 1024)
        return min(by_registers, by_memory, 2048 // threads)

    def per_pair(self, names: Sequence[str] = (), trips: Sequence[float] = ()) -> float:
        """Instructions of a thread for each pair of rows: all, or those with the names.

        `trips` is how often each inner loop runs in a turn; once where nothing is said.
        """
        loops = [self.outer, *self.inner]
        often = [1.0, *trips, *[1.0] * (len(self.inner) - len(trips))]
        count = 0.0
        for loop, times in zip(loops, often, strict=False):
            count += times * sum(loop[name] for name in (names or loop))
        pairs = self.turns * self.shape.rows * self.shape.step / (32 * self.shape.warps)
        return count / pairs


def variant(kernel: Kernel, d: int) -> tuple[Formula, StatisticLayout]:
    """Formula and layout of a kernel of rows with d features, near their centre."""
    import torch

    X = torch.rand(4, d, generator=torch.Generator().manual_seed(0))
    rows = kernel.rows(X, column_means(X))
    return formula_and_layout(kernel, rows, rows)


def compiled(
    what: tuple[Formula, StatisticLayout],
    architecture: int,
    columns: int,
    *,
    kind: str = "tf32x3",
    polynomial: int = 0,
    same: bool = True,
    shape: Shape | None = None,
) -> Compiled:
    """Compile the product of a formula with so many columns; `kind` is "tf32x3", "ieee" or "float64"."""
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    wide = kind == "float64"
    if shape is None:
        shape = shape_of(*what, columns, wide=wide, architecture=architecture)
    program = device_functions.product_kernel
    split = "ieee" if kind == "ieee" else "tf32x3"
    constants = constants_of(shape, *what, same=same, split=split, wide=wide)
    constants["POLYNOMIAL"] = polynomial
    numbers = dict.fromkeys(("m", "n", "chunk"), "i32")
    block = "*fp64" if wide else "*fp32"
    types = {**numbers, "out": "*fp64", "V": block, **dict.fromkeys(constants, "constexpr")}
    source = compiler.ASTSource(
        fn=program,
        signature={name: types.get(name, "*fp32") for name in program.arg_names},
        constexprs={(program.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(9)},
    )
    options = {"num_warps": shape.warps, "num_stages": shape.stages, "enable_fp_fusion": True}
    target = GPUTarget("cuda", architecture, 32)
    made = compiler.compile(source, target=target, options=options)
    usage, code = _tools(made.asm["cubin"])
    outer, inner = _loops(code)
    return Compiled(
        architecture=architecture,
        shape=shape,
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spills=sum(loop["STL"] + loop["LDL"] for loop in (outer, *inner)),
        shared=int(made.metadata.shared),
        outer=outer,
        inner=inner,
        turns=_turns(outer, what[0], shape),
        ptx=made.asm["ptx"],
    )


def _tools(program: bytes) -> tuple[str, str]:
    """Resources and instructions of a compiled program, as NVIDIA's tools print them."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program)
        file.flush()
        commands: Sequence[Sequence[Any]] = (
            (tools / "cuobjdump", "-res-usage", file.name),
            (tools / "nvdisasm", "-c", file.name),
        )
        printed = [
            subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
            for command in commands
        ]
    return printed[0].stdout, printed[1].stdout


def _loops(code: str) -> tuple[Counter[str], tuple[Counter[str], ...]]:
    """Instructions of the longest loop without those of the loops inside of it, and these."""
    labels: dict[str, int] = {}
    names: list[str] = []
    loops: list[tuple[int, int]] = []
    for line in code.splitlines():
        label, instruction = _LABEL.search(line), _INSTRUCTION.search(line)
        if label and not instruction:
            labels[label[1]] = len(names)
        if not instruction:
            continue
        names.append(instruction[1].split(".")[0])
        target = re.search(r"\.L_x_\d+", instruction[2])
        if names[-1] == "BRA" and target and target[0] in labels:
            loops.append((labels[target[0]], len(names)))
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    within = [loop for loop in loops if first < loop[0] and loop[1] < last]
    inner = [
        loop for loop in within if not any(a < loop[0] and loop[1] < b for a, b in within)
    ]  # not those inside of others
    outer = Counter(names[first:last])
    parts = tuple(Counter(names[a:b]) for a, b in sorted(inner) if b - a > 8)  # not a wait
    for part in parts:
        outer -= part
    return outer, parts


def _turns(outer: Counter[str], formula: Formula, shape: Shape) -> int:
    """Blocks of pairs in one turn of a Gaussian, which has one power a pair; of others taken to be one."""
    if len(formula.parts) > 1 or type(formula.kernel).__name__ != "Gaussian":
        return 1
    return max(1, round(outer["MUFU"] * 32 * shape.warps / (shape.rows * shape.step)))
