"""Losses as functions of the kernel matrix, with their derivative by every entry of it: torch, in float64.

For K (n, n), targets Y and weights of rows w, all linear algebra is that of

    Q = (K + lam diag(1 / w))^-1, with an intercept less Q 1 1'Q / (1'Q 1),    H = 1 - lam diag(1 / w) Q,

and the steps of a chain are combinations of H Y, .., H^T Y (Theorem 4.1). Reverse differentiation of these
few products gives G = dL / dK, equal to the closed forms for step 1:

    leave-one-out    r_i = (Q Y)_i / Q_ii,     G = - sym(c v') + Q diag(g r / q) Q,
    marginal         (Y'Q Y - log det Q) / 2,  G = (Q - c c') / 2,   c = Q Y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sdgpu.distill.leave_one_out import leave_one_out
from sdgpu.distill.schedules import coefficients

__all__ = ["LOSSES", "JudgedChain", "KernelSlope", "dense_slope", "validation_slope"]


@dataclass(frozen=True, eq=False)
class JudgedChain:
    """What a kernel is judged by: targets, and the steps that are taken to them.

    Attributes
    ----------
    Y : tensor (n, c)
    alphas : array (T - 1,)
        Weights of steps 2 .. T.
    weights : tensor (n,) or None
        Of rows, > 0.
    intercept : bool
    """

    Y: Any
    alphas: np.ndarray
    weights: Any = None
    intercept: bool = False

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alphas) + 1

    def combination(self) -> Any:
        """Coefficients (T,) of H Y, .., H^T Y in step T, (6) and (7)."""
        import torch

        return torch.tensor(coefficients(self.alphas))


@dataclass(frozen=True, eq=False)
class KernelSlope:
    """A loss and its derivatives.

    Attributes
    ----------
    loss : float
    by_lam : float
        dL / d lam.
    rows : callable
        A slice of training rows to G of these, (b, n), symmetric as a whole.
    cross : callable or None
        A slice of validation rows to the derivative by kappa(x_val, X), (b, n).
    """

    loss: float
    by_lam: float
    rows: Callable[[slice], Any]
    cross: Callable[[slice], Any] | None = None


def dense_slope(
    loss: Callable[[Any, Any, JudgedChain], Any], K: Any, lam: float, chain: JudgedChain
) -> KernelSlope:
    """The slope of a loss of `LOSSES` at a kernel matrix (n, n), by reverse differentiation.

    Some ten products of n x n matrices, and as many matrices in memory; 2 T more for later steps.

    Raises
    ------
    LinAlgError
        If K + lam is not positive definite in float64.
    """
    import torch

    K = K.detach().clone().requires_grad_()
    ridge = torch.tensor(lam, dtype=torch.float64, requires_grad=True)
    value = loss(K, ridge, chain)
    by_matrix, by_lam = torch.autograd.grad(value, (K, ridge))
    G = (by_matrix + by_matrix.T) / 2
    return KernelSlope(value.item(), by_lam.item(), lambda part: G[part])


def _inverse(K: Any, ridge: Any, chain: JudgedChain) -> tuple[Any, Any, Any]:
    """Q, diag(1 / w), and log det(K + lam / w)."""
    import torch

    ones = K.new_ones(len(K))
    shares = ones if chain.weights is None else 1.0 / chain.weights
    Q, log_determinant = _inverse_of()(K, ridge * shares)
    if chain.intercept:
        column = Q.sum(dim=1)
        Q = Q - torch.outer(column, column) / column.sum()
    return Q, shares, log_determinant


@cache
def _inverse_of() -> Callable[[Any, Any], tuple[Any, Any]]:
    """(K, diagonal) to (K + diag)^-1 and its log determinant, whose derivative is two products.

    - Q g Q + g' Q, where torch would go back through the factor, in three times as long.
    """
    import torch

    class Inverse(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, K: Any, diagonal: Any) -> tuple[Any, Any]:
            factor = torch.linalg.cholesky(K + torch.diag(diagonal))
            Q = torch.cholesky_inverse(factor)
            context.save_for_backward(Q)
            return Q, 2 * torch.log(torch.diagonal(factor)).sum()

        @staticmethod
        def backward(context: Any, by_inverse: Any, by_logarithm: Any) -> tuple[Any, Any]:
            (Q,) = context.saved_tensors
            total = by_logarithm * Q
            if bool(by_inverse.any()):
                total = total - Q @ by_inverse @ Q
            return total, torch.diagonal(total)

    return Inverse.apply


def _powers(Q: Any, ridge: Any, shares: Any, chain: JudgedChain) -> tuple[Any, Any, Any]:
    """H^q Y (T + 1, n, c) and diag(H^q) (T + 1, n, 1) for q = 0 .. T, and 1 - diag(H) by its own sum."""
    import torch

    scaled = (ridge * shares)[:, None]
    complement = (scaled[:, 0] * torch.diagonal(Q))[:, None]
    fitted, diagonal = [chain.Y], [torch.ones_like(complement), 1 - complement]
    for _ in range(chain.steps):
        fitted.append(fitted[-1] - scaled * (Q @ fitted[-1]))
    if chain.steps > 1:
        H = torch.eye(len(Q), dtype=Q.dtype, device=Q.device) - scaled * Q
        power = H
        for _ in range(chain.steps - 1):
            power = power @ H
            diagonal.append(torch.diagonal(power)[:, None])
    return torch.stack(fitted), torch.stack(diagonal), complement


def _mean_square(errors: Any, chain: JudgedChain) -> Any:
    squares = (errors * errors).mean(dim=1)
    if chain.weights is None:
        return squares.mean()
    return (chain.weights * squares).sum() / chain.weights.sum()


def _leave_one_out(K: Any, ridge: Any, chain: JudgedChain) -> Any:
    """Mean squared error of step T at each row, of the chain without that row."""
    Q, shares, _ = _inverse(K, ridge, chain)
    fitted, diagonal, complement = _powers(Q, ridge, shares, chain)
    steps = leave_one_out(fitted[None], diagonal[None], complement[None])[0]
    weights = chain.combination()[:, None, None]
    return _mean_square((weights * steps).sum(dim=0) - chain.Y, chain)


def _gcv(K: Any, ridge: Any, chain: JudgedChain) -> Any:
    """||Y - S Y||^2 / n / (1 - tr S / n)^2 of the smoother S of step T."""
    Q, shares, _ = _inverse(K, ridge, chain)
    fitted, diagonal, _ = _powers(Q, ridge, shares, chain)
    weights = chain.combination()[:, None, None]
    residuals = chain.Y - (weights * fitted[1:]).sum(dim=0)
    complement = 1 - (weights[:, 0] * diagonal[1:].mean(dim=1)).sum()
    return _mean_square(residuals, chain) / complement**2


def _marginal(K: Any, ridge: Any, chain: JudgedChain) -> Any:
    """- log of the density of Y under a Gaussian process with noise lam, over n c, less its constant."""
    Q, _, log_determinant = _inverse(K, ridge, chain)
    Y = chain.Y
    quadratic = (Y * (Q @ Y)).sum() / Y.shape[1]
    return (quadratic + log_determinant) / (2 * len(K))


#: Losses of a kernel matrix, by the word that asks for them.
LOSSES: dict[str, Callable[[Any, Any, JudgedChain], Any]] = {
    "loo": _leave_one_out,
    "gcv": _gcv,
    "marginal": _marginal,
}


def validation_slope(
    solve: Callable[[Any], Any], cross: Any, Y_val: Any, lam: float, chain: JudgedChain
) -> KernelSlope:
    """The slope of the mean squared error of step T at validation rows, by adjoint solves.

    With C_t = (K + lam)^-1 u_t the chain is run backwards: one solve with the same matrix for each step,
    and G = - sym(sum_t L_t C_t') has rank 2 T c at the most.

    Parameters
    ----------
    solve : callable
        (K + lam)^-1 of columns (n, c).
    cross : object with `matmat` and `transposed`
        kappa(X_val, X), and its transpose, times columns.
    Y_val : tensor (m, c)
    lam : float
    chain : JudgedChain
        Without weights and intercept.

    Notes
    -----
    2 T solves and two products with the cross matrix.
    """
    Y, alphas = chain.Y, [1.0, *chain.alphas]
    duals, fitted = [], None
    for alpha in alphas:
        u = Y if fitted is None else alpha * Y + (1 - alpha) * fitted
        duals.append(solve(u))
        fitted = u - lam * duals[-1]
    errors = cross.matmat(duals[-1]) - Y_val
    by_prediction = 2 * errors / errors.numel()
    adjoint, by_lam = cross.transposed(by_prediction), 0.0
    adjoints: list[Any] = [None] * len(alphas)
    carried = None  # derivative by the targets of the step after, of predictions of this one
    for t in reversed(range(len(alphas))):
        if carried is not None:
            adjoint = -lam * carried
            by_lam -= (carried * duals[t]).sum().item()
        adjoints[t] = solve(adjoint)
        by_lam -= (adjoints[t] * duals[t]).sum().item()
        by_targets = adjoints[t] if carried is None else adjoints[t] + carried
        carried = (1 - alphas[t]) * by_targets if t else None

    def rows(part: slice) -> Any:
        pairs = list(zip(adjoints, duals, strict=True))
        total = sum(L[part] @ C.T + C[part] @ L.T for L, C in pairs)
        return -total / 2

    return KernelSlope(
        (errors * errors).mean().item(),
        by_lam,
        rows,
        lambda part: by_prediction[part] @ duals[-1].T,
    )
