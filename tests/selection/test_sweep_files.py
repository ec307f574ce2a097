"""Files of sweeps: every damage named, nothing executed, no other file read, old ones kept whole."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import sdgpu
from sdgpu.backend import storage
from sdgpu.backend.datafiles import read_dataset, write_dataset
from tests.damage import TIMES, damages

ENDINGS = [".nc", ".zarr"]


@pytest.fixture(scope="module")
def sweep():
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((30, 2)), rng.standard_normal((30, 2))
    fitted = sdgpu.fit(X[:20], Y[:20], sdgpu.Gaussian(0.5), lams=[0.1, 1.0], method="eigh")
    return fitted.sweep(X[20:], Y[20:], alphas=[0.0, 0.3, 1.0], steps=3)


@pytest.fixture(params=ENDINGS)
def saved(request, sweep, tmp_path):
    path = tmp_path / f"sweep{request.param}"
    sweep.save(path)
    return path


def files_of(path):
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_bit_comes_back(tmp_path, ending):
    """Those of NaN and of both zeros too."""
    bits = np.random.default_rng(0).integers(0, 2**63, 60).astype(np.uint64) * 2 + 1
    bits[:4] = 0x7FF8000000000001, 0xFFF8000000000000, 0x8000000000000000, 0
    values = bits.view(np.float64).reshape(3, 20)
    dataset = xr.Dataset(
        {"a": (("x", "y"), values), "b": ("y", np.zeros(20)), "s": ((), 3.0)},
        coords={"x": [1, 2, 3], "z": ("x", np.arange(3.0, dtype=np.float32))},
        attrs={"text": "K", "number": 3, "real": 0.1, "nothing": float("nan")},
    )
    if ending == ".nc":
        dataset = dataset.assign_coords(t=["0.1", "\u03b1"], u=("y", ["algorithm1"] * 20))
    write_dataset(dataset, tmp_path / f"a{ending}")
    again = read_dataset(tmp_path / f"a{ending}")
    assert again.identical(dataset)
    assert again["a"].values.tobytes() == values.tobytes()
    again.attrs.clear()
    write_dataset(again, tmp_path / f"b{ending}")  # what was read can be written
    assert read_dataset(tmp_path / f"b{ending}").identical(again)


def test_others_read_our_files(saved, sweep):
    """The checksums are in nobody's way."""
    engine = (
        {"engine": "h5netcdf"}
        if saved.suffix == ".nc"
        else {"engine": "zarr", "consolidated": False}
    )
    with xr.open_dataset(saved, **engine) as found:
        for name in sweep.dataset.variables:
            assert found[name].equals(sweep.dataset[name])


def outcome(path, whole):
    """Either an error that names the file, or the very numbers."""
    try:
        found = sdgpu.open_sweep(path).dataset
    except ValueError as error:
        return "named" if str(path) in str(error) else f"without a name: {error}"
    for name in whole.variables:
        assert found[name].values.tobytes() == whole[name].values.tobytes()
    return "harmless"


@pytest.mark.filterwarnings("ignore:.*has no checksums")
def test_damage_is_named_or_harmless(saved, sweep):
    files = files_of(saved)
    for seed, file in enumerate(files):
        content, found = file.read_bytes(), []
        for damaged in damages(content, seed, times=max(20, TIMES // len(files))):
            file.write_bytes(damaged)
            found.append(outcome(saved, sweep.dataset))
        file.write_bytes(content)
        assert set(found) <= {"named", "harmless"}
        assert found.count("named") >= 0.9 * len(found)


def test_damaged_variables_are_named(saved, sweep):
    """A flip in the values of a variable names that variable, and no other."""
    raw = sweep.dataset["star_mse"].values.tobytes()
    hits = 0
    for file in files_of(saved):
        content = file.read_bytes()
        at = content.find(raw)
        if at < 0:
            continue
        hits += 1
        file.write_bytes(content[: at + 9] + bytes([content[at + 9] ^ 4]) + content[at + 10 :])
        with pytest.raises(ValueError, match=r"is damaged: .*star_mse") as caught:
            sdgpu.open_sweep(saved)
        assert "joint" not in str(caught.value)
        file.write_bytes(content)
    assert hits == 1


def test_a_missing_part_of_a_store_is_damage(sweep, tmp_path):
    path = tmp_path / "sweep.zarr"
    sweep.save(path)
    for file in files_of(path):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(ValueError, match=f"{file.relative_to(path)} is missing"):
            sdgpu.open_sweep(path)
        file.write_bytes(content)
    assert sdgpu.open_sweep(path).dataset.identical(sweep.dataset)


def test_lost_checksums_are_no_old_file(sweep, tmp_path):
    sweep.save(tmp_path / "a.nc")
    content = (tmp_path / "a.nc").read_bytes()
    (tmp_path / "a.nc").write_bytes(content[: content.rfind(b"\nsdgpu ")])
    with pytest.raises(ValueError, match="checksums are missing"):
        sdgpu.open_sweep(tmp_path / "a.nc")
    sweep.save(tmp_path / "a.zarr")
    root = tmp_path / "a.zarr" / "zarr.json"
    root.write_text(root.read_text().replace('"sdgpu"', '"sdgpv"'))
    with pytest.raises(ValueError, match="checksums are missing"):
        sdgpu.open_sweep(tmp_path / "a.zarr")


def test_files_of_older_versions_are_opened_with_a_warning(sweep, tmp_path):
    sweep.dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    sweep.dataset.to_zarr(tmp_path / "a.zarr", consolidated=False)
    for name in ("a.nc", "a.zarr"):
        with pytest.warns(UserWarning, match=f"{name} has no checksums"):
            found = sdgpu.open_sweep(tmp_path / name)
        assert found.dataset.identical(sweep.dataset)
        found.save(tmp_path / name)  # over the old one
        assert sdgpu.open_sweep(tmp_path / name).dataset.identical(sweep.dataset)


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_dimensions_are_refused(sweep, tmp_path, ending):
    for name in ("mse", "joint_alpha", "limit_mse"):
        turned = sweep.dataset.assign({name: sweep.dataset[name].transpose()})
        write_dataset(turned, tmp_path / f"a{ending}")
        with pytest.raises(ValueError, match=f"{name} has dimensions"):
            sdgpu.open_sweep(tmp_path / f"a{ending}")


def test_a_store_that_a_kill_left_aside_is_found_again(sweep, tmp_path):
    path, place = tmp_path / "a.zarr", tmp_path / ".a.zarr.1-0123abcd.sdgpu-tmp"
    sweep.save(path)
    place.mkdir()
    path.rename(place / "previous")
    assert sdgpu.open_sweep(path).dataset.identical(sweep.dataset)
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_values_that_are_no_numbers_are_not_written(tmp_path):
    for values in (np.array([1j]), np.array([True]), np.zeros(1, "M8[ns]")):
        for ending in ENDINGS:
            with pytest.raises(ValueError, match="t holds"):
                write_dataset(xr.Dataset({"t": ("x", values)}), tmp_path / f"a{ending}")
    with pytest.raises(ValueError, match="at most 10000 texts"):
        write_dataset(xr.Dataset({"t": ("x", ["a"] * 10_001)}), tmp_path / "a.nc")


@pytest.mark.parametrize("ending", ENDINGS)
def test_texts_are_what_they_were(tmp_path, ending):
    names = np.array([["b", "a"], ["", "an \u03b1"]])
    dataset = xr.Dataset(
        {"t": (("x", "y"), names), "u": ("y", [1.0, 2.0])},
        {"y": ["left", "right"], "kind": ("x", ["k", "k"], {"long_name": "kind"})},
    )
    write_dataset(dataset, tmp_path / f"a{ending}")
    found = read_dataset(tmp_path / f"a{ending}")
    for name, variable in dataset.variables.items():
        assert found[name].values.tolist() == variable.values.tolist()
        assert found[name].attrs == variable.attrs
    assert {str(name) for name in found.coords} == {"y", "kind"}


@pytest.mark.parametrize(
    ("labels", "words"), [(["a"], "beyond its 1 labels"), ([1, 2], "no texts")]
)
def test_labels_of_others_are_checked(tmp_path, labels, words):
    dataset = xr.Dataset({"t": ("x", np.array([0, 1]), {"labels": labels})})
    write_dataset(dataset, tmp_path / "a.zarr")
    with pytest.raises(ValueError, match=words):
        read_dataset(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    "inside", [["notes.txt"], ["a/zarr.json", "zarr.json"], ["mse/data.bin", "zarr.json"]]
)
def test_a_folder_that_is_no_sweep_is_not_replaced(sweep, tmp_path, inside):
    path = tmp_path / "thesis.zarr"
    for name in inside:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(ValueError, match=r"thesis.zarr .*will not be replaced"):
        sweep.save(path)
    assert all((path / name).exists() for name in inside)


def test_a_sweep_with_more_in_its_folder_is_not_replaced(sweep, tmp_path):
    path = tmp_path / "a.zarr"
    sweep.save(path)
    (path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"a.zarr holds notes.txt, .*will not be replaced"):
        sweep.save(path)
    (path / "notes.txt").unlink()
    sweep.save(path)
    (tmp_path / "b.zarr").mkdir()  # empty: nothing is lost
    sweep.save(tmp_path / "b.zarr")
    (tmp_path / "c.zarr").touch()
    with pytest.raises(ValueError, match="is a file: a zarr store is a folder"):
        sweep.save(tmp_path / "c.zarr")


FULL = """
import resource, signal, sys
import numpy as np
import xarray as xr
from sdgpu.backend.datafiles import read_dataset, write_dataset
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
dataset = xr.Dataset({"mse": ("x", np.zeros(100_000))})
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for path in sys.argv[1] + "/a.nc", sys.argv[1] + "/a.zarr":
    try:
        write_dataset(dataset, path)
    except OSError as error:
        print(error)
"""


@pytest.mark.parametrize("how", ["limit", "disk"])
def test_a_full_disk_is_an_error_and_no_crash(tmp_path, how):
    if how == "disk":
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a small file system can be mounted by root alone")
    try:
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(tmp_path), how],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        reported = done.stdout.splitlines()
        for ending, line in zip(ENDINGS, reported, strict=True):
            assert f"{tmp_path}/a{ending} cannot be written" in line
        assert os.listdir(tmp_path) == []
    finally:
        if how == "disk":
            subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("ending", ENDINGS)
def test_ctrl_c_while_writing_is_not_masked(sweep, tmp_path, monkeypatch, ending):
    path = tmp_path / f"a{ending}"
    sweep.save(path)
    flush = storage._flush
    calls = []

    def interrupted(file):
        calls.append(file)
        if len(calls) == (3 if ending == ".zarr" else 1):
            signal.raise_signal(signal.SIGINT)
        flush(file)

    monkeypatch.setattr(storage, "_flush", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.save(path)
    assert sdgpu.open_sweep(path).dataset.identical(sweep.dataset)
    assert os.listdir(tmp_path) == [path.name]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
import xarray as xr
from sdgpu.backend import datafiles
from sdgpu.backend.storage import clean_leftovers
from sdgpu.backend.zarr_layout import check_store

target, rng = Path(sys.argv[1]), random.Random(5)
dataset = xr.Dataset({name: ("x", np.arange(2000.0)) for name in ("mse", "train_mse")})
ready, tell = os.pipe()

def save_all_the_time():
    datafiles.write_dataset(dataset, target)
    # made once: the kills are to come while it is written
    image, files = datafiles._netcdf(dataset), datafiles._zarr(dataset)
    datafiles._netcdf, datafiles._zarr = (lambda _: image), (lambda _: files)
    os.write(tell, b"1")
    while True:
        datafiles.write_dataset(dataset, target)

for i in range(int(sys.argv[2])):
    number = (signal.SIGKILL, signal.SIGTERM)[i % 2]
    child = os.fork()
    if child == 0:
        try:
            save_all_the_time()
        finally:
            os._exit(1)
    os.read(ready, 1)
    time.sleep(rng.uniform(0.0, 0.03))
    os.kill(child, number)
    os.waitpid(child, 0)
    clean_leftovers(target)
    assert {*os.listdir(target.parent)} <= {target.name}
    if target.suffix == ".zarr":
        assert check_store(target)
    else:
        assert datafiles._check_table(target, target.read_bytes())
print("whole")
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_kills_while_saving(tmp_path, ending):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            str(tmp_path / f"a{ending}"),
            "25" if os.environ.get("CI") else "8",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout == "whole\n", done.stderr


def test_unreadable_is_not_damaged(saved, monkeypatch):
    from sdgpu.backend import untrusted_files as intake

    def refused(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(intake.os, "open", refused)  # root may read everything
    with pytest.raises(PermissionError, match="Permission denied"):
        sdgpu.open_sweep(saved)
