"""The best point of a grid: of all outputs or of each, the very best or the simplest that is as good."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

__all__ = ["Best", "best_of_each", "simplest_within"]


@dataclass(frozen=True, eq=False)
class Best:
    """The best point of a sweep, or of each output of it. Two are equal if all their numbers are.

    Of a choice per output the numbers are arrays (c,).

    Attributes
    ----------
    lam : float or array (step,)
        Of all steps, or of each.
    alpha : float or array (step - 1,)
        The fixed weight, or the weights of steps 2..step of a chosen chain; NaN at step 1, which has
        no weight.
    step : float
        The distillation step; infinite for the limit.
    mse : float
        Its mean squared validation error; NaN where none is known, as for GCV without validation data.
    criterion : str
        The variable of the dataset that chose it: "mse", "star_mse", "gcv", "accuracy", ..
    value : float
        That variable there.
    """

    lam: Any
    alpha: Any
    step: Any
    mse: Any
    criterion: str = "mse"
    value: Any = np.nan

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Best):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(
            a == b if isinstance(a, str) else np.array_equal(a, b, equal_nan=True) for a, b in pairs
        )

    def __hash__(self) -> int:
        numbers = (np.asarray(one, dtype=np.float64).tobytes() for one in (self.lam, self.step))
        return hash((*numbers, self.criterion))

    @property
    def per_output(self) -> bool:
        """Whether each output has a choice of its own."""
        return np.ndim(self.step) == 1


def simplest_within(
    losses: np.ndarray, errors: np.ndarray, lams: np.ndarray, *, steps: bool
) -> tuple[int, ...]:
    """The most regularised point whose loss is within one standard error of the smallest.

    The largest lam with such a point; of its points those of the fewest steps, and of these the one of
    the smallest loss (Breiman, Friedman, Olshen and Stone 1984).

    Parameters
    ----------
    losses : array (L, ..), or (L, A, T) with `steps`
        NaN where there is none.
    errors : array like losses
        Standard errors, of which that of the smallest loss counts.
    lams : array (L,)
        In any order.
    steps : bool
        Whether the last axis are steps.

    Raises
    ------
    ValueError
        If the best has no finite standard error.
    """
    best = np.unravel_index(np.nanargmin(losses), losses.shape)
    if not np.isfinite(errors[best]):
        raise ValueError(
            "the best point has no finite standard error (of one row there is none): choose without "
            "one_standard_error"
        )
    near = losses <= losses[best] + errors[best]  # a comparison with NaN is false
    rows = near.reshape(len(lams), -1).any(axis=1)
    near[lams < lams[rows].max()] = False
    if steps:
        near &= np.cumsum(near.any(axis=(0, 1))) == 1
    found = np.unravel_index(np.argmin(np.where(near, losses, np.inf)), losses.shape)
    return tuple(int(index) for index in found)


def best_of_each(losses: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where each output (L, A, T, c) has its smallest loss: three arrays (c,).

    Raises
    ------
    ValueError
        If an output has none.
    """
    flat = losses.reshape(-1, losses.shape[-1])
    empty = np.flatnonzero(np.isnan(flat).all(axis=0))
    if len(empty):
        raise ValueError(f"every loss of output {empty[0]} of this sweep is NaN")
    return tuple(np.unravel_index(np.nanargmin(flat, axis=0), losses.shape[:-1]))
