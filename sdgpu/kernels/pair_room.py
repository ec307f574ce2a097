"""Pairs of a tile that need a formula of their own, found on a GPU without waiting for it.

How many there are only the device knows, and asking it for every tile would empty its queue each time.
So a first pass over the tiles makes room for a few; the counts of all tiles are read together when it is
done, and if one had more pairs than room the pass is made anew. From then on the counts are known.
"""

from __future__ import annotations

from typing import Any

__all__ = ["PairRoom"]


class PairRoom:
    """Room for the near and the opposite pairs of every tile of a pass, in the order of the tiles.

    Parameters
    ----------
    pairs : int
        Room of a tile in the first pass.
    """

    def __init__(self, pairs: int) -> None:
        self._pairs = pairs
        self._sizes: list[int] | None = None
        self._counts: list[Any] = []
        self._position = 0

    @property
    def is_known(self) -> bool:
        """Whether a pass has been made."""
        return self._sizes is not None

    def begin(self) -> None:
        """Before the first tile of a pass."""
        self._counts, self._position = [], 0

    def find(self, mask: Any) -> tuple[Any, Any]:
        """Rows and columns of the true entries of a tile, filled up with (0, 0) in the first pass.

        What is done to the pairs must be right for (0, 0) too, and the same each time.
        """
        import torch

        if self._sizes is None:
            self._counts.append(mask.sum())
            size = min(self._pairs, mask.numel())
        else:
            size = self._sizes[self._position]
            self._position += 1
        try:
            pairs = torch.nonzero_static(mask, size=size, fill_value=0)
        except NotImplementedError:  # on CUDA before torch 2.6
            pairs = torch.nonzero(mask)
        return pairs[:, 0], pairs[:, 1]

    def complete(self) -> bool:
        """Whether all pairs of the pass had room; waits for the device, once, after the first one."""
        if self._sizes is not None:
            return True
        import torch

        self._sizes = torch.stack(self._counts).tolist() if self._counts else []
        return max(self._sizes, default=0) <= self._pairs
