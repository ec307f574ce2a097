"""Learned kernels: gradients of every objective, and what a search finds and says."""

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.engine import tuning_objectives
from sdgpu.engine.tuning_objectives import objective_of
from sdgpu.kernels.tunable import Tunable

RNG = np.random.default_rng(0)
N = 40
X, X_VAL = RNG.uniform(-1, 1, (N, 3)), RNG.uniform(-1, 1, (15, 3))
Y, Y_VAL = (np.stack([np.sin(4 * x[:, 0]), x[:, 1]], axis=1) for x in (X, X_VAL))
Y = Y + 0.1 * RNG.standard_normal(Y.shape)
W = RNG.uniform(0.2, 2.0, N)
KERNEL = 1.5 * sdgpu.Gaussian(1.0) + 0.3 * sdgpu.Matern(1.5)
OVER = ("scale", "lengthscale")


def objective(by="loo", alphas=(), **options):
    settings = {"sample_weight": None, "intercept": False, "tol": 1e-11, "seed": 0} | options
    tunable = Tunable(KERNEL, 3, OVER)
    return objective_of((X, Y), tunable, by, alphas=np.array(alphas, dtype=float), **settings)


def assert_slope(found, tol=1e-7):
    """The gradient against differences of the loss."""
    logs = np.append(found.tunable.start + 0.1, np.log(0.3))

    def loss(x):
        return found.losses(x[:-1], [np.exp(x[-1])])[0]

    value, slope = found.slope(logs[:-1], 0.3)
    h = 1e-4
    wanted = [(loss(logs + h * e) - loss(logs - h * e)) / (2 * h) for e in np.eye(len(logs))]
    assert value == pytest.approx(loss(logs), rel=1e-12)
    np.testing.assert_allclose(slope, wanted, rtol=0, atol=tol * np.abs(wanted).max())


@pytest.mark.parametrize("by", ["loo", "gcv", "marginal", (X_VAL, Y_VAL)])
@pytest.mark.parametrize("alphas", [(), (0.3, -0.4)])
def test_gradients(by, alphas):
    if by == "marginal" and alphas:
        pytest.skip("of the ordinary fit")
    assert_slope(objective(by, alphas))


def test_gradients_with_weights_and_an_intercept():
    weights = np.where(np.arange(N) % 7 == 0, 0.0, W)
    assert_slope(objective("loo", (0.3,), sample_weight=weights, intercept=True))


@pytest.mark.parametrize("alphas", [(), (0.3, -0.4)])
def test_gradients_by_solves(alphas, monkeypatch):
    monkeypatch.setattr(tuning_objectives, "DENSE_ROWS", 10)
    assert_slope(objective((X_VAL, Y_VAL), alphas), tol=1e-6)


def test_solves_that_miss_their_tolerance_say_so(monkeypatch):
    monkeypatch.setattr(tuning_objectives, "DENSE_ROWS", 10)
    made = objective((X_VAL, Y_VAL), tol=1e-30)
    with pytest.warns(UserWarning, match=r"relative residual of .*, above tol=1e-30"):
        made.slope(made.tunable.start, 1e-6)


def test_features_that_matter_are_found():
    X = RNG.uniform(-1, 1, (120, 4))
    y = np.sin(4 * X[:, 1]) + 0.05 * RNG.standard_normal(120)
    start = sdgpu.fit(X, y, sdgpu.Gaussian(1.0), [0.1])
    with pytest.warns(UserWarning, match="ended at a bound"):
        tuned = sdgpu.tune(X, y, sdgpu.Gaussian(1.0), [1e-3, 10.0], starts=2)
    assert tuned.relevance[1] == 1
    assert tuned.relevance[[0, 2, 3]].max() < 0.25
    before = np.mean((start.loo(0.1, steps=1)[0] - y) ** 2)
    assert tuned.loss < 0.2 * before
    after = np.mean((tuned.fit.loo(tuned.lam, steps=1)[0] - y) ** 2)
    assert after == pytest.approx(tuned.loss, rel=1e-8)
    history = tuned.history
    assert history["loss"].min() == tuned.loss
    assert set(history["start"].values) == {0, 1}
    assert list(history["parameter"].values)[-1] == "lam"
    best = history.isel(evaluation=int(np.argmin(history["loss"].values)))["value"].values
    np.testing.assert_allclose(best[:-1], tuned.kernel.lengthscale, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:.*ended at a bound")
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_both_optimisers_go_down(optimizer):
    tuned = sdgpu.tune(
        X, Y, sdgpu.Matern(1.5), by="marginal", over=("width",), optimizer=optimizer, iterations=40
    )
    losses = tuned.history["loss"].values
    assert tuned.loss == losses.min() < losses[0]
    assert isinstance(tuned.kernel.lengthscale, float)


def test_a_given_lam_stays(recwarn):
    tuned = sdgpu.tune(
        torch.tensor(X),
        torch.tensor(Y),
        sdgpu.RationalQuadratic(),
        0.2,
        over=("width", "power"),
        alphas=0.4,
        steps=2,
    )
    assert tuned.lam == pytest.approx(0.2, rel=1e-12)
    assert "lam" not in tuned.message.split("bound")[-1]
    path = tuned.fit.path(alphas=0.4, steps=2)
    assert isinstance(path.fitted, torch.Tensor)
    loo = np.mean((np.asarray(tuned.fit.loo(0.2, 0.4, 2)[-1]) - Y) ** 2)
    assert loo == pytest.approx(tuned.loss, rel=1e-8)


def test_validation_rows_judge():
    tuned = sdgpu.tune(X, Y, sdgpu.Gaussian(1.0), [1e-4, 10.0], over=("gamma",), by=(X_VAL, Y_VAL))
    error = np.mean((tuned.fit.path(tuned.lam, steps=1).predict(X_VAL)[0] - Y_VAL) ** 2)
    assert error == pytest.approx(tuned.loss, rel=1e-8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"over": ("sigma",)},
            ValueError,
            r"over=\('sigma',\).* has no sigma to learn; it has gamma",
        ),
        ({"over": "lengthscale"}, TypeError, r"write over=\('lengthscale',\)"),
        ({"by": "cv"}, ValueError, "by='cv'"),
        ({"by": 3}, TypeError, r"by=3 must be one of 'loo', 'gcv', 'marginal' or validation rows"),
        ({"by": (X_VAL[:, :2], Y_VAL)}, ValueError, r"by\[0\] must be finite rows \(m, 3\)"),
        ({"by": (X_VAL, Y_VAL[:3])}, ValueError, r"by\[1\] has 3 rows"),
        (
            {"by": (X_VAL, Y_VAL), "intercept": True},
            ValueError,
            "neither sample_weight nor an intercept",
        ),
        ({"by": "marginal", "steps": 2}, ValueError, "by='marginal' is of the ordinary fit"),
        ({"bounds": {"gamma": (1, 2)}}, ValueError, r"bounds has 'gamma', which is not in over"),
        ({"bounds": {"lengthscale": (2, 1)}}, ValueError, r"leave no room"),
        ({"bounds": {"lengthscale": (0, 1)}}, ValueError, r"bounds\['lengthscale'\]=0"),
        ({"starts": 0}, ValueError, "starts=0"),
        ({"iterations": 0}, ValueError, "iterations=0"),
        ({"optimizer": "sgd"}, ValueError, "optimizer='sgd'"),
        ({"kernel": "precomputed"}, ValueError, "has no parameters"),
        ({"sample_weight": -np.ones(N)}, ValueError, "sample_weight has -1"),
        ({"lams": [-1.0]}, ValueError, "lams"),
    ],
)
def test_bad_input(options, error, message):
    settings = {"kernel": sdgpu.Gaussian(1.0)} | options
    with pytest.raises(error, match=message):
        sdgpu.tune(X, Y, **settings)


def test_too_many_rows_need_validation_rows(monkeypatch):
    monkeypatch.setattr(tuning_objectives, "DENSE_ROWS", 10)
    with pytest.raises(ValueError, match=r"up to 10 rows, not 40: give\s+validation rows"):
        sdgpu.tune(X, Y, sdgpu.Gaussian(1.0))


def test_one_row_is_too_few():
    with pytest.raises(ValueError, match="X has 1 row with a weight"):
        sdgpu.tune(X, Y, sdgpu.Gaussian(1.0), sample_weight=np.eye(N)[0])


@pytest.mark.filterwarnings("ignore:.*ended at a bound")
def test_relevance_needs_a_length_scale_each():
    tuned = sdgpu.tune(X, Y, sdgpu.Gaussian(1.0), [1e-3, 1.0], over=("gamma",))
    with pytest.raises(ValueError, match="has no length scale for each feature"):
        _ = tuned.relevance
