"""How a fit was made and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = ["Info", "Seconds"]


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
