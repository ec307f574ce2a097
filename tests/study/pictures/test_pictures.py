"""Pictures with ax=: what they draw, into which axes, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import sdgpu
from sdgpu.engine.tuning import Tuned
from sdgpu.study import pictures
from sdgpu.study.pictures.palette import PALETTE

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
Y = np.sin(X[:, 0])
FIT = sdgpu.fit(X, Y, sdgpu.Gaussian(0.5), lams=[0.1, 1.0, 10.0])
SWEEP = FIT.sweep(X + 0.1, Y, alphas=[0.0, 0.5, 1.0], steps=4).dataset
FRAME = pd.DataFrame(
    {
        "rule": ["ridge", "fixed"] * 8,
        "noise": np.repeat([0.0, 0.5], 8),
        "n": np.tile(np.repeat([100, 1000], 2), 4),
        "method": np.repeat(["eigh", "cg"], 8),
        "seconds": RNG.uniform(0.1, 1, 16),
        "passes": np.tile([1, 40], 8),
        "test_mse": RNG.uniform(1, 2, 16),
    }
)
NETWORKS = xr.Dataset(
    {
        f"{part}_accuracy": (("rule", "seed", "step"), RNG.random((3, 2, 4)))
        for part in ("train", "validation", "test")
    }
    | {"alpha": (("rule", "seed", "step"), RNG.random((3, 2, 4)))},
    coords={
        "rule": ["0.0", "0.5", "algorithm1"],
        "weight": ("rule", [0.0, 0.5, np.nan]),
        "seed": [0, 1],
        "step": [1, 2, 3, 4],
    },
)

TUNED = Tuned(sdgpu.Gaussian(1.0, [0.5, 4.0]), 0.1, 0.2, FIT, SWEEP, "")


def axes():
    return Figure().subplots()


def drawn(ax):
    ax.figure.savefig(__import__("io").BytesIO(), format="svg")
    return ax


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: pictures.plot_losses(SWEEP["mse"], ax=ax),
        lambda ax: pictures.plot_losses(SWEEP["limit_mse"], ax=ax),
        lambda ax: pictures.plot_alpha_star(SWEEP["alpha_star"], ax=ax),
        lambda ax: pictures.plot_filters(FIT, 1.0, 0.3, 5, ax=ax),
        lambda ax: pictures.plot_relevance(TUNED, ax=ax),
        lambda ax: pictures.plot_relevance(TUNED, ["a", "b"], ax=ax),
        lambda ax: pictures.plot_learning_curves(FRAME, ax=ax),
        lambda ax: pictures.plot_rules(FRAME, ["noise", "n"], ax=ax),
        lambda ax: pictures.plot_cost(FRAME, ax=ax),
        lambda ax: pictures.plot_cost(FRAME, "passes", ax=ax),
        lambda ax: pictures.plot_coast(RNG.normal(size=(9, 18, 2)), ax=ax),
        lambda ax: pictures.plot_coast(np.ones((9, 18, 2)), ax=ax),  # no coast
        lambda ax: pictures.plot_coast(RNG.random((9, 18, 3)), ax=ax),
        lambda ax: pictures.plot_accuracies(NETWORKS, ax=ax),
        lambda ax: pictures.plot_accuracies(NETWORKS, "train", ax=ax),
    ],
)
def test_given_axes_are_drawn_into(draw):
    ax = axes()
    assert drawn(draw(ax)) is ax
    assert ax.get_xlabel()
    assert drawn(draw(None)) is not ax


def test_losses_have_their_best_point():
    ax = drawn(pictures.plot_losses(SWEEP["mse"]))
    best = SWEEP["mse"].min("step")
    where = best.argmin(["lam", "alpha"])
    (star,) = [line for line in ax.lines if line.get_marker() == "*"]
    assert star.get_xdata()[0] == float(best["lam"][where["lam"]])
    assert star.get_ydata()[0] == float(best["alpha"][where["alpha"]])
    assert ax.get_title().startswith(f"best {float(best.min()):.4g} at step")
    mesh = ax.collections[0].get_array().reshape(3, 3)
    excess = 100 * (best.T / best.min() - 1).clip(*(value / 100 for value in (1e-2, 1e2)))
    np.testing.assert_allclose(mesh, excess, rtol=1e-9)


def test_errors_are_those_of_differences():
    """Cells that differ by a constant have no error at all: the bound is the best point itself."""
    one = SWEEP["mse"]
    cells = xr.concat([one, one + 3.0, one + 5.0], "cell")
    counts = [
        len(pictures.plot_losses(losses).collections)
        for losses in (one, cells, xr.concat([one, one * 2], "cell"))
    ]
    assert counts[0] + 1 == counts[1] == counts[2]


def test_relative_regularisations():
    relative = SWEEP["mse"].rename(lam="lam_over_n")
    assert pictures.plot_losses(relative).get_xlabel() == "lam / n"


def test_alpha_star_has_a_line_for_every_later_step():
    ax = pictures.plot_alpha_star(SWEEP["alpha_star"])
    curves = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(curves) == 3
    np.testing.assert_allclose(curves[0].get_ydata(), SWEEP["alpha_star"].sel(step=2))


def test_filters_are_those_of_the_fit():
    ax = pictures.plot_filters(FIT, 1.0, 0.3, 5)
    B, values = FIT.diagonal(1.0, 0.3, 5), FIT.spectrum.eigenvalues
    seen = values > 1e-14 * values.max()
    for step in range(5):
        np.testing.assert_allclose(ax.lines[step].get_ydata(), B[step, seen])


def test_means_of_rules():
    ax = pictures.plot_learning_curves(FRAME, "noise")
    container = ax.containers[0]
    wanted = FRAME[FRAME["rule"] == "ridge"].groupby("noise")["test_mse"].mean()
    np.testing.assert_allclose(np.asarray(container[0].get_ydata(), dtype=float), wanted)
    ax = pictures.plot_rules(FRAME, ["method"])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["eigh", "cg"]
    wanted = FRAME[FRAME["rule"] == "fixed"].groupby("method", sort=False)["test_mse"].mean()
    np.testing.assert_allclose(np.asarray(ax.containers[1][0].get_xdata(), dtype=float), wanted)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: pictures.plot_losses(SWEEP["alpha_star"]), "alpha is wanted"),
        (lambda: pictures.plot_losses(SWEEP["lam"].rename(lam="x")), "lam, lam_over_n is wanted"),
        (lambda: pictures.plot_losses(SWEEP["mse"] * np.nan), "no loss is finite"),
        (lambda: pictures.plot_alpha_star(SWEEP["ridge_mse"]), "step is wanted"),
        (lambda: pictures.plot_learning_curves(FRAME, "rows"), "'rows' is no column: rule, noise"),
        (lambda: pictures.plot_learning_curves(FRAME, "method"), "'method' holds no numbers"),
        (lambda: pictures.plot_cost(FRAME, "rounds"), "'rounds' is no column"),
        (lambda: pictures.plot_coast(np.ones((9, 18))), r"values of shape \(9, 18\)"),
        (lambda: pictures.plot_accuracies(NETWORKS, "all"), "part='all'"),
        (lambda: pictures.plot_rules(FRAME, ["kernel"]), "by='kernel' is no column"),
    ],
)
def test_refusals(draw, words):
    with pytest.raises(ValueError, match=words):
        draw()


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_colours_can_be_told_apart_without_red_or_green():
    """By the matrix of Vienot, Brettel and Mollon (1999) for eyes without one kind of cone."""
    lms = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
    )
    for blind in (
        [[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]],
    ):
        seen = [
            np.linalg.inv(lms) @ np.array(blind) @ lms @ np.array(to_rgb(colour))
            for colour in PALETTE[:6]
        ]
        gaps = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
        assert min(gaps) > 0.1


def test_relevance_is_sorted_and_named():
    ax = pictures.plot_relevance(TUNED, ["near", "far"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["far", "near"]
    assert [bar.get_width() for bar in ax.patches] == [0.125, 1.0]
    with pytest.raises(ValueError, match="names has 1 entries, but the kernel has 2 features"):
        pictures.plot_relevance(TUNED, ["one"])
