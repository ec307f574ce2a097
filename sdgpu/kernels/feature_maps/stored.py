"""Feature maps out of files, and whether two are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdgpu.backend.checks import integer, positive
from sdgpu.kernels.feature_maps.explicit import MOST, CallableMap, OwnMap, own_size
from sdgpu.kernels.feature_maps.feature_map import FeatureMap
from sdgpu.kernels.feature_maps.nystrom import NystromMap
from sdgpu.kernels.feature_maps.random_fourier import FourierMap
from sdgpu.kernels.kernel import Kernel

__all__ = ["same_map", "stored_map"]


def stored_map(
    description: Mapping[str, Any], arrays: Mapping[str, np.ndarray], kernel: Kernel
) -> FeatureMap:
    """The map that :meth:`FeatureMap.state` described.

    Raises
    ------
    ValueError
        For anything else.
    """
    if not isinstance(description, Mapping):
        raise ValueError(f"a {type(description).__name__} describes no feature map")
    kind = description.get("kind")
    try:
        if kind == "nystrom":
            landmarks, whitening = (_matrix(arrays, name) for name in ("landmarks", "whitening"))
            if len(landmarks) != len(whitening):
                raise ValueError(f"{len(landmarks)} landmarks with {len(whitening)} of whitening")
            return NystromMap(kernel, landmarks, whitening)
        if kind == "fourier":
            scale = positive("scale", description["scale"], zero=True)
            return FourierMap(_matrix(arrays, "frequencies"), scale)
        if kind == "own":
            d = integer("d", description["d"], 1)
            size = own_size(kernel, d)
            if size is None or size > MOST:
                raise ValueError(f"{kernel!r} has no features of its own for rows of {d}")
            return OwnMap(kernel, d)
    except KeyError as error:
        raise ValueError(f"a map of kind {kind!r} lacks {error}") from error
    except TypeError as error:
        raise ValueError(f"a map of kind {kind!r}: {error}") from error
    raise ValueError(f"{kind!r} is no feature map that a file may name")


def _matrix(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    array = arrays[name]
    if (
        array.ndim != 2
        or array.dtype != np.float64
        or not np.isfinite(array).all()
        or not array.size
    ):
        raise ValueError(f"{name} is no matrix of finite float64 numbers")
    return array


def same_map(one: FeatureMap, other: FeatureMap) -> bool:
    """Whether both make the same features, bit for bit."""
    if one is other:
        return True
    if isinstance(one, CallableMap) or isinstance(other, CallableMap):  # which have no state
        functions = [getattr(features, "function", None) for features in (one, other)]
        return functions[0] is functions[1] and (one.d, one.size) == (other.d, other.size)
    (first, first_arrays), (second, second_arrays) = one.state(), other.state()
    return (
        first == second
        and first_arrays.keys() == second_arrays.keys()
        and all(np.array_equal(first_arrays[name], second_arrays[name]) for name in first_arrays)
    )
