"""Tables of kernels in a study: that of each cell, and that of a teacher."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from sdgpu.kernels.stationary import HALF_INTEGERS
from sdgpu.study.grid_study.key_types import (
    Orders,
    Ridges,
    Scales,
    StudyTable,
    Weights,
    Whole,
    check_choice,
    check_key,
    fault_of,
    require_different,
)

__all__ = ["KERNELS", "KernelTable", "TeacherTable"]

#: Kernels of a study and the parameters that each takes.
KERNELS: dict[str, tuple[str, ...]] = {
    "gaussian": ("gamma", "width_over_median"),
    "laplacian": ("gamma", "width_over_median"),
    "matern": ("nu", "lengthscale", "width_over_median"),
    "rationalquadratic": ("power", "lengthscale", "width_over_median"),
    "periodic": ("period", "lengthscale"),
    "wendland": ("order", "lengthscale", "width_over_median"),
    "polynomial": ("degree", "gamma", "coef0"),
    "linear": (),
    "cosine": (),
    "tanimoto": (),
    "arccosine": ("degree",),
    "nngp": ("depth", "weight_var", "bias_var"),
    "ntk": ("depth", "weight_var", "bias_var"),
}
WIDTHS = ("gamma", "lengthscale", "width_over_median")


class KernelTable(StudyTable):
    """A kernel and its parameters: every combination is a kernel of the study."""

    name: str
    gamma: Scales | None = None
    lengthscale: Scales | None = None
    width_over_median: Scales | None = None
    nu: Scales | None = None
    power: Scales | None = None
    period: Scales | None = None
    order: Orders | None = None
    degree: Whole | None = None
    coef0: Weights | None = None
    depth: Whole | None = None
    weight_var: Scales | None = None
    bias_var: Weights | None = None

    @model_validator(mode="after")
    def _takes(self) -> KernelTable:
        allowed = KERNELS[check_choice("name", self.name, KERNELS)]
        fields = list(KernelTable.model_fields)
        given = [name for name in fields if getattr(self, name) is not None]
        for name in given[1:]:
            if name not in allowed:
                takes = f"takes {', '.join(allowed)}" if allowed else "has no parameters"
                raise fault_of(name, f"{name} is no parameter of {self.name!r}, which {takes}")
            check_key(name, require_different, getattr(self, name))
        widths = [name for name in given if name in WIDTHS]
        if len(widths) > 1:
            raise fault_of(widths[1], f"{widths[0]} and {widths[1]} both set the width: give one")
        if self.nu is not None and not {*self.nu} <= {*HALF_INTEGERS}:
            raise fault_of("nu", f"nu={list(self.nu)} must be of 0.5, 1.5, 2.5 .. 100.5")
        return self

    @property
    def given(self) -> dict[str, tuple[float, ...]]:
        """Parameters that the table names, with their values."""
        named = {name: getattr(self, name) for name in KERNELS[self.name]}
        return {name: values for name, values in named.items() if values is not None}


class TeacherTable(KernelTable):
    """A teacher of every cell: ridge with another kernel, one value for each parameter.

    It sees all training rows with their labels. The student, with the kernel and the method of the cell,
    has no labels of the share `unlabelled` of them, the last ones, and the teacher's word in their place.
    """

    lams: Ridges | None = None
    lams_over_n: Ridges | None = None
    unlabelled: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _one_teacher(self) -> TeacherTable:
        if self.lams is not None and self.lams_over_n is not None:
            raise fault_of("lams_over_n", "lams and lams_over_n are one grid: give one of them")
        for name in ("lams", "lams_over_n"):
            if getattr(self, name) is not None:
                check_key(name, require_different, getattr(self, name))
        for name, values in self.given.items():
            if len(values) > 1:
                raise fault_of(
                    name, f"{name}={list(values)}: one teacher, so one value for each parameter"
                )
        return self

    @property
    def relative(self) -> tuple[float, ...] | None:
        """lam / n, where the grid is given so: 1e-4 .. 1 by default."""
        if self.lams is not None:
            return None
        return self.lams_over_n or tuple(np.geomspace(1e-4, 1.0, 5).tolist())

    def ridges(self, n: int) -> np.ndarray:
        """The grid of lam for n training rows."""
        return np.array(self.lams) if self.relative is None else np.array(self.relative) * n
