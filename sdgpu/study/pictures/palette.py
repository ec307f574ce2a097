"""Colours of all pictures: told apart by those who see no red or green, and in grey.

References
----------
Okabe and Ito (2008), Color universal design.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["DARK", "GRID", "PALETTE", "shades"]

#: Black, blue, green, orange, vermilion, purple, sky and yellow, of Okabe and Ito.
PALETTE = (
    "#222222", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442",
)  # fmt: skip
DARK, GRID = "0.15", "0.9"


def shades(count: int) -> list[Any]:
    """Colours of a sequence: steps, weights, levels."""
    from matplotlib import colormaps

    return [colormaps["viridis"](value) for value in np.linspace(0.12, 0.9, count)]
