"""Peers side by side: one problem, the same accuracy, what each can do of the grid.

3,000 rows of the common problem, a Gaussian kernel. First a single lam, every method stopped at predictions
right to 1e-3 (checked); then a grid of ten lam, which those without a shared decomposition solve ten times.
None but ours has weights and steps: ours answers 10 x 101 x 10 losses in the second. Peers that are not
installed are left out: `pip install himalaya gpytorch rlaopt pykeops xrfm`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

import sdgpu
from benchmarks.problem import Data, make

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore"),
]  # of peers: what counts is checked

N, ACCURACY = 3000, 1e-3
GRID = 10


@cache
def data() -> Data:
    return make(N)


@cache
def truth() -> np.ndarray:
    """Predictions of the exact solution at the lam in question."""
    return scikit_learn(lam())


def lam() -> float:
    return 1e-4 * N


def lams() -> np.ndarray:
    return np.geomspace(1e-4, 1e-1, GRID) * N


def scikit_learn(ridge: float) -> np.ndarray:
    model = KernelRidge(alpha=ridge, kernel="rbf", gamma=data().kernel.gamma)
    return model.fit(data().X, data().Y).predict(data().X_val)


def himalaya(ridge: float) -> np.ndarray:
    from himalaya.kernel_ridge import KernelRidge as Himalaya

    parameters = {"gamma": data().kernel.gamma}
    model = Himalaya(alpha=ridge, kernel="rbf", kernel_params=parameters, warn=False)
    return np.asarray(model.fit(data().X, data().Y).predict(data().X_val))


def gpytorch(ridge: float) -> np.ndarray:
    """Its conjugate gradients with a pivoted Cholesky preconditioner, on K + lam I."""
    import torch
    from gpytorch import settings
    from gpytorch.kernels import RBFKernel
    from linear_operator.operators import AddedDiagLinearOperator, DiagLinearOperator

    X, Y, X_val = (torch.from_numpy(x) for x in (data().X, data().Y, data().X_val))
    kernel = RBFKernel().double()
    kernel.lengthscale = (2 * data().kernel.gamma) ** -0.5
    fast = settings.fast_computations(solves=True)
    with torch.no_grad(), settings.max_cholesky_size(1), settings.cg_tolerance(1e-4), fast:
        with settings.max_preconditioner_size(100), settings.min_preconditioning_size(1):
            noise = DiagLinearOperator(torch.full((N,), ridge, dtype=torch.float64))
            dual = AddedDiagLinearOperator(kernel(X), noise).solve(Y)
        return (kernel(X_val, X) @ dual).numpy()


def keops(ridge: float) -> np.ndarray:
    """Its conjugate gradients, without a preconditioner."""
    from pykeops.numpy import KernelSolve, Vi, Vj

    gamma = np.array([data().kernel.gamma])
    d, c = data().X.shape[1], 1
    formula = "Exp(-G * SqDist(X, Y)) * B"
    names = ["G = Pm(1)", f"X = Vi({d})", f"Y = Vj({d})", f"B = Vj({c})"]
    solve = KernelSolve(formula, names, "B", axis=1)
    dual = solve(gamma, data().X, data().X, np.ascontiguousarray(data().Y), alpha=ridge, eps=1e-4)
    left, right = Vi(data().X_val), Vj(data().X)
    K = (-(((left - right) ** 2).sum(-1)) * float(gamma[0])).exp()
    return np.asarray(K @ dual)


def rlaopt(ridge: float) -> np.ndarray:
    """Conjugate gradients with its Nystrom preconditioner, on a dense K."""
    import torch
    from rlaopt.linalg import LinSys, NystromConfig
    from rlaopt.solvers import PCG, PCGConfig, PCGStoppingCriteria

    K = torch.from_numpy(data().kernel(data().X))
    system = LinSys(K, torch.from_numpy(data().Y), reg=ridge)
    config = NystromConfig(rank_init=200, rank_max=200, base_damping=ridge)
    torch.set_default_dtype(torch.float64)  # which its sketches are drawn in
    try:
        solver = PCG(system, PCGConfig(preconditioner_config=config))
        found = solver.solve(stopping_criteria=PCGStoppingCriteria(max_iters=500, tol=1e-4))
    finally:
        torch.set_default_dtype(torch.float32)
    dual = found.solution.detach().numpy().reshape(N, -1)
    return np.asarray(data().kernel(data().X_val, data().X) @ dual)


def xrfm(ridge: float) -> np.ndarray:
    """Its kernel machine with no feature learned, by Cholesky; exp(-(r / width)^2) is our Gaussian."""
    import torch
    from xrfm.rfm_src import RFM

    X, Y, X_val, Y_val = (
        torch.from_numpy(x) for x in (data().X, data().Y, data().X_val, data().Y_val)
    )
    width = data().kernel.gamma ** -0.5
    model = RFM("l2", iters=0, bandwidth=width, exponent=2.0, device="cpu", verbose=False)
    model.fit((X, Y), (X_val, Y_val), iters=0, reg=ridge, solver="cholesky")
    return np.asarray(model.predict(X_val))


def ours(ridge: float) -> np.ndarray:
    fit = sdgpu.fit(data().X, data().Y, data().kernel, [ridge], tol=ACCURACY)
    return np.asarray(fit.path(ridge, steps=1).predict(data().X_val)[0])


PEERS = {
    "scikit-learn": ("sklearn", scikit_learn),
    "himalaya": ("himalaya", himalaya),
    "GPyTorch": ("gpytorch", gpytorch),
    "KeOps": ("pykeops", keops),
    "rlaopt": ("rlaopt", rlaopt),
    "xRFM": ("xrfm", xrfm),
}


def checked(solve: Any, ridge: float) -> np.ndarray:
    found = solve(ridge)
    error = np.linalg.norm(found - truth()) / np.linalg.norm(truth())
    assert error < ACCURACY, f"relative error {error:.1e}"
    return found


@pytest.mark.parametrize("peer", PEERS)
def test_one_lam(race, peer):
    package, theirs = PEERS[peer]
    pytest.importorskip(package)
    for solve in (ours, theirs):
        checked(solve, lam())
    race(
        f"one lam, n = {N:,}, predictions to {ACCURACY:g}, against {peer}",
        lambda: ours(lam()),
        lambda: theirs(lam()) is None or None,
        rounds=3,
    )


@pytest.mark.parametrize("peer", PEERS)
def test_grid(race, peer):
    """Ours with all weights and steps; theirs step 1 alone, for every lam anew."""
    package, theirs = PEERS[peer]
    pytest.importorskip(package)

    def grid() -> None:
        fit = sdgpu.fit(data().X, data().Y, data().kernel, lams(), tol=ACCURACY)
        fit.sweep(data().X_val, data().Y_val, alphas=np.linspace(0, 1, 101), steps=10)

    def each() -> None:
        for ridge in lams():
            np.mean((theirs(ridge) - data().Y_val) ** 2)

    race(
        f"{GRID} lam x 101 weights x 10 steps, n = {N:,}, against {GRID} fits of {peer} (step 1 alone)",
        grid,
        each,
        rounds=2,
    )
