"""A pass over rows that goes on where it was: sums so far, saved now and then."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checksums import digest
from sdgpu.backend.progress import SavePace
from sdgpu.backend.rows import Block, RowSource
from sdgpu.backend.sealed_tensors import read_tensors, write_tensors
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.backend.storage import check_writable
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import FeatureMap
from sdgpu.solvers.moment_sums import MomentSums

__all__ = ["PassCheckpoint", "checkpoint_target"]

INTERVAL = 30.0  # seconds between saves
SHARE = 0.1  # of the time that saving may take
FORMAT = 1


@dataclass
class PassCheckpoint:
    """Saves the sums of a pass, and gives them back to the same pass.

    Parameters
    ----------
    path : Path
        Of a ``.safetensors`` file.
    owner : str
        What decides the sums beside the rows: kernel, features, precision, blocks, sizes.

    Notes
    -----
    Rows are recognised by a digest that goes from block to block: a pass that goes on reads those that are
    done once more, and is refused where they are others.
    """

    path: Path
    owner: str
    _pace: SavePace = field(default_factory=lambda: SavePace(INTERVAL, SHARE))
    _digests: dict[int, str] = field(default_factory=dict)  # of the rows up to each block's end
    _resumed: tuple[int, str] = (0, "")

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        source: RowSource,
        features: FeatureMap,
        *,
        kernel: Kernel,
        precision: str,
        rows: int,
    ) -> PassCheckpoint:
        """Of one pass over a source.

        Raises
        ------
        ValueError
            For another ending, and a kernel that is a function: it cannot be recognised.
        TypeError
            For features that are a function: they cannot be recognised.
        OSError
            If the folder does not exist or cannot be written.
        """
        target = checkpoint_target(path, kernel)
        description, arrays = features.state()
        facts = [FORMAT, repr(kernel), description, source.d, source.c, source.n, precision, rows]
        parts: list[Any] = [json.dumps(facts)]
        for name in sorted(arrays):
            parts += [name, arrays[name]]
        return cls(target, digest(*parts))

    def load(self, k: int, c: int) -> MomentSums | None:
        """The sums in the file, or None if there is none.

        Raises
        ------
        ValueError
            If it is damaged, or belongs to another pass.
        """
        if not self.path.exists():
            return None
        arrays, metadata = read_tensors(self.path, "checkpoint")
        if metadata.get("owner") != self.owner:
            raise ValueError(
                f"checkpoint {self.path} belongs to a pass with other rows, features or precision: name "
                "another file, or remove it to start again"
            )
        try:
            sums = MomentSums.restored(arrays, metadata, k, c)
            self._resumed = (sums.rows, str(metadata["digest"]))
            self._digests[sums.rows] = self._resumed[1]
            return sums
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {self.path} is damaged ({error}): remove it to start again"
            ) from error

    def trail(self, blocks: Iterable[tuple[int, Block]]) -> Iterator[tuple[int, Block]]:
        """The blocks that are still to be summed; those that are summed already are recognised.

        Raises
        ------
        ValueError
            If the rows that are done are others, or fewer.
        """
        done, wanted = self._resumed
        seen, recognised = "", not done
        for start, block in blocks:
            seen, end = digest(seen, *_host_arrays(block)), start + block.rows
            if end <= done:
                recognised = end == done and seen == wanted
                if end == done and not recognised:
                    break
                continue
            if not recognised:
                break
            self._digests[end] = seen
            yield start, block
        if not recognised:
            raise ValueError(
                f"checkpoint {self.path} belongs to a pass over other rows: name another file, or remove "
                "it to start again"
            )

    def offer(self, sums: MomentSums) -> None:
        """Save if it is time: every 30 s, or less often where saving takes long."""
        if self._pace.due:
            self.save(sums)

    def save(self, sums: MomentSums) -> None:
        """Write the sums in place of the last ones.

        Raises
        ------
        OSError
            If the disk is full: names the file; the previous one is untouched.
        """
        arrays, numbers = sums.state()
        digests = {end: text for end, text in self._digests.items() if end >= sums.rows}
        metadata = {"owner": self.owner, "digest": digests[sums.rows], **numbers}
        with self._pace.saving():
            write_tensors(self.path, arrays, metadata)
        self._digests = digests


def checkpoint_target(path: str | os.PathLike[str], kernel: Kernel, *, write: bool = True) -> Path:
    """The file of a pass, checked; `write` says whether it is this process that writes it.

    Raises
    ------
    ValueError
        For another ending, and a kernel that is a function: it cannot be recognised.
    OSError
        If the folder does not exist or cannot be written.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"checkpoint={str(target)!r} must end in .safetensors")
    if " at 0x" in repr(kernel):
        raise ValueError(
            f"checkpoint= cannot recognise the function in {kernel!r}: use a kernel with a formula"
        )
    if write and not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of checkpoint={str(target)!r} does not exist")
    if write:
        check_writable(target)
    return target


def _host_arrays(block: Block) -> Iterator[np.ndarray]:
    """Everything that decides what a block adds."""
    if is_csr(block.X):
        yield from (block.X.data, block.X.indices, block.X.indptr)
    else:
        yield to_numpy(block.X)
    yield from (to_numpy(part) for part in (block.Y, block.weights) if part is not None)
