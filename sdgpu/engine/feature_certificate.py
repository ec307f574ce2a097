"""How far float32 features and small lam may be trusted: the error of a feature model, from its sums."""

from __future__ import annotations

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.scaling import column_units
from sdgpu.solvers.feature_solution import FeatureSolution
from sdgpu.solvers.moment_sums import MomentSums
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["feature_certificate", "some_lams"]

CERTIFIED, STEPS = 8, 5  # lam and steps at which the error is looked at


def feature_certificate(
    sums: MomentSums,
    solution: FeatureSolution,
    lams: np.ndarray,
    precision: str,
    *,
    intercept: bool,
    tol: float,
) -> tuple[float, str]:
    """Relative error of the predictions at the training rows, the largest of some lam, and a sentence."""
    G, _, _ = sums.centred(intercept=intercept)
    errors = sums.centred_errors(intercept=intercept) if precision == "float32" else None
    k, spectrum = len(G), solution.spectrum
    found = {
        float(lam): _relative_error(sums, spectrum, G, float(lam), errors)
        for lam in some_lams(lams)
    }
    lam = max(found, key=lambda lam: found[lam])
    error = found[lam]
    text = f"relative error about {error:.1e} at lam = {lam:g} against the same features in float64"
    if error <= max(tol, 1e-3 if precision == "float32" else 0.0):
        below = f"{spectrum.below_rounding} of {k} are below rounding"
        return error, f"exact for these features: {text}; {below}"
    remedy = "dtype='float64'" if precision == "float32" else "a larger smallest lam"
    return error, f"inaccurate: {text}; take {remedy}"


def some_lams(lams: np.ndarray) -> np.ndarray:
    """A few of many lam, the smallest and the largest among them."""
    some = np.unique(lams)
    return some[np.unique(np.linspace(0, len(some) - 1, CERTIFIED).round().astype(int))]


def _relative_error(
    sums: MomentSums,
    spectrum: Spectrum,
    G: np.ndarray,
    lam: float,
    errors: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> float:
    """Of steps 1..5 at one lam, over the size of the first, of the output that has the largest.

    With beta = (G + lam)^-1 B a change dG, dB of the sums moves it by (G + lam)^-1 (dB - dG beta), and the
    predictions by the G-norm of that; they are made of features that are off by E, which moves them by
    E beta. The next step has B = G beta, and so dB = dG beta + G d beta.
    """
    delta, Z, W = (to_numpy(x) for x in (spectrum.eigenvalues, spectrum.Z, spectrum.basis))
    ridge = (delta + lam)[:, None]
    z = (Z / column_units(Z)) / ridge  # squares of any targets stay inside float64
    beta = W @ z
    size = np.sqrt(np.maximum(np.einsum("kc,kc->c", beta, G @ beta), 0.0))
    if not (size > 0).any():
        return 0.0
    error = float(np.finfo(float).eps) * (len(G) + np.sqrt(sums.rows)) * float(delta[-1]) / lam
    if errors is None:
        return float(error)
    dG, dB, squares = errors
    target, moved = dB / column_units(Z), np.zeros_like(Z)  # moved in coordinates of V sqrt(delta)
    worst = 0.0
    for _ in range(STEPS):
        shift = dG @ beta
        moved = (delta[:, None] * moved + W.T @ (target - shift)) / ridge
        change = np.linalg.norm(moved, axis=0)
        change += np.sqrt(np.maximum(np.einsum("kc,kc->c", beta, squares @ beta), 0.0))
        relative = np.divide(change, size, out=np.zeros_like(change), where=size > 0)
        worst = max(worst, float(relative.max(initial=0.0)))
        z = delta[:, None] / ridge * z
        beta, target = W @ z, shift
    return error + worst
