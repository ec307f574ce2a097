"""Who works on decompositions: this process, processes with one device each, or the workers of dask.

A worker that dies takes the decomposition with it that it was working on, and nothing else.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sdgpu.backend.backends import cuda_count
from sdgpu.backend.sealed_json import plain
from sdgpu.study.grid_study.cell_fit import fit_cells
from sdgpu.study.grid_study.cell_judging import CellResult
from sdgpu.study.grid_study.cells import Decomposition
from sdgpu.study.grid_study.study_folder import write_cells

__all__ = ["Crew", "Outcome", "Stamp", "crew_of", "work_all"]

TOGETHER = 1.0  # seconds of finished cells that a kill may cost where one process works


class Stamp(NamedTuple):
    """What every record says of the run: versions, device and revision."""

    versions: dict[str, str]
    revision: str | None


@dataclass(frozen=True)
class Crew:
    """Devices of the workers, one each, and what each may use.

    Attributes
    ----------
    devices : tuple of str
    threads : int
        Cores of a worker.
    memory : int, str or None
        Of a worker.
    """

    devices: tuple[str, ...]
    threads: int
    memory: int | str | None = None


class Outcome(NamedTuple):
    """What came of a decomposition: records of its cells, or an error with its traceback."""

    job: Decomposition
    records: list[dict[str, Any]]
    error: str = ""
    traceback: str = ""


def crew_of(devices: Sequence[str], workers: int | None, memory: str | None, jobs: int) -> Crew:
    """Workers for so many jobs: one for each GPU that is named (all for "auto"), or for each core.

    Cores and memory of the machine are shared among them.
    """
    from sdgpu.backend.memory import budget

    if tuple(devices) == ("auto",):
        gpus = cuda_count()
        devices = tuple(f"cuda:{number}" for number in range(gpus)) if gpus else ("cpu",)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if set(devices) == {"cpu"}:
        count = workers or cores
        places = ("cpu",) * max(1, min(count, jobs))
    else:
        places = tuple(devices)[: max(1, min(workers or len(devices), jobs))]
    on_host = budget(memory) if "cpu" in places else None
    share = None if on_host is None else on_host // len(places)
    return Crew(places, max(1, cores // len(places)), share if "cpu" in places else memory)


def work(job: Decomposition, folder: Path | None, crew: Crew, device: str, stamp: Stamp) -> Any:
    """One decomposition: its records once their files are written, or results where there is no folder.

    Errors come back as texts: what an exception holds may not be sent.
    """
    start = time.perf_counter()
    try:
        results = fit_cells(job, device=device, memory=crew.memory)
        seconds = (time.perf_counter() - start) / len(results)
        stamped = [_stamped(result, device, stamp, seconds) for result in results]
        if folder is None:
            return stamped
        _write(stamped, folder)
        return _records(stamped)
    except Exception as error:
        return f"{type(error).__name__}: {error}", traceback.format_exc()


def _stamped(result: CellResult, device: str, stamp: Stamp, seconds: float) -> CellResult:
    run = {
        "status": "done",
        "device": device,
        "versions": stamp.versions,
        "revision": stamp.revision,
        "cell_seconds": seconds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return CellResult(plain({**result.record, **run}), result.arrays)


def work_all(
    jobs: Sequence[Decomposition], folder: Path, crew: Crew, stamp: Stamp, *, client: Any = None
) -> Generator[Outcome, None, None]:
    """Work on all, giving each as it is done; closing the iterator stops the workers.

    Parameters
    ----------
    jobs : sequence of Decomposition
    folder : Path
        Of the study: files of cells are written here.
    crew : Crew
    stamp : Stamp
    client : distributed.Client, optional
        Its workers take the jobs, with as many threads and as much memory as they have.
    """
    if client is not None:
        yield from _on_cluster(jobs, folder, crew, stamp, client)
    elif len(crew.devices) == 1:
        yield from _in_this_process(jobs, folder, crew, stamp)
    else:
        yield from _in_processes(jobs, folder, crew, stamp)


def _in_this_process(
    jobs: Sequence[Decomposition], folder: Path, crew: Crew, stamp: Stamp
) -> Generator[Outcome, None, None]:
    """One after the other; an end before time loses nothing that was finished.

    Files are written once a second, together and between two fits: a thread that writes beside a fit takes
    cores from those of BLAS, which wait for each other, and the fit loses more than the disk takes.
    """
    finished: list[tuple[Decomposition, Any]] = []
    since = time.perf_counter()
    try:
        for job in jobs:
            finished.append((job, work(job, None, crew, crew.devices[0], stamp)))
            if time.perf_counter() - since > TOGETHER:
                together, finished = finished, []
                yield from _outcomes(together, folder)
                since = time.perf_counter()
    finally:
        last = list(_outcomes(finished, folder))
    yield from last


def _in_processes(
    jobs: Sequence[Decomposition], folder: Path, crew: Crew, stamp: Stamp
) -> Generator[Outcome, None, None]:
    """A pool of one process for each device: a death is that of a known job."""
    try:
        from pebble import ProcessPool
    except ImportError as error:
        raise ImportError(
            "studies in several processes need pebble, which is not installed: pip install 'sdgpu[study]', "
            "or take workers = 1"
        ) from error

    def pool() -> Any:
        context = multiprocessing.get_context("spawn")
        return ProcessPool(1, initializer=_begin, initargs=(crew.threads,), context=context)

    pools, retired = [pool() for _ in crew.devices], []
    waiting = deque(jobs)
    running: dict[Any, tuple[int, Decomposition]] = {}

    def start(place: int) -> None:
        if not waiting:
            return
        job = waiting.popleft()
        args = (job, folder, crew, crew.devices[place], stamp)
        try:
            future = pools[place].schedule(work, args=args)
        except RuntimeError:  # its process died between two jobs, which breaks a pool of pebble
            retired.append(pools[place])
            pools[place] = pool()
            future = pools[place].schedule(work, args=args)
        running[future] = (place, job)

    again: set[int] = set()
    try:
        for place in range(len(pools)):
            start(place)
        while running:
            done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
            for future in done:
                place, job = running.pop(future)
                never_begun = isinstance(future.exception(), concurrent.futures.BrokenExecutor)
                if never_begun and id(job) not in again:
                    again.add(id(job))
                    waiting.appendleft(job)
                    start(place)
                    continue
                start(place)  # before the outcome is looked at: no worker waits for us
                yield _outcome(job, _result(future))
    finally:
        for one in (*retired, *pools):
            one.stop()
        for one in (*retired, *pools):
            one.join()


def _on_cluster(
    jobs: Sequence[Decomposition], folder: Path, crew: Crew, stamp: Stamp, client: Any
) -> Generator[Outcome, None, None]:
    """The workers of dask may see no folder of ours: results come back and are written here."""
    from distributed import as_completed

    device = "auto" if crew.devices[0] == "cpu" else crew.devices[0].split(":")[0]
    alone = Crew((device,), 1)
    futures = {
        client.submit(work, job, None, alone, device, stamp, pure=False): job for job in jobs
    }
    try:
        for together in as_completed(list(futures)).batches():
            given = [(futures[future], _result(future)) for future in together]
            yield from _outcomes(given, folder)
            for future in together:
                future.release()
    finally:
        client.cancel(list(futures))


def _result(future: Any) -> Any:
    """What `work` gave, or why it gave nothing."""
    try:
        return future.result()
    except Exception as error:  # the process died, or what it gave could not be read
        return f"the worker died: {error or type(error).__name__}", traceback.format_exc()


def _outcome(job: Decomposition, given: Any) -> Outcome:
    """Of records whose files are written, or of an error."""
    return Outcome(job, [], *given) if isinstance(given, tuple) else Outcome(job, given)


def _outcomes(finished: Sequence[tuple[Decomposition, Any]], folder: Path) -> Iterator[Outcome]:
    """Of what `work` gave where it wrote nothing: all results are written, then told one by one."""
    results = [given for _, given in finished if not isinstance(given, tuple)]
    _write(itertools.chain.from_iterable(results), folder)
    for job, given in finished:
        yield _outcome(job, given if isinstance(given, tuple) else _records(given))


def _write(results: Iterable[CellResult], folder: Path) -> None:
    cells = [(result.record, result.arrays) for result in results]
    if cells:
        write_cells(folder, cells)


def _records(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    return [result.record for result in results]


def _begin(threads: int) -> None:
    """In a new process: leave Ctrl-C to the parent, end with it, and use so many cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # for what is imported later
    import threadpoolctl

    threadpoolctl.threadpool_limits(threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
