"""What students are asked for: losses of a grid, and weights of their teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["StudentSweep", "TeacherWeights"]

NAMES = ("teacher_lam", "lam", "alpha", "step")


@dataclass(frozen=True, eq=False)
class StudentSweep:
    """Losses of a grid of students.

    Attributes
    ----------
    dataset : xarray.Dataset
        "mse" (teacher_lam, lam, alpha), with an axis step more where there are several; "alpha_star" and
        "star_mse" (teacher_lam, lam), the best weight of step 1 (equation (16)) and its loss.
    """

    dataset: xr.Dataset

    @classmethod
    def of(
        cls, mse: np.ndarray, star: np.ndarray, star_mse: np.ndarray, *, axes: tuple[Any, ...]
    ) -> StudentSweep:
        """From arrays (L1, L2, A, T), (L1, L2) and (L1, L2)."""
        variables = {
            "mse": (NAMES, mse),
            "alpha_star": (NAMES[:2], star),
            "star_mse": (NAMES[:2], star_mse),
        }
        return cls(_dataset(variables, axes, mse.shape[-1]))

    def best(self) -> dict[str, float]:
        """The point with the smallest loss: its coordinates and "mse"."""
        return _best(self.dataset)


@dataclass(frozen=True, eq=False)
class TeacherWeights:
    """Weights of the teachers of every student of a grid.

    Attributes
    ----------
    dataset : xarray.Dataset
        "weights" (teacher_lam, lam, alpha, teacher), which sum to 1, and "mse" (teacher_lam, lam, alpha),
        with an axis step more where there are several.
    """

    dataset: xr.Dataset

    @classmethod
    def of(cls, weights: np.ndarray, mse: np.ndarray, *, axes: tuple[Any, ...]) -> TeacherWeights:
        """From arrays (L1, L2, A, T, M) and (L1, L2, A, T)."""
        variables = {"weights": ((*NAMES, "teacher"), weights), "mse": (NAMES, mse)}
        return cls(_dataset(variables, axes, mse.shape[-1]))

    def best(self) -> dict[str, Any]:
        """The point with the smallest loss: its coordinates, "mse" and "weights" (M,)."""
        point: dict[str, Any] = _best(self.dataset)
        at = {name: value for name, value in point.items() if name != "mse"}
        return {**point, "weights": self.dataset["weights"].sel(at).values}


def _dataset(variables: dict[str, Any], axes: tuple[Any, ...], steps: int) -> xr.Dataset:
    import xarray as xr

    coordinates = dict(zip(NAMES, (*axes, np.arange(1, steps + 1)), strict=True))
    dataset = xr.Dataset(variables, coords=coordinates)
    return dataset.squeeze("step", drop=True) if steps == 1 else dataset


def _best(dataset: xr.Dataset) -> dict[str, float]:
    mse = dataset["mse"]
    point = mse.isel(mse.argmin(dim=list(mse.dims)))
    found = {str(name): float(point[name]) for name in mse.dims}
    return {**found, "mse": float(point)}
