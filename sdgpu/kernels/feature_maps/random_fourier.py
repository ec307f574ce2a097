"""Random Fourier features of stationary kernels.

kappa(x - x') = E cos(w . (x - x')) over the spectral density of the kernel, so that the k features
sqrt(2 / k) [cos(W x), sin(W x)] with k / 2 frequencies W have products that are right on average.

==============  ===================================================================
kernel          frequencies, before the length scale
==============  ===================================================================
Gaussian        normal with variance 2 gamma
Laplacian       each entry Cauchy with scale gamma
Matern nu       multivariate t with 2 nu degrees of freedom
==============  ===================================================================

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
from sdgpu.kernels.feature_maps.feature_map import TurnedMap
from sdgpu.kernels.kernel import Kernel, Scaled
from sdgpu.kernels.stationary import Gaussian, Laplacian, Matern

__all__ = ["FourierMap", "RandomFourier"]


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
    """k random features of a Gaussian, Laplacian or Matern kernel, or a multiple of one.

    Parameters
    ----------
    size : int, default 1000
        k, even.
    orthogonal : bool, default False
        Frequencies of a Gaussian or Matern kernel in orthogonal blocks of d: smaller errors for the same k.

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
            Laplacian, whose density has no rotations.
        """
        rng, scale = np.random.default_rng(seed), 1.0
        while isinstance(kernel, Scaled):
            scale, kernel = scale * kernel.scale, kernel.kernel
        count = self.size // 2
        if isinstance(kernel, Gaussian):
            W = self._normal(rng, count, d) * np.sqrt(2 * kernel.gamma)
        elif isinstance(kernel, Matern):
            freedom = 2 * kernel.nu
            W = self._normal(rng, count, d)
            W /= np.sqrt(rng.chisquare(freedom, (count, 1)) / freedom)
        elif isinstance(kernel, Laplacian) and not self.orthogonal:
            W = rng.standard_cauchy((count, d)) * kernel.gamma
        else:
            if isinstance(kernel, Laplacian):
                raise ValueError(
                    "orthogonal=True: the density of a Laplacian kernel has no rotations; leave it out"
                )
            raise ValueError(
                f"random Fourier features are for Gaussian, Laplacian and Matern kernels, not {kernel!r}: "
                "use sdgpu.Nystrom, or sdgpu.Explicit where the kernel has features of its own"
            )
        lengthscale = np.asarray(1.0 if kernel.lengthscale is None else kernel.lengthscale)
        if lengthscale.ndim and len(lengthscale) != d:
            raise ValueError(
                f"lengthscale has {len(lengthscale)} entries, but the data have {d} features"
            )
        return FourierMap(W / lengthscale, float(np.sqrt(scale)))

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
