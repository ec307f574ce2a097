"""alpha-hat: the weight (16) of networks, from predictions on validation data."""

from __future__ import annotations

import numpy as np
import torch

from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.distill.optimal_weights import greedy_weights

__all__ = ["estimate_alpha"]


def estimate_alpha(P1: torch.Tensor, P0: torch.Tensor, Y: torch.Tensor) -> float:
    """alpha-hat = 1 - <P0 - P1, Y - P1> / ||P0 - P1||_F^2, equation (16) with Frobenius norms.

    Parameters
    ----------
    P1 : tensor (m, c)
        Predictions of step 1 on validation inputs.
    P0 : tensor (m, c)
        Those of the step at hand with alpha = 0.
    Y : tensor (m, c)
        The validation targets, one-hot rows.

    Returns
    -------
    float
        1 where P0 = P1: then every weight gives the same. Computed in float64 on the host from the
        triangle of two steps, O(m c).

    Raises
    ------
    ValueError
        If the shapes differ, or entries are not finite.
    """
    columns = []
    for name, tensor in (("P1", P1), ("P0", P0), ("Y", Y)):
        if tensor.shape != P1.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but P1 has shape {tuple(P1.shape)}: all three "
                "need one row for each validation input"
            )
        column = tensor.detach().cpu().double().numpy().reshape(-1)
        if not np.isfinite(column).all():
            raise ValueError(f"{name} must be finite: NaN or infinity found")
        columns.append(column)
    p1, p0, y = columns
    # [D_1, u_1 - Y] of a chain of two steps: the same triangle as that of the kernel engine
    triangle = merge_rows(None, np.stack([p0 - p1, p1 - y], axis=1))
    return float(greedy_weights(triangle).alphas[0])
