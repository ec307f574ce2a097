"""Checkpoints of fits on ranks: they go on, on another number of ranks too, and refuse what is not theirs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.backend.sharded_arrays import RowLayout
from sdgpu.solvers import checkpoint as module
from sdgpu.solvers.rank_checkpoint import rows_digest
from tests.problems import assert_near, finish
from tests.rank_processes import ROOT, free_port
from tests.ranks import cuts, on_ranks

KERNEL = sdgpu.Gaussian(0.3)
HOW = {"lams": 3e-3, "method": "lanczos", "tol": 1e-8, "dtype": "float64"}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 3)), rng.standard_normal(300)


@pytest.fixture
def always(monkeypatch):
    """Save at every pass."""
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    monkeypatch.setattr(module, "SHARE", np.inf)


class CutError(Exception):
    """What ends a fit."""


def cut_at(passes):
    def progress(event):
        if event.stage == "passes" and event.done == passes and event.total > 1:
            raise CutError

    return progress


def fitted(arrays, counts, **options):
    """Predictions at the training rows by a fit on so many ranks, and the passes that each heard of."""
    X, Y = arrays
    heard = []

    def work(ranks, rows):
        how = {"progress": heard.append if ranks.rank == 0 else None, **HOW, **options}
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, distributed=ranks, **how)
        return fit.path(HOW["lams"], 0.3, 3).fitted

    parts = on_ranks(cuts(len(X), counts, None), work)
    passes = [event.done for event in heard if event.stage == "passes" and event.total > 1]
    return np.concatenate(parts, axis=1), passes


@pytest.mark.parametrize("method", ["lanczos", "subspace"])
@pytest.mark.parametrize("counts", [[300], [100, 200], [0, 120, 180], [100, 50, 70, 80]])
def test_a_fit_goes_on_on_any_number_of_ranks(arrays, tmp_path, always, counts, method):
    path = tmp_path / "basis.safetensors"
    truth, all_passes = fitted(arrays, [140, 160], method=method)
    with pytest.raises(CutError):
        fitted(arrays, [140, 160], method=method, checkpoint=path, progress=cut_at(4))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found, passes = fitted(arrays, counts, method=method, checkpoint=path)
    assert passes[0] >= 3  # what was heard of pass 4 came before it was saved
    assert len(passes) < len(all_passes)
    assert_near(found, truth, 1e-8)
    # a fit that is done is done
    again, passes = fitted(arrays, counts, method=method, checkpoint=path)
    assert len(passes) <= 1
    assert_near(again, truth, 1e-8)


def test_a_checkpoint_of_something_else_is_refused(arrays, tmp_path, always):
    path = tmp_path / "basis.safetensors"
    fitted(arrays, [140, 160], checkpoint=path)
    X, Y = arrays
    with pytest.raises(ValueError, match="belongs to a fit with other Y"):
        fitted((X, Y + 1e-12), [140, 160], checkpoint=path)
    with pytest.raises(ValueError, match="belongs to a fit with other X"):
        fitted((X[::-1].copy(), Y), [140, 160], checkpoint=path)
    with pytest.raises(ValueError, match="belongs to a fit with other method"):
        fitted(arrays, [140, 160], checkpoint=path, method="subspace")
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"rank 0: .*damaged"):
        fitted(arrays, [140, 160], checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint= is for method='lanczos' or 'subspace'"):
        fitted(arrays, [140, 160], checkpoint=tmp_path / "new.safetensors", method="cg")


def test_a_full_disk_is_told_to_all(arrays, tmp_path, always, monkeypatch):
    def full(path, *content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_tensors", full)
    heard = []

    def work(ranks, rows):
        X, Y = arrays
        try:
            sdgpu.fit(
                X[rows],
                Y[rows],
                KERNEL,
                distributed=ranks,
                checkpoint=tmp_path / "b.safetensors",
                **HOW,
            )
        except OSError as error:
            heard.append(str(error))
            raise

    with pytest.raises(OSError, match="No space left"):
        on_ranks(cuts(300, [100, 200], None), work)
    assert len(heard) == 2
    assert all("rank 0: " in text for text in heard)


@pytest.mark.parametrize("counts", [[50], [20, 30], [0, 50], [7, 3, 40]])
def test_the_digest_does_not_depend_on_the_layout(counts):
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 4)))

    def digest(array):
        def work(ranks, own):
            return rows_digest(ranks, array[own], RowLayout.of(ranks, own.stop - own.start))

        return set(on_ranks(cuts(50, counts, None), work))

    (found,) = digest(rows)
    alone = on_ranks(
        [slice(0, 50)], lambda ranks, own: rows_digest(ranks, rows, RowLayout.of(ranks, 50))
    )
    assert alone == [found]
    # one bit, two rows, two columns
    changed = rows.clone()
    changed[17, 2] = np.nextafter(float(changed[17, 2]), 9.0)
    swapped, turned = rows.clone(), rows[:, [1, 0, 2, 3]]
    swapped[[3, 40]] = swapped[[40, 3]]
    for other in (changed, swapped, turned):
        assert digest(other) != {found}


KILLED = """
import json, os, sys, time
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
import sdgpu
from sdgpu.backend.torch_ranks import join_ranks
from sdgpu.solvers import checkpoint

checkpoint.INTERVAL, checkpoint.SHARE = 0.0, np.inf  # at every pass
folder, ranks = Path(sys.argv[1]), join_ranks(timeout=60.0)
kills = json.loads((folder / "kills.json").read_text())
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((400, 3)), rng.standard_normal(400)
rows = slice(ranks.rank * 400 // ranks.size, (ranks.rank + 1) * 400 // ranks.size)

def progress(event):
    if event.stage == "passes" and event.total > 1:
        with open(folder / f"passes-{ranks.rank}", "a") as log:
            log.write(f"{event.done}\\n")
        if attempt < len(kills) and [ranks.rank, event.done] == kills[attempt]:
            os.kill(os.getpid(), 9)

fit = sdgpu.fit(X[rows], Y[rows], sdgpu.Gaussian(0.3), 3e-3, method="lanczos", tol=1e-9, dtype="float64",
    checkpoint=folder / "basis.safetensors", distributed=ranks, progress=progress)
fitted = ranks.gather_rows(fit.path(3e-3, 0.3, 3).fitted.T)
if ranks.rank == 0:
    np.save(folder / f"fitted.npy", fitted)
"""


def run_killed(folder, kills, size=2):
    """The fitted values after these kills, and the passes that rank 0 went through."""
    folder.mkdir()
    (folder / "kills.json").write_text(json.dumps(kills))
    (folder / "work.py").write_text(KILLED)
    command = [
        *("env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", sys.executable),
        *(
            "-m",
            "torch.distributed.run",
            f"--nproc-per-node={size}",
            f"--max-restarts={len(kills)}",
        ),
        *("--master-addr=127.0.0.1", f"--master-port={free_port()}", folder / "work.py", folder),
    ]
    torchrun = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    _, errors = finish(torchrun, seconds=240)[0]
    assert torchrun.returncode == 0, errors[-3000:]
    passes = [int(line) for line in (folder / "passes-0").read_text().split()]
    return np.load(folder / "fitted.npy"), passes, errors


def test_torchrun_goes_on_from_the_checkpoint_of_a_killed_fit(tmp_path):
    truth, all_passes, _ = run_killed(tmp_path / "whole", [])
    last = all_passes[-1]
    kills = [[1, last // 3], [0, 2 * last // 3]]
    found, passes, errors = run_killed(tmp_path / "killed", kills)
    assert_near(found, truth, 1e-10)
    # of each kill the pass that was under way, and a report of the one that was loaded
    assert len(passes) <= len(all_passes) + 3 * len(kills)
    assert "died: its connection was closed without a word" in errors
