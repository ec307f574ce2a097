"""The paper's example to the digits that its authors' notebook prints, and its figures."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.selection.sweep import Sweep
from sdgpu.study import pictures
from sdgpu.study.example import PAPER_LOSSES, example_losses, paper_example
from tests.problems import assert_near

EIGENVALUES = [
    1.94073,
    1.82282,
    1.64185,
    1.41798,
    1.17409,
    0.93209,
    0.71010,
    0.52087,
    0.37171,
    0.26547,
    0.20229,
]
SHRINKAGE = [
    0.90657,
    0.90113,
    0.89141,
    0.87639,
    0.85445,
    0.82334,
    0.78024,
    0.72256,
    0.65017,
    0.57032,
    0.50285,
]


@pytest.fixture(scope="module")
def example():
    return paper_example()


@pytest.mark.parametrize("alpha", PAPER_LOSSES)
def test_losses(example, alpha):
    assert_allclose(example_losses(example, alpha), PAPER_LOSSES[alpha], atol=5.1e-6)


def test_spectrum_and_filters(example):
    assert_allclose(example.fit.spectrum.eigenvalues[::-1], EIGENVALUES, atol=5.1e-6)
    assert_allclose(example.fit.diagonal(steps=1)[0, ::-1], SHRINKAGE, atol=5.1e-6)
    for alpha, ends in ((0.0, (0.01617, 0.55516)), (0.25, (0.20413, 0.73695))):
        assert_allclose(example.fit.diagonal(alphas=alpha, steps=6)[5, [0, -1]], ends, atol=5.1e-6)


def test_alpha_star_settles_as_the_paper_says(example):
    """Figure 2(c): -0.62, then about a third; with clipping it settles one step later (footnote 12)."""
    free = example.fit.optimal_alphas(example.X_val, example.truth, steps=6).alphas
    clipped = example.fit.optimal_alphas(example.X_val, example.truth, steps=6, clip=True).alphas
    assert_allclose(free, [-0.62184, 0.33036, 0.33476, 0.33577, 0.33604], atol=5.1e-6)
    assert_allclose(clipped, [0.0, 0.13508, 0.33410, 0.33561, 0.33599], atol=5.1e-6)


def test_the_printed_gamma_is_a_misprint(example):
    """gamma = 1/80 gives a first loss of 0.455, not the paper's."""
    import sdgpu

    fitted = sdgpu.fit(example.X, example.y, sdgpu.Gaussian(1 / 80), lams=0.2)
    loss = np.mean((fitted.path(steps=1).predict(example.X_val)[0] - example.truth) ** 2)
    assert_allclose(loss, 0.455, atol=1e-3)


@pytest.mark.parametrize(
    "draw",
    [
        pictures.steps_figure,
        pictures.diagonal_figure,
        pictures.ratio_figure,
        pictures.constrained_figure,
    ],
)
def test_figures_have_three_panels_with_data(example, draw, tmp_path):
    figure = draw(example)
    figure.savefig(tmp_path / "figure.png")
    assert len(figure.axes) == 3
    assert all(axis.has_data() for axis in figure.axes)


@pytest.mark.parametrize(
    "grid", [{"lams": [0.2], "alphas": [0.5]}, {"lams": [0.2, 1, 5], "alphas": [1.0, 0.0, -0.5]}]
)
def test_heat_map_of_any_grid(example, tmp_path, grid):
    sweep = example.fit.sweep(example.X_val, example.truth, steps=4, **grid)
    figure = pictures.loss_heatmap(sweep, title="example")
    figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_legend() is not None


def test_heat_map_of_one_step(example, tmp_path):
    sweep: Sweep = example.fit.sweep(example.X_val, example.truth, steps=1)
    pictures.loss_heatmap(sweep).savefig(tmp_path / "figure.png")


def test_ten_thousand_noise_draws(example):
    """A weight for each of 10,000 noisy data sets at once."""
    import sdgpu

    noise = 0.5 * np.random.default_rng(0).standard_normal((11, 10_000))
    Y = np.sin(2 * np.pi * example.X) + noise
    fitted = sdgpu.fit(example.X, Y, sdgpu.Gaussian(80.0), lams=0.2)
    truth = np.repeat(example.truth[:, None], 10_000, axis=1)
    chosen = fitted.optimal_alphas(example.X_val, truth, steps=6, per_output=True)
    assert chosen.alphas.shape == (5, 10_000)
    single = sdgpu.fit(example.X, Y[:, 77], sdgpu.Gaussian(80.0), lams=0.2)
    alone = single.optimal_alphas(example.X_val, example.truth, steps=6)
    assert_near(chosen.alphas[:, 77], alone.alphas, rtol=1e-8)
