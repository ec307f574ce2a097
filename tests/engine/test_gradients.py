"""Derivatives of predictions by new rows: against differences of predictions, near kinks against formulas."""

import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import mpmath
import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.kernels.augmented_rows import distance_rows
from sdgpu.kernels.kernel import Profile
from sdgpu.operators.keops import why_not
from tests.fuzz.problems import KERNELS, Exponential, drawn, fields

RNG = np.random.default_rng(3)
N, D, C, M, T = 40, 3, 2, 7, 3
X, NEW = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Y = RNG.normal(size=(N, C))
WEIGHTS = np.where(np.arange(N) % 5 == 2, 0.0, RNG.uniform(0.2, 3.0, N))
ALPHAS = [0.3, -0.4]
ON_UNIT = ("cubicgreen", "cubicspline", "bridge")
CASES = {
    **{name: make(0.7) for name, make in KERNELS.items()},
    "ard": sdgpu.Gaussian(0.5, [1.0, 2.0, 0.5]),
    "ard matern": sdgpu.Matern(2.5, [1.0, 2.0, 0.5]),
    "ard laplacian": sdgpu.Laplacian(0.3, [1.0, 2.0, 0.5]),
    "ard cosine": sdgpu.Cosine([1.0, 2.0, 0.5]),
    "ard ntk": sdgpu.NTK(2, lengthscale=[1.0, 2.0, 0.5], bias_var=0.2),
    "nested": sdgpu.Matern(1.5) * sdgpu.Polynomial(2) * (2 * sdgpu.Laplacian(0.2) + sdgpu.NTK(2)),
    "function times": sdgpu.FunctionKernel(Exponential(0.3)) * sdgpu.Gaussian(0.1),
    "zero": 0.0 * sdgpu.Gaussian(1.0) + sdgpu.Linear(),
}


def differences(predict, new, h=1e-5):
    """d predict / d new by central differences, (..., d)."""
    steps = h * np.eye(new.shape[1])
    return np.stack([(predict(new + e) - predict(new - e)) / (2 * h) for e in steps], axis=-1)


def close(found, wanted, tol):
    scale = np.abs(wanted).max(initial=0.0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tol * scale + 1e-12)


NONNEGATIVE = ("chi2", "additivechi2", "intersection")


def rows_for(name):
    if name in NONNEGATIVE:
        return np.abs(X), np.abs(NEW)
    if name in ON_UNIT:
        return (0.02 + 0.96 * RNG.random((N, 1))), 0.1 + 0.8 * RNG.random((M, 1))
    return X, NEW


def of_torch(fit_of, new, G, tol=1e-12, dtype=torch.float64):
    """Backward of predictions that torch follows, against `gradient` contracted by hand."""
    path = fit_of(lambda a: torch.tensor(a, dtype=dtype)).path(0.5, ALPHAS, T)
    rows = torch.tensor(new, dtype=dtype, requires_grad=True)
    values = path.predict(rows)
    assert torch.equal(values.detach(), path.predict(rows.detach()))
    cotangent = torch.randn(values.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    (values * cotangent).sum().backward()
    assert rows.grad.dtype == dtype
    close(rows.grad.numpy(), np.einsum("tmcd,tmc->md", G, cotangent.numpy()), tol)


@pytest.mark.parametrize("name", CASES)
def test_every_kernel(name):
    x, new = rows_for(name)
    for weights, intercept in ((None, False), (WEIGHTS, True)):

        def fit_of(make, w=weights, b=intercept):
            w = None if w is None else make(w)
            how = {"sample_weight": w, "intercept": b, "method": "eigh"}
            return sdgpu.fit(make(x), make(Y), CASES[name], [0.5], **how)

        path = fit_of(np.asarray).path(0.5, ALPHAS, T)
        G = path.gradient(new)
        assert G.shape == (T, M, C, x.shape[1])
        # values of 1e-9 beside a mean of 1 have few digits for differences
        close(G, differences(path.predict, new), 1e-2 if name == "small" and intercept else 1e-7)
        of_torch(fit_of, new, G)
        limit = fit_of(np.asarray).limit(0.5, 0.3)
        if name != "small":
            close(limit.gradient(new), differences(limit.predict, new), 1e-7)


HOWS = {
    "lanczos": {"method": "lanczos"},
    "subspace": {"method": "subspace", "operator": "tiled"},
    "mixed": {"method": "subspace", "operator": "tiled", "dtype": "mixed", "tol": 1e-4},
    "cg": {"method": "cg", "operator": "dense"},
    "keops": {"method": "lanczos", "operator": "keops"},
    "nystrom": {"features": sdgpu.Nystrom(12)},
    "nystrom of all": {"features": sdgpu.Nystrom(landmarks=X[:20])},
    "fourier": {"features": sdgpu.RandomFourier(30)},
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("intercept", [False, True])
def test_every_operator(how, intercept):
    if how == "keops" and why_not():
        pytest.skip(why_not())
    kernels = [sdgpu.Gaussian(0.4), 2 * sdgpu.Matern(0.5, 2.0), sdgpu.Laplacian(0.2)]
    if how == "keops":  # each kernel and number of columns is compiled, and Lanczos has few of them
        kernels = kernels[1:2]
    for kernel in kernels:

        def fit_of(make, kernel=kernel):
            return sdgpu.fit(make(X), make(Y), kernel, [0.5], intercept=intercept, **HOWS[how])

        path = fit_of(np.asarray).path(0.5, ALPHAS, T)
        G, predict = path.gradient(NEW), path.predict
        if how == "mixed":  # differences of float32 values say little
            dual, offset = path.dual, 0.0
            predict = lambda new: kernel(new, X) @ dual + offset  # noqa: E731, B023
        close(G, differences(predict, NEW), 1e-6)
        of_torch(fit_of, NEW, G, 1e-6)


@pytest.mark.parametrize(
    "kernel",
    [
        sdgpu.Linear(),
        sdgpu.Polynomial(2, 0.5),
        sdgpu.Cosine([1.0, 2.0, 0.5]),
        sdgpu.Linear() * sdgpu.Cosine() + 0.5 * sdgpu.Polynomial(3, 0.1, 0.0),
    ],
)
def test_own_features_are_the_kernel(kernel):
    exact = sdgpu.fit(X, Y, kernel, [0.5], method="eigh").path(0.5, ALPHAS, T)
    features = sdgpu.fit(X, Y, kernel, [0.5], features=sdgpu.Explicit()).path(0.5, ALPHAS, T)
    primal = sdgpu.fit(X, Y, kernel, [0.5], method="primal").path(0.5, ALPHAS, T)
    close(features.gradient(NEW), exact.gradient(NEW), 1e-9)
    close(primal.gradient(NEW), exact.gradient(NEW), 1e-9)


def test_features_of_a_function_and_of_a_module():
    def polynomial(rows):
        xp = compat.array_namespace(rows)
        return xp.concat([rows, rows * rows, xp.sin(rows)], axis=1)

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(D, 5), torch.nn.Tanh()).double()
    for function in (polynomial, module):
        fit = sdgpu.fit(X, Y, lams=[0.5], features=sdgpu.Explicit(function), intercept=True)
        path = fit.path(0.5, ALPHAS, T)
        close(path.gradient(NEW), differences(path.predict, NEW), 1e-7)
    numpy_only = sdgpu.fit(X, Y, lams=[0.5], features=sdgpu.Explicit(lambda x: np.tanh(x)))
    with pytest.raises(ValueError, match="feature map CallableMap has no derivative"):
        numpy_only.path(0.5).gradient(NEW)


@pytest.mark.parametrize("options", [{}, {"form": "output", "output": 1}, {"projection": 64}])
def test_empirical_tangent_kernel(options):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(D, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    kernel = sdgpu.EmpiricalNTK(module.double(), **options)
    for kappa in (kernel, kernel * sdgpu.Gaussian(0.1)):
        path = sdgpu.fit(X, Y, kappa, [0.5], intercept=True).path(0.5, ALPHAS, T)
        close(path.gradient(NEW), differences(path.predict, NEW), 1e-7)


def test_shapes_flat_targets_and_no_rows():
    flat = sdgpu.fit(X, Y[:, 0], sdgpu.Gaussian(0.4), [0.5])
    both = sdgpu.fit(X, Y, sdgpu.Gaussian(0.4), [0.5])
    for number, (one, two) in enumerate(
        [
            (flat.path(0.5, ALPHAS, T), both.path(0.5, ALPHAS, T)),
            (flat.limit(0.5, 0.3), both.limit(0.5, 0.3)),
            (flat.path(0.5, ALPHAS, T).predictor(2), both.path(0.5, ALPHAS, T).predictor(2)),
        ]
    ):
        close(one.gradient(NEW), two.gradient(NEW)[..., 0, :], 1e-12)
        lead = (T,) if number == 0 else ()
        assert one.gradient(NEW[:0]).shape == (*lead, 0, D)
        assert two.gradient(NEW[:0]).shape == (*lead, 0, C, D)
    path = both.path(0.5, np.array([[0.3, 0.1], [0.2, 0.9]]), T)  # a schedule for each output
    close(path.gradient(NEW), differences(path.predict, NEW), 1e-7)
    close(path.predictor(1).gradient(NEW), path.gradient(NEW)[0], 1e-12)
    single = sdgpu.fit(torch.tensor(X), torch.tensor(Y[:, 0]), sdgpu.Gaussian(0.4), [0.5])
    for m in (0, 1, M):
        rows = torch.tensor(NEW[:m], requires_grad=True)
        single.path(0.5, ALPHAS, T).predict(rows).sum().backward()
        close(rows.grad.numpy(), flat.path(0.5, ALPHAS, T).gradient(NEW[:m]).sum(axis=0), 1e-12)


@pytest.mark.parametrize("n", [1, 2, 700])
def test_few_and_many_rows(n):
    """700 rows and 600 new ones are several blocks; one row is its own mean."""
    rng = np.random.default_rng(n)
    x, new = rng.normal(size=(n, 2)), rng.normal(size=(600 if n == 700 else 4, 2))
    for kernel in (sdgpu.Gaussian(0.4), sdgpu.Matern(0.5), sdgpu.NTK(2), sdgpu.Laplacian(0.4)):
        fit = sdgpu.fit(x, np.cos(x[:, 0]), kernel, [0.5], method="eigh", intercept=n > 1)
        path = fit.path(0.5, ALPHAS, T)
        # steps so small that they hardly ever cross a kink
        close(path.gradient(new), differences(path.predict, new, 1e-8), 1e-5)


@pytest.mark.parametrize("library", ["torch", "array_api_strict", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_libraries_and_precisions(library, dtype):
    xp = pytest.importorskip(library)
    make = lambda a: xp.asarray(a, dtype=getattr(xp, dtype))  # noqa: E731
    path = sdgpu.fit(make(X), make(Y), sdgpu.Matern(1.5), [0.5]).path(0.5, ALPHAS, T)
    found = path.gradient(make(NEW))
    assert str(found.dtype).split(".")[-1] == dtype
    assert type(found) is type(make(X))
    x, y, new = (a.astype(dtype).astype(float) for a in (X, Y, NEW))
    exact = sdgpu.fit(x, y, sdgpu.Matern(1.5), [0.5]).path(0.5, ALPHAS, T).gradient(new)
    close(np.asarray(found), exact, 1e-6 if dtype == "float32" else 1e-12)


def test_float32_tensors_are_followed_exactly():
    def fit_of(make):
        return sdgpu.fit(make(X), make(Y), sdgpu.Gaussian(0.4), [0.5])

    path = fit_of(lambda a: a.astype(np.float32)).path(0.5, ALPHAS, T)
    of_torch(fit_of, NEW, path.gradient(NEW.astype(np.float32)), 1e-6, torch.float32)


@pytest.mark.parametrize("block", range(6))
def test_random_problems(block):
    """Never NaN: a derivative, or an error that says why there is none; differences where they say something."""
    for seed in range(40 * block, 40 * block + 40):
        problem = drawn(fields("eigh"), seed)
        x, y = problem.X.astype(float), problem.Y.astype(float)
        kernel, rng = KERNELS[problem.kernel](problem.parameter), np.random.default_rng(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                fit = sdgpu.fit(x, y, kernel, [1.0], method="eigh", intercept=bool(seed % 2))
            except ValueError:
                continue
            path = fit.path(1.0, problem.alpha, min(problem.steps, 3))
            size = np.abs(x).max()
            new = np.concatenate([x[:2], x[:3] + 0.01 * size * rng.standard_normal(x[:3].shape)])
            new = np.clip(new, 0, 1) if problem.kernel in ON_UNIT else new
            new = np.abs(new) if problem.kernel in NONNEGATIVE else new
            found, reason = None, ""
            try:
                found = path.gradient(new)
            except ValueError as error:
                reason = str(error)
            if found is None:
                assert "has no derivative at row" in reason
                continue
            assert np.isfinite(found).all()
            regular = problem.rows in ("plain", "lattice", "line") and problem.kernel not in (
                *ON_UNIT,
                *NONNEGATIVE,
            )
            if regular and problem.targets in ("noise", "smooth", "unit", "classes"):
                rows, h = new[len(x[:2]) :], 1e-7 * max(size, 1e-3)
                wanted = differences(path.predict, rows, h)
                noise = np.abs(path.predict(rows)).max() * 1e-12 / h
                error = np.abs(found[:, len(x[:2]) :] - wanted).max()
                assert error <= noise + 1e-3 * np.abs(wanted).max() + 1e-11, problem


MEMORY = """
import resource
import numpy as np
import torch
import sdgpu
rng = np.random.default_rng(0)
X, new = rng.normal(size=(2000, 100)), rng.normal(size=(1000, 100))
for kernel in (sdgpu.Gaussian(0.01), sdgpu.Laplacian(0.01), sdgpu.NTK(2)):
    path = sdgpu.fit(X, X[:, 0], kernel, [10.0], method="lanczos", tol=1e-2).path(10.0)
    path.gradient(new[:3])
    path.predict(new)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.gradient(new)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_no_array_of_new_rows_by_rows_by_features():
    """Which would be 1.6 GB."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert max(map(float, run.stdout.split())) < 150


# kinks ------------------------------------------------------------------------------------------------


def test_a_new_row_that_is_a_training_row():
    """What meets a kink adds nothing: the derivative is that of the other rows."""
    kernels = [
        sdgpu.Laplacian(0.3),
        sdgpu.Matern(0.5),
        sdgpu.ArcCosine(0),
        sdgpu.NTK(1),
        sdgpu.NTK(3),
    ]
    for kernel in kernels:
        path = sdgpu.fit(X, Y, kernel, [0.5], method="eigh").path(0.5, ALPHAS, T)
        found = path.gradient(X[:4])
        assert np.isfinite(found).all()
        slopes = [  # the mean of both sides
            differences(path.predict, X[:4], h=1e-7 * size) for size in (1.0, 3.0)
        ]
        close(found, np.mean(slopes, axis=0), 2e-6)
    bridge = sdgpu.fit(X[:, :1] % 1, Y, sdgpu.BrownianBridge(), [0.5]).path(0.5)
    rows = X[:3, :1] % 1
    close(bridge.gradient(rows), differences(bridge.predict, rows, 1e-7), 1e-6)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-12])
def test_near_a_kink(distance):
    """Differences lose their digits there, formulas and fifty digits do not."""
    direction = np.array([0.6, 0.0, 0.8])
    new = X[:1] + distance * direction
    step = new - X[:1]  # as it is rounded
    unit = step / np.linalg.norm(step)
    path = sdgpu.fit(X[:1], np.ones(1), sdgpu.Matern(0.5), [1.0]).path(1.0, steps=1)
    close(path.gradient(new)[0], -0.5 * np.exp(-np.linalg.norm(step)) * unit, 1e-12)
    path = sdgpu.fit(X[:1], np.ones(1), sdgpu.NTK(2), [1.0]).path(1.0, steps=1)
    dual = float(path.dual[0, 0])
    close(
        path.gradient(new)[0],
        dual * ntk_gradient(new[0], X[0], 2)[None],
        1e-6 if distance > 1e-12 else 1e-3,
    )


def ntk_gradient(x, z, depth):
    """Of NTK(depth) by x, by differences of fifty digits."""
    with mpmath.workdps(60):
        z = [mpmath.mpf(float(v)) for v in z]

        def value(x):
            inner = sum(a * b for a, b in zip(x, z, strict=True)) * 2 / len(z)
            p, q = (sum(a * a for a in v) * 2 / len(z) for v in (x, z))
            tangent = inner
            for _ in range(depth):
                root = mpmath.sqrt(p * q)
                theta = mpmath.acos(inner / root)
                rate = (mpmath.pi - theta) / mpmath.pi
                inner = root * (mpmath.sin(theta) / mpmath.pi + rate * mpmath.cos(theta))
                tangent = inner + rate * tangent
            return tangent

        h, found = mpmath.mpf(10) ** -25, []
        for j in range(len(x)):
            ends = [
                [mpmath.mpf(float(v)) + (s * h if i == j else 0) for i, v in enumerate(x)]
                for s in (1, -1)
            ]
            found.append(float((value(ends[0]) - value(ends[1])) / (2 * h)))
        return np.array(found)


def test_one_feature_where_all_angles_are_0_or_pi():
    x = X[:, :1]
    for kernel in (
        sdgpu.ArcCosine(0),
        sdgpu.ArcCosine(1),
        sdgpu.NTK(2),
        sdgpu.NNGP(2),
        sdgpu.Cosine(),
    ):
        path = sdgpu.fit(x, Y, kernel, [0.5], method="eigh").path(0.5, ALPHAS, T)
        close(path.gradient(NEW[:, :1]), differences(path.predict, NEW[:, :1]), 1e-7)


def test_rows_of_zeros():
    zero = np.vstack([NEW[:2], np.zeros((1, D))])
    for kernel in (
        sdgpu.Cosine(),
        sdgpu.ArcCosine(0),
        sdgpu.ArcCosine(1),
        sdgpu.NTK(2),
        sdgpu.NNGP(1),
    ):
        for kappa in (kernel, 2 * kernel + sdgpu.Gaussian(1.0), kernel * sdgpu.Gaussian(1.0)):
            path = sdgpu.fit(X, Y, kappa, [0.5], method="eigh").path(0.5)
            with pytest.raises(
                ValueError, match="no derivative at row 2 of the new rows, which is zero"
            ):
                path.gradient(zero)
    fit = sdgpu.fit(X, Y, sdgpu.Cosine(), [0.5], features=sdgpu.Explicit())
    with pytest.raises(ValueError, match="no derivative at row 2 of the new rows"):
        fit.path(0.5).gradient(zero)
    for kernel in (
        sdgpu.ArcCosine(2),
        sdgpu.NTK(2, bias_var=0.1),
        sdgpu.Linear(),
        sdgpu.Polynomial(),
    ):
        path = sdgpu.fit(X, Y, kernel, [0.5], method="eigh").path(0.5)
        close(path.gradient(zero), differences(path.predict, zero), 1e-6)
    training = np.vstack([X[:9], np.zeros((1, D))])  # is no trouble
    for kernel in (sdgpu.Cosine(), sdgpu.ArcCosine(0), sdgpu.ArcCosine(1), sdgpu.NTK(2)):
        path = sdgpu.fit(training, Y[:10], kernel, [0.5], method="eigh").path(0.5)
        close(path.gradient(NEW), differences(path.predict, NEW), 1e-7)


@pytest.mark.parametrize("scale", [1e7, 1e-5])
def test_rows_far_away_and_narrow_kernels(scale):
    """Distances of rows far from their mean are recomputed; so are their derivatives."""
    far = np.where(np.arange(N)[:, None] % 2, X + scale, X - scale)
    new = NEW + np.where(np.arange(M)[:, None] % 2, scale, -scale)
    path = sdgpu.fit(far, Y, sdgpu.Gaussian(0.4), [0.5], method="eigh").path(0.5, ALPHAS, T)
    dual = path.dual
    difference = new[:, None] - far[None]
    values = np.exp(-0.4 * (difference**2).sum(axis=-1))
    close(path.gradient(new), np.einsum("mn,mnd,tnc->tmcd", -0.8 * values, difference, dual), 1e-7)


@dataclass(frozen=True)
class Rational(Profile):
    """1 / (1 + |x - x'|^2) of someone else, who wrote no slopes."""

    def rows(self, X, centre):
        return distance_rows(X - centre)

    def profile(self, tile, a_norms, b_norms):
        tile += 1
        return 1 / tile

    def diagonal(self, rows):
        return 0 * rows.left[:, 0] + 1


@dataclass(frozen=True)
class Rooted(Rational):
    """exp(-|x - x'|) with a root that torch cannot follow at 0."""

    exact_near = True

    def profile(self, tile, a_norms, b_norms):
        xp = compat.array_namespace(tile)
        return xp.exp(-xp.sqrt(xp.clip(tile, 0.0, None)))


def test_kernels_from_elsewhere():
    path = sdgpu.fit(X, Y, Rational(), [0.5], intercept=True, method="eigh").path(0.5, ALPHAS, T)
    close(path.gradient(NEW), differences(path.predict, NEW), 1e-7)
    path = sdgpu.fit(X, Y, Rooted(), [0.5], method="eigh").path(0.5, ALPHAS, T)
    close(path.gradient(NEW), differences(path.predict, NEW), 1e-7)
    with pytest.raises(ValueError, match="Rooted has no derivative at row 0"):
        path.gradient(X[:1])


@pytest.mark.parametrize(
    "name",
    [
        "gaussian",
        "laplacian",
        "matern12",
        "matern32",
        "matern52",
        "linear",
        "polynomial",
        "cosine",
        "arccosine0",
        "arccosine1",
        "arccosine2",
        "nngp",
        "ntk",
        "ntk_bias",
        "ntk_deep",
    ],
)
def test_slopes_are_those_that_torch_finds(name):
    kernel = KERNELS[name](0.7)
    a, b = (
        kernel.rows(torch.tensor(rows), torch.zeros(D, dtype=torch.float64)) for rows in (NEW, X)
    )
    norms = (None, None) if a.norms is None else (a.norms[:, None], b.norms[None])
    wanted = Profile.slopes(kernel, kernel.statistics(a, b), *norms)
    found = kernel.slopes(kernel.statistics(a, b), *norms)
    for one, two in zip(found, wanted, strict=True):
        if one is None:
            assert two is None or not two.any()
        else:
            close(one.numpy(), two.numpy(), 1e-9)


# what is refused, and what torch is told --------------------------------------------------------------


def test_refusals():
    K = X @ X.T
    path = sdgpu.fit(K, Y, sdgpu.Precomputed(), [0.5]).path(0.5)
    with pytest.raises(ValueError, match="precomputed kernel has no rows"):
        path.gradient(NEW @ X.T)
    by_rows = sdgpu.fit(X, Y, lambda x, z: float(np.exp(-((x - z) ** 2).sum())), [0.5]).path(0.5)
    with pytest.raises(ValueError, match="FunctionKernel has no derivative"):
        by_rows.gradient(NEW)
    numpy_only = sdgpu.fit(X, Y, lambda a, b: np.exp(0.1 * np.matmul(a, b.T)), [0.5]).path(0.5)
    with pytest.raises(ValueError, match=r"FunctionKernel has no derivative: (it leaves|Can't)"):
        numpy_only.gradient(NEW)
    path = sdgpu.fit(X, Y, sdgpu.Gaussian(), [0.5]).path(0.5)
    with pytest.raises(ValueError, match="X_new has 2 features"):
        path.gradient(NEW[:, :2])
    with pytest.raises(ValueError, match="X_new has 1 entries that are NaN"):
        path.gradient(np.where(np.arange(M * D).reshape(M, D) == 4, np.nan, NEW))
    wide = RNG.normal(size=(9, 200))
    fit = sdgpu.fit(wide, Y[:9], sdgpu.Gaussian(0.01), [0.5], memory=100_000)
    with pytest.raises(MemoryError, match="derivatives at 9 rows by 200 features"):
        fit.path(0.5, steps=3).gradient(wide)


def test_sparse_rows_have_no_derivatives():
    sparse = pytest.importorskip("scipy.sparse")
    path = sdgpu.fit(sparse.csr_matrix(X), Y, sdgpu.Linear(), [0.5]).path(0.5)
    with pytest.raises(ValueError, match="X_new is sparse"):
        path.gradient(sparse.csr_matrix(NEW))
    assert path.gradient(NEW).shape == (2, M, C, D)


@dataclass(frozen=True, eq=False)
class Foreign:
    """An operator of someone else, who wrote no slopes."""

    inner: Any

    def __getattr__(self, name):
        if name == "slopes":
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_operators_from_elsewhere():
    make = lambda kernel, x: Foreign(sdgpu.operators.DenseOperator(kernel, x))  # noqa: E731
    fit = sdgpu.fit(X, Y, sdgpu.Gaussian(), [0.5], method="lanczos", operator=make)
    with pytest.raises(ValueError, match="Foreign has no derivatives by new rows"):
        fit.path(0.5).gradient(NEW)


def test_a_second_derivative_is_refused_and_not_wrong():
    fit = sdgpu.fit(torch.tensor(X), torch.tensor(Y), sdgpu.Gaussian(), [0.5])
    rows = torch.tensor(NEW, requires_grad=True)
    total = fit.path(0.5).predict(rows).sum()
    (first,) = torch.autograd.grad(total, rows, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        (first**2).sum().backward()
    weights = torch.ones(2, M, C, dtype=torch.float64, requires_grad=True)
    values = fit.path(0.5).predict(rows)
    (first,) = torch.autograd.grad((values * weights).sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        first.sum().backward()


def test_chains_of_torch_run_through():
    """Rows made by a layer, a loss behind: gradcheck of the whole."""
    fit = sdgpu.fit(torch.tensor(X), torch.tensor(Y), sdgpu.Matern(1.5), [0.5], intercept=True)
    path = fit.path(0.5, ALPHAS, T)
    assert torch.autograd.gradcheck(
        lambda rows: path.predict(torch.tanh(rows)), torch.tensor(NEW[:3], requires_grad=True)
    )
    with torch.no_grad():
        assert not path.predict(torch.tensor(NEW, requires_grad=True)).requires_grad
    with torch.inference_mode():
        rows = torch.tensor(NEW)
        close(path.gradient(rows).numpy(), path.gradient(torch.tensor(NEW.copy())).numpy(), 1e-15)
        assert path.predict(rows).shape == (T, M, C)


def test_gradients_do_not_flow_through_a_fit_and_that_is_said():
    x, y = torch.tensor(X, requires_grad=True), torch.tensor(Y)
    with pytest.warns(UserWarning, match="X requires a gradient, which does not flow"):
        fit = sdgpu.fit(x, y, sdgpu.Gaussian(), [0.5])
    with pytest.warns(UserWarning, match="Y requires a gradient"):
        sdgpu.fit(x.detach(), y.clone().requires_grad_(), sdgpu.Gaussian(), [0.5])
    with pytest.warns(UserWarning, match="Y requires a gradient"):
        sdgpu.fit(x.detach(), y.clone().requires_grad_(), features=sdgpu.RandomFourier(4))
    rows = torch.tensor(NEW, requires_grad=True)
    for call in (fit.path(0.5).variance, fit.path(0.5).interval):
        with pytest.warns(UserWarning, match="X_new requires a gradient"):
            call(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.path(0.5).predict(rows)
        fit.path(0.5).gradient(rows)
        with torch.no_grad():
            sdgpu.fit(x, y, sdgpu.Gaussian(), [0.5])


def test_estimators_and_constrained_paths():
    path = sdgpu.constrained_path(X, Y, sdgpu.Gaussian(0.3), eps=0.5, steps=2)
    close(path.gradient(NEW), differences(path.predict, NEW), 1e-6)
