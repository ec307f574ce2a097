"""Weights of several teachers, fitted on validation rows: against least squares over explicit refits."""

import numpy as np
import pytest

import sdgpu
from sdgpu.engine import student_model
from sdgpu.selection.teacher_weights import fitted_teacher_weights
from tests.engine.test_student import KERNEL, LAMS, TEACHER, TEACHER_LAMS, problem, refits
from tests.problems import assert_near
from tests.selection.test_teacher_weights import by_optimiser

ALPHAS = [-0.2, 0.0, 0.4, 1.0]


def teachers(X, Y):
    rng = np.random.default_rng(8)
    fits = [sdgpu.fit(X, Y, kernel, TEACHER_LAMS) for kernel in (TEACHER, sdgpu.Linear())]
    return fits, rng


@pytest.mark.parametrize("kind", ["sum_to_one", "simplex"])
@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("method", ["eigh", "cg"])
def test_every_point_of_the_grid(method, unlabelled, kind):
    X, Y, X_val, Y_val, U = problem()
    every = np.concatenate([X, U]) if unlabelled else X
    fits, rng = teachers(X, Y)
    third = np.concatenate([Y, np.zeros((len(every) - len(X), 2))]) + rng.standard_normal(
        (len(every), 2)
    )
    how = {"method": method, "tol": 1e-10, "unlabelled": U if unlabelled else None}
    made = sdgpu.student([*fits, third], KERNEL, LAMS, X, Y, weights="fitted", **how)
    np.testing.assert_allclose(made.weights, 1 / 3)
    found = made.fit_weights(X_val, Y_val, kind=kind, alphas=ALPHAS, steps=2, folds=3)
    assert found.dataset["weights"].dims == ("teacher_lam", "lam", "alpha", "step", "teacher")
    K, cross = KERNEL(every), KERNEL(X_val, every)
    for i, teacher_lam in enumerate(TEACHER_LAMS):
        words = [one.path(teacher_lam, steps=1).predict(every)[0] for one in fits] + [third]
        for j, lam in enumerate(LAMS):
            for k, alpha in enumerate(ALPHAS):
                residuals = []  # of the student of each teacher alone, (T, m c)
                for P in words:
                    G = np.concatenate([Y, P[len(X) :]])
                    duals = np.stack(refits(K, G, P, lam, [alpha] * 2))
                    residuals.append((cross @ duals - Y_val).reshape(2, -1))
                for t in range(2):
                    B = np.stack([r[t] for r in residuals], axis=1)
                    w = found.dataset["weights"].values[i, j, k, t]
                    mse = found.dataset["mse"].values[i, j, k, t]
                    np.testing.assert_allclose(w.sum(), 1)
                    np.testing.assert_allclose(mse, np.mean((B @ w) ** 2), rtol=1e-6)
                    assert mse <= by_optimiser(B, kind) / len(B) * (1 + 1e-6)
                    assert kind == "sum_to_one" or (w >= 0).all()
                    nested = found.dataset["nested_mse"].values[i, j, k, t]
                    np.testing.assert_allclose(nested, held_out(B, kind, 3), rtol=1e-5)
    best = found.best("nested_mse")
    assert best["nested_mse"] == found.dataset["nested_mse"].values.min() >= best["mse"]
    best = found.best()
    assert best["mse"] == found.dataset["mse"].values.min()
    chosen = made.with_weights(best["weights"])
    point = (best["teacher_lam"], best["lam"], best["alpha"], int(best["step"]))
    predicted = chosen.predict(X_val, *point)[-1]
    np.testing.assert_allclose(np.mean((predicted - Y_val) ** 2), best["mse"], rtol=1e-6)


def held_out(B, kind, folds):
    """Mean square of residuals (m c, M) by weights of the other parts of the rows, c = 2."""
    part, errors = np.arange(len(B)) // 2 % folds, np.empty(len(B))
    for f in range(folds):
        w, _ = fitted_teacher_weights(B[part != f], kind)
        errors[part == f] = B[part == f] @ w
    return np.mean(errors**2)


@pytest.mark.parametrize("m", [1, 3, 4, 9, 50])
def test_losses_on_rows_that_had_no_part(m, monkeypatch):
    """Of any number of rows and parts, read in blocks of any size; NaN where a part has one row."""
    X, Y, _, _, _ = problem()
    rng = np.random.default_rng(m)
    X_val, Y_val = rng.standard_normal((m, X.shape[1])), rng.standard_normal((m, 2))
    made = sdgpu.student([Y, -Y, Y + 1], KERNEL, LAMS[:1], X, Y, weights="fitted")
    point = {"lams": LAMS[:1], "alphas": [0.2], "steps": 2}
    B = np.stack(
        [
            made.with_weights(w).predict(X_val, None, LAMS[0], 0.2, 2)[-1].ravel() - Y_val.ravel()
            for w in np.eye(3)
        ],
        axis=1,
    )
    for numbers in (student_model.NUMBERS, 1):
        monkeypatch.setattr(student_model, "NUMBERS", numbers)
        for folds in (1, 2, 3, m):
            for kind in ("sum_to_one", "simplex"):
                found = made.fit_weights(X_val, Y_val, kind=kind, folds=folds, **point)
                nested = found.dataset["nested_mse"].values.ravel()[1]
                if folds == 1 or 2 * folds > m:
                    assert np.isnan(nested)
                    with pytest.raises(ValueError, match="nested_mse is NaN: it takes folds > 1"):
                        found.best("nested_mse")
                else:
                    np.testing.assert_allclose(nested, held_out(B, kind, folds), rtol=1e-6)
                assert found.best()["mse"] >= 0


def test_many_teachers_that_guess():
    """Weights of noise fit noise: on the rows that chose them it looks like a gain, on others it is a loss."""
    rng = np.random.default_rng(0)
    X, X_val, X_new = (rng.standard_normal((n, 2)) for n in (60, 40, 4000))
    truth, y_val, y_new = (np.sin(2 * x[:, 0]) for x in (X, X_val, X_new))
    y_val = y_val + rng.standard_normal(40)
    teachers = [truth, *(truth + rng.standard_normal(60) for _ in range(15))]
    made = sdgpu.student(teachers, sdgpu.Gaussian(0.5), [0.1], X, truth, weights="fitted")
    best = made.fit_weights(X_val, y_val, alphas=[0.0]).best()
    there = made.with_weights(best["weights"]).predict(X_new)[0]
    honest = np.mean((there - y_new) ** 2) + 1.0  # the noise of new labels
    assert best["mse"] < 0.6 * honest
    assert 0.7 * honest < best["nested_mse"] < 2 * honest


def test_the_weights_of_a_mix_made_beforehand():
    """Teachers that are kept apart and weighted are those mixed with the same weights."""
    X, Y, X_val, Y_val, U = problem()
    fits, _ = teachers(X, Y)
    how = {"unlabelled": U}
    mixed = sdgpu.student(fits, KERNEL, LAMS, X, Y, weights=[1.4, -0.4], **how)
    apart = sdgpu.student(fits, KERNEL, LAMS, X, Y, weights="fitted", **how)
    apart = apart.with_weights([1.4, -0.4])
    one, other = (s.sweep(X_val, Y_val, steps=2).dataset["mse"].values for s in (mixed, apart))
    assert_near(one, other, 1e-10)


@pytest.mark.parametrize("kind", ["sum_to_one", "simplex"])
def test_a_good_teacher_among_bad_ones(kind):
    """What was planted is found."""
    rng = np.random.default_rng(1)
    X, X_val = rng.standard_normal((120, 2)), rng.standard_normal((300, 2))
    truth, wanted = np.sin(2 * X[:, 0]), np.sin(2 * X_val[:, 0])
    noisy = truth + rng.standard_normal(120)
    bad = [rng.standard_normal(120) for _ in range(3)]
    made = sdgpu.student([*bad, truth], sdgpu.Gaussian(0.5), [0.1], X, noisy, weights="fitted")
    best = made.fit_weights(X_val, wanted, kind=kind, alphas=[0.0]).best()
    assert best["weights"][3] > 0.95
    assert best["mse"] < 0.05 * np.var(wanted)


def test_leave_one_out_weights():
    """Without validation rows: the smallest leave-one-out loss."""
    X, Y, _, _, _ = problem(n=15)
    fits, _ = teachers(X, Y)
    made = sdgpu.student(fits, KERNEL, LAMS, X, Y, weights="fitted")
    for left_out_of in ("student", "both"):
        how = {"teacher_lams": [2.0], "lams": [1.0], "alphas": [0.3], "left_out_of": left_out_of}
        best = made.fit_weights(**how).best()
        for shift, at_least in ((0.0, False), (1e-2, True), (-1e-2, True)):
            w = best["weights"] + shift * np.array([1, -1])
            predicted = made.with_weights(w).loo(2.0, 1.0, 0.3, left_out_of=left_out_of)
            loss = np.mean((predicted - Y) ** 2)
            assert loss > best["mse"] if at_least else np.isclose(loss, best["mse"], rtol=1e-9)


def test_memory_is_counted():
    X, Y, X_val, Y_val, _ = problem()
    how = {"weights": "fitted", "memory": "100MB"}
    made = sdgpu.student([Y + m for m in range(20)], KERNEL, LAMS, X, Y, **how)
    made.fit_weights(X_val, Y_val, lams=LAMS[:1], alphas=[0.0], steps=2)
    with pytest.raises(MemoryError, match="a grid of 300 students"):
        made.fit_weights(X_val, Y_val, alphas=[0.0], steps=100)


def test_refusals():
    X, Y, X_val, Y_val, _ = problem()
    one = sdgpu.student(Y, KERNEL, LAMS, X, Y, weights="fitted")
    with pytest.raises(ValueError, match="fit_weights is of several teachers"):
        one.fit_weights(X_val, Y_val)
    mixed = sdgpu.student([Y, Y + 1], KERNEL, LAMS, X, Y)
    with pytest.raises(ValueError, match="fit_weights is of several teachers"):
        mixed.fit_weights(X_val, Y_val)
    two = sdgpu.student([Y, Y + 1], KERNEL, LAMS, X, Y, weights="fitted")
    with pytest.raises(ValueError, match="folds=0"):
        two.fit_weights(X_val, Y_val, folds=0)
    with pytest.raises(ValueError, match="by='nested' is not known: did you mean 'nested_mse'"):
        two.fit_weights(X_val, Y_val).best("nested")
    with pytest.raises(ValueError, match="kind='box'"):
        two.fit_weights(X_val, Y_val, kind="box")
    with pytest.raises(ValueError, match="weights sum to 2"):
        two.with_weights([1.0, 1.0])
    with pytest.raises(ValueError, match="weights has 3 entries for 2"):
        two.with_weights([1.0, 1.0, -1.0])
