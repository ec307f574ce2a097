"""Zarr stores of others: nothing in them runs, none asks for memory, and no number is made up."""

import json
import os
import pickle
import shutil

import numcodecs
import numpy as np
import pytest
import zarr

from sdgpu.backend import rows as row_sources
from sdgpu.backend.rows import checked_blocks
from tests.damage import damages
from tests.test_foreign_files import SHARDING, Canary

N = 60
RNG = np.random.default_rng(8)
X, Y = RNG.standard_normal((N, 3)), RNG.standard_normal(N)


@pytest.fixture(params=[3, 2])
def folder(request, tmp_path):
    """A store of format 3 and one of format 2."""
    group = zarr.open_group(tmp_path / "t.zarr", mode="w", zarr_format=request.param)
    group.create_array("X", data=X, chunks=(10, 3))
    group.create_array("y", data=Y, chunks=(20,))
    return tmp_path / "t.zarr"


def is_new(folder):
    return (folder / "zarr.json").exists()


def chunk(folder, number=2):
    return folder / "X" / (f"c/{number}/0" if is_new(folder) else f"{number}.0")


def description(folder, name="X"):
    return folder / name / ("zarr.json" if is_new(folder) else ".zarray")


def describe(folder, **changes):
    file = description(folder)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def read(folder, rows=7):
    return list(checked_blocks(row_sources.open(folder), rows))


def test_planted_pickles_do_not_run(tmp_path):
    """Objects of format 2, pickle as the filter or as the compressor; numcodecs below 0.16.6 loads it."""
    canary = tmp_path / "canary"
    payload = pickle.dumps([[Canary(canary)], "|O", [1]])
    pickles = {"id": "pickle", "protocol": 5}
    for dtype, filters, compressor in [
        ("|O", [pickles], None),
        ("|O", [{"id": "json2"}], None),
        ("|O", None, None),
        ("<f8", [pickles], None),
        ("<f8", None, pickles),
        ("|S8", None, None),
        ("|V8", None, None),
    ]:
        shutil.rmtree(tmp_path / "t.zarr", ignore_errors=True)
        (tmp_path / "t.zarr" / "X").mkdir(parents=True)
        about = {"zarr_format": 2, "shape": [1, 1], "chunks": [1, 1], "dtype": dtype}
        about |= {"fill_value": None, "order": "C", "filters": filters, "compressor": compressor}
        (tmp_path / "t.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
        (tmp_path / "t.zarr" / "X" / ".zarray").write_text(json.dumps(about))
        (tmp_path / "t.zarr" / "X" / "0.0").write_bytes(payload)
        with pytest.raises((ValueError, TypeError), match=r"X of .*t.zarr (is refused|holds)"):
            read(tmp_path / "t.zarr")
        assert not canary.exists()
    pickle.loads(payload)  # the canary sings where it is let
    assert canary.exists()


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
NESTED = SHARDING | {"configuration": SHARDING["configuration"] | {"codecs": [SHARDING]}}
BLOSC_SHARDS = SHARDING | {
    "configuration": SHARDING["configuration"]
    | {"codecs": [BYTES, {"name": "blosc"}], "index_codecs": [BYTES]}
}
PICKLED = SHARDING | {
    "configuration": SHARDING["configuration"] | {"index_codecs": [{"name": "numcodecs.pickle"}]}
}


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            {"codecs": [{"name": "numcodecs.pickle"}]},
            ValueError,
            "its codec numcodecs.pickle is none of",
        ),
        ({"codecs": [BYTES, "vlen-bytes"]}, ValueError, "its codec vlen-bytes"),
        ({"codecs": [NESTED]}, ValueError, "its codec sharding_indexed"),
        ({"codecs": [PICKLED]}, ValueError, "its codec numcodecs.pickle"),
        ({"codecs": [SHARDING]}, ValueError, "its codecs are"),
        ({"codecs": []}, ValueError, "its codecs are"),
        ({"codecs": [{"name": ["bytes"]}]}, ValueError, "its codec"),
        ({"codecs": [3]}, ValueError, "its codec 3"),
        ({"data_type": "variable_length_bytes"}, TypeError, "holds variable_length_bytes"),
        ({"data_type": {"name": "object"}}, TypeError, "holds {'name': 'object'}"),
        ({"data_type": "complex128"}, TypeError, "holds complex128"),
        ({"shape": [-2, 3]}, ValueError, "its shape is"),
        ({"shape": [True, 3]}, ValueError, "its shape is"),
        ({"shape": [60]}, ValueError, "its chunks have other axes"),
        ({"shape": None}, ValueError, "its shape is"),
        ({"chunk_grid": {"name": "rectilinear"}}, ValueError, "its chunks lie rectilinear"),
        ({"chunk_grid": {"name": "regular"}}, ValueError, "has no 'configuration'"),
        ({"chunk_grid": "regular"}, ValueError, "its description has no 'name'"),
        (
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**10, 3]}}},
            ValueError,
            "a chunk should have 240,000,000,000 bytes",
        ),
        (
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 3]}}},
            ValueError,
            "its chunks is",
        ),
        (
            {"codecs": [BYTES, "gzip", "zstd"]},
            ValueError,
            "its codecs bytes, gzip, zstd pack it twice",
        ),
        (
            {"codecs": [BYTES, "crc32c", "blosc"]},
            ValueError,
            "its codecs bytes, crc32c, blosc pack",
        ),
        ({"codecs": [BLOSC_SHARDS]}, ValueError, "blosc in shards is not read, write it with zstd"),
        ({"chunk_key_encoding": {"name": "mine"}}, ValueError, "its chunks lie regular, mine"),
        ({"storage_transformers": [{"name": "x"}]}, ValueError, "has storage transformers"),
        ({"zarr_format": 2}, ValueError, "it is no array of format 3"),
        ({"node_type": "group"}, ValueError, "it is no array of format 3"),
    ],
)
def test_stores_of_format_3_with_other_contents(tmp_path, change, error, match):
    group = zarr.open_group(tmp_path / "t.zarr", mode="w")
    group.create_array("X", data=X, chunks=(10, 3))
    describe(tmp_path / "t.zarr", **change)
    with pytest.raises(error, match=rf"X of .*t.zarr.*{match}"):
        read(tmp_path / "t.zarr")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"filters": [{"id": "delta"}]}, ValueError, "it has the filters"),
        ({"compressor": {"id": "base64"}}, ValueError, "its compressor base64 is none of"),
        ({"compressor": {"id": ["zlib"]}}, ValueError, "its compressor"),
        ({"compressor": "zlib"}, ValueError, "its description has no 'id'"),
        ({"dtype": "<c16"}, TypeError, "holds <c16"),
        ({"dtype": "<f1"}, TypeError, "holds <f1"),
        ({"dtype": [["a", "<f8"]]}, TypeError, r"holds \[\["),
        ({"chunks": [10**10, 3]}, ValueError, "a chunk should have"),
        ({"chunks": "10"}, ValueError, "its chunks is 10"),
        ({"zarr_format": 3}, ValueError, "it is no array of format 2"),
    ],
)
def test_stores_of_format_2_with_other_contents(tmp_path, change, error, match):
    group = zarr.open_group(tmp_path / "t.zarr", mode="w", zarr_format=2)
    group.create_array("X", data=X, chunks=(10, 3))
    describe(tmp_path / "t.zarr", **change)
    with pytest.raises(error, match=rf"X of .*t.zarr.*{match}"):
        read(tmp_path / "t.zarr")


def test_what_a_group_says_of_its_members_is_not_asked(tmp_path):
    """Consolidated descriptions could be others than those that were looked through."""
    group = zarr.open_group(tmp_path / "t.zarr", mode="w")
    group.create_array("X", data=X)
    file = tmp_path / "t.zarr" / "zarr.json"
    about = json.loads(description(tmp_path / "t.zarr").read_text()) | {"shape": [7, 3]}
    lies = {"kind": "inline", "must_understand": False, "metadata": {"X": about}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"consolidated_metadata": lies}))
    assert row_sources.open(tmp_path / "t.zarr").n == N


@pytest.mark.parametrize("name", ["zarr.json", ".zgroup"])
@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 10**5, "\xff"])
def test_descriptions_that_cannot_be_read(tmp_path, name, content):
    (tmp_path / "t.zarr" / "X").mkdir(parents=True)
    (tmp_path / "t.zarr" / name).write_text(content)
    if name == ".zgroup":
        (tmp_path / "t.zarr" / "X" / ".zarray").write_text(content)
    with pytest.raises(
        ValueError, match=r"t.zarr is damaged: .*z.*(cannot be read|is no dictionary)"
    ):
        read(tmp_path / "t.zarr")


def test_links_and_pipes_are_refused(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(chunk(folder).read_bytes())
    chunk(folder).unlink()
    chunk(folder).symlink_to(secret)
    with pytest.raises(ValueError, match=r"t.zarr holds X/.*2.0, which is no plain file"):
        read(folder)
    chunk(folder).unlink()
    os.mkfifo(chunk(folder))
    with pytest.raises(ValueError, match="which is no plain file"):
        read(folder)


def test_chunks_that_are_missing_are_not_made_up(folder):
    chunk(folder).unlink()
    with pytest.raises(
        ValueError, match=r"X of .*t.zarr: 1 of 6 chunks are missing: copy the store"
    ):
        read(folder)


def test_chunks_of_the_fill_value_can_be_written(tmp_path):
    for number, keywords in enumerate(({}, {"config": {"write_empty_chunks": True}})):
        path = tmp_path / f"{number}.zarr"
        group = zarr.open_group(path, mode="w")
        group.create_array("X", data=np.zeros((4, 2)), chunks=(2, 2), **keywords)
        if not keywords:
            with pytest.raises(
                ValueError, match=r"2 of 2 chunks are missing.*write_empty_chunks=True"
            ):
                read(path)
        else:
            assert len(read(path)) == 1


def test_chunks_beside_the_array_do_not_stand_for_missing_ones(folder):
    chunk(folder, 6).parent.mkdir(exist_ok=True)
    chunk(folder, 5).rename(chunk(folder, 6))
    with pytest.raises(ValueError, match="1 of 6 chunks are missing"):
        read(folder)


@pytest.mark.parametrize("size", [0, 1, 20, -1])
def test_a_chunk_that_is_cut_off_is_named(folder, size):
    content = chunk(folder).read_bytes()
    chunk(folder).write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"t.zarr, row 14: a chunk is damaged or cut off"):
        read(folder)


@pytest.mark.filterwarnings("ignore")
def test_damage_is_named_or_harmless(folder):
    for file in (chunk(folder), description(folder)):
        content = file.read_bytes()
        for found in damages(content, 9, times=150):
            file.write_bytes(found)
            try:
                read(folder)
            except (ValueError, TypeError) as error:
                assert "t.zarr" in str(error)  # noqa: PT017 - others are harmless
        file.write_bytes(content)


def remove(path):
    path.unlink()


def touch(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def add(path):
    path.with_name("more").touch()


@pytest.mark.parametrize("change", [remove, touch, add])
def test_a_store_that_changes_is_named(folder, change):
    source = row_sources.open(folder)
    found = source.blocks(7)
    next(found)
    change(chunk(folder))
    with pytest.raises(
        ValueError, match=r"t.zarr changed while it was in use, X/.* for one: open it again"
    ):
        list(found)
    with pytest.raises(ValueError, match=r"t.zarr changed while it was in use"):
        list(source.blocks(7))


def test_a_store_that_is_gone_is_named(folder):
    source = row_sources.open(folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"t.zarr cannot be read any more"):
        list(source.blocks(7))
    with pytest.raises(FileNotFoundError, match=r"t.zarr does not exist"):
        row_sources.open(folder)


def test_what_is_no_store(tmp_path):
    (tmp_path / "t.zarr").mkdir()
    with pytest.raises(
        ValueError, match=r"t.zarr is no zarr store: it has neither zarr.json nor .zgroup"
    ):
        row_sources.open(tmp_path / "t.zarr")
    (tmp_path / "f.zarr").touch()
    with pytest.raises(ValueError, match=r"f.zarr is a file: a zarr store is a folder, unpack it"):
        row_sources.open(tmp_path / "f.zarr")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"X": np.zeros((0, 3))}, "t.zarr has no rows"),
        (
            {"X": X, "Y": np.ones((N, 0))},
            r"Y of .* must be \(rows,\) or \(rows, outputs\), got shape",
        ),
        ({"X": X[:, :0]}, r"X of .* must be \(rows, features\)"),
        ({"X": X, "y": np.float64(3.0)}, r"Y of .* must be \(rows,\) or"),
    ],
)
def test_arrays_of_other_shapes(tmp_path, arrays, match):
    group = zarr.open_group(tmp_path / "t.zarr", mode="w")
    for name, array in arrays.items():
        group.create_array(name, shape=array.shape, dtype="f8")
        if array.size:
            group[name][...] = array
    with pytest.raises(ValueError, match=match):
        row_sources.open(tmp_path / "t.zarr")


def test_chunks_are_unpacked_once(tmp_path, monkeypatch):
    """Blocks that are smaller than chunks, and larger; targets in chunks of their own."""
    group = zarr.open_group(tmp_path / "t.zarr", mode="w")
    group.create_array("X", data=X, chunks=(20, 3))
    group.create_array("y", data=Y, chunks=(60,))
    reads = []
    original = zarr.storage.LocalStore.get

    async def get(self, key, *rest, **keywords):
        reads.append(key)
        return await original(self, key, *rest, **keywords)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", get)
    source = row_sources.open(tmp_path / "t.zarr")
    for rows in (1, 7, 30, 60):
        reads.clear()
        assert sum(len(block.X) for block in source.blocks(rows)) == N
        assert sorted(reads) == ["X/c/0/0", "X/c/1/0", "X/c/2/0", "y/c/0"]


def test_chunks_that_do_not_fit_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("sdgpu.backend.rows.zarr_files._KEPT", 100)
    group = zarr.open_group(tmp_path / "t.zarr", mode="w")
    group.create_array("X", data=X, chunks=(20, 3))
    for rows in (1, 7, 60):
        found = [
            block.X for _, block in checked_blocks(row_sources.open(tmp_path / "t.zarr"), rows)
        ]
        assert np.array_equal(np.concatenate(found), X)


@pytest.mark.parametrize("compressor", ["blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma"])
@pytest.mark.parametrize("size", [0, 3, 12, 30, -1])
def test_no_compressor_reads_behind_the_end(tmp_path, compressor, size):
    """Blosc does, and gives whatever memory holds there: its head is read first."""
    group = zarr.open_group(tmp_path / "t.zarr", mode="w", zarr_format=2)
    codec = numcodecs.get_codec({"id": compressor})
    group.create_array("X", data=X, chunks=(10, 3), compressors=codec)
    assert len(read(tmp_path / "t.zarr")) == 9
    file = tmp_path / "t.zarr" / "X" / "2.0"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"t.zarr, row 14: a chunk is damaged or cut off"):
        read(tmp_path / "t.zarr")


@pytest.mark.parametrize(
    ("compressor", "place"), [("blosc", slice(4, 8)), ("lz4", slice(0, 4)), ("zstd", slice(5, 7))]
)
def test_heads_of_chunks_that_ask_for_memory(tmp_path, compressor, place):
    group = zarr.open_group(tmp_path / "t.zarr", mode="w", zarr_format=2)
    codec = numcodecs.get_codec({"id": compressor})
    group.create_array("X", data=np.ones((400, 3)), chunks=(400, 3), compressors=codec)
    file = tmp_path / "t.zarr" / "X" / "0.0"
    content = bytearray(file.read_bytes())
    content[place] = b"\xff" * (place.stop - place.start)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"X/0.0 should unpack .* bytes to 9,600, its head says"):
        read(tmp_path / "t.zarr")


def test_chunks_that_are_not_packed_have_their_size(tmp_path):
    zarr.create_array(tmp_path / "t.zarr", data=X, chunks=X.shape, compressors=None)
    file = tmp_path / "t.zarr" / "c" / "0" / "0"
    for content in (file.read_bytes()[:-8], file.read_bytes() + bytes(8)):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"t.zarr, row 0: a chunk is damaged or cut off: c/0/0 should"
        ):
            read(tmp_path / "t.zarr")
