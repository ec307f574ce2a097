"""Deterministic equivalents against simulations, and against the closed forms of others."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.distill.asymptotic_risk import _factor, effective_ridge, linear_risk
from sdgpu.distill.joint_weights import joint_weights
from sdgpu.distill.optimal_weights import greedy_weights
from sdgpu.distill.schedules import coefficients

STD, DRAWS = 0.5, 12


def covariance(kind, d):
    """Eigenvalues and squared signal, with signal strength 1."""
    if kind == "isotropic":
        return np.ones(d), np.full(d, 1 / d)
    s, signal = 1 / np.arange(1, d + 1), np.arange(1, d + 1) ** -0.5
    return s, signal / np.sum(s * signal)


def simulated_errors(s, signal, n, lams, steps, draws, seed=0):
    """Errors w - beta of u_1..u_T from the singular values of X, (draws, L, T, d)."""
    rng, beta = np.random.default_rng(seed), np.sqrt(signal)
    errors = np.empty((draws, len(lams), steps, len(s)))
    for draw in errors:
        X = rng.standard_normal((n, len(s))) * np.sqrt(s)
        y = X @ beta + STD * rng.standard_normal(n)
        U, values, Vt = np.linalg.svd(X, full_matrices=False)
        for i, lam in enumerate(lams):
            a = values**2 / (values**2 + lam)
            for t in range(steps):
                draw[i, t] = (values / (values**2 + lam) * a**t * (U.T @ y)) @ Vt - beta
    return errors


@pytest.mark.parametrize("kind", ["isotropic", "power law"])
@pytest.mark.parametrize(("n", "d"), [(500, 250), (400, 800)])
def test_predictions_are_what_is_measured(kind, n, d):
    """Several schedules of up to four steps within three standard errors."""
    s, signal = covariance(kind, d)
    lams = np.array([0.03, 0.3, 2.0]) * n * s.mean()
    triangles = linear_risk(s, signal, n, lams, 4)
    errors = simulated_errors(s, signal, n, lams, 4, DRAWS)
    star = greedy_weights(triangles.expected(STD)).alphas
    for alphas in (
        [],
        [0.0],
        [0.5],
        [-0.8],
        [2.0],
        [0.0, 0.0, 0.0],
        [0.3, -0.4, 1.2],
        *star[:, :1],
    ):
        predicted = triangles.schedule(np.array(alphas), STD).total[:, -1]
        mixed = np.einsum(
            "t,bltd->bld", coefficients(np.array(alphas)), errors[:, :, : len(alphas) + 1]
        )
        losses = np.sum(s * mixed**2, axis=-1)
        error = losses.std(axis=0, ddof=1) / np.sqrt(DRAWS)
        # the equivalents are right up to 1 / n
        assert (np.abs(losses.mean(axis=0) - predicted) < 3 * error + 2 * predicted / n).all()


def test_bias_and_variance_apart():
    s, signal = covariance("power law", 200)
    lams, beta, rng = np.array([1.0, 20.0]), np.sqrt(signal), np.random.default_rng(1)
    predicted = linear_risk(s, signal, 400, lams, 1).schedule(np.zeros(0), STD)
    bias, variance = np.empty((10, 2)), np.empty((10, 2))
    for k in range(10):
        X = rng.standard_normal((400, 200)) * np.sqrt(s)
        for i, lam in enumerate(lams):
            W = np.linalg.solve(X.T @ X + lam * np.eye(200), X.T)  # w = W y, exactly in the noise
            bias[k, i] = np.sum(s * (W @ X @ beta - beta) ** 2)
            variance[k, i] = STD**2 * np.sum(s[:, None] * W**2)
    for found, wanted in ((bias, predicted.bias[:, 0]), (variance, predicted.variance[:, 0])):
        error = found.std(axis=0, ddof=1) / np.sqrt(10)
        assert (np.abs(found.mean(axis=0) - wanted) < 3 * error + 2 * wanted / 400).all()


@pytest.mark.parametrize("d", [30, 100, 250])
def test_effective_ridge_solves_its_equation(d):
    s = np.concatenate([[0.0], 1 / np.arange(1, d) ** 2])
    lams = np.array([1e-9, 1e-3, 1.0, 1e6])
    kappa = effective_ridge(s, 100, lams)
    assert (kappa > 0).all()
    # the two terms of the difference cancel where lam is small
    size = 100 * kappa
    back = kappa * (100 - np.sum(s / (s + kappa[:, None]), axis=1))
    assert_allclose(back, lams, rtol=1e-12, atol=1e-14 * size.max())
    assert_allclose(kappa[-1], 1e6 / 100, rtol=1e-5)


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**60])
def test_the_effective_ridge_has_the_unit_of_the_spectrum(unit):
    s, lams = covariance("power law", 200)[0], np.array([1e-3, 0.2, 50.0])
    found = effective_ridge(unit * s, 150, unit * lams)
    assert_allclose(found, unit * effective_ridge(s, 150, lams), rtol=1e-15)


def test_features_that_are_always_zero_change_nothing():
    s, signal = covariance("power law", 20)
    lams = np.array([0.1, 3.0])
    wanted = linear_risk(s, signal, 50, lams, 3)
    # one of them would carry a signal, if it were ever seen
    more, told = np.append(s, [0.0, 0.0]), np.append(signal, [0.0, 7.0])
    found = linear_risk(more, told, 50, lams, 3)
    for schedule in (np.zeros(2), np.array([0.3, -0.4])):
        one, two = (risk.schedule(schedule, STD) for risk in (found, wanted))
        assert_allclose(one.total, two.total, rtol=1e-12)


def test_triangles_keep_the_digits_of_small_functions(rng):
    size = np.array([1.0, 1e-9, 1e-18, 1e3])
    columns = rng.standard_normal((2, 7, 4))
    gram = np.swapaxes(columns, 1, 2) @ columns
    R = _factor(gram * np.outer(size, size)) / size
    assert_allclose(np.swapaxes(R, 1, 2) @ R, gram, atol=1e-13)
    gram[:, 1] = gram[:, :, 1] = 0.0
    with np.errstate(all="raise", under="ignore"):
        R = _factor(gram)
    assert_allclose(np.swapaxes(R, 1, 2) @ R, gram, atol=1e-13)


def test_isotropic_closed_forms():
    """kappa is a root of a quadratic; alpha* = 1 at lam = d std^2 / |beta|^2 (their Corollary 3.2)."""
    d, n = 60, 90
    s, signal = covariance("isotropic", d)
    lams = np.geomspace(0.1, 200, 5)
    half = (lams + d - n) / 2
    assert_allclose(
        effective_ridge(s, n, lams), (half + np.sqrt(half**2 + n * lams)) / n, rtol=1e-12
    )
    best = d * STD**2 / signal.sum()
    around = np.array([0.5, 0.999999, 1.000001, 2.0]) * best
    triangles = linear_risk(s, signal, n, around, 3)
    alpha = greedy_weights(triangles.expected(STD)).alphas[:, 0]
    assert (np.sign(alpha - 1) == [-1, -1, 1, 1]).all()
    # nothing beats the best ridge there: it is the Bayes rule
    joint = joint_weights(triangles.expected(STD)).losses
    assert_allclose(joint[1], joint[1, 0], rtol=1e-9)


def published(s, signal, n, lam, std):
    """R, C and R_pd of Dang, Patil and Rinaldo (2026), Theorem 3.1; their ridge is per sample."""
    gamma, ridge = len(s) / n, lam / n
    kappa = effective_ridge(s, n, np.array([lam]))[0]
    t = {k: gamma * np.mean(s**2 / (s + kappa) ** k) for k in (2, 3, 4)}
    q = {k: np.sum(signal * s / (s + kappa) ** k) for k in (2, 3, 4)}
    b = 1 / (1 - t[2])
    u2, u3, u4 = t[2] * b, t[3] * b**3, t[4] * b**4 + 2 * t[3] ** 2 * b**5
    E = kappa - b * ridge + b**2 * kappa * ridge * t[3]
    bracket = kappa * b * E * q[2] + kappa**2 * b**2 * ridge * q[3]
    a2 = b * E**2 + b**4 * kappa**2 * ridge**2 * t[4] + b**5 * kappa**2 * ridge**2 * t[3] ** 2
    a3, a4 = 2 * b**2 * kappa * ridge * E, b**3 * kappa**2 * ridge**2
    R = kappa**2 * b * q[2] + std**2 * u2
    C = 2 * kappa**2 * b * q[2] - bracket + std**2 * (u2 - ridge * u3)
    R_pd = 4 * kappa**2 * b * q[2] - 4 * bracket + a2 * q[2] + a3 * q[3] + a4 * q[4]
    return R, C, R_pd + std**2 * (u2 - 2 * ridge * u3 + ridge**2 * u4)


@pytest.mark.parametrize("d", [100, 400])
def test_two_steps_are_the_published_ones(d):
    s, signal = covariance("power law", d)
    lams = np.array([0.5, 5.0, 50.0])
    R = linear_risk(s, signal, 200, lams, 2).expected(STD)
    for i, lam in enumerate(lams):
        teacher, cross, pure = published(s, signal, 200, lam, STD)
        change, error = R[i].T  # D_1 = f_pd - f, and f - f*
        assert_allclose(error @ error, teacher, rtol=1e-10)
        assert_allclose((change + error) @ (change + error), pure, rtol=1e-8)
        assert_allclose((change + error) @ error, cross, rtol=1e-9)


def test_higher_steps_by_numerical_derivatives():
    """Inner products of D_1 and D_2 from differences of the two-point form itself."""
    s, signal = covariance("power law", 50)
    n, lam, h = 80, 3.0, 2e-2

    def form(first, second):
        k = effective_ridge(s, n, np.array([first, second]))
        q = s / (s + k[:, None])
        v = np.sum(q[0] * q[1])
        return (n * np.sum(s * signal * (1 - q[0]) * (1 - q[1])) + STD**2 * v) / (n - v)

    points = lam * (1 + h * np.arange(-2, 3))
    G = np.array([[form(x, y) for y in points] for x in points])
    first = np.array([1, -8, 0, 8, -1]) / (12 * h)  # lam d/dlam
    second = np.array([-1, 16, -30, 16, -1]) / (12 * h**2) / 2  # lam^2 / 2 d^2/dlam^2
    D = np.array([first, first + second, np.eye(5)[2]])  # D_1, D_2, u_1 - f*
    R = linear_risk(s, signal, n, np.array([lam]), 3).expected(STD)[0]
    assert_allclose(R.T @ R, D @ G @ D.T, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spectrum": [-1.0, 1.0]}, "spectrum must be >= 0, got -1"),
        ({"signal": [1.0, -2.0]}, "signal must be >= 0, got -2"),
        ({"signal": [1.0]}, "spectrum has 2 entries and signal 1"),
        ({"n": 0}, "n=0 must be at least 1"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"lams": [0.0]}, "lams must be > 0"),
    ],
)
def test_bad_input(change, message):
    arguments = {"spectrum": [1.0, 2.0], "signal": [1.0, 1.0], "n": 5, "lams": [1.0], "steps": 2}
    with pytest.raises(ValueError, match=message):
        linear_risk(**{**arguments, **change})
