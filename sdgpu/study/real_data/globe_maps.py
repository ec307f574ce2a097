"""Maps of what a fit makes of the sphere, beside the truth."""

from __future__ import annotations

import numpy as np

from sdgpu.engine.fitted import Fit
from sdgpu.selection.sweep import Best
from sdgpu.study.real_data.globe import Grid, points_of

__all__ = ["predicted_map"]

HEIGHT = 540  # lines of a map


def predicted_map(
    fitted: Fit, best: Best, grid: Grid, *, height: int = HEIGHT
) -> tuple[np.ndarray, np.ndarray]:
    """Truth and predictions on a coarser grid, (height, width, c) each.

    Parameters
    ----------
    fitted : Fit
        To points (x, y, z) of the sphere.
    best : Best
        lam, weight and step.
    grid : Grid
    height : int, default 540
        Lines of the map, at most those of the grid.
    """
    latitudes = grid.shape[0]
    stride = max(1, latitudes // height)
    lines = range(stride // 2, latitudes, stride)
    path = fitted.path(best.lam, best.alpha if best.step > 1 else 0.0, int(best.step))
    every = slice(stride // 2, None, stride)
    truth = np.stack([grid.line(number)[every] for number in lines])
    rows = np.concatenate([points_of(grid.shape, number)[every] for number in lines])
    predicted = path.predict(rows)[-1]
    return truth, np.asarray(predicted).reshape(truth.shape)
