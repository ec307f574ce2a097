"""sdgpu: kernel self-distillation with closed forms, for every regularisation, weight and step.

>>> import numpy as np, sdgpu
>>> X = np.linspace(0, 1, 11)[:, None]
>>> y = np.sin(2 * np.pi * X[:, 0])
>>> fit = sdgpu.fit(X, y, sdgpu.Gaussian(gamma=80.0), lams=[0.2])
>>> sweep = fit.sweep(X, y, alphas=[0.0, 0.5, 1.0], steps=4)
>>> sweep.dataset["mse"].shape
(1, 3, 4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdgpu import kernels, operators
from sdgpu.backend import rows
from sdgpu.engine import federated
from sdgpu.engine.constrained import ConstrainedPath, constrain, constrained_path
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.moments import Moments, open_moments
from sdgpu.engine.planner import Plan
from sdgpu.engine.planning import plan
from sdgpu.engine.predictor import Predictor, open_predictor
from sdgpu.engine.refit import refit_path
from sdgpu.engine.reweighting import ReweightedFit, reweighted_fit
from sdgpu.engine.scaling_parts import ScalingPlan
from sdgpu.engine.student import student
from sdgpu.engine.student_model import Student
from sdgpu.engine.student_results import StudentSweep, TeacherWeights
from sdgpu.engine.synthetic_labels import SyntheticLabels, synthetic_labels
from sdgpu.engine.teachers import TeacherPredictions
from sdgpu.engine.tuning import Tuned, tune
from sdgpu.kernels import (
    NNGP,
    NTK,
    AdditiveChiSquared,
    ArcCosine,
    BrownianBridge,
    ChiSquared,
    Cosine,
    CubicGreen,
    CubicSpline,
    EmpiricalNTK,
    FunctionKernel,
    Gaussian,
    HistogramIntersection,
    Laplacian,
    Linear,
    Matern,
    On,
    Periodic,
    Polynomial,
    Precomputed,
    RationalQuadratic,
    SpectralMixture,
    Tanimoto,
    Wendland,
    median_distance,
)
from sdgpu.kernels.feature_maps import Explicit, Nystrom, RandomFourier
from sdgpu.selection.class_metrics import TopK
from sdgpu.selection.regression_metrics import Huber, Pinball
from sdgpu.selection.sweep import Sweep, open_sweep

if TYPE_CHECKING:
    from sdgpu.engine.estimators import (
        SelfDistillationClassifier,
        SelfDistillationClassifierCV,
        SelfDistillationRegressor,
        SelfDistillationRegressorCV,
    )

__version__ = "0.2.0"

__all__ = [
    "NNGP",
    "NTK",
    "AdditiveChiSquared",
    "ArcCosine",
    "BrownianBridge",
    "ChiSquared",
    "ConstrainedPath",
    "Cosine",
    "CubicGreen",
    "CubicSpline",
    "EmpiricalNTK",
    "Explicit",
    "Fit",
    "FunctionKernel",
    "Gaussian",
    "HistogramIntersection",
    "Huber",
    "Laplacian",
    "Linear",
    "Matern",
    "Moments",
    "Nystrom",
    "On",
    "Periodic",
    "Pinball",
    "Plan",
    "Polynomial",
    "Precomputed",
    "Predictor",
    "RandomFourier",
    "RationalQuadratic",
    "ReweightedFit",
    "ScalingPlan",
    "SelfDistillationClassifier",
    "SelfDistillationClassifierCV",
    "SelfDistillationRegressor",
    "SelfDistillationRegressorCV",
    "SpectralMixture",
    "Student",
    "StudentSweep",
    "Sweep",
    "SyntheticLabels",
    "Tanimoto",
    "TeacherPredictions",
    "TeacherWeights",
    "TopK",
    "Tuned",
    "Wendland",
    "constrain",
    "constrained_path",
    "federated",
    "fit",
    "kernels",
    "median_distance",
    "open_moments",
    "open_predictor",
    "open_sweep",
    "operators",
    "plan",
    "refit_path",
    "reweighted_fit",
    "rows",
    "student",
    "synthetic_labels",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import the estimators and networks when they are asked for: scikit-learn alone takes a second."""
    if name.startswith("SelfDistillation") and name in __all__:
        from sdgpu.engine import estimators

        return getattr(estimators, name)
    if name in ("nn", "study"):
        import importlib

        return importlib.import_module(f"sdgpu.{name}")
    raise AttributeError(f"module 'sdgpu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
