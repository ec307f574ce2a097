"""Random Fourier features of stationary kernels.

kappa(x - x') = E cos(w . (x - x')) over the spectral density of the kernel, so that the k features
sqrt(2 / k) [cos(W x), sin(W x)] with k / 2 frequencies W have products that are right on average.

==============  ===================================================================
kernel          frequencies, before the length scale
==============  ===================================================================
Gaussian        normal with variance 2 gamma
Laplacian       each entry Cauchy with scale gamma
Matern nu       multivariate t with 2 nu degrees of freedom
rational        normal with a variance that is Gamma distributed, of shape power and
quadratic       mean 1
periodic        multiples of 2 pi / period, differences of two Poisson numbers
spectral        2 pi times normal ones around +-means
mixture
==============  ===================================================================

Of a kernel on some columns the frequencies are those of its rows, and 0 for the other columns.

References
----------
Rahimi and Recht (2007); Yu et al. (2016) for orthogonal frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np

from sdgpu.backend.checks import integer
from sdgpu.backend.copying import without_caches
from sdgpu.kernels.columns import On
from sdgpu.kernels.feature_maps.feature_map import TurnedMap
from sdgpu.kernels.kernel import Kernel, Scaled
from sdgpu.kernels.periodic import Periodic, SpectralMixture
from sdgpu.kernels.row_scaling import of_features
from sdgpu.kernels.stationary import Gaussian, Laplacian, Matern, RationalQuadratic

__all__ = ["FourierMap", "RandomFourier"]

MOST_TURNS = (
    1e6  # beyond, a Poisson number is as good as normal, and may leave the range of integers
)


@dataclass(frozen=True, eq=False)
class FourierMap:
    """phi(x) = scale sqrt(2 / k) [cos(W x), sin(W x)].

    Attributes
    ----------
    frequencies : array (k / 2, d)
        W, with the length scale in it.
    scale : float
        Root of kappa(x, x).
    """

    frequencies: np.ndarray
    scale: float = 1.0
    approximates: ClassVar[bool] = True
    _ready: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**without_caches(self), "_ready": {}}

    @property
    def size(self) -> int:
        """k."""
        return 2 * len(self.frequencies)

    @property
    def d(self) -> int:
        """Features of a row."""
        return int(self.frequencies.shape[1])

    def transform(self, X: Any, dtype: str = "float64") -> Any:
        """b k / 2 cosines and sines, b k d / 2 multiplications, the angles always in float64."""
        xp, device = compat.array_namespace(X), compat.device(X)
        key = f"{xp.__name__} {device}"
        if key not in self._ready:
            self._ready[key] = xp.asarray(self.frequencies.T, dtype=xp.float64, device=device)
        # float32 would lose the digits of large angles
        angles = xp.astype(X, xp.float64, copy=False) @ self._ready[key]
        angles = xp.astype(xp.remainder(angles, 2 * np.pi), getattr(xp, dtype), copy=False)
        size = self.scale * np.sqrt(2.0 / self.size)
        return xp.concat([xp.cos(angles), xp.sin(angles)], axis=1) * float(size)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The frequencies and one number."""
        return {"kind": "fourier", "scale": self.scale}, {"frequencies": self.frequencies}

    def turned(self, columns: np.ndarray) -> TurnedMap:
        """Combined after they are made."""
        return TurnedMap(self, columns)


@dataclass(frozen=True)
class RandomFourier:
    """k random features of a stationary kernel (see the table above), or a multiple of one.

    Parameters
    ----------
    size : int, default 1000
        k, even.
    orthogonal : bool, default False
        Frequencies of a Gaussian, Matern or rational quadratic kernel in orthogonal blocks of d: smaller
        errors for the same k.

    Notes
    -----
    Errors of a kernel value are about 1 / sqrt(k), whatever the data: Nystrom features need far fewer.
    """

    size: int = 1000
    orthogonal: bool = False

    def __post_init__(self) -> None:
        if integer("size", self.size, 2) % 2:
            raise ValueError(
                f"size={self.size} must be even: a cosine and a sine for each frequency"
            )

    @property
    def sample_rows(self) -> int:
        """None: frequencies do not look at the data."""
        return 0

    def prepare(self, kernel: Kernel, sample: np.ndarray | None, d: int, seed: int) -> FourierMap:
        """Draw the frequencies.

        Raises
        ------
        ValueError
            For another kernel, a length scale that is not one per feature, or orthogonal frequencies of a
            kernel whose density has no rotations.
        """
        rng, scale = np.random.default_rng(seed), 1.0
        while isinstance(kernel, Scaled):
            scale, kernel = scale * kernel.scale, kernel.kernel
        if isinstance(kernel, On):
            columns = kernel.chosen(np.arange(d))
            inside = self.prepare(kernel.kernel, None, len(columns), seed)
            W = np.zeros((self.size // 2, d))
            W[:, columns] = inside.frequencies
            return FourierMap(W, float(np.sqrt(scale)) * inside.scale)
        if isinstance(kernel, SpectralMixture):
            scale *= sum(kernel.weights)
        return FourierMap(self._frequencies(kernel, rng, d), float(np.sqrt(scale)))

    def _frequencies(self, kernel: Kernel, rng: np.random.Generator, d: int) -> np.ndarray:
        """W (k / 2, d) from the spectral density of the kernel."""
        count = self.size // 2
        if isinstance(kernel, Gaussian):
            W = self._normal(rng, count, d) * np.sqrt(2 * kernel.gamma)
        elif isinstance(kernel, Matern):
            freedom = 2 * kernel.nu
            W = self._normal(rng, count, d)
            W /= np.sqrt(rng.chisquare(freedom, (count, 1)) / freedom)
        elif isinstance(kernel, RationalQuadratic):
            W = self._normal(rng, count, d)
            W *= np.sqrt(rng.gamma(kernel.power, 1 / kernel.power, (count, 1)))
        elif self.orthogonal and isinstance(kernel, (Laplacian, Periodic, SpectralMixture)):
            name = type(kernel).__name__
            raise ValueError(
                f"orthogonal=True: the density of a {name} kernel has no rotations; leave it out"
            )
        elif isinstance(kernel, Laplacian):
            W = rng.standard_cauchy((count, d)) * kernel.gamma
        elif isinstance(kernel, Periodic):
            return _harmonics(kernel, rng, count, d)
        elif isinstance(kernel, SpectralMixture):
            return _mixed(kernel, rng, count, d)
        else:
            raise ValueError(
                "random Fourier features are for Gaussian, Laplacian, Matern, RationalQuadratic, Periodic "
                f"and SpectralMixture kernels, not {kernel!r}: use sdgpu.Nystrom, or sdgpu.Explicit where "
                "the kernel has features of its own"
            )
        if kernel.lengthscale is None:
            return W
        return W / of_features("lengthscale", kernel.lengthscale, W)

    def _normal(self, rng: np.random.Generator, count: int, d: int) -> np.ndarray:
        """Standard normal rows (count, d); in orthogonal blocks with the lengths of independent ones."""
        if not self.orthogonal:
            return rng.standard_normal((count, d))
        blocks = []
        for start in range(0, count, d):
            Q, R = np.linalg.qr(rng.standard_normal((d, d)))
            lengths = np.sqrt(rng.chisquare(d, d))
            blocks.append((lengths[:, None] * (Q * np.sign(np.diag(R))).T)[: count - start])
        return np.concatenate(blocks)


def _harmonics(kernel: Periodic, rng: np.random.Generator, count: int, d: int) -> np.ndarray:
    """Whole multiples of 2 pi / period: exp(-a (1 - cos)) has the coefficients e^-a I_j(a), a = 1 / l^2.

    They are the probabilities of a difference of two Poisson numbers of mean a / 2.
    """
    like = np.empty((count, d))
    period, width = (
        np.broadcast_to(of_features(name, getattr(kernel, name), like), (d,))
        for name in ("period", "lengthscale")
    )
    mean = 0.5 / width**2
    few = np.minimum(mean, MOST_TURNS)
    turns = (rng.poisson(few, (count, d)) - rng.poisson(few, (count, d))).astype(np.float64)
    many = np.rint(rng.standard_normal((count, d)) * np.sqrt(2 * mean))
    return np.where(mean > MOST_TURNS, many, turns) * (2 * np.pi / period)


def _mixed(kernel: SpectralMixture, rng: np.random.Generator, count: int, d: int) -> np.ndarray:
    """2 pi (+-mean + sqrt(variance) z) of a component drawn by its weight, a sign for each feature."""
    kernel.require_features(d)
    means, variances = np.array(kernel.means), np.array(kernel.variances)
    weights = np.array(kernel.weights)
    drawn = rng.choice(len(weights), count, p=weights / weights.sum())
    signs = rng.choice([-1.0, 1.0], (count, d))
    normal = rng.standard_normal((count, d))
    return 2 * np.pi * (signs * means[drawn] + np.sqrt(variances[drawn]) * normal)
