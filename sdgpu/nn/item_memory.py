"""What items of a data set were when they were first read, so that others in their places are noticed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdgpu.backend.checksums import row_checksums

__all__ = ["ItemMemory"]

LISTED = 3  # numbers that an error names


class ItemMemory:
    """A checksum of the inputs of each item, against which the item is held whenever it comes again.

    Parameters
    ----------
    name : str
        Of the data set, for errors.
    numbers : array (n,), int64
        Of the items in the data set, for errors.
    shape : tuple of int
        Of the inputs of one item; others are not compared, as texts that are padded with longer ones.
    by_pass : bool
        Whether items are drawn anew in every pass, and are the same again only in a pass with the same
        seed. False: they are always the same.

    Notes
    -----
    Memory 8 n bytes, and as many for every pass that is told apart. A comparison costs what its checksum
    does: :func:`~sdgpu.backend.checksums.row_checksums`.
    """

    def __init__(
        self, name: str, numbers: np.ndarray, shape: tuple[int, ...], *, by_pass: bool
    ) -> None:
        self.name, self.numbers, self.shape, self.by_pass = name, numbers, shape, by_pass
        # checksums (n,) by what seeds are made of; 0: not read
        self._passes: dict[int, np.ndarray] = {}

    def compare(self, rows: np.ndarray, base: int, inputs: Tensor) -> None:
        """Hold items against what they were, and remember those that come for the first time.

        Parameters
        ----------
        rows : array (b,), int64
            Which of the n they are.
        base : int
            What the seeds of this pass are made of.
        inputs : Tensor (b, ...)

        Raises
        ------
        RuntimeError
            If some are not what they were.
        """
        key = base if self.by_pass else 0
        if key not in self._passes:
            self._passes[key] = np.zeros(len(self.numbers), dtype=np.uint64)
        known = self._passes[key]
        if inputs.device.type != "cpu" or tuple(inputs.shape[1:]) != self.shape:
            return
        bits = inputs.detach().contiguous().reshape(len(inputs), -1).view(torch.uint8)
        found = row_checksums(bits.numpy())
        before = known[rows]
        others = (before != found) & (before != 0)
        if others.any():
            raise RuntimeError(self._told(known, rows[others], found[others], len(rows)))
        known[rows] = found

    def sums(self) -> Tensor:
        """All that is remembered (n, passes), int64; 0 where nothing is."""
        passes = [*self._passes.values()] or [np.zeros(len(self.numbers), dtype=np.uint64)]
        return torch.from_numpy(np.stack(passes, axis=1).view(np.int64))

    def _told(self, known: np.ndarray, rows: np.ndarray, found: np.ndarray, b: int) -> str:
        """What has changed where, and what helps."""
        numbers = self.numbers[rows]
        listed = ", ".join(map(str, numbers[:LISTED].tolist())) + ", .." * (len(rows) > LISTED)
        sources = self.numbers[known == found[0]]
        if sources.size:
            what = f"{numbers[0]} is what {sources[0]} was: the data set has changed its order"
        else:
            what = (
                f"what {numbers[0]} is was none of them: the data set has changed its order or its items, "
                "or draws random numbers for some of them"
            )
        return (
            f"{self.name}: {len(rows)} of {b} items are not those that the teacher was asked for, numbers "
            f"{listed} of the data set; {what}. What the teacher said is kept by number: give the data set "
            "an order that stays (sort the files, shuffle not at all: Config draws the order of a training)"
            ", or use Config(teacher='online'), which asks for every batch anew"
        )
