"""Runs of a study: every cell once, in processes and on dask, resumed after kills, refused side by side."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from sdgpu.backend.storage import folder_lock
from sdgpu.study import open_study, run
from sdgpu.study.grid_study import workers
from sdgpu.study.grid_study.study_folder import StudyFolder
from sdgpu.study.grid_study.study_results import read_results
from tests.local_cluster import local_cluster

ROOT = Path(__file__).parents[3]


def tables(**more):
    return {
        "name": "test",
        "seeds": [0, 1],
        "data": {"source": "diabetes", "rows": 50},
        "noise": {"levels": [0.0, 0.5]},
        "kernel": {"name": "gaussian", "gamma": [0.02, 0.1]},
        "grid": {"lams_over_n": "1e-3:1:3", "alphas": "0:1:3", "steps": 2},
        "compute": {"workers": 1},
        **more,
    }


def numbers(results):
    """All that must be the same to the last bit."""
    timed = [name for name in results.dataset if str(name).endswith("_seconds")]
    return results.dataset.drop_vars(timed)


def spawned():
    """Workers that live, without the process that watches over shared memory."""
    alive = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "spawn_main" in str(child.cmdline()):
                alive.append(child)
    return alive


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tables(), tmp_path_factory.mktemp("whole") / "study")


def test_a_study_has_every_cell(whole):
    assert len(whole.records) == 8
    assert not whole.failed
    assert whole.open_cells == 0
    data = whole.dataset
    assert dict(data["mse"].sizes) == {"cell": 8, "lam_over_n": 3, "alpha": 3, "step": 2}
    assert sorted(set(data["seed"].values)) == [0, 1]
    np.testing.assert_allclose(data["lam"], 30 * np.geomspace(1e-3, 1, 3) * np.ones((8, 1)))
    assert read_results(whole.folder).identical(data)
    assert numbers(open_study(whole.folder)).identical(numbers(whole))
    wide = data.set_index(cell=["seed", "noise", "parameters"]).unstack("cell")
    assert wide["test_mse"].sizes == {"seed": 2, "noise": 2, "parameters": 2, "rule": 5}
    for record in whole.records:
        assert record["status"] == "done"
        assert record["device"] == "cpu"
        assert {"python", "sdgpu", "numpy"} <= record["versions"].keys()
        assert "revision" in record


def test_labels_and_lam_of_later_steps_beside_each_other(tmp_path):
    """Cells of one shape, whatever the lam that their fits serve; all of it is read again."""
    more = {"method": {"later_lam_over_first": [1.0, 0.5]}, "synthetic_labels": {"rounds": 3}}
    found = run(tables(seeds=[0], **more), tmp_path / "study").dataset
    assert found["synthetic_risk"].dims == ("cell", "scheme", "lam_over_n", "label_weight", "round")
    assert found["synthetic_risk"].shape == (8, 2, 3, 11, 3)
    assert found["synthetic_best_weight"].shape == (8, 2, 3)
    assert list(found["scheme"].values) == ["mix", "accumulate"]
    later = found["method"].str.contains("later lam x 0.5").values
    assert later.sum() == 4
    # a round of labels has one lam, whatever later steps have
    risk = found["synthetic_risk"].values
    np.testing.assert_allclose(risk[later], risk[~later], rtol=1e-8)
    assert np.isnan(found["limit_mse"].values[later]).all()
    assert read_results(tmp_path / "study").identical(found)


def test_tables_of_means(whole):
    summary = whole.summary()
    assert summary.index.names == ["noise", "parameters"]
    assert summary.attrs["cells"] == (2, 2)
    data = whole.dataset
    rows = (data["noise"] == 0.5) & (data["parameters"] == "gamma=0.1")
    values = data["test_mse"].sel(rule="fixed").values[rows.values]
    assert summary.loc[(0.5, "gamma=0.1"), ("fixed", "mean")] == pytest.approx(values.mean())
    error = values.std(ddof=1) / np.sqrt(2)
    assert summary.loc[(0.5, "gamma=0.1"), ("fixed", "error")] == pytest.approx(error)
    by_seed = whole.summary(by=["seed"])
    assert by_seed.attrs["cells"] == (4, 4)
    with pytest.raises(ValueError, match="axes are data, rows, seed"):
        whole.summary(by=["widths"])
    with pytest.raises(ValueError, match="loss='test_mae' is not known: test_mse"):
        whole.summary(loss="test_mae")


def test_finished_cells_are_not_repeated(whole, tmp_path, monkeypatch):
    first = run(tables(), tmp_path / "a")
    assert numbers(first).identical(numbers(whole))
    worked = []
    work = workers.fit_cells

    def counted(job, **how):
        worked.append((job.seed, job.kernel.label))
        return work(job, **how)

    monkeypatch.setattr(workers, "fit_cells", counted)
    cell = next((tmp_path / "a" / "cells").iterdir())
    # of a worker that was killed after its rename
    left = cell.with_name(f".{cell.name}.1-0123abcd.sdgpu-tmp")
    (left / "new").mkdir(parents=True)
    run(tables(), tmp_path / "a")
    assert not worked
    assert not left.exists()
    run(tables(seeds=[0, 1, 2]), tmp_path / "a")
    assert worked == [(2, "gamma=0.02"), (2, "gamma=0.1")]
    again = run(tables(), tmp_path / "a")  # fewer again: the others stay in the folder
    assert numbers(again).identical(numbers(whole))
    cells = sorted((tmp_path / "a" / "cells").iterdir())
    assert len(cells) == 12
    worked.clear()
    cells[0].unlink()
    assert len(run(tables(seeds=[0, 1, 2]), tmp_path / "a").records) == 12
    assert len(worked) == 1


def test_a_failed_cell_keeps_its_traceback_and_the_rest_goes_on(tmp_path, whole, monkeypatch):
    work = workers.fit_cells

    def failing(job, **how):
        if job.seed == 0 and job.kernel.label == "gamma=0.1":
            raise ZeroDivisionError("of a test")
        return work(job, **how)

    monkeypatch.setattr(workers, "fit_cells", failing)
    found = run(tables(), tmp_path / "a")
    assert len(found.records) == 6
    assert len(found.failed) == 2
    for record in found.failed:
        assert record["error"] == "ZeroDivisionError: of a test"
        assert "in failing" in record["traceback"]
        assert (record["seed"], record["parameters"]) == (0, "gamma=0.1")
    opened = open_study(tmp_path / "a")
    assert len(opened.failed) == 2
    assert dict(opened.dataset.sizes)["cell"] == 6

    def killed(job, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "fit_cells", killed)
    with pytest.raises(KeyboardInterrupt):  # before they are tried again
        run(tables(), tmp_path / "a")
    assert open_study(tmp_path / "a").failed == found.failed
    monkeypatch.undo()
    assert numbers(run(tables(), tmp_path / "a")).identical(numbers(whole))
    assert not open_study(tmp_path / "a").failed


def test_processes_have_the_same_numbers(tmp_path, whole):
    events = []
    found = run(tables(), tmp_path / "a", workers=2, progress=events.append)
    assert numbers(found).identical(numbers(whole))
    assert [event.done for event in events] == [0, 2, 4, 6, 8]
    assert all(event.stage == "cells" and event.total == 8 for event in events)
    assert events[-1].seconds_left == 0
    assert not spawned()


def test_a_worker_that_is_killed_takes_its_cell_alone(tmp_path, whole):
    victims = []

    def kill(event):
        if not victims and event.done:
            for victim in spawned()[:1]:  # none while one takes the place of another
                victims.append(victim)
                victim.kill()

    found = run(tables(seeds=[0, 1, 2, 3, 4, 5]), tmp_path / "a", workers=2, progress=kill)
    assert victims
    # it may have been between two decompositions, or between the files of two cells
    assert len(found.failed) <= 2
    assert len(found.records) + len(found.failed) == 24
    for record in found.failed:
        assert "the worker died" in record["error"]
    assert numbers(run(tables(), tmp_path / "a")).identical(numbers(whole))


def test_workers_that_are_killed_again_and_again_hold_nothing_up(tmp_path):
    """At work, between two cells, and as they start: at most their own cell fails."""
    rng, killed = np.random.default_rng(3), []

    def kill(event):
        time.sleep(rng.uniform(0, 0.03))
        alive = spawned()
        if event.done and alive and len(killed) < 8:
            killed.append(alive[rng.integers(len(alive))])
            with contextlib.suppress(psutil.Error):
                killed[-1].kill()

    found = run(tables(seeds=list(range(12))), tmp_path / "a", workers=2, progress=kill)
    assert killed
    assert len(found.records) + len(found.failed) == 48
    assert len(found.failed) <= 2 * len(killed)
    assert not list((tmp_path / "a").rglob("*.sdgpu-tmp"))


def test_what_is_finished_is_written_when_a_run_is_cut_short(whole, tmp_path, monkeypatch):
    """One process writes its cells together, those of an interrupted run too; an error of one is told."""
    monkeypatch.setattr(workers, "TOGETHER", 1e9)
    fitted, fit_cells = [], workers.fit_cells

    def cut(job, **options):
        fitted.append(job)
        if len(fitted) == 2:
            raise ArithmeticError("of this one alone")
        if len(fitted) == 4:
            assert _cells(tmp_path / "a") == 0
            raise KeyboardInterrupt
        return fit_cells(job, **options)

    monkeypatch.setattr(workers, "fit_cells", cut)
    with pytest.raises(KeyboardInterrupt):
        run(tables(), tmp_path / "a")
    assert _cells(tmp_path / "a") == sum(len(job.cells) for job in (fitted[0], fitted[2]))
    monkeypatch.setattr(workers, "fit_cells", fit_cells)
    assert numbers(run(tables(), tmp_path / "a")).identical(numbers(whole))


SCRIPT = """
import sys
from sdgpu.study import run
from sdgpu.study.grid_study import workers
from tests.study.grid_study.test_running import tables
if __name__ == "__main__":
    workers.TOGETHER = 0.03
    run(tables(seeds=list(range(12))), sys.argv[1], workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_kills_of_whole_runs(tmp_path, count):
    """Whatever the moment, the next run goes on, and in the end has the same numbers to the last bit."""
    truth = run(tables(seeds=list(range(12))), tmp_path / "truth")
    script, folder = tmp_path / "script.py", tmp_path / "a"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    rng = np.random.default_rng(count)
    for attempt in range(6 if os.environ.get("CI") else 3):
        child = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(count)],
            env=environment,
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        done, until = _cells(folder), time.monotonic() + 60
        while _cells(folder) <= done and child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        below = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
        child.send_signal((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[attempt % 3])
        child.wait(60)
        child.stderr.close()
        # without their parent workers end by themselves
        assert not psutil.wait_procs(below, timeout=60)[1]
    found = run(tables(seeds=list(range(12))), folder)
    assert numbers(found).identical(numbers(truth))
    assert not list(folder.rglob("*.sdgpu-tmp"))


def _cells(folder):
    return len(list((folder / "cells").glob("*.safetensors"))) if folder.exists() else 0


def test_a_second_run_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with (
        folder_lock(tmp_path / "a", "run of a study"),
        pytest.raises(BlockingIOError, match=r"a is in use by another run of a study \(process"),
    ):
        run(tables(), tmp_path / "a")


def test_what_is_refused_before_any_work(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(workers, "fit_cells", None)
    other = {**tables(), "name": "other"}
    with pytest.raises(
        ValueError, match="holds the study 'test', not 'other': name another folder"
    ):
        run(other, whole.folder)
    with pytest.raises(FileNotFoundError, match=r"to resume: 'run' begins one"):
        run(tables(), tmp_path / "none", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        run(tables(), tmp_path / "file")
    with pytest.raises(ValueError, match="no classes: noise of kind 'symmetric'"):
        run(tables(noise={"kind": "symmetric", "levels": 0.5}), tmp_path / "a")
    grid = {"lams": "1:2:1000", "alphas": "0:1:1001", "steps": 100}
    with pytest.raises(ValueError, match=r"above 4\.29 GB: keep fewer of them"):
        run(tables(grid=grid), tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="there is no study in"):
        open_study(tmp_path)
    (tmp_path / "c" / "cells").mkdir(parents=True)
    (tmp_path / "c" / "cells" / "x.safetensors").write_text("")
    with pytest.raises(ValueError, match=r"has cells but no study\.json"):
        run(tables(), tmp_path / "c")


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None  # as if it were not installed
try:
    import sdgpu.study
    from tests.study.grid_study.test_running import tables
    sdgpu.study.run(tables(), sys.argv[2], workers=2)
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("package", ["pydantic", "pebble", "zarr"])
def test_what_is_not_installed_is_named_before_any_work(tmp_path, package):
    if package == "pydantic":
        script = WITHOUT.replace("    from tests.study.grid_study.test_running import tables\n", "")
        script = script.replace("tables()", "{}")
    else:
        script = WITHOUT
    told = subprocess.run(
        [sys.executable, "-c", script, package, str(tmp_path / "a")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert package in told.stdout, told.stderr[-2000:]
    assert "pip install" in told.stdout
    assert not _cells(tmp_path / "a")


def test_data_that_have_changed_are_refused(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 3))
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b,y", comments="")
    text = (
        'name = "file"\n[data]\nsource = "rows.csv"\n[[kernel]]\nname = "linear"\n'
        "[compute]\nworkers = 1\n[grid]\nsteps = 2\nalphas = [0, 1]\n"
    )
    (tmp_path / "study.toml").write_text(text)
    assert len(run(tmp_path / "study.toml").records) == 1
    assert (tmp_path / "study" / "results.zarr").exists()
    (tmp_path / "moved").mkdir()
    for name in ("rows.csv", "study.toml", "study"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    path = tmp_path / "moved" / "study.toml"
    cells = _cells(tmp_path / "moved" / "study")
    assert run(path).records  # a study that was moved is the same
    assert _cells(tmp_path / "moved" / "study") == cells
    rows[3, 1] += 1
    np.savetxt(path.with_name("rows.csv"), rows, delimiter=",", header="a,b,y", comments="")
    with pytest.raises(ValueError, match=r"the data rows\.csv have changed since"):
        run(path)


def test_on_dask(tmp_path, whole):
    pytest.importorskip("distributed")
    with local_cluster(2):
        found = run(tables(), tmp_path / "a", workers=7)
    assert numbers(found).identical(numbers(whole))


def test_networks_have_folders_of_their_own(tmp_path):
    network = {"preset": "digits", "seeds": 0, "alphas": 0.5, "steps": 2, "epochs": 1}
    network |= {"rows": 500, "algorithm1": False}
    found = run({"name": "nets", "network": network}, tmp_path / "a")
    assert not found.records
    assert (tmp_path / "a" / "networks" / "1-digits" / "results.nc").exists()


def test_lines_that_are_torn_are_made_again(tmp_path):
    found = run(tables(), tmp_path / "a")
    lines = tmp_path / "a" / "cells.jsonl"
    text = lines.read_text()
    keys = [record["key"] for record in found.records]
    lines.write_text("x" + text[: len(text) // 2])
    records = StudyFolder(tmp_path / "a").records(keys)
    assert records == {record["key"]: record for record in found.records}
    lines.unlink()
    assert StudyFolder(tmp_path / "a").records(keys) == records
    run(tables(), tmp_path / "a")
    assert sorted(lines.read_text().splitlines()) == sorted(text.splitlines())
