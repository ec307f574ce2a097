"""The lam of a smoother that leaves a wanted residual: the discrepancy principle of Morozov.

sum weights (1 - g)^2 grows with lam for every smoother of :mod:`sdgpu.distill.smoothers`, so bisection
finds it. A spectral cut-off takes steps: there it is the largest lam that leaves no more than is wanted.
"""

from __future__ import annotations

import numpy as np

from sdgpu.distill.smoothers import Smoother

__all__ = ["lam_of_residual"]

HALVINGS = 200
LARGEST = 1e20  # of lam over the largest eigenvalue: a fit of less than rounding


def lam_of_residual(
    smoother: Smoother,
    eigenvalues: np.ndarray,
    weights: np.ndarray,
    *,
    residual: float,
    explained: float,
    smallest: float,
) -> float:
    """The largest lam with sum weights (1 - g)^2 <= residual.

    Parameters
    ----------
    smoother : Smoother
    eigenvalues : array (k,)
        delta >= 0, not all 0.
    weights : array (k,)
        Squared coordinates of the targets in the eigenbasis, >= 0.
    residual : float
        > 0.
    explained : float
        sum weights - residual, > 0; asked for apart because it may cancel.
    smallest : float
        A lam > 0 that leaves no more than `residual`.

    Returns
    -------
    float
        In the middle, on a logarithmic scale, of the gap between eigenvalues where nothing changes over it;
        the largest eigenvalue where any lam leaves less, as a part of a round of gradient descent does.

    Notes
    -----
    O(k) for each of some 60 halvings. The sum is of 1 - g where the residual is the smaller part, else of
    g, so that neither cancels.

    References
    ----------
    Morozov (1966); Engl, Hanke and Neubauer (1996), section 4.3.

    Examples
    --------
    >>> from sdgpu.distill.smoothers import Cutoff, GradientFlow
    >>> how = {"residual": 1.0, "explained": 8.0, "smallest": 1e-9}
    >>> delta, weights = np.array([1.0, 4.0]), np.array([0.0, 9.0])
    >>> lam = lam_of_residual(GradientFlow(), delta, weights, **how)  # exp(-4 / lam) = 1 / 3
    >>> round(lam * float(np.log(3)), 12)
    4.0
    >>> round(lam_of_residual(Cutoff(), delta, weights, **how), 12)  # between 1 and 4
    2.0
    """

    def enough(lam: float) -> bool:
        g, rest = smoother.shrinkage(eigenvalues, lam), smoother.complement(eigenvalues, lam)
        if explained < residual:
            return float(g * (1 + rest) @ weights) >= explained  # 1 - (1 - g)^2
        return float(rest * rest @ weights) <= residual

    top = float(eigenvalues.max())
    low, high = smallest, LARGEST * top
    if enough(high):
        return top
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low) * np.sqrt(high))
        if not low < middle < high:
            break
        low, high = (middle, high) if enough(middle) else (low, middle)
    below = eigenvalues[eigenvalues < low]
    gap = float(np.sqrt(low) * np.sqrt(below.max())) if below.size else low / 2
    here, there = (smoother.complement(eigenvalues, lam) for lam in (low, gap))
    return gap if gap > 0 and np.array_equal(here, there) else low
