"""Rows that stay where they are: workers send moments or spectra, a server makes fits of them.

Workers and server share a space of features, so that what they send adds up: random features of a seed, a
kernel's own features, or landmarks that everybody may see. A worker sends its moments, which give the fit
of all rows to rounding; or its largest eigenpairs alone (:mod:`sdgpu.solvers.local_spectrum`), with a bound
on what that changes. The server merges them, or takes the mean of the workers' fits
(:mod:`sdgpu.solvers.averaged_solution`), or lets a student learn from them (:func:`sdgpu.student`).

Moments and spectra are not private: they say much of few rows, and the moments of one row say all of it.

References
----------
Lecoiu, Mukherjee and Sur (2026), arXiv 2605.17778: of spectral estimators that data centres send to a
server which aggregates them the best are self-distilled, by another rule than all rows in one place.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.checks import grid, lam_grid
from sdgpu.backend.checksums import digest
from sdgpu.engine.feature_fitting import fit_moment_sums
from sdgpu.engine.federated_partitions import spectra
from sdgpu.engine.fitted import Fit
from sdgpu.engine.moments import Moments, open_moments
from sdgpu.kernels import Kernel
from sdgpu.kernels.description import describe_kernel
from sdgpu.kernels.feature_maps import Features
from sdgpu.kernels.feature_maps.feature_map import as_features
from sdgpu.kernels.feature_maps.stored import same_map
from sdgpu.solvers.averaged_solution import averaged
from sdgpu.solvers.local_spectrum import LocalSpectrum, open_spectrum
from sdgpu.solvers.moment_sums import MomentSums

__all__ = [
    "FeatureSpace",
    "LocalSpectrum",
    "coefficient_bound",
    "open_space",
    "open_spectrum",
    "spectra",
]

Message = Moments | LocalSpectrum


class FeatureSpace:
    """What workers and server agree on before anything is sent: a kernel, features of it, widths.

    Parameters
    ----------
    kernel : Kernel or str
    features : Features
        `sdgpu.RandomFourier`, `sdgpu.Explicit`, or `sdgpu.Nystrom` with landmarks that everybody may see.
    d, c : int
        Features of a row and outputs.
    seed : int, default 0
        Of random features.
    device : str or Backend, default "auto"

    Attributes
    ----------
    fingerprint : str
        Of kernel and features, bit for bit; messages of another one are refused. Landmarks are whitened
        by an eigendecomposition that may differ in its last bits between processors: send them by
        :meth:`save`.

    Raises
    ------
    TypeError
        For features or a kernel that are functions: they have no fingerprint.
    ValueError
        For landmarks that would be picked from the rows of one worker, and so leave it.

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> rng = np.random.default_rng(0)
    >>> space = FeatureSpace(sdgpu.Gaussian(0.5), sdgpu.RandomFourier(40), d=2)
    >>> workers = [(rng.normal(size=(n, 2)), rng.normal(size=n)) for n in (50, 200)]
    >>> messages = [space.spectrum(X, y, rank=10) for X, y in workers]
    >>> space.fit(messages, lams=[0.1]).info.n
    250
    """

    def __init__(
        self,
        kernel: Kernel | str | Any,
        features: Features,
        *,
        d: int,
        c: int = 1,
        seed: int = 0,
        device: str | Backend = "auto",
    ) -> None:
        if as_features(features).sample_rows:
            raise ValueError(
                f"{features!r} would pick landmarks from the rows of one worker, which would leave it: "
                "pass sdgpu.Nystrom(landmarks=array) with rows that everybody may see, or "
                "sdgpu.RandomFourier"
            )
        self._agree(Moments(kernel, features, d=d, c=c, seed=seed, device=device))

    def _agree(self, empty: Moments) -> None:
        description, arrays = empty.map.state()
        texts = [describe_kernel(empty.kernel), description, empty.d, empty.c]
        ordered = [part for name in sorted(arrays) for part in (name, arrays[name])]
        self._empty = empty
        self.fingerprint = digest(json.dumps(texts, sort_keys=True), *ordered)

    @property
    def empty(self) -> Moments:
        """Moments of no rows: kernel, map, widths and device."""
        return self._empty

    def moments(self, X: Any, Y: Any = None, sample_weight: Any = None) -> Moments:
        """Moments of a worker's rows, the exact message: about 8 k (k + c) bytes by their `save`.

        Parameters
        ----------
        X, Y, sample_weight
            As of :meth:`sdgpu.Moments.add`.
        """
        empty = self._empty
        found = Moments.__new__(Moments)
        found.__dict__.update(empty.__dict__)
        found._sums = MomentSums.zeros(empty.map.size, empty.c)
        return found.add(X, Y, sample_weight)

    def spectrum(
        self, X: Any, Y: Any = None, *, rank: int | None = None, sample_weight: Any = None
    ) -> LocalSpectrum:
        """The largest eigenpairs of a worker's rows: about 8 k (rank + c) bytes.

        Parameters
        ----------
        X : array_like (n, d), RowSource, or Moments of this space
        Y : array_like (n,) or (n, c), optional
        rank : int, optional
            Eigenpairs of the centred moments; all above rounding by default. One direction for each output
            is added, so that the message holds all that the features know of the targets.
        sample_weight : array_like (n,), optional

        Raises
        ------
        TypeError, ValueError
            As :meth:`sdgpu.Moments.add`.
        """
        moments = X if isinstance(X, Moments) else self.moments(X, Y, sample_weight)
        return LocalSpectrum.of(self._sums(moments, 1), self.fingerprint, rank)

    def fit(
        self, messages: Iterable[Message], lams: Any, *, intercept: bool = False, tol: float = 1e-6
    ) -> Fit:
        """The fit of the rows of all messages; of one message that worker's own.

        Parameters
        ----------
        messages : iterable of Moments or LocalSpectrum
            Mixed as you like.
        lams : array_like
            As in :func:`sdgpu.fit`, for all rows.
        intercept : bool, default False
        tol : float, default 1e-6

        Returns
        -------
        Fit
            From moments that of all rows, to rounding. From spectra that were cut `info.status` has a bound
            (:func:`coefficient_bound`).

        Raises
        ------
        ValueError
            For no messages, and those of other kernels, features or widths: names the message.
        """
        sent = _listed(messages)
        total = MomentSums.zeros(self._empty.map.size, self._empty.c)
        for sums in self._all_sums(sent):
            total.merge(sums)
        fitted = self._fit(total, lam_grid("lams", lams), intercept=intercept, tol=tol)
        if not any(isinstance(one, LocalSpectrum) and one.left_out for one in sent):
            return fitted
        lam = float(fitted.lams[0])
        bound = coefficient_bound(sent, fitted, lam, steps=1)[0]
        beta = to_numpy(fitted.path(lam, steps=1).dual)[0].reshape(len(total.gram), -1)
        size = np.linalg.norm(beta, axis=0)
        share = np.divide(bound, size, out=np.zeros_like(bound), where=size > 0).max()
        status = (
            f"{fitted.info.status}; eigenpairs were cut off: at lam = {lam:g} coefficients differ from "
            f"those of all rows by at most {share:.1e} of their length"
        )
        return replace(fitted, info=replace(fitted.info, status=status))

    def average(
        self,
        messages: Iterable[Message],
        lams: Any,
        *,
        shares: Any = None,
        intercept: bool = False,
        tol: float = 1e-6,
    ) -> Fit:
        """The mean of the fits of all workers, a fit itself: judge it on validation rows.

        Parameters
        ----------
        messages : iterable of Moments or LocalSpectrum
        lams : array_like
            For all rows: a worker with the share p of the weight is fitted with p lam.
        shares : array_like (M,), optional
            Of the workers in the mean, that sum to 1; their shares of the weight by default.
        intercept : bool, default False
            Whether features and targets are taken less their means, those of the rows of all workers.
        tol : float, default 1e-6

        Returns
        -------
        Fit
            Its weights serve all workers alike: `optimal_alphas` and `joint_alphas` on validation rows are
            the best local rules for the mean, not those that are best for one worker (arXiv 2605.17778).
            Leave-one-out, GCV and training errors are unknown (NaN) or refused.

        Raises
        ------
        ValueError
            As :meth:`fit`, and for shares that do not sum to 1.
        """
        grid_lams = lam_grid("lams", lams)
        sums = self._all_sums(_listed(messages))
        empty = [number for number, one in enumerate(sums, start=1) if not one.rows]
        if empty:
            raise ValueError(f"message {empty[0]} is of no rows: leave it out of a mean")
        weight = sum(one.weight for one in sums)
        part = np.array([one.weight / weight for one in sums])
        if shares is not None:
            given = grid("shares", shares)
            if len(given) != len(sums) or not np.isclose(given.sum(), 1):
                raise ValueError(
                    f"shares has {len(given)} entries with the sum {given.sum():g} for {len(sums)} "
                    "workers: one for each, 1 in sum"
                )
        model_mean: Any = np.zeros(self._empty.map.size)
        offset: Any = None
        if intercept:
            if any(one.audited for one in sums):
                raise ValueError(
                    "intercept of a mean: these moments are of float32 features, make them with "
                    "dtype='float64'"
                )
            model_mean = sum(one.feature_sum for one in sums) / weight
            offset = sum(one.weight * one.target_mean for one in sums) / weight
            sums = [one.around(model_mean, offset) for one in sums]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said once for all, below
            fits = [
                self._fit(one, p * grid_lams, intercept=False, tol=tol)
                for one, p in zip(sums, part, strict=True)
            ]
        error = max(one.info.error_estimate for one in fits)
        first = fits[0]
        solution = averaged(
            [one.parts.solution for one in fits],  # type: ignore[misc]
            part if shares is None else given,
            self._empty.backend,
        )
        status = (
            f"mean of the fits of {len(fits)} workers; relative error of each at most {error:.1e}"
        )
        if error > tol:
            warnings.warn(f"inaccurate: {status}; take a larger smallest lam", stacklevel=2)
        info = replace(
            first.info,
            method="average",
            n=solution.rows,
            k=int(solution.spectrum.Z.shape[0]),
            error_estimate=error,
            below_rounding=solution.spectrum.below_rounding,
            status=status,
        )
        model, backend = first.parts.model, self._empty.backend
        model = replace(
            model,
            operator=replace(model.operator, mean=backend.asarray(model_mean)),
            offset=None if offset is None else backend.asarray(offset),
        )
        return replace(first, lams=grid_lams, info=info, _solution=solution, _model=model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write kernel and features to a ``.safetensors`` file, for workers (:func:`open_space`)."""
        self._empty.save(path)

    def _fit(self, sums: MomentSums, lams: np.ndarray, *, intercept: bool, tol: float) -> Fit:
        moments = Moments.__new__(Moments)
        moments.__dict__.update(self._empty.__dict__)
        moments._sums = sums
        return fit_moment_sums(moments, lams, intercept=intercept, tol=tol)

    def _all_sums(self, messages: Sequence[Message]) -> list[MomentSums]:
        if not messages:
            raise ValueError("messages: there are none, at least one is needed")
        return [self._sums(one, number) for number, one in enumerate(messages, start=1)]

    def _sums(self, message: Message, number: int) -> MomentSums:
        """Sums of a message of this very space.

        Raises
        ------
        TypeError, ValueError
        """
        remedy = "let workers and server open a copy of one file, sdgpu.federated.open_space"
        if isinstance(message, LocalSpectrum):
            if message.fingerprint != self.fingerprint:
                raise ValueError(
                    f"message {number} is of another kernel or other features: {remedy}"
                )
            sizes = (len(message.basis), len(message.offset))
            if sizes != (
                self._empty.map.size,
                self._empty.c,
            ):  # what no worker makes, a file may say
                raise ValueError(
                    f"message {number} has {sizes[0]} features and {sizes[1]} outputs in place of "
                    f"{self._empty.map.size} and {self._empty.c}"
                )
            return message.sums()
        if not isinstance(message, Moments):
            raise TypeError(
                f"message {number} is a {type(message).__name__}: sdgpu.Moments or a LocalSpectrum is "
                "wanted"
            )
        own = self._empty
        same = (message.kernel, message.d, message.c) == (own.kernel, own.d, own.c)
        if not same or not same_map(message.map, own.map):
            raise ValueError(f"message {number} is of another kernel or other features: {remedy}")
        return message.sums


def open_space(path: str | os.PathLike[str], *, device: str | Backend = "auto") -> FeatureSpace:
    """A space out of a file of :meth:`FeatureSpace.save`; nothing in it is executed.

    Raises
    ------
    FileNotFoundError, OSError
        If there is none, or it may not be read.
    ValueError
        If it is damaged, or holds rows: names the file.
    """
    empty = open_moments(path, device=device)
    if empty.rows:
        raise ValueError(f"{path} holds moments of {empty.rows:,} rows: a space has none")
    space = FeatureSpace.__new__(FeatureSpace)
    space._agree(empty)
    return space


def coefficient_bound(
    messages: Iterable[Message], fit: Fit, lam: Any = None, alphas: Any = 0.0, steps: int = 2
) -> np.ndarray:
    """How far the coefficients of steps 1..T may be from those of all rows, as eigenpairs were cut off.

    Parameters
    ----------
    messages : iterable of Moments or LocalSpectrum
        Those that the fit was made of.
    fit : Fit
        Of :meth:`FeatureSpace.fit`.
    lam, alphas, steps
        As in :meth:`sdgpu.Fit.path`, a lam for each step too.

    Returns
    -------
    array (T, c)
        ||beta(t) - beta_all(t)||: predictions at x differ by at most ||phi(x)|| times that, phi less the
        mean with an intercept. 0 for moments and whole spectra; rounding is not counted.

    Raises
    ------
    TypeError, ValueError
        For other messages than those that the fit was made of, as far as rows and sizes tell, and a mean of
        fits.

    Notes
    -----
    (G + lam)(beta - beta_all) = E beta for step 1 with E the sum of what the workers cut off. Step t adds
    |1 - alpha_t| times what the step before is off, and ||E beta|| / lam_t of that.
    """
    sent = _listed(messages)
    path = fit.path(lam, alphas, steps)
    beta = to_numpy(path.dual)
    beta = beta.reshape(*beta.shape[:2], -1)  # (T, k, c)
    _check_made_of(fit, sent, beta.shape[1])
    cut = np.zeros((len(beta), beta.shape[2]))
    for one in sent:
        if isinstance(one, LocalSpectrum):
            cut += one.missing(beta)
    lams = np.broadcast_to(path.lam, len(beta))[:, None]
    bound = cut / lams
    for t in range(1, len(beta)):
        bound[t] += np.abs(1 - path.alphas[t - 1]) * (bound[t - 1] + cut[t - 1] / lams[t])
    return bound


def _listed(messages: Iterable[Message]) -> list[Message]:
    """Of an iterable; one message alone is none.

    Raises
    ------
    TypeError
    """
    if not isinstance(messages, Iterable):
        raise TypeError(f"messages is a {type(messages).__name__}: pass a list, of one [message]")
    return list(messages)


def _check_made_of(fit: Fit, messages: Sequence[Message], k: int) -> None:
    """Refuse a bound on the k coefficients of another fit.

    Raises
    ------
    ValueError
    """
    if fit.info.method != "features":
        raise ValueError(
            f"a bound is of space.fit(messages, lams), and this fit is of method={fit.info.method!r}: "
            "there is none for it"
        )
    rows = sum(one.rows for one in messages)
    sizes = {len(one.basis) for one in messages if isinstance(one, LocalSpectrum)}
    if rows != fit.info.n or sizes - {k}:
        raise ValueError(
            f"the fit has {fit.info.n} rows and {k} features, its messages {rows} and "
            f"{', '.join(map(str, sorted(sizes))) or 'moments'}: pass those that it was made of"
        )
