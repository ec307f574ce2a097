"""`Fit`: a decomposition that answers every regularisation, weight and step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from sdgpu.backend.backends import give_back
from sdgpu.backend.checks import integer, number, schedule, served_lam
from sdgpu.backend.conversion import column_names
from sdgpu.backend.copying import without_caches
from sdgpu.backend.progress import Progress
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.gcv import OneShot
from sdgpu.distill.smoothers import Smoother, as_smoother
from sdgpu.engine.advice import Advice, advise
from sdgpu.engine.all_eigenvalues import smoothed, step_filters
from sdgpu.engine.chosen import chosen_predictor
from sdgpu.engine.grid_sweep import GridRequest, SweptFit, gcv_of_grid, one_shot_of, sweep_of_grid
from sdgpu.engine.lam_requests import lam_of_steps, one_lam
from sdgpu.engine.model import Model
from sdgpu.engine.path import Limit, Path, limit_of
from sdgpu.engine.predictor import Predictor
from sdgpu.engine.requests import judge, left_out_predictions, spectrum_for, spectrum_given_back
from sdgpu.engine.results import Info
from sdgpu.engine.schedule_choice import chosen_one_by_one, chosen_together
from sdgpu.kernels import Kernel
from sdgpu.selection.chosen_weights import JointAlphas, OptimalAlphas
from sdgpu.selection.metrics import Metric
from sdgpu.selection.sweep import Best, Sweep
from sdgpu.solvers.solution import Solution
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["Fit"]


@dataclass(frozen=True, eq=False)
class Fit:
    """A decomposed kernel matrix with its targets: every answer is cheap algebra from here.

    Made by :func:`sdgpu.fit`. Arrays come in the library, device and dtype of the training data; grids,
    weights and losses are host numbers in float64.

    Attributes
    ----------
    kernel : Kernel
    lams : array (L,)
        The regularisations that the fit was asked to serve; any lam >= the smallest is served.
    info : Info
    """

    kernel: Kernel
    lams: np.ndarray
    info: Info
    _solution: Solution = field(repr=False)
    _model: Model = field(repr=False)
    _progress: Progress | None = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**without_caches(self), "_progress": None}  # which belongs to its process

    def _lam_of_steps(self, lam: Any, steps: int) -> float | np.ndarray:
        return lam_of_steps(self._solution, self.lams, lam, steps)

    def _spectrum_for(self, what: str, *, needs_all: bool = False) -> Spectrum:
        return spectrum_for(what, self._solution, self.info.method, needs_all=needs_all)

    @cached_property
    @underflow_is_zero
    def spectrum(self) -> Spectrum:
        """Eigenvalues (k,) ascending, basis (n, k), Z (k, c), in float64, in the caller's library."""
        spectrum = self._spectrum_for("fit.spectrum")
        return spectrum_given_back(spectrum, self._model.template)

    @underflow_is_zero
    def with_targets(self, Y: Any) -> Fit:
        """The same fit with other targets (n,) or (n, c), for n^2 c multiplications.

        Raises
        ------
        ValueError
            For a method other than "eigh": a basis that grew from targets serves them alone.
        """
        self._model.refuse_ranks("other targets")
        Y_rows, flat = self._model.template.truth(Y, "Y", rows=self.info.n)
        self._spectrum_for("other targets", needs_all=True)
        targets, rows = self._model.backend.asarray(Y_rows), self._model.weighting
        targets, offset = (targets, None) if rows is None else rows.targets(targets)
        solution = self._solution.with_targets(targets)
        template = replace(self._model.template, flat=flat, outputs=column_names(Y))
        model = replace(self._model, template=template, offset=offset, folds=None)
        info = replace(self.info, c=int(Y_rows.shape[1]))
        return replace(self, info=info, _solution=solution, _model=model)

    def with_smoother(self, smoother: str | Smoother) -> Fit:
        """The same decomposition with another smoother in place of ridge, for nothing.

        Parameters
        ----------
        smoother : {"ridge", "gradient_flow", "iterated", "landweber", "cutoff"} or Smoother
            What they are and what lam means: :mod:`sdgpu.distill.smoothers`. Leave-one-out, intervals
            and variances are of ridge alone.

        Raises
        ------
        TypeError, ValueError
        """
        solution, info = smoothed(self._solution, self.info, as_smoother(smoother), self.lams)
        return replace(self, info=info, _solution=solution)

    @underflow_is_zero
    def path(self, lam: Any = None, alphas: Any = 0.0, steps: int = 2) -> Path:
        """Steps 1..T at one lam, without a solve (Theorem 4.1).

        Parameters
        ----------
        lam : float or array_like (T,), optional
            Ridge of K + lam I, >= the smallest fitted one; may be left out after a fit of one lam. One for
            each step from all eigenvalues.
        alphas : number, array (T - 1,) or (T - 1, c), default 0
            Weights of the ground truth at steps 2..T, any real numbers; with two axes one schedule
            for each output.
        steps : int, default 2
            T >= 1.

        Returns
        -------
        Path

        Raises
        ------
        TypeError, ValueError
            For lam below the fit, steps < 1, or a schedule that does not fit.

        Notes
        -----
        n k T c multiplications, when the result is asked for.
        """
        steps = integer("steps", steps, 1)
        lam = self._lam_of_steps(lam, steps)
        numbers = 2 * self._model.operator.n * self.info.c * steps
        self._model.afford(self._model.share_of(numbers), f"a path of {steps} steps")
        alphas = schedule(alphas, steps, outputs=self.info.c)
        return Path(lam, alphas, self._solution.chain(lam, alphas), self._model)

    @underflow_is_zero
    def limit(self, lam: float | None = None, alpha: float = 1.0) -> Limit:
        """Infinitely many steps with a fixed weight: ridge with lam / alpha, equation (17).

        Raises ValueError for several lam, and where |1 - alpha| max delta / (delta + lam) >= 1 diverges.
        """
        lam, alpha = one_lam(self.lams, lam, "a limit"), number("alpha", alpha)
        return limit_of(self._solution, self._model, lam, alpha, method=self.info.method)

    @underflow_is_zero
    def diagonal(self, lam: Any = None, alphas: Any = 0.0, steps: int = 2) -> Any:
        """B(1..T) of Lemma 4.2, (T, k) in the order of the eigenvalues; equation (12).

        Parameters as :meth:`path`, without weights per output.
        """
        steps = integer("steps", steps, 1)
        self._model.afford(self.info.k * steps, f"the diagonals of {steps} steps")
        self._spectrum_for("the diagonal B")
        lam = self._lam_of_steps(lam, steps)
        B = step_filters(self._solution, lam, schedule(alphas, steps))
        return give_back(self._model.template, B, axis=False, exact=True)

    @underflow_is_zero
    def loo(
        self, lam: Any = None, alphas: Any = 0.0, steps: int = 2, *, return_std: bool = False
    ) -> Any:
        """Leave-one-out predictions of every step, without a refit, in O(n^2 T c).

        The recursion is that of :mod:`sdgpu.distill.leave_one_out`. Exact if all eigenvalues are known
        (method="eigh"); else the leverages are estimated from random probes.

        Parameters
        ----------
        lam, alphas, steps
            As in :meth:`path`.
        return_std : bool, default False
            Whether to return the standard errors of the estimates too; 0 where they are exact.

        Returns
        -------
        array (T, n, c), or a pair of them
            Entry (t - 1, i) is what step t of the chain fitted without row i predicts there.

        Raises
        ------
        ValueError
            If a row determines itself, and for other smoothers than ridge.
        """
        steps = integer("steps", steps, 1)
        lam, alphas = self._lam_of_steps(lam, steps), schedule(alphas, steps, outputs=self.info.c)
        found = left_out_predictions(self._solution, self._model, lam, alphas)
        predictions, error = (give_back(self._model.template, values) for values in found)
        return (predictions, error) if return_std else predictions

    @underflow_is_zero
    def gcv(self, lam: Any = None, *, per_output: bool = False) -> OneShot:
        """The one-shot weight of step 2 by generalised cross-validation (Dang, Patil and Rinaldo 2026).

        Parameters
        ----------
        lam : float or pair of floats, optional
            Of both steps, or of each; without it every fitted lam, as a curve.
        per_output : bool, default False
            One weight for each output instead of a shared one.

        Returns
        -------
        OneShot
            .alpha, .score, their standard errors (0 where all eigenvalues are known) and the risks they
            come from: numbers for one lam, arrays (L,) for the curve, with an axis (c,) more per output.

        Raises
        ------
        ValueError
            For method="cg", which has no eigenvalues at all.
        """
        return one_shot_of(self.parts, lam, per_output=per_output)

    @underflow_is_zero
    def gcv_sweep(self, lams: Any = None, alphas: Any = None, steps: int = 10) -> Sweep:
        """Generalised cross-validation of every (lam, alpha, step), from the training data alone.

        Parameters as :meth:`sweep`.

        Returns
        -------
        Sweep
            With gcv, degrees_of_freedom, their standard errors and train_mse; `best("gcv")` chooses.
            Costs a few products of K, once, with probes where not all eigenvalues are known.
        """
        return gcv_of_grid(self.parts, GridRequest(lams, alphas, steps))

    @underflow_is_zero
    def optimal_alphas(
        self,
        X_val: Any = None,
        Y_val: Any = None,
        lam: Any = None,
        steps: int = 2,
        *,
        clip: bool = False,
        per_output: bool = False,
        sample_weight: Any = None,
    ) -> OptimalAlphas:
        """Algorithm 1 with the closed form (16): the best weight of each step on validation data.

        Parameters
        ----------
        X_val : array_like (m, d), m >= 1, optional
        Y_val : array_like (m,) or (m, c), optional
            Without validation data each training row is judged by the fit without it (leave-one-out).
        lam, steps
            As in :meth:`path`.
        clip : bool, default False
            Clip each weight to [0, 1] before the next step builds on it.
        per_output : bool, default False
            One weight for each output instead of a shared one (Frobenius norm).
        sample_weight : array_like (m,), optional
            Weights of the validation rows in the loss.

        Returns
        -------
        OptimalAlphas
            For m n k + m k T c multiplications.
        """
        how = {"clip": clip, "per_output": per_output, "sample_weight": sample_weight}
        return chosen_one_by_one(self.parts, X_val, Y_val, lam, steps, **how)

    @underflow_is_zero
    def joint_alphas(
        self,
        X_val: Any = None,
        Y_val: Any = None,
        lam: Any = None,
        steps: int = 2,
        *,
        ridge: float = 0.0,
        box: tuple[float, float] | None = None,
        terms: int | None = None,
        folds: int = 5,
        sample_weight: Any = None,
    ) -> JointAlphas:
        """The schedule that is best for the last step, over all weights at once (Pareek, Du and Oh 2024).

        Least squares over the tail products of the weights, in float64 with an orthogonal
        factorisation. More weights fit more noise of the validation set: `nested_mse` says how much, and
        a warning when fewer steps do better.

        Parameters
        ----------
        X_val, Y_val, lam, steps
        ridge : float, default 0
            Penalty on the scaled coefficients, a number without a unit beside squared singular values of
            at most T - 1.
        box : pair of floats, optional
            Bounds of the coefficients over u_1..u_T; (0, 1) are the schedules with weights in [0, 1].
        terms : int, optional
            At most so many coefficients that are not 0.
        folds : int, default 5
            Parts of the rows on which weights chosen on the others are judged; 1 for none.
        sample_weight : array_like (m,), optional
            Weights of the validation rows in the loss.

        Returns
        -------
        JointAlphas
        """
        how = {"box": box, "terms": terms, "folds": folds, "sample_weight": sample_weight}
        return chosen_together(self.parts, X_val, Y_val, lam, steps, ridge=ridge, **how)

    @underflow_is_zero
    def advise(self, lams: Any = None, steps: int = 5) -> Advice:
        """Whether distillation is worth it here, how many steps, and by how much, from the fit alone.

        Leave-one-out judges the best chain of 2, 3, .. steps against the ordinary fit, each with its own
        best lam; lam and weights are chosen on parts of the rows and judged on the others.

        Parameters
        ----------
        lams : array_like (L,), optional
            By default a grid from the smallest fitted lam to ten times the largest eigenvalue.
        steps : int, default 5
            Most steps that are tried, >= 2.

        Returns
        -------
        Advice
            Print it. For L times the work of :meth:`loo`.

        Raises
        ------
        ValueError
            Without all eigenvalues (method="cg", "lanczos", "subspace"), of other smoothers than ridge, and
            for fewer than 20 rows.
        """
        return advise(self.parts, lams, steps)

    @underflow_is_zero
    def sweep(
        self,
        X_val: Any = None,
        Y_val: Any = None,
        lams: Any = None,
        alphas: Any = None,
        steps: int = 10,
        *,
        metrics: Iterable[str | Metric] = (),
        classes: bool = False,
        standard_errors: bool = False,
        per_output: bool = False,
        sample_weight: Any = None,
    ) -> Sweep:
        """Validation loss of every (lam, alpha, step), the limits, alpha* and the joint optima.

        Parameters
        ----------
        X_val : array_like (m, d), m >= 1, optional
        Y_val : array_like (m,) or (m, c), optional
            Without validation data each training row is judged by the fit without it: leave-one-out,
            exact for n^2 T c more multiplications for each lam if all eigenvalues are known, else
            estimated, with its standard error in `mse_error`.
        lams : array_like (L,) or (S, T), optional
            The fitted ones by default; each >= the smallest of them. Rows (S, T) are schedules with a lam
            for each step, from all eigenvalues: losses are over (schedule, alpha, step) then.
        alphas : array_like (A,), optional
            Fixed weights, 0, 0.01, .., 1 by default; any real numbers.
        steps : int, default 10
        metrics : iterable of str or Metric, optional
            Scores of the whole grid too, by validation rows or leave-one-out: "mae", "rmse", "r2",
            "pinball_0.9", "auc", .. (:data:`sdgpu.selection.metrics.METRICS`), or objects with the methods
            of :class:`sdgpu.selection.metrics.Metric`, such as :class:`sdgpu.Pinball`.
        classes : bool, default False
            For one-hot targets, the same as metrics=["accuracy", "nll", "brier", "ece"].
        standard_errors : bool, default False
            Those over rows of the squared error and of metrics that are means, for
            best(one_standard_error=True): predictions of all points are made for them.
        per_output : bool, default False
            Losses of each output too, L A T c numbers, for best(per_output=True).
        sample_weight : array_like (m,), optional
            Weights of the validation rows in losses and metrics; left-out rows have those of the fit.

        Returns
        -------
        Sweep

        Raises
        ------
        TypeError, ValueError, MemoryError
            As :func:`sdgpu.fit`, for lam below the fit, and with `classes` for targets that are not
            one-hot or of one class only.

        Notes
        -----
        m n k + m k L T c multiplications and L A T losses: the weights cost next to nothing. Scores of
        classes need the predictions themselves, m c L A T numbers made and dropped.
        """
        request = GridRequest(
            lams, alphas, steps, metrics, classes, errors=standard_errors, per_output=per_output
        )
        judged = partial(
            judge, self._solution, self._model, X_val, Y_val, sample_weight=sample_weight
        )
        return sweep_of_grid(self.parts, judged, request)

    @underflow_is_zero
    def predictor(self, best: Best) -> Predictor:
        """What a choice of :meth:`Sweep.best` predicts, all outputs or each by its own lam and step.

        Parameters
        ----------
        best : Best

        Returns
        -------
        Predictor
            For n k T c multiplications for each lam among the choices.
        """
        for lam in np.unique(best.lam):
            served_lam(self.lams, float(lam))
        if best.per_output and len(best.lam) != self.info.c:
            raise ValueError(f"best is of {len(best.lam)} outputs, the fit has {self.info.c}")
        return chosen_predictor(self._solution, self._model, best)

    @property
    def parts(self) -> SweptFit:
        """Solution, model and what else a sweep needs, for code that builds on fits."""
        return SweptFit(
            solution=self._solution,
            model=self._model,
            lams=self.lams,
            info=self.info,
            kernel=self.kernel,
            progress=self._progress,
        )
