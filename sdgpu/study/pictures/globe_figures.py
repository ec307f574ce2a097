"""Maps of the Earth and their coast lines."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdgpu.study.pictures.loss_maps import own_axes

__all__ = ["globe_figure", "plot_coast"]


def globe_figure(maps: Mapping[str, np.ndarray]) -> Figure:
    """Maps of the Earth below one another, north up, the date line at both ends.

    Parameters
    ----------
    maps : mapping of str to array (height, width, 2 or 3)
        Title and values of each, drawn as by :func:`plot_coast`.
    """
    figure = Figure(figsize=(9, 4.7 * len(maps)), layout="constrained")
    axes = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        plot_coast(values, ax=axis).set_title(title)
    return figure


def plot_coast(values: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """Map of the Earth with its coast line, north up, the date line at both ends.

    Parameters
    ----------
    values : array (height, width, 2 or 3)
        Scores of sea and land, of which the larger one counts, the line between them in black; or colours
        in [0, 1].
    ax : matplotlib Axes, optional
        New ones by default.

    Raises
    ------
    ValueError
        For values of another shape.
    """
    shape = np.shape(values)
    if len(shape) != 3 or shape[2] not in (2, 3):
        raise ValueError(f"values of shape {shape}: (height, width, 2 or 3) is wanted")
    ax, extent = own_axes(ax, (9, 4.7)), (-180, 180, -90, 90)
    if shape[2] == 2:
        land = values[..., 1] - values[..., 0]
        ax.imshow(np.clip(land, -1, 1), extent=extent, cmap="BrBG_r", vmin=-1.4, vmax=1.4)
        if land.min() < 0 < land.max() and min(shape[:2]) > 1:  # else there is no line
            ax.contour(land[::-1], [0.0], extent=extent, colors="black", linewidths=0.5)
    else:
        ax.imshow(np.clip(values, 0, 1), extent=extent)
    ax.set(xlabel="degrees east", ylabel="degrees north")
    ax.set(xticks=range(-180, 181, 60), yticks=range(-90, 91, 30))
    return ax
