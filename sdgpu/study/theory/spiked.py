"""Spiked covariance models: as many steps of distillation as spikes.

n rows x ~ N(0, I + sum_k spike_k e_k e_k') in p dimensions, targets y = x'beta + noise std E, ridge on
the linear kernel K = X X'. The coefficients are beta_k = +- (signal_k)^(1/2) along the spikes and N(0,
bulk / (p - s)) in the other directions. Where all directions are alike, tuned ridge is the best that
shrinks eigenvalues; a spike that carries more signal than its neighbours wants to be shrunk less than
ridge does, and each step of distillation sets one spike right (Lecoiu, Mukherjee and Sur 2026).

Given X and beta the risk of any such estimator is exact: with w its coefficients, E (w - beta)' Sigma (w
- beta) over the noise is what :func:`sdgpu.study.theory.risk.expected_risk` says of the p points p^(1/2)
Sigma^(1/2), over which the mean of (x'b)^2 is b' Sigma b. Everything here comes from its triangles, by QR
of stacked columns: the steps are nearly parallel, and normal equations would promise risks that nobody
can have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sdgpu.backend.checks import grid, integer, positive
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.asymptotic_risk import linear_risk
from sdgpu.distill.expected_risk import RiskTriangles
from sdgpu.distill.joint_weights import joint_weights
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.distill.schedules import boosting_schedule
from sdgpu.engine.fitting import fit
from sdgpu.kernels import Linear
from sdgpu.study.theory.risk import expected_risk

__all__ = ["SpikedDraw", "SpikedModel", "least_spectral_risk", "spiked_risks"]


@dataclass(frozen=True, eq=False)
class SpikedDraw:
    """One draw of a :class:`SpikedModel`.

    Attributes
    ----------
    X : array (n, p)
    Y : array (n,)
        X beta + noise.
    beta : array (p,)
    model : SpikedModel
    """

    X: np.ndarray
    Y: np.ndarray
    beta: np.ndarray
    model: SpikedModel

    def risk(self, coefficients: np.ndarray) -> float:
        """Excess risk (w - beta)' Sigma (w - beta) of linear coefficients w (p,)."""
        error = coefficients - self.beta
        return float(np.sum(self.model.covariance * error * error))

    def triangles(self, lams: np.ndarray, steps: int) -> RiskTriangles:
        """Squared bias and variance of every schedule, exact given X and beta.

        Parameters
        ----------
        lams : array (L,)
            Absolute, K + lam I with K = X X'.
        steps : int
            T.

        Returns
        -------
        RiskTriangles
            `expected(model.noise)` is the oracle risk of every schedule.

        Notes
        -----
        One eigendecomposition of n x n, p n L T multiplications.
        """
        points = np.diag(np.sqrt(self.model.p * self.model.covariance))
        fitted = fit(self.X, self.Y, Linear(), lams, method="eigh")
        return expected_risk(
            fitted,
            (self.X @ self.beta)[:, None],
            points,
            (points @ self.beta)[:, None],
            lams=np.asarray(lams),
            steps=steps,
        )


@dataclass(frozen=True)
class SpikedModel:
    """Gaussian rows with covariance I + spikes, linear targets, Gaussian noise.

    Parameters
    ----------
    n, p : int
        Rows, dimensions.
    spikes : tuple of floats > 0
        What is added to the eigenvalue 1 in the first s directions; none is the isotropic model.
    signal : tuple of floats >= 0
        beta_k^2 along each of them.
    bulk : float, default 1
        Expected sum of beta_j^2 in the other directions.
    noise : float, default 1
        Standard deviation.

    Raises
    ------
    TypeError, ValueError

    Examples
    --------
    >>> SpikedModel(400, 600, spikes=(30.0,), signal=(1.0,)).draw(seed=0).X.shape
    (400, 600)
    """

    n: int
    p: int
    spikes: tuple[float, ...] = ()
    signal: tuple[float, ...] = ()
    bulk: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        integer("n", self.n, 1)
        integer("p", self.p, 1)
        for spike in self.spikes:
            positive("spikes", spike)
        for value in self.signal:
            positive("signal", value, zero=True)
        positive("bulk", self.bulk, zero=True)
        positive("noise", self.noise, zero=True)
        if len(self.signal) != len(self.spikes):
            raise ValueError(
                f"signal has {len(self.signal)} entries for {len(self.spikes)} spikes: give each its own"
            )
        if len(self.spikes) >= self.p:
            raise ValueError(
                f"{len(self.spikes)} spikes in p={self.p} dimensions: p must be larger"
            )

    @property
    def covariance(self) -> np.ndarray:
        """Eigenvalues of Sigma (p,): those of the spikes first."""
        return np.concatenate([1.0 + np.array(self.spikes), np.ones(self.p - len(self.spikes))])

    @property
    def squared_coefficients(self) -> np.ndarray:
        """E beta_j^2 (p,)."""
        others = self.p - len(self.spikes)
        return np.concatenate([np.array(self.signal), np.full(others, self.bulk / others)])

    def draw(self, seed: int | np.random.Generator) -> SpikedDraw:
        """Rows, coefficients and targets."""
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((self.n, self.p)) * np.sqrt(self.covariance)
        beta = rng.standard_normal(self.p)
        s = len(self.spikes)
        beta[:s] = np.sign(beta[:s])
        beta *= np.sqrt(self.squared_coefficients)
        return SpikedDraw(X, X @ beta + self.noise * rng.standard_normal(self.n), beta, self)

    def lams(self, count: int = 40) -> np.ndarray:
        """A grid (count,) around the ridge p noise^2 / bulk, which is the best one without spikes.

        From a thousandth of it to 300 times as much: more steps want a larger lam.
        """
        centre = self.p * self.noise**2 / self.bulk if self.noise and self.bulk else float(self.p)
        return np.geomspace(1e-3 * centre, 300 * centre, integer("count", count, 2))

    def asymptotic(self, lams: np.ndarray, steps: int) -> RiskTriangles:
        """The same risk where n and p are large, without a draw (:func:`linear_risk`)."""
        return linear_risk(self.covariance, self.squared_coefficients, self.n, lams, steps)


def least_spectral_risk(draw: SpikedDraw) -> float:
    """Smallest expected risk of all spectral shrinkage estimators, a number for each eigenvalue.

    Over the noise and the coefficients (independent, with the variances of the model), given X = U
    D^(1/2) W': with one free number c_j for each eigenvector, w = sum_j c_j (u_j'Y) d_j^(1/2) w_j, the
    risk is

        c'(A + noise^2 G) c - 2 b'c + trace(Sigma S),  S = E beta beta',
        A = (D^(1/2) W' Sigma W D^(1/2)) o (D^(1/2) W' S W D^(1/2)),  G = diag(D^(1/2) W' Sigma W D^(1/2)),

    o the product of entries. No two of these columns are nearly parallel (the noise keeps the matrix
    definite), so here, and only here, the normal equations lose nothing.

    Raises
    ------
    ValueError
        Without noise, where the minimum may not be unique.
    """
    model = draw.model
    positive("noise", model.noise)
    _, roots, W = np.linalg.svd(draw.X, full_matrices=False)
    F = W * roots[:, None]  # (k, p)
    risk = (F * model.covariance) @ F.T
    truth = (F * model.squared_coefficients) @ F.T
    linear = np.einsum("kp,p,kp->k", F, model.covariance * model.squared_coefficients, F)
    quadratic = risk * truth
    quadratic[np.diag_indices_from(quadratic)] += model.noise**2 * np.diagonal(risk)
    scale = np.sqrt(np.diagonal(quadratic))
    solution = np.linalg.solve(quadratic / np.outer(scale, scale), linear / scale)
    return float(
        np.sum(model.covariance * model.squared_coefficients) - solution @ (linear / scale)
    )


@underflow_is_zero
def spiked_risks(
    model: SpikedModel, *, steps: int = 4, draws: int = 16, lams: Any = None, rounds: int = 10
) -> xr.Dataset:
    """Oracle risk of ridge, boosting and the best 2..T steps, each with its best lam.

    Parameters
    ----------
    model : SpikedModel
    steps : int, default 4
        T: most steps, the ordinary fit included.
    draws : int, default 16
    lams : array (L,), optional
        `model.lams()` by default.
    rounds : int, default 10
        Most rounds of boosting; the best number is taken.

    Returns
    -------
    xarray.Dataset
        risk and lam (draw, step), the joint optimum over all weights: step 1 is ridge; alpha (draw, step,
        weight), its weights of steps 2..; boosting and boosting_rounds (draw); least (draw), the smallest
        of all spectral shrinkage estimators, on average over coefficients and noise; asymptotic (step).

    Raises
    ------
    TypeError, ValueError

    Notes
    -----
    Given X and beta, on average over the noise, and in sight of both: what data choose is worse.
    """
    steps, draws = integer("steps", steps, 1), integer("draws", draws, 1)
    rounds = integer("rounds", rounds, 1)
    lams = model.lams() if lams is None else grid("lams", lams)
    most = max(steps, rounds)
    risk, best_lam = np.empty((draws, steps)), np.empty((draws, steps))
    alpha = np.full((draws, steps, max(steps - 1, 0)), np.nan)
    boosting, boosting_rounds = np.empty(draws), np.empty(draws, dtype=int)
    least = np.empty(draws)
    for seed in range(draws):
        draw = model.draw(seed)
        triangles = draw.triangles(lams, most)
        total = np.asarray(triangles.expected(model.noise))
        joint = joint_weights(_shorter(total, steps))
        for t in range(steps):
            i = int(joint.losses[:, t].argmin())
            risk[seed, t], best_lam[seed, t] = joint.losses[i, t], lams[i]
            alpha[seed, t, :t] = joint.schedules[i, t, :t]
        boosted = np.stack(
            [
                triangles.schedule(boosting_schedule(m), model.noise).total[:, -1].min()
                for m in range(1, rounds + 1)
            ]
        )
        boosting[seed], boosting_rounds[seed] = boosted.min(), 1 + boosted.argmin()
        least[seed] = least_spectral_risk(draw) if model.noise else np.nan
    asymptotic = joint_weights(np.asarray(model.asymptotic(lams, steps).expected(model.noise)))
    return xr.Dataset(
        {
            "risk": (("draw", "step"), risk),
            "lam": (("draw", "step"), best_lam),
            "alpha": (("draw", "step", "weight"), alpha),
            "boosting": ("draw", boosting),
            "boosting_rounds": ("draw", boosting_rounds),
            "least": ("draw", least),
            "asymptotic": ("step", asymptotic.losses.min(axis=0)),
        },
        coords={"step": np.arange(1, steps + 1), "draw": np.arange(draws)},
    )


def _shorter(triangles: np.ndarray, steps: int) -> np.ndarray:
    """Triangles (L, t, t) of the first t of T steps: their columns, made triangular again."""
    if triangles.shape[-1] == steps:
        return triangles
    columns = np.concatenate([triangles[..., : steps - 1], triangles[..., -1:]], axis=-1)
    return np.asarray(merge_rows(None, columns))
