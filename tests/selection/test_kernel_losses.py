"""Losses of a kernel matrix against refits, and their derivatives against differences and closed forms."""

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.selection.kernel_losses import LOSSES, JudgedChain, dense_slope, validation_slope
from tests.problems import assert_near

RNG = np.random.default_rng(1)
N, C = 17, 2
A = RNG.standard_normal((N, N))
K = A @ A.T / N
Y = RNG.standard_normal((N, C))
W = RNG.uniform(0.3, 2.0, N)
LAM = 0.4


def chain_of(alphas=(), weights=None, intercept=False):
    w = None if weights is None else torch.tensor(weights)
    return JudgedChain(torch.tensor(Y), np.array(alphas, dtype=float), w, intercept)


def loss_of(name, chain, K=K, lam=LAM):
    return float(LOSSES[name](torch.tensor(K), torch.tensor(lam, dtype=torch.float64), chain))


def fitted_at(rows, at, alphas, weights, intercept):
    """Step T at row `at` of the chain on some rows, by explicit solves."""
    own, n = K[np.ix_(rows, rows)], len(rows)
    system = own + LAM * np.diag(1 / weights[rows])
    if intercept:
        ones = np.ones((n, 1))
        system = np.block([[system, ones], [ones.T, np.zeros((1, 1))]])
    fitted = None
    for alpha in [1.0, *alphas]:
        u = Y[rows] if fitted is None else alpha * Y[rows] + (1 - alpha) * fitted
        solved = np.linalg.solve(system, np.vstack([u, np.zeros((len(system) - n, C))]))
        dual, constant = solved[:n], solved[n] if intercept else 0.0
        fitted = own @ dual + constant
    return K[at, rows] @ dual + constant


@pytest.mark.parametrize("alphas", [(), (0.3,), (0.3, -0.5, 1.4)])
@pytest.mark.parametrize("weights", [None, W])
@pytest.mark.parametrize("intercept", [False, True])
def test_leave_one_out_by_refits(alphas, weights, intercept):
    w, errors = np.ones(N) if weights is None else weights, []
    for i in range(N):
        rows = np.delete(np.arange(N), i)
        errors.append(fitted_at(rows, i, alphas, w, intercept) - Y[i])
    wanted = np.average(np.mean(np.square(errors), axis=1), weights=w)
    assert loss_of("loo", chain_of(alphas, weights, intercept)) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("alphas", [(), (0.3,)])
def test_gcv_is_that_of_a_fit(alphas):
    X = RNG.standard_normal((N, 2))
    kernel = sdgpu.Gaussian(0.4)
    fit = sdgpu.fit(X, Y, kernel, [LAM], method="eigh")
    steps = len(alphas) + 1
    path = fit.path(LAM, alphas if alphas else 0.0, steps)
    S = np.stack(
        [
            sdgpu.fit(X, e, kernel, [LAM]).path(LAM, alphas or 0.0, steps).fitted[-1]
            for e in np.eye(N)
        ],
        axis=1,
    )
    wanted = np.mean((Y - path.fitted[-1]) ** 2) / (1 - np.trace(S) / N) ** 2
    assert loss_of("gcv", chain_of(alphas), kernel(X)) == pytest.approx(wanted, rel=1e-9)


def test_the_marginal_likelihood():
    from scipy.stats import multivariate_normal

    density = multivariate_normal(np.zeros(N), K + LAM * np.eye(N))
    wanted = -np.mean([density.logpdf(y) for y in Y.T]) / N - np.log(2 * np.pi) / 2
    assert loss_of("marginal", chain_of()) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("alphas", [(), (0.3, -0.5)])
@pytest.mark.parametrize(("weights", "intercept"), [(None, False), (W, True)])
def test_slopes_by_differences(name, alphas, weights, intercept):
    if name == "marginal" and alphas:
        pytest.skip("of the ordinary fit")
    chain = chain_of(alphas, weights, intercept)
    found = dense_slope(LOSSES[name], torch.tensor(K), LAM, chain)
    assert found.loss == pytest.approx(loss_of(name, chain), rel=1e-12)
    h = 1e-6
    by_lam = (loss_of(name, chain, lam=LAM + h) - loss_of(name, chain, lam=LAM - h)) / (2 * h)
    assert found.by_lam == pytest.approx(by_lam, rel=1e-6)
    E = RNG.standard_normal((N, N))
    E = E + E.T
    wanted = (loss_of(name, chain, K + h * E) - loss_of(name, chain, K - h * E)) / (2 * h)
    G = found.rows(slice(0, N)).numpy()
    assert (G == G.T).all()
    assert np.sum(G * E) == pytest.approx(wanted, rel=1e-6)


def test_the_closed_forms():
    """Those of the docstring, for one output."""
    Q = np.linalg.inv(K + LAM * np.eye(N))
    y = Y[:, :1]
    chain = JudgedChain(torch.tensor(y), np.zeros(0))
    c, q = (Q @ y)[:, 0], np.diag(Q)
    r = c / q
    g = 2 * r / N
    v = Q @ (g / q)
    wanted = -(np.outer(c, v) + np.outer(v, c)) / 2 + Q @ np.diag(g * r / q) @ Q
    found = dense_slope(LOSSES["loo"], torch.tensor(K), LAM, chain).rows(slice(0, N)).numpy()
    assert_near(found, wanted, rtol=1e-11)
    wanted = (Q - np.outer(c, c)) / (2 * N)
    found = dense_slope(LOSSES["marginal"], torch.tensor(K), LAM, chain).rows(slice(0, N)).numpy()
    assert_near(found, wanted, rtol=1e-11)


class Across:
    def __init__(self, matrix):
        self.matrix = torch.tensor(matrix)

    def matmat(self, V):
        return self.matrix @ V

    def transposed(self, W):
        return self.matrix.T @ W


@pytest.mark.parametrize("alphas", [(), (0.3,), (0.3, -0.5, 1.4)])
def test_validation_slopes_by_differences(alphas):
    across, truth = RNG.standard_normal((5, N)), RNG.standard_normal((5, C))
    chain = chain_of(alphas)

    def slope(K, across, lam):
        system = torch.tensor(K + lam * np.eye(N))
        return validation_slope(
            lambda B: torch.linalg.solve(system, B), Across(across), torch.tensor(truth), lam, chain
        )

    found, h = slope(K, across, LAM), 1e-6
    E, F = RNG.standard_normal((N, N)), RNG.standard_normal((5, N))
    E = E + E.T

    def difference(one, other):
        return (one.loss - other.loss) / (2 * h)

    by_lam = difference(slope(K, across, LAM + h), slope(K, across, LAM - h))
    by_rows = difference(slope(K + h * E, across, LAM), slope(K - h * E, across, LAM))
    by_cross = difference(slope(K, across + h * F, LAM), slope(K, across - h * F, LAM))
    assert found.by_lam == pytest.approx(by_lam, rel=1e-6)
    assert np.sum(found.rows(slice(0, N)).numpy() * E) == pytest.approx(by_rows, rel=1e-6)
    assert np.sum(found.cross(slice(0, 5)).numpy() * F) == pytest.approx(by_cross, rel=1e-6)
    part = slice(3, 6)
    assert_near(found.rows(part).numpy(), found.rows(slice(0, N)).numpy()[part], rtol=1e-12)
