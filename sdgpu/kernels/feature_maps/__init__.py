"""Feature maps: finitely many features phi with kappa(x, x') ~ phi(x) . phi(x').

Fits of features see rows once and keep k x k numbers, so rows may be without end.
"""

from __future__ import annotations

from sdgpu.kernels.feature_maps.explicit import Explicit
from sdgpu.kernels.feature_maps.feature_map import FeatureMap, Features
from sdgpu.kernels.feature_maps.nystrom import Nystrom
from sdgpu.kernels.feature_maps.random_fourier import RandomFourier

__all__ = ["Explicit", "FeatureMap", "Features", "Nystrom", "RandomFourier"]
