"""constrained_path against explicit constrained refits, in every library; Mobahi's example."""

import math
from dataclasses import FrozenInstanceError

import array_api_strict
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.backend.backends import to_numpy
from sdgpu.study.example import paper_example
from tests.distill.test_loss_tolerance import constrained_refits, loss
from tests.engine.test_fitted import KERNEL, data
from tests.problems import assert_near

X, Y, X_NEW, _ = data()
NORM = np.sum(Y**2) / len(Y)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, [0.5, 0.1, 0.2, 0.0, 0.1]])
def test_paths_are_constrained_refits(alpha):
    K, alphas = KERNEL(X), np.broadcast_to(alpha, (5,))
    path = sdgpu.constrained_path(X, Y, KERNEL, eps=NORM / 9, alpha=alpha, steps=6)
    lams, fitted = constrained_refits(K, Y, NORM / 9, alphas)
    assert path.steps == len(path.lams) == 6
    assert (path.alphas == alphas).all()
    assert_allclose(path.lams, lams, rtol=1e-9)
    assert_allclose(path.fitted, fitted, atol=1e-10)
    assert path.fitted.shape == path.dual.shape == (6, 25, 2)
    assert_allclose(path.predict(X), fitted, atol=1e-10)
    assert_allclose(path.predict(X_NEW), KERNEL(X_NEW, X) @ path.dual, atol=1e-12)
    assert path.predict(X_NEW[:0]).shape == (6, 0, 2)
    before, named = Y, np.array([1.0, *alphas])
    for tau in range(6):
        seen = loss(path.fitted[tau], Y, before, named[tau])
        assert_allclose(path.losses[tau], seen, rtol=1e-10)
        before = path.fitted[tau]


@pytest.mark.parametrize("library", [np.asarray, torch.tensor, array_api_strict.asarray])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_in_arrays_out(library, dtype, backend):
    arrays = [a.astype(dtype) for a in (X, Y, X_NEW)]
    inside = [library(a) for a in arrays]
    path = sdgpu.constrained_path(
        inside[0], inside[1], KERNEL, eps=1.0, alpha=0.2, steps=4, device=backend
    )
    wide = [a.astype(float) for a in arrays]
    lams, fitted = constrained_refits(KERNEL(wide[0]), wide[1], 1.0, np.full(3, 0.2))
    tolerance = {"float32": 2e-6, "float64": 1e-11}[dtype]
    for result in (path.fitted, path.dual, path.predict(inside[2])):
        assert type(result) is type(inside[0])
        assert str(result.dtype).endswith(dtype)
    assert_allclose(to_numpy(path.fitted), fitted, atol=tolerance)
    assert_allclose(path.lams, lams, rtol=1e-9)
    assert isinstance(path.lams, np.ndarray)
    assert path.lams.dtype == np.float64


def test_one_dimensional_targets_lose_the_axis():
    path = sdgpu.constrained_path(X, Y[:, 0], KERNEL, eps=0.1, steps=3)
    assert path.fitted.shape == path.dual.shape == (3, 25)
    assert path.predict(X_NEW).shape == (3, 12)
    full = sdgpu.constrained_path(X, Y[:, :1], KERNEL, eps=0.1, steps=3)
    assert_near(path.fitted, full.fitted[..., 0], rtol=1e-12)


def test_outputs_share_one_tolerance():
    """Frobenius: two equal outputs with twice the eps are one output."""
    one = sdgpu.constrained_path(X, Y[:, 0], KERNEL, eps=0.1, alpha=0.1, steps=4)
    two = sdgpu.constrained_path(X, Y[:, [0, 0]], KERNEL, eps=0.2, alpha=0.1, steps=4)
    assert_allclose(two.lams, one.lams, rtol=1e-10)


def test_a_fit_serves_every_tolerance_and_its_own_lams_do_not_matter():
    fitted = sdgpu.fit(X, Y, KERNEL, lams=[3.0, 5.0], method="eigh")
    for eps in (0.05, 0.5):
        path = sdgpu.constrain(fitted, eps=eps, alpha=0.3, steps=3)
        again = sdgpu.constrained_path(X, Y, KERNEL, eps=eps, alpha=0.3, steps=3)
        assert_allclose(path.lams, again.lams, rtol=1e-10)
    grown = sdgpu.fit(X, Y, KERNEL, lams=10.0, method="lanczos")
    if grown.info.k < 25:
        with pytest.raises(ValueError, match="needs all 25 eigenvalues, and this fit has"):
            sdgpu.constrain(grown, eps=0.1)
    solved = sdgpu.fit(X, Y, KERNEL, lams=10.0, method="cg")
    with pytest.raises(ValueError, match="a constrained path needs all eigenvalues"):
        sdgpu.constrain(solved, eps=0.1)


def test_a_tolerance_below_rounding_is_refused():
    """A smooth kernel: most of its eigenvalues are noise, so what they could fit is out of reach."""
    with pytest.raises(ValueError, match="eps=1e-10 is out of reach at step 1"):
        sdgpu.constrained_path(X, Y, sdgpu.Gaussian(1e-3), eps=1e-10)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_results_belong_to_the_caller(library):
    path = sdgpu.constrained_path(library(X), library(Y), KERNEL, eps=0.5, steps=3)
    new = library(X_NEW)
    before = path.predict(new)
    path.dual[:] = 7.0
    path.fitted[:] = 7.0
    assert (path.predict(new) == before).all()
    with pytest.raises(FrozenInstanceError):
        path.eps = 1.0


def test_precomputed_kernel():
    path = sdgpu.constrained_path(KERNEL(X), Y, "precomputed", eps=0.5, alpha=0.1, steps=3)
    wanted = sdgpu.constrained_path(X, Y, KERNEL, eps=0.5, alpha=0.1, steps=3)
    assert_allclose(path.predict(KERNEL(X_NEW, X)), wanted.predict(X_NEW), atol=1e-11)


def test_collapse_is_a_result_and_no_error():
    path = sdgpu.constrained_path(X, Y, KERNEL, eps=NORM * 1.01, steps=3)
    assert path.regime.name == "collapsed"
    assert "collapsed" in path.status
    assert np.isinf(path.lams).all()
    assert (path.predict(X_NEW) == 0).all()
    path = sdgpu.constrained_path(X, 0 * Y, KERNEL, eps=1e-9, steps=2)
    assert np.isinf(path.lams).all()
    later = sdgpu.constrained_path(X, Y, KERNEL, eps=NORM / 4, steps=9)
    first = int(np.argmax(np.isinf(later.lams)))
    assert f"step {first + 1} is the first that is 0, and stays 0" in later.status
    assert (later.fitted[first:] == 0).all()
    assert (later.losses[first:] <= NORM / 4).all()
    back = sdgpu.constrained_path(X, Y, KERNEL, eps=NORM / 4, alpha=[0.0] * 7 + [1.0], steps=9)
    assert "and returns with a larger weight" in back.status


def test_limit_of_a_chain_that_never_collapses():
    """The fit of ridge whose mean squared error is eps / alpha; the paper finds no limit."""
    path = sdgpu.constrained_path(X, Y, KERNEL, eps=NORM / 9, alpha=0.4, steps=60)
    assert path.regime.name == "never collapsing"
    limit = sdgpu.fit(X, Y, KERNEL, lams=path.regime.effective_lam).path(steps=1)
    assert_allclose(np.sum((limit.fitted[0] - Y) ** 2) / 25, NORM / 9 / 0.4, rtol=1e-10)
    assert_allclose(path.fitted[-1], limit.fitted[0], atol=1e-8)
    assert_allclose(path.predict(X_NEW)[-1], limit.predict(X_NEW)[0], atol=1e-8)


# The example of Mobahi et al. (2020): their targets, their kernel, alpha = 0


def mobahi(eps, **options):
    example = paper_example()
    return example, sdgpu.constrained_path(
        example.X, example.y, sdgpu.CubicGreen(), eps=eps, **options
    )


def test_mobahis_example_against_refits():
    """Four steps, then zero; three are certain from the norm of the targets alone."""
    example, path = mobahi(0.045, steps=7)
    K = sdgpu.CubicGreen()(example.X)
    lams, fitted = constrained_refits(K, example.y[:, None], 0.045, np.zeros(6))
    assert np.isfinite(lams).tolist() == [True] * 4 + [False] * 3
    assert_allclose(path.lams, lams, rtol=1e-7)  # K is singular: the refits lose digits
    assert_allclose(path.fitted, fitted[..., 0], atol=1e-8)
    assert path.regime.name == "converging to collapse"
    assert path.regime.guaranteed_steps == 3
    assert path.regime.mobahi_bound == 0  # min delta = 0
    assert (path.fitted[:, [0, -1]] == 0).all()  # f = 0 at both ends


def test_mobahis_tolerance_is_barely_possible():
    """The targets at x = 0 and 1, where every function of the kernel is 0, take 93 % of eps = 0.045."""
    example, path = mobahi(0.045)
    floor = (example.y[0] ** 2 + example.y[-1] ** 2) / 11
    assert_allclose(path.regime.smallest_eps, floor, rtol=1e-12)
    assert 0.92 < floor / 0.045 < 0.94
    with pytest.raises(ValueError, match=rf"eps=0.04 .* step 1: .* below {floor:.6g}; take eps"):
        mobahi(0.04)


@pytest.mark.parametrize("eps", [0.0425, 0.045, 0.06, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("kernel", [sdgpu.CubicGreen(), sdgpu.CubicSpline(), sdgpu.Gaussian(80.0)])
def test_no_chain_ends_before_its_guarantee(eps, kernel):
    example = paper_example()
    path = sdgpu.constrained_path(example.X, example.y, kernel, eps=eps, steps=40)
    made = int(np.isfinite(path.lams).sum())
    ratio = np.linalg.norm(example.y) / math.sqrt(11 * eps)
    assert (
        path.regime.mobahi_bound
        <= path.regime.guaranteed_steps
        == math.ceil(ratio) - 1
        <= made
        < 40
    )


def test_mobahis_example_with_ground_truth():
    """alpha ||y||^2 / n > eps from alpha = 0.079 on: the chain then never collapses."""
    for alpha, name in ((0.05, "converging to collapse"), (0.1, "never collapsing")):
        _, path = mobahi(0.045, alpha=alpha, steps=30)
        assert path.regime.name == name
        assert np.isfinite(path.lams).all() == (name == "never collapsing")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"eps": 0.0}, ValueError, "eps=0.0 must be > 0"),
        ({"eps": -1}, ValueError, "eps=-1 must be > 0"),
        ({"eps": float("nan")}, ValueError, "eps=nan must be finite"),
        ({"eps": "small"}, TypeError, "eps='small' must be a real number"),
        ({"alpha": 1.2}, ValueError, r"alpha=1.2 must be in \[0, 1\]"),
        ({"alpha": [0.1, -0.5]}, ValueError, r"alpha=-0.5 must be in \[0, 1\]"),
        ({"alpha": [0.1]}, ValueError, "alpha has shape .* steps=3 needs one number or 2"),
        ({"alpha": "a"}, TypeError, "alpha='a'"),
        ({"alpha": np.nan}, ValueError, "alpha=nan must be finite"),
        ({"steps": 0}, ValueError, "steps=0 must be at least 1"),
        ({"steps": 2.5}, TypeError, "steps=2.5 must be a whole number"),
        ({"steps": 10**9}, MemoryError, "a path of 1000000000 steps"),
        ({"Y": Y[:-1]}, ValueError, "Y has 24 rows"),
        ({"X": np.where(X > 1, np.nan, X)}, ValueError, "X has .* NaN"),
        ({"device": "gpu"}, ValueError, "device='gpu' is not known"),
        ({"X": np.zeros_like(X)}, ValueError, "eps=0.5 is out of reach at step 1"),
        (
            {"eps": 1e-3, "alpha": [0.0] * 4 + [0.5], "steps": 6},
            ValueError,
            "at step 6: .* given the steps before it",
        ),
    ],
)
def test_bad_input(change, error, words):
    arguments = {"X": X, "Y": Y, "kernel": KERNEL, "eps": 0.5, "steps": 3} | change
    with pytest.raises(error, match=words):
        sdgpu.constrained_path(**arguments)


def test_predictions_refuse_other_data():
    path = sdgpu.constrained_path(X, Y, KERNEL, eps=0.5, steps=3)
    with pytest.raises(ValueError, match="X_new has 2 features, but the fit has 3"):
        path.predict(X_NEW[:, :2])
    with pytest.raises(ValueError, match="X_new is torch"):
        path.predict(torch.tensor(X_NEW))


def test_a_kernel_of_few_features_needs_no_other_method(rng):
    """method="primal" knows that all other eigenvalues are 0."""
    X, Y = rng.standard_normal((700, 3)), rng.standard_normal((700, 2))
    exact, primal = (sdgpu.fit(X, Y, sdgpu.Linear(), 1.0, method=m) for m in ("eigh", "primal"))
    assert primal.info.method == "primal"
    for eps in (0.999 * np.mean(Y * Y) * 2, 3.0):
        paths = [sdgpu.constrain(fit, eps=eps, alpha=0.4, steps=3) for fit in (exact, primal)]
        left, right = (np.nan_to_num(path.lams, posinf=-1.0) for path in paths)
        assert_near(left, right, rtol=1e-6)
        assert_near(paths[0].losses, paths[1].losses, rtol=1e-9)
        assert_near(paths[0].fitted, paths[1].fitted, rtol=1e-6)
        assert_near(paths[0].predict(X[:5]), paths[1].predict(X[:5]), rtol=1e-6)


SMOOTHERS = ["ridge", "gradient_flow", "iterated", "landweber", "cutoff"]


def smoothed_problem(n=13, c=2):
    rng = np.random.default_rng(8)
    X, X_new = rng.standard_normal((n, 2)), rng.standard_normal((5, 2))
    return X, rng.standard_normal((n, c)), X_new, sdgpu.Gaussian(0.7)


@pytest.mark.parametrize("name", SMOOTHERS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, [0.2, 0.9, 0.5]])
def test_a_tolerance_chooses_the_lam_of_any_smoother(name, alpha):
    """Each step is one fit of the mixed target by that smoother, whose loss is eps: by explicit refits."""
    X, Y, X_new, kernel = smoothed_problem()
    eps = 0.15
    path = sdgpu.constrained_path(X, Y, kernel, eps=eps, alpha=alpha, steps=4, smoother=name)
    fit = sdgpu.fit(X, Y, kernel, path.lams[np.isfinite(path.lams)].min() / 2, method="eigh")
    fit = fit.with_smoother(name)
    weights, before = np.broadcast_to(alpha, 3), Y
    for t, lam in enumerate(path.lams):
        weight = 1.0 if t == 0 else weights[t - 1]
        target = weight * Y + (1 - weight) * before

        def loss_of(values, weight=weight, before=before):
            parts = weight * np.sum((values - Y) ** 2) + (1 - weight) * np.sum(
                (values - before) ** 2
            )
            return parts / len(Y)

        if np.isinf(lam):
            assert loss_of(0 * Y) <= eps * (1 + 1e-12)
            assert (path.fitted[t] == 0).all()
        else:
            one = fit.with_targets(target).path(float(lam), steps=1)
            assert_near(path.fitted[t], one.fitted[0], 1e-9)
            assert_near(path.predict(X_new)[t], one.predict(X_new)[0], 1e-8)
            np.testing.assert_allclose(path.losses[t], loss_of(path.fitted[t]), rtol=1e-9)
            if name in ("ridge", "gradient_flow", "iterated"):
                np.testing.assert_allclose(path.losses[t], eps, rtol=1e-9)
            else:  # more is kept than eps takes, but with less kept it would not be met
                assert path.losses[t] <= eps * (1 + 1e-12)
            if name == "cutoff":
                larger = fit.spectrum.eigenvalues
                following = np.sort(larger[larger >= lam])[0] * (1 + 1e-9)
                more = fit.with_targets(target).path(float(following), steps=1).fitted[0]
                assert loss_of(more) > eps
        before = path.fitted[t]
    assert path.regime.guaranteed_steps <= np.isfinite(path.lams).sum() or len(path.lams) == 4


def test_what_is_known_of_the_steps_of_other_smoothers():
    X, Y, _, kernel = smoothed_problem()
    how = {"steps": 200, "smoother": "gradient_flow"}
    path = sdgpu.constrained_path(X, Y, kernel, eps=0.05, **how)
    assert path.regime.name == "converging to collapse"
    alive = np.isfinite(path.lams)
    assert not alive[-1]
    assert alive.sum() >= path.regime.guaranteed_steps
    assert np.isnan(path.regime.mobahi_bound)
    total = float(np.sum(Y**2)) / len(Y)
    never = sdgpu.constrained_path(X, Y, kernel, eps=0.2 * total, alpha=0.5, **how)
    assert never.regime.name == "never collapsing"
    assert np.isfinite(never.lams).all()
    between = sdgpu.constrained_path(X, Y, kernel, eps=0.7 * total, alpha=0.5, **how)
    assert between.regime.name == "undetermined"
    assert np.isnan(between.regime.effective_lam)
    stuck = sdgpu.constrained_path(X, Y, kernel, eps=0.05, steps=3, smoother="cutoff")
    assert stuck.regime.name == "undetermined"
    fitted = sdgpu.fit(X, Y, kernel, 0.1, method="eigh", smoother="iterated")
    again = sdgpu.constrain(fitted, eps=0.05, alpha=0.2, steps=3)
    direct = sdgpu.constrained_path(X, Y, kernel, eps=0.05, alpha=0.2, steps=3, smoother="iterated")
    assert_near(again.lams, direct.lams, 1e-12)


@pytest.mark.parametrize("name", SMOOTHERS[1:])
def test_tolerances_out_of_reach_and_of_everything(name):
    """A kernel of rank 1: what it cannot reach is refused, and what asks for nothing is 0."""
    X = np.ones((4, 1))
    Y = np.array([1.0, 2.0, 3.0, 5.0])
    with pytest.raises(ValueError, match="out of reach at step 1"):
        sdgpu.constrained_path(X, Y, sdgpu.Linear(), eps=0.5, smoother=name)
    everything = sdgpu.constrained_path(X, Y, sdgpu.Linear(), eps=100.0, smoother=name)
    assert np.isinf(everything.lams).all()
    assert everything.regime.name == "collapsed"
