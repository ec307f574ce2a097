"""Wide networks distilled beside their tangent kernels: the same data, weights and regularisation.

Appendix C of the paper says that distilling an infinitely wide network is distilling kernel regression,
and leaves open how near a real one comes. Here a fully connected ReLU network f(x; theta), in the NTK
parameterisation, is trained from theta_0 by gradient descent on

    |g(X) - u|^2 + lam |theta - theta_0|^2,    g(x) = f(x; theta) - f(x; theta_0),

where u = Y at step 1 and u = alpha Y + (1 - alpha) g_prev(X) after it, and every step starts from
theta_0 again. If g were linear in theta, this would be ridge regression with the tangent kernel at
theta_0 and the same lam, the recursion (3)-(5). Beside it stand that regression and the one with the
kernel of infinite width.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from sdgpu.backend.arrays import inputs, targets
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import grid, integer, positive
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.engine.fitting import fit
from sdgpu.kernels import NTK, EmpiricalNTK, Kernel

__all__ = ["TangentComparison", "compare_tangent", "wide_network"]

POWER = 20  # iterations that find the largest curvature
MARGIN = 1.2  # of it: the kernel moves while the network is trained
DIVERGED = 1e3  # errors relative to the targets
LOOK = 10  # iterations between two looks at the predictions


@dataclass(frozen=True, eq=False)
class TangentComparison:
    """Predictions of networks and of kernel regressions at every step.

    S seeds, A weights, T steps, n training and m test rows, c outputs. Arrays (S, A, T, n or m, c),
    those of the infinite width (A, T, n or m, c); residuals (S, A, T) is how far the predictions moved
    in the last ten iterations of a training, relative to its targets.
    """

    alphas: np.ndarray
    seeds: tuple[int, ...]
    width: int
    depth: int
    lam: float
    Y_test: np.ndarray
    network_train: np.ndarray
    network_test: np.ndarray
    empirical_train: np.ndarray
    empirical_test: np.ndarray
    infinite_train: np.ndarray
    infinite_test: np.ndarray
    residuals: np.ndarray

    @property
    def steps(self) -> int:
        """T."""
        return int(self.residuals.shape[-1])

    def test_mse(self, which: str) -> np.ndarray:
        """Mean squared test error of "network", "empirical" (S, A, T) or "infinite" (A, T)."""
        return np.mean((getattr(self, f"{which}_test") - self.Y_test) ** 2, axis=(-2, -1))

    def test_error(self, which: str) -> np.ndarray:
        """Share of test rows whose largest output is not that of Y_test; shapes as :meth:`test_mse`."""
        wrong = getattr(self, f"{which}_test").argmax(-1) != self.Y_test.argmax(-1)
        return np.mean(wrong, axis=-1)

    def difference(self, which: str, part: str = "test") -> np.ndarray:
        """|network - kernel| / |kernel| of the predictions, (S, A, T); "empirical" or "infinite"."""
        network, kernel = (getattr(self, f"{name}_{part}") for name in ("network", which))
        return _norm(network - kernel) / _norm(kernel)


@underflow_is_zero
def compare_tangent(
    X_train: Any,
    Y_train: Any,
    X_test: Any,
    Y_test: Any,
    *,
    lam: float,
    width: int = 512,
    depth: int = 2,
    alphas: Any = (0.0, 0.5, 1.0),
    steps: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    tol: float = 1e-3,
    max_iterations: int = 1000,
) -> TangentComparison:
    """Distil wide networks, and kernel regression with their tangent kernels, with the same alphas.

    Parameters
    ----------
    X_train, X_test : array_like (n, d), (m, d)
    Y_train, Y_test : array_like (n,) or (n, c), (m,) or (m, c)
        Targets; for classes one-hot rows.
    lam : float
        Ridge of the kernels, and weight of |theta - theta_0|^2.
    width, depth : int, default 512 and 2
        Units of a hidden layer, and hidden layers.
    alphas : array_like (A,), default 0, 0.5, 1
        Fixed weights of the ground truth.
    steps : int, default 4
        T.
    seeds : sequence of int, default 0, 1, 2
        One network each.
    tol : float, default 1e-3
        Movement of the predictions in ten iterations, relative to the targets, at which training ends.
    max_iterations : int, default 1000
        Of a training.

    Returns
    -------
    TangentComparison
        With c > 1 the kernel is the mean over outputs, what it is for each of them at infinite width; a
        narrow network couples its outputs, which no kernel regression of single outputs does.

    Raises
    ------
    TypeError, ValueError
        For data or numbers out of range, and for a training that diverges.

    Warns
    -----
    UserWarning
        If a training stopped before `tol`.

    Notes
    -----
    Networks in float32, S (A (T - 1) + 1) trainings; kernels in float64.

    References
    ----------
    Borup and Andersen (2021), Appendix C; Jacot, Gabriel and Hongler (2018).
    """
    X = inputs(X_train, "X_train")
    X_new = inputs(X_test, "X_test", features=int(X.shape[1]))
    Y, _ = targets(Y_train, "Y_train", rows=len(X))
    Y_new, _ = targets(Y_test, "Y_test", rows=len(X_new), outputs=int(Y.shape[1]))
    X, X_new, Y, Y_new = (to_numpy(part).astype(np.float64) for part in (X, X_new, Y, Y_new))
    lam, weights, steps = positive("lam", lam), grid("alphas", alphas), integer("steps", steps, 1)
    tol, iterations = positive("tol", tol), integer("max_iterations", max_iterations, 1)
    int_seeds = tuple(integer("seeds", seed, 0) for seed in seeds)
    if not int_seeds:
        raise ValueError("seeds is empty: give at least one")
    network_chains, empirical = [], []
    for seed in int_seeds:
        network = wide_network(X.shape[1], Y.shape[1], width=width, depth=depth, seed=seed)
        run = _Training(network=network, X=X, Y=Y, lam=lam, tol=tol, max_iterations=iterations)
        network_chains.append([run.chain(float(alpha), steps, X_new) for alpha in weights])
        empirical.append(
            _kernel_chains(EmpiricalNTK(network), X, Y, X_new, lam=lam, alphas=weights, steps=steps)
        )
    residuals = np.array([[chain[2] for chain in chains] for chains in network_chains])
    if residuals.max() > tol:
        warnings.warn(
            f"a training stopped while predictions moved by {residuals.max():.1e} in {LOOK} iterations, "
            f"tol={tol:g}: raise max_iterations={iterations} or lam",
            stacklevel=3,
        )
    train, test = (
        np.array([[chain[k] for chain in chains] for chains in network_chains]) for k in (0, 1)
    )
    empirical_train, empirical_test = (np.array(part) for part in zip(*empirical, strict=True))
    infinite_train, infinite_test = _kernel_chains(
        NTK(depth), X, Y, X_new, lam=lam, alphas=weights, steps=steps
    )
    return TangentComparison(
        alphas=weights,
        seeds=int_seeds,
        width=width,
        depth=depth,
        lam=lam,
        Y_test=Y_new,
        network_train=train,
        network_test=test,
        empirical_train=empirical_train,
        empirical_test=empirical_test,
        infinite_train=infinite_train,
        infinite_test=infinite_test,
        residuals=residuals,
    )


def wide_network(d: int, c: int, *, width: int, depth: int, seed: int) -> torch.nn.Module:
    """A ReLU network without biases, x -> sqrt(2 / fan-in) W x a layer: its kernel tends to NTK(depth)."""
    sizes = [d, *[integer("width", width, 1)] * integer("depth", depth, 1), c]
    generator = torch.Generator().manual_seed(seed)
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [_Layer(fan_in, fan_out, generator), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


class _Layer(torch.nn.Module):
    def __init__(self, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(
            torch.randn(fan_out, fan_in, generator=generator, device="cpu")
        )
        self.scale = math.sqrt(2 / fan_in)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(self.scale * x, self.weight)


class _Training:
    """Trainings of one network from one start, on several targets."""

    def __init__(
        self,
        network: torch.nn.Module,
        X: np.ndarray,
        Y: np.ndarray,
        *,
        lam: float,
        tol: float,
        max_iterations: int,
    ) -> None:
        self.network, self.lam, self.tol, self.max_iterations = network, lam, tol, max_iterations
        self.width = next(network.parameters()).shape[0]
        self.start = {name: value.detach() for name, value in network.named_parameters()}
        self.X, self.Y = (torch.tensor(part, dtype=torch.float32, device="cpu") for part in (X, Y))
        self.start_outputs = self.output(self.start, self.X)
        curvature = MARGIN * self._curvature() + lam
        low, high = math.sqrt(lam), math.sqrt(curvature)
        # Polyak's heavy ball for curvatures between the two
        self.rate = (2 / (low + high)) ** 2
        self.momentum = ((high - low) / (high + low)) ** 2
        self.first_fit = self.fit(self.Y)

    def output(self, theta: dict[str, torch.Tensor], X: torch.Tensor) -> torch.Tensor:
        """f(X; theta), (n, c)."""
        return functional_call(self.network, theta, (X,))

    def chain(self, alpha: float, steps: int, X_new: np.ndarray) -> tuple[np.ndarray, ...]:
        """g on the training rows (T, n, c) and on new rows (T, m, c), and residuals (T,)."""
        new = torch.tensor(X_new, dtype=torch.float32, device="cpu")
        before = self.output(self.start, new)
        train: list[torch.Tensor] = []
        test, residuals = [], []
        theta, residual = self.first_fit
        for step in range(1, steps + 1):
            if step > 1 and alpha != 1:
                theta, residual = self.fit(alpha * self.Y + (1 - alpha) * train[-1])
            train.append(self.output(theta, self.X) - self.start_outputs)
            test.append(self.output(theta, new) - before)
            residuals.append(residual)
        return torch.stack(train).numpy(), torch.stack(test).numpy(), np.array(residuals)

    def fit(self, target: torch.Tensor) -> tuple[dict[str, torch.Tensor], float]:
        """Parameters trained from the start, and how far predictions still moved at the end.

        The gradient is no measure: a minimum may lie where a unit of some row switches, and it jumps there.
        """
        theta = {name: value.clone().requires_grad_(True) for name, value in self.start.items()}
        velocities = [torch.zeros_like(value) for value in theta.values()]
        start, parameters = list(self.start.values()), list(theta.values())
        size = max(float(target.norm()), 1e-30)
        last_errors, residual = torch.full_like(target, torch.inf), np.inf
        for k in range(self.max_iterations):
            errors = self.output(theta, self.X) - self.start_outputs - target
            if k % LOOK == 0:
                residual = float((errors.detach() - last_errors).norm()) / size
                if residual <= self.tol:
                    break
                last_errors = errors.detach()
                if not float(last_errors.norm()) < DIVERGED * size:
                    raise ValueError(
                        f"training diverges at iteration {k}: the network is too narrow to be nearly "
                        f"linear; raise width={self.width} or lam={self.lam:g}"
                    )
            gradients = torch.autograd.grad(errors.square().sum() / 2, parameters)
            with torch.no_grad():
                parts = zip(gradients, parameters, velocities, start, strict=True)
                for gradient, value, velocity, origin in parts:
                    gradient += self.lam * (value - origin)
                    value += velocity.mul_(self.momentum).sub_(gradient, alpha=self.rate)
        return {name: value.detach() for name, value in theta.items()}, residual

    def _curvature(self) -> float:
        """Largest eigenvalue of J J', of all rows and outputs at the start, by powers."""
        parameters = [value.clone().requires_grad_(True) for value in self.start.values()]
        f = self.output(dict(zip(self.start, parameters, strict=True)), self.X)
        v, largest = torch.ones_like(self.Y) + self.Y, 1.0
        for _ in range(POWER):
            u = (v / v.norm()).requires_grad_(True)
            vjp = torch.autograd.grad(f, parameters, u, create_graph=True)  # J'u, linear in u
            # so its derivative along J'u is J J'u
            (v,) = torch.autograd.grad(vjp, u, [block.detach() for block in vjp], retain_graph=True)
            largest = float(v.norm())
        return largest


def _kernel_chains(
    kernel: Kernel,
    X: np.ndarray,
    Y: np.ndarray,
    X_new: np.ndarray,
    *,
    lam: float,
    alphas: np.ndarray,
    steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of kernel regression on the training rows (A, T, n, c) and on new ones (A, T, m, c)."""
    fitted = fit(X, Y, kernel, lams=lam, method="eigh")
    paths = [fitted.path(alphas=float(alpha), steps=steps) for alpha in alphas]
    return np.array([p.fitted for p in paths]), np.array([p.predict(X_new) for p in paths])


def _norm(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(values**2, axis=(-2, -1)))
