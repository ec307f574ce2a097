"""The refit route: distillation as it is defined, step by step, one or many factorisations.

It is the oracle of the closed forms and the other side of the cost comparison.
"""

from __future__ import annotations

from typing import Any

from sdgpu.backend.arrays import pair
from sdgpu.backend.backends import Backend, resolve
from sdgpu.backend.checks import positive, schedule
from sdgpu.backend.memory import budget, require
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.recursion import recursion
from sdgpu.engine.model import Model
from sdgpu.engine.path import Path
from sdgpu.kernels import Kernel, as_kernel
from sdgpu.operators.dense import DenseOperator
from sdgpu.solvers.cholesky import Cholesky

__all__ = ["refit_path"]


@underflow_is_zero
def refit_path(
    X: Any,
    Y: Any,
    kernel: Kernel | str,
    *,
    lam: float,
    alphas: Any,
    steps: int,
    naive: bool = False,
    device: str | Backend = "auto",
    memory: int | float | str | None = None,
) -> Path:
    """Distil by refitting, the recursion (3)-(5).

    Parameters
    ----------
    X, Y, kernel
        As in :func:`sdgpu.fit`.
    lam : float
        Ridge of K + lam I, > 0.
    alphas : number, array (T - 1,) or (T - 1, c)
        Weights of steps 2..T.
    steps : int
        T.
    naive : bool, default False
        Make a new factorisation at every step, as calling a ridge solver T times does; otherwise
        one Cholesky factor serves all steps.
    device, memory
        As in :func:`sdgpu.fit`.

    Returns
    -------
    Path
        The same object that the closed form gives.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As :func:`sdgpu.fit`.

    Notes
    -----
    n^3 / 3 operations for a factor and 2 n^2 c for a step. It never makes a spectrum, so every lam
    pays again.

    References
    ----------
    Borup and Andersen (2021), equations (3)-(5).
    """
    rows, targets, template = pair(X, Y)
    lam = positive("lam", lam)
    weights = schedule(alphas, steps, outputs=int(targets.shape[1]))
    backend = resolve(device, rows)
    n = int(rows.shape[0])
    allowed = budget(memory, backend.name)
    require(Cholesky.peak_bytes(n), allowed, f"Cholesky at n = {n:,}", "use fewer rows")
    operator = DenseOperator(as_kernel(kernel), backend.asarray(rows), backend.tile)
    solver = Cholesky(backend)
    factor = None if naive else solver.factor(operator, lam)

    def solve(u: Any) -> Any:
        return (factor or solver.factor(operator, lam)).solve(u)

    xp = backend.xp
    device_weights = xp.asarray(weights, dtype=xp.float64, device=backend.device)
    chain = recursion(solve, backend.asarray(targets), lam, device_weights)
    return Path(lam, weights, chain, Model(operator, backend, template, allowed))
