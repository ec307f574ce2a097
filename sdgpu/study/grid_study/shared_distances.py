"""Distances once for a data set and seed: kernels that differ in width and shape are functions of them.

Of wide rows the distances take as long as a decomposition: n^2 d operations beside some 9 n^3. Where d is
not far below n, and n^2 numbers are few, they are kept, and each kernel matrix is made from them and given
as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from sdgpu.kernels import Kernel, Precomputed
from sdgpu.kernels.augmented_rows import Rows, distance_rows, product, recompute_near
from sdgpu.kernels.kernel import Profile, set_zero_diagonal
from sdgpu.kernels.kernel_matrices import TILE, cross, gram
from sdgpu.study.grid_study.cells import Decomposition
from sdgpu.study.real_data.datasets import Split

__all__ = ["forget_distances", "share_distances"]

LARGEST = 4000  # rows
NARROW = 8  # d below n / NARROW: the distances are a small part


def share_distances(parts: Split, kernel: Kernel, job: Decomposition) -> tuple[Split, Kernel]:
    """The same problem with its kernel matrices in place of rows, where that saves time; else as it was.

    Cost: n^2 profiles of a kernel; the first one of a data set and seed n^2 d products, or absolute
    differences, and 8 n (n + m) bytes that stay until the next data set.
    """
    n, d = parts.X_train.shape
    exact = job.method.features is None and job.method.name in ("auto", "eigh")
    dense = job.method.operator in ("auto", "dense")
    factor = kernel.distance_factor
    if factor is None or not (exact and dense) or n > LARGEST or d < n / NARROW:
        return parts, kernel
    assert isinstance(kernel, Profile)
    blocks = _distances(_Key(parts, (job.data, job.seed)), factor[0])
    # profiles work in place, on a copy of the distances
    K, K_val, K_test = (
        np.asarray(kernel.profile(block * factor[1], None, None)) for block in blocks
    )
    return replace(parts, X_train=K, X_val=K_val, X_test=K_test), Precomputed()


class _Key:
    """Rows, told apart by what they were made from."""

    def __init__(self, parts: Split, source: Any) -> None:
        self.parts, self.source = parts, source

    def __hash__(self) -> int:
        return hash(self.source)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.source == other.source


@lru_cache(maxsize=2)
def _distances(key: _Key, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|x - x'|^2, or |x - x'|_1, of training, validation and test rows to the training rows."""
    parts = key.parts
    centre = parts.X_train.mean(axis=0)
    train, *others = (rows - centre for rows in (parts.X_train, parts.X_val, parts.X_test))
    if kind == "l1":
        kernel, ready = _AbsoluteDifferences(), [Rows(rows, rows) for rows in (train, *others)]
        between = [cross(kernel, rows, ready[0], tile=TILE) for rows in ready[1:]]
        return gram(kernel, ready[0]), between[0], between[1]
    left = distance_rows(train)
    ready = [left, *map(distance_rows, others)]
    found = [recompute_near(product(rows, left), rows, left) for rows in ready]
    own = (found[0] + found[0].T) / 2
    return set_zero_diagonal(own), found[1], found[2]


@dataclass(frozen=True)
class _AbsoluteDifferences(Profile):
    """|x - x'|_1 in the place of kernel values, that it is made as they are: compiled, on all cores."""

    statistic: ClassVar[str] = "l1"

    def rows(self, X: Any, centre: Any) -> Rows:
        values = X if centre is None else X - centre
        return Rows(values, values)

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return tile

    def diagonal(self, rows: Rows) -> Any:
        return np.zeros(len(rows))


def forget_distances() -> None:
    """Make them anew from here on."""
    _distances.cache_clear()
