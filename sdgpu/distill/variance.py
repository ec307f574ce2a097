"""How uncertain the prediction of a step is, as that of the linear smoother it is.

Step tau predicts f(x) = w'Y with w = (K's dual filter) kappa(X, x). Under the reading of a Gaussian
process, f ~ GP(0, kappa) and Y = f(X) + noise of variance nu, its mean squared error is

    kappa(x, x) - 2 w'kappa(X, x) + w'(K + nu) w,

the posterior variance at step 1 with nu = lam and more at every other step, as ridge is the best linear
predictor there. The variance over the noise alone is nu ||w||^2. Both belong to the step that is asked
for, not to the first fit.

With p = V'kappa(X, x), C the dual filter (13) and C_0 = 1 / (delta + nu), the first is

    kappa(x, x) - sum p^2 C_0 + sum p^2 (C - C_0)^2 / C_0:

the sum of the posterior variance and of a square, which does not cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat

__all__ = ["Variance", "variances"]


@dataclass(frozen=True, eq=False)
class Variance:
    """Variances of the predictions of steps 1..T at m rows.

    Attributes
    ----------
    posterior : array (T, m), or (T, m, c) for weights per output
        Mean squared error of f(x; tau) for a Gaussian process with the kernel as covariance; without the
        noise of a new observation.
    sampling : array of the same shape
        Variance of f(x; tau) over the noise of the targets, X fixed.
    noise : float
        nu, the variance of the noise.
    """

    posterior: Any
    sampling: Any
    noise: float


def variances(
    projected: Any, prior: Any, eigenvalues: Any, dual: Any, noise: float
) -> tuple[Any, Any]:
    """Posterior and sampling variances, (.., T, m) each.

    Parameters
    ----------
    projected : array (m, k)
        p' = kappa(x, X) V, with all eigenvectors of K.
    prior : array (m,)
        kappa(x, x).
    eigenvalues : array (k,)
    dual : array (..., T, k)
        C of steps 1..T, :func:`sdgpu.distill.filters.dual_filter`.
    noise : float
        nu > 0.

    Notes
    -----
    m k T multiplications. The posterior is clamped at 0, which rounding may miss.
    """
    xp = compat.array_namespace(projected)
    squares = projected * projected  # (m, k)
    C_0 = 1 / (eigenvalues + noise)  # step 1 with lam = nu
    gp_posterior = prior - squares @ C_0
    excess = (dual - C_0) ** 2 / C_0
    posterior = gp_posterior + excess @ squares.T
    return xp.clip(posterior, 0.0, None), noise * (dual * dual @ squares.T)
