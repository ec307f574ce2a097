"""Limits of a whole grid from a few evaluations, against one evaluation for each point."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.distill.limit_interpolation import DEGREE, limit_nodes
from sdgpu.distill.smoothers import Cutoff, GradientFlow, IteratedTikhonov, Landweber

DELTA = np.array([0.0, 1e-4, 0.02, 0.4, 1.3, 3.0])
Z = np.array([0.1, 1.0, -0.5, 2.0, 0.7, 1.5])


def loss(lam, alpha):
    """Squared norm of the residual of ridge with lam / alpha, mu z / (delta + mu)."""
    lam, alpha = np.asarray(lam)[..., None], np.asarray(alpha)[..., None]
    return np.sum((lam / (alpha * DELTA + lam) * Z) ** 2, axis=-1)


def exists(lam, alpha):
    return abs(1 - alpha) * DELTA[-1] / (DELTA[-1] + lam) < 1


def check(lams, alphas):
    nodes = limit_nodes(DELTA, lams, alphas)
    found = nodes.spread(loss(nodes.lams, nodes.alphas), 77.0)
    assert found.shape == (len(lams), len(alphas))
    for i, lam in enumerate(lams):
        for j, alpha in enumerate(alphas):
            if not exists(lam, alpha):
                assert np.isnan(found[i, j])
            elif alpha == 0:
                assert found[i, j] == 77.0
            else:
                assert_allclose(found[i, j], loss(lam, alpha), rtol=1e-13)
    return nodes


def test_a_large_grid_takes_one_polynomial_for_each_piece():
    lams, alphas = np.geomspace(1e-3, 1e2, 40), np.linspace(-1, 3, 60)  # 0 is not among them
    nodes = check(lams, np.append(alphas, [0.0, 1.0, 2.0]))
    pieces = len(nodes.edges) - 1
    positive = nodes.mu[~np.isnan(nodes.mu)]
    # each piece spans a factor of e^4 at most, and no more pieces than that takes
    assert pieces == np.ceil(np.log(positive.max() / positive.min()) / 4)
    assert np.count_nonzero(nodes.direct < 0) > positive.size
    # negative weights where the limit exists stand for themselves
    alone = len(nodes.lams) - pieces * (DEGREE + 1)
    assert alone == sum(exists(lam, a) for lam in lams for a in alphas if a < 0) > 0
    assert (nodes.alphas[-alone:] < 0).all()
    assert (nodes.alphas[:-alone] == 1).all()


def test_a_small_grid_is_evaluated_point_by_point():
    lams, alphas = np.array([0.1, 1.0, 30.0]), np.array([-0.2, 0.0, 0.3, 1.0, 2.0, 2.4])
    nodes = check(lams, alphas)
    assert np.isnan(nodes.mu).all()
    assert len(nodes.edges) == 1  # no piece
    assert nodes.direct.min() == -1
    assert len(nodes.lams) == sum(exists(lam, a) for lam in lams for a in alphas if a != 0)


@pytest.mark.parametrize("extra", [0, 1])
def test_interpolation_begins_where_it_saves_an_evaluation(extra):
    lams = np.geomspace(0.1, 1.0, DEGREE + 1 + extra)  # one piece
    nodes = check(lams, np.ones(1))
    assert len(nodes.lams) == DEGREE + 1
    assert (nodes.direct >= 0).all() == (extra == 0)


def test_one_point_many_times():
    check(np.full(80, 0.3), np.ones(1))


def test_weights_so_small_that_lam_over_them_overflows():
    check(np.array([0.5, 1e3]), np.append(1e-310, np.linspace(0.1, 1.9, 60)))


def test_as_many_nodes_as_double_precision_takes():
    height = 2 * np.pi / 4  # of the poles over half of a piece
    rho = height + np.sqrt(1 + height**2)
    assert np.exp(-38) / rho**5 < rho**-DEGREE < np.exp(-38)


def test_below_zero_the_nearest_node_counts():
    """Losses are not negative, but a polynomial through some that are small swings around it."""
    lams = np.geomspace(0.1, 5.0, 200)  # one piece
    nodes = limit_nodes(DELTA, lams, np.ones(1))
    sums = 0.01 * np.arange(1.0, DEGREE + 2)
    sums[10] = 1e3
    found = nodes.spread(sums, 0.0)[:, 0]
    at, where = np.log(nodes.lams), np.log(lams)
    others = (where[:, None] - at) / (at[-1] - at[0])
    scaled = (at[:, None] - at) / (at[-1] - at[0]) + np.eye(len(at))
    polynomial = sum(
        value * np.prod(np.delete(others, i, axis=1), axis=1) / np.prod(scaled[i])
        for i, value in enumerate(sums)
    )
    nearest = sums[np.abs(where[:, None] - at).argmin(axis=1)]
    sure = np.abs(polynomial) > 1e-6
    assert (polynomial[sure] < 0).sum() > 20
    wanted = np.where(polynomial > 0, polynomial, nearest)
    assert_allclose(found[sure], wanted[sure], rtol=1e-7, atol=1e-8)


def limit_loss(smoother, lam, alpha):
    """Squared norm of the residual of the limit (1 - g) / (alpha g + 1 - g) z of some smoother."""
    g, rest = smoother.shrinkage(DELTA, lam), smoother.complement(DELTA, lam)
    alpha = np.asarray(alpha)[..., None]
    divisor = alpha * g + rest
    left = np.where(divisor == 0, 0.0, rest / np.where(divisor == 0, 1.0, divisor))
    return np.sum((left * Z) ** 2, axis=-1)


@pytest.mark.parametrize("smoother", [GradientFlow(), IteratedTikhonov(3), Landweber(), Cutoff()])
@pytest.mark.parametrize("alphas", [np.linspace(0, 1, 101), np.geomspace(1e-9, 1.99, 400)])
def test_limits_of_other_smoothers_are_interpolated_over_the_weight(smoother, alphas):
    lams = np.geomspace(1e-3, 1e2, 7)
    alphas = np.append(alphas, [-0.1, 2.5])
    nodes = limit_nodes(DELTA, lams, alphas, smoother)
    assert len(nodes.lams) < 0.5 * len(lams) * len(alphas)
    found = nodes.spread(limit_loss(smoother, nodes.lams, nodes.alphas), 77.0)
    rate = abs(1 - alphas) * smoother.shrinkage(DELTA[-1:], lams)
    exists = ((alphas >= 0) & (alphas < 2)) | (rate < 1)
    assert np.array_equal(np.isnan(found), ~exists)
    wanted = limit_loss(smoother, *np.meshgrid(lams, alphas, indexing="ij"))
    assert_allclose(found[exists], wanted[exists], rtol=1e-12)


def test_few_weights_of_other_smoothers_stand_for_themselves():
    lams, alphas = np.geomspace(1e-3, 1e2, 7), np.linspace(0.01, 1, 30)
    nodes = limit_nodes(DELTA, lams, alphas, GradientFlow())
    assert len(nodes.lams) == 7 * 30
    found = nodes.spread(np.arange(210.0), 0.0)
    assert np.array_equal(found, np.arange(210.0).reshape(7, 30))
