"""Rows that are shared out among workers, what they send, and the fit that a server makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import sdgpu
from sdgpu.engine.federated import FeatureSpace, LocalSpectrum, coefficient_bound
from sdgpu.engine.fitted import Fit
from sdgpu.engine.moments import Moments
from sdgpu.selection.sweep import Best
from sdgpu.study.grid_study.cell_data import features_of, lams_by_step
from sdgpu.study.grid_study.cells import Decomposition
from sdgpu.study.grid_study.federated_table import Answer, Sharing
from sdgpu.study.real_data.datasets import Split

__all__ = ["Federation", "SharedFit", "rows_of_workers"]

Message = Moments | LocalSpectrum

_OF_ROWS = ("loo", "ridge_loo", "advice")
_NO_LABELS = {
    "mean": "a mean of fits has no training rows of its own",
    "distilled": "what a student learns from are the words of workers, not labels",
}


@dataclass(frozen=True, eq=False)
class SharedFit:
    """What a server made of messages.

    Attributes
    ----------
    fit : Fit
    lams : array (L,)
        The grid for its rows.
    answer : Answer
    messages : tuple of Moments or LocalSpectrum
    notes : dict
        Of a student: teacher_lam and teacher_weights.
    """

    fit: Fit
    lams: np.ndarray
    answer: Answer
    messages: tuple[Message, ...] = field(repr=False)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def sent_bytes(self) -> int:
        """Of all messages together."""
        return sum(one.nbytes for one in self.messages)

    def check_rule(self, rule: str) -> None:
        """Refuse a rule that asks for rows which nobody has.

        Raises
        ------
        ValueError
        """
        if rule in _OF_ROWS and self.answer.kind == "merged":
            raise ValueError("leave-one-out needs training rows, and messages hold none")
        if rule in (*_OF_ROWS, "gcv") and self.answer.kind in _NO_LABELS:
            raise ValueError(f"{_NO_LABELS[self.answer.kind]}: judge on validation rows")

    def bound(self, best: Best) -> dict[str, float]:
        """How far the coefficients of a choice may be from those of all rows, over their length.

        The largest of all outputs; nothing where no eigenpair could be cut off, NaN for a limit.
        """
        if self.answer.kind != "merged" or self.answer.rank is None:
            return {}
        if np.isinf(best.step):
            return {"cut_bound": float("nan")}
        steps = int(best.step)
        point = (best.lam, best.alpha if steps > 1 else 0.0, steps)
        off = coefficient_bound(self.messages, self.fit, *point)[-1]
        beta = np.asarray(self.fit.path(*point).dual)[-1].reshape(-1, len(off))
        size = np.linalg.norm(beta, axis=0)
        return {
            "cut_bound": float(np.divide(off, size, out=np.zeros_like(off), where=size > 0).max())
        }

    def known(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Losses of a cell without those of the words that a student learned from."""
        blank = ("train_mse", "gcv") if self.answer.kind == "distilled" else ()
        return {
            name: np.full_like(values, np.nan) if name in blank else values
            for name, values in arrays.items()
        }


def rows_of_workers(parts: Split, sharing: Sharing, n: int, seed: int) -> list[np.ndarray]:
    """Indices of the rows of each worker, of the first n training rows.

    Sorted by targets without noise, so that all levels of noise have the same workers.
    """
    if sharing.split == "random":
        order = np.random.default_rng([seed, 3]).permutation(n)
    elif sharing.split == "inputs":
        order = np.argsort(_first_direction(parts.X_train[:n]), kind="stable")
    else:
        Y = parts.Y_train[:n]
        values = Y.argmax(axis=1) if parts.classes else _first_direction(Y)
        order = np.argsort(values, kind="stable")
    return np.array_split(order, sharing.workers)


def _first_direction(values: np.ndarray) -> np.ndarray:
    """Rows (n,) along their first principal direction, whose largest entry is positive."""
    centred = values - values.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    return np.asarray(centred @ (direction * np.sign(direction[np.abs(direction).argmax()])))


class Federation:
    """Workers that have computed their moments, and a server with validation rows.

    Parameters
    ----------
    job : Decomposition
        With a sharing.
    parts : Split
    kernel : Kernel
    Y : array (n, c)
        Training targets with the noise of a level.
    device : str
    """

    def __init__(
        self, job: Decomposition, parts: Split, kernel: Any, Y: np.ndarray, *, device: str
    ) -> None:
        table, sharing, method = job.config.federated, job.sharing, job.method
        assert table is not None
        assert sharing is not None
        n = len(Y) - table.server_rows(len(Y))
        self._job, self._kernel, self._device = job, kernel, device
        self._unlabelled, self._rows = parts.X_train[n:], n
        public = np.concatenate([self._unlabelled, parts.X_val])
        self._features = features_of(method, kernel, job.seed, pick_from=public)
        (_, d), c = parts.X_train.shape, Y.shape[1]
        own = self._features
        assert own is not None
        self._space = FeatureSpace(kernel, own, d=d, c=c, seed=job.seed, device=device)
        self._moments = tuple(
            self._space.moments(parts.X_train[rows], Y[rows])
            for rows in rows_of_workers(parts, sharing, n, job.seed)
        )
        self._sent: tuple[int | None, tuple[Message, ...]] = (None, self._moments)

    def _messages(self, rank: int | None) -> tuple[Message, ...]:
        if self._sent[0] != rank:
            made: tuple[Message, ...] = self._moments
            if rank is not None:
                made = tuple(self._space.spectrum(one, rank=rank) for one in self._moments)
            self._sent = (rank, made)
        return self._sent[1]

    def fit(self, answer: Answer, validation: tuple[Any, Any], *, memory: Any = None) -> SharedFit:
        """What the server makes of the messages of an answer.

        Parameters
        ----------
        answer : Answer
        validation : tuple of arrays (m, d) and (m, c)
            Of the server: the weights of a student's teachers are fitted on them.
        memory : bytes or "8GiB", optional
        """
        job, messages = self._job, self._messages(answer.rank)
        how: dict[str, Any] = {"intercept": job.method.has_intercept, "tol": job.config.compute.tol}
        if answer.kind == "distilled":
            return self._distilled(answer, validation, memory=memory)
        lams = job.config.grid.ridges(self._rows)
        served = np.unique(lams_by_step(job, lams))
        make = self._space.fit if answer.kind == "merged" else self._space.average
        return SharedFit(make(messages, served, **how), lams, answer, messages)

    def _distilled(self, answer: Answer, validation: tuple[Any, Any], *, memory: Any) -> SharedFit:
        """A student of the workers' own fits, at rows of the server.

        Each worker is fitted with its share of every lam of the grid; one of these and weights on the
        simplex are those of the best student of step 1. All of the grid follows from the words that they
        stand for.
        """
        job, messages, U = self._job, self._messages(answer.rank), self._unlabelled
        method, grid, c = job.method, job.config.grid, validation[1].shape[1]
        own: dict[str, Any] = {"intercept": method.has_intercept, "tol": job.config.compute.tol}
        how: dict[str, Any] = {
            "features": self._features,
            "device": self._device,
            "memory": memory,
            **own,
        }
        how |= {"seed": job.seed, "steps": grid.steps}
        shares = grid.ridges(self._rows) / len(messages)
        teachers = [self._space.fit([one], shares, **own) for one in messages]
        lams = grid.ridges(len(U))
        taught = sdgpu.student(
            teachers,
            self._kernel,
            lams,
            np.zeros((0, U.shape[1])),
            np.zeros((0, c)),
            unlabelled=U,
            weights="fitted",
            **how,
        )
        best: dict[str, Any]
        if len(teachers) == 1:
            best = {**taught.sweep(*validation, alphas=[0.0]).best(), "weights": np.ones(1)}
        else:
            best = taught.fit_weights(*validation, kind="simplex", alphas=[0.0], folds=1).best()
        lam, weights = best["teacher_lam"], best["weights"]
        words = np.stack([one.path(lam, steps=1).predict(U)[0] for one in teachers])
        said = np.tensordot(weights, words, axes=1).reshape(len(U), c)
        served = np.unique(lams_by_step(job, lams))
        fitted = sdgpu.fit(U, said, self._kernel, served, **how)
        notes = {"teacher_lam": float(lam), "teacher_weights": weights.tolist()}
        return SharedFit(fitted, lams, answer, messages, notes)
