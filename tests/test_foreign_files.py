"""What others may send in place of a sweep: nothing is executed, no other file read, no memory wasted."""

import json
import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import sdgpu
from sdgpu.backend.datafiles import read_dataset
from tests.selection.test_sweep_files import files_of, sweep

__all__ = ["sweep"]  # a fixture


class Canary:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_planted_pickle_does_not_run(sweep, tmp_path):
    """zarr v2, objects, pickle as the filter: numcodecs below 0.16.6 loads it."""
    canary, path = tmp_path / "canary", tmp_path / "x.zarr"
    payload = pickle.dumps([[Canary(canary)], "|O", [1]])
    names = [*sweep.dataset.data_vars, *sweep.dataset.coords]
    for filters in ([{"id": "pickle", "protocol": 5}], [{"id": "json2"}], None):
        shutil.rmtree(path, ignore_errors=True)
        for name in names:
            (path / name).mkdir(parents=True)
            about = {
                "zarr_format": 2,
                "shape": [1],
                "chunks": [1],
                "dtype": "|O",
                "compressor": None,
                "fill_value": None,
                "filters": filters,
                "order": "C",
            }
            (path / name / ".zarray").write_text(json.dumps(about))
            (path / name / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["lam"]}')
            (path / name / "0").write_bytes(payload)
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        with pytest.raises(ValueError, match="is no part of such a store"):
            sdgpu.open_sweep(path)
        with pytest.raises(ValueError, match="will not be replaced"):
            sweep.save(path)
    pickle.loads(payload)  # the canary sings where it is let
    assert canary.exists()


SHARDING = {
    "name": "sharding_indexed",
    "configuration": {
        "chunk_shape": [1, 1, 1],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_codecs": [],
        "index_location": "end",
    },
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"codecs": [SHARDING]}, "codecs"),
        ({"codecs": [{"name": "numcodecs.pickle"}]}, "codecs"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]}, "codecs"),
        ({"data_type": "variable_length_bytes"}, "values of type"),
        ({"data_type": {"name": "object"}}, "values of type"),
        ({"shape": [2, 3, 10**12]}, "chunk_grid"),
        ({"shape": [-2, 3, 3]}, "shape"),
        (
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, 1]}}},
            "chunk_grid",
        ),
        ({"chunk_key_encoding": {"name": "v2"}}, "chunk_key_encoding"),
        ({"zarr_format": 2}, "zarr_format"),
        ({"node_type": "group"}, "node_type"),
        ({"storage_transformers": [{"name": "x"}]}, "no variable of ours"),
        ({"fill_value": {"x": 1}}, "no variable of ours"),
        ({"dimension_names": None}, "no variable of ours"),
        ({"extra": 1}, "no variable of ours"),
    ],
)
def test_stores_with_other_layouts_are_refused(sweep, tmp_path, change, word):
    """With checksums that fit: whoever made it can count them too."""
    from sdgpu.backend.zarr_layout import SEAL, seal_store

    path = tmp_path / "x.zarr"
    sweep.save(path)
    about = path / "mse" / "zarr.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    root = json.loads((path / "zarr.json").read_text())
    del root["attributes"][SEAL]
    (path / "zarr.json").write_text(json.dumps(root))
    contents = {
        file.relative_to(path).as_posix(): np.frombuffer(file.read_bytes(), np.uint8)
        for file in files_of(path)
    }
    for name, content in seal_store(contents).items():
        (path / name).write_bytes(bytes(content))
    with pytest.raises(ValueError, match=word):
        sdgpu.open_sweep(path)


def test_links_and_pipes_in_a_store_are_refused(sweep, tmp_path):
    path, secret = tmp_path / "x.zarr", tmp_path / "secret"
    sweep.save(path)
    values = path / "mse" / "c" / "0" / "0" / "0"
    secret.write_bytes(values.read_bytes())
    values.unlink()
    values.symlink_to(secret)
    with pytest.raises(ValueError, match=r"the link mse/c/0/0/0"):
        sdgpu.open_sweep(path)
    values.unlink()
    os.mkfifo(values)
    with pytest.raises(ValueError, match=r"mse/c/0/0/0, which is no part"):
        sdgpu.open_sweep(path)
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(OSError, match="is no plain file"):
        sdgpu.open_sweep(tmp_path / "pipe.nc")


def external(file, secret):
    file.create_dataset("mse", (2,), "f8", external=[(str(secret), 0, 16)])


def external_link(file, secret):
    file["mse"] = h5py.ExternalLink(str(secret), "/mse")


def soft_link(file, secret):
    file["mse"] = h5py.SoftLink("/gcv")


def virtual(file, secret):
    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "mse", (2,))
    file.create_virtual_dataset("mse", layout)


def compressed(file, secret):
    file.create_dataset("mse", data=np.zeros(2), compression="gzip")


def chunked(file, secret):
    file.create_dataset("mse", data=np.zeros(2), chunks=(1,))


def group(file, secret):
    file.create_group("mse")


def named_type(file, secret):
    file["mse"] = np.dtype("f8")


def objects(file, secret):
    file.create_dataset("mse", data=np.array([file.ref], dtype=h5py.ref_dtype))


def records(file, secret):
    file.create_dataset("mse", data=np.zeros(2, dtype=[("a", "f8")]))


def bytes_of_variable_length(file, secret):
    file.create_dataset("mse", (2,), dtype=h5py.vlen_dtype(np.uint8))


def huge(file, secret):
    file.create_dataset("mse", (10**12,), "f8")


@pytest.mark.parametrize(
    ("plant", "word"),
    [
        (external, "lie in another file"),
        (external_link, "link to another place"),
        (soft_link, "link to another place"),
        (virtual, "virtual"),
        (compressed, "filters"),
        (chunked, "one piece"),
        (group, "no array"),
        (named_type, "no array"),
        (objects, "values of type"),
        (records, "values of type"),
        (bytes_of_variable_length, "values of type"),
        (huge, "one piece"),
    ],
)
def test_netcdf_with_other_contents_is_refused(tmp_path, plant, word):
    secret, path = tmp_path / "secret", tmp_path / "x.nc"
    with h5py.File(secret, "w") as file:
        file["mse"] = np.arange(2.0)
    with h5py.File(path, "w") as file:
        plant(file, secret)
        if plant is not huge:
            file["gcv"] = np.zeros(2)
    with pytest.raises(ValueError, match=rf"x.nc cannot be read as nc: refused, .*mse.*{word}"):
        sdgpu.open_sweep(path)


def test_variables_that_share_their_bytes_are_refused(tmp_path):
    """A small file with a thousand names for the same values would fill the memory."""
    with h5py.File(tmp_path / "x.nc", "w") as file:
        file["a"] = np.zeros(10**5)
        for i in range(3):
            file[f"b{i}"] = file["a"]
    with pytest.raises(ValueError, match="more than the file has"):
        read_dataset(tmp_path / "x.nc")


def test_texts_that_share_their_bytes_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.nc", "w") as file:
        item = file.create_dataset("mse", (40,), h5py.string_dtype())
        item[0] = "x" * 1000
        place, raw = item.id.get_offset(), 16
    content = bytearray((tmp_path / "x.nc").read_bytes())
    content[place : place + 40 * raw] = content[place : place + raw] * 40
    (tmp_path / "x.nc").write_bytes(content)
    with pytest.raises(ValueError, match="more than the file has"):
        read_dataset(tmp_path / "x.nc")


def test_texts_in_attributes_that_share_their_bytes_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.nc", "w") as file:
        file.attrs.create("a", ["x" * 1000] * 60, dtype=h5py.string_dtype("utf-8", 100))
        file["mse"] = np.zeros(2)
        file.attrs["b"] = ["x"] * 65
    with pytest.raises(ValueError, match="the attribute b has 65 texts"):
        read_dataset(tmp_path / "x.nc")


@pytest.mark.filterwarnings("ignore:.*has no checksums")
@pytest.mark.parametrize(
    "table",
    [
        {"size": 10, "rest": "", "variables": {"a": [0, 10**9, ""], "b": [0, 10**9, ""]}},
        {"size": 10, "rest": "", "variables": {"a": [-5, 3, ""]}},
        {"size": 10, "rest": "", "variables": {"a": [float("inf"), 3, ""]}},
        {"size": 10, "variables": {}},
        [],
        {"size": 10, "rest": "", "variables": 3},
    ],
)
def test_hostile_tables_of_checksums_are_damage(sweep, tmp_path, table):
    sweep.save(tmp_path / "a.nc")
    content = (tmp_path / "a.nc").read_bytes()
    image = content[: content.rfind(b"{", 0, content.rfind(b'"size"'))]
    text = json.dumps(table).encode()
    (tmp_path / "a.nc").write_bytes(b"%b%b\nsdgpu %010d\n" % (image, text, len(text)))
    with pytest.raises(ValueError, match=r"a.nc is damaged"):
        sdgpu.open_sweep(tmp_path / "a.nc")
