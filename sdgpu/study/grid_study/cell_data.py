"""What a cell is made of: its rows, kernel, features, targets with noise, and lam of every step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

import sdgpu
from sdgpu.backend.rounding import mean_and_spread
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import Features
from sdgpu.study.grid_study.cells import Cell, Decomposition, KernelPoint, MethodPoint
from sdgpu.study.grid_study.configuration import DataTable
from sdgpu.study.grid_study.shared_distances import forget_distances
from sdgpu.study.real_data.datasets import Dataset, Split, load, sample, split
from sdgpu.study.real_data.large_data import LargeData, load_large
from sdgpu.study.theory.noise import gaussian, symmetric

__all__ = [
    "features_of",
    "forget_data",
    "kernel_of",
    "lams_by_step",
    "load_data",
    "noise_deviation",
    "noisy_targets",
    "some_rows",
    "split_of",
]


@lru_cache(maxsize=2)
def load_data(table: DataTable) -> Dataset:
    """All rows of a data set."""
    how = table.model_dump(exclude={"source", "target", "rows", "validation", "test"})
    return load(table.path, table.target, **how)


@lru_cache(maxsize=2)
def split_of(table: DataTable, seed: int) -> Split | LargeData:
    """Training, validation and test rows of a seed, standardised."""
    if table.is_large:
        return load_large(table.source, rows=table.rows, seed=seed)
    data = sample(load_data(table), table.rows, seed)
    return split(data, validation=table.validation, test=table.test, seed=seed)


@lru_cache(maxsize=2)
def _median_distance(table: DataTable, seed: int) -> float:
    return sdgpu.median_distance(some_rows(split_of(table, seed)))


def forget_data() -> None:
    """Read data anew from here on: files may have changed since an earlier run of this process."""
    for cached in (load_data, split_of, _median_distance):
        cached.cache_clear()
    forget_distances()


def some_rows(parts: Split | LargeData) -> np.ndarray:
    """The training rows, or the sample that came with rows that are read in blocks."""
    return parts.sample if isinstance(parts, LargeData) else parts.X_train


def kernel_of(point: KernelPoint, table: DataTable, seed: int) -> Kernel:
    """The kernel, its width in units of the median distance of training rows where it is given so."""
    parameters: dict[str, Any] = dict(point.parameters)
    width = parameters.pop("width_over_median", None)
    if width is not None:
        length = width * _median_distance(table, seed)
        of_width = {"gaussian": 0.5 / length**2, "laplacian": 1 / length}
        parameters["gamma" if point.name in of_width else "lengthscale"] = of_width.get(
            point.name, length
        )
    if point.name == "wendland":
        parameters["dimension"] = some_rows(split_of(table, seed)).shape[1]
    return KERNEL_CLASSES[point.name](**parameters)


KERNEL_CLASSES: dict[str, Callable[..., Kernel]] = {
    "gaussian": sdgpu.Gaussian,
    "laplacian": sdgpu.Laplacian,
    "matern": sdgpu.Matern,
    "rationalquadratic": sdgpu.RationalQuadratic,
    "periodic": sdgpu.Periodic,
    "wendland": sdgpu.Wendland,
    "polynomial": sdgpu.Polynomial,
    "linear": sdgpu.Linear,
    "cosine": sdgpu.Cosine,
    "tanimoto": sdgpu.Tanimoto,
    "arccosine": sdgpu.ArcCosine,
    "nngp": sdgpu.NNGP,
    "ntk": sdgpu.NTK,
}


def features_of(
    method: MethodPoint, kernel: Kernel, seed: int, *, pick_from: np.ndarray | None = None
) -> Features | None:
    """Features of a method, None where it has none; landmarks of other rows than the training rows."""
    if method.features is None:
        return None
    if method.features == "own":
        return sdgpu.Explicit()
    assert method.size is not None
    if method.features == "fourier":
        return sdgpu.RandomFourier(method.size)
    recipe = sdgpu.Nystrom(method.size, method.landmarks)
    if pick_from is None:
        return recipe
    rows = np.asarray(pick_from, dtype=np.float64)
    return sdgpu.Nystrom(landmarks=recipe.prepare(kernel, rows, rows.shape[1], seed).landmarks)


def lams_by_step(job: Decomposition, lams: np.ndarray) -> np.ndarray:
    """lam (L,) of the grid, or those of every step (L, T) where later ones have others."""
    if job.method.later_lam == 1:
        return lams
    factors = np.full(job.config.grid.steps, job.method.later_lam)
    factors[0] = 1.0
    return lams[:, None] * factors


def noisy_targets(parts: Split | LargeData, job: Decomposition, cell: Cell) -> tuple[Any, Any]:
    """Training and validation targets with the noise of a cell."""
    if isinstance(parts, LargeData):
        return None, parts.Y_val
    if cell.noise == 0:
        return parts.Y_train, parts.Y_val
    draws = np.random.default_rng([job.seed, 1]), np.random.default_rng([job.seed, 2])
    both = zip((parts.Y_train, parts.Y_val), draws, strict=True)
    if job.config.noise.kind == "symmetric":
        noisy = [symmetric(Y, cell.noise, draw).Y for Y, draw in both]
    else:
        noisy = [gaussian(Y, draw, std=noise_deviation(parts, cell)).Y for Y, draw in both]
    return noisy[0], noisy[1]


def noise_deviation(parts: Split, cell: Cell) -> float:
    """Standard deviation of the noise of a cell."""
    return cell.noise * float(np.sqrt(np.mean(mean_and_spread(parts.Y_train)[1] ** 2)))
