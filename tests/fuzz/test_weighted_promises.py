"""The same promises with weights and an intercept: no crash, and no answer worse than its status says."""

from __future__ import annotations

import warnings

import array_api_strict as strict
import numpy as np
import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import sdgpu
from sdgpu.distill.schedules import coefficients
from tests.fuzz.problems import KERNELS, Problem, fields, problems
from tests.fuzz.reference import Wide, gram, refits
from tests.fuzz.test_promises import CASES, METHODS, SETTINGS

pytestmark = pytest.mark.skipif(
    np.finfo(Wide).eps > 1e-18, reason="no extended precision on this machine"
)
ROWS = ["plain", "repeated", "constant", "zero", "one", "far", "large", "line", "lattice"]
TARGETS = ["noise", "smooth", "constant", "zero", "unit", "classes"]


def weights_of(problem: Problem, kind: str) -> np.ndarray:
    """Of one size, whole with zeros, or of all sizes."""
    rng = np.random.default_rng([problem.seed, 2])
    if kind == "whole":
        w = rng.integers(0, 4, problem.n).astype(float)
        w[rng.integers(problem.n)] = 1.0
        return w
    return (
        rng.uniform(0.5, 2.0, problem.n) if kind == "near" else 10 ** rng.uniform(-6, 6, problem.n)
    )


def check(problem: Problem, kind: str, intercept: bool) -> None:
    X, Y, w = problem.X, problem.Y, weights_of(problem, kind)
    K = gram(problem.kernel, X, X, problem.parameter)
    if not np.abs(K).max() < 1e100:
        return
    root = np.sqrt(w.astype(Wide))
    q = root / np.sqrt((root**2).sum())
    project = (lambda V: V - np.outer(q, q @ V)) if intercept else (lambda V: V)
    A = project(project(root[:, None] * K * root[None, :]).T).T
    mean = (q * q) @ Y.astype(Wide) if intercept else np.zeros(problem.c, dtype=Wide)
    targets = project(root[:, None] * (Y - mean))
    top = float(np.linalg.eigvalsh(A.astype(float))[-1])
    full = float(np.linalg.eigvalsh((root[:, None] * K * root[None, :]).astype(float))[-1])
    lam = max((full if full > 0 else 1.0) * 10.0**problem.exponent, 1e-200)
    alphas = np.full(problem.steps - 1, problem.alpha)
    make = {"numpy": np.asarray, "torch": torch.from_numpy, "array_api_strict": strict.asarray}
    data = tuple(make[problem.library](a) for a in (X, Y))
    how = {"method": problem.method, "operator": problem.operator, "dtype": problem.precision}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit = sdgpu.fit(
                *data,
                KERNELS[problem.kernel](problem.parameter),
                lam,
                sample_weight=w,
                intercept=intercept,
                steps=problem.steps,
                **how,
            )
        except ValueError as error:
            rough = problem.precision in ("float32", "mixed")
            texts = ("not positive", "in float32", "overflows")
            if not (rough and any(text in str(error) for text in texts)):
                raise
            return
        path = fit.path(lam, alphas, problem.steps)
        fitted, at_rows = (np.asarray(x).astype(Wide) for x in (path.fitted, path.predict(data[0])))
    info = fit.info
    warned = any(issubclass(one.category, UserWarning) for one in caught)
    assert warned == (not info.status.startswith(("exact", "converged"))), info.status
    assert np.isfinite(fitted).all()
    assert np.isfinite(at_rows).all()
    if info.error_estimate >= 1:
        return
    truth = refits(A, targets, lam, alphas)
    found = (
        project(root[None, :, None] * (fitted - mean))
        if not intercept
        else np.stack([project(root[:, None] * (f - mean)) for f in fitted])
    )
    size = np.sqrt((truth[0] ** 2).sum(axis=0))
    size = np.maximum(size, 1e-6 * top / (top + lam) * np.sqrt((targets**2).sum(axis=0)))
    eps = np.finfo(problem.dtype).eps
    # a kernel that is nearly constant leaves the rounding of the reference itself
    own = 100 * np.finfo(Wide).eps * full / lam * np.sqrt((targets**2).sum(axis=0))
    largest = np.sqrt((root[:, None] ** 2 * Y.astype(Wide) ** 2).sum(axis=0))
    # known: of float32 values with weights over twelve orders the estimate may be a third of the error
    rough = problem.precision in ("float32", "mixed")
    said = info.error_estimate * (3 if kind == "wide" and rough else 1)
    for t in range(problem.steps):
        growth = np.abs(coefficients(alphas[:t])).sum() if t else 1.0
        error = np.sqrt(((found[t] - truth[t]) ** 2).sum(axis=0))
        allowed = (said + 1e-15) * growth * size + growth * (4 * eps * largest + own)
        assert (error <= allowed).all(), (t, error / size, info.error_estimate, info.status)


@pytest.mark.parametrize("method", METHODS)
def test_no_answer_is_worse_than_its_status_says(method):
    choices = fields(method) | {"rows": ROWS, "targets": TARGETS}

    @seed(0)
    @settings(SETTINGS, max_examples=max(CASES // 20, 1))
    @given(
        problem=problems(choices),
        kind=st.sampled_from(["near", "whole", "wide"]),
        intercept=st.booleans(),
    )
    def run(problem, kind, intercept):
        check(problem, kind, intercept)

    run()
