"""A plan knows its problem, and is the same whatever the clock says and whatever else runs."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.backend.memory import parse_bytes
from sdgpu.backend.rates import NOMINAL, Rates
from sdgpu.engine import planner
from sdgpu.engine.costs import expected_passes

GRID = [
    (n, d, lam, tol, memory)
    for n in (300, 1000, 3000, 12_000, 60_000)
    for d in (3, 300)
    for lam in (1e-8, 1e-4, 1e-1)
    for tol in (1e-3, 1e-8)
    for memory in ("60MB", "400MB", "16GB")
]


def choices():
    found = []
    for n, d, lam, tol, memory in GRID:
        try:
            one = sdgpu.plan(n, d, lams=[lam * n, n], tol=tol, memory=memory, device="cpu")
        except MemoryError:
            found.append(None)
            continue
        assert one.bytes <= parse_bytes(memory)
        found.append(replace(one, seconds=0.0, reasons=()))
    return found


def test_the_choice_depends_on_no_clock_and_no_threads(monkeypatch):
    wild = [
        Rates(*(getattr(NOMINAL, f.name) * factor for f in fields(Rates)))
        for factor in np.random.default_rng(0).lognormal(0, 2, size=2)
    ]
    wild.append(replace(NOMINAL, products=NOMINAL.products / 30, bandwidth=NOMINAL.bandwidth / 30))
    found, threads = [], torch.get_num_threads()
    try:
        for k, rates in enumerate(wild):
            monkeypatch.setattr(planner, "calibrate", lambda backend, rates=rates: rates)
            torch.set_num_threads(k + 1)
            found.append(choices())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert sum(one is not None for one in found[0]) > len(GRID) / 2
    assert {one.method for one in found[0] if one} == {"eigh", "lanczos", "subspace"}


@pytest.mark.parametrize("megabytes", range(185, 265, 5))
def test_a_grown_basis_keeps_what_it_has_found(megabytes):
    """10,000 flights: with a tenth of the vectors restarts do not converge, where Lanczos does."""
    n, lams = 10_000, np.geomspace(1e-6, 1e-1, 20) * 10_000
    options = {"tol": 1e-4, "operator": "tiled", "memory": f"{megabytes}MB", "device": "cpu"}
    plan = sdgpu.plan(n, 12, 1, lams, **options)
    expected = {
        (method, rank): passes * block
        for method, block, rank, passes in expected_passes(n, 1, lams.min(), 1e-4)
    }
    assert plan.method in ("subspace", "lanczos")
    assert plan.max_size >= 0.17 * expected[plan.method, plan.rank]


def test_a_method_without_a_spectrum_is_only_taken_when_asked_for(monkeypatch):
    slow = replace(NOMINAL, products=1e8)  # where the algebra of a basis costs most
    monkeypatch.setattr(planner, "nominal", lambda backend: slow)
    problem = {"n": 20_000, "d": 3, "lams": 200.0, "steps": 1, "tol": 1e-6, "device": "cpu"}
    free = sdgpu.plan(**problem, memory="400MB")
    asked = sdgpu.plan(**problem, memory="400MB", method="cg")
    assert asked.method == "cg"
    assert asked.seconds < free.seconds
    assert free.method in ("lanczos", "subspace")


def test_the_price_is_measured_where_there_is_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(planner, "calibrate", lambda backend: asked.append(backend) or NOMINAL)
    with pytest.raises(MemoryError):
        sdgpu.plan(10_000, 3, memory="1MB", device="cpu")
    sdgpu.plan(4000, 3, lams=4.0, memory="60MB", device="cpu")
    sdgpu.plan(500, 3, device="cpu")
    assert not asked
    sdgpu.plan(10_000, 3, lams=1.0, memory="8GB", device="cpu")
    assert len(asked) == 1
    rng = np.random.default_rng(0)
    sdgpu.fit(rng.standard_normal((2600, 2)), rng.standard_normal(2600), lams=26.0, tol=1e-2)
    assert len(asked) == 1  # a fit needs no price


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    return rng.standard_normal((60, 3)), rng.standard_normal((60, 2))


PROBLEM = {"n": 60, "d": 3, "c": 2, "lams": [0.5, 1.0], "steps": 10}


@pytest.mark.parametrize(
    ("problem", "asked", "words"),
    [
        ({"n": 50}, {}, "n = 50 rows, but the data have 60"),
        ({"d": 4}, {}, "d = 4 features"),
        ({"c": 1}, {}, "c = 1 outputs"),
        ({"lams": 0.6}, {}, "lams >= 0.6, but the smallest of lams= is 0.5"),
        ({}, {"method": "lanczos"}, "method='lanczos' contradicts the plan"),
        ({}, {"operator": "tiled"}, "operator='tiled' contradicts the plan"),
        ({}, {"dtype": "float32"}, "dtype='float32' contradicts the plan"),
        ({}, {"tol": 1e-3}, "tol=0.001 contradicts the plan"),
        ({}, {"steps": 3}, "steps=3 contradicts the plan"),
    ],
)
def test_another_problem_is_refused(data, problem, asked, words):
    plan = sdgpu.plan(**(PROBLEM | problem))
    with pytest.raises(ValueError, match=words):
        sdgpu.fit(*data, "rbf", [0.5, 1.0], plan=plan, **asked)


@pytest.mark.parametrize("asked", [{}, {"method": "eigh", "operator": "dense"}, {"steps": 10}])
def test_the_same_problem_is_followed(data, asked):
    plan = sdgpu.plan(**PROBLEM)
    fitted = sdgpu.fit(*data, "rbf", [0.5, 1.0], plan=plan, **asked)
    assert fitted.info.method == plan.method == "eigh"
    assert fitted.info.bytes == plan.bytes


def test_a_small_fit_imports_nothing_heavy():
    """300 NumPy rows, every answer of an eigendecomposition: the import of torch is 1.5 s by itself."""
    script = """
import sys
import sdgpu
heavy = {"torch", "sklearn", "matplotlib", "llvmlite", "pykeops", "triton", "typer", "rich"}
slow = heavy | {"xarray", "pandas", "scipy.optimize", "pyarrow", "zarr", "dask"}
assert not slow & set(sys.modules), slow & set(sys.modules)  # half of the time of the import
import numpy as np
rng = np.random.default_rng(0)
X, y = rng.standard_normal((300, 4)), rng.standard_normal(300)
fit = sdgpu.fit(X, y, sdgpu.Gaussian(0.1), lams=[0.1, 1.0])
fit.path(0.1, 0.3, 3).predict(X[:5])
fit.limit(0.1, 0.5).predict(X[:5])
fit.sweep(X[:50], y[:50], steps=3).best()
fit.sweep(steps=3), fit.loo(0.1, 0.3, 3), fit.gcv(0.1)
fit.optimal_alphas(X[:50], y[:50], 0.1, 3), fit.joint_alphas(X[:50], y[:50], 0.1, 2)
sdgpu.plan(300, 4, lams=0.1)
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    root = Path(__file__).parent.parent.parent
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, cwd=root
    )
    assert run.returncode == 0, run.stderr
