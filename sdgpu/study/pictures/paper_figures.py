"""Figures 2 to 5 of the paper and its Appendix D.

Every ``.._figure`` returns a matplotlib Figure of several panels and touches no global state; save it
with ``figure.savefig(path)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdgpu.backend.checks import choice
from sdgpu.distill.diagnostics import ratios
from sdgpu.engine.constrained import constrained_path
from sdgpu.kernels import CubicGreen
from sdgpu.study.example import LAM, STEPS, Example
from sdgpu.study.pictures.loss_maps import own_axes
from sdgpu.study.pictures.palette import DARK, GRID, PALETTE, shades

__all__ = [
    "accuracy_figure",
    "constrained_figure",
    "diagonal_figure",
    "plot_accuracies",
    "ratio_figure",
    "steps_figure",
]


def steps_figure(example: Example) -> Figure:
    """Figure 2: six steps and the limit for alpha = 0, alpha = 0.25 and the optimal weights."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    star = example.fit.optimal_alphas(example.X_val, example.truth, steps=STEPS)
    cases: tuple[tuple[Any, str], ...] = (
        (0.0, "(a) alpha = 0"),
        (0.25, "(b) alpha = 0.25"),
        (star.alphas, "(c) alpha*"),
    )
    for axis, (alphas, title) in zip(axes, cases, strict=True):
        path = example.fit.path(alphas=alphas, steps=STEPS)
        x = example.X_val[:, 0]
        for step, (values, colour) in enumerate(
            zip(path.predict(example.X_val), shades(STEPS), strict=True), start=1
        ):
            axis.plot(x, values, color=colour, label=f"step {step}")
        if np.ndim(alphas) == 0:
            limit = example.fit.limit(alpha=float(alphas)).predict(example.X_val)
            axis.plot(x, limit, "--", color=PALETTE[4], label="limit")
        axis.plot(x, example.truth, ":", color=DARK, label="sin(2 pi x)")
        axis.plot(example.X[:, 0], example.y, "x", color="black", label="training data")
        axis.set(title=title, xlabel="x", ylim=(-1.5, 1.5))
    axes[0].set_ylabel("f(x)")
    axes[0].legend(fontsize=7, ncols=2)
    inset = axes[2].inset_axes((0.13, 0.08, 0.36, 0.23))  # below the curves: it hides no point
    inset.plot(range(2, STEPS + 1), star.alphas, "o-", ms=3, color=PALETTE[4])
    inset.set_title("alpha* of step", fontsize=7, pad=2)
    inset.tick_params(labelsize=6)
    inset.set_xticks(range(2, STEPS + 1))
    return figure


def diagonal_figure(example: Example) -> Figure:
    """Figure 3: the diagonal of B(tau) for each step, overlaid; lower ones are later steps."""
    figure, axes = _three("(a) alpha = 0", "(b) alpha = 0.25", "(c) alpha*")
    for axis, alphas in zip(axes, _weights(example), strict=True):
        B = example.fit.diagonal(alphas=alphas, steps=STEPS)[:, ::-1]
        index = np.arange(1, B.shape[1] + 1)
        # largest first, so that smaller bars stay visible whatever the order of the steps
        for step in np.argsort(-B.sum(axis=1)):
            axis.bar(index, B[step], color=shades(STEPS)[step], label=f"step {step + 1}")
        axis.set(xlabel="index, largest eigenvalue first", xticks=index)
    axes[0].set_ylabel("diagonal of B")
    axes[0].legend(fontsize=7)
    return figure


def ratio_figure(example: Example) -> Figure:
    """Figure 4: ratios R_k(tau) = B_{k+1} / B_k of the ordered diagonal, equation (14)."""
    figure, axes = _three("(a) alpha = 0", "(b) alpha = 0.25", "(c) alpha*")
    for axis, alphas in zip(axes, _weights(example), strict=True):
        R = ratios(example.fit.diagonal(alphas=alphas, steps=STEPS))
        index = np.arange(1, R.shape[1] + 1)
        for step, values in enumerate(R):
            axis.plot(
                index, values, "o-", ms=3, color=shades(STEPS)[step], label=f"step {step + 1}"
            )
        axis.set(xlabel="k, smallest eigenvalue first", xticks=index)
    axes[0].set_ylabel("R_k")
    axes[0].legend(fontsize=7)
    return figure


def constrained_figure(example: Example, *, eps: float = 0.045, steps: int = 8) -> Figure:
    """Appendix D on the example: with Mobahi's kernel one chain collapses and one does not.

    Left and middle the functions of every step, right the lam of each; a cross marks the last step
    before a collapse.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    x, points = example.X_val[:, 0], example.X[:, 0]
    for axis, alpha, colour in zip(axes, (0.0, 0.25), (PALETTE[1], PALETTE[3]), strict=False):
        path = constrained_path(
            example.X, example.y, CubicGreen(), eps=eps, alpha=alpha, steps=steps
        )
        curves = zip(path.predict(example.X_val), shades(steps), strict=True)
        for step, (values, shade) in enumerate(curves, start=1):
            axis.plot(x, values, color=shade, label=f"step {step}")
        axis.plot(points, example.y, "x", color="black")
        axis.set(title=f"alpha = {alpha:g}, {path.regime.name}", xlabel="x", ylim=(-1.5, 1.5))
        finite = np.isfinite(path.lams)
        index = np.arange(1, steps + 1)[finite]
        axes[2].plot(index, path.lams[finite], "o-", ms=4, color=colour, label=f"alpha = {alpha:g}")
        if not finite.all():
            axes[2].plot(index[-1:], path.lams[finite][-1:], "x", ms=14, color=colour)
    axes[0].set_ylabel("f(x)")
    axes[0].legend(fontsize=7, ncols=2)
    axes[2].margins(y=0.1)
    axes[2].set(title=f"lam that leaves a loss of eps = {eps:g}", xlabel="step", yscale="log")
    axes[2].legend()
    return figure


def accuracy_figure(dataset: xr.Dataset, *, title: str = "") -> Figure:
    """Figure 5: accuracy of every step and weight, from `run_experiment`.

    Training images left, validation images right, or test images without any; each as
    :func:`plot_accuracies`.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title)
    has_validation = bool(dataset["validation_accuracy"].notnull().any())
    parts = ("train", "validation" if has_validation else "test")
    left, right = figure.subplots(1, 2)
    plot_accuracies(dataset, parts[0], ax=left)
    plot_accuracies(dataset, parts[1], ax=right).legend().remove()  # one is enough
    return figure


def plot_accuracies(
    dataset: xr.Dataset, part: str = "validation", *, ax: Axes | None = None
) -> Axes:
    """One panel of Figure 5: accuracy of every step and weight on one part of the images.

    Lines are means over seeds, bands their range. The chain of Algorithm 1 is dashed with diamonds; but on
    training images the means of its alpha-hat stand above it.

    Parameters
    ----------
    dataset : Dataset
        From `run_experiment`.
    part : {"train", "validation", "test"}
    ax : matplotlib Axes, optional
        New ones by default.

    Raises
    ------
    ValueError
        For an unknown part.
    """
    choice("part", part, ("train", "validation", "test"))
    ax = own_axes(ax, (5.5, 4.6))
    steps, fixed = dataset["step"].values, dataset.sel(rule=dataset["rule"] != "algorithm1")
    dots: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1.4}
    cases: list[tuple[str, str, Any, dict[str, Any]]] = [
        (str(rule), f"alpha = {float(weight):g}", colour, dots)
        for rule, weight, colour in zip(
            fixed["rule"].values, fixed["weight"].values, shades(fixed.sizes["rule"]), strict=True
        )
    ]
    if "algorithm1" in dataset["rule"].values:
        dashed = {"marker": "D", "ms": 6, "lw": 2.2, "ls": "--", "mec": "white", "zorder": 4}
        cases.append(("algorithm1", "alpha-hat (Algorithm 1)", PALETTE[4], dashed))
    for rule, label, colour, style in cases:
        values = 100 * dataset[f"{part}_accuracy"].sel(rule=rule)
        low, high = values.min("seed"), values.max("seed")
        ax.fill_between(steps, low, high, fc=(colour, 0.08), ec=(colour, 0.35), lw=0.6)
        ax.plot(steps, values.mean("seed"), color=colour, label=label, **style)
    name = {"train": "training"}.get(part, part)
    ax.set(xlabel="step", xticks=steps, ylabel=f"{name} accuracy, %")
    ax.grid(color=GRID)
    ax.set_axisbelow(True)
    if part != "train" and "algorithm1" in dataset["rule"].values:
        _write_estimates(ax, dataset.sel(rule="algorithm1"), part)
    ax.legend(fontsize=8, loc="lower left", ncols=1 if len(cases) < 8 else 2)
    return ax


def _write_estimates(axis: Axes, chain: xr.Dataset, part: str) -> None:
    """The mean alpha-hat at each of its points."""
    height = 100 * chain[f"{part}_accuracy"].mean("seed")
    for step in chain["step"].values[1:]:
        mean = float(chain["alpha"].sel(step=step).mean())
        axis.annotate(
            f"{mean:.2f}",
            (step, float(height.sel(step=step))),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=PALETTE[4],
            zorder=5,
            bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1},
        )
    axis.annotate(
        "numbers: mean alpha-hat",
        (0.02, 0.03),
        xycoords="axes fraction",
        fontsize=8,
        color=PALETTE[4],
    )


def _weights(example: Example) -> tuple[Any, ...]:
    star = example.fit.optimal_alphas(example.X_val, example.truth, lam=LAM, steps=STEPS)
    return 0.0, 0.25, star.alphas


def _three(*titles: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.grid(color=GRID)
        axis.set_axisbelow(True)
    return figure, axes
