"""A lam for each step, everywhere, against explicit refits."""

import numpy as np
import pytest
import torch

import sdgpu
from tests.engine.test_smoothers import TRUTH
from tests.problems import assert_near

KERNEL = sdgpu.Gaussian(0.3)
LAMS = np.array([0.05, 0.4, 3.0])
SCHEDULES = np.array([[0.05, 0.4, 3.0], [3.0, 0.3, 0.05], [0.4, 0.4, 0.4]])
ALPHAS = np.array([-0.4, 0.0, 0.3, 1.0])
STEPS = 3


def problem(n=16, c=2, m=9):
    rng = np.random.default_rng(4)
    return tuple(rng.standard_normal(s) for s in ((n, 3), (n, c), (m, 3), (m, c)))


def chain(K, Y, lams, alphas, dual_of=None):
    """Dual coefficients of all steps: a solve for each, with a lam of its own."""
    duals = []
    for t, lam in enumerate(lams):
        alpha = 1.0 if t == 0 else alphas[t - 1]
        before = 0 * Y if t == 0 else K @ duals[-1]
        solve = np.linalg.inv(K + lam * np.eye(len(K))) if dual_of is None else dual_of(K, lam)
        duals.append(solve @ (alpha * Y + (1 - alpha) * before))
    return np.stack(duals)


def left_out(K, Y, lams, alphas):
    """Predictions at each row by fits without it, (T, n, c)."""
    n, found = len(K), np.empty((len(lams), *Y.shape))
    for i in range(n):
        rest = np.arange(n) != i
        duals = chain(K[np.ix_(rest, rest)], Y[rest], lams, alphas)
        found[:, i] = K[i, rest] @ duals
    return found


@pytest.fixture(scope="module")
def fitted():
    X, Y, _, _ = problem()
    return sdgpu.fit(X, Y, KERNEL, LAMS, method="eigh")


@pytest.mark.parametrize("lams", SCHEDULES)
def test_one_schedule(fitted, lams):
    """Leave-one-out, the diagonal, and the weights that validation and left-out rows choose."""
    X, Y, X_val, Y_val = problem()
    K, cross = KERNEL(X), KERNEL(X_val, X)
    alphas = np.array([0.3, -0.2])
    assert_near(fitted.loo(lams, alphas, STEPS), left_out(K, Y, lams, alphas), 1e-8)
    per_output = np.array([[0.3, 0.9], [-0.2, 1.4]])
    by_output = fitted.loo(lams, per_output, STEPS)
    for j in range(2):
        wanted = left_out(K, Y[:, j : j + 1], lams, per_output[:, j])
        assert_near(by_output[..., j : j + 1], wanted, 1e-8)
    B = fitted.diagonal(lams, alphas, STEPS)
    _, V = np.linalg.eigh(K)
    smoother = np.stack([K @ dual for dual in chain(K, np.eye(len(K)), lams, alphas)])
    assert_near(B, np.einsum("ki,tkl,li->ti", V, smoother, V), 1e-8)
    for rows in ((X_val, Y_val), (None, None)):

        def losses(weights, rows=rows):
            if rows[0] is None:
                return np.mean((left_out(K, Y, lams, weights) - Y) ** 2, axis=(1, 2))
            return np.mean((cross @ chain(K, Y, lams, weights) - Y_val) ** 2, axis=(1, 2))

        star = fitted.optimal_alphas(*rows, lam=lams, steps=STEPS)
        assert_near(star.mse, losses(star.alphas), 1e-8)
        for t in range(STEPS - 1):  # each weight is the best of its step, with those before it
            for near in (-1e-3, 1e-3):
                other = star.alphas.copy()
                other[t] += near
                assert losses(other)[t + 1] > star.mse[t + 1]
        joint = fitted.joint_alphas(*rows, lam=lams, steps=STEPS, folds=1)
        assert joint.alphas.shape == (STEPS - 1,)
        assert_near(joint.mse[-1], losses(joint.alphas)[-1], 1e-6)
        assert joint.mse[-1] <= star.mse[-1] * (1 + 1e-9)
        for change in np.random.default_rng(0).standard_normal((5, STEPS - 1)):
            assert losses(joint.alphas + 1e-2 * change)[-1] >= joint.mse[-1] * (1 - 1e-9)
        # chains of fewer steps have the first lam
        two = fitted.joint_alphas(*rows, lam=lams[:2], steps=2, folds=1)
        assert_near(joint.mse[1], two.mse[1], 1e-9)
        assert_near(joint.mse[0], losses(alphas)[0], 1e-9)


def test_weights_per_output_and_of_weighted_rows(fitted):
    X, Y, X_val, Y_val = problem()
    lams, cross, K = SCHEDULES[0], KERNEL(X_val, X), KERNEL(X)
    both = fitted.optimal_alphas(X_val, Y_val, lam=lams, steps=STEPS, per_output=True)
    assert both.alphas.shape == (STEPS - 1, 2)
    for j in range(2):
        one = sdgpu.fit(X, Y[:, j], KERNEL, LAMS, method="eigh")
        alone = one.optimal_alphas(X_val, Y_val[:, j], lam=lams, steps=STEPS)
        assert_near(both.alphas[:, j], alone.alphas, 1e-8)
        assert_near(both.mse_per_output[:, j], alone.mse, 1e-8)
    weights = np.arange(1.0, 10.0)
    star = fitted.optimal_alphas(X_val, Y_val, lam=lams, steps=STEPS, sample_weight=weights)
    squares = np.mean((cross @ chain(K, Y, lams, star.alphas) - Y_val) ** 2, axis=2)
    assert_near(star.mse, squares @ weights / weights.sum(), 1e-8)


@pytest.mark.parametrize("kind", ["eigh", "torch", "primal", "weights", "features"])
def test_every_point_of_a_sweep(kind):
    X, Y, X_val, Y_val = problem()
    kernel = sdgpu.Linear() if kind in ("primal", "features") else KERNEL
    K, cross = kernel(X), kernel(X_val, X)
    how = {"primal": {"method": "primal"}, "features": {"features": sdgpu.Explicit()}}
    arrays = (torch.tensor(x) if kind == "torch" else x for x in (X, Y, X_val, Y_val))
    rows, targets, rows_val, truth = arrays
    more = {"intercept": True} if kind == "weights" else {}
    if kind == "weights":
        more["sample_weight"] = np.linspace(0.5, 2.0, len(X))
    fit = sdgpu.fit(rows, targets, kernel, LAMS, **how.get(kind, {"method": "eigh"}), **more)
    options = {"lams": SCHEDULES, "alphas": ALPHAS, "steps": STEPS}
    judged = [((rows_val, truth), fit.sweep(rows_val, truth, metrics=["mae"], **options).dataset)]
    if kind != "features":
        judged.append((None, fit.sweep(**options, metrics=["mae"]).dataset))
    gcv = fit.gcv_sweep(SCHEDULES, ALPHAS, STEPS).dataset
    for validation, data in judged:
        assert data["mse"].dims == ("schedule", "alpha", "step")
        assert data["lam"].dims == ("schedule", "step")
        assert "limit_mse" not in data
        np.testing.assert_allclose(data["train_mse"], gcv["train_mse"])
        for i, lams in enumerate(SCHEDULES):
            for j, alpha in enumerate(ALPHAS):
                path = fit.path(lams, alpha, STEPS)
                if validation is None:
                    seen, Y_seen = fit.loo(lams, alpha, STEPS), Y
                    weights = more.get("sample_weight", np.ones(len(X)))
                else:
                    seen, Y_seen, weights = path.predict(rows_val), Y_val, np.ones(len(X_val))
                error = np.asarray(seen) - Y_seen
                share = weights / weights.sum()
                assert_near(data["mse"][i, j], np.mean(error**2, axis=2) @ share, 1e-8)
                assert_near(data["mae"][i, j], np.mean(np.abs(error), axis=2) @ share, 1e-8)
                if kind not in ("weights", "features"):
                    duals = chain(K, Y, lams, np.full(STEPS - 1, alpha))
                    if validation is not None:
                        assert_near(seen, cross @ duals, 1e-8)
                    fitted = K @ duals
                    assert_near(
                        data["train_mse"][i, j], np.mean((fitted - Y) ** 2, axis=(1, 2)), 1e-8
                    )
                    smoother = chain(K, np.eye(len(K)), lams, np.full(STEPS - 1, alpha))
                    trace = np.trace(K @ smoother, axis1=1, axis2=2)
                    assert_near(data["degrees_of_freedom"][i, j], trace, 1e-8)
            rows_of = validation or (None, None)
            star = fit.optimal_alphas(*rows_of, lam=lams, steps=STEPS)
            assert_near(data["star_mse"][i], star.mse, 1e-8)
            assert_near(data["alpha_star"][i, 1:], star.alphas, 1e-6)
            joint = fit.joint_alphas(*rows_of, lam=lams, steps=STEPS, folds=1)
            assert_near(data["joint_mse"][i], joint.mse, 1e-6)


def test_leave_one_out_with_weights_and_an_intercept():
    """Against fits without the row."""
    X, Y, _, _ = problem(n=9)
    weights, lams, alphas = np.linspace(0.5, 2.0, 9), SCHEDULES[0], np.array([0.3, -0.2])
    how = {"intercept": True, "method": "eigh"}
    found = sdgpu.fit(X, Y + 5, KERNEL, LAMS, sample_weight=weights, **how).loo(lams, alphas, STEPS)
    for i in range(9):
        rest = np.arange(9) != i
        fit = sdgpu.fit(X[rest], Y[rest] + 5, KERNEL, LAMS, sample_weight=weights[rest], **how)
        predicted = fit.path(lams, alphas, STEPS).predict(X[i : i + 1])[:, 0]
        assert_near(found[:, i], predicted, 1e-8)


def test_equal_lam_are_one_lam(fitted):
    _, _, X_val, Y_val = problem()
    rows = np.repeat(LAMS[:, None], 5, axis=1)
    same = fitted.sweep(X_val, Y_val, rows.tolist(), ALPHAS, 5).dataset
    tensor = fitted.sweep(X_val, Y_val, torch.tensor(rows), ALPHAS, 5).dataset
    assert tensor.identical(same) or np.array_equal(tensor["mse"], same["mse"])
    one = fitted.sweep(X_val, Y_val, LAMS, ALPHAS, 5).dataset
    left, left_one = (
        fitted.sweep(lams=np.repeat(LAMS[:, None], 5, axis=1), steps=5),
        fitted.sweep(steps=5),
    )
    assert_near(left.dataset["mse"], left_one.dataset["mse"].values, 1e-9)
    for name in ("mse", "star_mse", "joint_mse", "clipped_mse", "train_mse", "gcv", "ridge_mse"):
        assert_near(same[name], one[name].values, 1e-6)


@pytest.mark.parametrize("over", ["fixed", "ridge", "star", "clipped", "joint", "gcv", "mae"])
def test_the_best_point_is_what_is_predicted(fitted, over, tmp_path):
    _, _, X_val, Y_val = problem()
    sweep = fitted.sweep(X_val, Y_val, SCHEDULES, ALPHAS, STEPS, metrics=["mae"])
    best = sweep.best(over)
    assert best.lam.shape == (best.step,)
    assert not best.per_output
    predicted = fitted.predictor(best).predict(X_val)
    np.testing.assert_allclose(np.mean((predicted - Y_val) ** 2), best.mse, rtol=1e-6)
    path = fitted.path(best.lam, best.alpha if best.step > 1 else 0.0, best.step)
    assert_near(path.predict(X_val)[-1], predicted, 1e-9)
    for ending in ("nc", "zarr"):
        sweep.save(tmp_path / f"s.{ending}")
        again = sdgpu.open_sweep(tmp_path / f"s.{ending}")
        assert again.dataset.identical(sweep.dataset) or again.best(over) == best


def test_per_output_losses(fitted):
    _, _, X_val, Y_val = problem()
    data = fitted.sweep(X_val, Y_val, SCHEDULES, ALPHAS, STEPS, per_output=True).dataset
    assert data["mse_per_output"].dims == ("schedule", "alpha", "step", "output")
    assert_near(data["mse_per_output"].mean("output"), data["mse"].values, 1e-9)


@pytest.mark.parametrize("name", list(TRUTH))
def test_other_smoothers(name):
    X, Y, X_val, Y_val = problem()
    K, cross = KERNEL(X), KERNEL(X_val, X)
    top = float(np.linalg.eigvalsh(K)[-1])
    schedules = top / np.array([[40.0, 3.0], [3.0, 7.0]])  # whole rounds of gradient descent
    fit = sdgpu.fit(X, Y, KERNEL, schedules.min(), smoother=name, method="eigh")
    data = fit.sweep(X_val, Y_val, schedules, ALPHAS, 2).dataset
    for i, lams in enumerate(schedules):
        for j, alpha in enumerate(ALPHAS):
            duals = chain(K, Y, lams, [alpha], TRUTH[name])
            assert_near(data["mse"][i, j], np.mean((cross @ duals - Y_val) ** 2, axis=(1, 2)), 1e-7)


def test_the_one_shot_weight_of_two_lam(fitted):
    """Of GCV of step 2, over alpha: the smallest of a fine grid."""
    X, Y, _, _ = problem()
    K, lams = KERNEL(X), np.array([0.1, 2.0])
    H1, H2 = (K @ np.linalg.inv(K + lam * np.eye(len(K))) for lam in lams)
    n, r, q = len(K), Y - H2 @ Y, Y - H2 @ H1 @ Y
    t1, t2 = np.trace(H2) / n, np.trace(H2 @ H1) / n
    R, R0, C = (
        np.mean(np.sum(a * b, axis=0)) / (n * (1 - s) * (1 - t))
        for a, b, s, t in ((r, r, t1, t1), (q, q, t2, t2), (r, q, t1, t2))
    )
    found = fitted.gcv(lams)
    np.testing.assert_allclose(found.alpha, 1 - (R - C) / (R + R0 - 2 * C), rtol=1e-8)
    np.testing.assert_allclose(
        [found.ridge_score, found.distilled_score, found.covariance], [R, R0, C], rtol=1e-9
    )
    same = fitted.gcv([0.4, 0.4])
    np.testing.assert_allclose(same.alpha, fitted.gcv(0.4).alpha, rtol=1e-9)


def test_what_is_refused(fitted):
    X, Y, X_val, Y_val = problem()
    calls = [
        (lambda: fitted.limit([0.1, 0.2], 0.5), "a limit has one lam"),
        (lambda: fitted.sweep(X_val, Y_val, SCHEDULES, steps=4), "lams has 3 columns for steps=4"),
        (lambda: fitted.sweep(X_val, Y_val, SCHEDULES - 0.05, steps=3), "lams must be > 0"),
        (lambda: fitted.sweep(X_val, Y_val, SCHEDULES / 10, steps=3), "below the smallest fitted"),
        (
            lambda: fitted.optimal_alphas(X_val, Y_val, [0.1, 0.2], 3),
            "lam has 2 entries for steps=3",
        ),
        (lambda: fitted.gcv([0.1, 0.2, 0.3]), "lam has 3 entries for steps=2"),
        (lambda: fitted.loo([0.1, -0.2], 0.5, 2), "lam=-0.2 must be > 0"),
        (lambda: fitted.sweep(X_val, Y_val, np.ones((0, 3)), steps=3), "lams is empty"),
    ]
    for call, words in calls:
        with pytest.raises(ValueError, match=words):
            call()
    sweep = fitted.sweep(
        X_val, Y_val, SCHEDULES, ALPHAS, STEPS, standard_errors=True, per_output=True
    )
    with pytest.raises(ValueError, match="no order"):
        sweep.best(one_standard_error=True)
    with pytest.raises(ValueError, match="for all outputs together"):
        sweep.best(per_output=True)
    grown = sdgpu.fit(*problem(n=80)[:2], KERNEL, [5.0], method="subspace")
    with pytest.raises(ValueError, match="needs all eigenvalues"):
        grown.sweep(X_val, Y_val, np.full((1, 3), 5.0), steps=3)
    features = sdgpu.fit(X, Y, sdgpu.Linear(), LAMS, features=sdgpu.Explicit())
    for call in (
        lambda: features.loo([0.1, 0.2], 0.5, 2),
        lambda: features.sweep(lams=SCHEDULES, steps=3),
    ):
        with pytest.raises(ValueError, match="feature model has one lam"):
            call()


def test_a_student_that_regularises_more_mends_its_teacher():
    """Moniri and Hassani (2025): a teacher with too little ridge, and a student with more than the best one."""
    rng = np.random.default_rng(2)
    X, X_val = rng.standard_normal((150, 4)), rng.standard_normal((400, 4))
    y, y_val = (np.sin(x[:, 0]) + x[:, 1] for x in (X, X_val))
    y = y + rng.standard_normal(150)
    fit = sdgpu.fit(X, y, sdgpu.Gaussian(0.2), [1e-3], method="eigh")
    student = np.geomspace(1e-3, 1e2, 26)
    lams = np.column_stack([np.full(26, 1e-3), student])
    mse = fit.sweep(X_val, y_val, lams, [0.0], 2).dataset["mse"].values[:, 0, 1]
    best = int(mse.argmin())
    assert student[best] > 100 * 1e-3
    assert float(mse[best]) < 0.5 * float(mse[0])


@pytest.mark.filterwarnings("ignore:inaccurate at lam")
@pytest.mark.parametrize("ratio", [1e-12, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_lam(ratio, dtype):
    """lam from 1e-12 to 1e12 of the largest eigenvalue in one schedule, and a rank below n."""
    delta = np.array([0.0, 0.25, 0.5, 1.0], dtype=dtype)
    K, Y = np.diag(delta), np.array([1.0, 2.0, -1.0, 0.5], dtype=dtype)
    lams = np.array([1e-3, ratio, 0.1])
    fit = sdgpu.fit(K, Y, sdgpu.Precomputed(), lams.min(), method="eigh")
    sweep = fit.sweep(K, Y, lams[None], ALPHAS, 3).dataset
    wanted = []
    for alpha in ALPHAS:
        left = np.zeros(4)  # 1 - B
        for t, lam in enumerate(lams):
            own = lam / (delta + lam)
            left = own if t == 0 else own + (1 - own) * (1 - alpha) * left
            wanted.append(np.mean((left * Y) ** 2))
    wanted = np.reshape(wanted, (1, len(ALPHAS), 3))
    np.testing.assert_allclose(sweep["mse"], wanted, rtol=1e-9)
    np.testing.assert_allclose(sweep["train_mse"], wanted, rtol=1e-9)
    assert_near(fit.path(lams, 0.3, 3).fitted, np.asarray(fit.diagonal(lams, 0.3, 3)) * Y, 1e-5)
