"""What students are asked for: losses of a grid, and weights of their teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.checks import choice

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
        "weights" (teacher_lam, lam, alpha, teacher), which sum to 1, "mse" (teacher_lam, lam, alpha) on the
        rows that chose them, and "nested_mse" on rows that had no part in choosing them: each part of the
        rows with the weights of the others; NaN for fewer rows than two for each part. With an axis step
        more where there are several.
    """

    dataset: xr.Dataset

    @classmethod
    def of(
        cls, weights: np.ndarray, mse: np.ndarray, nested: np.ndarray, *, axes: tuple[Any, ...]
    ) -> TeacherWeights:
        """From arrays (L1, L2, A, T, M) and twice (L1, L2, A, T)."""
        variables = {
            "weights": ((*NAMES, "teacher"), weights),
            "mse": (NAMES, mse),
            "nested_mse": (NAMES, nested),
        }
        return cls(_dataset(variables, axes, mse.shape[-1]))

    def best(self, by: str = "mse") -> dict[str, Any]:
        """The point with the smallest loss: its coordinates, "mse", "nested_mse" and "weights" (M,).

        Parameters
        ----------
        by : {"mse", "nested_mse"}, default "mse"

        Raises
        ------
        ValueError
            For nested losses where there are none.
        """
        losses = self.dataset[choice("by", by, ("mse", "nested_mse"))]
        if bool(losses.isnull().all()):
            raise ValueError("nested_mse is NaN: it takes folds > 1, and two rows for each of them")
        point: dict[str, Any] = _best(self.dataset, by)
        at = {name: point[name] for name in map(str, losses.dims)}
        rest = {name: float(self.dataset[name].sel(at)) for name in ("mse", "nested_mse")}
        return {**point, **rest, "weights": self.dataset["weights"].sel(at).values}


def _dataset(variables: dict[str, Any], axes: tuple[Any, ...], steps: int) -> xr.Dataset:
    import xarray as xr

    coordinates = dict(zip(NAMES, (*axes, np.arange(1, steps + 1)), strict=True))
    dataset = xr.Dataset(variables, coords=coordinates)
    return dataset.squeeze("step", drop=True) if steps == 1 else dataset


def _best(dataset: xr.Dataset, by: str = "mse") -> dict[str, float]:
    losses = dataset[by]
    point = losses.isel(losses.argmin(dim=list(losses.dims)))
    found = {str(name): float(point[name]) for name in losses.dims}
    return {**found, by: float(point)}
