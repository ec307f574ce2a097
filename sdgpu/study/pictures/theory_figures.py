"""Theory beside measurement: risks over noise, signs of alpha*, linear features, tangent kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sdgpu.study.pictures.palette import DARK, GRID, PALETTE, shades

if TYPE_CHECKING:
    from sdgpu.study.theory.tangent import TangentComparison

__all__ = ["plot_alpha_signs", "plot_linear_features", "plot_risk", "plot_tangent"]


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
    for j, (rule, colour) in enumerate(zip(noisy["rule"].values, PALETTE, strict=False)):
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
        axis.grid(color=GRID)
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
    for i, colour in zip(range(dataset.sizes["rate"]), shades(dataset.sizes["rate"]), strict=True):
        curve = dataset.isel(rate=i)
        label = f"{float(curve['rate']):.0%}"
        weight_axis.plot(lam, curve["expected_alpha"], color=colour, label=label)
        weight_axis.errorbar(
            lam, curve["alpha"], 2 * curve["alpha_se"], fmt="o", ms=3, color=colour
        )
        risk_axis.plot(lam, curve["expected_ridge"], "--", color=colour)
        risk_axis.plot(lam, curve["expected_distilled"], color=colour, label=label)
    for level, text in ((0.0, "all weight on the teacher"), (1.0, "ridge")):
        weight_axis.axhline(level, color=DARK, lw=0.8, ls=":")
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
        axis.grid(color=GRID)
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
    for rule, colour in zip(dataset["rule"].values, PALETTE, strict=False):
        curve = dataset.sel(rule=rule)
        risk_axis.plot(lam, curve["predicted"], color=colour, label=rule)
        risk_axis.errorbar(
            lam, curve["measured"], 2 * curve["measured_se"], fmt="o", ms=3, color=colour
        )
    weight_axis.plot(lam, dataset["predicted_alpha"], color=DARK)
    weight_axis.errorbar(lam, dataset["alpha"], 2 * dataset["alpha_se"], fmt="o", ms=3, color=DARK)
    for level in (0.0, 1.0):
        weight_axis.axhline(level, color=DARK, lw=0.8, ls=":")
    best = float(lam[dataset["predicted"].sel(rule="ridge").values.argmin()])
    weight_axis.axvline(best, color=PALETTE[4], lw=0.8, ls=":", label="best lam of ridge")
    risk_axis.set(xscale="log", yscale="log", xlabel="lam", ylabel="excess risk")
    weight_axis.set(xscale="log", xlabel="lam", ylabel="alpha* of step 2")
    for axis in (risk_axis, weight_axis):
        axis.grid(color=GRID)
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
    for a, colour in zip(range(len(found.alphas)), shades(len(found.alphas)), strict=True):
        label = f"alpha = {found.alphas[a]:g}"
        for axis, values in ((loss_axis, network[:, a]), (gap_axis, gaps[:, a])):
            axis.plot(steps, values.mean(axis=0), "o-", ms=3, color=colour, label=label)
            axis.fill_between(
                steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2
            )
        loss_axis.plot(steps, empirical[:, a].mean(axis=0), "--", color=colour)
        loss_axis.plot(steps, infinite[a], ":", color=colour)
    for style, name in (("-", "network"), ("--", "its own kernel"), (":", "infinite width")):
        loss_axis.plot([], [], style, color=DARK, label=name)
    loss_axis.set(ylabel="mean squared test error", title="loss")
    gap_axis.set(ylabel="||network - kernel|| / ||kernel||", title="distance of the predictions")
    gap_axis.set_ylim(bottom=0)
    for axis in (loss_axis, gap_axis):
        axis.set(xlabel="step", xticks=steps)
        axis.grid(color=GRID)
    loss_axis.legend(fontsize=8)
    return figure
