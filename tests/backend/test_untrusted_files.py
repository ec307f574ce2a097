"""Files that others sent: damage named, nothing executed, no memory for sizes that a file does not fill."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from sdgpu.backend.untrusted_files import check_zip, read_file, read_npz
from tests.damage import damages
from tests.test_foreign_files import Canary

ARRAYS = {
    "X": np.random.default_rng(0).standard_normal((12, 3)),
    "y": np.arange(12) % 3,
    "images": np.random.default_rng(1).integers(0, 255, (4, 5, 5), np.uint8),
    "names": np.array(["a", "\u03b1b"]),
    "turned": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big": np.arange(3, dtype=">f8"),
    "none": np.zeros((0, 3)),
    "one": np.array(2.5),
}


def npy(header, payload=b"", version=(1, 0)):
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + payload


def archive(path, entries, packing=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, content in entries.items():
            file.writestr(name, content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    found, names = read_npz(tmp_path / "a.npz", ARRAYS)
    assert names == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert found[name].flags.writeable
    assert read_npz(tmp_path / "a.npz", ["y", "z"])[0].keys() == {"y"}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_named_or_harmless(tmp_path, save):
    path, silent = tmp_path / "a.npz", 0
    save(path, **ARRAYS)
    for found in damages(path.read_bytes(), 4):
        path.write_bytes(found)
        try:
            arrays, names = read_npz(path, ARRAYS)
        except ValueError as error:
            silent += str(path) not in str(error)
        else:  # a name may have changed: then that one is missing
            silent += not all(np.array_equal(array, ARRAYS[name]) for name, array in arrays.items())
            silent += len(names) != len(ARRAYS)
    assert silent == 0


def test_objects_are_refused_and_do_not_run(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "a.npz"
    payload = pickle.dumps(Canary(canary))
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    archive(path, {"X.npy": npy(header, payload), "y.npy": b""})
    with pytest.raises(ValueError, match=r"a.npz .*X.npy holds objects"):
        read_npz(path, ["X"])
    archive(path, {"X.npy": payload})  # NumPy takes what is no array for a pickle
    with pytest.raises(ValueError, match=r"a.npz is no npz file"):
        read_npz(path, ["X"])
    path.write_bytes(payload)
    with pytest.raises(ValueError, match=r"a.npz is no npz file"):
        read_npz(path, ["X"])
    assert not canary.exists()


def claim(shape, kind="<f8"):
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (npy(claim("(536870912,)"), bytes(4 << 20)), "announces 4294967296 bytes"),
        (npy(claim("(2,)"), bytes(24)), "announces 16 bytes of values and holds 24"),
        (npy(claim("(-2,)"), bytes(16)), "announces"),
        (npy(claim("(4611686018427387904, 8)"), bytes(16)), "announces"),
        (npy(claim("(2,)", "|V8"), bytes(16)), None),
        (
            npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,), }", bytes(16)),
            "records",
        ),
        (npy(claim("(2,)"), bytes(16), (3, 0)), "format"),
        (npy("(" * 5000 + ")" * 5000), ""),
        (npy("__import__('os')"), ""),
        (npy("{'descr': '<f8'}"), ""),
        (b"", ""),
    ],
)
def test_headers_are_looked_at_first(tmp_path, content, word):
    path = tmp_path / "a.npz"
    archive(path, {"X.npy": content})
    tracemalloc.start()
    try:
        if word is None:
            read_npz(path, ["X"])
            return
        with pytest.raises(ValueError, match=rf"a.npz is no npz file .*{word}"):
            read_npz(path, ["X"])
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 3 * len(content)
    finally:
        tracemalloc.stop()


def test_archives_that_blow_up_are_refused(tmp_path, monkeypatch):
    from sdgpu.backend import untrusted_files as intake

    path = tmp_path / "a.npz"
    np.savez_compressed(path, X=np.zeros(10**5))
    assert read_npz(path, ["X"])[0]["X"].shape == (10**5,)
    monkeypatch.setattr(intake, "_PLENTY", 10**5)
    with pytest.raises(ValueError, match=r"it unpacks to 800128 bytes, \d+ times its size"):
        read_npz(path, ["X"])
    # a directory that claims more than deflate can give
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"X.npy should have 2147483648 bytes, more than a file of"
    ):
        read_npz(path, ["X"])
    archive(path, {"X.npy": npy(claim("(2,)"), bytes(16))}, zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="packed by method 14"):
        read_npz(path, ["X"])


def test_entries_that_share_their_bytes_are_refused():
    info = zipfile.ZipInfo("X.npy")
    info.compress_size = info.file_size = 600
    with pytest.raises(ValueError, match="more than a file of 1000"):
        check_zip([info, info], 1000)


def test_only_plain_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_file, lambda path: read_npz(path, ["X"])):
        with pytest.raises(OSError, match="pipe is no plain file"):
            read(tmp_path / "pipe")
        with pytest.raises(IsADirectoryError, match="a file is wanted"):
            read(tmp_path)
        with pytest.raises(FileNotFoundError, match="nothing"):
            read(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"123")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_file(tmp_path / "link") == b"123"


def test_unreadable_is_not_damaged(tmp_path, monkeypatch):
    from sdgpu.backend import untrusted_files as intake

    np.savez(tmp_path / "a.npz", X=np.ones(2))

    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(intake.os, "open", refused)  # root may read everything
    with pytest.raises(PermissionError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz", ["X"])


def test_what_is_no_npz_is_said_by_name(tmp_path):
    path, buffer = tmp_path / "a.npz", io.BytesIO()
    np.save(buffer, np.ones(3))
    for content in (b"", b"text", buffer.getvalue(), b"PK\x05\x06" + bytes(17)):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"a.npz is no npz file of plain arrays, or a damaged one"
        ):
            read_npz(path, ["X"])
