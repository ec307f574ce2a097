"""Maps of the Earth and their coast lines."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

__all__ = ["globe_figure"]


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
