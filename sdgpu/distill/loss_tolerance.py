"""The constrained form of self-distillation: a tolerance on the training loss instead of a ridge.

Appendix D of the paper; with alpha = 0 it is Mobahi, Farajtabar and Bartlett (2020). Step tau is the
function of least penalty ||f||^2 (norm of the kernel's space) among those that meet

    alpha ||y - Y||^2 + (1 - alpha) ||y - y(tau-1)||^2 <= n eps,    y = f(X), alpha in [0, 1].    (22)

The left side is ||y - w||^2 + alpha (1 - alpha) ||Y - y(tau-1)||^2 with the mixed target
w = alpha Y + (1 - alpha) y(tau-1), so with r2 = n eps - alpha (1 - alpha) ||Y - y(tau-1)||^2:

    ||w||^2 <= r2       the zero function will do: the step collapses, lam = inf;
    else                y = K (K + lam I)^-1 w with the one lam that leaves ||w - y||^2 = r2;
    no such lam         nothing that the kernel can make meets (22): an error.

In the eigenbasis of K all of that is arithmetic on k numbers: y(tau) = V B(tau) Z as in (10), with a lam
of its own for each step. With c > 1 outputs the norms are those of all outputs together (Frobenius).

lam is the package's, K + lam I. The paper has G = K / n and penalises by its own lambda: lam = n lambda.

What the appendix says, mended (each point is a test):

- Below (21) it says that steps with alpha = 0 collapse if mean (f - y)^2 <= eps; it means mean y^2.
- D.1, case 2: the interval of ||Y||^2 / n is open at eps / alpha. There (23) asks for ||y(tau-1)|| = 0, so
  no step is 0; but each norm is about the square of the one before, and float64 rounds it to 0.
- A step can be impossible, which the appendix leaves out: a singular K cannot reach all of Y, and after
  a smaller weight a larger one may ask for more than eps allows. With a fixed alpha, if step 1 is
  possible then all are: y(tau-1) itself meets (22) of step tau.
- "Unable to obtain a limiting solution": for a fixed alpha > 0 there is one. Since y(tau-1) meets (22),
  the penalty falls with every step; where it stays the step is its own teacher, alpha ||y - Y||^2 = n eps
  and y is ridge with lam / alpha. That ridge is unique, so the steps converge to the ridge fit whose
  mean squared error is eps / alpha, or collapse where ||Y||^2 / n < eps / alpha and there is none.
- Proposition D.1 writes y(tau) for f(x; tau). (26) inverts a number that is 0 at tau = 1 and may be
  negative where lam falls, and then gives the wrong sign; see :func:`constrained_sign_rule`.
- Mobahi's guarantee of (||Y|| / sqrt(n eps) - 1) / kappa steps, kappa = max delta / min delta, is good
  for kappa near 1 alone. The steps are never further apart than sqrt(n eps), whatever K, so
  ||Y|| / sqrt(n eps) - 1 are guaranteed.

With another smoother g (:mod:`sdgpu.distill.smoothers`) a step is g on the same mixed target, with the lam
that leaves the loss eps: the discrepancy principle. It is no function of least norm, and what the appendix
says of limits, and of a collapse for alpha > 0, is not known of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sdgpu.distill.discrepancy import lam_of_residual
from sdgpu.distill.filters import shrinkage, stepwise_filters
from sdgpu.distill.smoothers import RIDGE, Smoother

__all__ = [
    "ConstrainedSteps",
    "Regime",
    "constrained_regime",
    "constrained_sign_rule",
    "constrained_steps",
    "ridge_of_residual",
]

EPS = float(np.finfo(np.float64).eps)
ROUNDING = 4 * EPS  # of a sum, relative to it
ZERO = 1e-150  # an eigenvalue below this part of the largest counts as 0: its ridge would underflow
COUNTED = 10_000  # guaranteed steps are counted no further than this
SLACK = 1e-9  # guarantees are shortened by this, so that rounding does not promise a step too many


@dataclass(frozen=True)
class Regime:
    """What the norm of the targets says of a chain before any step is made, Appendix D.1.

    Attributes
    ----------
    name : {"infeasible", "collapsed", "converging to collapse", "never collapsing", ..}
        No function meets the tolerance; every step is 0; some step is 0 and all after it; no step is 0.
        "varying weights" is said of those that vary from step to step, "undetermined" of other smoothers
        than ridge, where none of the others is certain.
    ratio : float
        r = ||Y|| / sqrt(n eps): up to 1 is collapsed, above 1 / sqrt(alpha) never collapses.
    guaranteed_steps : int, or inf
        Steps that are not 0 whatever the eigenvalues of K; exact if they are all equal. Counted up to
        10,000.
    mobahi_bound : float
        (r - 1) / kappa with kappa = max delta / min delta, as Mobahi et al. (2020) give it; NaN for other
        smoothers than ridge.
    smallest_eps : float
        What eps has to exceed at step 1.
    effective_lam : float
        The steps converge to the ridge fit with this lam, whose mean squared error is eps / alpha, and
        their own lam to alpha times it. inf for a collapse, NaN where nothing is certain.
    """

    name: str
    ratio: float
    guaranteed_steps: float
    mobahi_bound: float
    smallest_eps: float
    effective_lam: float


@dataclass(frozen=True, eq=False)
class ConstrainedSteps:
    """Steps 1..T of a chain as filters on the eigenvalues.

    Attributes
    ----------
    lams : array (T,)
        Ridge of each step in K + lam I; inf where it collapsed.
    losses : array (T,)
        Left side of (22) over n: eps, or less where the step collapsed.
    train : array (T, k)
        B(1..T), y(tau) = V B(tau) Z.
    dual : array (T, k)
        C(1..T), f(x; tau) = kappa(x, X) V C(tau) Z.
    """

    lams: np.ndarray
    losses: np.ndarray
    train: np.ndarray
    dual: np.ndarray


def constrained_steps(
    eigenvalues: np.ndarray,
    Z: np.ndarray,
    eps: float,
    alphas: np.ndarray,
    *,
    smallest_lam: float = 0.0,
    rows: int | None = None,
    smoother: Smoother = RIDGE,
) -> ConstrainedSteps:
    """Solve (22) for steps 1..T, the first with y(0) = Y.

    Parameters
    ----------
    eigenvalues : array (n,)
        All eigenvalues of K, delta >= 0.
    Z : array (n, c)
        V'Y.
    eps : float
        Tolerance on the training loss, > 0.
    alphas : array (T - 1,)
        Weights of steps 2..T, each in [0, 1].
    smallest_lam : float, default 0
        A step that needs less than this is impossible: the rounding of the eigenvalues, below which
        functions cannot be told apart.
    rows : int, optional
        n, where eigenvalues that are 0 are left out but for those that targets need.
    smoother : Smoother, default ridge
        Others need smallest_lam > 0.

    Returns
    -------
    ConstrainedSteps

    Raises
    ------
    ValueError
        For a step that no function can make; says which and what eps it takes.

    Notes
    -----
    O(T n): some five evaluations of the residual for each step.

    References
    ----------
    Borup and Andersen (2021), (22)-(24) and Proposition D.1; Mobahi et al. (2020).

    Examples
    --------
    >>> chain = constrained_steps(np.array([1.0, 1.0]), np.array([[3.0], [4.0]]), 0.72, np.zeros(5))
    >>> chain.lams.round(4)  # ||Y|| = 5, and each step takes sqrt(n eps) = 1.2 away
    array([0.3158, 0.4615, 0.8571, 6.    ,    inf,    inf])
    """
    squares = np.einsum("kc,kc->k", Z, Z)
    n = len(eigenvalues) if rows is None else rows
    budget, total = n * eps, float(squares.sum())
    out_of_reach = _least_residual(eigenvalues, smallest_lam, smoother) ** 2
    B, residual = np.ones_like(squares), np.zeros_like(squares)  # 1 - B, without cancellation
    lams, losses, train, dual = [], [], [], []
    for step, alpha in enumerate((1.0, *alphas), start=1):  # step 1 has the ground truth alone
        target_filter = alpha + (1 - alpha) * B  # w = V target_filter Z
        weights = target_filter * target_filter * squares
        discrepancy = alpha * (1 - alpha) * float(residual * residual @ squares)
        # ||w||^2 - r2 as (23) has it
        excess = alpha * total + (1 - alpha) * float(B * B @ squares) - budget
        if excess <= 2 * ROUNDING * budget:
            lam, a, complement, scale = np.inf, np.zeros_like(B), np.ones_like(B), np.zeros_like(B)
        else:
            least_loss = discrepancy + float(out_of_reach @ weights)
            if budget - least_loss <= 2 * ROUNDING * budget:
                _refuse(step, eps, least_loss / n)
            how = {"residual": budget - discrepancy, "explained": excess, "smallest": smallest_lam}
            lam = _lam_of_step(smoother, eigenvalues, weights, **how)
            a, complement, scale = (
                make(eigenvalues, lam)
                for make in (smoother.shrinkage, smoother.complement, smoother.dual)
            )
        lams.append(lam)
        losses.append((float(complement * complement @ weights) + discrepancy) / n)
        dual.append(target_filter * scale)
        B, residual = a * target_filter, complement + (1 - alpha) * a * residual  # (12)
        train.append(B)
    return ConstrainedSteps(np.array(lams), np.array(losses), np.array(train), np.array(dual))


def _lam_of_step(
    smoother: Smoother,
    eigenvalues: np.ndarray,
    weights: np.ndarray,
    *,
    residual: float,
    explained: float,
    smallest: float,
) -> float:
    zero = _zero(eigenvalues)
    delta, w, left = eigenvalues[~zero], weights[~zero], residual - float(weights[zero].sum())
    if smoother.name == RIDGE.name:
        return ridge_of_residual(delta, w, left, explained)
    how = {"residual": left, "explained": explained, "smallest": smallest}
    return lam_of_residual(smoother, delta, w, **how)


def constrained_regime(
    eigenvalues: np.ndarray,
    Z: np.ndarray,
    eps: float,
    alphas: float | np.ndarray,
    *,
    smallest_lam: float = 0.0,
    rows: int | None = None,
    smoother: Smoother = RIDGE,
) -> Regime:
    """Say how a chain will end without making a step, Appendix D.1.

    For a fixed alpha in [0, 1] with r = ||Y|| / sqrt(n eps): r <= 1 is collapsed, r in
    (1, 1 / sqrt(alpha)] converges to a collapse, and above that no step is 0.

    Parameters
    ----------
    eigenvalues, Z, eps, smallest_lam, rows, smoother
        As for :func:`constrained_steps`.
    alphas : float or array (T - 1,)
        One weight, or the weights of steps 2..T.

    Returns
    -------
    Regime

    Notes
    -----
    O(n). The guarantee is the chain of equal eigenvalues, which collapses first: with s = ||y(tau)|| over
    sqrt(n eps), (22) and the triangle inequality leave alpha (r - s)^2 + (1 - alpha) (s_prev - s)^2 <= 1,
    and the smallest such s falls with s_prev. For alpha = 0 that is s = s_prev - 1, so ceil(r) - 1 steps.

    Examples
    --------
    >>> Z = np.array([[3.0], [4.0]])
    >>> regime = constrained_regime(np.array([1.0, 2.0]), Z, 0.72, 0.0)
    >>> regime.name, regime.guaranteed_steps, round(regime.mobahi_bound, 2)
    ('converging to collapse', 4, 1.58)
    """
    squares = np.einsum("kc,kc->k", Z, Z)
    n, total = len(squares) if rows is None else rows, float(squares.sum())
    weights = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    low, high = (float(weights.min()), float(weights.max())) if weights.size else (1.0, 1.0)
    smallest_eps = float(_least_residual(eigenvalues, smallest_lam, smoother) ** 2 @ squares) / n
    ridge = smoother.name == RIDGE.name
    ratio = math.sqrt(total / (n * eps))
    rcond = eigenvalues.min() / max(eigenvalues.max(), np.finfo(np.float64).tiny)  # 1 / kappa
    name, steps, limit_lam = (
        "varying weights",
        float(max(math.ceil(_with_slack(ratio)) - 1, 1)),
        np.nan,
    )
    if total <= n * eps:
        name, steps, limit_lam = "collapsed", 0, np.inf
    elif eps <= smallest_eps:
        name, steps = "infeasible", 0
    elif low * total > n * eps:
        name, steps = "never collapsing", math.inf
        if low == high and ridge:
            limit_lam = _limit(eigenvalues, squares, n * eps / low)
    elif low == high:
        name, steps, limit_lam = "converging to collapse", _guaranteed_steps(ratio, low), np.inf
        if not ridge and (low > 0 or smoother.projects):  # a step may be its own teacher
            name, limit_lam = "undetermined", np.nan
    bound = max(ratio - 1, 0.0) * float(rcond) if ridge else np.nan
    return Regime(
        name=name,
        ratio=ratio,
        guaranteed_steps=steps,
        mobahi_bound=bound,
        smallest_eps=smallest_eps,
        effective_lam=limit_lam,
    )


def constrained_sign_rule(
    eigenvalues: np.ndarray, lams: np.ndarray, alphas: np.ndarray
) -> np.ndarray:
    """Sign of R_k(tau) - R_k(tau - 1) for the ratios R_k = B_{k+1} / B_k, Theorem D.2.

    With d_k > d_j, A = A(tau) and B = B(tau - 1) it is the sign of

        (1 - alpha) B_k B_j (A_k - A_j) + alpha (A_k B_j - A_j B_k),

    which is (26) without its divisions. The number inverted there is 0 at tau = 1, where B(0) = I, and
    may be negative where lam falls from a step to the next: then (26) as printed gives the wrong
    sign. Step 1 has +1: the first fit sparsifies.

    Parameters
    ----------
    eigenvalues : array (k,)
        Ascending.
    lams : array (T,)
    alphas : array (T - 1,)
        As for :func:`sdgpu.distill.filters.stepwise_filters`; they may vary.

    Returns
    -------
    array (T, k - 1)
        Of tau = 1..T; 0 where the ratio stays or the step collapsed.

    References
    ----------
    Borup and Andersen (2021), (25) and (26).
    """
    A, B = shrinkage(eigenvalues, lams), stepwise_filters(eigenvalues, lams, alphas)[0]
    B_previous = np.concatenate([np.ones((1, len(eigenvalues))), B[:-1]])
    weight = np.concatenate([np.ones(1), alphas])[:, None]  # step 1 has the ground truth alone
    A_j, A_k, B_j, B_k = A[:, :-1], A[:, 1:], B_previous[:, :-1], B_previous[:, 1:]
    return np.sign((1 - weight) * B_k * B_j * (A_k - A_j) + weight * (A_k * B_j - A_j * B_k))


def ridge_of_residual(
    eigenvalues: np.ndarray, weights: np.ndarray, residual: float, explained: float
) -> float:
    """The lam at which ridge leaves a wanted residual, sum weights (lam / (delta + lam))^2 = residual.

    Parameters
    ----------
    eigenvalues : array (k,)
        delta > 0.
    weights : array (k,)
        Squared coordinates of the targets in the eigenbasis, >= 0.
    residual : float
        > 0.
    explained : float
        sum weights - residual, > 0; asked for apart because it may cancel.

    Returns
    -------
    float
        To a few units in the last place, for tiny and huge lam as well: the equation is solved for the
        smaller one of residual and explained, each a sum of positive terms.

    Notes
    -----
    Newton's method in mu = 1 / lam for ||(I + mu D)^-1 w||^-1, which is nearly linear: a power mean of the
    lines 1 + mu delta, concave, so that Newton climbs to the root from the left and never jumps over
    it. A bracket catches what rounding does, by bisection in log mu. Some five steps of O(k), and not
    forty where the eigenvalues span a hundred decades.

    References
    ----------
    Reinsch (1967) for smoothing splines; More and Sorensen (1983).

    Examples
    --------
    >>> ridge_of_residual(np.array([1.0, 4.0]), np.array([0.0, 9.0]), 1.0, 8.0)
    2.0
    """
    positive = weights > 0
    scale = float(eigenvalues[positive].max())
    d, p = eigenvalues[positive] / scale, weights[positive] / (residual + explained)
    t, complement = residual / (residual + explained), explained / (residual + explained)
    root = math.sqrt(t)
    low = complement / ((1 + root) * root)  # of mu, were all eigenvalues the largest
    high = low / float(d.min())
    mu = low
    for _ in range(100):
        u = 1 / (1 + mu * d)  # lam / (delta + lam)
        S = float(p @ (u * u))
        # 1 - u^2 = mu d u (1 + u)
        excess = complement - float(p @ (mu * d * u * (1 + u))) if complement < t else S - t
        if abs(excess) <= ROUNDING * min(complement, t):
            break
        low, high = (mu, high) if excess > 0 else (low, mu)
        slope = float(p @ (d * u * u * u))
        mu_new = mu + excess / (math.sqrt(S) + root) * S / (root * slope)
        if not low <= mu_new <= high:
            mu_new = math.sqrt(low) * math.sqrt(high)
        converged = abs(mu_new - mu) <= ROUNDING * mu
        mu = mu_new
        if converged:
            break
    return scale / mu


def _limit(eigenvalues: np.ndarray, squares: np.ndarray, residual: float) -> float:
    """The ridge whose squared error is n eps / alpha; inf if that rounds to all of ||Y||^2."""
    zero = _zero(eigenvalues)
    explained = float(squares.sum()) - residual
    if explained <= 0:
        return math.inf
    reachable_residual = residual - float(squares[zero].sum())
    return ridge_of_residual(eigenvalues[~zero], squares[~zero], reachable_residual, explained)


def _guaranteed_steps(ratio: float, alpha: float) -> int:
    """Steps that are not 0 with equal eigenvalues: the least that (22) leaves of ||y(tau)||."""
    r, s = ratio, ratio - 1
    for steps in range(1, COUNTED):
        if alpha * r * r + (1 - alpha) * s * s <= 1 + SLACK:  # (23)
            return steps
        s = alpha * r + (1 - alpha) * s - math.sqrt(1 - alpha * (1 - alpha) * (r - s) ** 2)
    return COUNTED


def _with_slack(ratio: float) -> float:
    return ratio * (1 - SLACK)


def _zero(eigenvalues: np.ndarray) -> np.ndarray:
    """Which eigenvalues are 0, so that no lam > 0 fits anything along their vectors."""
    return eigenvalues <= ZERO * eigenvalues.max()


def _least_residual(eigenvalues: np.ndarray, lam: float, smoother: Smoother) -> np.ndarray:
    """The part 1 - g of the target that is left even with the smallest lam."""
    zero = _zero(eigenvalues)
    if lam == 0:
        return zero.astype(np.float64)
    return np.where(zero, 1.0, smoother.complement(eigenvalues, lam))


def _refuse(step: int, eps: float, least_loss: float) -> None:
    clause = "" if step == 1 else ", given the steps before it"
    remedy = "" if step == 1 else ", or a smaller weight of the ground truth there"
    raise ValueError(
        f"eps={eps:g} is out of reach at step {step}: no function of this kernel has a training loss "
        f"below {least_loss:.6g}{clause}; take eps above that{remedy}"
    )
