"""Options of ``sweep`` for data that are read in blocks, and for features in place of the kernel matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.cli.fit import named_kernel

if TYPE_CHECKING:
    from sdgpu.kernels import Kernel
    from sdgpu.kernels.feature_maps import Features
    from sdgpu.study.real_data.large_data import LargeData

__all__ = ["chosen_features", "is_large", "opened"]

SIZE = 256


def is_large(name: str) -> bool:
    """Whether this is one of the data sets that are read in blocks."""
    from sdgpu.study.real_data.large_data import LARGE

    return name in LARGE


def opened(name: str, *, rows: int | None, seed: int, **table: Any) -> LargeData:
    """One of these data sets.

    Raises
    ------
    ValueError
        For options of tables.
    """
    from sdgpu.study.real_data.large_data import load_large

    for option, value in table.items():
        if value:
            raise ValueError(f"{option}={value!r} is for files, not for {name}")
    return load_large(name, rows=rows, seed=seed)


def chosen_features(
    parts: Any,
    kernel: str,
    gamma: str,
    *,
    features: str | None,
    size: int | None,
    landmarks: str | None,
    seed: int,
) -> tuple[Kernel, Features | None]:
    """The kernel, and the features in its place, if any.

    Raises
    ------
    ValueError
        For unknown names, and options of features without features.
    """
    import sdgpu
    from sdgpu.backend.checks import choice, integer

    large = hasattr(parts, "sample")
    features = features or ("nystrom" if large else None)
    if features is None:
        for option, value in (("size", size), ("landmarks", landmarks)):
            if value is not None:
                raise ValueError(f"{option}={value!r} is of features: add --features nystrom")
    else:
        choice("features", features, ("nystrom", "fourier", "own"))
    rows = parts.sample if large else parts.X_train
    k = SIZE if size is None else integer("size", size, 1)
    if gamma == "auto":
        wide = parts.gamma(k) if large else None
        gamma = "median" if wide is None else str(wide)
    kappa = named_kernel(kernel, gamma, rows)
    if landmarks is not None and features != "nystrom":
        raise ValueError(f"landmarks={landmarks!r} is for --features nystrom")
    if features == "own":
        if size is not None:
            raise ValueError(f"size={size}: a kernel has as many features of its own as it has")
        return kappa, sdgpu.Explicit()
    if features == "fourier":
        return kappa, sdgpu.RandomFourier(k)
    if features == "nystrom":
        recipe = sdgpu.Nystrom(k, landmarks or "rpcholesky")
        if not large:
            return kappa, recipe
        # the source is read once: landmarks are of the sample that came with it
        sample = np.asarray(rows, dtype=np.float64)
        picked = recipe.prepare(kappa, sample, int(sample.shape[1]), seed).landmarks
        return kappa, sdgpu.Nystrom(landmarks=picked)
    return kappa, None
