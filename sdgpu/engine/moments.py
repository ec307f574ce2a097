"""`Moments`: rows that are added, merged, taken away and saved, and fitted whenever that is wanted."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sdgpu.backend.arrays import inputs, targets
from sdgpu.backend.backends import Backend, resolve
from sdgpu.backend.checks import choice, integer
from sdgpu.backend.conversion import warn_if_followed
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.rows import ArraySource, RowSource, SparseSource
from sdgpu.backend.sealed_tensors import fault_in_words, read_tensors, tensor_path, write_tensors
from sdgpu.backend.sparse_rows import is_sparse
from sdgpu.backend.storage import check_writable
from sdgpu.engine.streaming import block_rows, sample_rows, sum_rows, takes_sparse
from sdgpu.kernels import Kernel, as_kernel
from sdgpu.kernels.description import describe_kernel, described_kernel
from sdgpu.kernels.feature_maps import FeatureMap, Features
from sdgpu.kernels.feature_maps.feature_map import as_features
from sdgpu.kernels.feature_maps.stored import same_map, stored_map
from sdgpu.solvers.moment_sums import MomentSums

__all__ = ["Moments", "open_moments"]

FORMAT = 1


class Moments:
    """All that a feature model keeps of its rows: sums of k x k numbers that add up.

    Parameters
    ----------
    kernel : Kernel, str or callable
        See :func:`sdgpu.kernels.as_kernel`.
    features : Features
        `sdgpu.Nystrom`, `sdgpu.RandomFourier` or `sdgpu.Explicit`; landmarks are picked from
        the rows of the first :meth:`add` where they are not given.
    d, c : int
        Features of a row and outputs.
    dtype : {"float64", "float32"}, default "float64"
        In which features are made; sums are float64 always.
    seed : int, default 0
        Of landmarks and frequencies.
    device : str or Backend, default "auto"

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(400, 2)), rng.normal(size=400)
    >>> moments = Moments(sdgpu.Gaussian(0.5), sdgpu.Nystrom(30), d=2, c=1)
    >>> for day in range(4):
    ...     _ = moments.add(X[100 * day : 100 * day + 100], y[100 * day : 100 * day + 100])
    >>> moments.rows
    400
    >>> sdgpu.fit(moments, lams=[0.1]).path(alphas=0.3, steps=3).predict(X[:5]).shape
    (3, 5)
    """

    def __init__(
        self,
        kernel: Kernel | str | Any,
        features: Features,
        *,
        d: int,
        c: int = 1,
        dtype: str = "float64",
        seed: int = 0,
        device: str | Backend = "auto",
    ) -> None:
        features = as_features(features)
        self.kernel, self.d, self.c = as_kernel(kernel), integer("d", d, 1), integer("c", c, 1)
        self.dtype = choice("dtype", dtype, ("float64", "float32"))
        self.backend = resolve(device)
        self._features, self._seed = features, integer("seed", seed, 0)
        self._map: FeatureMap | None = None
        self._sums: MomentSums | None = None
        if not features.sample_rows:
            self._prepare(None)

    @property
    def rows(self) -> int:
        """Rows that were added."""
        return 0 if self._sums is None else self._sums.rows

    @property
    def weight(self) -> float:
        """Sum of their weights."""
        return 0.0 if self._sums is None else self._sums.weight

    @property
    def map(self) -> FeatureMap:
        """The feature map.

        Raises
        ------
        ValueError
            Before the first rows, if landmarks are picked from them.
        """
        if self._map is None:
            raise ValueError("the landmarks are picked from the first rows: add some")
        return self._map

    @property
    def sums(self) -> MomentSums:
        """The sums themselves.

        Raises
        ------
        ValueError
            As :attr:`map`.
        """
        if self._sums is None:
            raise ValueError("the landmarks are picked from the first rows: add some")
        return self._sums

    @property
    def nbytes(self) -> int:
        """Of the sums, which is what :meth:`save` writes beside the map: about 8 k (k + c + 1).

        Raises
        ------
        ValueError
            As :attr:`map`.
        """
        return sum(array.nbytes for array in self.sums.state()[0].values())

    def add(self, X: Any, Y: Any = None, sample_weight: Any = None) -> Moments:
        """Add rows.

        Parameters
        ----------
        X : array_like (b, d), sparse for Explicit features, or RowSource
            A source brings its own targets and weights.
        Y : array_like (b,) or (b, c)
        sample_weight : array_like (b,), optional

        Returns
        -------
        Moments
            Itself.

        Raises
        ------
        TypeError, ValueError
            As :func:`sdgpu.fit`; nothing has changed then.
        """
        source, before = self._source(X, Y, sample_weight), (self._map, self._sums)
        try:
            if self._map is None:
                self._prepare(sample_rows(source, self._features.sample_rows, self._seed))
            self.sums.merge(self._block_sums(source))
        except BaseException:
            self._map, self._sums = before  # landmarks too are those of rows that were added
            raise
        return self

    def merge(self, other: Moments) -> Moments:
        """Add the rows of others, of the same kernel and features; returns itself.

        Raises
        ------
        ValueError
            For other kernels, features or widths: landmarks that were picked apart differ. Give all the
            same, landmarks=array.
        """
        if other._sums is None:
            return self
        if self._map is None and (self.kernel, self.d, self.c) == (other.kernel, other.d, other.c):
            self._map = other.map
            self._sums = MomentSums.zeros(other.sums.size, self.c, other.sums.offset)
        if (self.kernel, self.c) != (other.kernel, other.c) or not same_map(self.map, other.map):
            raise ValueError(
                "moments of other kernels or features do not add up: make both with landmarks=array, or "
                "open both from a copy of one file"
            )
        self.sums.merge(other.sums)
        return self

    def subtract(self, X: Any, Y: Any = None, sample_weight: Any = None) -> Moments:
        """Take rows away that were added before; parameters as :meth:`add`; returns itself.

        Raises
        ------
        ValueError
            For rows that cannot have been added; nothing has changed then.
        """
        self.sums.subtract(self._block_sums(self._source(X, Y, sample_weight)))
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to a ``.safetensors`` file, whole or not at all, with a checksum.

        Raises
        ------
        TypeError
            For features or a kernel that are functions.
        OSError
            If the folder cannot be written, or the disk is full: what stood there is untouched.
        """
        target = tensor_path(path)
        check_writable(target)
        (stored, numbers), (description, arrays) = self.sums.state(), self.map.state()
        stored = stored | {f"map.{name}": array for name, array in arrays.items()}
        metadata = {
            "moments": FORMAT,
            "kernel": describe_kernel(self.kernel),
            "map": description,
            "d": self.d,
            "c": self.c,
            "dtype": self.dtype,
            "seed": self._seed,
            **numbers,
        }
        write_tensors(target, stored, metadata)

    def _prepare(self, sample: np.ndarray | None) -> None:
        self._map = self._features.prepare(self.kernel, sample, self.d, self._seed)
        self._sums = MomentSums.zeros(self._map.size, self.c)

    def _source(self, X: Any, Y: Any, weights: Any) -> RowSource:
        warn_if_followed(X=X, Y=Y)
        if isinstance(X, RowSource):
            if Y is not None or weights is not None:
                raise ValueError("Y and sample_weight: a source brings its own")
            source: RowSource = X
        elif is_sparse(X):
            source = SparseSource.of(X, Y, weights)
        else:
            rows = inputs(X, "X", features=self.d)
            truth, _ = targets(Y, "Y", rows=int(rows.shape[0]), outputs=self.c)
            if weights is not None:
                weights = targets(weights, "sample_weight", rows=int(rows.shape[0]), outputs=1)[0][
                    :, 0
                ]
            source = ArraySource(rows, truth, weights)
        takes_sparse(self._map or self._features, wanted=isinstance(source, SparseSource))
        if (source.d, source.c) != (self.d, self.c):
            raise ValueError(
                f"rows of {source.d} features and {source.c} outputs do not go with d={self.d}, c={self.c}"
            )
        return source

    def _block_sums(self, source: RowSource) -> MomentSums:
        """Sums of new rows, apart: an error in their middle must not leave half of them."""
        sums = MomentSums.zeros(self.map.size, self.c, self.sums.offset)
        sum_rows(
            source,
            self.map,
            sums,
            self.backend,
            precision=self.dtype,
            rows=block_rows(self.map.size),
            watch=Stopwatch(self.backend.synchronize),
        )
        return sums


def open_moments(path: str | os.PathLike[str], *, device: str | Backend = "auto") -> Moments:
    """Moments out of a file of :meth:`Moments.save`; nothing in it is executed.

    Raises
    ------
    FileNotFoundError, OSError
        If there is none, or it may not be read.
    ValueError
        If it is damaged, or holds something else: names the file.
    """
    source = tensor_path(path)
    arrays, metadata = read_tensors(source, "moments")
    try:
        if metadata["moments"] != FORMAT:
            raise ValueError(f"it is of version {metadata['moments']!r}, not {FORMAT}")
        kernel = described_kernel(metadata["kernel"])
        prefix = "map."
        own = {name[len(prefix) :]: x for name, x in arrays.items() if name.startswith(prefix)}
        feature_map = stored_map(metadata["map"], own, kernel)
        c = integer("c", metadata["c"], 1)
        sums = MomentSums.restored(arrays, metadata, feature_map.size, c)
        if metadata["d"] != feature_map.d:
            raise ValueError(f"rows of {metadata['d']} for a map of {feature_map.d}")
        moments = Moments.__new__(Moments)
        moments.kernel, moments.d, moments.c = kernel, feature_map.d, c
        moments.dtype = choice("dtype", metadata["dtype"], ("float64", "float32"))
        moments.backend = resolve(device)
        moments._seed = integer("seed", metadata["seed"], 0)
        moments._map, moments._sums = feature_map, sums
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} holds no moments: {fault_in_words(error)}") from error
    return moments
