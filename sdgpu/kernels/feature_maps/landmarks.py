"""Landmarks for Nystrom features: rows that stand for all others.

References
----------
Chen, Epperly, Tropp and Webber (2023), randomly pivoted Cholesky; Epperly, Tropp and Webber (2024), in
blocks with rejection; Arthur and Vassilvitskii (2007), k-means++.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from sdgpu.backend.arrays import slices
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.kernel import Kernel, column_means
from sdgpu.kernels.kernel_matrices import TILE, cross
from sdgpu.kernels.row_preparation import ready_rows

__all__ = ["kmeans_centres", "random_pivots", "uniform_rows"]

BLOCK = 128  # pivots that are proposed at once
EXHAUSTED = 1e-13  # share of the trace at which the sample is explained, to rounding
ITERATIONS = 20  # of Lloyd, which settles the shape long before the last digit
NUMBERS = 2**21  # of a block of distances


def random_pivots(kernel: Kernel, X: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Rows picked with probability proportional to what those before leave of kappa(x, x).

    Blocks of pivots are proposed from the residual diagonal as it was, and each is kept with the
    probability that its residual has by then: the rows are distributed as if picked one by one.

    Parameters
    ----------
    kernel : Kernel
    X : array (s, d)
        The rows to choose from.
    count : int
        k, at most s.
    seed : int

    Returns
    -------
    array (k',)
        Indices in the order of the picks; fewer than k where they explain the sample to rounding.

    Notes
    -----
    s k kernel values and s k^2 multiplications; s k doubles.
    """
    rng = np.random.default_rng(seed)
    rows = ready_rows(kernel, X, column_means(X))
    residual = np.maximum(np.asarray(kernel.diagonal(rows), dtype=np.float64), 0.0)
    trace, pivots = float(residual.sum()), np.empty(0, dtype=np.int64)
    factor = np.empty((count, len(X)))  # F with K ~ F'F
    while len(pivots) < count and residual.sum() > EXHAUSTED * trace:
        size = len(pivots)
        probabilities = residual / residual.sum()
        proposals = rng.choice(len(X), min(BLOCK, count - size), p=probabilities)
        F = factor[:size]
        core = _between(kernel, rows, proposals) - F[:, proposals].T @ F[:, proposals]
        kept = _accepted(core, residual[proposals], rng)
        if not kept.size:  # rounding is all that is left of these
            residual[proposals] = 0.0
            continue
        chosen = proposals[kept]
        lower = np.linalg.cholesky(core[np.ix_(kept, kept)])
        columns = _to_all(kernel, rows, chosen, pairs=count * len(X)) - F[:, chosen].T @ F
        new = scipy.linalg.solve_triangular(lower, columns, lower=True, check_finite=False)
        factor[size : size + len(chosen)] = new
        residual = np.maximum(residual - np.einsum("ij,ij->j", new, new), 0.0)
        residual[chosen] = 0.0
        pivots = np.concatenate([pivots, chosen])
    return pivots


def _accepted(core: np.ndarray, proposed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which of a block of proposals to keep: entry i with the share of its residual that is left.

    `core` (b, b) is the residual of K at the proposals, `proposed` (b,) their residuals when
    they were drawn.
    """
    H, kept = core.copy(), []
    for i, draw in enumerate(rng.random(len(H))):
        if H[i, i] <= 0 or draw * proposed[i] >= H[i, i] or H[i, i] < 1e-12 * core[i, i]:
            continue
        kept.append(i)
        column = H[:, i] / np.sqrt(H[i, i])
        H -= np.outer(column, column)
    return np.array(kept, dtype=np.int64)


def _between(kernel: Kernel, rows: Rows, some: np.ndarray) -> np.ndarray:
    """kappa of some rows with each other."""
    part = _take(rows, some)
    return np.asarray(kernel.tile(part, part), dtype=np.float64)


def _to_all(kernel: Kernel, rows: Rows, some: np.ndarray, *, pairs: int) -> np.ndarray:
    """kappa of some rows with all, which are a part of so many `pairs`: (len(some), n)."""
    values = cross(kernel, _take(rows, some), rows, tile=TILE, pairs=pairs)
    return np.asarray(values, dtype=np.float64)


def _take(rows: Rows, indices: np.ndarray) -> Rows:
    """Ready rows by number: slices make views, and pivots are no slice."""

    def pick(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array[indices]

    parts = tuple(_take(part, indices) for part in rows.parts)
    return Rows(pick(rows.left), pick(rows.right), pick(rows.norms), parts, rows.far)


def kmeans_centres(X: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Centres (k, d) by k-means++ and Lloyd's iterations; fewer for fewer different rows.

    s k d multiplications an iteration.
    """
    rng = np.random.default_rng(seed)
    X = np.asarray(X, dtype=np.float64)
    offset, scale = X.mean(axis=0), float(np.abs(X).max()) or 1.0
    rows = (X - offset) / scale
    centres = _seeded(rows, count, rng)
    previous = np.inf
    for _ in range(ITERATIONS):
        nearest, distances = _nearest(rows, centres)
        members = np.bincount(nearest, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, rows)
        centres = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], centres)
        total = float(distances.sum())
        if not total < previous * (1 - 1e-3):
            break
        previous = total
    return centres * scale + offset


def _seeded(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: each centre with probability proportional to its squared distance to those before."""
    squares = np.einsum("ij,ij->i", rows, rows)
    chosen = [int(rng.integers(len(rows)))]
    left = np.full(len(rows), np.inf)
    while True:
        last = rows[chosen[-1]]
        distance = np.maximum(squares - 2 * (rows @ last) + last @ last, 0.0)
        distance[distance < 1e-14 * (squares + last @ last)] = 0.0
        left = np.minimum(left, distance)
        if len(chosen) == count or not left.sum() > 0:
            return rows[chosen]
        chosen.append(int(rng.choice(len(rows), p=left / left.sum())))


def _nearest(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each row, and its squared distance."""
    squares = np.einsum("ij,ij->i", centres, centres)
    nearest, distances = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
    for part in slices(len(rows), max(1, NUMBERS // len(centres))):
        block = rows[part]
        distance = squares - 2 * (block @ centres.T)
        nearest[part] = distance.argmin(axis=1)
        least = distance[np.arange(len(block)), nearest[part]]
        distances[part] = np.maximum(least + np.einsum("ij,ij->i", block, block), 0.0)
    return nearest, distances


def uniform_rows(count: int, rows: int, *, seed: int) -> np.ndarray:
    """Indices of `count` of the rows, each as likely as any other."""
    return np.sort(np.random.default_rng(seed).choice(rows, min(count, rows), replace=False))
