"""Pictures: Figures 2 to 5, Appendix D, losses and risks. The one matplotlib file.

Every function returns a matplotlib Figure and touches no global state; save it with
``figure.savefig(path)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sdgpu.distill.diagnostics import ratios
from sdgpu.engine.constrained import constrained_path
from sdgpu.kernels import CubicGreen
from sdgpu.selection.sweep import Sweep
from sdgpu.study.example import LAM, STEPS, Example
from sdgpu.study.theory.tangent import TangentComparison

__all__ = [
    "accuracy_figure",
    "constrained_figure",
    "diagonal_figure",
    "globe_figure",
    "loss_heatmap",
    "plot_alpha_signs",
    "plot_linear_features",
    "plot_risk",
    "plot_tangent",
    "ratio_figure",
    "steps_figure",
]

_TEACHER, _GRID = "0.15", "0.9"
_RULES = ("0.15", "tab:blue", "tab:green", "tab:orange", "tab:red")

#: Range of the heat map, per cent above the best loss.
EXCESS = (1e-2, 1e2)


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
            zip(path.predict(example.X_val), _colours(STEPS), strict=True), start=1
        ):
            axis.plot(x, values, color=colour, label=f"step {step}")
        if np.ndim(alphas) == 0:
            limit = example.fit.limit(alpha=float(alphas)).predict(example.X_val)
            axis.plot(x, limit, "--", color="tab:red", label="limit")
        axis.plot(x, example.truth, ":", color=_TEACHER, label="sin(2 pi x)")
        axis.plot(example.X[:, 0], example.y, "x", color="black", label="training data")
        axis.set(title=title, xlabel="x", ylim=(-1.5, 1.5))
    axes[0].set_ylabel("f(x)")
    axes[0].legend(fontsize=7, ncols=2)
    inset = axes[2].inset_axes((0.55, 0.62, 0.42, 0.33))
    inset.plot(range(2, STEPS + 1), star.alphas, "o-", ms=3, color="tab:red")
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
            axis.bar(index, B[step], color=_colours(STEPS)[step], label=f"step {step + 1}")
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
                index, values, "o-", ms=3, color=_colours(STEPS)[step], label=f"step {step + 1}"
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
    for axis, alpha, colour in zip(axes, (0.0, 0.25), ("tab:blue", "tab:orange"), strict=False):
        path = constrained_path(
            example.X, example.y, CubicGreen(), eps=eps, alpha=alpha, steps=steps
        )
        curves = zip(path.predict(example.X_val), _colours(steps), strict=True)
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


def loss_heatmap(sweep: Sweep, *, title: str = "") -> Figure:
    """Validation loss over (lam, alpha), the best step at each point, with two marks.

    The colour is the loss above the best one, in per cent on a logarithmic scale. The star is the best
    point of the sweep, the cross the best ordinary ridge fit.
    """
    data = sweep.dataset
    best, ridge = sweep.best(), sweep.best("ridge")
    losses = data["mse"].fillna(np.inf)
    least = max(best.mse, np.finfo(float).tiny)  # a loss of 0 has no per cent
    excess = (100 * (losses.min("step") / least - 1)).clip(*EXCESS)
    # equal up to rounding, as all steps are at alpha = 1: the first of them
    first = (losses <= losses.min("step") * (1 + 1e-12)).argmax("step")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    loss_axis, step_axis = figure.subplots(1, 2, sharey=True)
    panels = (
        (
            loss_axis,
            excess,
            "validation loss above the best, %",
            {"norm": LogNorm(*EXCESS), "cmap": "viridis"},
        ),
        (step_axis, first + 1, "best step", {"vmin": 1, "cmap": "cividis"}),
    )
    for axis, values, label, colours in panels:
        image = axis.pcolormesh(data["lam"], data["alpha"], values.T, shading="nearest", **colours)
        figure.colorbar(
            image, ax=axis, label=label, extend="both" if axis is loss_axis else "neither"
        )
        axis.set(xscale="log", xlabel="lam")
        axis.axvline(ridge.lam, color="white", lw=0.7, ls=":")
        mark = {"mec": "black", "clip_on": False, "ls": "none", "zorder": 5}
        label = f"ridge only: {ridge.mse:.5g}"
        axis.plot(ridge.lam, 1.0, "X", color="white", ms=9, label=label, **mark)
        if best.step > 1:
            label = f"best: {best.mse:.5g} at step {best.step}"
            axis.plot(best.lam, best.alpha, "*", color="red", ms=15, label=label, **mark)
    loss_axis.set_ylabel("alpha")
    loss_axis.legend(loc="lower left", fontsize=8)
    return figure


def plot_risk(curves: xr.Dataset) -> Figure:
    """Risk of every rule over the level of noise, from :func:`sdgpu.study.theory.risk.risk_curves`.

    Four panels: the risk; how much less it is than that of ridge; the same for the oracles of each draw;
    squared bias and variance in per cent of the risk of ridge. Lines are expectations, points with bars of
    two standard errors means over draws. Levels without noise are left out.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    (risk_axis, gain_axis), (oracle_axis, split_axis) = axes
    noisy = curves.sel(noise=curves["noise"] > 0)
    noise, ridge = noisy["noise"], noisy.sel(rule="ridge")
    for j, (rule, colour) in enumerate(zip(noisy["rule"].values, _RULES, strict=True)):
        abscissae = noise * 1.04 ** (j - 2)  # so that bars do not hide each other
        curve, bars = noisy.sel(rule=rule), {"fmt": "o", "ms": 3, "color": colour}
        risk_axis.plot(noise, curve["expected"], color=colour, label=rule)
        risk_axis.errorbar(abscissae, curve["measured"], 2 * curve["measured_se"], **bars)
        for part, style in (("bias", "--"), ("variance", "-")):
            split_axis.plot(noise, 100 * curve[part] / ridge["expected"], style, color=colour)
            measured = curve[f"measured_{part}"]
            split_axis.plot(abscissae, 100 * measured / ridge["measured"], "o", ms=3, color=colour)
        if rule != "ridge":
            gain_axis.plot(noise, 100 * (1 - curve["expected"] / ridge["expected"]), color=colour)
            percent = 100 / ridge["measured"]
            gain_axis.errorbar(
                abscissae, percent * curve["gain"], 2 * percent * curve["gain_se"], **bars
            )
            oracle = 100 * (1 - curve["oracle"] / ridge["oracle"])
            oracle_axis.plot(noise, oracle, "o:", ms=3, color=colour)
    risk_axis.set(yscale="log", title="risk", ylabel="mean squared error to the truth")
    gain_axis.set(title="gain over ridge", ylabel="less risk, %")
    oracle_axis.set(title="gain of oracles over that of ridge", ylabel="less risk, %")
    split_axis.set(title="squared bias (dashed) and variance", ylabel="% of the risk of ridge")
    for axis in axes.flat:
        axis.set(xscale="log", xlabel="standard deviation of the noise")
        axis.grid(color=_GRID)
    risk_axis.legend(fontsize=8)
    return figure


def plot_alpha_signs(dataset: xr.Dataset) -> Figure:
    """alpha* over lam and the rate of corrupted labels, from ``label_noise_weights``.

    The first panel has alpha* (lines expected, points over draws), its scale linear in [-2, 2] and
    logarithmic beyond: below 0 the teacher has more than all of the weight, above 1 it counts against. The
    second has the risk of ridge, dashed, and of step 2 with alpha*.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    weight_axis, risk_axis = figure.subplots(1, 2)
    lam = dataset["lam"]
    for i, colour in zip(
        range(dataset.sizes["rate"]), _colours(dataset.sizes["rate"]), strict=True
    ):
        curve = dataset.isel(rate=i)
        label = f"{float(curve['rate']):.0%}"
        weight_axis.plot(lam, curve["expected_alpha"], color=colour, label=label)
        weight_axis.errorbar(
            lam, curve["alpha"], 2 * curve["alpha_se"], fmt="o", ms=3, color=colour
        )
        risk_axis.plot(lam, curve["expected_ridge"], "--", color=colour)
        risk_axis.plot(lam, curve["expected_distilled"], color=colour, label=label)
    for level, text in ((0.0, "all weight on the teacher"), (1.0, "ridge")):
        weight_axis.axhline(level, color=_TEACHER, lw=0.8, ls=":")
        weight_axis.annotate(
            text,
            (0.99, level),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
        )
    weight_axis.set_yscale("symlog", linthresh=2, linscale=2)
    weight_axis.set(xscale="log", xlabel="lam", ylabel="alpha* of step 2", title="optimal weight")
    risk_axis.set(
        xscale="log",
        yscale="log",
        xlabel="lam",
        ylabel="mean squared error to clean labels",
        title="ridge (dashed) and step 2 with alpha*",
    )
    for axis in (weight_axis, risk_axis):
        axis.grid(color=_GRID)
    weight_axis.legend(fontsize=8, title="corrupted", loc="lower right")
    return figure


def plot_linear_features(dataset: xr.Dataset, *, title: str = "") -> Figure:
    """Asymptotic prediction (lines) beside fits to samples (points, two standard errors), over lam.

    From :func:`sdgpu.study.theory.regimes.linear_features`: risk of the rules, and alpha* of step 2.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    risk_axis, weight_axis = figure.subplots(1, 2)
    lam = dataset["lam"]
    for rule, colour in zip(dataset["rule"].values, _RULES, strict=False):
        curve = dataset.sel(rule=rule)
        risk_axis.plot(lam, curve["predicted"], color=colour, label=rule)
        risk_axis.errorbar(
            lam, curve["measured"], 2 * curve["measured_se"], fmt="o", ms=3, color=colour
        )
    weight_axis.plot(lam, dataset["predicted_alpha"], color=_TEACHER)
    weight_axis.errorbar(
        lam, dataset["alpha"], 2 * dataset["alpha_se"], fmt="o", ms=3, color=_TEACHER
    )
    for level in (0.0, 1.0):
        weight_axis.axhline(level, color=_TEACHER, lw=0.8, ls=":")
    best = float(lam[dataset["predicted"].sel(rule="ridge").values.argmin()])
    weight_axis.axvline(best, color="tab:red", lw=0.8, ls=":", label="best lam of ridge")
    risk_axis.set(xscale="log", yscale="log", xlabel="lam", ylabel="excess risk")
    weight_axis.set(xscale="log", xlabel="lam", ylabel="alpha* of step 2")
    for axis in (risk_axis, weight_axis):
        axis.grid(color=_GRID)
        axis.legend(fontsize=8)
    return figure


def plot_tangent(found: TangentComparison) -> Figure:
    """Wide networks beside their tangent kernels, from :func:`sdgpu.study.theory.tangent.compare_tangent`.

    First the test error of every step and weight: networks solid with the band of all seeds, their own
    kernels dashed, the kernel of infinite width dotted. Then how far predictions are from the kernels'.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"{found.depth} hidden layer(s) of {found.width} units, lam = {found.lam:g}")
    loss_axis, gap_axis = figure.subplots(1, 2)
    steps = np.arange(1, found.steps + 1)
    network, empirical = found.test_mse("network"), found.test_mse("empirical")
    infinite, gaps = found.test_mse("infinite"), found.difference("empirical")
    for a, colour in zip(range(len(found.alphas)), _colours(len(found.alphas)), strict=True):
        label = f"alpha = {found.alphas[a]:g}"
        for axis, values in ((loss_axis, network[:, a]), (gap_axis, gaps[:, a])):
            axis.plot(steps, values.mean(axis=0), "o-", ms=3, color=colour, label=label)
            axis.fill_between(
                steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2
            )
        loss_axis.plot(steps, empirical[:, a].mean(axis=0), "--", color=colour)
        loss_axis.plot(steps, infinite[a], ":", color=colour)
    for style, name in (("-", "network"), ("--", "its own kernel"), (":", "infinite width")):
        loss_axis.plot([], [], style, color=_TEACHER, label=name)
    loss_axis.set(ylabel="mean squared test error", title="loss")
    gap_axis.set(ylabel="||network - kernel|| / ||kernel||", title="distance of the predictions")
    gap_axis.set_ylim(bottom=0)
    for axis in (loss_axis, gap_axis):
        axis.set(xlabel="step", xticks=steps)
        axis.grid(color=_GRID)
    loss_axis.legend(fontsize=8)
    return figure


def accuracy_figure(dataset: xr.Dataset, *, title: str = "") -> Figure:
    """Figure 5: accuracy of every step and weight, from `run_experiment`.

    Training images left, validation images right, or test images without any; lines are means over
    seeds, bands their range. The chain of Algorithm 1 is dashed with diamonds, and above it stand the
    means of its alpha-hat.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 2)
    steps, fixed = dataset["step"].values, dataset.sel(rule=dataset["rule"] != "algorithm1")
    cases = [
        (str(rule), f"alpha = {float(weight):g}", colour, {"marker": "o", "ms": 4, "lw": 1.4})
        for rule, weight, colour in zip(
            fixed["rule"].values, fixed["weight"].values, _colours(fixed.sizes["rule"]), strict=True
        )
    ]
    if "algorithm1" in dataset["rule"].values:
        style = {"marker": "D", "ms": 6, "lw": 2.2, "ls": "--", "mec": "white", "zorder": 4}
        cases.append(("algorithm1", "alpha-hat (Algorithm 1)", "tab:red", style))
    has_validation = bool(dataset["validation_accuracy"].notnull().any())
    for axis, part in zip(axes, ("train", "validation" if has_validation else "test"), strict=True):
        for rule, label, colour, style in cases:
            values = 100 * dataset[f"{part}_accuracy"].sel(rule=rule)
            low, high = values.min("seed"), values.max("seed")
            axis.fill_between(steps, low, high, fc=(colour, 0.08), ec=(colour, 0.35), lw=0.6)
            axis.plot(steps, values.mean("seed"), color=colour, label=label, **style)
        name = {"train": "training"}.get(part, part)
        axis.set(xlabel="step", xticks=steps, ylabel=f"{name} accuracy, %")
        axis.grid(color=_GRID)
        axis.set_axisbelow(True)
    if "algorithm1" in dataset["rule"].values:
        _write_estimates(axes[1], dataset.sel(rule="algorithm1"))
    axes[0].legend(fontsize=8, loc="lower left", ncols=1 if len(cases) < 8 else 2)
    return figure


def globe_figure(maps: Mapping[str, np.ndarray]) -> Figure:
    """Maps of the Earth below one another, north up, the date line at both ends.

    Parameters
    ----------
    maps : mapping of str to array (height, width, 2 or 3)
        Scores of sea and land, of which the larger one counts, the line between them in black; or colours
        in [0, 1].
    """
    figure = Figure(figsize=(9, 4.7 * len(maps)), layout="constrained")
    axes = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        extent = (-180, 180, -90, 90)
        if values.shape[2] == 2:
            land = values[..., 1] - values[..., 0]
            axis.imshow(np.clip(land, -1, 1), extent=extent, cmap="BrBG_r", vmin=-1.4, vmax=1.4)
            axis.contour(land[::-1], [0.0], extent=extent, colors="black", linewidths=0.5)
        else:
            axis.imshow(np.clip(values, 0, 1), extent=extent)
        axis.set(title=title, xlabel="degrees east", ylabel="degrees north")
        axis.set(xticks=range(-180, 181, 60), yticks=range(-90, 91, 30))
    return figure


def _write_estimates(axis: Any, chain: xr.Dataset) -> None:
    """The mean alpha-hat at each of its points."""
    height = 100 * chain["validation_accuracy"].mean("seed")
    for step in chain["step"].values[1:]:
        mean = float(chain["alpha"].sel(step=step).mean())
        axis.annotate(
            f"{mean:.2f}",
            (step, float(height.sel(step=step))),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color="tab:red",
            zorder=5,
            bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1},
        )
    axis.annotate(
        "numbers: mean alpha-hat",
        (0.02, 0.03),
        xycoords="axes fraction",
        fontsize=8,
        color="tab:red",
    )


def _weights(example: Example) -> tuple[Any, ...]:
    star = example.fit.optimal_alphas(example.X_val, example.truth, lam=LAM, steps=STEPS)
    return 0.0, 0.25, star.alphas


def _three(*titles: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.grid(color=_GRID)
        axis.set_axisbelow(True)
    return figure, axes


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](value) for value in np.linspace(0.0, 0.92, count)]
