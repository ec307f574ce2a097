"""No crash, and no answer that is worse than its status says, whatever the problem."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import sdgpu
from sdgpu.distill.schedules import coefficients
from tests.fuzz.problems import KERNELS, Problem, problems
from tests.fuzz.reference import Wide, gram, refits

CASES = int(os.environ.get("SDGPU_FUZZ_CASES", "2000"))
METHODS = ("eigh", "lanczos", "subspace", "cg")
OVERFLOW = ("huge",)  # rows whose products are beyond float64

pytestmark = pytest.mark.skipif(
    np.finfo(Wide).eps > 1e-18, reason="no extended precision on this machine"
)


def check(problem: Problem) -> str:
    X, Y = problem.X, problem.Y
    K = gram(problem.kernel, X, X, problem.parameter)
    overflows, nearly = not np.abs(K).max() < 1e305, not np.abs(K).max() < 1e298
    top = float(np.linalg.eigvalsh(K.astype(float))[-1]) if not overflows else 1.0
    lam = (top if top > 0 else 1.0) * 10.0**problem.exponent
    lams = np.array([lam, max(lam, min(lam, 1e290) * 10.0**problem.spread)])
    alphas = np.full(problem.steps - 1, problem.alpha)
    data = (X, Y)
    if problem.library == "torch":
        import torch

        data = tuple(torch.from_numpy(a) for a in data)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = sdgpu.fit(
                *data, KERNELS[problem.kernel](problem.parameter), lams=lams, method=problem.method,
                operator=problem.operator, dtype=problem.precision, steps=problem.steps,
            )  # fmt: skip
            path = fit.path(lam, alphas=alphas, steps=problem.steps)
            fitted, at_rows = (np.asarray(x) for x in (path.fitted, path.predict(data[0])))
    except ValueError as error:
        rough = problem.precision in ("float32", "mixed")
        indefinite = rough and "not positive" in str(error)
        narrow = rough and (np.abs(X).max() > 1e15 or np.abs(K).max() > 1e36)
        too_large = "overflow" in str(error) and (narrow or nearly)
        if not (indefinite or too_large):
            raise
        return "refused"
    assert not overflows, "an overflow went unseen"
    info = fit.info
    assert np.isfinite(fitted).all()
    representable = np.abs(Y).max() < 1e-3 * np.finfo(problem.dtype).max * min(lam, 1)  # the duals
    assert (
        representable
        or info.status.startswith(("overflow", "inaccurate"))
        or np.isfinite(at_rows).all()
    )
    assert np.isfinite(at_rows).all() or not representable
    warned = any(issubclass(w.category, UserWarning) for w in caught)
    assert warned == (not info.status.startswith(("exact", "converged"))), info.status
    truth = refits(K, Y, lam, alphas)
    size = np.sqrt(
        np.maximum((truth[0] ** 2).sum(axis=0), (fitted[0].astype(Wide) ** 2).sum(axis=0))
    )
    # predictions that are next to nothing count as zero
    size = np.maximum(size, 1e-6 * top / (top + lam) * np.sqrt((Y.astype(Wide) ** 2).sum(axis=0)))
    # kernel values of new rows are evaluated in the precision of the fit
    precision = np.finfo("float64" if problem.precision in (None, "float64") else "float32").eps
    lengths = np.sqrt((np.asarray(path.dual).astype(Wide) ** 2).sum(axis=1))  # (T, c)
    for t in range(problem.steps):
        growth = np.abs(coefficients(alphas[:t])).sum() if t else 1.0
        rounding = (
            np.finfo(problem.dtype).eps
            * (1 + np.sqrt((truth[t] ** 2).sum(axis=0)) / np.where(size > 0, size, 1))
            + 1e-15 * growth
        )
        tiny = np.finfo(problem.dtype).tiny * problem.n
        error = np.sqrt(((fitted[t] - truth[t]) ** 2).sum(axis=0))
        allowed = (info.error_estimate * growth + rounding) * size + tiny
        assert (error <= allowed).all(), (t, error / size, info.error_estimate, growth, info.status)
        if not representable:
            continue
        new = np.sqrt(((at_rows[t] - truth[t]) ** 2).sum(axis=0))
        allowed = 2 * allowed + 8 * precision * (4 + np.sqrt(problem.n)) * top * lengths[t]
        assert (new <= allowed).all(), ("predict", t, new / size, info.error_estimate, info.status)
    return "checked"


@pytest.mark.parametrize("method", METHODS)
def test_no_answer_is_worse_than_its_status_says(method):
    @settings(
        max_examples=CASES // len(METHODS), deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(problem=problems(method))
    def run(problem):
        check(problem)

    run()
