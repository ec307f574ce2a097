"""An orthonormal basis that grows by blocks, with K Q kept: Rayleigh-Ritz and true residuals.

For an orthonormal Q (k, n) with Y in its span, T = Q K Q' and R = Q K - T Q, the Galerkin solutions of
every lam and step are small vectors,

    c_1 = (T + lam)^-1 Q Y,   c_i = (T + lam)^-1 T c_{i-1},

and their residuals are exactly R'(c_{i-1} - c_i), with c_0 = 0: no further product with K is needed to
know how good they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.scaling import unit
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.solvers.checkpoint import State

__all__ = [
    "GrowingBasis",
    "Residuals",
    "gram_rounding",
    "orthonormal_rows",
    "relative_to",
    "triangle_bytes",
    "unit_rows",
]

DROP = 1e-12  # relative squared size of a direction that repeats others
NOISE = 1e-14  # relative size of what rounding leaves of a row that is in the span already
LEAST = 16 * float(
    np.finfo(float).eps
)  # what rounding leaves of a row outside of the span that holds it
FAINT = (
    1e-6  # predictions below this share of the largest that the targets could have count as zero
)
ROWS = 64  # residuals that are formed at once


@dataclass(frozen=True, eq=False)
class Residuals:
    """Galerkin residuals of a grid of lam and steps, as host numbers.

    Attributes
    ----------
    norms : array (L, T, c)
        ||r|| of (K + lam) w_i = K w_{i-1}, for each output.
    combinations : array (L, T, c, k)
        a = c_{i-1} - c_i in the Ritz basis: r = a' (W' R).
    sums : array (L, T, c)
        ||r_1 + .. + r_i||: the sum telescopes to -R'c_i.
    fitted : array (L, T, c)
        ||K w_i||, the size of the predictions u_i at the training points.
    duals : array (L, T, c)
        ||w_i||, which says what rounding may do (:mod:`sdgpu.distill.rounding_bounds`).
    sizes : array (L, 1, c)
        What errors are relative to: ||y_1||, but at least 1e-6 of ||Y|| delta_max / (delta_max + lam).
        Later steps may be smaller by any factor.
    exact : bool
        Whether the norms come from the residuals themselves.
    """

    norms: np.ndarray
    combinations: np.ndarray
    sums: np.ndarray
    fitted: np.ndarray
    duals: np.ndarray
    sizes: np.ndarray
    exact: bool = False


class GrowingBasis:
    """Q, T and R of the module's text, with room for `capacity` rows that is enlarged when needed.

    Parameters
    ----------
    n : int
    capacity : int
        Rows to make room for at first.
    backend : Backend
    krylov : bool
        Whether each block is the residual of the one before: then R vanishes but for the newest
        block, and only that is kept, until the basis is compressed.
    diagonal : float, default 0
        Largest entry of the diagonal of K: ||K|| is no less, whatever the basis has seen of it.
    max_rows : int, optional
        Rows that it will have at most, n by default: no room is made for more.
    """

    def __init__(
        self,
        n: int,
        capacity: int,
        backend: Backend,
        *,
        krylov: bool,
        diagonal: float = 0.0,
        max_rows: int | None = None,
    ) -> None:
        self.diagonal = diagonal
        self.max_rows = n if max_rows is None else max_rows
        self.backend = backend
        self.krylov = krylov
        self.consistent = True  # False while a block is added: an interrupt then leaves no state
        self.k = 0
        self.T = np.zeros((0, 0))
        self._Q = self._empty_rows(capacity, n)
        self._R = self._empty_rows(0 if krylov else capacity, n)

    @property
    def n(self) -> int:
        """Length of a row."""
        return int(self._Q.shape[1])

    @property
    def width(self) -> int:
        """Rows of the residuals of the newest block, all of which a Krylov space goes on with."""
        return int(self._R.shape[0]) if self.krylov else 0

    def norm(self, values: np.ndarray) -> float:
        """||K|| from below: the largest Ritz value, or entry of the diagonal."""
        return max(self.diagonal, float(values.max(initial=0.0)))

    @property
    def squared_residual_norm(self) -> float:
        """||R||^2 in the Frobenius norm: what the Gram matrix of R is right to, over eps."""
        return float(self.backend.xp.sum(self.R * self.R))

    @property
    def Q(self) -> Any:  # noqa: N802 - the field's name
        """Orthonormal rows (k, n)."""
        return self._Q[: self.k, :]

    @property
    def R(self) -> Any:  # noqa: N802 - the field's name
        """Q K - T Q of all rows (k, n), or of the newest block."""
        return self._R if self.krylov else self._R[: self.k, :]

    def new_directions(self, block: Any, *, required: Any = None, atol: float = 0.0) -> Any:
        """Orthonormal rows for the part of `block` (b, n) that is new; dependent rows are dropped.

        Parameters
        ----------
        required : array (c, n), optional
            Rows that must be in the span afterwards to their last digit: targets, and residuals of which
            nothing is kept. Directions of them are added until at most `atol` of each is left outside.
        atol : float, default 0
            Rounding of their products is not looked for either.
        """
        new = orthonormal_rows(block, [self.Q], self.backend)
        xp = self.backend.xp
        for _ in range(3 if required is not None else 0):
            # most rows are in the span of the new ones: the basis is looked at only for the residual
            residual = required - (required @ new.T) @ new
            residual = residual - (residual @ self.Q.T) @ self.Q
            squares = xp.stack([xp.sum(x * x, axis=1) for x in (residual, required)])
            residual_norms, norms = np.sqrt(to_numpy(squares))
            indices = np.flatnonzero(residual_norms > atol + LEAST * norms)
            if not indices.size or self.k + int(new.shape[0]) >= self.n:
                break
            rows = xp.take(residual, xp.asarray(indices, device=self.backend.device), axis=0)
            directions = orthonormal_rows(rows, [self.Q, new], self.backend)
            new = xp.concat([new, directions], axis=0)
        return new[: min(self.n - self.k, int(new.shape[0])), :]

    def append(self, new: Any, product: Any) -> None:
        """Add orthonormal rows (b, n), orthogonal to Q, with `product` = new K (b, n)."""
        k, b = self.k, int(new.shape[0])
        self.consistent = False
        self._reserve(k + b)
        xp, core = self.backend.xp, product @ new.T
        core = (core + core.T) / 2
        residual = product - core @ new
        rows = core
        if k:
            coupling = product @ self.Q.T  # (b, k)
            residual = residual - coupling @ self.Q
            rows = xp.concat([coupling, core], axis=1)
        host = to_numpy(rows)  # one look at the device
        self.T = np.block([[self.T, host[:, :k].T], [host]])
        self._Q[k : k + b, :] = new
        if self.krylov:
            self._R = residual
        else:
            # what the old residuals had along the new rows is now inside the span
            self._R[:k, :] -= (self.R @ new.T) @ new
            self._R[k : k + b, :] = residual
        self.k = k + b
        self.consistent = True

    def combine(self, combinations: np.ndarray) -> Any:
        """Residual rows (b, n) of combinations (b, k) in the basis Q."""
        return self._times(combinations, self.R)

    def _times(self, combinations: np.ndarray, rows: Any) -> Any:
        """Combinations (b, k) in the basis Q of R, or of a factor that stands for it."""
        coefficients = combinations[:, self.k - int(self.R.shape[0]) :]
        return self.backend.asarray(np.ascontiguousarray(coefficients)) @ rows

    def compress(self, directions: np.ndarray) -> None:
        """Keep the span of some directions (r, k) in the basis Q, to make room; no pass is needed.

        With orthonormal rows S of that span: Q' = S Q, T' = S T S' and, since K Q = T Q + R,
        R' = S R + S T (1 - S'S) Q.
        """
        S = np.linalg.qr(directions.T)[0].T  # (r, k)
        r, asarray = len(S), self.backend.asarray
        ST = S @ self.T
        complement = ST - (ST @ S.T) @ S
        R = self.combine(S) + asarray(np.ascontiguousarray(complement)) @ self.Q
        Q = asarray(np.ascontiguousarray(S)) @ self.Q
        T = ST @ S.T
        self.consistent = False
        if self.krylov:
            # kept directions have residuals of their own: from now on all are kept
            self.krylov = False
            self._R = self._empty_rows(int(self._Q.shape[0]), int(Q.shape[1]))
        self._Q[:r, :], self._R[:r, :] = Q, R
        self.T, self.k = (T + T.T) / 2, r
        self.consistent = True

    def state(self, passes: int) -> State:
        """What a checkpoint keeps."""
        return State(self.Q, self.R, self.T, passes)

    def restore(self, state: State) -> None:
        """Go on from a checkpoint."""
        asarray = self.backend.asarray
        # a basis that was compressed has the residuals of all its rows, and more than one pass
        rows = int(state.Q.shape[0])
        self.krylov = self.krylov and (int(state.R.shape[0]) < rows or state.passes == 1)
        if not self.krylov and int(self._R.shape[0]) < int(self._Q.shape[0]):
            self._R = self._empty_rows(int(self._Q.shape[0]), int(self._Q.shape[1]))
        self._reserve(rows)
        self.k, self.T = rows, state.T
        self._Q[: self.k, :] = asarray(state.Q)
        if self.krylov:
            self._R = asarray(state.R)
        else:
            self._R[: self.k, :] = asarray(state.R)

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values (k,) ascending, clamped at 0, and their vectors (k, k)."""
        values, vectors = self.backend.small_eigh(self.T)
        return np.maximum(values, 0.0), vectors

    def residuals(
        self, values: np.ndarray, vectors: np.ndarray, Y: Any, lams: np.ndarray, steps: int
    ) -> Residuals:
        """Residual norms of every lam (L,), step 1..T and output for targets Y (c, n).

        The norms come from the residuals themselves, unless these are more than the rows of R: then from
        the Gram matrix of R, right where they are more than about 1e-8 of its terms. That is enough to
        choose what to add; before a result is believed, :meth:`certified`.
        """
        z = vectors.T @ to_numpy(self.Q @ Y.T)  # (k, c)
        scale = 1.0 / (values + lams[:, None])  # (L, k)
        current = scale[:, None, :] * z.T  # (L, c, k)
        a = (values * scale)[:, None, :]
        combinations = np.empty((len(lams), steps, *z.T.shape))
        fitted, duals = (np.empty(combinations.shape[:-1]) for _ in range(2))
        previous = np.zeros_like(current)
        for i in range(steps):
            combinations[:, i] = previous - current
            fitted[:, i] = np.linalg.norm(values * current, axis=-1)
            duals[:, i] = np.linalg.norm(current, axis=-1)
            previous, current = current, a * current
        sizes = relative_to(fitted[:, :1], np.linalg.norm(z, axis=0), self.norm(values), lams)
        residuals = Residuals(
            norms=np.zeros_like(fitted),
            combinations=combinations,
            sums=np.zeros_like(fitted),
            fitted=fitted,
            duals=duals,
            sizes=sizes,
            exact=True,
        )
        if fitted.size <= max(self.width, self.k):
            return self.certified(residuals, vectors, np.arange(len(lams)))
        # from R itself: updated products R R' would lose the residuals in the rounding of the first
        components = vectors[self.k - int(self.R.shape[0]) :]
        gram = components.T @ to_numpy(self.R @ self.R.T) @ components
        sums = _lengths(np.cumsum(combinations, axis=1), gram)
        return replace(residuals, norms=_lengths(combinations, gram), sums=sums, exact=False)

    def certified(
        self, residuals: Residuals, vectors: np.ndarray, indices: np.ndarray
    ) -> Residuals:
        """The same with the norms of some lam (indices) taken from the residuals themselves.

        a'R R'a from the Gram matrix loses half of the digits where the terms of R'a cancel: a residual that
        is 1e-8 of its terms may seem to be 0. R'a itself is right to the rounding of R.

        Notes
        -----
        2 n k multiplications for each residual, of which there are len(indices) T c, or for 2 k of them if
        they are more: then by a triangular factor of R'.
        """
        norms, sums = residuals.norms.copy(), residuals.sums.copy()
        by_triangle = norms[indices].size > 2 * self.k
        factor = self._triangle() if by_triangle else self.R
        width, squares = max(1, ROWS // norms.shape[1]), []
        parts = [(i, outputs) for i in indices for outputs in slices(norms.shape[2], width)]
        for i, outputs in parts:
            combinations = residuals.combinations[i][:, outputs]  # (T, c', k)
            flat = combinations.reshape(-1, combinations.shape[-1]) @ vectors.T
            rows = self.backend.own(self._times(flat, factor))
            squares.append(_squares(rows))
            squares.append(_squares(_running_sums(rows, combinations.shape[1])))
        if parts:  # one look at the device, and one meeting of ranks, for all
            # a triangle is that of the rows of all ranks already
            together = (lambda own: [own]) if by_triangle else self.backend.from_ranks
            lengths = iter(np.split(*_on_host(squares, together)))
            for i, outputs in parts:
                for array in (norms, sums):
                    array[i][:, outputs] = next(lengths).reshape(array[i][:, outputs].shape)
        return replace(residuals, norms=norms, sums=sums)

    def _triangle(self) -> Any:
        """F (b, b) with ||F'a|| = ||R'a|| for every a: no digit is lost to R R'."""
        rows = self.backend.own(self.R).T
        parts = slices(int(rows.shape[0]), _block_rows(int(rows.shape[1])))
        own = reduce(merge_rows, (rows[part, :] for part in parts), None)
        own = merge_rows(None, rows) if own is None else own  # a rank without rows
        return reduce(merge_rows, self.backend.from_ranks(own)).T

    def _reserve(self, rows: int) -> None:
        capacity = int(self._Q.shape[0])
        if rows <= capacity:
            return
        new_capacity = max(rows, min(int(1.5 * capacity) + 1, self.max_rows))
        for name in ("_Q",) if self.krylov else ("_Q", "_R"):
            old = getattr(self, name)
            new = self._empty_rows(new_capacity, int(old.shape[1]))
            new[: self.k, :] = old[: self.k, :]
            setattr(self, name, new)

    def _empty_rows(self, rows: int, n: int) -> Any:
        return self.backend.empty_rows(rows, n)


def triangle_bytes(n: int, k: int) -> int:
    """Bytes of :meth:`GrowingBasis.certified` beside a basis of k rows: some of R' with their QR."""
    return 24 * k * min(n, _block_rows(k))


def _block_rows(k: int) -> int:
    return max(4 * k, 1024)


def gram_rounding(squared_norm: float) -> float:
    """What a norm from the Gram matrix of R may lose, over the length of its combination.

    The backward error of R R' is about eps ||R||^2: the root of that, and generously.
    """
    return 8.0 * float(np.sqrt(np.finfo(float).eps * squared_norm))


def relative_to(
    fitted: np.ndarray, target_norms: np.ndarray, largest: float, lams: np.ndarray
) -> np.ndarray:
    """What errors are relative to: ||y_1|| (L, 1, c), or what counts as zero beside ||Y|| (c,)."""
    shrinkage = (largest / (largest + lams))[:, None, None]
    return np.maximum(fitted, FAINT * shrinkage * target_norms)


def _squares(rows: Any) -> Any:
    """Squared lengths of rows (b, n)."""
    return compat.array_namespace(rows).sum(rows * rows, axis=1)


def _on_host(
    squares: list[Any], of_ranks: Callable[[Any], list[Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths from squared ones, one after another, and where each part but the first begins."""
    sizes = [int(part.shape[0]) for part in squares]
    own = compat.array_namespace(squares[0]).concat(squares)
    together = to_numpy(reduce(add, of_ranks(own)))
    return np.sqrt(together), np.cumsum(sizes)[:-1]


def _running_sums(rows: Any, width: int) -> Any:
    """r_1, r_1 + r_2, .. of rows (T width, n) that stand step by step, in place."""
    for start in range(width, int(rows.shape[0]), width):
        rows[start : start + width, :] += rows[start - width : start, :]
    return rows


def _lengths(rows: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """sqrt(a' G a) for each vector a of the last axis; one of the first axis at a time, to save memory."""
    squares = np.empty(rows.shape[:-1])
    for i, part in enumerate(rows):
        flat = part.reshape(-1, rows.shape[-1])
        squares[i] = np.einsum("ij,ij->i", flat @ gram, flat).reshape(squares.shape[1:])
    return np.sqrt(np.maximum(squares, 0.0))


def orthonormal_rows(block: Any, bases: list[Any], backend: Backend) -> Any:
    """Orthonormalise rows (b, n) against orthonormal bases (k, n) and each other; drop dependent ones.

    Two rounds of projection and symmetric orthogonalisation: the second repairs what rounding left
    of the first. Distillation targets are nearly parallel, so dropping is the normal case.

    Rows are brought to length one before, so that neither small nor large ones lose their squares. One of
    which only rounding is left is no direction: made long again it would not be orthogonal.
    """
    block = unit_rows(block, backend)
    for least in (NOISE, 0.1):
        for Q in bases:
            block = block - (block @ Q.T) @ Q
        if block.shape[0] == 0:
            return block
        gram = to_numpy(block @ block.T)  # one look at the device
        lengths = np.sqrt(np.diag(gram))
        nonzero = np.flatnonzero(lengths > least)
        if nonzero.size == 0:
            return block[:0, :]
        scale = 1 / lengths[nonzero]
        values, vectors = backend.small_eigh(
            gram[np.ix_(nonzero, nonzero)] * scale * scale[:, None]
        )
        significant = values > DROP * values[-1]
        whitening = np.zeros((np.count_nonzero(significant), len(lengths)))
        whitening[:, nonzero] = (vectors[:, significant] / np.sqrt(values[significant])).T * scale
        block = backend.asarray(whitening) @ block
    return block


def unit_rows(block: Any, backend: Backend) -> Any:
    """Rows (b, n) of length one; those of zeros are left out."""
    xp = backend.xp
    if block.shape[0] == 0:
        return block
    largest = to_numpy(xp.max(xp.abs(block), axis=1))
    nonzero = np.flatnonzero(largest > 0)
    units = np.asarray([unit(x) for x in largest[nonzero]])
    if len(nonzero) < len(largest):
        block = xp.take(block, xp.asarray(nonzero, device=backend.device), axis=0)
    block = block / backend.asarray(units)[:, None]
    return block / xp.sqrt(xp.sum(block * block, axis=1))[:, None]
