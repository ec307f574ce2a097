"""Studies of risk: what is expected beside what is measured, and the signs of alpha*."""

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.study import pictures
from sdgpu.study.real_data.datasets import load
from sdgpu.study.theory.regimes import label_noise_weights, linear_features
from sdgpu.study.theory.risk import RULES, expected_risk, risk_curves
from tests.problems import refits

KERNEL = sdgpu.Gaussian(2.0)
LAMS = np.geomspace(1e-3, 10, 9)
STDS = np.array([0.0, 0.1, 1.0])


def truth(X):
    return np.sin(3 * X[:, 0]) + X[:, 0] * X[:, 1]


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    X, X_new = rng.uniform(-1, 1, (60, 2)), rng.uniform(-1, 1, (90, 2))
    return X, truth(X), X_new, truth(X_new)


@pytest.fixture(scope="module")
def curves(points):
    return risk_curves(*points, KERNEL, lams=LAMS, stds=STDS, steps=3, draws=12)


def test_expected_risk_of_a_fit_is_that_of_explicit_smoothers(points):
    X, F, X_new, F_new = points
    fitted = sdgpu.fit(X, 0 * F, KERNEL, lams=LAMS, method="eigh")
    found = expected_risk(fitted, F[:, None], X_new, F_new[:, None], steps=3)
    risk = found.schedule(np.array([0.4, -0.5]), 0.3)
    for i, lam in enumerate(LAMS):
        _, dual = refits(KERNEL(X), np.eye(60), lam, [0.4, -0.5], 3)
        S = KERNEL(X_new, X) @ dual
        assert_allclose(risk.bias[i], np.mean((S @ F - F_new) ** 2, axis=1), rtol=1e-6)
        assert_allclose(risk.variance[i], 0.09 * np.sum(S**2, axis=(1, 2)) / 90, rtol=1e-6)


def test_expected_risk_needs_all_eigenvalues(points):
    X, F, X_new, F_new = points
    fitted = sdgpu.fit(X, F, KERNEL, lams=LAMS, method="cg")
    with pytest.raises(ValueError, match="eigenvalues"):
        expected_risk(fitted, F[:, None], X_new, F_new[:, None])


def test_expected_and_measured_agree(curves):
    noisy = curves.sel(noise=STDS[1:])
    assert list(curves["rule"].values) == list(RULES)
    for wanted, found, error in (
        (noisy["expected"], noisy["measured"], noisy["measured_se"]),
        (noisy["expected"].sel(rule="ridge") - noisy["expected"], noisy["gain"], noisy["gain_se"]),
    ):
        assert (np.abs(found - wanted) <= 3 * error + 1e-15).all()
    assert_allclose(noisy["bias"] + noisy["variance"], noisy["expected"])
    assert_allclose(noisy["measured_bias"] + noisy["measured_variance"], noisy["measured"])
    assert_allclose(noisy["measured_variance"], noisy["variance"], rtol=0.5)


def test_without_noise_every_draw_is_the_expectation(curves):
    clean = curves.sel(noise=0.0)
    assert_allclose(clean["measured"], clean["expected"], rtol=1e-6, atol=1e-12)
    assert_allclose(clean["variance"], 0)


def test_freer_rules_have_less_risk_and_oracles_less_still(curves):
    risk = {rule: curves["expected"].sel(rule=rule).values for rule in RULES}
    for freer, than in (
        ("one step", "ridge"),
        ("fixed alpha", "ridge"),
        ("alpha*", "one step"),
        ("joint", "one step"),
    ):
        assert (risk[freer] <= risk[than] + 1e-12).all()
    assert (curves["oracle"] <= curves["measured"] + 1e-3 * curves["measured"].max()).all()
    # without noise there is one draw: what the sweep finds is what the expectation finds
    clean = curves.sel(noise=0.0)
    assert_allclose(
        clean["oracle"].sel(rule="ridge"), clean["expected"].sel(rule="ridge"), rtol=1e-6
    )


def test_weights_are_there_where_a_rule_has_them(curves):
    used = curves["alpha"].notnull().sum("step") + 1
    assert_allclose(used, curves["steps"])
    assert (curves["steps"].sel(rule="ridge") == 1).all()
    assert set(curves["lam"].values.ravel()) <= set(LAMS)


def test_rules_with_one_step_are_ridge(points):
    found = risk_curves(*points, KERNEL, lams=LAMS, stds=[0.3], steps=1, draws=2)
    assert_allclose(found["expected"].std("rule"), 0, atol=1e-15)


@pytest.fixture(scope="module")
def labels():
    """Digits: 300 rows with corrupted labels, 300 with clean ones."""
    data = load("digits")
    order = np.random.default_rng(0).permutation(len(data.X))
    parts = [(data.X[rows] / 16, data.Y[rows]) for rows in (order[:300], order[300:600])]
    return label_noise_weights(
        *parts[0],
        *parts[1],
        sdgpu.Gaussian(0.2),
        lams=[1e-2, 0.3, 1.0, 30.0],
        rates=np.arange(7) / 10,
        draws=4,
    )


def test_alpha_star_is_negative_under_label_noise(labels):
    """Das and Sanghavi 2023: with noise the teacher's weight 1 - alpha* exceeds 1, the more the noisier.

    So where lam is too small; where it is too large, alpha* > 1.
    """
    small, middle, large = (labels["alpha"].sel(lam=lam) for lam in (1e-2, 0.3, 30.0))
    noisy = labels["rate"] > 0
    assert (small[noisy] + 4 * labels["alpha_se"].sel(lam=1e-2)[noisy] < 0).all()
    assert (large - 4 * labels["alpha_se"].sel(lam=30.0) > 1).all()
    assert (labels["alpha"].sel(rate=0.0) > 1).all()  # clean labels: every lam here is too large
    # at a fixed lam in between the sign changes with the noise
    assert middle[1] > 1
    assert middle[-1] < 0
    assert (labels["expected_alpha"].sel(lam=0.3).diff("rate") < 0).all()


def test_sign_follows_the_slope_of_the_ridge_risk(labels):
    """alpha* < 1 at the first lam where the risk then falls, > 1 at the last where it has risen."""
    risk, alpha = labels["expected_ridge"].values, labels["expected_alpha"].values
    falling = np.diff(risk, axis=1) < 0
    assert (alpha[:, 0][falling[:, 0]] < 1).all()
    assert (alpha[:, -1][~falling[:, -1]] > 1).all()


def test_expected_weights_are_measured(labels):
    """The expectation over independent corruptions is exact; alpha* of a draw is a ratio, so nearly so."""
    for name in ("ridge", "distilled"):
        error = np.abs(labels[name] - labels[f"expected_{name}"])
        assert (error < 5 * labels[f"{name}_se"] + 0.02 * labels[name]).all()
    error = np.abs(labels["alpha"] - labels["expected_alpha"])
    assert (error < 5 * labels["alpha_se"] + 0.05 * (1 + np.abs(labels["alpha"]))).all()
    clean = labels.sel(rate=0.0)
    assert_allclose(clean["alpha"], clean["expected_alpha"], rtol=1e-5)
    assert (labels["distilled"] <= labels["ridge"] + 1e-12).all()


@pytest.fixture(scope="module", params=[(160, 80), (100, 200)], ids=["d / n = 1/2", "d / n = 2"])
def linear(request):
    n, d = request.param
    s = 1 / np.arange(1, d + 1)
    signal = np.arange(1, d + 1) ** -0.5 / np.sum(s**1.5)
    return linear_features(s, signal, n, np.geomspace(0.02, 2, 4) * s.sum(), 0.5, draws=16)


def test_asymptotic_risk_is_measured(linear):
    """Fits to samples within three standard errors and a few 1 / n of the prediction."""
    error = np.abs(linear["measured"] - linear["predicted"])
    assert (error < 3 * linear["measured_se"] + 0.03 * linear["predicted"]).all()
    assert_allclose(linear["bias"] + linear["variance"], linear["predicted"])
    error = np.abs(linear["alpha"] - linear["predicted_alpha"])
    assert (error < 3 * linear["alpha_se"] + 0.1 * (1 + np.abs(linear["predicted_alpha"]))).all()
    best = linear["predicted"].min("lam")
    assert (best.sel(rule="joint") <= best.sel(rule="alpha*") + 1e-9).all()
    assert (best.sel(rule="alpha*") <= best.sel(rule="ridge") + 1e-9).all()


@pytest.mark.parametrize("name", ["curves", "labels"])
def test_pictures(name, request, tmp_path):
    found: xr.Dataset = request.getfixturevalue(name)
    draw = {"curves": pictures.plot_risk, "labels": pictures.plot_alpha_signs}[name]
    figure = draw(found)
    figure.savefig(tmp_path / "figure.png")
    assert all(axis.has_data() for axis in figure.axes)


def test_picture_of_linear_features(linear, tmp_path):
    figure = pictures.plot_linear_features(linear, title="d / n = 1/2")
    figure.savefig(tmp_path / "figure.png")
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: risk_curves(*p, KERNEL, lams=LAMS, stds=[-0.1]), "stds must be >= 0, got -0.1"),
        (
            lambda p: risk_curves(*p, KERNEL, lams=LAMS, stds=[0.1], draws=1),
            "draws=1 must be at least 2",
        ),
        (lambda p: risk_curves(p[0], p[3], *p[2:], KERNEL, lams=LAMS, stds=[0.1]), "F has 90 rows"),
        (lambda p: risk_curves(*p[:3], p[1], KERNEL, lams=LAMS, stds=[0.1]), "F_new has 60 rows"),
        (lambda p: linear_features([1.0], [1.0], 5, [1.0], -1.0), "std=-1.0 must be >= 0"),
        (
            lambda p: linear_features([1.0], [1.0], 5, [1.0], 1.0, steps=1),
            "steps=1 must be at least 2",
        ),
        (
            lambda p: label_noise_weights(*p, KERNEL, lams=LAMS, rates=[0.1]),
            "labels must be whole numbers",
        ),
        (
            lambda p: label_noise_weights(
                p[0], np.eye(2)[[0, 1] * 30], *p[2:], KERNEL, lams=LAMS, rates=[1.2]
            ),
            r"rate=1.2 must be in \[0, 1\]",
        ),
    ],
)
def test_bad_input(points, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(points)
