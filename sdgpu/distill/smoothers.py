"""What a single fit does to each eigenvalue: ridge, and the smoothers that may stand in its place.

A fit of targets u is V diag(g) V'u with a function g of the eigenvalues, 0 <= g <= 1. Ridge has
g = a = delta / (delta + lam), equation (9); everything that the paper says of steps, weights and limits
holds with any other g in place of a. All are written with a lam: g is nearly m delta / lam for small delta,
with m = 1 but for iterated Tikhonov.

===================  =====================================  =============================================
smoother             1 - g                                  lam
===================  =====================================  =============================================
`"ridge"`            lam / (delta + lam)                    of K + lam I
`"gradient_flow"`    exp(-delta / lam)                      n / t, t the time of the flow
`"iterated"`         (lam / (delta + lam))^m                of each of m rounds of ridge
`"landweber"`        (1 - delta / top)^(top / lam)          top / rounds, top the largest eigenvalue
`"cutoff"`           1 where delta < lam, else 0            the smallest eigenvalue that is kept
===================  =====================================  =============================================

Nothing is divided by a small eigenvalue, and 1 - g has a formula of its own wherever g rounds to 1.

References
----------
Engl, Hanke and Neubauer (1996) for the family; Buehlmann and Yu (2003) for boosting as iterated
smoothing; Medvedev et al. (2025) for wide networks that stop early, as gradient flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import array_api_compat as compat

__all__ = [
    "RIDGE",
    "Cutoff",
    "GradientFlow",
    "IteratedTikhonov",
    "Landweber",
    "Smoother",
    "Tikhonov",
    "as_smoother",
    "broadcast",
    "like",
    "only_ridge",
    "smoother_of",
]


class Smoother(Protocol):
    """g of the module's text. All arrays: eigenvalues (k,), lam of shape S, results S + (k,)."""

    @property
    def name(self) -> str: ...
    @property
    def projects(self) -> bool:
        """Whether g may be 1, and not by rounding: such parts never change from step to step."""

    @property
    def slope(self) -> float:
        """g is at most slope delta / lam: what bounds the dual coefficients."""

    def shrinkage(self, eigenvalues: Any, lam: Any) -> Any:
        """g."""

    def complement(self, eigenvalues: Any, lam: Any) -> Any:
        """1 - g, without cancellation."""

    def dual(self, eigenvalues: Any, lam: Any) -> Any:
        """g / delta, finite for delta = 0."""


@dataclass(frozen=True)
class Tikhonov:
    """Ridge regression, equation (9): g = delta / (delta + lam)."""

    name: ClassVar[str] = "ridge"
    projects: ClassVar[bool] = False
    slope: ClassVar[float] = 1.0

    def shrinkage(self, eigenvalues: Any, lam: Any) -> Any:
        """delta / (delta + lam)."""
        eigenvalues, lam = broadcast(eigenvalues, lam)
        return eigenvalues / (eigenvalues + lam)

    def complement(self, eigenvalues: Any, lam: Any) -> Any:
        """lam / (delta + lam)."""
        eigenvalues, lam = broadcast(eigenvalues, lam)
        return lam / (eigenvalues + lam)

    def dual(self, eigenvalues: Any, lam: Any) -> Any:
        """1 / (delta + lam)."""
        eigenvalues, lam = broadcast(eigenvalues, lam)
        return 1 / (eigenvalues + lam)


class _Exponential:
    """1 - g = exp(-e) with an exponent e >= 0 that is nearly slope delta / lam for small delta."""

    @property
    def slope(self) -> float:
        """1 unless said otherwise."""
        return 1.0

    def _exponent(self, eigenvalues: Any, lam: Any) -> Any:
        raise NotImplementedError

    def shrinkage(self, eigenvalues: Any, lam: Any) -> Any:
        """1 - exp(-e)."""
        eigenvalues, lam = broadcast(eigenvalues, lam)
        return -compat.array_namespace(eigenvalues).expm1(-self._exponent(eigenvalues, lam))

    def complement(self, eigenvalues: Any, lam: Any) -> Any:
        """exp(-e)."""
        eigenvalues, lam = broadcast(eigenvalues, lam)
        return compat.array_namespace(eigenvalues).exp(-self._exponent(eigenvalues, lam))

    def dual(self, eigenvalues: Any, lam: Any) -> Any:
        """g / delta, and slope / lam where that is 0 / 0."""
        xp = compat.array_namespace(eigenvalues)
        g = self.shrinkage(eigenvalues, lam)
        eigenvalues, lam = broadcast(eigenvalues, lam)
        known = g > 0
        divisor = xp.where(known, eigenvalues + xp.zeros_like(g), xp.ones_like(g))
        return xp.where(known, g / divisor, self.slope / lam)


def _ratio(eigenvalues: Any, lam: Any) -> Any:
    """delta / lam, cut where it is endless: lams=0 is kept as the smallest number and must not overflow."""
    xp = compat.array_namespace(eigenvalues)
    tiny = 64 * float(xp.finfo(eigenvalues.dtype).smallest_normal)
    return eigenvalues / xp.maximum(lam, eigenvalues * tiny)


@dataclass(frozen=True)
class GradientFlow(_Exponential):
    """Gradient flow of ||f(X) - u||^2 / (2 n) from 0, stopped at t = n / lam: 1 - g = exp(-delta / lam)."""

    name: ClassVar[str] = "gradient_flow"
    projects: ClassVar[bool] = False

    def _exponent(self, eigenvalues: Any, lam: Any) -> Any:
        return _ratio(eigenvalues, lam)


@dataclass(frozen=True)
class IteratedTikhonov(_Exponential):
    """m rounds of ridge, each on the residuals of the one before: 1 - g = (lam / (delta + lam))^m.

    L2-boosting of ridge; two rounds are Tukey's twicing. m rounds are m steps of self-distillation with the
    weights alpha_t = m / (m - t + 1), t = 2 .. m (:func:`sdgpu.distill.schedules.boosting_schedule`).

    Parameters
    ----------
    rounds : int, default 2
        m >= 1.
    """

    rounds: int = 2
    name: ClassVar[str] = "iterated"
    projects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.rounds, bool) or self.rounds != int(self.rounds) or self.rounds < 1:
            raise ValueError(f"rounds={self.rounds!r} must be a whole number >= 1")

    @property
    def slope(self) -> float:
        """m."""
        return float(self.rounds)

    def _exponent(self, eigenvalues: Any, lam: Any) -> Any:
        return self.rounds * compat.array_namespace(eigenvalues).log1p(_ratio(eigenvalues, lam))


@dataclass(frozen=True)
class Landweber(_Exponential):
    """Gradient descent of step size 1 / top for top / lam rounds, which need not be whole.

    1 - g = (1 - delta / top)^(top / lam). The largest eigenvalue, top, is that of the array it gets.
    """

    name: ClassVar[str] = "landweber"
    projects: ClassVar[bool] = True

    def _exponent(self, eigenvalues: Any, lam: Any) -> Any:
        xp = compat.array_namespace(eigenvalues)
        largest = xp.max(eigenvalues)
        unit = xp.where(largest > 0, largest, xp.ones_like(largest))
        # all that is left of the largest is 0: a finite stand-in for its infinite exponent
        share = xp.clip(eigenvalues / unit, 0.0, 1 - float(xp.finfo(eigenvalues.dtype).eps))
        exponent = -xp.log1p(-share) * _ratio(unit, lam)
        return xp.where(eigenvalues / unit >= 1, xp.full_like(exponent, xp.inf), exponent)


@dataclass(frozen=True)
class Cutoff:
    """Spectral cut-off, regression on the principal components of K with delta >= lam: g is 1 or 0."""

    name: ClassVar[str] = "cutoff"
    projects: ClassVar[bool] = True
    slope: ClassVar[float] = 1.0

    def shrinkage(self, eigenvalues: Any, lam: Any) -> Any:
        """1 or 0."""
        eigenvalues, lam = broadcast(eigenvalues, lam)
        return compat.array_namespace(eigenvalues).astype(eigenvalues >= lam, eigenvalues.dtype)

    def complement(self, eigenvalues: Any, lam: Any) -> Any:
        """0 or 1."""
        return 1 - self.shrinkage(eigenvalues, lam)

    def dual(self, eigenvalues: Any, lam: Any) -> Any:
        """1 / delta or 0."""
        g = self.shrinkage(eigenvalues, lam)
        xp = compat.array_namespace(g)
        divisor = xp.where(g > 0, eigenvalues + xp.zeros_like(g), xp.ones_like(g))
        return g / divisor


#: The smoother of the paper.
RIDGE = Tikhonov()


_NAMED = {
    smoother.name: smoother
    for smoother in (RIDGE, GradientFlow(), IteratedTikhonov(), Landweber(), Cutoff())
}


def as_smoother(smoother: Any) -> Smoother:
    """A smoother by its name, or one with the methods of :class:`Smoother` as it is.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(smoother, str):
        if smoother not in _NAMED:
            names = ", ".join(repr(name) for name in _NAMED)
            raise ValueError(f"smoother={smoother!r} is unknown: take one of {names}")
        return _NAMED[smoother]
    wanted = ("name", "projects", "slope", "shrinkage", "complement", "dual")
    missing = [name for name in wanted if not hasattr(smoother, name)]
    if missing or isinstance(smoother, type):
        raise TypeError(
            f"smoother={smoother!r} has no {', '.join(missing) or 'parameters'}: give a name, or a value "
            "with the methods of sdgpu.distill.smoothers.Smoother"
        )
    found: Smoother = smoother
    return found


def smoother_of(answers: Any) -> Smoother:
    """That of a solution or chain; ridge where it names none."""
    return getattr(answers, "smoother", RIDGE)


def only_ridge(answers: Any, what: str, why: str) -> None:
    """Refuse what no other smoother has.

    Raises
    ------
    ValueError
    """
    name = smoother_of(answers).name
    if name != RIDGE.name:
        raise ValueError(f"{what} is of ridge alone, and this fit has smoother={name!r}: {why}")


def broadcast(eigenvalues: Any, lam: Any) -> tuple[Any, Any]:
    """Give lam of shape S the shape S + (1,), in the library and dtype of the eigenvalues."""
    return eigenvalues, like(eigenvalues, lam)[..., None]


def like(reference: Any, value: Any) -> Any:
    """A number or array in the library, dtype and device of a reference."""
    xp = compat.array_namespace(reference)
    return xp.asarray(value, dtype=reference.dtype, device=compat.device(reference))
