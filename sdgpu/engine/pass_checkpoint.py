"""A pass over rows that goes on where it was: sums so far, saved now and then."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdgpu.backend.progress import SavePace
from sdgpu.backend.rows import RowSource
from sdgpu.backend.sealed_tensors import read_tensors, write_tensors
from sdgpu.backend.storage import check_writable, digest
from sdgpu.kernels.feature_maps import FeatureMap
from sdgpu.solvers.moment_sums import MomentSums

__all__ = ["PassCheckpoint"]

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
        What decides the sums: features, precision, blocks and the source's description.
    """

    path: Path
    owner: str
    _pace: SavePace = field(default_factory=lambda: SavePace(INTERVAL, SHARE))

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        source: RowSource,
        features: FeatureMap,
        *,
        precision: str,
        rows: int,
    ) -> PassCheckpoint:
        """Of one pass over a source.

        Raises
        ------
        ValueError
            For another ending.
        TypeError
            For features that are a function: they cannot be recognised.
        OSError
            If the folder does not exist or cannot be written.
        """
        target = Path(path)
        if target.suffix != ".safetensors":
            raise ValueError(f"checkpoint={str(target)!r} must end in .safetensors")
        if not target.absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder of checkpoint={str(target)!r} does not exist")
        check_writable(target)
        description, arrays = features.state()
        facts = [FORMAT, description, source.d, source.c, source.n, precision, rows]
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
            return MomentSums.restored(arrays, metadata, k, c)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {self.path} is damaged ({error}): remove it to start again"
            ) from error

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
        with self._pace.saving():
            write_tensors(self.path, arrays, {"owner": self.owner, **numbers})
