"""Nystrom features: kernel values with k landmarks, whitened.

phi(x) = Q' diag(w)^-1/2 U' kappa(X_S, x) with K_SS = U diag(w) U', so that phi(x) . phi(x') =
kappa(x, X_S) K_SS^-1 kappa(X_S, x'): the projection of kappa on the functions of the landmarks. The
rotation Q makes the whitening W = U diag(w)^-1/2 Q lower triangular, of which products skip the zeros.

Each block is whitened on its own, in the precision that was asked for: summing products of kernel values
in float32 and whitening the sum afterwards leaves nothing where lam is small and K_SS is near singular.
Where its condition is below 1e4 the sum is whitened (:func:`before_whitening`): a third of the time.

References
----------
Williams and Seeger (2001).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np
import scipy.linalg

from sdgpu.backend.arrays import inputs, slices
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import choice, integer
from sdgpu.backend.copying import without_caches
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.feature_maps.landmarks import kmeans_centres, random_pivots, uniform_rows
from sdgpu.kernels.kernel import Kernel
from sdgpu.kernels.kernel_matrices import cross, gram, summed_features
from sdgpu.kernels.row_preparation import ready_rows

__all__ = ["Nystrom", "NystromMap", "before_whitening"]

BLOCKS = 4  # of a pass, which nobody knows: what compiling is weighed against
NUMBERS = 2**19  # of a tile of kernel values: 2 MiB in float32; of half the size calls cost 10 %
CONDITION = (
    1e4  # of K_SS up to which float32 sums may be whitened afterwards: errors of 1e-5 and less
)
MANY = 16  # rows of a block for each landmark, from which 2 k^3 multiplications of its sums are few
PANELS, NARROWEST = 8, 64  # of columns of a triangle: 0.6 to 0.7 of the time of a whole product
CANDIDATES = 20_000  # rows from which landmarks are picked, or ten for each where that is more


@dataclass(frozen=True, eq=False)
class NystromMap:
    """phi(x) = W' kappa(X_S, x).

    Attributes
    ----------
    kernel : Kernel
    landmarks : array (m, d)
        X_S, on the host in float64.
    whitening : array (m, k)
        W.
    """

    kernel: Kernel
    landmarks: np.ndarray
    whitening: np.ndarray
    approximates: ClassVar[bool] = True
    _ready: dict[str, tuple[Rows, Any, Any]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**without_caches(self), "_ready": {}}

    @classmethod
    def of(cls, kernel: Kernel, landmarks: np.ndarray) -> NystromMap:
        """Whiten landmarks (m, d); those that others explain to rounding add no feature."""
        landmarks = np.ascontiguousarray(landmarks, dtype=np.float64)
        K = gram(kernel, ready_rows(kernel, landmarks, landmarks.mean(axis=0)))
        w, U = scipy.linalg.eigh(K, driver="evd", overwrite_a=True, check_finite=False)
        kept = w > len(w) * np.finfo(float).eps * max(float(w[-1]), 0.0)
        # rows of falling size: each keeps its own digits in the factorisation
        R, order = scipy.linalg.qr(
            (U[:, kept] / np.sqrt(w[kept])).T, mode="r", pivoting=True, check_finite=False
        )
        return cls(kernel, landmarks[order], np.tril(R.T))

    @property
    def size(self) -> int:
        """k."""
        return int(self.whitening.shape[1])

    @property
    def d(self) -> int:
        """Features of a row."""
        return int(self.landmarks.shape[1])

    @cached_property
    def centre(self) -> np.ndarray:
        """What is subtracted before distances are taken."""
        return self.landmarks.mean(axis=0)

    def transform(self, X: Any, dtype: str = "float64") -> Any:
        """b m kernel values and b m k multiplications; a tile of values at a time beside the result."""
        xp = compat.array_namespace(X)
        rows, whitening, centre = self._in(X, dtype)
        precision = getattr(xp, dtype)
        X = xp.astype(X, precision, copy=False)
        phi = xp.empty((X.shape[0], self.size), dtype=precision, device=compat.device(X))
        height, panels = max(1, NUMBERS // max(len(rows), 1)), self._panels
        for part in slices(int(X.shape[0]), height):
            tile = _values(self.kernel, self.kernel.rows(X[part, :], centre), rows, of=X)
            for first, columns in panels:
                phi[part, columns] = tile[:, first:] @ whitening[first:, columns]
        return phi

    def gradient(self, X: Any, *, W: Any = None, factor: Any = None) -> Any:
        """That of the kernel, with the coefficients of the landmarks."""
        xp = compat.array_namespace(X)
        rows, whitening, centre = self._in(X, "float64")
        if W is not None:
            return self.kernel.gradient(X, centre, rows, whitening @ W)
        ones = xp.ones((len(rows), 1), dtype=X.dtype, device=compat.device(X))
        return self.kernel.gradient(X, centre, rows, ones, factor=factor @ whitening.T)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Landmarks, and the whitening: eigenvectors of another machine may have other signs."""
        return {"kind": "nystrom"}, {"landmarks": self.landmarks, "whitening": self.whitening}

    @cached_property
    def _panels(self) -> list[tuple[int, slice]]:
        """Columns of W that are multiplied together, and the first row that is not 0 in any of them."""
        parts = slices(self.size, max(NARROWEST, -(-self.size // PANELS)))
        nonzero = self.whitening != 0
        return [(int(nonzero[:, part].any(axis=1).argmax()), part) for part in parts]

    @cached_property
    def condition(self) -> float:
        """Largest over smallest eigenvalue of K_SS, of those that are kept."""
        sizes = scipy.linalg.svdvals(self.whitening, check_finite=False)
        return float((sizes[0] / sizes[-1]) ** 2)

    def turned(self, columns: np.ndarray) -> NystromMap:
        """One product whitens and combines: W columns."""
        return NystromMap(self.kernel, self.landmarks, self.whitening @ columns)

    def _in(self, X: Any, dtype: str) -> tuple[Rows, Any, Any]:
        """Ready landmarks, whitening and centre beside X, made once for each place and precision."""
        xp, device = compat.array_namespace(X), compat.device(X)
        key = f"{xp.__name__} {device} {dtype}"
        if key not in self._ready:
            precision = getattr(xp, dtype)
            landmarks, whitening, centre = (
                xp.asarray(array, dtype=precision, device=device)
                for array in (self.landmarks, self.whitening, self.centre)
            )
            self._ready[key] = (ready_rows(self.kernel, landmarks, centre), whitening, centre)
        return self._ready[key]


@dataclass(frozen=True, eq=False)
class LandmarkValues:
    """kappa(X_S, x), before it is whitened.

    Attributes
    ----------
    map : NystromMap
    """

    map: NystromMap

    def transform(self, X: Any, dtype: str = "float64") -> Any:
        """Kernel values (b, m)."""
        xp = compat.array_namespace(X)
        rows, _, centre = self.map._in(X, dtype)
        precision = getattr(xp, dtype)
        X = xp.astype(X, precision, copy=False)
        values = xp.empty((X.shape[0], len(rows)), dtype=precision, device=compat.device(X))
        for part in slices(int(X.shape[0]), max(1, NUMBERS // max(len(rows), 1))):
            new = self.map.kernel.rows(X[part, :], centre)
            values[part, :] = _values(self.map.kernel, new, rows, of=X)
        return values


def _values(kernel: Kernel, new: Rows, landmarks: Rows, *, of: Any) -> Any:
    """Kernel values of some rows of a block X: compiled where features are summed one by one, if that pays.

    Of products of matrices a compiled loop saves a tenth at most, and costs as much as a million rows.
    """
    rows, d = (int(size) for size in of.shape)
    if not summed_features(kernel, d):
        return kernel.tile(new, landmarks)
    return cross(kernel, new, landmarks, pairs=BLOCKS * rows * len(landmarks))


def before_whitening(
    features: Any, *, precision: str, rows: int
) -> tuple[LandmarkValues, np.ndarray] | None:
    """Kernel values and W, where sums of blocks of so many rows may be whitened after they are made."""
    if not isinstance(features, NystromMap) or precision != "float32":
        return None
    if rows < MANY * len(features.landmarks) or features.condition > CONDITION:
        return None
    return LandmarkValues(features), features.whitening


@dataclass(frozen=True, eq=False)
class Nystrom:
    """k features from landmarks.

    Parameters
    ----------
    size : int, default 1000
        k, landmarks at the most. Where fewer explain the sample to rounding there are fewer.
    landmarks : {"rpcholesky", "kmeans", "uniform"} or array (k, d), default "rpcholesky"
        Randomly pivoted Cholesky, centres of k-means, rows drawn uniformly, or the caller's own rows, which
        need not be training rows.
    candidates : int, optional
        Rows, drawn uniformly, from which landmarks are picked: by default 20,000 or 10 k, the larger.

    Raises
    ------
    ValueError
        For a size < 1, an unknown choice, or landmarks that are no matrix of finite rows or are equal.

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> X = np.linspace(0, 1, 500)[:, None]
    >>> phi = Nystrom(20).prepare(sdgpu.Gaussian(10.0), X, 1, 0).transform(X)
    >>> bool(np.abs(phi @ phi.T - sdgpu.Gaussian(10.0)(X)).max() < 1e-9)
    True
    """

    size: int = 1000
    landmarks: Any = "rpcholesky"
    candidates: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.landmarks, str):
            choice("landmarks", self.landmarks, ("rpcholesky", "kmeans", "uniform"))
            integer("size", self.size, 1)
        else:
            rows = np.array(to_numpy(inputs(self.landmarks, "landmarks")), dtype=np.float64)
            distinct = len(np.unique(rows, axis=0))
            if distinct < len(rows):
                raise ValueError(
                    f"landmarks has {len(rows) - distinct} rows that are equal to others: give each once"
                )
            object.__setattr__(self, "landmarks", rows)
            object.__setattr__(self, "size", len(rows))
        if self.candidates is not None and integer("candidates", self.candidates, 1) < self.size:
            raise ValueError(f"candidates={self.candidates} is below size={self.size}")

    @property
    def sample_rows(self) -> int:
        """Rows to pick from; none where the caller brought the landmarks."""
        if not isinstance(self.landmarks, str):
            return 0
        if self.landmarks == "uniform":
            return self.size
        return self.candidates or max(CANDIDATES, 10 * self.size)

    def prepare(self, kernel: Kernel, sample: np.ndarray | None, d: int, seed: int) -> NystromMap:
        """Pick and whiten the landmarks.

        Raises
        ------
        ValueError
            For more landmarks than rows, landmarks of another width, or a precomputed kernel.
        """
        if kernel.is_precomputed:
            raise ValueError("features need a kernel that can be evaluated, not a precomputed one")
        if not isinstance(self.landmarks, str):
            if self.landmarks.shape[1] != d:
                raise ValueError(
                    f"landmarks has {self.landmarks.shape[1]} features, but the rows have {d}"
                )
            return NystromMap.of(kernel, self.landmarks)
        assert sample is not None
        if self.size > len(sample):
            raise ValueError(
                f"size={self.size} landmarks of {len(sample):,} rows: take at most as many as there "
                "are rows"
            )
        if self.landmarks == "kmeans":
            return NystromMap.of(kernel, kmeans_centres(sample, self.size, seed=seed))
        if self.landmarks == "uniform":
            return NystromMap.of(kernel, sample[uniform_rows(self.size, len(sample), seed=seed)])
        return NystromMap.of(kernel, sample[random_pivots(kernel, sample, self.size, seed=seed)])
