"""Planted files are not run, and paths, patterns and folders mean the files that they should."""

import pickle
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdgpu.backend import rows as row_sources
from sdgpu.backend.rows.array_source import ArraySource
from tests.backend.test_row_files import WRITERS, N, X, Y, read
from tests.test_foreign_files import Canary


def plant(path, payload):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", [*WRITERS, "t.zarr/zarr.json", "t.zarr/.zarray", "t.zarr/.zgroup"])
def test_no_source_runs_a_pickle(tmp_path, name, protocol):
    canary, file = tmp_path / "canary", tmp_path / "in" / name
    payload = pickle.dumps(Canary(canary), protocol=protocol)
    plant(file, payload)
    with pytest.raises(ValueError, match=name.partition("/")[0]):
        read(row_sources.open(tmp_path / "in" / name.partition("/")[0]))
    assert not canary.exists()
    pickle.loads(payload)  # the canary sings where it is let
    assert canary.exists()


def test_arrays_of_objects_do_not_run(tmp_path):
    """In the very form of numpy.save, alone and in an archive."""
    canary = tmp_path / "canary"
    objects = np.empty((2, 2), object)
    objects[:] = Canary(canary)
    np.save(tmp_path / "t.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "t.npz", X=objects)
    np.savez(tmp_path / "y.npz", X=X, y=objects)
    for name, error in (("t.npy", TypeError), ("t.npz", ValueError), ("y.npz", ValueError)):
        with pytest.raises(error, match=rf"{name}.*object"):
            row_sources.open(tmp_path / name)
        assert not canary.exists()
    np.load(tmp_path / "t.npy", allow_pickle=True)
    assert canary.exists()


def test_types_of_arrow_that_are_pickles_do_not_run(tmp_path):
    """As pyarrow wrote types of Python before version 14.0.1, and made them when a file was opened."""
    canary = tmp_path / "canary"
    kind = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Canary(canary)),
    }
    fields = [pa.field("a", pa.float64(), metadata=kind), pa.field("y", pa.float64())]
    data = pa.table([X[:, 0], Y], schema=pa.schema(fields))
    with pa.ipc.new_file(tmp_path / "t.arrow", data.schema) as file:
        file.write_table(data)
    pq.write_table(data, tmp_path / "t.parquet")
    for name in ("t.arrow", "t.parquet"):
        try:
            read(row_sources.open(tmp_path / name))
        except (TypeError, ValueError) as error:
            assert name in str(error)  # noqa: PT017 - pyarrow may also read the numbers alone
        assert not canary.exists()


# ---- paths, patterns and folders


def test_patterns_are_sorted(tmp_path):
    for number in (2, 0, 1):
        np.savez(tmp_path / f"part-{number}.npz", X=X[number : number + 1])
    (tmp_path / "part-9.npz").mkdir()  # a folder is no file
    wanted = ArraySource(X[:3])
    for found in (tmp_path / "part-*.npz", f"{tmp_path}/part-[0-9].npz", f"{tmp_path}/**/*.npz"):
        source = row_sources.open(found)
        assert np.array_equal(read(source)[0][1].X, wanted.X)
    (tmp_path / "part-9.npz").rmdir()
    assert row_sources.open(tmp_path).n == 3
    listed = row_sources.open([tmp_path / "part-2.npz", tmp_path / "part-[01].npz"])
    assert np.array_equal(read(listed)[0][1].X, X[[2, 0, 1]])


def test_names_that_look_like_patterns(tmp_path):
    np.save(tmp_path / "a[1].npy", X)
    assert row_sources.open(tmp_path / "a[1].npy").n == N


def test_patterns_without_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"no file matches the pattern \*.parquet in the folder {tmp_path}"
    ):
        row_sources.open(tmp_path / "*.parquet")
    (tmp_path / "readme.md").touch()
    with pytest.raises(
        FileNotFoundError, match=rf"no file in the folder {tmp_path} has a known ending"
    ):
        row_sources.open(tmp_path)
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(FileNotFoundError, match=r"missing.npy does not exist"):
        row_sources.open([tmp_path / "a.npy", tmp_path / "missing.npy"])


def test_folders_of_several_kinds_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "a.npz", X=X)
    (tmp_path / "texts").mkdir()
    for name in ("a.csv", "a.csv.gz"):  # the same rows, packed and not
        (tmp_path / "texts" / name).touch()
    with pytest.raises(ValueError, match=r"holds .csv and .csv.gz files"):
        row_sources.open(tmp_path / "texts")
    with pytest.raises(
        ValueError, match=r"holds .npy and .npz files.*name those that are meant, .*\*.npy"
    ):
        row_sources.open(tmp_path)


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        ([], ValueError, r"path=\[\] must be a path"),
        (3, TypeError, "path=3 must be a path"),
        (["a", 3], TypeError, "must be a path"),
        (None, TypeError, "path=None must be a path"),
    ],
)
def test_what_is_no_path(path, error, match):
    with pytest.raises(error, match=match):
        row_sources.open(path)


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.npy.gz", "t.parquet.zst", "csv"])
def test_unknown_endings_name_the_known_ones(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match=rf"{name} has an ending that is not known.*\.parquet.*\.npz.*\.csv"
    ):
        row_sources.open(tmp_path / name)


@pytest.mark.parametrize("name", ["t.csv", "T.TSV", "t.txt", "t.csv.gz", "t.txt.zst"])
def test_tables_of_text_go_to_their_own_reader(tmp_path, monkeypatch, name):
    calls = []

    def open_table(path, target=None, **keywords):
        calls.append((path, target, keywords))
        return ArraySource(X, Y)

    module = types.ModuleType("sdgpu.backend.rows.text_tables")
    module.open_table = open_table
    monkeypatch.setitem(sys.modules, "sdgpu.backend.rows.text_tables", module)
    monkeypatch.setattr(row_sources, "text_tables", module, raising=False)
    (tmp_path / name).touch()
    assert row_sources.open(tmp_path / name, "y").n == N
    row_sources.open(tmp_path / name, features=["a"], separator=";")
    assert calls[0] == (str(tmp_path / name), "y", {"features": None})
    assert calls[1][2] == {"features": ["a"], "separator": ";"}
    with pytest.raises(ValueError, match=r"weights='w': rows of .*, a table of text, have none"):
        row_sources.open(tmp_path / name, weights="w")


@pytest.mark.parametrize(
    ("library", "name"), [("pyarrow", "t.parquet"), ("pyarrow", "t.arrow"), ("zarr", "t.zarr")]
)
def test_libraries_that_are_not_installed(tmp_path, monkeypatch, library, name):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).mkdir() if name == "t.zarr" else (tmp_path / name).touch()
    with pytest.raises(
        ImportError, match=rf"{library} is not installed: pip install 'sdgpu\[cluster\]'"
    ):
        row_sources.open(tmp_path / name)
