"""Small results of a fit: how it was made, and the weights that were chosen on validation data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NoReturn

import numpy as np

__all__ = ["Info", "JointAlphas", "OptimalAlphas", "Seconds", "without_caches"]


def without_caches(value: Any) -> dict[str, Any]:
    """State of a dataclass for pickle: its fields alone. What is cached beside them is made anew."""
    return {f.name: getattr(value, f.name) for f in fields(value)}


class Seconds(dict[str, float]):
    """Seconds by stage: a dictionary that cannot be changed."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            "these seconds belong to a result, which cannot be changed: dict(..) is a copy"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> Any:  # pickle would fill it by __setitem__
        return type(self), (dict(self),)


@dataclass(frozen=True)
class Info:
    """How a fit was made and how far to trust it.

    Attributes
    ----------
    method, operator, precision, backend : str
        What did the work, how K was held and evaluated, and where.
    n, d, c, k : int
        Training rows, features, outputs, eigenvalues.
    passes, iterations : int
        Passes over K and iterations of the solver.
    error_estimate : float
        Relative error of the predictions over the lam that were asked for and over steps. For an
        eigendecomposition the residual below stands for it.
    residual : float
        Largest residual of (K + lam I) dual = Y at the smallest lam, relative to max |Y|, over up to
        32 rows of K that were computed anew in float64.
    below_rounding : int
        Eigenvalues without a reliable digit; they count as what they are, nearly 0.
    seconds : dict
        By stage of the fit, read-only.
    bytes : int
        Peak of the memory model.
    status : str
        A sentence.
    """

    method: str
    operator: str
    precision: str
    backend: str
    n: int
    d: int
    c: int
    k: int
    passes: int
    iterations: int
    error_estimate: float
    residual: float
    below_rounding: int
    seconds: Seconds
    bytes: int
    status: str


@dataclass(frozen=True, eq=False)
class OptimalAlphas:
    """The chain of Algorithm 1.

    Attributes
    ----------
    alphas : array (T - 1,), or (T - 1, c) per output
        alpha* of steps 2..T, ready for :meth:`Fit.path`.
    mse : array (T,)
        Mean squared validation error of steps 1..T.
    mse_per_output : array (T, c) or None
        The same for each output, where the weights are per output.
    best_step : int
        The step with the smallest loss: the greedy chain is not monotone.
    """

    alphas: np.ndarray
    mse: np.ndarray
    mse_per_output: np.ndarray | None
    best_step: int


@dataclass(frozen=True, eq=False)
class JointAlphas:
    """The joint optimum over all weights.

    Attributes
    ----------
    alphas : array (T - 1,)
        Weights of steps 2..T.
    coefficients : array (T,)
        c over the basis u_1..u_T, with sum 1.
    mse : array (T,)
        Mean squared validation error of the best chains of 1..T steps.
    condition : float
        Condition number of the least-squares problem, without ridge, box or terms.
    nested_mse : array (T,)
        Mean squared error of the best chains of 1..T steps on rows that had no part in choosing their
        weights: each part of the validation rows is judged with the weights of the others. NaN for fewer
        rows than two for each part.
    status : str
        A sentence that says what to make of it.
    """

    alphas: np.ndarray
    coefficients: np.ndarray
    mse: np.ndarray
    condition: float
    nested_mse: np.ndarray
    status: str
