"""How a fit was made and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from sdgpu.distill.smoothers import RIDGE
from sdgpu.kernels import Kernel
from sdgpu.selection.sweep import Sweep

__all__ = ["Info", "Seconds", "labelled"]


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
    kernel_difference : float or None
        Of features that stand for a kernel, on 256 rows: relative difference of step 1 to that of the
        kernel itself, both fitted to these rows alone, the largest of lam; None where nothing is known.
    smoother : str
        What a step does to each eigenvalue, "ridge" or another of :mod:`sdgpu.distill.smoothers`.
    of_ridge : Info or None
        With another smoother what was said of the same decomposition with ridge.
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
    kernel_difference: float | None = None
    smoother: str = RIDGE.name
    of_ridge: Info | None = field(default=None, repr=False, compare=False)


def labelled(sweep: Sweep, info: Info, kernel: Kernel, seconds: float) -> Sweep:
    """The sweep, with what made it in the attributes of its dataset."""
    sweep.dataset.attrs.update(
        kernel=repr(kernel),
        training_rows=info.n,
        features=info.d,
        backend=info.backend,
        sweep_seconds=seconds,
        fit_seconds=sum(info.seconds.values()),
        error_estimate=info.error_estimate,
        smoother=info.smoother,
    )
    return sweep
