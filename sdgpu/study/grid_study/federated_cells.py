"""Cells whose rows are with workers: one for each message and each answer of the server."""

from __future__ import annotations

import time
from typing import Any

from sdgpu.study.grid_study.cell_data import kernel_of, noisy_targets, split_of
from sdgpu.study.grid_study.cell_judging import CellResult, judged
from sdgpu.study.grid_study.cells import Cell, Decomposition
from sdgpu.study.grid_study.shared_fits import Federation
from sdgpu.study.real_data.large_data import LargeData

__all__ = ["SharedCells"]


class SharedCells:
    """Makes the cells of a sharing, those of a level of noise from the same moments.

    Parameters
    ----------
    job : Decomposition
    device : str
    memory : bytes or "8GiB", optional
    """

    def __init__(self, job: Decomposition, *, device: str, memory: Any) -> None:
        self._start = time.perf_counter()
        parts = split_of(job.data, job.seed)
        assert not isinstance(parts, LargeData)
        self._job, self._parts = job, parts
        self._device, self._memory = device, memory
        self._kernel = kernel_of(job.kernel, job.data, job.seed)
        self._loaded = time.perf_counter() - self._start
        self._noise: float | None = None
        self._workers: Federation | None = None

    def __call__(self, cell: Cell) -> CellResult:
        start, parts, job = time.perf_counter(), self._parts, self._job
        Y_train, Y_val = noisy_targets(parts, job, cell)
        if self._workers is None or cell.noise != self._noise:
            self._workers = Federation(job, parts, self._kernel, Y_train, device=self._device)
            self._noise = cell.noise
        assert cell.answer is not None
        shared = self._workers.fit(cell.answer, (parts.X_val, Y_val), memory=self._memory)
        seconds = {"load": self._loaded, "fit": time.perf_counter() - start}
        self._loaded = 0.0
        how: dict[str, Any] = {"lams": shared.lams, "seconds": seconds, "shared": shared}
        result = judged(job, cell, shared.fit, parts, Y_val, **how)
        result.record["sent_bytes"] = shared.sent_bytes
        result.record["fit"] |= shared.notes
        return CellResult(result.record, shared.known(result.arrays))
