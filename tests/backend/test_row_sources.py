"""Every kind of source gives the rows that lie in memory, bit for bit, whatever the size of blocks."""

import tracemalloc

import array_api_strict
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from sdgpu.backend import rows as row_sources
from sdgpu.backend.rows import as_source, blocks, checked_blocks
from sdgpu.backend.rows.array_source import ArraySource
from sdgpu.backend.rows.prefetch import prefetched
from sdgpu.backend.rows.source import RowSource

N, D, C = 41, 3, 2
RNG = np.random.default_rng(5)
X, Y, WEIGHTS = RNG.standard_normal((N, D)), RNG.standard_normal((N, C)), RNG.random(N)
FEATURES, TARGETS = ["a", "b", "c"], ["y", "z"]
IN_TABLE = {"target": TARGETS, "features": FEATURES, "weights": "w"}
MATRIX = np.concatenate([Y[:, :1], X, WEIGHTS[:, None], Y[:, 1:]], axis=1)
IN_MATRIX = {"target": [0, -1], "features": [1, 2, 3], "weights": 4}


def table(features=X, part=slice(None)):
    """Columns in another order than they are asked for."""
    columns = {"y": Y[:, 0], "c": features[:, 2], "w": WEIGHTS, "a": features[:, 0]}
    columns |= {"b": features[:, 1], "z": Y[:, 1]}
    return pa.table({name: column[part] for name, column in columns.items()})


def parquet(folder, features=X):
    pq.write_table(table(features), folder / "t.parquet", row_group_size=13)
    return row_sources.open(folder / "t.parquet", **IN_TABLE)


def feather(folder, features=X):
    pyarrow.feather.write_feather(table(features), folder / "t.feather", chunksize=13)
    return row_sources.open(folder / "t.feather", **IN_TABLE)


def arrow(folder, features=X):
    with pa.ipc.new_file(folder / "t.arrow", table(features).schema) as file:
        file.write_table(table(features).slice(0, 0))
        file.write_table(table(features), max_chunksize=9)
    return row_sources.open(folder / "t.arrow", **IN_TABLE)


def npy(folder):
    np.save(folder / "t.npy", MATRIX)
    return row_sources.open(folder / "t.npy", **IN_MATRIX)


def npy_by_columns(folder):
    np.save(folder / "t.npy", np.asfortranarray(MATRIX))
    return row_sources.open(folder / "t.npy", **IN_MATRIX)


def npy_big_endian(folder):
    np.save(folder / "t.npy", MATRIX.astype(">f8"))
    return row_sources.open(folder / "t.npy", **IN_MATRIX)


def npz(folder):
    np.savez(folder / "t.npz", X=X, Y=Y, weights=WEIGHTS, other=np.array(["text"]))
    return row_sources.open(folder / "t.npz")


def npz_compressed(folder):
    np.savez_compressed(folder / "t.npz", X=X, y=Y, w=WEIGHTS)
    return row_sources.open(folder / "t.npz", weights="w")


def npz_of_a_matrix(folder):
    np.savez_compressed(folder / "t.npz", X=MATRIX)
    return row_sources.open(folder / "t.npz", **IN_MATRIX)


def store(folder, **keywords):
    group = zarr.open_group(folder / "t.zarr", mode="w", zarr_format=keywords.pop("zarr_format", 3))
    group.create_array("X", data=X, chunks=(10, 2), **keywords)
    group.create_array("Y", data=Y, chunks=(7, 1))
    group.create_array("weights", data=WEIGHTS, chunks=(41,))
    return row_sources.open(folder / "t.zarr")


def store_with_shards(folder):
    return store(folder, shards=(20, 4))


def store_of_format_2(folder):
    return store(folder, zarr_format=2)


def store_of_plain_bytes(folder):
    return store(folder, compressors=None)


def store_in_other_codecs(folder):
    codecs = [zarr.codecs.BloscCodec(), zarr.codecs.Crc32cCodec()]
    return store(folder, compressors=codecs, filters=[zarr.codecs.TransposeCodec(order=(1, 0))])


def one_zarr_array(folder):
    zarr.save_array(folder / "t.zarr", MATRIX)
    return row_sources.open(folder / "t.zarr", **IN_MATRIX)


def one_zarr_array_of_format_2(folder):
    zarr.save_array(folder / "t.zarr", MATRIX, zarr_format=2)
    return row_sources.open(folder / "t.zarr", **IN_MATRIX)


def store_by_columns_of_x(folder):
    group = zarr.open_group(folder / "t", mode="w")  # found by what it holds
    group.create_array("X", data=MATRIX)
    return row_sources.open(folder / "t", **IN_MATRIX)


def several_files(folder):
    for number, part in enumerate((slice(0, 20), slice(20, 21), slice(21, 41))):
        np.savez(folder / f"part-{number}.npz", X=X[part], Y=Y[part], weights=WEIGHTS[part])
    return row_sources.open(folder / "part-*.npz")


def several_tables(folder):
    (folder / "parts").mkdir()
    (folder / "parts" / "_SUCCESS").touch()
    (folder / "parts" / "README.md").touch()
    for number, part in enumerate((slice(0, 20), slice(20, 41))):
        pq.write_table(table(part=part), folder / "parts" / f"{number}.parquet")
    return row_sources.open(folder / "parts", **IN_TABLE)


def memory_map(folder):
    np.save(folder / "X.npy", X)
    return as_source(np.load(folder / "X.npy", mmap_mode="r"), Y, WEIGHTS)


def zarr_arrays(folder):
    store(folder)
    group = zarr.open_group(folder / "t.zarr", mode="r")
    return as_source(group["X"], group["Y"], group["weights"])


def frame(folder):
    return as_source(table().to_pandas()[[*FEATURES, "w", *TARGETS]], TARGETS, "w")


def frames(folder):
    whole = table().to_pandas()
    return as_source(whole[FEATURES], whole[TARGETS], whole["w"])


def lists(folder):
    return as_source(X.tolist(), Y.tolist(), WEIGHTS.tolist())


def tensors(folder):
    return as_source(torch.tensor(X), torch.tensor(Y), torch.tensor(WEIGHTS))


def arrays_of_the_standard(folder):
    return as_source(*(array_api_strict.asarray(array) for array in (X, Y)), WEIGHTS)


def path(folder):
    parquet(folder)
    return as_source(str(folder / "t.parquet"), TARGETS, "w")


KINDS = [
    *(parquet, feather, arrow, several_tables, path, frame, frames),
    *(npy, npy_by_columns, npy_big_endian, npz, npz_compressed, npz_of_a_matrix, several_files),
    *(store, store_with_shards, store_of_format_2, store_of_plain_bytes, store_in_other_codecs),
    *(one_zarr_array, one_zarr_array_of_format_2, store_by_columns_of_x, zarr_arrays),
    *(memory_map, lists, tensors, arrays_of_the_standard),
]


def assert_same(source, wanted, rows):
    """Block for block, bit for bit."""
    pairs = list(zip(checked_blocks(source, rows), checked_blocks(wanted, rows), strict=True))
    for (start, block), (wanted_start, wanted_block) in pairs:
        assert start == wanted_start
        for name in ("X", "Y", "weights"):
            part, wanted_part = getattr(block, name), getattr(wanted_block, name)
            if wanted_part is None:
                assert part is None
                continue
            part = np.asarray(part)
            assert part.dtype == wanted_part.dtype
            assert part.tobytes() == wanted_part.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows(tmp_path, kind):
    source = kind(tmp_path)
    wanted = ArraySource(X, Y, WEIGHTS)
    if kind is path:  # features in the order of the file
        wanted = ArraySource(X[:, [2, 0, 1]], Y, WEIGHTS)
    assert isinstance(source, RowSource)
    assert (source.d, source.c, source.n, source.dtype) == (D, C, N, "float64")
    assert source.rereadable
    for rows in (1, 7, 1000):
        assert_same(source, wanted, rows)
        assert_same(blocks(lambda rows=rows: parts(source, rows), d=D, c=C), wanted, 5)


def parts(source, rows):
    """Blocks as the source gives them, read ahead."""
    for block in prefetched(source.blocks(rows)):
        yield block.X, block.Y, block.weights


@pytest.mark.parametrize("kind", [parquet, feather, arrow])
def test_names_come_with_tables(tmp_path, kind):
    source = kind(tmp_path)
    assert source.columns == tuple(FEATURES)
    assert source.outputs == tuple(TARGETS)
    assert next(source.blocks(10)).place == f"{source.name}, row 0"
    places = [block.place for block in source.blocks(10)]
    assert places[-1].startswith(f"{tmp_path}/t.")


@pytest.mark.parametrize("kind", [parquet, feather, arrow])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_narrow_features_stay_narrow(tmp_path, kind, precision):
    features = X.astype(precision)
    source = kind(tmp_path, features)
    assert source.dtype == "float32"
    for rows in (1, 7, 1000):
        assert_same(source, ArraySource(features, Y, WEIGHTS), rows)


@pytest.mark.parametrize("precision", ["float16", "float32", "int8", "uint64", "bool"])
def test_matrices_of_other_precisions(tmp_path, precision):
    matrix = (X * 3).astype(precision)
    np.save(tmp_path / "t.npy", matrix)
    zarr.save_array(tmp_path / "t.zarr", matrix)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["X"] = matrix
        found = [
            row_sources.open(tmp_path / "t.npy"),
            row_sources.open(tmp_path / "t.zarr"),
            as_source(file["X"]),
        ]
        for source in found:
            assert source.c == 0
            assert_same(source, ArraySource(matrix), 7)


def test_columns_of_several_types(tmp_path):
    """Whole numbers of 64 bits and truths too, as NumPy makes floats of them."""
    columns = {"f": NARROW[:, 0], "i": np.arange(N) * 2**55, "t": np.arange(N) % 3 == 0}
    columns |= {"u": np.arange(N, dtype=np.uint8), "y": np.arange(N)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = row_sources.open(tmp_path / "t.parquet")  # the last column is the target
    assert (source.columns, source.outputs, source.dtype) == (tuple("fitu"), ("y",), "float64")
    wanted = np.stack([columns[name].astype(float) for name in "fitu"], axis=1)
    assert_same(source, ArraySource(wanted, np.arange(N)), 7)


NARROW = X.astype(np.float32)


def test_the_precision_is_that_of_the_features_asked_for(tmp_path):
    pq.write_table(
        pa.table({"a": NARROW[:, 0], "b": X[:, 1], "y": Y[:, 0]}), tmp_path / "t.parquet"
    )
    assert row_sources.open(tmp_path / "t.parquet", features=["a"]).dtype == "float32"
    assert row_sources.open(tmp_path / "t.parquet").dtype == "float64"


def test_tables_without_targets(tmp_path):
    parquet(tmp_path)
    source = row_sources.open(tmp_path / "t.parquet", [], features=FEATURES)
    assert (source.c, source.outputs) == (0, None)
    assert_same(source, ArraySource(X), 7)


def test_the_index_of_pandas_is_no_column(tmp_path):
    data = pd.DataFrame({"a": X[:, 0], "y": Y[:, 0]}, index=np.arange(N) * 3)
    data.to_parquet(tmp_path / "t.parquet")
    source = row_sources.open(tmp_path / "t.parquet")
    assert (source.columns, source.outputs) == (("a",), ("y",))
    named = row_sources.open(tmp_path / "t.parquet", features=["__index_level_0__"])
    assert np.array_equal(next(named.blocks(N)).X[:, 0], np.arange(N) * 3)


def test_parquet_is_read_by_parts(tmp_path):
    """A block of 1,000 rows of 50 MB takes a few MB, of Arrow too."""
    column = np.random.default_rng(0).standard_normal(400_000)
    big = pa.table({f"x{j}": column for j in range(16)})
    pq.write_table(big, tmp_path / "t.parquet", compression=None, use_dictionary=False)
    del big
    source = row_sources.open(tmp_path / "t.parquet")
    before, most = pa.total_allocated_bytes(), 0
    for start, block in checked_blocks(source, 1000):
        most = max(most, pa.total_allocated_bytes() - before)
        assert np.array_equal(block.X[:, 0], column[start : start + 1000])
    assert most < 25e6


def test_many_columns_of_text_do_not_hinder(tmp_path):
    columns = {
        "name": ["x"] * N,
        "a": X[:, 0],
        "when": pd.date_range("2020", periods=N),
        "y": Y[:, 0],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert_same(
        row_sources.open(tmp_path / "t.parquet", features="a"), ArraySource(X[:, :1], Y[:, :1]), 7
    )


def test_one_archive_of_several_is_in_memory_at_a_time(tmp_path):
    """And a single one is read once."""
    for number in range(6):
        np.savez(tmp_path / f"{number}.npz", X=np.full((50_000, 4), float(number)))
    tracemalloc.start()
    source = row_sources.open(tmp_path / "*.npz")
    for _ in range(2):
        assert sum(block.X[:, 0].sum() for block in source.blocks(1000)) == 15 * 50_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * 50_000 * 4 * 8
    alone = row_sources.open(tmp_path / "3.npz")
    assert alone.arrays() is alone.arrays()
