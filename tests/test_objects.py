"""What a result is as an object: compared, hashed, pickled, copied, and never changed by later work."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import sdgpu
from sdgpu.model import Fit
from sdgpu.path import Path
from sdgpu.sweep import Sweep

# what may hold arrays in an annotation: arrays, "anything", and what answers with them
ARRAYS = {"ndarray", "Array", "Tensor", "Dataset", "Any"}
ANSWERS = {"Answers", "Chain", "Columns", "Leverages", "Operator", "GrowingBasis"}
# "anything" is no array there, or it is compared with care
COMPARABLE = {
    "Best", "EmpiricalNTK", "FunctionKernel", "Lab", "PlainBackend", "Store", "TorchBackend", "Use",
    "Weight",
}  # fmt: skip


def dataclasses_of_the_package():
    found = set()
    for module in pkgutil.walk_packages(sdgpu.__path__, "sdgpu."):
        if module.name.endswith(("__main__", "fused_cuda")):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and dataclasses.is_dataclass(value):
                found.add(value)
    return found


def holds(cls, holders):
    """Whether a field may hold an array, or one of the holders, by its annotation."""
    known = vars(importlib.import_module(cls.__module__))
    for f in dataclasses.fields(cls):
        for word in re.findall(r"\w+", str(f.type)):
            if word in ARRAYS or known.get(word) in holders:
                return True
            if word in ANSWERS and getattr(known.get(word), "__module__", "").startswith("sdgpu"):
                return True
    return False


def test_what_holds_arrays_is_compared_by_identity():
    """== of arrays is an array, which dataclasses take for a truth value, and no array has a hash."""
    classes = {c for c in dataclasses_of_the_package() if c.__name__ not in COMPARABLE}
    holders, before = set(), None
    while holders != before:
        before, holders = holders, {cls for cls in classes if holds(cls, holders)}
    wrong = [f"{cls.__module__}.{cls.__name__}" for cls in holders
             if cls.__eq__ is not object.__eq__]  # fmt: skip
    assert {Fit, Path, Sweep} <= holders
    assert not sorted(wrong)
