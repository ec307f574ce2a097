"""Explicit refits with three more digits than float64: Gram matrices and solves in extended precision.

Everything is the slow and obvious way: each kernel from its formula on differences and products of rows, each
step a solve by a Cholesky factor.
"""

from __future__ import annotations

import numpy as np

Wide = np.longdouble  # 64 bits of mantissa on x86; the tests skip where it is no wider than float64

FORMULAS = {
    "gaussian": lambda s, r, p: np.exp(-p * _squared(r)),
    "laplacian": lambda s, r, p: np.exp(-p * np.abs(r).sum(axis=-1)),
    "matern12": lambda s, r, p: np.exp(-_length(r) * p),
    "matern32": lambda s, r, p: (
        (1 + _root(3) * _length(r) * p) * np.exp(-_root(3) * _length(r) * p)
    ),
    "matern52": lambda s, r, p: (
        (1 + _root(5) * _length(r) * p + 5 * (_length(r) * p) ** 2 / 3)
        * np.exp(-_root(5) * _length(r) * p)
    ),
    "linear": lambda s, r, p: s,
    "polynomial": lambda s, r, p: (p * s + 1) ** 3,
}


def gram(name: str, A: np.ndarray, B: np.ndarray, parameter: float) -> np.ndarray:
    """kappa(A, B) (m, n) of rows (m, d) and (n, d)."""
    A, B = A.astype(Wide), B.astype(Wide)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        products = A @ B.T
        if name == "cosine":
            lengths = [np.sqrt((rows**2).sum(axis=1)) for rows in (A, B)]
            lengths = [np.where(x > 0, x, 1) for x in lengths]
            return products / lengths[0][:, None] / lengths[1][None, :]
        return FORMULAS[name](products, A[:, None, :] - B[None, :, :], Wide(parameter))


def refits(K: np.ndarray, Y: np.ndarray, lam: float, alphas: np.ndarray) -> np.ndarray:
    """Predictions y(1..T) at the training points, (T, n, c), by one solve a step."""
    lower = cholesky(K + Wide(lam) * np.eye(len(K), dtype=Wide))
    Y = Y.astype(Wide)
    found = [K @ solve(lower, Y)]
    for alpha in alphas:
        target = Wide(alpha) * Y + (1 - Wide(alpha)) * found[-1]
        found.append(K @ solve(lower, target))
    return np.stack(found)


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """The lower factor, column by column."""
    lower = np.tril(matrix)
    for j in range(len(lower)):
        lower[j:, j] -= lower[j:, :j] @ lower[j, :j]
        lower[j:, j] /= np.sqrt(lower[j, j])
    return lower


def solve(lower: np.ndarray, B: np.ndarray) -> np.ndarray:
    """(L L')^-1 B by forward and backward substitution."""
    W = B.copy()
    for i in range(len(W)):
        W[i] = (W[i] - lower[i, :i] @ W[:i]) / lower[i, i]
    for i in reversed(range(len(W))):
        W[i] = (W[i] - lower[i + 1 :, i] @ W[i + 1 :]) / lower[i, i]
    return W


def _squared(r: np.ndarray) -> np.ndarray:
    return (r * r).sum(axis=-1)


def _length(r: np.ndarray) -> np.ndarray:
    return np.sqrt(_squared(r))


def _root(x: int) -> np.ndarray:
    return np.sqrt(Wide(x))
