"""The trainer's named mutants: changes that are easily made and hard to see, each of which a test must notice.

    python -m tests.trainer_mutants                      # all of tests/trainer_mutants.toml
    python -m tests.trainer_mutants temperature scaler   # those whose names have one of these words

Each is applied to a copy of the package and tests, for some tests start processes of their own, and is killed when
a test of its list fails or hangs. `tests/mutants.py` makes mutants by rules; these are the ones that were once missed.
"""

import importlib
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.mutants import LIBRARIES, passes_forked

ROOT = Path(__file__).parents[1]
SECONDS = 300  # of a test that hangs
# imported once and not by every child: half of its time
FURTHER = (
    "h5py",
    "sympy",
    "torch._meta_registrations",
    "torch._decomp",
    "safetensors.torch",
    "scipy.stats",
)


class NamedMutant(NamedTuple):
    """A change of one file, and the tests that are to notice it."""

    name: str
    path: str
    before: str
    after: str
    tests: list[str]


def named_mutants() -> Iterator[NamedMutant]:
    """All of the list."""
    table = tomllib.loads((ROOT / "tests" / "trainer_mutants.toml").read_text())
    for path, entries in table.items():
        for name, (before, after, tests) in entries.items():
            files = [test if "/" in test else f"tests/nn/{test}.py" for test in tests.split()]
            yield NamedMutant(name, path, before, after, files)


def run_tests(folder: Path, tests: list[str]) -> None:
    """In the child: the tests of the copy; never returns."""
    os.setsid()
    os.chdir(folder)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "sdgpu")]:
        del sys.modules[name]
    sys.path[0] = str(folder)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    import pytest

    os._exit(int(pytest.main(["-x", "-n", "0", "-p", "no:cacheprovider", *tests])))


def survives(folder: Path, tests: list[str]) -> bool:
    """Whether every test of the copy passes, in time."""
    return passes_forked(partial(run_tests, folder, tests), SECONDS)


def main(words: list[str]) -> None:
    every = list(named_mutants())
    if words:
        every = [one for one in every if any(word in one.name for word in words)]
    for library in (*LIBRARIES, *FURTHER):
        importlib.import_module(library)
    left = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("sdgpu", "tests", "benchmarks"):
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        for test in sorted({test for one in every for test in one.tests}):
            if not survives(folder, [test]):
                sys.exit(f"{test} fails without any change")
        for one in every:
            path = folder / one.path
            source = path.read_text()
            path.write_text(source.replace(one.before, one.after))
            if survives(folder, one.tests):
                left += 1
                print(f"left: {one.path}: {one.name}", flush=True)
            path.write_text(source)
    print(f"{len(every)} tried, {left} left", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
