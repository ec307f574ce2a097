"""What a result is as an object: compared, hashed, pickled, copied, and never changed by later work."""

import copy
import dataclasses
import importlib
import inspect
import json
import pickle
import pkgutil
import re

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.engine.fitted import Fit
from sdgpu.engine.path import Path
from sdgpu.selection.sweep import Sweep
from tests.problems import assert_near

# what may hold arrays in an annotation: arrays, "anything", and what answers with them
ARRAYS = {"ndarray", "Array", "Tensor", "Dataset", "Any"}
ANSWERS = {"Solution", "DistillationChain", "BasisColumns", "Leverages", "Operator", "GrowingBasis"}
# "anything" is no array there, or it is compared with care
COMPARABLE = {
    "Best",
    "EmpiricalNTK",
    "Formula",
    "FunctionKernel",
    "Lab",
    "PlainBackend",
    "Store",
    "TorchBackend",
    "Use",
    "Weight",
}


def dataclasses_of_the_package():
    found = set()
    for module in pkgutil.walk_packages(sdgpu.__path__, "sdgpu."):
        if module.name.endswith(("__main__", "fused_cuda", "device_functions")):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            ours = inspect.isclass(value) and value.__module__.startswith("sdgpu")
            if ours and dataclasses.is_dataclass(value):
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
    wrong = [
        f"{cls.__module__}.{cls.__name__}" for cls in holders if cls.__eq__ is not object.__eq__
    ]
    assert {Fit, Path, Sweep} <= holders
    assert not sorted(wrong)


KERNEL = sdgpu.Gaussian(0.3)
METHODS = {
    "eigh": {},
    "lanczos": {"operator": "dense"},
    "subspace": {"operator": "tiled"},
    "cg": {"operator": "dense"},
}


def problem(library="numpy"):
    rng = np.random.default_rng(0)
    X, X_val = rng.standard_normal((150, 3)), rng.standard_normal((12, 3))
    arrays = X, np.sin(X[:, :2]), X_val, np.sin(X_val[:, :2])
    return arrays if library == "numpy" else tuple(torch.tensor(a) for a in arrays)


def solution(fitted, X_val, Y_val):
    grid = {"alphas": [0.0, 0.3], "steps": 2}
    return [
        np.asarray(found)
        for found in (
            fitted.path(1.0, 0.3, 3).predict(X_val),
            fitted.limit(1.0, 0.3).predict(X_val),
            fitted.loo(1.0, 0.3, 2),
            fitted.sweep(X_val, Y_val, **grid).dataset["mse"],
            fitted.sweep(**grid).dataset["mse"],
        )
    ]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("method", METHODS)
def test_a_fit_can_be_pickled(method, library):
    X, Y, X_val, Y_val = problem(library)
    fitted = sdgpu.fit(
        X, Y, KERNEL, lams=[1.0, 3.0], method=method, progress=lambda event: None, **METHODS[method]
    )
    early = pickle.loads(pickle.dumps(fitted))
    wanted = solution(fitted, X_val, Y_val)
    for again in (early, pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert again.info == fitted.info
        for found, truth in zip(solution(again, X_val, Y_val), wanted, strict=True):
            assert_near(found, truth, rtol=1e-12)
    path, limit = fitted.path(1.0, 0.3, 3), fitted.limit(1.0, 0.3)
    for one in (path, limit, path.predictor()):
        again = pickle.loads(pickle.dumps(one))
        assert_near(np.asarray(again.predict(X_val)), np.asarray(one.predict(X_val)), rtol=1e-12)


def test_other_results_can_be_pickled(backend):
    X, Y, X_val, Y_val = problem()
    fitted = sdgpu.fit(X, Y, KERNEL, lams=[1.0, 3.0], device=backend)
    chain = sdgpu.constrained_path(X, Y, KERNEL, eps=0.1, alpha=0.5, steps=3, device=backend)
    sweep = fitted.sweep(X_val, Y_val, alphas=[0.0, 0.5], steps=2)
    assert (pickle.loads(pickle.dumps(chain)).predict(X_val) == chain.predict(X_val)).all()
    assert pickle.loads(pickle.dumps(fitted)).path(1.0).fitted.shape == (2, 150, 2)
    assert pickle.loads(pickle.dumps(sweep)).dataset.identical(sweep.dataset)
    for one in (
        sweep.best("star"),
        fitted.info,
        fitted.gcv(1.0),
        fitted.optimal_alphas(X_val, Y_val, 1.0),
        fitted.joint_alphas(X_val, Y_val, 1.0),
        fitted.path(1.0).variance(X_val),
        fitted.spectrum,
        sdgpu.plan(n=100, d=2),
    ):
        assert type(pickle.loads(pickle.dumps(one))) is type(one)


def test_a_pickled_operator_leaves_its_caches_behind():
    X = np.random.default_rng(1).standard_normal((400, 2))
    for operator in (
        sdgpu.operators.DenseOperator(KERNEL, X),
        sdgpu.operators.TiledOperator(KERNEL, X, keep=True),
    ):
        product = operator.matmat(X)
        stored = pickle.dumps(operator)
        assert len(stored) < 2 * X.nbytes
        assert (pickle.loads(stored).matmat(X) == product).all()


def test_fits_are_compared_and_hashed_by_identity():
    X, Y, *_ = problem()
    one, two = (sdgpu.fit(X, Y, KERNEL, lams=1.0) for _ in range(2))
    assert one == one
    assert one != two
    assert len({one, two, one, one.path(), one.limit()}) == 4


def test_later_work_does_not_change_a_result():
    X, Y, X_val, Y_val = problem()
    fitted = sdgpu.fit(X, Y, KERNEL, lams=[1.0, 3.0], method="lanczos")
    before, total = dict(fitted.info.seconds), sum(fitted.info.seconds.values())
    first = fitted.sweep(alphas=[0.5], steps=2).dataset.attrs["fit_seconds"]  # grows probes
    assert first == total == fitted.sweep(X_val, Y_val, steps=2).dataset.attrs["fit_seconds"]
    assert fitted.info.seconds == before
    assert json.loads(json.dumps(fitted.info.seconds)) == before
    assert hash(fitted.info) == hash(copy.deepcopy(fitted.info))
    for change in (
        lambda s: s.update(a=1),
        lambda s: s.pop("passes"),
        lambda s: s.clear(),
        lambda s: s.__setitem__("a", 1),
    ):
        with pytest.raises(TypeError, match="cannot be changed"):
            change(fitted.info.seconds)
