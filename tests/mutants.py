"""Mutants: one change of a module at a time, each against the module's own tests.

    python -m tests.mutants sdgpu.solvers.galerkin tests/solvers/test_galerkin.py tests/solvers/test_subspace.py

A mutant changes one operator, comparison, constant, condition, loop or swap of min and max. It is killed when a test
fails or hangs; the others are printed, each with its line and what it became. mutmut and cosmic-ray start an
interpreter for every mutant, and importing torch takes longer than the tests of a module: here each runs in a forked
child of a process that has imported the libraries, with the changed code given by an import hook, so no file is touched.
Annotations, assertions, decorators and the texts of errors are left out.
"""

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

LIBRARIES = (
    "torch",
    "numpy",
    "scipy.linalg",
    "scipy.sparse",
    "pytest",
    "xarray",
    "sklearn",
    "pandas",
)
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SWAPPED_NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "minimum": "maximum",
    "maximum": "minimum",
}
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params"}


class Mutant(NamedTuple):
    """One change: its line, the texts before and after, and the changed module."""

    line: int
    before: str
    after: str
    tree: ast.Module


def visited_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations, decorators, assertions, raised errors and f-strings, always in the same order."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr)):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in SKIPPED_FIELDS:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visited_nodes(child)


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """The changed forms of one node."""
    changed = copy.deepcopy(node)
    match changed:
        case ast.BinOp() | ast.AugAssign() if type(changed.op) in ARITHMETIC:
            changed.op = ARITHMETIC[type(changed.op)]()
            yield changed
        case ast.Compare() if type(changed.ops[0]) in COMPARISONS:
            changed.ops[0] = COMPARISONS[type(changed.ops[0])]()
            yield changed
        case ast.BoolOp():
            changed.op = ast.Or() if isinstance(changed.op, ast.And) else ast.And()
            yield changed
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield changed.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.If() | ast.IfExp() | ast.While():
            for truth in (True, False):
                if not (truth and isinstance(node, ast.While)):
                    changed = copy.deepcopy(node)
                    changed.test = ast.Constant(truth)
                    yield changed
        case ast.For():
            changed.iter = ast.Tuple([], ast.Load())
            yield changed
        case ast.Name(id=name) if name in SWAPPED_NAMES:
            changed.id = SWAPPED_NAMES[name]
            yield changed
        case ast.Attribute(attr=name) if name in SWAPPED_NAMES:
            changed.attr = SWAPPED_NAMES[name]
            yield changed


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module's source."""
    tree = ast.parse(source)
    for number, node in enumerate(visited_nodes(tree)):
        for replacement in replacements(node):
            changed = copy.deepcopy(tree)
            target = next(
                found for index, found in enumerate(visited_nodes(changed)) if index == number
            )
            swap(changed, target, ast.copy_location(replacement, node))
            yield Mutant(
                node.lineno,
                first_line(node),
                first_line(replacement),
                ast.fix_missing_locations(changed),
            )


def swap(tree: ast.AST, target: ast.AST, replacement: ast.AST) -> None:
    """Put `replacement` where `target` is."""
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, replacement)
            elif isinstance(value, list) and any(child is target for child in value):
                setattr(
                    parent, name, [replacement if child is target else child for child in value]
                )


def first_line(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:110]


class MutatedModule(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the changed code when `name` is imported."""

    def __init__(self, name: str, origin: str, tree: ast.Module) -> None:
        self.name, self.origin, self.tree = name, origin, tree

    def find_spec(self, fullname, path=None, target=None):
        return (
            importlib.util.spec_from_file_location(fullname, self.origin, loader=self)
            if fullname == self.name
            else None
        )

    def exec_module(self, module) -> None:
        exec(compile(self.tree, self.origin, "exec"), module.__dict__)


def run_tests(name: str, origin: str, tree: ast.Module, tests: list[str]) -> None:
    """In the child: the tests on the changed module; never returns."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.meta_path.insert(0, MutatedModule(name, origin, tree))
    import pytest

    os._exit(int(pytest.main(["-x", "-n", "0", *tests])))


def passes_forked(run: Callable[[], None], seconds: float) -> bool:
    """Whether a forked child that does `run`, which never returns, ends well and in time."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--sample", type=int, help="only so many, drawn with seed 0")
    parser.add_argument("--only", help="numbers of mutants by commas: those that were left, say")
    options = parser.parse_args()
    for library in LIBRARIES:
        importlib.import_module(library)
    origin = str(Path(*options.module.split(".")).with_suffix(".py").resolve())
    source = Path(origin).read_text()
    began = time.monotonic()

    def run(tree: ast.Module) -> None:
        run_tests(options.module, origin, tree, options.tests)

    if not passes_forked(partial(run, ast.parse(source)), 3600):
        sys.exit("the tests fail without any change")
    seconds = max(30.0, 4 * (time.monotonic() - began))
    drawn = list(enumerate(mutants(source)))
    if options.only is not None:
        drawn = [drawn[int(number)] for number in options.only.split(",")]
    if options.sample is not None and options.sample < len(drawn):
        drawn = random.Random(0).sample(drawn, options.sample)
    left = 0
    for number, mutant in drawn:
        if passes_forked(partial(run, mutant.tree), seconds):
            left += 1
            print(f"{number}: line {mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
    print(f"{options.module}: {len(drawn)} tried, {left} left", flush=True)


if __name__ == "__main__":
    main()
