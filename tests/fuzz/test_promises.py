"""No crash, and no answer that is worse than its status says, whatever the problem."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import array_api_strict as strict
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import sdgpu
from sdgpu.distill.schedules import coefficients
from sdgpu.operators import DenseOperator, keops
from tests.fuzz.problems import KERNELS, Problem, fields, keops_fields, problems
from tests.fuzz.reference import Wide, gram, refits

CASES = int(os.environ.get("SDGPU_FUZZ_CASES", "2000"))
METHODS = ("eigh", "lanczos", "subspace", "cg")
SHARD = 500  # cases of one test: shards run side by side, each with a seed of its own
SHARDS = max(1, CASES // (SHARD * len(METHODS)))
SETTINGS = settings(
    max_examples=max(CASES // (SHARDS * len(METHODS)), 1),
    deadline=None,
    derandomize=False,
    database=None,
    suppress_health_check=list(HealthCheck),
)

pytestmark = pytest.mark.skipif(
    np.finfo(Wide).eps > 1e-18, reason="no extended precision on this machine"
)


def check(problem: Problem) -> str:
    X, Y = problem.X, problem.Y
    K = gram(problem.kernel, X, X, problem.parameter)
    overflows, nearly = not np.abs(K).max() < 1e305, not np.abs(K).max() < 1e298
    top = float(np.linalg.eigvalsh(K.astype(float))[-1]) if not overflows else 1.0
    lam = min((top if top > 0 else 1.0) * 10.0**problem.exponent, 1e300)
    lam = max(lam, 1e-300)  # its reciprocal is a number
    lams = np.array([lam, max(lam, min(lam, 1e290) * 10.0**problem.spread)])
    alphas = np.full(problem.steps - 1, problem.alpha)
    make = {"numpy": np.asarray, "torch": torch.from_numpy, "array_api_strict": strict.asarray}
    data = tuple(make[problem.library](a) for a in (X, Y))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = sdgpu.fit(
                *data,
                KERNELS[problem.kernel](problem.parameter),
                lams=lams,
                method=problem.method,
                operator=problem.operator,
                dtype=problem.precision,
                steps=problem.steps,
            )
            path = fit.path(lam, alphas=alphas, steps=problem.steps)
            solution = (path.fitted, path.predict(data[0]), path.dual)
            fitted, at_rows, dual = (np.asarray(x) for x in solution)
    except ValueError as error:
        rough = problem.precision in ("float32", "mixed")
        indefinite = rough and "not positive" in str(error)
        size = float(np.abs(X).max())
        single = rough or problem.dtype == "float32"
        narrow = single and (size > 1e15 or np.abs(K).max() > 1e36)
        vast = size > 1e152  # squares overflow
        too_large = "overflow" in str(error) and (narrow or nearly or vast)
        too_small = "underflow in float32" in str(error) and single and np.abs(K).max() < 1e-29
        if not (indefinite or too_large or too_small or overflows):
            raise
        return "refused"
    if overflows:
        assert np.abs(K).max() < 1.8e308, "an overflow went unseen"
        return "at the limit"  # where the reference cannot follow
    info = fit.info
    assert np.isfinite(fitted).all()
    growth = np.abs(coefficients(alphas)).sum()
    representable = growth * np.abs(Y).max() < 1e-3 * np.finfo(problem.dtype).max * min(
        lam, 1
    )  # the duals
    assert (
        representable
        or not np.isfinite(dual).all()
        or info.status.startswith(("overflow", "inaccurate"))
        or np.isfinite(at_rows).all()
    )
    assert np.isfinite(at_rows).all() or not representable or not np.isfinite(dual).all()
    warned = any(issubclass(w.category, UserWarning) for w in caught)
    assert warned == (not info.status.startswith(("exact", "converged"))), info.status
    if info.error_estimate >= 1:
        return "hopeless"  # and says so
    truth = refits(K, Y, lam, alphas)
    size = np.sqrt(
        np.maximum((truth[0] ** 2).sum(axis=0), (fitted[0].astype(Wide) ** 2).sum(axis=0))
    )
    # predictions that are next to nothing count as zero
    size = np.maximum(size, 1e-6 * top / (top + lam) * np.sqrt((Y.astype(Wide) ** 2).sum(axis=0)))
    # kernel values of new rows are evaluated in the precision of the fit
    precision = np.finfo("float64" if problem.precision in (None, "float64") else "float32").eps
    lengths = np.sqrt((dual.astype(Wide) ** 2).sum(axis=1))  # (T, c)
    for t in range(problem.steps):
        growth = np.abs(coefficients(alphas[:t])).sum() if t else 1.0
        rounding = (
            np.finfo(problem.dtype).eps
            * (1 + np.sqrt((truth[t] ** 2).sum(axis=0)) / np.where(size > 0, size, 1))
            + 1e-15 * growth
        )
        # numbers below the range are zeros, in K too
        tiny = (
            np.finfo(problem.dtype).tiny
            * problem.n
            * (1 + np.where(np.isfinite(lengths[t]), lengths[t], 0))
        )
        error = np.sqrt(((fitted[t] - truth[t]) ** 2).sum(axis=0))
        allowed = (info.error_estimate * growth + rounding) * size + tiny
        assert (error <= allowed).all(), (t, error / size, info.error_estimate, growth, info.status)
        if not representable:
            continue
        new = np.sqrt(((at_rows[t] - truth[t]) ** 2).sum(axis=0))
        values = 8 * (4 + np.sqrt(problem.n)) * top
        if problem.precision in ("float32", "mixed"):
            # what the kernel says of its values, and of a row itself, which at new rows is one of many
            kernel = KERNELS[problem.kernel](problem.parameter)
            entries = DenseOperator(kernel, X.astype(float)).rounding()
            values = max(values, entries * float(np.trace(K)))
        # coefficients below the range have the digits that are left there
        allowed = 2 * allowed + 5e-324 * problem.n * top + precision * values * lengths[t]
        assert (new <= allowed).all(), ("predict", t, new / size, info.error_estimate, info.status)
    if representable:
        check_sweep(problem, fit, data, truth, alphas, lam, size)
    return "checked"


def check_sweep(problem, fit, data, truth, alphas, lam, size) -> None:
    """Losses on the training rows are those of the refits; limits and leave-one-out say what they cannot."""
    largest = float(np.abs(problem.Y).max())
    if largest and not 1e-100 < largest < 1e100:
        return  # squared errors leave float64, and the sweep warns
    Y = problem.Y.astype(Wide)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sweep = fit.sweep(*data, lams=lam, alphas=[problem.alpha], steps=problem.steps)
        loss = np.sqrt(((truth - Y) ** 2).sum(axis=(1, 2)))
        found = np.sqrt(sweep.dataset["mse"].values[0, 0].astype(Wide) * Y.size)
        dual = np.asarray(fit.path(lam, alphas, problem.steps).dual).astype(Wide)
        K = gram(problem.kernel, problem.X, problem.X, problem.parameter).astype(float)
        # at new rows the kernel is evaluated again
        precision = np.finfo("float64" if fit.info.precision == "float64" else "float32").eps
        moved = np.linalg.norm(K, 2) * np.sqrt((dual**2).sum()) + loss.max()
        rounding = 32 * precision * (4 + np.sqrt(problem.n)) * moved
        entries = DenseOperator(
            fit.kernel, problem.X.astype(float)
        ).rounding()  # as the kernel says
        rounding += precision * entries * np.trace(K) * np.sqrt((dual**2).sum())
        for t in range(problem.steps):
            growth = np.abs(coefficients(alphas[:t])).sum() if t else 1.0
            error = 2 * fit.info.error_estimate * np.sqrt((size**2).sum()) + rounding
            assert abs(found[t] - loss[t]) <= growth * error, ("sweep", t, found[t], loss[t], error)
        left = ("determines itself", "needs eigenvalues", "no limit", "leave-one-out")
        for question in (lambda: fit.loo(lam, 0.5, 2), lambda: fit.gcv(lam)):
            try:
                question()
            except ValueError as error:
                if not any(text in str(error) for text in left):
                    raise
        assert np.isfinite(np.asarray(fit.limit(lam, 0.5).fitted)).all()


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("method", METHODS)
def test_no_answer_is_worse_than_its_status_says(method, shard):
    @seed(shard)
    @SETTINGS
    @given(problem=problems(fields(method)))
    def run(problem):
        check(problem)

    run()


@pytest.mark.parametrize("method", METHODS[1:])
def test_keops_keeps_the_same_promises(method):
    if keops.why_not():
        pytest.skip(keops.why_not())

    @seed(0)
    @settings(SETTINGS, max_examples=max(CASES // 1000, 1))
    @given(problem=problems(keops_fields(method)))
    def run(problem):
        check(problem)

    run()


@seed(0)
@settings(SETTINGS, max_examples=max(CASES // 40, 1))
@given(
    problem=problems(fields("eigh")),
    selection=st.sampled_from(["validation", "loo", "gcv"]),
    over=st.sampled_from(["fixed", "ridge", "star", "clipped", "joint"]),
)
def test_estimators_take_what_comes(problem, selection, over):
    """No crash, finite predictions, and the same ones whatever the unit of the targets is."""
    X, Y = problem.X.astype(float), problem.Y.astype(float)
    if problem.rows == "huge" or problem.n < 3:
        return
    over = "fixed" if selection == "gcv" else over
    size = float(np.abs(Y).max()) or 1.0
    found = []
    other = 2.0**600 if problem.targets == "mixed" else 2.0**-600  # exact: nothing underflows
    for scale in (1.0, other):
        model = sdgpu.SelfDistillationRegressorCV(
            KERNELS[problem.kernel](problem.parameter),
            over=over,
            steps=3,
            selection=selection,
            lams=np.geomspace(1e-6, 1e2, 5) * problem.n,
            random_state=0,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                model.fit(X, Y / size * scale)
        except ValueError as error:
            vast = np.abs(X).max() > 1e152 and "overflow" in str(error)  # squares of rows overflow
            if not vast and not any(t in str(error) for t in ("determines itself", "is NaN")):
                raise
            return
        found.append(model.predict(X) / scale)
        assert np.isfinite(found[-1]).all()
    largest = np.abs(found[0]).max(initial=1e-300)
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-6 * max(largest, 1e-6))


REPEATED = Problem(
    seed=0,
    n=6,
    d=2,
    c=1,
    kernel="gaussian",
    parameter=30.0,
    rows="repeated",
    targets="noise",
    exponent=-1.0,
    spread=0.0,
    steps=1,
    alpha=0.0,
    dtype="float64",
    library="numpy",
    method="lanczos",
    operator="dense",
    precision="mixed",
)
APART = replace(REPEATED, seed=1, n=2, d=1, kernel="product", rows="plain", exponent=0.0)
LATTICE = replace(
    REPEATED,
    seed=8,
    n=8,
    d=1,
    kernel="small",
    parameter=1.0,
    rows="lattice",
    exponent=-2.0,
    method="subspace",
)


def test_new_rows_have_the_digits_that_their_kernel_says():
    """A row beside itself: 0 among training rows, the rounding of a squared distance among new ones."""
    check(APART)


STEPS = replace(
    REPEATED,
    seed=1,
    n=13,
    d=1,
    kernel="cubicspline",
    parameter=1.0,
    targets="classes",
    exponent=-4.0,
    steps=4,
)
TINY = replace(
    REPEATED,
    seed=16,
    n=2,
    d=1,
    c=2,
    kernel="arccosine0",
    parameter=0.001,
    targets="mixed",
    exponent=-8.5,
    steps=2,
    method="cg",
    precision=None,
)


def test_errors_of_kernel_values_add_up_over_steps():
    """They were those of step 1, where four steps had 1.3 times as much."""
    check(STEPS)


def test_a_direction_without_a_norm_is_none():
    """Differences of steps of 1e-208, whose squares are 0: 0 / 0 among the joint optima."""
    check(TINY)


@pytest.mark.parametrize("problem", [REPEATED, LATTICE], ids=["repeated", "lattice"])
def test_rows_are_checked_with_the_tiles_of_the_solver(problem):
    """Columns that were evaluated anew had other last bits: errors of 3e-6 were said to be 2.7e-6."""
    check(problem)
