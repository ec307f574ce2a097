"""Losses over (lam, alpha), and alpha* over lam and step."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sdgpu.selection.sweep import Sweep
from sdgpu.study.pictures.palette import DARK, GRID, shades

__all__ = ["loss_heatmap", "plot_alpha_star", "plot_losses"]

#: Range of the colours, per cent above the best loss.
EXCESS = (1e-2, 1e2)
CONTOURS = (0.1, 1.0, 10.0)
#: Dimensions of regularisation: as it is, or over the training rows.
RIDGES = ("lam", "lam_over_n")


def ridge_dimension(losses: xr.DataArray) -> str:
    """Which of `RIDGES` a grid has.

    Raises
    ------
    ValueError
        If it has neither.
    """
    for name in RIDGES:
        if name in losses.dims:
            return name
    raise ValueError(f"losses over {losses.dims}: one of {', '.join(RIDGES)} is wanted")


def own_axes(ax: Axes | None, size: tuple[float, float] = (6.0, 4.2)) -> Axes:
    """The axes that were given, or those of a new figure."""
    return Figure(figsize=size, layout="constrained").subplots() if ax is None else ax


def plot_losses(losses: xr.DataArray, *, ax: Axes | None = None, label: str = "loss") -> Axes:
    """Loss over (lam, alpha), each with its best step, averaged over what else there is.

    The colour is the loss above the best in per cent, on a logarithmic scale, with contours at 0.1, 1 and
    10 %. Where there are several cells the dotted line bounds what is within one standard error of the
    best: that of the difference to it, cell by cell.

    Parameters
    ----------
    losses : DataArray (lam | lam_over_n, alpha) and perhaps step, cell
        `mse` of a sweep, of one cell or several cells of a study.
    ax : matplotlib Axes, optional
        New ones by default.
    label : str, default "loss"

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        For other dimensions, and if no loss is finite.

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> X = np.linspace(0, 1, 12)[:, None]
    >>> fit = sdgpu.fit(X, X[:, 0], sdgpu.Gaussian(2.0), lams=[0.1, 1.0])
    >>> ax = plot_losses(fit.sweep(X, X[:, 0], alphas=[0.0, 0.5, 1.0], steps=3).dataset["mse"])
    >>> ax.get_xlabel()
    'lam'
    """
    ridge, ax = ridge_dimension(losses), own_axes(ax)
    if "alpha" not in losses.dims:
        raise ValueError(f"losses over {losses.dims}: alpha is wanted")
    means = losses.mean([dim for dim in losses.dims if dim not in (ridge, "alpha", "step")])
    steps = means.fillna(np.inf).argmin("step") if "step" in means.dims else None
    surface = (means if steps is None else means.isel(step=steps)).transpose("alpha", ridge)
    if not bool(np.isfinite(surface).any()):
        raise ValueError("no loss is finite")
    best = surface.where(np.isfinite(surface), np.inf).argmin(["alpha", ridge])
    least = max(float(surface.isel(best)), float(np.finfo(float).tiny))
    excess = (100 * (surface / least - 1)).clip(*EXCESS)
    image = ax.pcolormesh(
        surface[ridge],
        surface["alpha"],
        excess,
        norm=LogNorm(*EXCESS),
        cmap="viridis",
        shading="nearest",
    )
    ax.figure.colorbar(image, ax=ax, label=f"{label} above the best, %", extend="both")
    if min(excess.shape) > 1:
        lines = ax.contour(
            surface[ridge], surface["alpha"], excess, CONTOURS, colors="white", linewidths=0.7
        )
        ax.clabel(lines, fmt=lambda level: f"{level:g} %", fontsize=7)
        _draw_error(ax, losses, steps, best, ridge)
    point = surface.isel(best)
    ax.plot(
        point[ridge],
        point["alpha"],
        "*",
        color="white",
        mec="black",
        ms=13,
        clip_on=False,
        zorder=5,
    )
    step = "" if steps is None else f" at step {int(losses['step'][int(steps.isel(best))])}"
    ax.set(
        xscale="log",
        xlabel=ridge.replace("_over_", " / "),
        ylabel="alpha",
        title=f"best {least:.4g}{step}",
    )
    return ax


def _draw_error(ax: Axes, losses: xr.DataArray, steps: Any, best: Any, ridge: str) -> None:
    """The bound of what is within a standard error of the best point."""
    if losses.sizes.get("cell", 1) < 2:
        return
    chosen = losses if steps is None else losses.isel(step=steps)
    differences = (chosen - chosen.isel(best)).transpose("cell", "alpha", ridge)
    error = differences.std("cell", ddof=1) / np.sqrt(losses.sizes["cell"])
    within = (differences.mean("cell") - error).fillna(np.inf)
    if bool((within > 0).any()) and min(within.shape) > 1:
        ax.contour(
            losses[ridge],
            losses["alpha"],
            within.clip(-1, 1),
            [0.0],
            colors="white",
            linestyles="dotted",
        )


def plot_alpha_star(weights: xr.DataArray, *, ax: Axes | None = None) -> Axes:
    """alpha* of Algorithm 1 over lam, a line for each step; means over what else there is.

    The scale is linear in [-2, 2] and logarithmic beyond. Dotted lines are at 0, all weight on the teacher,
    and at 1, which is ridge.

    Parameters
    ----------
    weights : DataArray (lam | lam_over_n, step) and perhaps cell
        `alpha_star` of a sweep or a study.
    ax : matplotlib Axes, optional

    Raises
    ------
    ValueError
        For other dimensions.
    """
    ridge, ax = ridge_dimension(weights), own_axes(ax)
    if "step" not in weights.dims:
        raise ValueError(f"weights over {weights.dims}: step is wanted")
    later = weights.sel(step=weights["step"] > 1)
    others = [dim for dim in later.dims if dim not in (ridge, "step")]
    means = later.median(others) if others else later
    for step, colour in zip(means["step"].values, shades(means.sizes["step"]), strict=True):
        ax.plot(means[ridge], means.sel(step=step), color=colour, lw=1.3, label=f"{step}")
    for level in (0.0, 1.0):
        ax.axhline(level, color=DARK, lw=0.8, ls=":")
    ax.set_yscale("symlog", linthresh=2, linscale=2)
    middle = "median alpha*" if others else "alpha*"
    ax.set(xscale="log", xlabel=ridge.replace("_over_", " / "), ylabel=middle)
    ax.grid(color=GRID)
    ax.legend(title="step", fontsize=7, ncols=2)
    return ax


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
