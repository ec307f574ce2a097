"""What share of a save do the checksums take? At most 3 %."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sdgpu.backend import datafiles, sealed_tensors
from sdgpu.backend import zarr_layout as stores
from sdgpu.solvers.checkpoint import Checkpoint, State


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
@pytest.mark.parametrize("grid", [(20, 101, 10), (40, 201, 50)])
def test_checksums_of_a_sweep(
    tmp_path: Path, race: Callable[..., float], ending: str, grid: tuple[int, int, int]
) -> None:
    """Their own time against that of the whole save; those of NetCDF are counted beside the writing."""
    rng = np.random.default_rng(0)
    axes = ("lam", "alpha", "step")
    variables = {f"v{i}": (axes, rng.standard_normal(grid)) for i in range(14)}
    dataset = xr.Dataset(variables)
    image, root = datafiles._netcdf(dataset), b'{"zarr_format": 3, "node_type": "group"}'
    files = {name: np.frombuffer(item.values.data, np.uint8) for name, item in dataset.items()}
    files["zarr.json"] = np.frombuffer(root, np.uint8)
    race(
        f"checksums of a {ending} sweep of {dataset.nbytes / 1e6:.0f} MB, of the whole save",
        (lambda: datafiles._table(image))
        if ending == ".nc"
        else (lambda: stores.seal_store(files)),
        lambda: datafiles.write_dataset(dataset, tmp_path / f"a{ending}"),
        at_most=0.03,
    )


def test_checksum_of_a_checkpoint(
    tmp_path: Path, race: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted while the disk writes, so a save takes as long as without it."""
    rng = np.random.default_rng(0)
    Q = rng.standard_normal((500, 20_000))
    state, kept = State(Q, Q + 1, np.eye(500), 3), Checkpoint(tmp_path / "a.safetensors", {})

    def without() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(sealed_tensors, "_checksum", lambda *_: sealed_tensors._BLANK)
            kept.save(state)

    saved: Any = lambda: kept.save(state)  # noqa: E731
    race("a fit checkpoint of 160 MB, over one without checksum", saved, without, rounds=21)
