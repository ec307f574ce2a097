"""What a kernel is learned by: a loss of its parameters and lam, and its gradient in their logarithms."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np

from sdgpu.backend.arrays import targets
from sdgpu.backend.backends import TorchBackend, to_numpy
from sdgpu.backend.checks import choice
from sdgpu.backend.progress import Stopwatch
from sdgpu.engine.planning import plan
from sdgpu.engine.training_data import row_weighting
from sdgpu.kernels import Kernel
from sdgpu.kernels.kernel_matrices import cross, gram
from sdgpu.kernels.row_preparation import ready_rows
from sdgpu.kernels.tunable import Tunable
from sdgpu.operators import TiledOperator
from sdgpu.selection.kernel_losses import (
    LOSSES,
    JudgedChain,
    KernelSlope,
    dense_slope,
    validation_slope,
)
from sdgpu.solvers.cg import CG
from sdgpu.solvers.preconditioners import pivoted_cholesky

__all__ = ["DENSE_ROWS", "Objective", "objective_of"]

DENSE_ROWS = 6000  # up to which n x n matrices are made: some 3 GB


class Objective(Protocol):
    """A loss and its gradient."""

    def slope(self, logs: np.ndarray, lam: float) -> tuple[float, np.ndarray]:
        """The loss, inf where there is none, and its derivatives (P + 1,) by the logarithms of all."""

    def losses(self, logs: np.ndarray, lams: np.ndarray) -> np.ndarray:
        """The losses of several lam, (L,)."""


def objective_of(
    data: tuple[np.ndarray, np.ndarray],
    tunable: Tunable,
    by: Any,
    *,
    alphas: np.ndarray,
    sample_weight: Any,
    intercept: bool,
    tol: float,
    seed: int,
) -> Objective:
    """The objective for a word, or for validation rows; errors as :func:`sdgpu.tune`."""
    import torch

    X, Y = (torch.from_numpy(np.ascontiguousarray(array)) for array in data)
    weighting = row_weighting(sample_weight, X, TorchBackend("cpu"), intercept=False)
    weights = None if weighting is None else weighting.roots**2
    if weights is not None and bool((weights == 0).any()):  # a row left out
        kept = weights > 0
        X, Y, weights = X[kept], Y[kept], weights[kept]
    chain = JudgedChain(Y, alphas, weights, intercept)
    if isinstance(by, str):
        choice("by", by, LOSSES)
        if by == "marginal" and len(alphas):
            raise ValueError("by='marginal' is of the ordinary fit: leave steps=1, or take 'loo'")
        if len(X) > DENSE_ROWS:
            raise ValueError(
                f"by={by!r} makes n x n matrices, up to {DENSE_ROWS:,} rows, not {len(X):,}: give "
                "validation rows, by=(X_val, Y_val), or fewer rows"
            )
        if len(X) < 2:
            raise ValueError(
                f"X has {len(X)} row with a weight: learning a kernel needs two or more"
            )
        return _OfMatrix(tunable, X, chain, by)
    if not isinstance(by, tuple) or len(by) != 2:
        raise TypeError(
            f"by={by!r} must be one of {', '.join(map(repr, LOSSES))} or validation rows (X_val, Y_val)"
        )
    X_val = np.asarray(to_numpy(by[0]), dtype=np.float64)
    if X_val.ndim != 2 or X_val.shape[1] != X.shape[1] or not np.isfinite(X_val).all():
        raise ValueError(
            f"by[0] must be finite rows (m, {X.shape[1]}), got shape {tuple(X_val.shape)}"
        )
    Y_val, _ = targets(by[1], "by[1]", rows=len(X_val), outputs=int(Y.shape[1]))
    if intercept or weights is not None:
        raise ValueError(
            "by=(X_val, Y_val) knows neither sample_weight nor an intercept: centre Y, or take by='loo'"
        )
    validation = tuple(
        torch.from_numpy(np.ascontiguousarray(to_numpy(a), dtype=np.float64))
        for a in (X_val, Y_val)
    )
    return _OfValidation(tunable, X, chain, validation, (tol, seed))


class _Sloped:
    """What the objectives share: derivatives by the kernel matrix become those by parameters."""

    def __init__(self, tunable: Tunable, X: Any, chain: JudgedChain) -> None:
        self.tunable, self.X, self.chain = tunable, X, chain

    def slope(self, logs: np.ndarray, lam: float) -> tuple[float, np.ndarray]:
        try:
            found = self._found(self.tunable.at(logs), lam)
        except (ArithmeticError, RuntimeError, ValueError) as error:
            if "definite" not in str(error) and "overflow" not in str(error):
                raise
            return np.inf, np.zeros(len(logs) + 1)
        total = self.tunable.slopes(logs, (self.X, self.X), found.rows, same=True)
        total = total + self._across(logs, found)
        return found.loss, np.append(total, lam * found.by_lam)

    def losses(self, logs: np.ndarray, lams: np.ndarray) -> np.ndarray:
        kernel, found = self.tunable.at(logs), []
        for lam in lams:
            try:
                found.append(self._loss(kernel, float(lam)))
            except (ArithmeticError, RuntimeError, ValueError):
                found.append(np.inf)
        return np.array(found)

    def _found(self, kernel: Kernel, lam: float) -> KernelSlope:
        raise NotImplementedError

    def _loss(self, kernel: Kernel, lam: float) -> float:
        return self._found(kernel, lam).loss

    def _across(self, logs: np.ndarray, found: KernelSlope) -> Any:
        return 0.0


class _OfMatrix(_Sloped):
    """A loss of `LOSSES` of the whole kernel matrix."""

    def __init__(self, tunable: Tunable, X: Any, chain: JudgedChain, name: str) -> None:
        super().__init__(tunable, X, chain)
        self._loss_of = LOSSES[name]
        self._made: tuple[Kernel | None, Any] = (None, None)

    def _matrix(self, kernel: Kernel) -> Any:
        if self._made[0] != kernel:
            self._made = (kernel, gram(kernel, ready_rows(kernel, self.X, self.X.mean(dim=0))))
        return self._made[1]

    def _found(self, kernel: Kernel, lam: float) -> KernelSlope:
        return dense_slope(self._loss_of, self._matrix(kernel), lam, self.chain)

    def _loss(self, kernel: Kernel, lam: float) -> float:
        import torch

        ridge = torch.tensor(lam, dtype=torch.float64)
        return float(self._loss_of(self._matrix(kernel), ridge, self.chain))


class _OfValidation(_Sloped):
    """The mean squared error at validation rows, by solves with the kernel matrix."""

    def __init__(
        self,
        tunable: Tunable,
        X: Any,
        chain: JudgedChain,
        validation: Any,
        accuracy: tuple[float, int],
    ) -> None:
        super().__init__(tunable, X, chain)
        self.validation, (self._tol, self._seed) = validation, accuracy

    def _found(self, kernel: Kernel, lam: float) -> KernelSlope:
        across = _Across(kernel, self.validation[0], self.X)
        return validation_slope(
            self._solver(kernel, lam), across, self.validation[1], lam, self.chain
        )

    def _across(self, logs: np.ndarray, found: KernelSlope) -> Any:
        assert found.cross is not None
        return self.tunable.slopes(logs, (self.validation[0], self.X), found.cross, same=False)

    def _solver(self, kernel: Kernel, lam: float) -> Any:
        """(K + lam)^-1 of columns: by a factor up to `DENSE_ROWS`, beyond by conjugate gradients."""
        import torch

        n = len(self.X)
        if n <= DENSE_ROWS:
            K = gram(kernel, ready_rows(kernel, self.X, self.X.mean(dim=0)))
            K.diagonal().add_(lam)
            factor = torch.linalg.cholesky(K)
            return lambda B: torch.cholesky_solve(B, factor)
        backend = TorchBackend("cpu")
        operator = TiledOperator(kernel, self.X, "float64")
        known = plan(n, int(self.X.shape[1]), 1, lam, method="cg", operator="tiled", device="cpu")
        sketch = pivoted_cholesky(
            operator, known.rank, backend, seed=self._seed, watch=Stopwatch(lambda: None)
        )
        solver = CG(backend, self._tol)

        def solve(B: Any) -> Any:
            found = solver.solve(
                lambda V: operator.matmat(V.T).T, B.T.contiguous(), lam, precondition=sketch.solve
            )
            worst = float(found.residuals.max(initial=0.0))
            if worst > self._tol:
                warnings.warn(
                    f"a solve ended at a relative residual of {worst:.0e}, above tol={self._tol:.0e}: the "
                    "gradient is no more accurate; raise the smallest of lams, or tol",
                    stacklevel=2,
                )
            return found.W.T

        return solve


class _Across:
    """kappa(X_val, X) and its transpose, times columns, a block of rows at a time."""

    def __init__(self, kernel: Kernel, X_val: Any, X: Any) -> None:
        centre = X.mean(dim=0)
        self.kernel = kernel
        self.new, self.rows = (ready_rows(kernel, rows, centre) for rows in (X_val, X))
        self.height = max(1, 2**22 // len(X))

    def _blocks(self) -> Any:
        for first in range(0, len(self.new), self.height):
            part = slice(first, min(first + self.height, len(self.new)))
            yield part, cross(self.kernel, self.new[part], self.rows, tile=256)

    def matmat(self, V: Any) -> Any:
        """(n, c) -> (m, c)."""
        import torch

        return torch.cat([block @ V for _, block in self._blocks()])

    def transposed(self, W: Any) -> Any:
        """(m, c) -> (n, c)."""
        return sum(block.T @ W[part] for part, block in self._blocks())
