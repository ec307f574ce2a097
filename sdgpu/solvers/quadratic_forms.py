"""Quadratic forms g'H^q g of given vectors, H = K (K + lam)^-1, from one Galerkin space for all lam and q.

A Galerkin space that is grown from the vectors g leaves errors of second order in the residuals: a few
passes over K are enough for signs that estimate a trace, and for the leverages of single rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.distill.filters import shrinkage
from sdgpu.distill.rounding_bounds import backward_error, decay
from sdgpu.operators.operator import Operator
from sdgpu.solvers.galerkin import GrowingBasis, Residuals, gram_rounding
from sdgpu.solvers.preconditioners import Sketch

__all__ = ["Forms", "LowRank", "grow_forms", "power_filters"]

MAX_PASSES = 60
# times the vectors are the columns of a pass, and lam for which the first pass already has guesses: few
# passes of many columns for a few probes, less memory for the rows of leverages (bench_estimates)
WIDE, SPREAD = 4, 6
WIDE_RELATIVE, SPREAD_RELATIVE = 2, 4


@dataclass(frozen=True, eq=False)
class LowRank:
    """Eigenvalues (k,) of a part of K, and coordinates of the vectors along its eigenvectors, (k, s)."""

    values: np.ndarray
    coordinates: np.ndarray


@dataclass(frozen=True, eq=False)
class Forms(LowRank):
    """The Galerkin space of some vectors, in its Ritz basis.

    Attributes
    ----------
    rows : array (k, n)
        The Ritz vectors, in float32: what they spread over the rows scatters by far more.
    bounds : array (L, T, s)
        On the errors of g'H g, .., g'H^T g.
    """

    rows: Any
    bounds: np.ndarray


def grow_forms(
    operator: Operator,
    backend: Backend,
    sketch: Sketch | None,
    G: Any,
    *,
    lams: np.ndarray,
    steps: int,
    watch: Stopwatch,
    tol: float,
    relative: bool,
    max_size: int,
) -> Forms:
    """Grow the space of G (s, n) until the forms are known.

    Parameters
    ----------
    operator : Operator
    backend : Backend
    sketch : Sketch or None
        Preconditioner; without it the space is a block Krylov space.
    G : array (s, n)
    lams : array (L,) ascending
    steps : int
        T powers.
    watch : Stopwatch
    tol : float
    relative : bool
        Whether `tol` bounds the error of each form over 1 - g'H g, for unit vectors whose leverage may be
        close to 1; else the mean of the errors, over n.
    max_size : int
        The space has at most so many rows: `bounds` say what that leaves.

    Notes
    -----
    A pass has up to 4 s columns, the first one 7 s; with `relative` 2 s and 5 s.
    """
    n, s = int(G.shape[1]), int(G.shape[0])
    limit = min(n, max_size)
    wide, spread = (WIDE_RELATIVE, SPREAD_RELATIVE) if relative else (WIDE, SPREAD)
    capacity = min(limit, (2 + spread) * s)
    space = GrowingBasis(n, capacity, backend, krylov=sketch is None, max_rows=limit)
    block, coarse_lams = _start(backend, sketch, G, lams, spread), lams[:: max(1, len(lams) // 6)]
    for passes in range(1, MAX_PASSES + 1):
        # residuals are known of vectors in the span, to their last digit, and of no others
        required = (space.R if space.krylov else None) if passes > 1 else G
        new = space.new_directions(block, required=required)
        if space.krylov and space.k + int(new.shape[0]) > limit:
            break  # a residual block that is cut is known to no one
        new = new[: limit - space.k, :]
        if not new.shape[0]:
            break
        space.append(new, backend.asarray(operator.matmat(new.T)).T)
        values, vectors = space.ritz()
        # a coarse grid of lam, the smallest among them, tells what to add
        residuals = space.residuals(values, vectors, G, coarse_lams, steps)
        scale = (
            _scale(values, vectors.T @ to_numpy(space.Q @ G.T), coarse_lams) if relative else 1.0
        )
        errors = _second_order(residuals.norms, residuals.sums) / scale
        error = float(errors.max() if relative else errors.mean(axis=-1).max() / n)
        watch.report("probes", passes, passes + 1, error, total_known=False)
        if error <= tol or space.k >= limit:
            break
        if sketch is None:
            block = space.R
            continue
        weighted_norms = residuals.norms / np.sqrt(scale)
        index = np.unravel_index(
            np.argsort(-weighted_norms.ravel())[: wide * s], weighted_norms.shape
        )
        worst = space.combine(residuals.combinations[index] @ vectors.T)
        block = sketch.solve(worst, coarse_lams[index[0]])
    residuals = space.residuals(values, vectors, G, lams, steps)
    rows = backend.asarray(np.ascontiguousarray(vectors.T)) @ space.Q
    rows32 = backend.xp.astype(rows, backend.xp.float32)
    return Forms(
        values, to_numpy(rows @ G.T), rows32, _bounds(space, values, vectors, residuals, lams)
    )


def _bounds(
    space: GrowingBasis,
    values: np.ndarray,
    vectors: np.ndarray,
    residuals: Residuals,
    lams: np.ndarray,
) -> np.ndarray:
    """On the errors of the forms, (L, T, s): of the space, from the residuals themselves, and of rounding.

    With K + E in place of K a form moves by lam w'E w, w = (K + lam)^-1 g, and so on for its powers.
    """
    gram_errors = gram_rounding(space.squared_residual_norm) * residuals.duals
    bounds = _second_order(residuals.norms, residuals.sums)
    doubtful = (
        _second_order(residuals.norms + gram_errors, residuals.sums + gram_errors) > 2 * bounds
    )
    residuals = space.certified(residuals, vectors, np.flatnonzero(doubtful.any(axis=(1, 2))))
    perturbation = lams[:, None, None] * backward_error(space.n) * space.norm(values)
    return _second_order(residuals.norms, residuals.sums) + perturbation * _products(
        residuals.duals, residuals.duals
    )


def power_filters(eigenvalues: np.ndarray, lams: np.ndarray, steps: int) -> np.ndarray:
    """a, a^2, .., a^T with a = delta / (delta + lam): (L, T, k)."""
    a = shrinkage(eigenvalues, lams)
    return a[:, None, :] ** np.arange(1, steps + 1)[:, None]


def _start(backend: Backend, sketch: Sketch | None, G: Any, lams: np.ndarray, count: int) -> Any:
    """The vectors, with guesses for so many lam."""
    if sketch is None:
        return G
    xp = backend.xp
    grid = np.geomspace(lams[0], lams[-1], count + 1)[:count]
    copies = xp.concat([G] * count, axis=0)
    guesses = sketch.solve(copies, np.repeat(grid, int(G.shape[0])))
    return xp.concat([G, guesses], axis=0)


def _scale(values: np.ndarray, coordinates: np.ndarray, lams: np.ndarray) -> np.ndarray:
    """1 - g'H g of unit vectors, (L, 1, s); by its own sum, so that it does not cancel."""
    complement = lams[:, None] / (values + lams[:, None])  # (L, k)
    outside = np.maximum(1 - (coordinates**2).sum(axis=0), 0.0)
    return np.asarray((complement @ coordinates**2 + outside)[:, None, :])


def _second_order(norms: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Bounds on |g'(H^q - its Galerkin value) g| from ||r_i|| and ||r_1 + .. + r_i||, (L, T, s) each.

    H^q - H_k^q = sum_i H^i (H - H_k) H_k^(q-1-i), and for an x of the space (H - H_k) x is
    -lam (K + lam)^-1 r, where r, the residual of (K + lam) w = x, is orthogonal to the space. For
    x = H_k^(m-1) g it is r_1 + .. + r_m: the residuals r_i belong to the right sides K w_(i-1), not to
    their projections. Only the error e_i of w_i = (K + lam)^-1 H^(i-1) g meets it,

        |g'(H^q - H_k^q) g| <= sum_i lam ||e_i|| ||r_1 + .. + r_(q+1-i)||,
        lam ||e_i|| <= sum_j g_(i-j) ||r_j||,   g_m = max a^m (1 - a).
    """
    T, errors = norms.shape[1], np.zeros_like(norms)
    for j in range(T):
        errors[:, j:] += decay(j) * norms[:, : T - j]
    return _products(errors, sums)


def _products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """sum_i x_i y_(q+1-i) for q = 1 .. T, along the second axis."""
    T = first.shape[1]
    sums = [(first[:, :q] * second[:, q - 1 :: -1][:, :q]).sum(axis=1) for q in range(1, T + 1)]
    return np.stack(sums, axis=1)
