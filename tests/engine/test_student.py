"""Students against refits: every teacher lam, lam, weight and step by explicit solves."""

import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

import sdgpu
from tests.problems import assert_near

TEACHER, KERNEL = sdgpu.Laplacian(0.4), sdgpu.Gaussian(0.3)
TEACHER_LAMS, LAMS = np.array([0.05, 2.0]), np.array([0.1, 1.0, 5.0])
ALPHAS = np.array([-0.3, 0.0, 0.4, 1.0, 1.6])


def problem(n=25, c=2, m=9, u=6):
    rng = np.random.default_rng(3)
    return tuple(rng.standard_normal(s) for s in ((n, 3), (n, c), (m, 3), (m, c), (u, 3)))


def solved(K, lam, Y):
    return np.linalg.solve(K + lam * np.eye(len(K)), Y)


def refits(K, G, P, lam, alphas):
    """Dual coefficients of all steps; the first learns from P."""
    duals, previous = [], P
    for alpha in alphas:
        duals.append(solved(K, lam, alpha * G + (1 - alpha) * previous))
        previous = K @ duals[-1]
    return duals


def told(X, Y, rows, lam):
    return TEACHER(rows, X) @ solved(TEACHER(X), lam, Y)


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("method", ["eigh", "subspace", "cg"])
def test_every_point_of_the_grid(method, unlabelled):
    X, Y, X_val, Y_val, U = problem()
    every = np.concatenate([X, U]) if unlabelled else X
    teacher = sdgpu.fit(X, Y, TEACHER, TEACHER_LAMS)
    how = {"method": method, "tol": 1e-10}
    made = sdgpu.student(teacher, KERNEL, LAMS, X, Y, unlabelled=U if unlabelled else None, **how)
    found = made.sweep(X_val, Y_val, alphas=ALPHAS, steps=3).dataset
    assert found["mse"].dims == ("teacher_lam", "lam", "alpha", "step")
    K, cross = KERNEL(every), KERNEL(X_val, every)
    for i, teacher_lam in enumerate(TEACHER_LAMS):
        P = told(X, Y, every, teacher_lam)
        G = np.concatenate([Y, P[len(X) :]])
        for j, lam in enumerate(LAMS):
            for k, alpha in enumerate(ALPHAS):
                duals = refits(K, G, P, lam, np.full(3, alpha))
                losses = [np.mean((cross @ dual - Y_val) ** 2) for dual in duals]
                assert_near(found["mse"].values[i, j, k], losses, 1e-7)
            schedule = np.array([0.3, -0.2, 1.3])
            duals = np.stack(refits(K, G, P, lam, schedule))
            predicted = made.predict(X_val, teacher_lam, lam, schedule, steps=3)
            assert_near(predicted, cross @ duals, 1e-7)
            point = {"teacher_lams": [teacher_lam], "lams": [lam], "alphas": [0.0, 1.0]}
            one = made.sweep(X_val, Y_val, **point).dataset
            assert one["mse"].dims == ("teacher_lam", "lam", "alpha")
            # the best weight of step 1: no other is better
            star, loss = float(one["alpha_star"][0, 0]), float(one["star_mse"][0, 0])
            near = [
                np.mean((cross @ refits(K, G, P, lam, [a])[0] - Y_val) ** 2)
                for a in (star, star - 1e-3, star + 1e-3)
            ]
            np.testing.assert_allclose(loss, near[0], rtol=1e-6)
            assert near[0] <= min(near[1:]) * (1 + 1e-9)


def test_a_teacher_of_the_same_kernel_and_lam_is_self_distillation():
    """Step 1 of the student is step 2 of the chain."""
    X, Y, X_val, _, _ = problem()
    fit = sdgpu.fit(X, Y, KERNEL, LAMS)
    made = sdgpu.student(fit, KERNEL, LAMS)  # of the teacher's rows
    for lam in LAMS:
        chain = fit.path(lam, 0.3, steps=4).predict(X_val)[1:]
        assert_near(made.predict(X_val, lam, lam, 0.3, steps=3), chain, 1e-9)


@pytest.mark.parametrize("how", [{}, {"intercept": True}, {"features": sdgpu.Nystrom(12)}])
def test_predictions_from_elsewhere(how):
    """Arrays of NumPy and torch, several with weights, an intercept, features: sweeps are of predictions."""
    X, Y, X_val, Y_val, _ = problem()
    rng = np.random.default_rng(0)
    first, second = (3 + rng.standard_normal(Y.shape) for _ in range(2))
    mixed = sdgpu.student(
        [first, torch.tensor(second)], KERNEL, LAMS, X, Y + 3, weights=[0.7, 0.3], **how
    )
    whole = sdgpu.student(0.7 * first + 0.3 * second, KERNEL, LAMS, X, Y + 3, **how)
    assert np.isnan(mixed.teacher_lams).all()
    for lam in LAMS:
        one, other = (s.predict(X_val, None, lam, [0.2, 0.5], 2) for s in (mixed, whole))
        assert_near(one, other, 1e-9)
        direct = sdgpu.fit(
            X, 0.2 * (Y + 3) + 0.8 * (0.7 * first + 0.3 * second), KERNEL, lam, **how
        )
        assert_near(one[0], direct.path(lam, steps=1).predict(X_val)[0], 1e-7)
    found = mixed.sweep(X_val, Y_val + 3, alphas=[0.2], steps=2).dataset["mse"].values
    for j, lam in enumerate(LAMS):
        predicted = mixed.predict(X_val, None, lam, 0.2, 2)
        losses = np.mean((predicted - Y_val - 3) ** 2, axis=(1, 2))
        assert_near(found[0, j, 0], losses, 1e-9)


def test_flat_targets_and_the_best_point():
    X, Y, X_val, Y_val, _ = problem(c=1)
    teacher = sdgpu.fit(X, Y[:, 0], TEACHER, TEACHER_LAMS)
    made = sdgpu.student(teacher, KERNEL, LAMS, X, Y[:, 0])
    sweep = made.sweep(X_val, Y_val[:, 0], steps=2)
    best = sweep.best()
    point = made.predict(X_val, best["teacher_lam"], best["lam"], best["alpha"], int(best["step"]))
    assert point.shape == (int(best["step"]), 9)
    np.testing.assert_allclose(np.mean((point[-1] - Y_val[:, 0]) ** 2), best["mse"], rtol=1e-9)
    assert best["mse"] == float(sweep.dataset["mse"].min())


def test_other_smoothers():
    X, Y, X_val, _, _ = problem()
    made = sdgpu.student(Y + 1, KERNEL, LAMS, X, Y, smoother="gradient_flow")
    flow = sdgpu.fit(X, 0.4 * Y + 0.6 * (Y + 1), KERNEL, LAMS, smoother="gradient_flow")
    for lam in LAMS:
        wanted = flow.path(lam, steps=1).predict(X_val)
        assert_near(made.predict(X_val, None, lam, 0.4), wanted, 1e-9)


@pytest.mark.parametrize(
    ("args", "how", "words"),
    [
        ((None,), {}, "X and Y are missing"),
        (([],), {}, "teacher is an empty list"),
        ((np.zeros((24, 2)),), {}, "teacher has 24 rows, but its inputs have 25"),
        ((np.zeros((25, 3)),), {}, "teacher has 3 outputs"),
        (([np.zeros((25, 2))] * 2,), {"weights": [1.0]}, "weights has 1 entries for 2 teachers"),
        (([np.zeros((25, 2))] * 2,), {"weights": [1.0, 1.0]}, "weights sum to 2"),
        ((np.zeros((25, 2)),), {"teacher_lams": [1.0]}, "predictions have none"),
        ((np.full((25, 2), 3.0),), {"teacher_output": "probabilities"}, "labels are one-hot rows"),
        ((np.full((25, 2), np.nan),), {}, "teacher"),
        (([np.zeros((25, 2))] * 2,), {"weights": "best"}, "weights='best'"),
    ],
)
def test_refusals(args, how, words):
    X, Y, _, _, _ = problem()
    data = () if args[0] is None else (X, Y)
    teacher = np.zeros((25, 2)) if args[0] is None else args[0]
    with pytest.raises(ValueError, match=words):
        sdgpu.student(teacher, KERNEL, LAMS, *data, **how)


def test_rows_of_the_teacher():
    X, Y, X_val, _, _ = problem(c=1)
    for method in ("eigh", "subspace"):
        teacher = sdgpu.fit(X, Y[:, 0], TEACHER, 1.0, method=method, tol=1e-10)
        one = sdgpu.student(teacher, KERNEL, LAMS).predict(X_val, None, 1.0, 0.3)
        other = sdgpu.student(teacher, KERNEL, LAMS, X, Y[:, 0]).predict(X_val, None, 1.0, 0.3)
        assert one.shape == (1, 9)
        assert_near(one, other, 1e-8)
    for how in ({"intercept": True}, {"features": sdgpu.Nystrom(9)}):
        with pytest.raises(ValueError, match="does not have its rows"):
            sdgpu.student(sdgpu.fit(X, Y, TEACHER, 1.0, **how), KERNEL, LAMS)


def test_memory_is_counted_and_blocks_add_up(monkeypatch):
    X, Y, X_val, Y_val, _ = problem()
    teacher = sdgpu.fit(X, Y, TEACHER, TEACHER_LAMS)
    made = sdgpu.student(teacher, KERNEL, LAMS, memory="400MB")
    with pytest.raises(MemoryError, match="a grid of 60,000,000 students"):
        made.sweep(X_val, Y_val, alphas=np.linspace(0, 1, 10**6), steps=10)
    whole = made.sweep(X_val, Y_val, steps=3).dataset["mse"].values
    monkeypatch.setattr(sys.modules["sdgpu.engine.student_model"], "NUMBERS", 100)
    assert_near(made.sweep(X_val, Y_val, steps=3).dataset["mse"].values, whole, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_with_tensors(dtype):
    """Its rows are tensors, those of the student too, or NumPy's: answers are NumPy's."""
    X, Y, X_val, _, U = problem()
    tensors = [torch.tensor(x, dtype=dtype) for x in (X, Y, X_val, U)]
    teacher = sdgpu.fit(*tensors[:2], TEACHER, TEACHER_LAMS)
    plain = sdgpu.fit(X, Y, TEACHER, TEACHER_LAMS)
    near = 1e-9 if dtype == torch.float64 else 1e-5
    wanted = sdgpu.student(plain, KERNEL, LAMS, X, Y, unlabelled=U).predict(X_val, 2.0, 1.0, 0.3, 2)
    for made in (
        sdgpu.student(teacher, KERNEL, LAMS, X, Y, unlabelled=U),
        sdgpu.student(teacher, KERNEL, LAMS, *tensors[:2], unlabelled=tensors[3]),
    ):
        for new in (X_val, tensors[2]):
            found = made.predict(new, 2.0, 1.0, 0.3, 2)
            assert isinstance(found, np.ndarray)
            assert_near(found, wanted, near)


def test_refusals_of_answers():
    X, Y, X_val, Y_val, _ = problem()
    made = sdgpu.student(sdgpu.fit(X, Y, TEACHER, TEACHER_LAMS), KERNEL, LAMS, X, Y)
    with pytest.raises(ValueError, match="teacher_lam is missing: there are 2"):
        made.predict(X_val, None, 1.0)
    with pytest.raises(ValueError, match="teacher_lam=7 is none of the teacher's"):
        made.predict(X_val, 7.0, 1.0)
    with pytest.raises(ValueError, match="below the smallest fitted"):
        made.sweep(X_val, Y_val, lams=[1e-3])
    with pytest.raises(ValueError, match="Y_val has 8 rows"):
        made.sweep(X_val, Y_val[:8])
    with pytest.raises(
        ValueError, match=r"alpha has shape \(2,\), but steps=3 needs .* 3 of them, .* 1\.\.3"
    ):
        made.predict(X_val, 1.0, 1.0, [0.1, 0.2], 3)
    with pytest.raises(
        ValueError, match=r"teacher 1 was fitted on 2 features, and .* rows have 3: pass"
    ):
        sdgpu.student(sdgpu.fit(X[:, :2], Y, TEACHER, 1.0), KERNEL, LAMS, X, Y)
    fit = sdgpu.fit(X, Y, TEACHER, 1.0)
    for one in (fit.path(steps=1), fit.path(steps=1).predictor(), LinearRegression()):
        with pytest.raises(TypeError, match=f"teacher is a {type(one).__name__}: pass its method"):
            sdgpu.student(one, KERNEL, LAMS, X, Y)
    with pytest.raises(TypeError, match="Y must hold numbers: of classes one-hot rows"):
        sdgpu.student(Y, KERNEL, LAMS, X, np.array(["a"] * 25))
    with pytest.raises(
        ValueError, match=r"X has no rows: without labels name those .* unlabelled="
    ):
        sdgpu.student(Y[:0], KERNEL, LAMS, X[:0], Y[:0])
    with pytest.raises(ValueError, match="teacher 1 has 1 outputs, Y has 2"):
        sdgpu.student(sdgpu.fit(X, Y[:, 0], TEACHER, 1.0), KERNEL, LAMS, X, Y)
