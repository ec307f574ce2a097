"""The spectrum of K with what distillation makes of it, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sdgpu.backend.backends import to_numpy
from sdgpu.engine.fitted import Fit
from sdgpu.study.pictures.loss_maps import own_axes
from sdgpu.study.pictures.palette import DARK, GRID, shades

__all__ = ["plot_filters"]


def plot_filters(
    fit: Fit, lam: float | None = None, alphas: Any = 0.0, steps: int = 6, *, ax: Axes | None = None
) -> Axes:
    """B(1..T) of Lemma 4.2 over the eigenvalues of K: what each step keeps along an eigenvector (12).

    A line for each step, over the eigenvalues, which are the ticks at the bottom; the dotted line is lam,
    where step 1 keeps one half.

    Parameters
    ----------
    fit : Fit
        With a spectrum: not of method "cg".
    lam, alphas, steps
        As in :meth:`sdgpu.Fit.diagonal`.
    ax : matplotlib Axes, optional

    Raises
    ------
    TypeError, ValueError
        As :meth:`sdgpu.Fit.diagonal`.
    """
    B, eigenvalues = to_numpy(fit.diagonal(lam, alphas, steps)), to_numpy(fit.spectrum.eigenvalues)
    ax = own_axes(ax)
    largest = max(float(eigenvalues.max(initial=0.0)), float(np.finfo(float).tiny))
    seen = eigenvalues > 1e-14 * largest  # below there is rounding
    order = np.argsort(eigenvalues[seen])
    for step, colour in enumerate(shades(steps), start=1):
        values = B[step - 1, seen][order]
        ax.plot(eigenvalues[seen][order], values, color=colour, lw=1.5, label=f"{step}")
    ax.plot(
        eigenvalues[seen],
        np.zeros(int(seen.sum())),
        "|",
        color=DARK,
        ms=9,
        alpha=0.5,
        transform=ax.get_xaxis_transform(),
        clip_on=False,
    )
    if lam is not None:
        ax.axvline(lam, color=DARK, lw=0.8, ls=":")
    ax.set(xscale="log", xlabel="eigenvalue of K", ylabel="diagonal of B")
    ax.grid(color=GRID)
    ax.legend(title="step", fontsize=7)
    return ax
