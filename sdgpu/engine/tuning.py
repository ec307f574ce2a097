"""Kernels whose parameters are learned: the minimum of a loss over them and lam, by its gradient.

Up to `DENSE_ROWS` rows the loss is a function of the kernel matrix, differentiated by torch
(:mod:`sdgpu.selection.kernel_losses`). Beyond, validation rows judge, and the derivative comes from adjoint
solves by conjugate gradients with one sketch. Either way it is contracted with the derivatives of kernel
values a block of rows at a time (:mod:`sdgpu.kernels.tunable`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.arrays import pair
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import choice, integer, lam_grid, positive, schedule
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.tuning_objectives import Objective, objective_of
from sdgpu.kernels import Kernel, as_kernel
from sdgpu.kernels.tunable import Tunable

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Tuned", "tune"]

SPREAD = np.log(1e3)  # default bounds: a thousandth to a thousand times what the kernel has
FIRST_LAMS = 9  # that are tried before the first start
AT_BOUND = 1e-3  # of a logarithm
RATE = 0.1  # of Adam, in logarithms


@dataclass(frozen=True, eq=False)
class Tuned:
    """A learned kernel.

    Attributes
    ----------
    kernel : Kernel
    lam : float
    loss : float
        What was minimised, at the minimum.
    fit : Fit
        Of all rows with this kernel, for lam.
    history : xarray.Dataset
        `loss` (evaluation), `start` (evaluation), and `value` (evaluation, parameter), lam included.
    message : str
        Why the search ended, and which parameters are at a bound.
    """

    kernel: Kernel
    lam: float
    loss: float
    fit: Fit
    history: xr.Dataset
    message: str

    @property
    def relevance(self) -> np.ndarray:
        """1 / lengthscale of each feature, over the largest (d,): how much the kernel looks at it.

        Raises
        ------
        ValueError
            If the kernel has no length scale for each feature.
        """
        scales = getattr(self.kernel, "lengthscale", None)
        if not isinstance(scales, tuple):
            raise ValueError(
                f"{self.kernel!r} has no length scale for each feature: tune(over=('lengthscale',))"
            )
        inverse = 1 / np.asarray(scales)
        return inverse / inverse.max()


def tune(
    X: Any,
    Y: Any,
    kernel: Kernel | str | Any = "rbf",
    lams: Any = None,
    *,
    over: Sequence[str] = ("lengthscale",),
    by: Any = "loo",
    alphas: Any = 0.0,
    steps: int = 1,
    sample_weight: Any = None,
    intercept: bool = False,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    starts: int = 1,
    optimizer: str = "lbfgs",
    iterations: int = 100,
    tol: float = 1e-8,
    seed: int = 0,
) -> Tuned:
    """Learn parameters of a kernel, with lam along, by the gradient of a loss.

    minimise over theta and lam   L(kappa_theta, lam),   in the logarithms of all of them.

    Parameters
    ----------
    X, Y : array_like (n, d) and (n,) or (n, c)
    kernel : Kernel, str or callable
        Where the search begins.
    lams : number or array_like, optional
        One number is lam itself; of several the smallest and the largest are its bounds. 1e-8 n to n by
        default.
    over : sequence of str, default ("lengthscale",)
        Names of parameters: "lengthscale", one for each feature; "width", one factor for all of them;
        "scale", the factors of scaled kernels and weights of sums; and any other positive number that a
        kernel has, such as "gamma", "power", "period", "coef0", "weight_var".
    by : {"loo", "gcv", "marginal"} or (X_val, Y_val), default "loo"
        Mean squared error of leave-one-out, its generalised form, -log marginal likelihood over n c of a
        Gaussian process with noise lam (of step 1), or the mean squared error at validation rows.
    alphas, steps : as in :meth:`sdgpu.Fit.path`, default step 1
        The chain whose last step is judged.
    sample_weight, intercept : as in :func:`sdgpu.fit`
    bounds : mapping, optional
        (lowest, highest) of parameters by name; a thousandth and a thousand times the start by default.
    starts : int, default 1
        The kernel itself, then random ones up to ten times larger or smaller: the best end is taken.
    optimizer : {"lbfgs", "adam"}, default "lbfgs"
        SciPy's L-BFGS-B, or Adam of torch with steps of 0.1 in the logarithms.
    iterations : int, default 100
        Of each start, at the most.
    tol : float, default 1e-8
        Relative accuracy of solves beyond 6,000 rows.
    seed : int
        Of the starts and of the sketch.

    Returns
    -------
    Tuned

    Raises
    ------
    TypeError, ValueError
        For names that the kernel does not have, bounds without room, more than 6,000 rows without
        validation rows, a marginal likelihood of later steps.

    Warns
    -----
    UserWarning
        If a parameter ends at a bound; which ones is in `message`. If a solve misses `tol`.

    Notes
    -----
    An evaluation costs some ten products of n x n matrices up to 6,000 rows, ten n^2 numbers of memory;
    beyond, a sketch, 2 T solves and a pass over K with its derivatives. All of it in float64 on the CPU,
    wherever X lies; only the last fit is made there. Kinks of a kernel count as the
    mean of the slopes to both sides.

    References
    ----------
    Rasmussen and Williams (2006), Sections 5.4 and 5.3 for leave-one-out and the marginal likelihood.

    Examples
    --------
    >>> import warnings, numpy as np, sdgpu
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(-1, 1, (80, 3))
    >>> y = np.sin(4 * X[:, 0]) + 0.1 * rng.standard_normal(80)
    >>> with warnings.catch_warnings(action="ignore"):  # features 1 and 2 do not matter: at a bound
    ...     tuned = sdgpu.tune(X, y, sdgpu.Gaussian(1.0), [1e-3, 1.0], by="marginal")
    >>> bool(tuned.relevance[0] > 5 * tuned.relevance[1:].max())
    True
    """
    rows, truth, _ = pair(X, Y)
    rows, truth = (np.asarray(to_numpy(a), dtype=np.float64) for a in (rows, truth))
    resolved = as_kernel(kernel)
    if resolved.is_precomputed:
        raise ValueError("kernel='precomputed' has no parameters: give the kernel and the rows")
    choice("optimizer", optimizer, ("lbfgs", "adam"))
    if isinstance(over, str):
        raise TypeError(f"over={over!r} must be several names: write over=({over!r},)")
    weights = schedule(alphas, integer("steps", steps, 1))
    tunable = Tunable(resolved, rows.shape[1], tuple(over))
    objective = objective_of(
        (rows, truth),
        tunable,
        by,
        alphas=weights,
        sample_weight=sample_weight,
        intercept=intercept,
        tol=positive("tol", tol),
        seed=seed,
    )
    box = _box(tunable, lams, bounds, len(rows))
    search = _Search(objective, box, integer("iterations", iterations, 1))
    search.run(tunable.start, integer("starts", starts, 1), optimizer, seed)
    logs, loss = search.best
    best_kernel, lam = tunable.at(logs[:-1]), float(np.exp(logs[-1]))
    at_bound = search.at_bound(logs, tunable.labels)
    message = search.message + (f"; at a bound: {', '.join(at_bound)}" if at_bound else "")
    if at_bound:
        warnings.warn(
            f"{', '.join(at_bound)} ended at a bound: widen bounds= (lams= for lam) if more is meant",
            stacklevel=2,
        )
    fitted = fit(X, Y, best_kernel, lam, sample_weight=sample_weight, intercept=intercept)
    history = search.history([*tunable.labels, "lam"])
    return Tuned(best_kernel, lam, loss, fitted, history, message)


def _box(tunable: Tunable, lams: Any, bounds: Any, n: int) -> np.ndarray:
    """Logarithms (P + 1, 2) between which the search stays; the last are those of lam."""
    given = dict(bounds or {})
    known = {one.name for one in tunable.parameters}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"bounds has {unknown[0]!r}, which is not in over={sorted(known)}")
    box = np.stack([tunable.start - SPREAD, tunable.start + SPREAD], axis=1)
    first = 0
    for one in tunable.parameters:
        part = slice(first, first + len(one.start))
        first = part.stop
        if one.name in given:
            low, high = (positive(f"bounds[{one.name!r}]", value) for value in given[one.name])
            if not low < high:
                raise ValueError(
                    f"bounds[{one.name!r}]={given[one.name]} leave no room: low < high"
                )
            box[part] = np.log([low, high])
    grid = np.array([1e-8, 1.0]) * n if lams is None else lam_grid("lams", lams)
    return np.vstack([box, np.log([grid.min(), grid.max()])])


class _Search:
    """Evaluations of an objective, and the best of them."""

    def __init__(self, objective: Objective, box: np.ndarray, iterations: int) -> None:
        self.objective, self.box, self.iterations = objective, box, iterations
        self.best: tuple[np.ndarray, float] = (box.mean(axis=1), np.inf)
        self.message = ""
        self._seen: list[tuple[int, np.ndarray, float]] = []
        self._start = 0

    def run(self, first: np.ndarray, starts: int, optimizer: str, seed: int) -> None:
        """All starts: the kernel's own numbers, then random ones."""
        rng = np.random.default_rng(seed)
        for self._start in range(starts):
            logs = (
                first if self._start == 0 else first + rng.uniform(-1, 1, len(first)) * np.log(10)
            )
            logs = np.clip(logs, *self.box[:-1].T)
            logs = np.append(logs, self._first_lam(logs))
            before = self.best[1]
            message = (self._lbfgs if optimizer == "lbfgs" else self._adam)(logs)
            if self.best[1] < before or not self.message:
                self.message = message
        if not np.isfinite(self.best[1]):
            raise ValueError(
                "the loss is finite nowhere on the way: raise the smallest of lams, or narrow bounds"
            )

    def at_bound(self, logs: np.ndarray, labels: Sequence[str]) -> list[str]:
        """Parameters that ended at a bound; a lam that was given is none."""
        ends = np.isclose(logs[:, None], self.box, rtol=0, atol=AT_BOUND).any(axis=1)
        ends &= self.box[:, 0] < self.box[:, 1]
        return [label for label, end in zip([*labels, "lam"], ends, strict=True) if end]

    def history(self, labels: Sequence[str]) -> xr.Dataset:
        """Every evaluation."""
        import xarray as xr  # a third of a second

        starts, logs, losses = zip(*self._seen, strict=True)
        return xr.Dataset(
            {
                "loss": ("evaluation", np.array(losses), {"long_name": "what is minimised"}),
                "start": ("evaluation", np.array(starts)),
                "value": (("evaluation", "parameter"), np.exp(np.array(logs))),
            },
            coords={"parameter": list(labels)},
        )

    def _first_lam(self, logs: np.ndarray) -> float:
        """The best of a few lam for the kernel of a start."""
        low, high = self.box[-1]
        grid = np.linspace(low, high, FIRST_LAMS if high > low else 1)
        losses = self.objective.losses(logs, np.exp(grid))
        return float(grid[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))])

    def _evaluate(self, logs: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = self.objective.slope(logs[:-1], float(np.exp(logs[-1])))
        self._seen.append((self._start, logs.copy(), loss))
        if loss < self.best[1]:
            self.best = (logs.copy(), loss)
        return loss, slope

    def _lbfgs(self, logs: np.ndarray) -> str:
        from scipy.optimize import minimize

        scale = [0.0]  # of the loss, so that tolerances are relative

        def relative(x: np.ndarray) -> tuple[float, np.ndarray]:
            loss, slope = self._evaluate(x)
            scale[0] = scale[0] or (abs(loss) if np.isfinite(loss) and loss else 1.0)
            if not np.isfinite(loss):
                return 1e6, np.zeros_like(x)
            return loss / scale[0], slope / scale[0]

        options = {"maxiter": self.iterations, "ftol": 1e-9, "gtol": 1e-6}
        search: Any = minimize  # whose stubs know no function that gives both
        found = search(
            relative, logs, jac=True, method="L-BFGS-B", bounds=self.box, options=options
        )
        return str(found.message)

    def _adam(self, logs: np.ndarray) -> str:
        import torch

        x = torch.tensor(logs, dtype=torch.float64, requires_grad=True)
        stepper = torch.optim.Adam([x], lr=RATE)
        low, high = (torch.tensor(end) for end in self.box.T)
        for _ in range(self.iterations):
            loss, slope = self._evaluate(x.detach().numpy().copy())
            if not np.isfinite(loss):
                return "ended where the loss is not finite"
            x.grad = torch.tensor(slope)
            stepper.step()
            with torch.no_grad():
                x.clamp_(low, high)
        self._evaluate(x.detach().numpy().copy())
        return f"{self.iterations} steps of Adam"
