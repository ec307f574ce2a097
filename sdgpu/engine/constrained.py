"""`constrained_path`: self-distillation with a tolerance on the training loss, Appendix D of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.checks import integer, number, positive, schedule
from sdgpu.backend.progress import Progress
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.loss_tolerance import (
    ConstrainedSteps,
    Regime,
    constrained_regime,
    constrained_steps,
)
from sdgpu.distill.smoothers import Smoother, smoother_of
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.model import Model
from sdgpu.engine.path import Functions
from sdgpu.kernels import Kernel
from sdgpu.solvers.feature_solution import FeatureChain
from sdgpu.solvers.solution import DistillationChain
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["ConstrainedPath", "constrain", "constrained_path"]

EPS = float(np.finfo(np.float64).eps)
ANY_LAM = 1e30  # a ridge that every fit can serve, for a fit whose own ridges are not known yet


@dataclass(frozen=True, eq=False)
class ConstrainedPath(Functions):
    """Steps 1..T of self-distillation, each the smoothest function that meets a tolerance.

    Made by :func:`constrained_path` or :func:`constrain`.

    Attributes
    ----------
    eps : float
        The tolerance.
    alphas : array (T - 1,)
        Weights of steps 2..T.
    lams : array (T,)
        The ridge of each step, K + lam I; inf where it collapsed to 0. lam / n is the paper's lambda.
    losses : array (T,)
        Left side of (22): (alpha ||y - Y||^2 + (1 - alpha) ||y - y(tau-1)||^2) / n. It is eps, or less
        where the step collapsed.
    regime : Regime
        What was known before the first step: will it collapse, which steps are guaranteed, the limit.
    status : str
        A sentence.

    Notes
    -----
    Arrays of functions come in the library, device and dtype of the training data; for 1-D targets
    the axis c is missing. lams and losses are host numbers.
    """

    eps: float
    alphas: np.ndarray
    lams: np.ndarray
    losses: np.ndarray
    regime: Regime
    status: str
    _chain: DistillationChain = field(repr=False)
    _model: Model = field(repr=False)


@dataclass(frozen=True, eq=False)
class _Filters:
    """Step tau is V diag(filters) Z: Proposition D.1, and 0 where it collapsed."""

    filters: ConstrainedSteps
    spectrum: Spectrum
    model: Model

    @property
    def fitted(self) -> Any:
        """Predictions at the training points, (T, n, c)."""
        return self._combine(self.filters.train)

    @cached_property
    def dual(self) -> Any:
        """(K + lam I)^-1 w, (T, n, c)."""
        return self._combine(self.filters.dual)

    def _combine(self, filters: np.ndarray) -> Any:
        filters = filters[:, -int(self.spectrum.eigenvalues.shape[0]) :]
        return self.spectrum.combine(self.model.backend.asarray(filters[..., None]))


@underflow_is_zero
def constrained_path(
    X: Any,
    Y: Any,
    kernel: Kernel | str | Any = "rbf",
    *,
    eps: float,
    alpha: Any = 0.0,
    steps: int = 2,
    sample_weight: Any = None,
    intercept: bool = False,
    smoother: str | Smoother = "ridge",
    device: str | Backend = "auto",
    memory: int | float | str | None = None,
    progress: Progress | None = None,
) -> ConstrainedPath:
    """Distil with a tolerance on the training loss in place of lam, Appendix D.

    Step tau is the function of least norm in the kernel's space with

        (alpha ||f(X) - Y||^2 + (1 - alpha) ||f(X) - y(tau-1)||^2) / n <= eps,    y(0) = Y.    (22)

    It is ridge on the mixed target with a lam of its own, or 0. Norms are Frobenius norms of all c
    outputs together. alpha = 0 is Mobahi, Farajtabar and Bartlett (2020), whose steps always collapse
    in the end.

    Parameters
    ----------
    X : array_like (n, d)
        Training inputs, as for :func:`sdgpu.fit`.
    Y : array_like (n,) or (n, c)
        Targets.
    kernel : Kernel, str or callable, default "rbf"
        The penalty is its norm: for a spline kernel such as :class:`sdgpu.CubicGreen` an integral over
        the second derivative.
    eps : float
        Tolerance, > 0. From ||Y||^2 / n on everything is 0.
    alpha : number or array (T - 1,), default 0
        Weight of the ground truth in [0, 1], one for all steps or one for each of steps 2..T.
    steps : int, default 2
        T >= 1.
    sample_weight : array_like (n,), optional
        Weights of the rows in both losses, which are divided by their sum in place of n.
    intercept : bool, default False
        Whether a mean is fitted too that costs no norm: the least tolerance is then below the spread of Y.
    smoother : str or Smoother, default "ridge"
        Another one (:mod:`sdgpu.distill.smoothers`) is no function of least norm, but the one with the lam
        that leaves the loss eps, or the largest that leaves less: the discrepancy principle.
    device, memory, progress
        As for :func:`sdgpu.fit`.

    Returns
    -------
    ConstrainedPath
        With .lams, .losses, .fitted, .dual, .predict(X_new), .regime and .status. A collapse is no error:
        its lam is inf, its function 0. With a fixed alpha all steps after it are 0 as well.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As :func:`sdgpu.fit`, and for eps <= 0 or alpha outside [0, 1]. If no function of the kernel
        meets eps at a step, an error that names the step and the eps it takes; this happens at step 1,
        where K is singular or too near it for float64, or after an alpha that was much smaller.

    Notes
    -----
    One eigendecomposition, about 9 n^3 operations and 3 n^2 doubles; every step then costs O(n), and its
    function n^2 c. For other eps or alpha use :func:`constrain` on one fit.

    References
    ----------
    Borup and Andersen (2021), Appendix D; Mobahi et al. (2020). What they leave open or print wrongly
    is listed in :mod:`sdgpu.distill.loss_tolerance`.

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> X = np.linspace(0, 1, 11)[:, None]
    >>> y = np.sin(2 * np.pi * X[:, 0])
    >>> path = sdgpu.constrained_path(X, y, sdgpu.CubicGreen(), eps=0.045, steps=5)
    >>> np.isfinite(path.lams)
    array([ True,  True,  True, False, False])
    >>> path.regime.name, path.regime.guaranteed_steps
    ('converging to collapse', 3)
    >>> sdgpu.constrained_path(X, y, sdgpu.CubicGreen(), eps=0.045, alpha=0.25, steps=5).regime.name
    'never collapsing'
    """
    _question(eps, alpha, steps)
    fitted = fit(
        X,
        Y,
        kernel,
        ANY_LAM,
        sample_weight=sample_weight,
        intercept=intercept,
        smoother=smoother,
        method="eigh",
        device=device,
        memory=memory,
        progress=progress,
    )
    return constrain(fitted, eps=eps, alpha=alpha, steps=steps)


@underflow_is_zero
def constrain(fitted: Fit, *, eps: float, alpha: Any = 0.0, steps: int = 2) -> ConstrainedPath:
    """Distil a fit that knows all its eigenvalues: other tolerances and weights without a decomposition.

    Parameters
    ----------
    fitted : Fit
        Made with method="eigh" or "primal", or with `features`; its own lams do not matter.
    eps, alpha, steps
        As for :func:`constrained_path`.

    Returns
    -------
    ConstrainedPath

    Raises
    ------
    TypeError, ValueError, MemoryError
        As :func:`constrained_path`, and for a fit without all eigenvalues.

    Notes
    -----
    O(T n) for the steps, n^2 T c multiplications for their functions when these are asked for.
    """
    tolerance, alphas, steps = _question(eps, alpha, steps)
    spectrum = fitted._spectrum_for("a constrained path", needs_all=True)
    model = fitted._model
    if not spectrum.holds_kernel:
        raise ValueError(
            f"a constrained path needs all {fitted.info.n:,} eigenvalues, and this fit has "
            f"{fitted.info.k:,}: fit with method='eigh', lams > 0"
        )
    size, n = int(spectrum.basis.shape[0]), fitted._solution.weight
    model.afford(2 * size * (fitted.info.c + 1) * steps, f"a path of {steps} steps")
    weights = np.broadcast_to(alphas, (steps - 1,)).copy()
    delta, Z = to_numpy(spectrum.eigenvalues), to_numpy(spectrum.Z)
    if spectrum.outside is not None:  # of no features: one eigenvalue more that is 0
        delta = np.concatenate([[0.0], delta])
        Z = np.concatenate([np.sqrt(to_numpy(spectrum.outside))[None], Z])
    # an eigenvalue is known to this much, so functions with less ridge cannot be told apart
    rounding = max(len(delta) * EPS * float(delta[-1]), -spectrum.most_negative)
    how: dict[str, Any] = {"smallest_lam": rounding, "rows": n}
    how["smoother"] = smoother_of(fitted._solution)
    regime = constrained_regime(delta, Z, tolerance, alphas, **how)
    constrained = constrained_steps(delta, Z, tolerance, weights, **how)
    status = _status(constrained.lams, regime, rounding)
    chain: DistillationChain = _Filters(constrained, spectrum, model)
    if fitted.info.method == "features":  # which have no rows to predict at
        chain = FeatureChain(spectrum, chain.dual)
    return ConstrainedPath(
        eps=tolerance,
        alphas=weights,
        lams=constrained.lams,
        losses=constrained.losses,
        regime=regime,
        status=status,
        _chain=chain,
        _model=model,
    )


def _question(eps: Any, alpha: Any, steps: Any) -> tuple[float, np.ndarray, int]:
    """Check the tolerance, the weights, one (1,) for all steps or (T - 1,), and the number of steps."""
    tolerance, steps = positive("eps", eps), integer("steps", steps, 1)
    scalar = np.ndim(alpha) == 0
    alphas = np.array([number("alpha", alpha)]) if scalar else schedule(alpha, steps, name="alpha")
    outside = alphas[(alphas < 0) | (alphas > 1)]
    if outside.size:
        raise ValueError(
            f"alpha={outside[0]:g} must be in [0, 1]: with other weights (22) is no loss to be tolerant of"
        )
    return tolerance, alphas, steps


def _status(lams: np.ndarray, regime: Regime, rounding: float) -> str:
    """What became of the chain, and how far to trust it."""
    alive = np.isfinite(lams)
    if not alive[0]:
        return "collapsed: the zero function meets eps at step 1; lower eps"
    accuracy = f"rounding of the eigenvalues moves the steps by about {rounding / lams.min():.0e}"
    if alive.all():
        return f"{regime.name}, all {len(lams)} steps alive; {accuracy}"
    first = int(np.argmin(alive)) + 1
    after = "and stays 0" if not alive[first:].any() else "and returns with a larger weight"
    return f"{regime.name}: step {first} is the first that is 0, {after}; {accuracy}"
