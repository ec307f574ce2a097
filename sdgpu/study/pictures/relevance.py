"""What a learned kernel looks at: the relevance of each feature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from sdgpu.engine.tuning import Tuned
from sdgpu.study.pictures.loss_maps import own_axes
from sdgpu.study.pictures.palette import GRID, PALETTE

__all__ = ["plot_relevance"]

MOST = 40  # features that are drawn


def plot_relevance(
    tuned: Tuned, names: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """1 / lengthscale of each feature over the largest, sorted: bars for the forty that count most.

    Parameters
    ----------
    tuned : Tuned
        Of :func:`sdgpu.tune` over "lengthscale".
    names : sequence of str, optional
        Of the features, d of them.
    ax : matplotlib Axes, optional

    Raises
    ------
    ValueError
        If the kernel has no length scale for each feature, or names are not d.
    """
    relevance = tuned.relevance
    d = len(relevance)
    labels = [f"feature {k}" for k in range(d)] if names is None else list(names)
    if len(labels) != d:
        raise ValueError(f"names has {len(labels)} entries, but the kernel has {d} features")
    order = np.argsort(relevance, kind="stable")[-MOST:]
    ax = own_axes(ax)
    ax.barh(np.arange(len(order)), relevance[order], color=PALETTE[1], height=0.7)
    ax.set_yticks(np.arange(len(order)), [labels[k] for k in order])
    ax.set(xlabel="relevance: 1 / lengthscale, over the largest", xlim=(0, 1.02))
    ax.grid(color=GRID, axis="x")
    ax.set_axisbelow(True)
    return ax
