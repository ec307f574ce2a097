"""What a plan on paper is made of: the problem, how ranks may share it, and the ways to fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdgpu.backend.device_classes import DeviceClass
from sdgpu.engine.costs import is_rough

__all__ = ["Layout", "Route", "ScalingPlan", "ScalingProblem"]


@dataclass(frozen=True)
class Route:
    """One way to fit on p ranks, and what it costs.

    Attributes
    ----------
    name : {"exact", "features"}
        By a grown basis, or one pass for a model of features: another answer.
    layout : str
        "alone", "gather", "ring", "1.5D" or "sums".
    copies : int
        Of the rows that several ranks hold together: q of "1.5D".
    taken : bool
        Whether a fit takes this layout, by the rule of :func:`~sdgpu.engine.scaling_plan.chosen_layout`.
    ranks : int
        p.
    seconds : float
        Of the fit, without reading the rows.
    compute, travel : float
        Seconds of work, and those of communication that no work hides.
    bytes : int
        Peak of each rank.
    traffic : float
        Bytes that each rank receives in the whole fit.
    efficiency : float
        T(1) / (p T(p)).
    fits : bool
        Whether the peak is below the memory of the device.
    reason : str
    """

    name: str
    layout: str
    seconds: float
    compute: float
    travel: float
    bytes: int
    traffic: float
    efficiency: float
    fits: bool
    reason: str
    copies: int = 1
    taken: bool = True
    ranks: int = 1


@dataclass(frozen=True)
class ScalingPlan:
    """What a fit of n rows costs on so many devices of a class.

    Attributes
    ----------
    n, d, c, ranks : int
    lam : float
    device : str
    exact, features : Route
    reasons : tuple of str
    """

    n: int
    d: int
    c: int
    ranks: int
    lam: float
    device: str
    exact: Route
    features: Route
    reasons: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Predicted seconds of the exact route."""
        return self.exact.seconds

    @property
    def bytes(self) -> int:
        """Predicted peak of each rank, by the exact route."""
        return self.exact.bytes

    @property
    def traffic(self) -> float:
        """Bytes that each rank receives in the whole fit, by the exact route."""
        return self.exact.traffic

    @property
    def efficiency(self) -> float:
        """T(1) / (p T(p)) of the exact route."""
        return self.exact.efficiency


@dataclass(frozen=True, eq=False)
class ScalingProblem:
    """What is fitted, on which devices."""

    n: int
    d: int
    c: int
    lams: np.ndarray
    steps: int
    tol: float
    device: DeviceClass

    @property
    def precision(self) -> str:
        return "mixed" if is_rough(self.n, float(self.lams.min()), self.tol) else "float64"


@dataclass(frozen=True)
class Layout:
    """What a layout changes: bytes of a pass, of the fit and of the memory, and the pairs used twice."""

    name: str
    once: float  # bytes received once
    rows: float  # bytes of a pass that come while others are multiplied
    sums: float  # bytes of a pass that are waited for
    held: float  # bytes of rows that are held
    messages: float
    halved: bool = True
    fused: bool = True
    copies: int = 1
