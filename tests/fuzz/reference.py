"""Explicit refits with three more digits than float64: Gram matrices and solves in extended precision.

Everything is the slow and obvious way: each kernel from its formula on differences and products of rows, each
step a solve by a Cholesky factor.
"""

from __future__ import annotations

import math

import numpy as np

Wide = np.longdouble  # 64 bits of mantissa on x86; the tests skip where it is no wider than float64
PI = 2 * np.arccos(Wide(0))

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
    "matern72": lambda s, r, p: _matern(3, _length(r) * p),
    "matern192": lambda s, r, p: _matern(9, _length(r) * p),
    "rational": lambda s, r, p: np.exp(-p * np.log1p(_squared(r) / (2 * p))),
    "rational_wide": lambda s, r, p: 1 / np.sqrt(1 + _squared(r) * p * p),
    "wendland0": lambda s, r, p: _wendland(0, _length(r) * p),
    "wendland1": lambda s, r, p: _wendland(1, _length(r) * p),
    "wendland2": lambda s, r, p: _wendland(2, _length(r) * p),
    "wendland3": lambda s, r, p: _wendland(3, _length(r) * p),
    "linear": lambda s, r, p: s,
    "polynomial": lambda s, r, p: (p * s + 1) ** 3,
    "sum": lambda s, r, p: np.exp(-p * _squared(r)) + s / 2,
    "product": lambda s, r, p: FORMULAS["matern32"](s, r, p) * (s + 1) ** 2,
    "small": lambda s, r, p: 1e-9 * np.exp(-p * _squared(r)),
    "function": lambda s, r, p: FORMULAS["laplacian"](s, r, p),
}
OF_ROWS = {  # of rows (m, 1, d) and (1, n, d)
    "periodic": lambda x, y, p: _periodic(x, y, 1 / p),
    "columns": lambda x, y, p: (
        _periodic(x[..., :1], y[..., :1], 1) * np.exp(-p * _squared((x - y)[..., :1]))
    ),
    "mixture": lambda x, y, p: (
        np.exp(-2 * PI**2 * p * _squared((x - y)[..., :1]))
        + np.exp(-2 * PI**2 * Wide(0.1) * _squared((x - y)[..., :1]))
        * np.cos(2 * PI * Wide(0.3) * (x - y)[..., 0])
        / 2
    ),
    "tanimoto": lambda x, y, p: _ratio(
        (x * y).sum(axis=-1), _squared(x) + _squared(y) - (x * y).sum(axis=-1)
    ),
    "chi2": lambda x, y, p: np.exp(-p * _ratio((x - y) ** 2, x + y).sum(axis=-1)),
    "additivechi2": lambda x, y, p: _ratio(2 * x * y, x + y).sum(axis=-1),
    "intersection": lambda x, y, p: np.minimum(x, y).sum(axis=-1),
}
OF_TWO_NUMBERS = {
    "cubicgreen": lambda x, t, p: (
        np.maximum(x - t, 0) ** 3 / 6 - x * (1 - t) * (x * x - 2 * t + t * t) / 6
    ),
    "cubicspline": lambda x, t, p: (
        p * (1 + x * t) + np.minimum(x, t) ** 2 * (3 * np.maximum(x, t) - np.minimum(x, t)) / 6
    ),
    "bridge": lambda x, t, p: np.minimum(x, t) - x * t,
}
NETWORKS = {  # depth, variances of weights and biases; None for the parameter
    "nngp": (2, 2.0, None),
    "ntk": (3, 2.0, 0.0),
    "ntk_bias": (1, None, 1.0),
    "ntk_deep": (4, None, 1.0),
}


def gram(name: str, A: np.ndarray, B: np.ndarray, parameter: float) -> np.ndarray:
    """kappa(A, B) (m, n) of rows (m, d) and (n, d)."""
    A, B = A.astype(Wide), B.astype(Wide)
    parameter = Wide(parameter)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if name in OF_TWO_NUMBERS:
            return OF_TWO_NUMBERS[name](A[:, :1], B[:, 0][None, :], parameter)
        if name in OF_ROWS:
            return OF_ROWS[name](A[:, None, :], B[None, :, :], parameter)
        if name in NETWORKS or name == "cosine" or name.startswith("arccosine"):
            return _of_angles(name, A, B, parameter)
        return FORMULAS[name](A @ B.T, A[:, None, :] - B[None, :, :], parameter)


def _of_angles(name: str, A: np.ndarray, B: np.ndarray, parameter: Wide) -> np.ndarray:
    """Kernels of the lengths of rows and of the angle between them."""
    if name in NETWORKS:
        depth, *variances = NETWORKS[name]
        variances = tuple(parameter if v is None else Wide(v) for v in variances)
        A, B = (_layer_rows(rows, *variances) for rows in (A, B))
    (A, p), (B, q) = _unit(A), _unit(B)
    if name == "cosine":
        return A @ B.T
    # of angles near 0 and pi an arccos would lose half of the digits
    chord, across = _length(A[:, None] - B[None]), _length(A[:, None] + B[None])
    theta = 2 * np.arctan2(chord, across)
    p, q = p[:, None], q[None, :]
    if name.startswith("arccosine"):
        return _arc_cosine(int(name[-1]), theta, p, q)
    return _network(theta, chord, p, q, depth, variances)[0 if name == "nngp" else 1]


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


def _matern(p: int, r: np.ndarray) -> np.ndarray:
    """Rasmussen and Williams (2006), (4.16), of nu = p + 1/2."""
    s = _root(2 * p + 1) * r
    s = np.where(s > 10_000, 10_000, s)  # where exp(-s) is 0 in float64, and s^p is finite
    terms = [
        math.factorial(p + i) // math.factorial(i) * (2 * s) ** (p - i) / math.factorial(p - i)
        for i in range(p + 1)
    ]
    return np.exp(-s) * sum(terms) * math.factorial(p) / math.factorial(2 * p)


def _wendland(order: int, r: np.ndarray) -> np.ndarray:
    """The same book, (4.21), for rows of up to five features."""
    j = 5 // 2 + order + 1
    polynomial = [
        1,
        (j + 1) * r + 1,
        ((j**2 + 4 * j + 3) * r**2 + (3 * j + 6) * r + 3) / 3,
        (
            (j**3 + 9 * j**2 + 23 * j + 15) * r**3
            + (6 * j**2 + 36 * j + 45) * r**2
            + (15 * j + 45) * r
            + 15
        )
        / 15,
    ][order]
    return np.where(r < 1, np.maximum(1 - r, 0) ** (j + order) * polynomial, 0)


def _periodic(x: np.ndarray, y: np.ndarray, lengthscale: Wide) -> np.ndarray:
    """exp(-2 sum sin^2(pi (x - y) / 1.7) / lengthscale^2); fmod is exact."""
    period = Wide(1.7)
    turns = (np.fmod(x, period) - np.fmod(y, period)) / period
    return np.exp(-2 * (np.sin(PI * turns) ** 2).sum(axis=-1) / lengthscale**2)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """The quotient, 0 / 0 being 0."""
    return over / np.where(under > 0, under, 1)


def _root(x: int) -> np.ndarray:
    return np.sqrt(Wide(x))


def _unit(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of length 1 (0 stays 0), and their squared lengths before."""
    squares = _squared(rows)
    return rows / np.where(squares > 0, np.sqrt(squares), 1)[:, None], squares


def _arc_cosine(degree: int, theta: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Cho and Saul (2009), (3)-(6)."""
    away = PI - theta
    sine, cosine = np.sin(theta), np.cos(theta)
    if degree == 0:
        return np.where((p == 0) | (q == 0), PI / 2, away) / PI
    value = sine + away * cosine
    if degree == 2:
        value = 3 * sine * cosine + away * (1 + 2 * cosine * cosine)
    return np.sqrt(p * q) ** degree * value / PI


def _layer_rows(rows: np.ndarray, weight: Wide, bias: Wide) -> np.ndarray:
    """Rows whose products are w x.x' / d + b."""
    ones = np.full_like(rows[:, :1], np.sqrt(bias))
    return np.concatenate([rows * np.sqrt(weight / rows.shape[1]), ones], axis=1)


def _network(theta, chord, p, q, depth, variances):
    """NNGP and NTK layer by layer, on 1 - cos theta: an arccos has half of the digits near 0."""
    w, b = variances
    gap = np.minimum(chord**2 / 2, 2)
    length = np.sqrt(p * q)
    tangent = length * (1 - gap)
    for _ in range(depth):
        covariance = w * length * (np.sin(theta) + (PI - theta) * (1 - gap)) / (2 * PI) + b
        tangent = covariance + w * (PI - theta) / (2 * PI) * tangent
        # 1 - S / sqrt(s s'), of which the sum of the two parts keeps all digits
        apart = b * w / 2 * (np.sqrt(p) - np.sqrt(q)) ** 2
        lost = w / 2 * length * (gap + (theta * (1 - gap) - np.sin(theta)) / PI)
        p, q = w / 2 * p + b, w / 2 * q + b
        before, length = length, np.sqrt(p * q)
        whole = length + w / 2 * before + b
        apart = apart / np.where(whole > 0, whole, 1)
        gap = np.clip((apart + lost) / np.where(length > 0, length, 1), 0, 2)
        theta = 2 * np.arcsin(np.sqrt(gap / 2))
    return covariance, tangent
