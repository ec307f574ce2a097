"""Problems with a wanted spectrum, and the slow, obvious reference: explicit refits in float64."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

EPS = np.finfo(np.float64).eps


@dataclass(frozen=True)
class Problem:
    """K = V diag(delta) V' with targets, and a rectangular matrix to new points."""

    delta: np.ndarray  # (n,)
    V: np.ndarray  # (n, n)
    K: np.ndarray  # (n, n)
    Y: np.ndarray  # (n, c)
    K_new: np.ndarray  # (m, n)
    Y_new: np.ndarray  # (m, c)


def assert_near(found, wanted, rtol=1e-7):
    """Close relative to the largest number of the whole array: one near 0 has no digits of its own."""
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * np.abs(wanted).max(initial=0.0))


def finish(*processes, seconds=300):
    """(stdout, stderr) of each; on a busy machine they are slow, and none is left behind when one hangs."""
    try:
        return [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def most_bytes(call):
    """Bytes of NumPy's arrays at the peak of a call, which has been made before: imports are no part of it."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Cheap:
    """K with `rank` large eigenvalues: a product of it makes hardly more than its result."""

    def __init__(self, n, rank=8, small=0.0):
        scale = np.geomspace(1.0, 0.05, rank)[:, None]
        self.n, self.F, self.small = (
            n,
            scale * np.random.default_rng(0).standard_normal((rank, n)),
            small,
        )

    def matmat(self, V):
        found = self.F.T @ (self.F @ V)
        found[:50] += self.small * np.arange(50)[:, None] * V[:50]
        return found

    def diag(self):
        found = np.sum(self.F**2, axis=0)
        found[:50] += self.small * np.arange(50)
        return found

    def columns(self, idx):
        found = self.F.T @ self.F[:, idx]
        for column, i in enumerate(idx):
            found[i, column] += self.small * i if i < 50 else 0.0
        return found


def from_spectrum(delta, *, c=1, m=5, seed=0):
    """A problem whose K has exactly these eigenvalues, up to rounding."""
    rng = np.random.default_rng(seed)
    delta = np.sort(np.asarray(delta, dtype=float))
    n = len(delta)
    V, _ = np.linalg.qr(rng.standard_normal((n, n)))
    K = (V * delta) @ V.T
    Y = rng.standard_normal((n, c))
    # new points that live in the range of K, as kappa(x, X) does
    K_new = rng.standard_normal((m, n)) @ ((V * np.sqrt(delta)) @ V.T)
    return Problem(delta, V, (K + K.T) / 2, Y, K_new, rng.standard_normal((m, c)))


def refits(K, Y, lam, alphas, steps):
    """(3)-(5) by a new dense solve for every step: fitted and dual, both (T, n, c)."""
    alphas = np.broadcast_to(np.asarray(alphas, dtype=float), (steps - 1,))
    shifted = K + lam * np.eye(len(K))
    fitted, dual = [], []
    for tau in range(1, steps + 1):
        mixed = Y if tau == 1 else alphas[tau - 2] * Y + (1 - alphas[tau - 2]) * fitted[-1]
        dual.append(np.linalg.solve(shifted, mixed))
        fitted.append(K @ dual[-1])
    return np.array(fitted), np.array(dual)


def validation_losses(problem, lam, alphas, steps):
    """Mean squared validation error of each step, (T,), by refits."""
    _, dual = refits(problem.K, problem.Y, lam, alphas, steps)
    return np.mean((problem.K_new @ dual - problem.Y_new) ** 2, axis=(1, 2))


def brute_alpha_star(problem, lam, steps, *, clip=False, grid=None):
    """Algorithm 1 with explicit fits: the weight of each step from its own two predictions."""
    chosen = []
    for t in range(2, steps + 1):
        _, dual = refits(problem.K, problem.Y, lam, [*chosen, 0.0], t)
        P0, P1 = problem.K_new @ dual[-1], problem.K_new @ dual[0]
        change = P0 - P1
        alpha = 1 - np.sum(change * (problem.Y_new - P1)) / np.sum(change**2)
        chosen.append(np.clip(alpha, 0, 1) if clip else alpha)
    return np.array(chosen)


@st.composite
def spectra(draw, max_size=12):
    """Eigenvalues >= 0 over many magnitudes, with zeros and repeats."""
    size = draw(st.integers(1, max_size))
    entry = st.one_of(
        st.just(0.0),
        st.just(1e-300),
        st.just(1.0),
        st.floats(-6, 3).map(lambda exponent: 10.0**exponent),
    )
    return np.sort(np.array(draw(st.lists(entry, min_size=size, max_size=size))))


@st.composite
def schedules(draw, low=-1.0, high=2.0, max_steps=7):
    """Weights of steps 2..T; the ends of [0, 1] come often."""
    entry = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(low, high))
    return np.array(draw(st.lists(entry, min_size=0, max_size=max_steps - 1)), dtype=float)


lams = st.floats(-3, 2).map(lambda exponent: 10.0**exponent)
