"""A kernel as an expression of statistics of pairs of rows: what there is to compile, for any machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.coordinate_sums import TERMS
from sdgpu.kernels.kernel import Kernel, Profile

__all__ = ["Formula", "Part", "formula_of"]


@dataclass(frozen=True)
class Part:
    """What the code must know of a profile and its rows.

    Attributes
    ----------
    profile : Profile
    near, opposite : bool
        Whether distances of near pairs are recomputed, and those of nearly opposite unit rows.
    has_norms : bool
        Whether the profile is given the squared lengths of the rows.
    """

    profile: Profile
    near: bool
    opposite: bool
    has_norms: bool


@dataclass(frozen=True)
class Formula:
    """A kernel as an expression of its parts, in order; equal ones have the same machine code.

    Attributes
    ----------
    kernel : Kernel
    parts : tuple of Part
    skeleton : Rows
        How the rows of sums and products nest, without numbers.
    """

    kernel: Kernel
    parts: tuple[Part, ...]
    skeleton: Rows = field(compare=False, repr=False)

    def value(self, leaf: Callable[[int, Part], Any]) -> Any:
        """The expression of leaf(position, part) for each part."""
        position = iter(range(len(self.parts)))

        def one(profile: Profile, rows: Rows) -> Any:
            p = next(position)
            return leaf(p, self.parts[p])

        return self.kernel.symbolic(one, self.skeleton)

    def with_care_of(self, other: Formula) -> Formula:
        """The same formula, distances of near pairs recomputed where the other has it too."""
        both = zip(self.parts, other.parts, strict=True)
        return replace(self, parts=tuple(replace(a, near=a.near or b.near) for a, b in both))


def formula_of(kernel: Kernel, rows: Rows) -> tuple[Formula, list[Rows]] | None:
    """The formula of a kernel, and the ready rows of its parts; None without one that is known here."""
    if kernel.opaque is not None:
        return None
    parts: list[Part] = []
    found: list[Rows] = []

    def leaf(profile: Profile, own: Rows) -> float:
        near = profile.exact_near or own.far
        parts.append(Part(profile, near, profile.exact_opposite, own.norms is not None))
        found.append(own)
        return 1.0

    kernel.symbolic(leaf, rows)
    if not all(part.profile.statistic in ("product", *TERMS) for part in parts):
        return None
    return Formula(kernel, tuple(parts), _skeleton(rows)), found


def _skeleton(rows: Rows) -> Rows:
    return Rows(None, None, parts=tuple(map(_skeleton, rows.parts)))
