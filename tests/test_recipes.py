"""The recipes of CONTRIBUTING: a kernel, an operator, a solver and a metric from outside of the package."""

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np
import pytest
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.kernels.augmented_rows import distance_rows
from sdgpu.kernels.kernel import Profile, scaled_rows
from sdgpu.solvers import SpectralSolution, Spectrum

LAMS = [0.1, 1.0]


@pytest.fixture
def data(rng):
    X, Y = rng.standard_normal((60, 2)), rng.standard_normal((60, 2))
    return X, Y, rng.standard_normal((7, 2))


def refits(K, cross, Y, lam, alpha):
    """Predictions of three steps, one solve each."""
    mixed, found = Y, []
    for _ in range(3):
        dual = np.linalg.solve(K + lam * np.eye(len(K)), mixed)
        found.append(cross @ dual)
        mixed = alpha * Y + (1 - alpha) * (K @ dual)
    return np.stack(found)


@dataclass(frozen=True)
class RationalQuadratic(Profile):
    """1 / (1 + |x - x'|^2): rows ready for squared distances, and a profile of them in place."""

    def rows(self, X, centre):
        return distance_rows(scaled_rows(X, centre, None))

    def profile(self, tile, a_norms, b_norms):
        tile += 1
        return 1 / tile

    def diagonal(self, rows):
        xp = compat.array_namespace(rows.left)
        return xp.ones((len(rows),), dtype=rows.left.dtype, device=compat.device(rows.left))


@pytest.mark.parametrize("method", ["eigh", "lanczos", "subspace", "cg"])
@pytest.mark.parametrize("operator", ["dense", "tiled"])
def test_a_kernel(data, method, operator):
    X, Y, new = data
    kernel = RationalQuadratic()
    K, cross = (1 / (1 + ((X - z[:, None]) ** 2).sum(axis=-1)) for z in (X, new))
    assert_allclose(kernel(X), K, rtol=1e-12)
    if (method, operator) == ("eigh", "tiled"):
        return
    fitted = sdgpu.fit(X, Y, kernel, LAMS, method=method, operator=operator, dtype="float64")
    found = fitted.path(0.1, 0.3, steps=3).predict(new)
    assert_allclose(found, refits(K, cross, Y, 0.1, 0.3), atol=1e-5)
    assert_allclose((2 * kernel + sdgpu.Linear())(X), 2 * K + X @ X.T, rtol=1e-12)


@dataclass(frozen=True, eq=False)
class Nugget:
    """K with a thousandth more on its diagonal, as someone else may hold it."""

    kernel: Any
    X: Any
    is_precomputed: bool = False

    @property
    def n(self):
        return self.X.shape[0]

    @property
    def d(self):
        return self.X.shape[1]

    def matmat(self, V):
        return self.kernel(self.X) @ V + 1e-3 * V

    def cross(self, X_new):
        return sdgpu.operators.DenseOperator(self.kernel, self.X).cross(X_new)

    def diag(self):
        return compat.array_namespace(self.X).linalg.diagonal(self.kernel(self.X)) + 1e-3

    def columns(self, idx):
        xp = compat.array_namespace(self.X)
        whole = self.matmat(xp.eye(self.n, dtype=self.X.dtype))
        return xp.take(whole, xp.asarray(np.asarray(idx)), axis=1)


@pytest.mark.filterwarnings("ignore:contradicted")  # it is not the kernel's K, and is found out
@pytest.mark.parametrize("method", ["lanczos", "subspace", "cg"])
def test_an_operator(data, method):
    X, Y, new = data
    kernel = sdgpu.Gaussian(0.5)
    fitted = sdgpu.fit(X, Y, kernel, LAMS, method=method, operator=Nugget)
    assert fitted.info.operator == "Nugget"
    assert fitted.info.status.startswith("contradicted")
    found = fitted.path(0.1, 0.3, steps=3).predict(new)
    K = kernel(X) + 1e-3 * np.eye(60)
    assert_allclose(found, refits(K, kernel(new, X), Y, 0.1, 0.3), atol=1e-5)
    with pytest.raises(ValueError, match="operator= from elsewhere has no matrix"):
        sdgpu.fit(X, Y, kernel, LAMS, method="eigh", operator=Nugget)


@dataclass(frozen=True)
class Jacobi:
    """All eigenvalues by NumPy, of an operator that only multiplies."""

    name: str = "jacobi"
    spoiled: float = 0.0

    def peak_bytes(self, n, d, c):
        return 8 * n * (3 * n + d + c)

    def solve(self, operator, Y, lams, watch):
        values, V = np.linalg.eigh(operator.matmat(np.eye(operator.n)))
        Z = V.T @ Y * (1 + self.spoiled)
        return SpectralSolution(Spectrum(np.maximum(values, 0), V, Z, 0, values[0], self.name))


def test_a_solver(data):
    X, Y, new = data
    kernel = sdgpu.Gaussian(0.5)
    fitted = sdgpu.fit(X, Y, kernel, LAMS, method=Jacobi())
    assert fitted.info.method == "jacobi"
    assert fitted.info.status.startswith("converged: relative error about")
    truth = sdgpu.fit(X, Y, kernel, LAMS, method="eigh")
    assert_allclose(
        fitted.path(0.1, 0.3, steps=3).predict(new), truth.path(0.1, 0.3, steps=3).predict(new)
    )
    names = ("mse", "gcv", "star_mse", "limit_mse")
    found, wanted = (one.sweep(alphas=[0.0, 0.5], steps=3).dataset for one in (fitted, truth))
    for name in names:
        assert_allclose(found[name], wanted[name], rtol=1e-8)
    with pytest.warns(UserWarning, match="not converged: relative error about"):
        sdgpu.fit(X, Y, kernel, LAMS, method=Jacobi(spoiled=0.01))
    for operator in ("dense", "tiled"):
        held = sdgpu.fit(X, Y, kernel, LAMS, method=Jacobi(), operator=operator)
        assert held.info.operator == operator
    with pytest.raises(ValueError, match="dtype='float32' is for the package's own methods"):
        sdgpu.fit(X, Y, kernel, LAMS, method=Jacobi(), dtype="float32")
    with pytest.raises(TypeError, match="has no name, peak_bytes, solve"):
        sdgpu.fit(X, Y, kernel, LAMS, method=np.linalg.eigh)
    with pytest.raises(MemoryError, match=r"the plan \(jacobi"):
        sdgpu.fit(X, Y, kernel, LAMS, method=Jacobi(), memory=50_000)


@dataclass(frozen=True)
class WorstRow:
    """The largest of the squared errors of a row, as a sum over rows of their tenth powers."""

    name: str = "worst"
    description: str = "a smooth maximum of the squared errors"
    larger_is_better: bool = False
    size: int = 1

    def check(self, name, Y):
        """Any numbers."""

    def update(self, rows):
        squares = ((rows.values - rows.truth) ** 2).sum(axis=-2)
        return np.asarray((squares**10).sum(axis=-1))[..., None]

    def result(self, sums, count):
        return sums[..., 0] ** 0.1


def test_a_metric(data):
    X, Y, _ = data
    fitted = sdgpu.fit(X[:40], Y[:40], sdgpu.Gaussian(0.5), LAMS)
    sweep = fitted.sweep(X[40:], Y[40:], alphas=[0.0, 0.5], steps=3, metrics=[WorstRow()])
    best = sweep.best("worst")
    path = fitted.path(best.lam, 0.0 if best.step == 1 else best.alpha, best.step)
    squares = ((path.predict(X[40:])[-1] - Y[40:]) ** 2).sum(axis=1)
    assert_allclose(best.value, (squares**10).sum() ** 0.1, rtol=1e-9)
