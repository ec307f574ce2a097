"""Weights of teachers against explicit least squares and a general optimiser."""

import numpy as np
import pytest
import scipy.optimize

from sdgpu.selection.teacher_weights import fitted_teacher_weights, teacher_residuals


def by_optimiser(B, kind):
    """SLSQP from several starts."""
    M, scale, best = B.shape[1], np.abs(B).max(), None
    for seed in range(4):
        start = np.random.default_rng(seed).dirichlet(np.ones(M))
        found = scipy.optimize.minimize(
            lambda w: np.sum((B @ w / scale) ** 2),
            start,
            jac=lambda w: 2 * B.T @ (B @ w) / scale**2,
            constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(M)}],
            bounds=[(0, None)] * M if kind == "simplex" else None,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        best = found.fun if best is None else min(best, found.fun)
    return best * scale**2


@pytest.mark.parametrize("kind", ["sum_to_one", "simplex"])
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e100])
@pytest.mark.parametrize(("p", "M"), [(1, 1), (1, 3), (3, 3), (8, 2), (9, 5), (30, 4)])
def test_no_other_weights_are_better(kind, scale, p, M):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        B = scale * (rng.standard_normal((p, M)) + 2 * rng.standard_normal((p, 1)))
        w, loss = fitted_teacher_weights(B, kind)
        assert w.shape == (M,)
        np.testing.assert_allclose(w.sum(), 1, rtol=1e-9)
        np.testing.assert_allclose(loss, np.sum((B @ w) ** 2), rtol=1e-12)
        assert kind == "sum_to_one" or (w >= 0).all()
        largest = np.sum(B**2)
        assert loss <= by_optimiser(B, kind) * (1 + 1e-6) + 1e-12 * largest
        others = rng.dirichlet(np.ones(M), 50)
        if kind == "sum_to_one":
            others = w + rng.standard_normal((50, M))
            others /= others.sum(axis=1, keepdims=True)
        losses = np.sum((B @ others.T) ** 2, axis=0)
        assert (loss <= losses + 1e-9 * largest).all()


@pytest.mark.parametrize("kind", ["sum_to_one", "simplex"])
def test_equal_and_perfect_teachers(kind):
    column = np.array([1.0, 2.0, -1.0])
    w, _ = fitted_teacher_weights(np.stack([column] * 4, axis=1), kind)
    np.testing.assert_allclose(w, 0.25)
    w, loss = fitted_teacher_weights(np.stack([column, 0 * column], axis=1), kind)
    np.testing.assert_allclose(w, [0, 1], atol=1e-12)
    assert loss < 1e-20
    w, loss = fitted_teacher_weights(np.zeros((3, 2)), kind)
    np.testing.assert_allclose(w, 0.5)
    assert loss == 0


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("M", [1, 2, 3, 5])
@pytest.mark.parametrize("T", [1, 2, 4])
def test_residuals_of_single_teachers(T, M, unlabelled):
    """Columns of a chain, written out step by step, from numbers that stand for u_t of every part."""
    rng, rows = np.random.default_rng(T + 10 * M), 7
    truth, target = rng.standard_normal((T, rows)), rng.standard_normal(rows)
    unseen, extra = rng.standard_normal((2, M, T, rows))
    columns = [*np.diff(truth, axis=0)]
    for m in range(M):
        if unlabelled:
            columns += [unseen[m, 0], *np.diff(unseen[m], axis=0)]
        columns += [*extra[m]]
    columns = np.stack([*columns, truth[0] - target], axis=1)
    for alpha in (-0.3, 0.0, 0.4, 1.0):
        for step in range(1, T + 1):
            found = teacher_residuals(columns, M, alpha, step, unlabelled=unlabelled)
            for m in range(M):
                tail = (1 - alpha) ** step
                wanted = tail * extra[m, step - 1] - target
                for part in (truth, unseen[m])[: 1 + unlabelled]:
                    chain = part[0] + sum(
                        (1 - alpha) ** j * (part[j] - part[j - 1]) for j in range(1, step)
                    )
                    wanted = wanted + chain
                np.testing.assert_allclose(found[:, m], wanted, atol=1e-12)
