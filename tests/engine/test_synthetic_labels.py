"""Rounds of made labels against explicit refits: exact for every scheme, and drawn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdgpu
from sdgpu.distill.label_rounds import least_squares_share
from sdgpu.distill.smoothers import IteratedTikhonov
from tests.engine.test_smoothers import TRUTH
from tests.problems import assert_near

KERNEL = sdgpu.Gaussian(0.3)
LAMS, WEIGHTS, ROUNDS = np.array([0.05, 2.0]), np.array([0.0, 0.3, 1.0]), 5


def problem(n=14, m=6, c=2):
    rng = np.random.default_rng(5)
    return tuple(rng.standard_normal(s) for s in ((n, 3), (n, c), (m, 3), (m, c)))


def refits(fit_rows, predict, F, wanted, w, *, scheme, fresh, sigma, s, rounds=ROUNDS):
    """Squared bias and variance of each round: every label by itself, as a matrix of what it is made of.

    Columns of a label are the truth, then E_1 .. E_R and N_2 .. N_R, n of each: noise of variance 1 in every
    entry has the variance of the sum of squares of its columns.
    """
    (n, c), found = F.shape, []
    noise = np.eye(2 * rounds * n).reshape(2 * rounds, n, -1)

    def label(mean, round_, of, size):
        """An output's label: (n, 1 + 2 R n)."""
        return np.column_stack([mean, size * noise[of * rounds + round_ - 1]])

    for j in range(c):
        true = label(F[:, j], 1, 0, sigma[j])
        labels, per_round, fitted = [true], [], None
        for t in range(1, rounds + 1):
            if t > 1:
                truth = label(F[:, j], t, 0, sigma[j]) if fresh else true
                made = fitted + label(np.zeros(n), t, 1, s[j])
                labels.append(w * truth + (1 - w) * made)
            targets = np.mean(labels, axis=0) if scheme == "accumulate" else labels[-1]
            fitted = fit_rows(targets)
            seen = predict(targets)
            bias = np.sum((seen[:, 0] - wanted[:, j]) ** 2)
            per_round.append((bias, np.sum(seen[:, 1:] ** 2)))
        found.append(per_round)
    return np.sum(found, axis=0).T / (len(wanted) * c)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("scheme", ["mix", "accumulate"])
def test_every_round_of_every_scheme(scheme, fresh, new):
    X, F, X_new, F_new = problem()
    fit = sdgpu.fit(X, np.zeros_like(F), KERNEL, LAMS)
    sigma, s = np.array([0.3, 1.1]), np.array([0.7, 0.2])
    rows = {"X_new": X_new, "truth_new": F_new} if new else {}
    found = sdgpu.synthetic_labels(
        fit,
        F,
        rounds=ROUNDS,
        scheme=scheme,
        weights=WEIGHTS,
        true_labels="fresh" if fresh else "same",
        noise=sigma,
        synthetic_noise=s,
        **rows,
    ).dataset
    K, cross = KERNEL(X), KERNEL(X_new, X)
    for lam in LAMS:
        solve = np.linalg.inv(K + lam * np.eye(len(K)))

        def fitted(u, solve=solve):
            return K @ (solve @ u)

        def predicted(u, solve=solve):
            return cross @ (solve @ u)

        for w in WEIGHTS:
            at = (predicted, F_new) if new else (fitted, F)
            how = {"scheme": scheme, "fresh": fresh, "sigma": sigma, "s": s}
            bias, variance = refits(fitted, at[0], F, at[1], w, **how)
            point = found.sel(lam=lam, weight=w)
            assert_near(point["bias"], bias, 1e-10)
            assert_near(point["variance"], variance, 1e-10)
            assert_near(point["risk"], bias + variance, 1e-10)


@pytest.mark.parametrize("name", list(TRUTH))
def test_other_smoothers(name):
    X, F, X_new, F_new = problem(c=1)
    K, cross = KERNEL(X), KERNEL(X_new, X)
    lam = float(np.linalg.eigvalsh(K)[-1]) / 3  # three whole rounds of gradient descent
    fit = sdgpu.fit(X, F, KERNEL, lam, smoother=name, method="eigh")
    rows = {"X_new": X_new, "truth_new": F_new}
    found = sdgpu.synthetic_labels(fit, F, rounds=ROUNDS, weights=[0.4], **rows).dataset
    dual, one = TRUTH[name](K, lam), np.ones(1)
    how = {"scheme": "mix", "fresh": True, "sigma": one, "s": one}
    bias, variance = refits(
        lambda u: K @ (dual @ u), lambda u: cross @ (dual @ u), F, F_new, 0.4, **how
    )
    assert_near(found["bias"].values[0, 0], bias, 1e-8)
    assert_near(found["variance"].values[0, 0], variance, 1e-8)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("kind", ["eigh", "primal", "features", "torch"])
def test_an_intercept_and_other_kinds_of_fit(kind, new):
    """The mean is one more direction, without a penalty. What is fitted is a linear kernel, of rank 3."""
    X, F, X_new, F_new = problem(n=20)
    F, F_new, lam, w = F + 7, F_new + 7, 1.5, 0.3
    how = {"features": {"features": sdgpu.Explicit()}, "torch": {"method": "eigh"}}
    how = how.get(kind, {"method": kind})
    arrays = (torch.tensor(x) if kind == "torch" else x for x in (X, F, X_new, F_new))
    rows, truth, new_rows, new_truth = arrays
    fit = sdgpu.fit(rows, truth, sdgpu.Linear(), lam, intercept=True, **how)
    given_rows = {"X_new": new_rows, "truth_new": new_truth} if new else {}
    given_truth = None if kind == "features" else truth
    at = (X_new, F_new) if new else (X, F)
    for scheme in ("mix", "accumulate"):
        found = sdgpu.synthetic_labels(
            fit, given_truth, rounds=4, scheme=scheme, weights=[w], **given_rows
        ).dataset
        centred = X - X.mean(axis=0)
        beta = np.linalg.solve(centred.T @ centred + lam * np.eye(3), centred.T)

        def predict(u, Z, beta=beta):
            return (Z - X.mean(axis=0)) @ (beta @ u) + u.mean(axis=0)

        ones = np.ones(2)
        options = {"scheme": scheme, "fresh": True, "sigma": ones, "s": ones, "rounds": 4}
        bias, variance = refits(
            lambda u: predict(u, X), lambda u: predict(u, at[0]), F, at[1], w, **options
        )
        assert_near(found["bias"].values[0, 0], bias, 1e-8)
        assert_near(found["variance"].values[0, 0], variance, 1e-8)


@pytest.mark.parametrize("scheme", ["replace", "mix", "accumulate"])
def test_simulations_are_within_their_errors(scheme):
    """Of 60 numbers about 3 leave two standard errors and none leaves five; the next seed is another draw."""
    X, F, X_new, F_new = problem()
    fit = sdgpu.fit(X, F, KERNEL, LAMS)
    more = {} if scheme == "replace" else {"weights": WEIGHTS[:2]}
    for rows in ({}, {"X_new": X_new, "truth_new": F_new}):
        s = sdgpu.synthetic_labels(fit, F, rounds=4, scheme=scheme, noise=0.5, **rows, **more)
        drawn = s.simulate(1500, seed=1)
        for name in ("risk", "bias", "variance"):
            off = (drawn[name] - s.dataset[name]) / drawn[f"{name}_se"]
            assert float(abs(off).max()) < 4.5
            assert float((abs(off) > 3).mean()) < 0.1
        again, other = s.simulate(1500, seed=1), s.simulate(1500, seed=2)
        assert np.array_equal(again["risk"], drawn["risk"])
        assert not np.array_equal(other["risk"], drawn["risk"])


def test_refits_with_drawn_labels_are_within_three_standard_errors():
    """Labels of rows, drawn and fitted by a dense solve, round by round: no eigenbasis anywhere."""
    X, F, _, _ = problem(c=1)
    K, w, sigma, s, repetitions = KERNEL(X), 0.4, 0.5, 0.8, 4000
    H = K @ np.linalg.inv(K + LAMS[0] * np.eye(len(K)))
    draw = np.random.default_rng(11)
    targets = F + sigma * draw.standard_normal((len(F), repetitions))
    losses = []
    for _ in range(4):
        fitted = H @ targets
        losses.append(np.mean((fitted - F) ** 2, axis=0))
        true = F + sigma * draw.standard_normal(fitted.shape)
        targets = w * true + (1 - w) * (fitted + s * draw.standard_normal(fitted.shape))
    fit = sdgpu.fit(X, F, KERNEL, LAMS)
    how = {"rounds": 4, "weights": [w], "noise": sigma, "synthetic_noise": s}
    found = sdgpu.synthetic_labels(fit, F, **how).dataset["risk"].values[0, 0]
    losses = np.array(losses)
    errors = losses.std(axis=1, ddof=1) / repetitions**0.5
    assert (np.abs(found - losses.mean(axis=1)) < 3 * errors).all()


def orthogonal(n=12):
    """A fit in which every eigenvalue is 1: least squares as lam goes to 0."""
    F = np.random.default_rng(0).standard_normal(n)
    return F, sdgpu.fit(np.eye(n), F, sdgpu.Precomputed(), [1e-12, 0.2])


def test_the_golden_ratio():
    """Least squares and fresh labels: the best share of true ones is 0.618 (Garg, Bhattacharya and Sur)."""
    F, fit = orthogonal()
    s = sdgpu.synthetic_labels(fit, F, rounds=200)
    best = s.best_weight()
    golden = (math.sqrt(5) - 1) / 2
    assert abs(float(best["weight"][0]) - golden) < 1e-6
    assert abs(float(s.best_weight(after=200)["weight"][0]) - golden) < 1e-6
    # v = (w^2 + (1-w)^2) / (1 - (1-w)^2) is the golden ratio's reciprocal itself
    assert abs(float(best["risk"][0]) - golden) < 1e-6
    for ratio in (0.1, 3.0):
        unequal = sdgpu.synthetic_labels(fit, F, noise=1.0, synthetic_noise=ratio**0.5)
        found = float(unequal.best_weight()["weight"][0])
        assert abs(found - least_squares_share(ratio)) < 1e-6
    assert least_squares_share(0.0) == 0.0


def test_accumulated_labels_have_a_bounded_variance():
    """Sum of 1 / t^2: the efficiency of the limit is 6 / pi^2 for least squares, and not below it else."""
    F, fit = orthogonal()
    s = sdgpu.synthetic_labels(fit, F, rounds=300, scheme="accumulate")
    found = s.dataset.isel(weight=0)
    wanted = np.cumsum(1 / np.arange(1, 301) ** 2)
    assert_near(found["variance"].values[0], wanted, 1e-9)
    efficiency = found["variance"].values[:, :1] / found["variance"].values
    assert (efficiency >= 6 / math.pi**2 - 1e-12).all()
    replaced = sdgpu.synthetic_labels(fit, F, rounds=300, scheme="replace").dataset
    assert_near(replaced["variance"].values[0, 0], np.arange(1, 301), 1e-9)


def test_a_projection_collapses_by_variance_alone():
    """a is exactly 1: the variance of replaced labels grows without bound, and the limit says so."""
    n = 8
    fit = sdgpu.fit(
        np.eye(n), np.ones(n), sdgpu.Precomputed(), 0.5, smoother="cutoff", method="eigh"
    )
    s = sdgpu.synthetic_labels(fit, scheme="replace")
    assert np.isinf(s.dataset["limit_risk"].values).all()
    assert (s.dataset["limit_bias"].values == 0).all()
    kept = sdgpu.synthetic_labels(fit, scheme="accumulate").dataset
    assert_near(kept["limit_variance"].values, np.full((1, 1), math.pi**2 / 6), 1e-12)
    quiet = sdgpu.synthetic_labels(fit, scheme="replace", synthetic_noise=0.0).dataset
    assert_near(quiet["limit_variance"].values, np.ones((1, 1)), 1e-12)


@settings(max_examples=60, deadline=None)
@given(
    eigenvalues=st.lists(st.floats(-8, 4), min_size=1, max_size=7),
    lam=st.floats(-6, 4),
    noise=st.floats(-3, 3),
    rounds=st.integers(2, 12),
)
def test_the_best_weight_is_the_best_and_at_least_one_half(eigenvalues, lam, noise, rounds):
    n, draw = len(eigenvalues), np.random.default_rng(1)
    V = np.linalg.qr(draw.standard_normal((n, n)))[0]
    K = (V * 10.0 ** np.array(eigenvalues)) @ V.T
    F = draw.standard_normal((n, 2))
    fit = sdgpu.fit((K + K.T) / 2, F, sdgpu.Precomputed(), 10.0**lam, method="eigh")
    near = np.linspace(0, 1, 201)
    for true_labels, lowest in (("fresh", 0.5), ("same", 0.0)):
        how = {"noise": 10.0**noise, "true_labels": true_labels}
        s = sdgpu.synthetic_labels(fit, F, rounds=rounds, weights=near, **how)
        for after in (None, rounds):
            best = s.best_weight(after)
            if after is None:
                grid = s.dataset["limit_risk"].values[0]
            else:
                grid = s.dataset["risk"].values[0, :, -1]
            assert float(best["risk"][0]) <= grid.min() * (1 + 1e-9)
            assert float(best["weight"][0]) >= lowest - 1e-4


@pytest.mark.parametrize("scheme", ["replace", "mix", "accumulate"])
def test_many_rounds_come_to_the_limit(scheme):
    X, F, X_new, F_new = problem()
    fit = sdgpu.fit(X, F, KERNEL, [2.0]).with_smoother(IteratedTikhonov(2))
    more = {} if scheme == "replace" else {"weights": [0.2, 0.9]}
    for fresh in ("fresh", "same"):
        rows = {"X_new": X_new, "truth_new": F_new, "true_labels": fresh}
        data = sdgpu.synthetic_labels(fit, F, rounds=4000, scheme=scheme, **rows, **more).dataset
        last, tolerance = data.isel(round=-1), 1e-2 if scheme == "accumulate" else 1e-9
        for name in ("risk", "bias", "variance"):
            scale = float(last["risk"].max())
            off = np.abs(last[name].values - data[f"limit_{name}"].values).max()
            assert off <= tolerance * scale


def test_sizes_and_the_best_point():
    X, F, _, _ = problem(c=1)
    fit = sdgpu.fit(X, F[:, 0], KERNEL, LAMS)
    s = sdgpu.synthetic_labels(fit, F[:, 0], noise=0.4)
    assert s.dataset["risk"].dims == ("lam", "weight", "round")
    assert s.dataset["risk"].shape == (2, 21, 10)
    best, by_lam = s.best(), s.best_weight()
    assert best["risk"] == float(by_lam["risk"].min())
    assert best["lam"] in LAMS
    assert s.best_weight(after=1)["weight"].values.tolist() == [1.0, 1.0]
    replaced = sdgpu.synthetic_labels(fit, F[:, 0], scheme="replace")
    point = replaced.best(after=3)
    assert point["weight"] == 0
    assert point["risk"] == float(replaced.dataset["risk"].sel(round=3).min())
    # one row, and a single eigenvalue of 0: nothing is fitted, all is bias
    none = sdgpu.fit(np.zeros((1, 1)), np.ones(1), sdgpu.Precomputed(), 1.0, method="eigh")
    found = sdgpu.synthetic_labels(none, rounds=3).dataset
    assert (found["bias"].values == 1).all()
    assert (found["variance"].values == 0).all()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_any_lam(scale):
    """From 1e-12 to 1e12 of the largest eigenvalue: no digit of the bias cancels."""
    n = 6
    delta = np.geomspace(1e-3, 1, n)
    fit = sdgpu.fit(np.diag(delta), np.ones(n), sdgpu.Precomputed(), scale, method="eigh")
    found = sdgpu.synthetic_labels(fit, rounds=6, weights=[0.5]).dataset["bias"].values[0, 0]
    delta, lam = np.longdouble(delta), np.longdouble(scale)
    p, wanted = np.ones(n, dtype=np.longdouble), []
    lost = np.zeros(n, dtype=np.longdouble)
    for _ in range(6):
        left = (lam + delta * lost) / (delta + lam)  # 1 - a p
        wanted.append(float(np.mean(left**2)))
        lost = left / 2
    assert p.all()
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rounds": 0}, ValueError, "rounds=0 must be at least 1"),
        ({"rounds": 2.5}, TypeError, "rounds=2.5 must be a whole number"),
        ({"scheme": "mixed"}, ValueError, "scheme='mixed' is not known: did you mean 'mix'"),
        ({"weights": [0.5, 1.2]}, ValueError, r"weights=1.2 must be in \[0, 1\]: they are shares"),
        ({"weights": -0.1}, ValueError, "weights=-0.1 must be"),
        ({"weights": [0.0], "scheme": "replace"}, ValueError, "'replace' has no true labels"),
        ({"noise": -1.0}, ValueError, "noise=-1.0 must be >= 0"),
        ({"noise": [1.0, 2.0, 3.0]}, ValueError, "noise has 3 entries for 2 outputs"),
        ({"synthetic_noise": np.nan}, ValueError, "synthetic_noise=nan must be finite"),
        ({"true_labels": "old"}, ValueError, "true_labels='old' is not known"),
        ({"truth": np.ones((3, 2))}, ValueError, "truth has 3 rows"),
        ({"X_new": np.ones((2, 3))}, ValueError, "truth_new is missing"),
        ({"lams": [1e-9]}, ValueError, "lam=1e-09 is below the smallest fitted one"),
        ({"lams": [-1.0]}, ValueError, "lams must be > 0"),
    ],
)
def test_bad_input(change, error, words):
    X, F, _, _ = problem()
    fit = sdgpu.fit(X, F, KERNEL, LAMS)
    with pytest.raises(error, match=words):
        sdgpu.synthetic_labels(fit, **{"truth": F, **change})


def test_fits_that_know_too_little():
    X, F, _, _ = problem(n=120)
    cases = [
        ({"method": "cg"}, None, "needs all eigenvalues, which .*: fit with method='eigh'$"),
        ({"method": "subspace"}, None, "noise in every direction"),
        ({"sample_weight": np.arange(1.0, 121.0)}, F, "fit without weights"),
        ({"features": sdgpu.Nystrom(5)}, F, "fit the truth itself"),
    ]
    for how, truth, words in cases:
        fit = sdgpu.fit(X, F, KERNEL, [5.0], **how)
        with pytest.raises(ValueError, match=words):
            sdgpu.synthetic_labels(fit, truth)
    s = sdgpu.synthetic_labels(sdgpu.fit(X, F, KERNEL, LAMS), F, scheme="replace")
    with pytest.raises(ValueError, match="no weight to choose"):
        s.best_weight()
    for repetitions, seed in ((3, 0), (10, -1)):
        with pytest.raises(ValueError, match="must be at least"):
            s.simulate(repetitions, seed=seed)
