"""Random problems of every kind that people have: what they look like, and how large they may be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat as compat
import numpy as np
from hypothesis import strategies as st

import sdgpu

KERNELS = {
    "gaussian": lambda p: sdgpu.Gaussian(p),
    "laplacian": lambda p: sdgpu.Laplacian(p),
    "matern12": lambda p: sdgpu.Matern(0.5, 1 / p),
    "matern32": lambda p: sdgpu.Matern(1.5, 1 / p),
    "matern52": lambda p: sdgpu.Matern(2.5, 1 / p),
    "matern72": lambda p: sdgpu.Matern(3.5, 1 / p),
    "matern192": lambda p: sdgpu.Matern(9.5, 1 / p),
    "rational": lambda p: sdgpu.RationalQuadratic(p),
    "rational_wide": lambda p: sdgpu.RationalQuadratic(0.5, 1 / p),
    "periodic": lambda p: sdgpu.Periodic(1.7, 1 / p),
    "wendland0": lambda p: sdgpu.Wendland(0, 1 / p, dimension=5),
    "wendland1": lambda p: sdgpu.Wendland(1, 1 / p, dimension=5),
    "wendland2": lambda p: sdgpu.Wendland(2, 1 / p, dimension=5),
    "wendland3": lambda p: sdgpu.Wendland(3, 1 / p, dimension=5),
    "tanimoto": lambda p: sdgpu.Tanimoto(),
    "chi2": lambda p: sdgpu.ChiSquared(p),
    "additivechi2": lambda p: sdgpu.AdditiveChiSquared(),
    "intersection": lambda p: sdgpu.HistogramIntersection(),
    "mixture": lambda p: sdgpu.On(0, sdgpu.SpectralMixture([1.0, 0.5], [0.0, 0.3], [p, 0.1])),
    "columns": lambda p: sdgpu.On(0, sdgpu.Periodic(1.7)) * sdgpu.On([0], sdgpu.Gaussian(p)),
    "linear": lambda p: sdgpu.Linear(),
    "polynomial": lambda p: sdgpu.Polynomial(3, p, 1.0),
    "cosine": lambda p: sdgpu.Cosine(),
    "arccosine0": lambda p: sdgpu.ArcCosine(0),
    "arccosine1": lambda p: sdgpu.ArcCosine(1),
    "arccosine2": lambda p: sdgpu.ArcCosine(2),
    "nngp": lambda p: sdgpu.NNGP(2, bias_var=p),
    "ntk": lambda p: sdgpu.NTK(3),
    "ntk_bias": lambda p: sdgpu.NTK(1, weight_var=p, bias_var=1.0),
    "ntk_deep": lambda p: sdgpu.NTK(4, weight_var=p, bias_var=1.0),
    "sum": lambda p: sdgpu.Gaussian(p) + 0.5 * sdgpu.Linear(),
    "product": lambda p: sdgpu.Matern(1.5, 1 / p) * sdgpu.Polynomial(2, 1.0, 1.0),
    "small": lambda p: 1e-9 * sdgpu.Gaussian(p),
    "function": lambda p: sdgpu.FunctionKernel(Exponential(p)),
    "cubicgreen": lambda p: sdgpu.CubicGreen(),
    "cubicspline": lambda p: sdgpu.CubicSpline(p),
    "bridge": lambda p: sdgpu.BrownianBridge(),
}
ON_UNIT_INTERVAL = ("cubicgreen", "cubicspline", "bridge")
NONNEGATIVE = ("chi2", "additivechi2", "intersection")
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
class Exponential:
    """exp(-gamma |x - x'|_1) of matrices, from differences: a caller's own function."""

    gamma: float

    def __call__(self, A, B):
        xp = compat.array_namespace(A)
        return xp.exp(-self.gamma * xp.sum(xp.abs(A[:, None, :] - B[None, :, :]), axis=2))


def random_rows(seed: int, n: int, d: int, rows: str, kernel: str) -> np.ndarray:
    """Data (n, d) of one of the kinds ROWS; of one feature in [0, 1] for splines, >= 0 for histograms."""
    rng = np.random.default_rng([seed, 0])
    X = rng.standard_normal((n, d))
    if rows == "repeated":
        X = X[rng.integers(0, max(1, n // 3), n)]
    elif rows == "constant":
        X[:, rng.integers(d)] = rng.choice([0.1, 14.62, -3e7])
    elif rows == "zero":
        X = 0 * X
    elif rows == "one":
        X[1:] = 0
    elif rows == "line":
        X = X[:, :1] * np.arange(1.0, d + 1)
    elif rows == "lattice":
        X = np.round(2 * X)
    scales = {"large": 1e6, "huge": 1e150, "vast": 1e200, "tiny": 1e-150}
    X = X * scales.get(rows, 1.0) + (1e7 if rows == "far" else 0.0)
    if kernel in ON_UNIT_INTERVAL:
        X = X[:, :1] - X[:, :1].min()
        X = X / max(X.max(), 1e-300)
    return np.abs(X) if kernel in NONNEGATIVE else X


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
        X = random_rows(self.seed, self.n, self.d, self.rows, self.kernel)
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


def fields(method: str) -> dict[str, tuple]:
    """What each field of a problem may be: one of a list, or a number of an interval."""
    exact = method == "eigh"
    return {
        "seed": (0, 10**6),
        "n": (1, 40) if method == "cg" else (1, 90),
        "d": (1, 5),
        "c": (1, 3),
        "kernel": sorted(KERNELS),
        "parameter": [1e-3, 0.1, 1.0, 30.0],
        "rows": list(ROWS),
        "targets": list(TARGETS),
        "exponent": (-12.0, 12.0),
        "spread": [0.0, 0.0, 3.0, 12.0],
        "steps": (1, 10),
        "alpha": [0.0, 0.3, 1.0, -0.5, 2.5],
        "dtype": ["float64", "float64", "float64", "float32"],
        "library": ["numpy", "numpy", "torch", "array_api_strict"],
        "method": [method],
        "operator": ["auto", "dense"] if exact else ["dense", "tiled"],
        "precision": [None] if exact else [None, None, None, "float64", "mixed", "float32"],
    }


def keops_fields(method: str) -> dict[str, tuple]:
    """The same for KeOps, which compiles for each kernel, dtype and number of columns: few of them."""
    return fields(method) | {
        "n": (1, 40),
        "d": [2],
        "c": [1],
        "kernel": ["gaussian", "laplacian", "linear"],
        "library": ["numpy", "torch"],
        "operator": ["keops"],
        "precision": [None, "float32"],
    }


def problems(choices: dict[str, tuple]) -> st.SearchStrategy[Problem]:
    """Problems that hypothesis builds, which are simple and shrink, and as many drawn evenly."""
    return st.one_of(
        st.builds(Problem, **{name: _strategy(choice) for name, choice in choices.items()}),
        st.integers(0, 2**32 - 1).map(lambda seed: drawn(choices, seed)),
    )


def drawn(choices: dict[str, tuple], seed: int) -> Problem:
    """One problem with every field drawn evenly."""
    rng = np.random.default_rng(seed)

    def draw(choice):
        if isinstance(choice, list):
            return choice[rng.integers(len(choice))]
        low, high = choice
        return (
            rng.uniform(low, high) if isinstance(low, float) else int(rng.integers(low, high + 1))
        )

    return Problem(**{name: draw(choice) for name, choice in choices.items()})


def _strategy(choice):
    if isinstance(choice, list):
        return st.sampled_from(choice)
    return st.floats(*choice) if isinstance(choice[0], float) else st.integers(*choice)
