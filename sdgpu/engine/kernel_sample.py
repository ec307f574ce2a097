"""What features leave out of their kernel: step 1 of both on the same few rows."""

from __future__ import annotations

import numpy as np

from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.scaling import column_units
from sdgpu.engine.row_reservoir import RowReservoir
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import FeatureMap

__all__ = ["SAMPLE", "kernel_difference"]

SAMPLE = 256  # rows: 20 ms on two cores


@underflow_is_zero
def kernel_difference(
    sample: RowReservoir,
    kernel: Kernel,
    features: FeatureMap,
    shares: np.ndarray,
    *,
    intercept: bool,
) -> float:
    """||f - f~|| / ||f|| at the sampled rows, the largest of some lam and of all outputs.

    f is ridge with the kernel, f~ with the features, both fitted to the sample alone, with the same lam for
    each unit of weight.

    Parameters
    ----------
    sample : RowReservoir
        With targets.
    kernel : Kernel
    features : FeatureMap
    shares : array (L,)
        lam over the weight of all rows, n without weights.
    intercept : bool

    Notes
    -----
    About 20 s^3 operations for s rows.
    """
    X, Y, weights = sample.rows
    total = float(weights.sum())
    if not total > 0:
        return float("nan")
    if intercept:
        Y = Y - weights @ Y / total
    root = np.sqrt(weights)[:, None]
    targets = root * (Y / column_units(Y))
    phi = features.transform(X, "float64")
    found = []
    for K in (np.asarray(kernel(X)), phi @ phi.T):
        if intercept:
            mean = weights @ K / total
            K = K - mean - mean[:, None] + weights @ mean / total
        K = root * K * root.T
        delta, V = np.linalg.eigh((K + K.T) / 2)
        delta, Z = np.maximum(delta, 0.0), V.T @ targets
        lams = shares[:, None, None] * total
        found.append(V @ (delta[:, None] / (delta[:, None] + lams) * Z))  # (L, s, c)
    size, error = (np.linalg.norm(f, axis=1) for f in (found[0], found[1] - found[0]))
    relative = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
    return float(relative.max(initial=0.0))
