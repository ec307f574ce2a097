"""Files of rows that are damaged, changed, of another kind or planted: named, and nothing in them runs."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zarr

from sdgpu.backend import rows as row_sources
from sdgpu.backend.rows import checked_blocks
from tests.damage import cut, damages

N = 60
RNG = np.random.default_rng(6)
X, Y = RNG.standard_normal((N, 3)), RNG.standard_normal(N)


def table(rows=N):
    return pa.table({"a": X[:rows, 0], "b": X[:rows, 1], "y": Y[:rows]})


def write_parquet(path, rows=N):
    pq.write_table(table(rows), path, row_group_size=20)


def write_arrow(path, rows=N):
    with pa.ipc.new_file(path, table().schema) as file:
        file.write_table(table(rows), max_chunksize=20)


WRITERS = {
    "t.parquet": write_parquet,
    "t.feather": lambda path, rows=N: pyarrow.feather.write_feather(
        table(rows), path, chunksize=20
    ),
    "t.arrow": write_arrow,
    "t.npy": lambda path, rows=N: np.save(path, X[:rows]),
    "t.npz": lambda path, rows=N: np.savez(path, X=X[:rows], y=Y[:rows]),
}


@pytest.fixture(params=WRITERS)
def path(request, tmp_path):
    file = tmp_path / request.param
    WRITERS[file.name](file)
    return file


def read(source, rows=10):
    return list(checked_blocks(source, rows))


# ---- changes


def rewrite(path):
    WRITERS[path.name](path, rows=N - 1)


def touch(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def cut_off(path):
    os.truncate(path, path.stat().st_size // 2)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("change", [rewrite, touch, cut_off, remove])
def test_a_file_that_changes_between_passes_is_named(path, change):
    source = row_sources.open(path)
    read(source)
    read(source)
    change(path)
    with pytest.raises(
        ValueError, match=rf"{path.name} (changed while it was in use|cannot be read)"
    ):
        read(source)


@pytest.mark.parametrize("change", [rewrite, touch, cut_off, remove])
def test_a_file_that_changes_during_a_pass_is_named(path, change):
    found = row_sources.open(path).blocks(10)
    next(found)
    change(path)
    with pytest.raises(
        ValueError, match=rf"{path.name} (changed while it was in use|cannot be read)"
    ):
        list(found)


def test_a_file_that_changes_after_its_last_block_is_named(path):
    found = row_sources.open(path).blocks(N)
    for _ in range(3 if path.suffix in (".feather", ".arrow") else 1):
        next(found)
    touch(path)
    with pytest.raises(ValueError, match=f"{path.name} changed while it was in use"):
        next(found)


@pytest.mark.parametrize("size", [0, 1, 4, 40, 200, -1])
def test_a_file_that_is_cut_off_is_named(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=path.name):
        read(row_sources.open(path))


@pytest.mark.parametrize("name", ["t.npy", "t.npz"])
def test_damage_is_named_or_harmless(tmp_path, name):
    file = tmp_path / name
    WRITERS[name](file)
    wanted, content = np.load(file), file.read_bytes()
    wanted = wanted["X"] if name == "t.npz" else wanted
    for found in damages(content, 4, times=300):
        file.write_bytes(found)
        try:
            blocks = read(row_sources.open(file), N)
        except (ValueError, TypeError) as error:
            assert name in str(error)  # noqa: PT017 - others are harmless
        else:
            assert [block.X.shape[0] for _, block in blocks] in ([N], [N, 0]) or name == "t.npy"
            assert name == "t.npy" or np.array_equal(blocks[0][1].X, wanted)


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "t.arrow"])
def test_damage_of_tables_is_named_or_harmless(tmp_path, name):
    """Or it gives other numbers, where the writer left no checksums; never other rows."""
    file = tmp_path / name
    WRITERS[name](file)
    for found in damages(file.read_bytes(), 7, times=100):
        file.write_bytes(found)
        try:
            assert sum(len(block.X) for _, block in read(row_sources.open(file))) == N
        except (ValueError, TypeError) as error:
            assert name in str(error)  # noqa: PT017 - others are harmless


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "t.arrow"])
def test_tables_that_are_cut_off_are_named(tmp_path, name):
    file = tmp_path / name
    WRITERS[name](file)
    for found in damages(file.read_bytes(), 5, cut, times=60):
        file.write_bytes(found)
        with pytest.raises(ValueError, match=name):
            row_sources.open(file)


def test_files_without_rows_are_named(path):
    WRITERS[path.name](path, rows=0)
    with pytest.raises(ValueError, match=rf"{path.name} has no rows"):
        row_sources.open(path)


def test_pipes_and_folders_are_no_files(path):
    path.unlink()
    os.mkfifo(path)  # would be waited for
    with pytest.raises(OSError, match=rf"{path.name} is no plain file"):
        row_sources.open(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path.name} does not exist"):
        row_sources.open(path)


# ---- columns of tables


@pytest.mark.parametrize(
    ("column", "kind", "remedy"),
    [
        (pa.array(["x"] * 3), "string", "encode it as numbers first"),
        (pa.array(["x"] * 3).dictionary_encode(), "dictionary<", "pandas.get_dummies"),
        (pa.array([1] * 3, pa.decimal128(5, 2)), r"decimal128\(5, 2\)", "cast it to float64"),
        (pa.array([1] * 3, pa.timestamp("s")), r"timestamp\[m?s\]", "seconds since the first"),
        (pa.array([1] * 3, pa.date32()), r"date32\[day\]", "seconds since the first"),
        (pa.array([1] * 3, pa.duration("s")), r"duration\[s\]", "seconds since the first"),
        (pa.array([[1.0]] * 3), "list<", "spread it over columns"),
        (pa.array([{"k": 1}] * 3), "struct<", "spread it over columns"),
        (pa.array([b"x"] * 3), "binary", "encode it as numbers first"),
        (pa.nulls(3), "null", "encode it as numbers first"),
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_that_hold_no_numbers(tmp_path, ending, column, kind, remedy):
    data, file = (
        pa.table({"a": [1.0, 2, 3], "bad": column, "y": [1.0, 2, 3]}),
        tmp_path / f"t.{ending}",
    )
    if ending == "parquet":
        pq.write_table(data, file)
    else:
        with pa.ipc.new_file(file, data.schema) as writer:
            writer.write_table(data)
    match = rf"t.{ending}: column 'bad' has type {kind}.*{remedy}.*features=\[..\]"
    for keywords in ({}, {"target": "bad"}, {"weights": "bad"}):
        with pytest.raises(TypeError, match=match):
            row_sources.open(file, **keywords)
    assert len(read(row_sources.open(file, features="a"))) == 1


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("column", ["a", "y", "w"])
def test_missing_values_are_named(tmp_path, ending, column):
    columns = {name: [1.0] * 30 for name in ("a", "b", "w", "y")}
    columns[column][23] = None
    data, file = pa.table(columns), tmp_path / f"t.{ending}"
    if ending == "parquet":
        pq.write_table(data, file, row_group_size=11)
    else:
        with pa.ipc.new_file(file, data.schema) as writer:
            writer.write_table(data, max_chunksize=11)
    source = row_sources.open(file, weights="w")
    with pytest.raises(ValueError, match=rf"t.{ending}: column '{column}' has no value in row 23"):
        read(source, 7)


def test_nan_in_a_table_is_named(tmp_path):
    values = np.ones(30)
    values[23] = np.nan
    pq.write_table(pa.table({"a": values, "y": np.ones(30)}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"X at .*t.parquet, row 20, row 3 of the block, is NaN"):
        read(row_sources.open(tmp_path / "t.parquet"), 10)


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        (
            {"target": "Y"},
            ValueError,
            r"target='Y' is no column of .*: did you mean 'y'\? it has 'a', 'b', 'y'",
        ),
        ({"features": ["a", "q"]}, ValueError, "features='q' is no column"),
        ({"weights": "w"}, ValueError, "weights='w' is no column"),
        ({"weights": ["a", "b"]}, ValueError, "must be the name of one column"),
        ({"target": 2}, TypeError, r"target=2 must be a name, or a list of names"),
        ({"target": 2.5}, TypeError, r"target=2.5 must be a name"),
        (
            {"target": "a", "features": ["a"]},
            ValueError,
            "'a' of .* is in features and in target: leave it",
        ),
        (
            {"features": ["a", "y"]},
            ValueError,
            r"is in features and in target: name the targets.*target=\[\]",
        ),
        ({"target": "a", "weights": "a"}, ValueError, "is in target and in weights"),
        ({"features": ["a", "a"]}, ValueError, "features names the column 'a' of .* twice"),
        ({"target": ["a", "b", "y"]}, ValueError, "no column left for features"),
        ({"features": []}, ValueError, "no column left for features"),
        ({"separator": ","}, TypeError, "separator is an option of tables of text"),
    ],
)
def test_columns_that_are_not_there(tmp_path, keywords, error, match):
    write_parquet(tmp_path / "t.parquet")
    with pytest.raises(error, match=match):
        row_sources.open(tmp_path / "t.parquet", **keywords)


def test_two_columns_of_one_name(tmp_path):
    data = table().rename_columns(["a", "a", "y"])
    with pa.ipc.new_file(tmp_path / "t.arrow", data.schema) as file:
        file.write_table(data)
    with pytest.raises(ValueError, match=r"t.arrow has 'a' as the name of two columns"):
        row_sources.open(tmp_path / "t.arrow")


def test_other_formats_of_arrow_are_named(tmp_path):
    with pa.ipc.new_stream(tmp_path / "t.arrow", table().schema) as file:
        file.write_table(table())
    with pytest.raises(ValueError, match=r"t.arrow is damaged.*Not an Arrow file"):
        row_sources.open(tmp_path / "t.arrow")
    (tmp_path / "t.feather").write_bytes(b"FEA1" + bytes(100) + b"FEA1")
    with pytest.raises(ValueError, match=r"t.feather is .*version 1 of Feather: write it anew"):
        row_sources.open(tmp_path / "t.feather")


# ---- matrices


@pytest.mark.parametrize(
    ("array", "error", "match"),
    [
        (
            np.ones(3),
            ValueError,
            r"must hold a matrix .*got shape \(3,\): save array.reshape\(-1, 1\)",
        ),
        (np.ones((3, 2, 2)), ValueError, "must hold a matrix"),
        (np.ones((3, 0)), ValueError, "no column left for features"),
        (np.ones((3, 2), complex), TypeError, "holds complex128, not plain real numbers"),
        (np.array([["a"]]), TypeError, "holds <U1"),
        (np.zeros((3, 2), "f8,f8"), TypeError, "not plain real numbers"),
        (np.array([["2020-01-01"]], "M8[D]"), TypeError, "holds datetime64"),
    ],
)
def test_arrays_that_are_no_matrices(tmp_path, array, error, match):
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(error, match=rf"t.npy.*{match}"):
        row_sources.open(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (
            "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }",
            "announces 24,000,000",
        ),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3), }", "must hold a matrix"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (3,) }", "must hold a matrix"),
        ("{'descr': 'rubbish', 'fortran_order': False, 'shape': (3, 3), }", "is no .npy file"),
        ("{'descr': __import__('os'), }", "is no .npy file"),
    ],
)
def test_heads_that_lie(tmp_path, header, match):
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    (tmp_path / "t.npy").write_bytes(content + bytes(64))
    with pytest.raises(ValueError, match=rf"t.npy.*{match}"):
        row_sources.open(tmp_path / "t.npy")
    (tmp_path / "t.npy").write_bytes(content.replace(b"NUMPY\x01", b"NUMPY\x03"))
    with pytest.raises(ValueError, match=r"t.npy is no .npy file"):
        row_sources.open(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"target": 3}, ValueError, "target=3 is no column of .*t.npy: it has 0 to 2"),
        ({"target": -4}, ValueError, "target=-4 is no column"),
        ({"target": "y"}, TypeError, "target='y' must be a number"),
        ({"target": True}, TypeError, "target=True must be a number"),
        ({"features": [0.5]}, TypeError, r"features=\[0.5\] must be a number"),
        ({"weights": [0, 1]}, ValueError, "must be the number of one column"),
        ({"target": [0, -3]}, ValueError, "target names the column 0 of .* twice"),
        (
            {"target": 0, "features": [0, 1]},
            ValueError,
            "column 0 of .* is in features and in target",
        ),
        ({"target": [0, 1, 2]}, ValueError, "no column left for features"),
    ],
)
def test_numbers_of_no_column(tmp_path, keywords, error, match):
    np.save(tmp_path / "t.npy", X)
    with pytest.raises(error, match=match):
        row_sources.open(tmp_path / "t.npy", **keywords)


@pytest.mark.parametrize(
    ("arrays", "keywords", "error", "match"),
    [
        ({"Z": X}, {}, ValueError, "has no array X: it has Z"),
        ({"X": X, "Y": X, "y": Y}, {}, ValueError, "has both Y and y"),
        (
            {"X": X, "y": Y},
            {"target": 0},
            ValueError,
            "target=0: .* has its targets in y, leave target out",
        ),
        (
            {"X": X, "y": Y},
            {"weights": "w"},
            ValueError,
            "weights='w' is no array of .*: it has X, y",
        ),
        ({"X": X, "y": Y[:4]}, {}, ValueError, "Y of .* has 4 rows, but X has 60"),
        ({"X": Y}, {}, ValueError, r"X of .* must be \(rows, features\)"),
        ({"X": X, "y": np.array(["a"] * N)}, {}, TypeError, "y of .* holds <U1"),
        ({"X": X.astype(complex)}, {}, TypeError, "X of .* holds complex128"),
        ({"X": X, "weights": X}, {}, ValueError, r"weights of .* must be \(rows,\)"),
    ],
)
@pytest.mark.parametrize("name", ["t.npz", "t.zarr"])
def test_arrays_that_do_not_go_together(tmp_path, name, arrays, keywords, error, match):
    if name == "t.npz":
        np.savez(tmp_path / name, **arrays)
    else:
        group = zarr.open_group(tmp_path / name, mode="w", zarr_format=2)
        for member, array in arrays.items():
            group.create_array(member, data=array)
        match = match.replace("complex128", "<c16")
    with pytest.raises(error, match=match):
        row_sources.open(tmp_path / name, **keywords)
