"""Appendix D against explicit constrained fits, exact arithmetic and the statements it makes."""

import math
from fractions import Fraction
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import brentq, minimize

from sdgpu.distill.diagnostics import ratios
from sdgpu.distill.filters import dual_filter, stepwise_filters, train_filter
from sdgpu.distill.loss_tolerance import (
    COUNTED,
    constrained_regime,
    constrained_sign_rule,
    constrained_steps,
    ridge_of_residual,
)
from tests.problems import EPS, from_spectrum

DELTA = np.array([0.02, 0.1, 0.3, 0.8, 2.0, 5.0])


def loss(y, Y, before, alpha):
    """Left side of (22) over n."""
    return (alpha * np.sum((y - Y) ** 2) + (1 - alpha) * np.sum((y - before) ** 2)) / len(Y)


def constrained_refits(K, Y, eps, alphas):
    """Steps 1..T: a dense solve for every trial lam, Brent's method on the loss (22) itself."""
    before, lams, fitted = Y, [], []
    for alpha in (1.0, *alphas):
        target = alpha * Y + (1 - alpha) * before

        def fit(log_lam, target=target):
            return K @ np.linalg.solve(K + math.exp(log_lam) * np.eye(len(K)), target)

        def excess(log_lam, alpha=alpha, fit=fit, before=before):
            return loss(fit(log_lam), Y, before, alpha) / eps - 1

        if loss(np.zeros_like(Y), Y, before, alpha) <= eps:
            lams.append(math.inf)
            before = np.zeros_like(Y)
        else:
            root = brentq(excess, -18, 18, xtol=1e-13, rtol=4 * EPS)
            lams.append(math.exp(root))
            before = fit(root)
        fitted.append(before)
    return np.array(lams), np.array(fitted)


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize(
    "alphas", [np.zeros(6), np.full(6, 0.1), np.full(6, 0.4), np.ones(3), [0.5, 0.2, 0.7, 0.0], []]
)
@pytest.mark.parametrize("ratio", [0.9, 1.5, 3.7])
def test_steps_are_constrained_refits(c, alphas, ratio):
    problem = from_spectrum(DELTA, c=c)
    eps = np.sum(problem.Y**2) / len(DELTA) / ratio**2
    lams, fitted = constrained_refits(problem.K, problem.Y, eps, alphas)
    Z = problem.V.T @ problem.Y
    found = constrained_steps(problem.delta, Z, eps, np.asarray(alphas))
    assert (np.isinf(found.lams) == np.isinf(lams)).all()
    # Brent leaves 1e-13 in log lam, the solves kappa eps = 6e-14
    assert_allclose(found.lams, lams, rtol=1e-10)
    assert_allclose(problem.V @ (found.train[..., None] * Z), fitted, atol=1e-11)
    dual = problem.V @ (found.dual[..., None] * Z)
    assert_allclose(problem.K @ dual, fitted, atol=1e-11)
    alive = np.isfinite(lams)
    assert_allclose(found.losses[alive], eps, rtol=1e-13)
    assert (found.losses[~alive] <= eps).all()
    assert (dual[~alive] == 0).all()


def test_a_step_minimises_the_penalty():
    """(21) by a general optimiser over the dual coefficients, which knows nothing of ridge."""
    problem = from_spectrum([0.3, 0.8, 2.0], c=1)
    Y, before, alpha = problem.Y[:, 0], 0.3 * problem.Y[:, 0], 0.4
    root = (problem.V * np.sqrt(problem.delta)) @ problem.V.T  # f = K^(1/2) b, ||f||^2 = |b|^2
    eps = 0.5 * loss(np.zeros(3), Y, before, alpha)
    best = minimize(
        lambda b: b @ b,
        np.linalg.solve(root, Y),
        jac=lambda b: 2 * b,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda b: eps - loss(root @ b, Y, before, alpha)},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    # one step from `before`: a chain whose step 1 is `before` has it as the mixed target of step 2
    target = problem.V.T @ (alpha * Y + (1 - alpha) * before)
    r2 = 3 * eps - alpha * (1 - alpha) * np.sum((Y - before) ** 2)
    lam = ridge_of_residual(problem.delta, target**2, r2, np.sum(target**2) - r2)
    y = problem.V @ (problem.delta / (problem.delta + lam) * target)
    assert_allclose(y, root @ best.x, atol=1e-6)


def test_lam_is_n_times_the_papers():
    """Proposition D.1 as printed: G = K / n, g(x) = kappa(x, X) / n."""
    problem = from_spectrum(DELTA, c=1)
    found = constrained_steps(problem.delta, problem.V.T @ problem.Y, 0.2, np.full(2, 0.3))
    G, before = problem.K / 6, problem.Y
    for step, lam in enumerate(found.lams / 6):
        target = 0.3 * problem.Y + 0.7 * before
        before = G @ np.linalg.solve(G + lam * np.eye(6), target)
        y = problem.V @ (found.train[step][:, None] * (problem.V.T @ problem.Y))
        assert_allclose(y, before, atol=1e-13)


def exact_excess(lam, delta, weights, residual, explained):
    """Residual minus what was wanted, in rational arithmetic, for the smaller of the two numbers."""
    left = [(Fraction(lam) / (Fraction(d) + Fraction(lam))) ** 2 for d in delta]
    if residual <= explained:
        return sum(Fraction(p) * x for p, x in zip(weights, left, strict=True)) - Fraction(residual)
    return Fraction(explained) - sum(
        Fraction(p) * (1 - x) for p, x in zip(weights, left, strict=True)
    )


@pytest.mark.parametrize("seed", range(60))
def test_root_in_exact_arithmetic(seed):
    """lam from 1e-140 to 1e30: the root lies within a few roundings, times its condition."""
    rng = np.random.default_rng(seed)
    k = rng.integers(1, 7)
    delta = 10.0 ** rng.uniform(-rng.choice([1, 10, 140]), 3, k)
    weights = 10.0 ** rng.uniform(-rng.choice([1, 10]), 1, k)
    small = weights.sum() * 10.0 ** rng.uniform(-30, -0.31)
    large = float(sum(map(Fraction, weights)) - Fraction(small))
    residual, explained = (small, large) if seed % 2 else (large, small)
    lam = ridge_of_residual(delta, weights, residual, explained)

    def excess(value):
        return exact_excess(value, delta, weights, residual, explained)

    h = 1e-6
    slope = float((excess(lam * (1 + h)) - excess(lam * (1 - h))) / Fraction(small)) / (2 * h)
    near = 8 * EPS * (1 + 1 / slope)
    assert excess(lam * (1 - near)) < 0 < excess(lam * (1 + near))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-6, 0), min_size=1, max_size=6),
    st.floats(0.7, 7.0),
    st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    st.integers(1, 2),
)
def test_regimes_of_d1(powers, ratio, alpha, c):
    """What is said beforehand happens: the regime, the guaranteed steps, and the limit."""
    delta = np.sort(10.0 ** np.array(powers))
    Z = np.random.default_rng(len(powers)).standard_normal((len(delta), c))
    eps = np.sum(Z**2) / len(delta) / ratio**2
    if abs(ratio - 1) < 1e-3 or abs(alpha * ratio**2 - 1) < 0.02:
        return  # at the border of two regimes a chain takes its time
    T = 200
    regime = constrained_regime(delta, Z, eps, alpha)
    found = constrained_steps(delta, Z, eps, np.full(T - 1, alpha))
    alive = np.isfinite(found.lams)
    assert (alive[1:] <= alive[:-1]).all()  # once 0, always 0
    count = int(alive.sum())
    if ratio < 1:
        assert (regime.name, count) == ("collapsed", 0)
    elif alpha * ratio**2 < 1:
        assert regime.name == "converging to collapse"
        assert 1 <= regime.guaranteed_steps <= count < T
        assert regime.mobahi_bound <= regime.guaranteed_steps
        assert regime.effective_lam == math.inf
    else:
        assert (regime.name, count) == ("never collapsing", T)
        assert regime.guaranteed_steps == math.inf
        limit = delta / (delta + regime.effective_lam)
        error = np.sum(((1 - limit)[:, None] * Z) ** 2) / len(delta)
        assert_allclose(error, eps / alpha, rtol=1e-10)
    if alpha > 0.15 and alpha * ratio**2 > 1.2:  # elsewhere the last digits take longer
        assert_allclose(found.lams[-1], alpha * regime.effective_lam, rtol=1e-5)
        assert_allclose(found.train[-1], limit, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.04])
def test_the_guarantee_is_exact_for_equal_eigenvalues(alpha):
    Z = np.array([[3.0], [4.1]])
    regime = constrained_regime(np.full(2, 0.7), Z, 0.6, alpha)
    found = constrained_steps(np.full(2, 0.7), Z, 0.6, np.full(60, alpha))
    assert np.isfinite(found.lams).sum() == regime.guaranteed_steps
    assert regime.mobahi_bound == pytest.approx(np.linalg.norm(Z) / math.sqrt(2 * 0.6) - 1)


def test_mobahis_bound_fails_nowhere_and_says_little():
    """At a condition number of 250 it promises nothing, where 5 steps are certain and 7 are made."""
    Z = np.array([[1.0], [2.0], [1.0], [0.5], [3.0], [4.0]])
    eps = np.sum(Z**2) / 6 / 5.5**2
    regime = constrained_regime(DELTA, Z, eps, 0.0)
    alive = np.isfinite(constrained_steps(DELTA, Z, eps, np.zeros(20)).lams).sum()
    assert regime.mobahi_bound < 0.02
    assert regime.guaranteed_steps == 5
    assert alive >= 5


def test_case_2_is_open_at_its_upper_end():
    """||Y||^2 / n = eps / alpha: no step is 0, but each is about the square of the one before."""
    with mpmath.workdps(400):
        r, alpha, s, norms = mpmath.mpf(2), mpmath.mpf(1) / 4, mpmath.mpf(1), []
        for _ in range(8):  # equal eigenvalues, ||Y|| = 2 and n eps = 1: (22) is met with equality
            centre = alpha * r + (1 - alpha) * s
            s = centre - mpmath.sqrt(1 - alpha * (1 - alpha) * (r - s) ** 2)
            norms.append(s)
        assert all(now > 0 for now in norms)
        assert all(now < before**2 for before, now in pairwise(norms))
    found = constrained_steps(np.ones(1), np.array([[2.0]]), 1.0, np.full(8, 0.25))
    alive = np.isfinite(found.lams)
    assert_allclose(2 * found.train[1:5, 0], [float(s) for s in norms[:4]], rtol=1e-6)
    assert alive[:5].all()
    assert not alive[-1]
    regime = constrained_regime(np.ones(1), np.array([[2.0]]), 1.0, 0.25)
    assert regime.name == "converging to collapse"
    assert regime.guaranteed_steps <= alive.sum()


def test_guarantees_are_counted_up_to_a_bound():
    assert constrained_regime(np.ones(1), np.ones((1, 1)), 1e-10, 1e-12).guaranteed_steps == COUNTED


def test_the_penalty_falls_and_the_last_function_stays_admissible():
    """Why a chain converges: y(tau-1) meets (22) of step tau, so the least penalty is no larger."""
    Z = np.random.default_rng(3).standard_normal((6, 2))
    eps, alpha = np.sum(Z**2) / 6 / 9, 0.2
    found = constrained_steps(DELTA, Z, eps, np.full(40, alpha))
    penalty = np.einsum("tk,kc->t", found.dual**2 * DELTA, Z**2)
    assert (np.diff(penalty) <= 4 * EPS * penalty[0]).all()
    error = np.einsum("tk,kc->t", (1 - found.train) ** 2, Z**2) / 6
    assert (alpha * error <= eps * (1 + 8 * EPS)).all()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("zero", [0.0, 1e-300])
def test_singular_kernels(alpha, zero):
    """What lies along a zero eigenvalue cannot be fitted; if step 1 is possible, so are all others."""
    delta = np.array([zero, 0.5, 2.0])
    Z = np.array([[0.3], [1.0], [2.0]])
    found = constrained_steps(delta, Z, 0.031, np.full(5, alpha))
    assert_allclose(found.losses, 0.031, rtol=1e-12)
    assert (found.train[:, 0] <= 1e-290).all()
    assert constrained_regime(delta, Z, 0.031, alpha).smallest_eps == pytest.approx(0.03)
    with pytest.raises(ValueError, match=r"eps=0.03 .* step 1: .* below 0.03; take eps above"):
        constrained_steps(delta, Z, 0.03, np.full(5, alpha))
    regime = constrained_regime(delta, Z, 0.03, alpha)
    assert (regime.name, regime.guaranteed_steps) == ("infeasible", 0)


def test_no_kernel_at_all():
    with pytest.raises(ValueError, match="step 1"):
        constrained_steps(np.zeros(2), np.ones((2, 1)), 0.5, np.zeros(1))
    assert np.isinf(constrained_steps(np.zeros(2), np.ones((2, 1)), 1.0, np.zeros(1)).lams).all()
    assert constrained_regime(np.zeros(2), np.ones((2, 1)), 0.5, 0.0).name == "infeasible"


def test_smallest_lam_is_the_border_of_the_possible():
    Z = np.random.default_rng(1).standard_normal((6, 1))
    lam = constrained_steps(DELTA, Z, 1e-3, np.zeros(0)).lams[0]
    constrained_steps(DELTA, Z, 1e-3, np.zeros(0), smallest_lam=lam * (1 - 1e-9))
    with pytest.raises(ValueError, match=r"below 0\.001"):
        constrained_steps(DELTA, Z, 1e-3, np.zeros(0), smallest_lam=lam * (1 + 1e-9))


def test_a_larger_weight_after_a_smaller_one_may_be_impossible():
    """alpha (1 - alpha) ||Y - y||^2 > n eps; with the eps that the error names it is possible."""
    Z = np.random.default_rng(0).standard_normal((6, 1))
    before = constrained_steps(DELTA, Z, 0.02, np.zeros(4))
    apart = np.sum((1 - before.train[-1]) ** 2 * Z[:, 0] ** 2) / 6
    with pytest.raises(ValueError, match=rf"eps=0.02 .* step 6: .* below {apart / 4:.6g}, given"):
        constrained_steps(DELTA, Z, 0.02, np.array([0.0, 0.0, 0.0, 0.0, 0.5]))


def test_a_chain_may_leave_zero_when_its_weight_rises():
    Z = np.random.default_rng(0).standard_normal((6, 1))
    eps = np.sum(Z**2) / 6 / 4
    found = constrained_steps(DELTA, Z, eps, np.array([0.0, 0.0, 0.0, 1.0]))
    assert np.isfinite(found.lams).tolist() == [True, *np.isfinite(found.lams[1:3]), False, True]
    assert_allclose(found.train[4], found.train[0], rtol=1e-12)


def test_regime_of_varying_weights():
    Z = np.ones((6, 1))
    regime = constrained_regime(DELTA, Z, 0.1, np.array([0.0, 0.3]))
    assert (regime.name, regime.guaranteed_steps) == ("varying weights", 3)
    assert math.isnan(regime.effective_lam)
    regime = constrained_regime(DELTA, Z, 0.1, np.array([0.2, 0.3]))
    assert (regime.name, regime.guaranteed_steps) == ("never collapsing", math.inf)
    assert math.isnan(regime.effective_lam)


def test_filter_is_the_printed_sum():
    """Proposition D.1 prints B(tau) as a sum of products of A(j), with one alpha."""
    lams, alpha = np.array([0.3, 0.1, 0.7, 0.2]), 0.3
    A = DELTA / (DELTA + lams[:, None])
    B = stepwise_filters(DELTA, lams, np.full(3, alpha))[0]
    for tau in range(1, 5):
        printed = (1 - alpha) ** (tau - 1) * np.prod(A[:tau], axis=0)
        for i in range(1, tau):
            power = (1 - alpha) ** (tau - i)
            printed = printed + alpha / (1 - alpha) * power * np.prod(A[i:tau], axis=0)
        assert_allclose(B[tau - 1], printed, rtol=1e-13)
    one = np.full(4, 0.3)
    assert_allclose(stepwise_filters(DELTA, one, lams[:3])[0], train_filter(DELTA, 0.3, lams[:3]))


def test_filters_of_one_lam_are_the_unconstrained_ones():
    """A chain whose lam were the same at all steps is the ordinary one: step 1 is."""
    Z = np.random.default_rng(0).standard_normal((6, 1))
    found = constrained_steps(DELTA, Z, 0.1, np.full(3, 0.3))
    assert_allclose(found.train[0], train_filter(DELTA, found.lams[0], np.zeros(0))[0])
    assert_allclose(found.dual[0], dual_filter(DELTA, found.lams[0], np.zeros(0))[0])
    assert_allclose(found.train, stepwise_filters(DELTA, found.lams, np.full(3, 0.3))[0])


def printed_sign(A, before, alpha):
    """(26) as it is printed, and the number that it inverts."""
    A_j, A_k, B_j, B_k = A[:-1], A[1:], before[:-1], before[1:]
    inner = (B_k / B_j - A_k / A_j) * A_j / (B_k * (A_k - A_j)) + 1
    return np.sign(1 / inner - alpha), inner


@given(st.lists(st.floats(-3, 1), min_size=6, max_size=6), st.floats(0.02, 0.98))
def test_sign_rule_of_d2(powers, alpha):
    """The sign from the ratios themselves; the printed rule agrees where it inverts a positive number."""
    lams, alphas = 10.0 ** np.array(powers), np.full(5, alpha)
    B, found = stepwise_filters(DELTA, lams, alphas)[0], constrained_sign_rule(DELTA, lams, alphas)
    R = np.vstack([np.ones(5), ratios(B)])
    change = np.diff(R, axis=0)
    clear = np.abs(change) > 1e-9 * R[1:]  # a sign of rounding noise is no sign
    assert (found == np.sign(change))[clear].all()
    assert (found[0] == 1).all()
    for tau in range(1, 6):
        A = DELTA / (DELTA + lams[tau])
        printed, inner = printed_sign(A, B[tau - 1], alpha)
        sure = clear[tau] & (np.abs(inner) > 1e-9)
        assert ((printed == found[tau]) == (inner > 0))[sure].all()


def test_the_printed_sign_rule_is_wrong_where_lam_falls():
    lams, alphas = np.array([10.0, 10.0, 1e-3]), np.full(2, 0.5)
    B = stepwise_filters(DELTA, lams, alphas)[0]
    printed, inner = printed_sign(DELTA / (DELTA + 1e-3), B[1], 0.5)
    truth = np.sign(np.diff(ratios(B), axis=0))[1]
    assert (constrained_sign_rule(DELTA, lams, alphas)[2] == truth).all()
    assert (inner < 0).any() == (printed != truth).any()


def test_sparsification_without_ground_truth_always_grows():
    """Mobahi et al. (2020): with alpha = 0 the ratios grow at every step; the last one is 0 / 0."""
    Z = np.random.default_rng(0).standard_normal((6, 1))
    found = constrained_steps(DELTA, Z, np.sum(Z**2) / 6 / 16, np.zeros(9))
    alive = np.isfinite(found.lams)
    signs = constrained_sign_rule(DELTA, found.lams, np.zeros(9))
    assert (signs[alive] == 1).all()
    assert (signs[~alive] == 0).all()
    assert np.isnan(ratios(found.train[~alive])).all()


@pytest.mark.parametrize("rows", [3, 12, 40])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_rows_beyond_the_spectrum_count_in_the_loss(rows, alpha):
    """A spectrum of fewer eigenvalues than rows: the mean is over the rows."""
    delta = np.geomspace(0.1, 3.0, 5)
    Z = np.random.default_rng(2).standard_normal((5, 2))
    eps = 0.04 * float(np.sum(Z**2)) / rows
    alphas = np.full(3, alpha)
    found = constrained_steps(delta, Z, eps, alphas, rows=rows)
    same = constrained_steps(delta, Z, eps * rows / 5, alphas)
    assert_allclose(found.lams, same.lams, rtol=1e-12)
    assert_allclose(found.losses, same.losses * 5 / rows, rtol=1e-12)
    regime = constrained_regime(delta, Z, eps, alpha, rows=rows)
    other = constrained_regime(delta, Z, eps * rows / 5, alpha)
    assert regime.name == other.name
    assert_allclose(regime.ratio, 5.0, rtol=1e-12)
    assert_allclose(regime.smallest_eps, other.smallest_eps * 5 / rows, rtol=1e-12)


@pytest.mark.parametrize("zero", [0, 2])
def test_the_limit_leaves_its_share_of_what_no_kernel_fits(zero):
    """n eps / alpha is the squared error of the limit, that along eigenvalues of 0 included."""
    delta = np.concatenate([np.zeros(zero), np.geomspace(0.1, 3.0, 6)])
    rng = np.random.default_rng(1)
    Z = rng.standard_normal((len(delta), 2))
    Z[:zero] *= 0.1
    lost = float(np.sum(Z[:zero] ** 2))
    alpha, wanted = 0.4, lost + 0.3 * (float(np.sum(Z**2)) - lost)
    regime = constrained_regime(delta, Z, alpha * wanted / len(delta), alpha)
    assert regime.name == "never collapsing"
    lam = regime.effective_lam
    left = (lam / (delta + lam)) ** 2 @ np.sum(Z**2, axis=1)
    assert_allclose(left, wanted, rtol=1e-10)


@pytest.mark.parametrize(
    ("alpha", "ratio"),
    [
        (alpha, ratio)
        for alpha in (0.0, 0.05, 0.2, 0.24)
        for ratio in (1.01, 1.4, 1.9, 2.02, 3.3)
        if alpha * ratio**2 <= 1  # others never collapse
    ],
)
def test_the_guarantee_follows_the_recursion_of_equal_eigenvalues(alpha, ratio):
    """s = ||y|| over sqrt(n eps): the smallest that alpha (r - s)^2 + (1 - alpha) (s' - s)^2 = 1 leaves."""
    Z = np.array([[ratio]])
    regime = constrained_regime(np.ones(1), Z, 1.0, alpha)
    s, steps = ratio - 1, 1
    # a step is not 0 while 0 leaves more than the tolerance
    while alpha * ratio**2 + (1 - alpha) * s**2 > 1:
        a, b, c = (
            1.0,
            -2 * (alpha * ratio + (1 - alpha) * s),
            alpha * ratio**2 + (1 - alpha) * s**2 - 1,
        )
        s = (-b - math.sqrt(b * b - 4 * a * c)) / 2
        steps += 1
    assert regime.guaranteed_steps == steps
    chain = constrained_steps(np.ones(1), Z, 1.0, np.full(steps + 1, alpha))
    assert int(np.isfinite(chain.lams).sum()) >= steps
