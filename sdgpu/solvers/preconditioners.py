"""A low-rank sketch of K, built once and shared by every lam.

Randomly pivoted Cholesky picks rows with probability proportional to what the sketch has not yet
explained of the diagonal: K ~ F'F with F (r, n), from r columns of K and n r^2 multiplications.

P_lam = F'F + lam I is then inverted for every lam by the small eigendecomposition of F F'. F is
float32: a preconditioner need not be exact, and it is half the memory and half the time.

References
----------
Chen, Epperly, Tropp and Webber (2023), randomly pivoted Cholesky; Frangella, Tropp and Udell (2023) for
preconditioning by such sketches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, backend_of, to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.rates import Rates
from sdgpu.operators.operator import Operator

__all__ = ["Sketch", "pivoted_cholesky"]

TOP = 128  # eigenvectors that are kept in float64
BLOCK = 128  # pivots drawn at once
OUTER = 512  # rows of a block of F F'
DROP = 1e-5  # relative size below which a pivot of a block is a repetition of the others
EXHAUSTED = 1e-7  # share of the trace at which K is explained
ROUNDED = 1e-6  # share of an entry of the diagonal that float32 may leave of it


@dataclass(frozen=True, eq=False)
class Sketch:
    """K ~ F'F of rank r.

    Attributes
    ----------
    F : array (r, n), float32
    eigenvalues : array (r,)
        Of F F', ascending.
    vectors : array (r, r)
        Their eigenvectors.
    tail : float
        Trace of K - F'F, what the sketch leaves out.
    top : array (t, n), float64
        Orthonormal eigenvectors of F'F with the largest eigenvalues, the last t of `eigenvalues`.
    """

    F: Any
    eigenvalues: Any
    vectors: Any
    tail: float
    top: Any

    @staticmethod
    def peak_bytes(n: int, rank: int) -> int:
        """Bytes while a sketch is built: F, a few blocks and top vectors, small matrices."""
        return 4 * n * rank + 8 * (3 * min(TOP, rank) + 2 * min(BLOCK, rank)) * n + 40 * rank * rank

    @staticmethod
    def seconds(n: int, rank: int, rates: Rates) -> float:
        """Of its kernel values, projections, and small eigendecomposition."""
        products = 2 * n * rank**2 / rates.products32 + 6 * rank**3 / rates.products
        return products + n * rank / rates.powers

    def solve(self, R: Any, lam: float | Any) -> Any:
        """(F'F + lam I)^-1 R for rows R (b, n); lam a number, or one for each row (b,)."""
        xp = compat.array_namespace(R)
        lam = lam if compat.is_array_api_obj(lam) else np.asarray(lam)
        ridge = xp.astype(xp.reshape(backend_of(R).asarray(lam), (-1, 1)), R.dtype, copy=False)
        projection = xp.astype(xp.astype(R, self.F.dtype) @ self.F.T, R.dtype)
        coefficients = (projection @ self.vectors / (self.eigenvalues + ridge)) @ self.vectors.T
        Z = (R - xp.astype(xp.astype(coefficients, self.F.dtype) @ self.F, R.dtype)) / ridge
        # Along the top eigenvectors Z is smaller by lam / delta than float32 can cancel, and K would
        # blow that rounding up again: there the solution is put in exactly.
        t = int(self.top.shape[0])
        exact = (R @ self.top.T) / (self.eigenvalues[-t:] + ridge)
        return Z + (exact - Z @ self.top.T) @ self.top

    @cached_property
    def largest(self) -> float:
        """Largest eigenvalue of F'F, 0 for rank 0."""
        return float(self.eigenvalues[-1]) if self.rank else 0.0

    @property
    def rank(self) -> int:
        """r, 0 where K is negligible beside every lam."""
        return int(self.F.shape[0])


def pivoted_cholesky(
    operator: Operator,
    rank: int,
    backend: Backend,
    *,
    seed: int,
    watch: Stopwatch,
    trace_tol: float = 0.0,
) -> Sketch:
    """Build a sketch of rank at most `rank`, in blocks of random pivots.

    Parameters
    ----------
    operator : Operator
        Gives columns of K; n r kernel values in all.
    rank : int
    backend : Backend
    seed : int
        Of the pivots.
    watch : Stopwatch
        Hears of the progress under "sketch".
    trace_tol : float, default 0
        Trace of K - F'F at which to stop. At the smallest lam no more rank is of use: K + lam is then
        at most twice F'F + lam.
    """
    xp, n = backend.xp, operator.n
    rank = min(rank, n)
    rng = np.random.default_rng(seed)
    diagonal = np.maximum(to_numpy(operator.diag()).astype(np.float64), 0.0)
    residual, trace = diagonal, float(diagonal.sum())  # what is not explained of it
    F = backend.empty_rows(rank, n, "float32")
    size = 0
    while size < rank and residual.sum() > max(EXHAUSTED * trace, trace_tol):
        batch = min(BLOCK, rank - size, int(np.count_nonzero(residual)))
        pivots = np.sort(rng.choice(n, batch, replace=False, p=residual / residual.sum()))
        index = xp.asarray(pivots, device=backend.device)
        factor = F[:size, :]
        rows = xp.astype(operator.columns(pivots).T, xp.float32)
        rows = rows - xp.take(factor, index, axis=1).T @ factor
        core = backend.asarray(xp.take(rows, index, axis=1))
        values, vectors = backend.eigh((core + core.T) / 2)
        host = to_numpy(values)
        significant = np.flatnonzero(host > DROP * host[-1])
        if significant.size == 0:
            break
        columns = xp.asarray(significant, device=backend.device)
        scale = xp.sqrt(xp.take(values, columns))
        whitening = xp.astype((xp.take(vectors, columns, axis=1) / scale).T, xp.float32)
        block = whitening @ rows
        F[size : size + significant.size, :] = block
        size += significant.size
        explained = to_numpy(xp.sum(block * block, axis=0)).astype(np.float64)
        residual = residual - explained
        # a pivot that was dropped as small beside a huge one is not explained, and may come again
        residual = np.where(residual > ROUNDED * diagonal, residual, 0.0)
        watch.report("sketch", size, rank)
    F = F[:size, :]
    if size == 0:  # K is 0, or below `trace_tol` altogether
        values = xp.zeros((0,), dtype=xp.float64, device=backend.device)
        return Sketch(F, values, values[:, None][:, :0], trace, backend.empty_rows(0, n))
    eigenvalues, vectors = backend.eigh(_outer(F, backend))
    host = to_numpy(eigenvalues)
    count = min(TOP, int(np.count_nonzero(host > 1e-5 * host[-1])))
    top = _top(F, eigenvalues[-count:], vectors[:, -count:], backend)
    return Sketch(F, xp.clip(eigenvalues, 0.0, None), vectors, float(residual.sum()), top)


def _outer(F: Any, backend: Backend) -> Any:
    """F F' (r, r) in float64, of float32 products: each pair of blocks of rows once."""
    r = int(F.shape[0])
    G = backend.xp.empty((r, r), dtype=backend.xp.float64, device=backend.device)
    for part in slices(r, OUTER):
        block = backend.asarray(F[part, :] @ F[: part.stop, :].T)
        G[part, : part.stop] = block
        G[: part.stop, part] = block.T
    return G


def _top(F: Any, eigenvalues: Any, vectors: Any, backend: Backend) -> Any:
    """Orthonormal float64 eigenvectors (t, n) of F'F, in the order of their eigenvalues."""
    xp = backend.xp
    rows = backend.asarray(xp.astype(vectors.T, xp.float32) @ F) / xp.sqrt(eigenvalues)[:, None]
    # Loewdin: the orthonormal rows nearest to these, which float32 left orthonormal to 1e-6
    values, rotation = backend.eigh(rows @ rows.T)
    return ((rotation / xp.sqrt(values)) @ rotation.T) @ rows
