"""Losses of rules over an axis of a study, and errors against time and passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sdgpu.study.pictures.loss_maps import own_axes
from sdgpu.study.pictures.palette import GRID, PALETTE

__all__ = ["plot_cost", "plot_learning_curves", "plot_rules"]

MARKERS = "osD^vP*X"


def plot_learning_curves(
    frame: pd.DataFrame, x: str = "n", *, y: str = "test_mse", ax: Axes | None = None
) -> Axes:
    """Mean test loss of every rule over rows, noise or features of a study; bars are standard errors.

    Parameters
    ----------
    frame : DataFrame
        As :attr:`StudyResults.frame`: a row for each cell and rule.
    x : str, default "n"
        A column of numbers.
    y : str, default "test_mse"
    ax : matplotlib Axes, optional

    Raises
    ------
    ValueError
        For columns that are not there or hold no numbers.
    """
    _require(frame, "rule", x, y)
    ax = own_axes(ax)
    rules = list(dict.fromkeys(frame["rule"]))
    for number, rule in enumerate(rules):
        groups = frame[frame["rule"] == rule].groupby(x)[y]
        mean, error = groups.mean(), groups.sem().fillna(0.0)
        # so that bars do not hide each other
        shift = 1 + 0.012 * (number - (len(rules) - 1) / 2)
        abscissae = mean.index.to_numpy(dtype=float)
        ax.errorbar(
            abscissae * shift,
            mean,
            error,
            color=PALETTE[number % len(PALETTE)],
            marker=MARKERS[number % len(MARKERS)],
            ms=4,
            lw=1.3,
            capsize=2,
            label=rule,
        )
    positive = bool((frame[x].dropna() > 0).all())
    spread = frame[x].max() > 8 * max(float(frame[x].min()), 1e-300)
    ax.set(xlabel=x, ylabel=y.replace("_", " "), xscale="log" if positive and spread else "linear")
    ax.grid(color=GRID)
    ax.legend(fontsize=8)
    return ax


def plot_rules(
    frame: pd.DataFrame, by: Sequence[str], *, y: str = "test_mse", ax: Axes | None = None
) -> Axes:
    """Mean test loss of every rule, a line of points for each value of some axes; bars are standard errors.

    Parameters
    ----------
    frame : DataFrame
    by : sequence of str
        Columns that make a line.
    y : str, default "test_mse"
    ax : matplotlib Axes, optional

    Raises
    ------
    ValueError
        For columns that are not there.
    """
    _require(frame, "rule", y)
    for name in by:
        if name not in frame:
            raise ValueError(f"by={name!r} is no column: {', '.join(map(str, frame.columns))}")
    labels = (
        frame[list(by)].map(_text).agg(", ".join, axis=1) if by else pd.Series("all", frame.index)
    )
    lines = list(dict.fromkeys(labels))
    ax = own_axes(ax, (7.0, 1.2 + 0.32 * len(lines)))
    rules = list(dict.fromkeys(frame["rule"]))
    for number, rule in enumerate(rules):
        part = frame["rule"] == rule
        groups = frame[part].groupby(labels[part], sort=False)[y]
        mean, error = groups.mean().reindex(lines), groups.sem().fillna(0.0).reindex(lines)
        heights = np.arange(len(lines)) + 0.6 * ((number + 0.5) / len(rules) - 0.5)
        ax.errorbar(
            mean,
            heights,
            xerr=error,
            fmt=MARKERS[number % len(MARKERS)],
            color=PALETTE[number % len(PALETTE)],
            ms=4,
            lw=1,
            label=rule,
        )
    ax.set_yticks(range(len(lines)), lines, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel=y.replace("_", " "))
    ax.grid(color=GRID, axis="x")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def plot_cost(
    frame: pd.DataFrame,
    x: str = "seconds",
    *,
    y: str = "test_mse",
    by: str = "method",
    ax: Axes | None = None,
) -> Axes:
    """Error against time, or against passes over K: a point for each row, a colour for each method.

    Parameters
    ----------
    frame : DataFrame
    x : str, default "seconds"
        Or "passes".
    y : str, default "test_mse"
        A loss, or "error_estimate".
    by : str, default "method"
    ax : matplotlib Axes, optional

    Raises
    ------
    ValueError
        For columns that are not there or hold no numbers.
    """
    _require(frame, by, x, y)
    ax = own_axes(ax)
    for number, (label, part) in enumerate(frame.groupby(by, sort=False)):
        ax.plot(
            part[x],
            part[y],
            MARKERS[number % len(MARKERS)],
            color=PALETTE[number % len(PALETTE)],
            ms=4,
            alpha=0.7,
            label=str(label),
        )
    positive = frame[y].dropna()
    wide = len(positive) and positive.min() > 0 and positive.max() > 20 * positive.min()
    across = "log" if frame[x].min() > 0 else "symlog"  # a triangle in feature space makes no pass
    ax.set(xscale=across, yscale="log" if wide else "linear", xlabel=x, ylabel=y.replace("_", " "))
    ax.grid(color=GRID)
    ax.legend(fontsize=8)
    return ax


def _require(frame: pd.DataFrame, label: str, *numbers: str) -> None:
    for name in (label, *numbers):
        if name not in frame:
            raise ValueError(f"{name!r} is no column: {', '.join(map(str, frame.columns))}")
    for name in numbers:
        if frame[name].dtype.kind not in "iuf" or not frame[name].notna().any():
            raise ValueError(f"{name!r} holds no numbers")


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
