"""Labels that a model made, round after round: what becomes of a fit, expected and drawn."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.arrays import targets
from sdgpu.backend.checks import choice, grid, integer, lam_grid, positive, served_lam
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.label_rounds import (
    LabelMoments,
    LabelRisk,
    LabelScheme,
    RiskRows,
    best_shares,
    label_limit,
    label_rounds,
)
from sdgpu.distill.label_simulation import GROUPS, LabelDraws, drawn_risk
from sdgpu.engine.fitted import Fit
from sdgpu.engine.label_directions import LabelDirections, label_directions
from sdgpu.engine.model import Model
from sdgpu.engine.requests import spectrum_for
from sdgpu.solvers.spectrum import LEAST

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SCHEMES", "SyntheticLabels", "synthetic_labels"]

SCHEMES = ("replace", "mix", "accumulate")
_AXES = ("lam", "weight", "round")
_MEANING = {
    "lam": "ridge of K + lam I",
    "weight": "share of true labels in those of a round",
    "round": "round of labels, 1 is fitted to true ones",
    "risk": "expected mean squared error to the truth",
    "bias": "squared bias",
    "variance": "variance",
    "limit_risk": "risk of infinitely many rounds",
    "limit_bias": "squared bias of infinitely many rounds",
    "limit_variance": "variance of infinitely many rounds",
    "risk_se": "standard error of risk",
    "bias_se": "standard error of bias",
    "variance_se": "standard error of variance",
}


@dataclass(frozen=True, eq=False)
class SyntheticLabels:
    """What rounds of synthetic labels do to a fit, for every lam and share of true labels.

    Made by :func:`synthetic_labels`.

    Attributes
    ----------
    lams : array (L,)
    weights : array (A,)
        Shares of true labels w; 0 alone for "replace".
    rounds : int
    scheme : str
    true_labels : str
    noise, synthetic_noise : arrays (c,)
        Standard deviations of the noise of true and of made labels, of each output.
    """

    lams: np.ndarray
    weights: np.ndarray
    rounds: int
    scheme: str
    true_labels: str
    noise: np.ndarray
    synthetic_noise: np.ndarray
    _directions: LabelDirections = field(repr=False)
    _model: Model = field(repr=False)
    _training_rows: int = field(repr=False)

    @cached_property
    @underflow_is_zero
    def dataset(self) -> xr.Dataset:
        """Expected risk, squared bias and variance, in closed form.

        risk, bias, variance (lam, weight, round), and limit_risk, limit_bias, limit_variance (lam, weight)
        of infinitely many rounds: infinite where the variance grows without bound. O(L A R k) for the
        training rows, with new ones O(L A R k min(m c, k)).
        """
        shape = (len(self.lams), len(self.weights), self.rounds)
        bias, variance, w = np.empty(shape), np.empty(shape), self.weights[:, None]
        limits = np.empty((2, *shape[:2]))
        for i, lam in enumerate(self.lams):
            risk = self._risk(np.array([lam]))
            for t, moments in enumerate(self._rounds(risk, w)):
                bias[i, :, t], variance[i, :, t] = risk.of(moments)
            limits[:, i] = risk.of(label_limit(risk.a, risk.complement, w, self._scheme))
        found = {"risk": bias + variance, "bias": bias, "variance": variance}
        variables: dict[str, Any] = {name: (_AXES, values) for name, values in found.items()}
        for name, values in zip(_MEANING_OF_LIMITS, (limits.sum(axis=0), *limits), strict=True):
            variables[name] = (_AXES[:2], values)
        return self._described(variables)

    @underflow_is_zero
    def best_weight(self, after: int | None = None) -> xr.Dataset:
        """The share of true labels with the smallest expected risk, for each lam.

        Parameters
        ----------
        after : int, optional
            Rounds; infinitely many by default.

        Returns
        -------
        xarray.Dataset
            weight, risk, bias, variance (lam). With fresh true labels, and noise as large in made ones, the
            weight is at least 1/2 at the training rows, and 0.618 for least squares.

        Raises
        ------
        ValueError
            For "replace", which has no true labels after round 1.
        """
        if self.scheme == "replace":
            raise ValueError("scheme='replace' has no weight to choose: scheme='mix' has")
        last = None if after is None else integer("after", after, 1)
        risk, L = self._risk(self.lams), len(self.lams)

        def parts(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if last is None:
                return risk.of(label_limit(risk.a, risk.complement, w[..., None], self._scheme))
            rounds = label_rounds(risk.a, risk.complement, w[..., None], self._scheme)
            return risk.of(next(itertools.islice(rounds, last - 1, None)))

        # round 1 has true labels alone, whatever the weight
        weight = np.ones(L) if last == 1 else best_shares(lambda w: np.add(*parts(w)), L)
        bias, variance = (x[0] for x in parts(weight[None]))
        found = {"weight": weight, "risk": bias + variance, "bias": bias, "variance": variance}
        import xarray as xr

        dataset = xr.Dataset({k: ("lam", v) for k, v in found.items()}, coords={"lam": self.lams})
        for name in dataset.variables:
            dataset[name].attrs["long_name"] = _MEANING[str(name)]
        return dataset

    def best(self, after: int | None = None) -> dict[str, float]:
        """lam and weight with the smallest expected risk after some rounds, infinitely many by default."""
        if self.scheme == "replace":
            data = self.dataset
            risk = data["limit_risk"] if after is None else data["risk"].sel(round=after)
            risk = risk.isel(weight=0)
        else:
            data = self.best_weight(after)
            risk = data["risk"]
        i = int(np.argmin(risk.values))
        weight = 0.0 if self.scheme == "replace" else float(data["weight"].values[i])
        return {"lam": float(self.lams[i]), "weight": weight, "risk": float(risk.values[i])}

    @underflow_is_zero
    def simulate(self, repetitions: int = 1000, *, seed: int = 0) -> xr.Dataset:
        """The same by drawing Gaussian noise: labels are made, mixed and fitted, round by round.

        Parameters
        ----------
        repetitions : int, default 1000
            At least 4.
        seed : int, default 0
            The same draws for every lam and weight.

        Returns
        -------
        xarray.Dataset
            risk, bias, variance (lam, weight, round) with standard errors risk_se, bias_se, variance_se.

        Notes
        -----
        In the eigenbasis, L A R k c numbers for each repetition, and m times as many multiplications for
        new rows. No closed form is used.
        """
        repetitions, seed = integer("repetitions", repetitions, 4), integer("seed", seed, 0)
        d, n = self._directions, self._training_rows
        at_once = -(-repetitions // min(GROUPS, repetitions // 2)) * len(self.weights)
        rows = len(d.truth) + (0 if d.functions is None else len(d.functions))
        self._model.afford(3 * at_once * rows * d.truth.shape[1], "a simulation of labels")
        a, _, scale = d.filters(self.lams)
        count = d.wanted.shape[1] * (n if d.functions is None else len(d.functions))
        found: dict[str, list[np.ndarray]] = {}
        for i in range(len(self.lams)):
            options = (self._scheme, self.noise, self.synthetic_noise)
            drawn = drawn_risk(
                LabelDraws(a[i], d.truth, self.weights, *options),
                scale[i],
                d.functions,
                d.wanted,
                outside=d.outside,
                repetitions=repetitions,
                rounds=self.rounds,
                seed=seed,
            )
            for name, values in vars(drawn).items():
                found.setdefault(name, []).append(values / count)
        dataset = self._described({k: (_AXES, np.stack(v)) for k, v in found.items()})
        return dataset.assign_attrs(repetitions=repetitions, seed=seed)

    @property
    def _scheme(self) -> LabelScheme:
        return LabelScheme(self.scheme == "accumulate", self.true_labels == "fresh")

    def _risk(self, lams: np.ndarray) -> LabelRisk:
        a, complement, scale = self._directions.filters(lams)
        sigma, s = (float(np.sqrt(np.mean(x**2))) for x in (self.noise, self.synthetic_noise))
        return LabelRisk(a, complement, scale, self._risk_rows, sigma, s)

    @cached_property
    def _risk_rows(self) -> RiskRows:
        return self._directions.rows(self._training_rows)

    def _rounds(self, risk: LabelRisk, w: np.ndarray) -> itertools.islice[LabelMoments]:
        return itertools.islice(label_rounds(risk.a, risk.complement, w, self._scheme), self.rounds)

    def _described(self, variables: dict[str, Any]) -> xr.Dataset:
        import xarray as xr

        axes = (self.lams, self.weights, np.arange(1, self.rounds + 1))
        dataset = xr.Dataset(variables, coords=dict(zip(_AXES, axes, strict=True)))
        for name in dataset.variables:
            dataset[name].attrs["long_name"] = _MEANING[str(name)]
        return dataset.assign_attrs(scheme=self.scheme, true_labels=self.true_labels)


_MEANING_OF_LIMITS = ("limit_risk", "limit_bias", "limit_variance")


@underflow_is_zero
def synthetic_labels(
    fitted: Fit,
    truth: Any = None,
    *,
    rounds: int = 10,
    scheme: str = "mix",
    weights: Any = None,
    true_labels: str = "fresh",
    noise: Any = 1.0,
    synthetic_noise: Any = None,
    lams: Any = None,
    X_new: Any = None,
    truth_new: Any = None,
) -> SyntheticLabels:
    """What becomes of a fit that learns from labels that it made itself, round after round.

    Round 1 fits the true labels, truth + noise. Each later round fits labels of which a share w is true and
    the rest is what the round before predicts, with new noise: w (truth + noise) + (1 - w) (prediction +
    synthetic noise). The rows stay the same. Risk is the expected mean squared error to the truth.

    Parameters
    ----------
    fitted : Fit
        With all eigenvalues: method="eigh" or "primal", or `features`; any smoother, with an intercept or
        not. Its lams are those of the study.
    truth : array_like (n,) or (n, c), optional
        The expected labels at the training rows; by default the targets of the fit are taken for the truth,
        which is the way with `features`.
    rounds : int, default 10
        R >= 1.
    scheme : {"replace", "mix", "accumulate"}, default "mix"
        Whether a round sees made labels alone (w = 0), a mix of true and made ones, or the mean of the
        labels of all rounds so far.
    weights : array_like (A,), optional
        w in [0, 1]; 0, 0.05, .., 1 by default, and 0 alone where labels accumulate.
    true_labels : {"fresh", "same"}, default "fresh"
        Whether the true labels of each round have noise of their own, or are those of round 1 again.
    noise, synthetic_noise : float or array_like (c,)
        Standard deviations of the noise of true and of made labels; the same by default.
    lams : array_like (L,), optional
        The fitted ones by default.
    X_new : array_like (m, d), optional
        Where risk is measured; at the training rows by default.
    truth_new : array_like (m,) or (m, c), optional
        The truth there.

    Returns
    -------
    SyntheticLabels
        .dataset in closed form (:mod:`sdgpu.distill.label_rounds`), .best_weight(), .best(), .simulate().

    Raises
    ------
    TypeError, ValueError, MemoryError
        For rounds < 1, weights outside of [0, 1], noise < 0, a truth of another size, and a fit without all
        eigenvalues or with weights of rows.

    References
    ----------
    Shumailov et al. (2024) for the collapse; Gerstgrasser et al. (2024), Dey and Donoho (2024), Garg,
    Bhattacharya and Sur (2025).

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> X = np.linspace(0, 1, 40)[:, None]
    >>> fit = sdgpu.fit(X, np.sin(6 * X[:, 0]), sdgpu.Gaussian(20.0), [1e-12, 0.1])
    >>> s = sdgpu.synthetic_labels(fit, noise=0.3, rounds=5)
    >>> s.dataset["risk"].shape
    (2, 21, 5)
    >>> bool((s.best_weight()["weight"] >= 0.5).all())
    True
    """
    rounds = integer("rounds", rounds, 1)
    choice("scheme", scheme, SCHEMES)
    choice("true_labels", true_labels, ("fresh", "same"))
    shares = _shares(weights, scheme)
    own = fitted.lams if lams is None else lam_grid("lams", lams)
    for lam in own:
        served_lam(fitted.lams, float(lam))
    parts = _checked(fitted, truth)
    c = parts.info.c
    sigma = _deviations("noise", noise, c)
    s = sigma if synthetic_noise is None else _deviations("synthetic_noise", synthetic_noise, c)
    directions = label_directions(parts, X_new, truth_new)
    numbers = 8 * len(own) * len(shares) * (rounds + 1) + 8 * len(shares) * len(directions.truth)
    parts.parts.model.afford(numbers, f"{rounds} rounds of {len(own) * len(shares)} fits")
    return SyntheticLabels(
        lams=own,
        weights=shares,
        rounds=rounds,
        scheme=scheme,
        true_labels=true_labels,
        noise=sigma,
        synthetic_noise=s,
        _directions=directions,
        _model=parts.parts.model,
        _training_rows=parts.parts.solution.rows,
    )


def _shares(weights: Any, scheme: str) -> np.ndarray:
    if scheme == "replace":
        if weights is not None:
            raise ValueError("weights: scheme='replace' has no true labels, scheme='mix' has")
        return np.zeros(1)
    if weights is None:
        return np.zeros(1) if scheme == "accumulate" else np.linspace(0, 1, 21)
    shares = grid("weights", weights)
    outside = shares[(shares < 0) | (shares > 1)]
    if outside.size:
        raise ValueError(
            f"weights={outside[0]:g} must be in [0, 1]: they are shares of true labels in a round"
        )
    return shares


def _deviations(name: str, value: Any, c: int) -> np.ndarray:
    """Standard deviations of each output, (c,)."""
    if np.ndim(value) == 0:
        return np.full(c, positive(name, value, zero=True))
    values = grid(name, value)
    if len(values) != c:
        raise ValueError(f"{name} has {len(values)} entries for {c} outputs: one number, or {c}")
    return np.array([positive(name, float(x), zero=True) for x in values])


def _checked(fitted: Fit, truth: Any) -> Fit:
    """A fit with the truth as its targets, that knows what noise in every direction becomes."""
    model, solution, method = fitted.parts.model, fitted.parts.solution, fitted.info.method
    model.refuse_ranks("synthetic labels")
    spectrum = spectrum_for("a study of synthetic labels", solution, method, needs_all=True)
    if not (spectrum.holds_kernel or spectrum.method == LEAST):
        raise ValueError(
            "synthetic labels have noise in every direction, and the basis of "
            f"method={method!r} grew from targets: fit with method='eigh' or 'primal', or features="
        )
    weighting = model.weighting
    if (weighting is not None and weighting.weighted) or solution.weight != solution.rows:
        raise ValueError(
            "sample_weight: noise that is equal in all rows is not in weighted ones; fit without weights"
        )
    if truth is None:
        return fitted
    if fitted.info.method == "features":
        raise ValueError(
            "truth: a feature model keeps no training rows; fit the truth itself, and leave truth out"
        )
    targets(truth, "truth", rows=fitted.info.n)
    return fitted.with_targets(truth)
