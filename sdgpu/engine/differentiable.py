"""Predictions that torch differentiates by the new rows: imported where a tensor asks for it."""

from __future__ import annotations

from typing import Any

import torch

from sdgpu.kernels.derivatives import require_finite
from sdgpu.operators.slopes import Slopes

__all__ = ["attached"]


class _Prediction(torch.autograd.Function):
    """Values that are known already, and how they change with the rows."""

    @staticmethod
    def forward(
        ctx: Any, X: torch.Tensor, values: torch.Tensor, slopes: Slopes, *rest: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(X)
        ctx.slopes, (ctx.columns, ctx.behind) = slopes, rest
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (X,), gradient = ctx.saved_tensors, gradients[0].detach().to(torch.float64)
        # (.., m, c), or (.., m) of flat targets, to (m, .. c)
        axis = gradient.ndim - ctx.behind
        columns = gradient.movedim(axis, 0).reshape(len(X), int(ctx.columns[0].shape[1]))
        coefficients, size = ctx.columns
        found = size * ctx.slopes.pull_back(coefficients, columns)
        found = require_finite(found, "the prediction").to(dtype=X.dtype, device=X.device)
        if torch.is_grad_enabled():  # create_graph=True: a constant would be silently wrong
            found = _FirstDerivative.apply(found, X, gradients[0])
        return found, None, None, None, None


class _FirstDerivative(torch.autograd.Function):
    """A derivative that says so when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, derivative: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        return derivative.view_as(derivative)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            "predictions are differentiated once: for second derivatives take path.predictor().module(), "
            "which is plain torch"
        )


def attached(
    X: torch.Tensor, values: torch.Tensor, slopes: Slopes, columns: tuple[Any, float], *, flat: bool
) -> torch.Tensor:
    """The values of predictions at X with a graph behind them, of first order: torch refuses a second.

    Parameters
    ----------
    X : tensor (m, d)
        Requires a gradient.
    values : tensor (.., m, c), or (.., m) if `flat`
    slopes : Slopes
        Of the rows X.
    columns : pair
        Coefficients (n, .. c), and what they are multiples of.
    flat : bool
    """
    return _Prediction.apply(X, values, slopes, columns, 1 if flat else 2)
