"""Random problems of every kind that people have: what they look like, and how large they may be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

import sdgpu

KERNELS = {
    "gaussian": lambda p: sdgpu.Gaussian(p),
    "laplacian": lambda p: sdgpu.Laplacian(p),
    "matern12": lambda p: sdgpu.Matern(0.5, 1 / p),
    "matern32": lambda p: sdgpu.Matern(1.5, 1 / p),
    "matern52": lambda p: sdgpu.Matern(2.5, 1 / p),
    "linear": lambda p: sdgpu.Linear(),
    "polynomial": lambda p: sdgpu.Polynomial(3, p, 1.0),
    "cosine": lambda p: sdgpu.Cosine(),
}
ROWS = (
    "plain",
    "repeated",
    "constant",
    "zero",
    "one",
    "far",
    "large",
    "huge",
    "vast",
    "tiny",
    "line",
    "lattice",
)
TARGETS = ("noise", "smooth", "constant", "zero", "mixed", "tiny", "huge", "unit", "classes")


@dataclass(frozen=True)
class Problem:
    """One random problem; everything follows from its fields."""

    seed: int
    n: int
    d: int
    c: int
    kernel: str
    parameter: float
    rows: str
    targets: str
    exponent: float  # lam is 10^exponent times the largest eigenvalue
    spread: float  # the largest lam over the smallest, in powers of ten
    steps: int
    alpha: float
    dtype: str
    library: str
    method: str
    operator: str
    precision: str | None

    @property
    def X(self) -> np.ndarray:  # noqa: N802 - the field's name
        rng = np.random.default_rng([self.seed, 0])
        X = rng.standard_normal((self.n, self.d))
        if self.rows == "repeated":
            X = X[rng.integers(0, max(1, self.n // 3), self.n)]
        elif self.rows == "constant":
            X[:, rng.integers(self.d)] = rng.choice([0.1, 14.62, -3e7])
        elif self.rows == "zero":
            X = 0 * X
        elif self.rows == "one":
            X[1:] = 0
        elif self.rows == "line":
            X = X[:, :1] * np.arange(1.0, self.d + 1)
        elif self.rows == "lattice":
            X = np.round(2 * X)
        scale = {"far": 1.0, "large": 1e6, "huge": 1e150, "vast": 1e200, "tiny": 1e-150}.get(
            self.rows, 1.0
        )
        X = X * scale + (1e7 if self.rows == "far" else 0.0)
        limit = 1e30 if self.dtype == "float32" else np.inf
        return np.clip(X, -limit, limit).astype(self.dtype)

    @property
    def Y(self) -> np.ndarray:  # noqa: N802 - the field's name
        rng = np.random.default_rng([self.seed, 1])
        Y = rng.standard_normal((self.n, self.c))
        if self.targets == "smooth":
            Y = np.sin(
                self.X[:, :1].astype(float) / max(1.0, np.abs(self.X).max()) + np.arange(self.c)
            )
        elif self.targets == "constant":
            Y = np.full_like(Y, 0.1)
        elif self.targets == "zero":
            Y = 0 * Y
        elif self.targets == "mixed":
            Y[:, 0] *= 1e-30 if self.dtype == "float32" else 1e-200
        elif self.targets == "tiny":
            Y *= 1e-30 if self.dtype == "float32" else 1e-300
        elif self.targets == "huge":
            Y *= 1e30 if self.dtype == "float32" else 1e300
        elif self.targets == "unit":
            Y = np.eye(self.n, self.c)
        elif self.targets == "classes":
            Y = np.eye(max(self.c, 2))[rng.integers(0, self.c, self.n)][:, : self.c]
        return Y.astype(self.dtype)


def problems(method: str) -> st.SearchStrategy[Problem]:
    """Problems for one method."""
    methods = {
        "eigh": (["auto", "dense"], [None]),
        "lanczos": (["dense", "tiled"], [None, None, None, "float64", "mixed", "float32"]),
    }
    operators, precisions = methods["eigh" if method == "eigh" else "lanczos"]
    return st.builds(
        Problem,
        seed=st.integers(0, 10**6),
        n=st.one_of(st.integers(1, 40), st.integers(41, 90))
        if method != "cg"
        else st.integers(1, 40),
        d=st.integers(1, 5),
        c=st.integers(1, 3),
        kernel=st.sampled_from(sorted(KERNELS)),
        parameter=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
        rows=st.sampled_from(ROWS),
        targets=st.sampled_from(TARGETS),
        exponent=st.floats(-12, 12),
        spread=st.sampled_from([0.0, 0.0, 3.0, 12.0]),
        steps=st.integers(1, 10),
        alpha=st.sampled_from([0.0, 0.3, 1.0, -0.5, 2.5]),
        dtype=st.sampled_from(["float64", "float64", "float64", "float32"]),
        library=st.sampled_from(["numpy", "numpy", "torch", "array_api_strict"]),
        method=st.just(method),
        operator=st.sampled_from(operators),
        precision=st.sampled_from(precisions),
    )
