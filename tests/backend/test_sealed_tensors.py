"""Arrays with a checksum of all they say: whole or not there, and damage is named or does no harm."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sdgpu.backend import sealed_tensors
from sdgpu.backend.sealed_tensors import read_tensors, write_tensors
from tests.damage import cut, damages, flipped, lengthened, zeroed

METADATA = {
    "version": 3,
    "weight": 0.1,
    "words": 'two "words", \u00e9\u03b1\n',
    "nothing": None,
    "nested": {"kind": "Sum", "kernels": [{"kind": "Gaussian", "gamma": 1e-300}, []]},
    "flag": True,
}


def arrays():
    rng = np.random.default_rng(2)
    return {
        "gram": rng.standard_normal((5, 5)),
        "rows": rng.standard_normal((7, 3)).astype(np.float32),
        "counts": np.arange(4),
        "flags": np.array([True, False]),
        "bytes": np.arange(3, dtype=np.uint8),
        "empty": np.zeros((0, 3)),
        "odd": np.array([np.nan, np.inf, -0.0, 5e-324]),
    }


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype
        and found[name].shape == wanted[name].shape
        and found[name].tobytes() == wanted[name].tobytes()
        for name in wanted
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sums.safetensors"


@pytest.fixture
def written(path):
    write_tensors(path, arrays(), METADATA)
    return path


def refused(path, words=None):
    with pytest.raises(ValueError, match=words) as caught:
        read_tensors(path, "moments")
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith(f"moments {path} is damaged (")
    assert str(caught.value).endswith("): remove it to start again")
    return True


def test_there_and_back(written):
    found, metadata = read_tensors(written, "moments")
    assert same(found, arrays())
    assert metadata == METADATA
    assert {k: type(x) for k, x in metadata.items()} == {k: type(x) for k, x in METADATA.items()}
    assert [entry.name for entry in written.parent.iterdir()] == [written.name]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-2],
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(12.0).astype(">f8"),
        np.array(3.5),
        np.broadcast_to(np.float32(2.0), (2, 3)),
    ],
    ids=["transposed", "strided", "Fortran", "big-endian", "a number", "broadcast"],
)
def test_arrays_however_they_lie_in_memory(path, array):
    write_tensors(path, {"x": array}, {})
    (found,) = read_tensors(path, "moments")[0].values()
    assert np.array_equal(found, array)
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=")


def test_nothing_at_all(path):
    write_tensors(path, {}, {})
    assert read_tensors(path, "moments") == ({}, {})


def test_what_is_written_is_not_changed(path):
    X = np.arange(6.0)
    X.flags.writeable = False
    write_tensors(path, {"X": X}, METADATA)
    assert X.tolist() == [0, 1, 2, 3, 4, 5]
    found = read_tensors(path, "moments")[0]["X"]
    found[:] = 7  # memory of its own
    assert read_tensors(path, "moments")[0]["X"].tolist() == X.tolist()


def test_metadata_is_text_that_others_can_read(written):
    with safe_open(written, framework="numpy") as file:
        texts = file.metadata()
    assert {name: json.loads(texts[name]) for name in METADATA} == METADATA
    assert set(texts) == {*METADATA, "checksum"}
    assert texts["checksum"].startswith("xxh3:")
    assert "-" not in texts["checksum"]
    assert same(load_file(written), arrays())


@pytest.mark.parametrize("kind", [flipped, cut, zeroed, lengthened])
def test_damage_is_named_or_harmless(written, kind):
    content, named, harmless = written.read_bytes(), 0, 0
    every = list(damages(content, 11, kind, times=200))
    for found in every:
        written.write_bytes(found)
        try:
            read, metadata = read_tensors(written, "moments")
        except ValueError as error:
            named += str(error).startswith(f"moments {written} is damaged (")
        else:
            harmless += same(read, arrays()) and metadata == METADATA
    assert named + harmless == len(every) > 100
    assert named > 0.9 * len(every)  # padding alone is harmless


@pytest.mark.parametrize(
    "junk",
    [b"", b"x", b"x" * 100, bytes(1000), b"\xff" * 64, pickle.dumps([1, 2]), b"PK\x03\x04" * 20],
    ids=["empty", "a byte", "text", "zeros", "ones", "pickle", "zip"],
)
def test_junk_is_named(path, junk):
    path.write_bytes(junk)
    assert refused(path)


def sealed(path, tensors, texts):
    """As an adversary would: any texts, with the checksum that belongs to them."""
    checksum = sealed_tensors._checksum(tensors, texts)
    save_file(tensors, path, metadata={**texts, "checksum": checksum})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("__import__('os')", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[" * 100_000 + "]" * 100_000, "recursion"),
    ],
    ids=["half", "empty", "code", "deep and open", "deep"],
)
def test_texts_that_are_no_json(path, text, words):
    sealed(path, arrays(), {"version": text})
    assert refused(path, words)


def test_other_numbers_texts_and_names(written):
    tensors = load_file(written)
    with safe_open(written, framework="numpy") as file:
        texts = file.metadata()
    renamed = dict(zip([*list(tensors)[1:], "gram"], tensors.values(), strict=True))
    for changed_tensors, changed_texts in (
        (tensors | {"odd": tensors["odd"] * 2}, texts),
        (tensors | {"odd": tensors["odd"].reshape(2, 2)}, texts),
        (tensors | {"counts": tensors["counts"].view(np.uint64)}, texts),
        (tensors | {"more": np.zeros(1)}, texts),
        ({name: x for name, x in tensors.items() if name != "flags"}, texts),
        (renamed, texts),
        (tensors, texts | {"weight": "0.2"}),
        (tensors, texts | {"more": "1"}),
        (tensors, {name: x for name, x in texts.items() if name != "version"}),
    ):
        save_file(changed_tensors, written, metadata=changed_texts)
        assert refused(written, "its numbers are not those that were written")
    save_file(tensors, written, metadata=texts)
    assert same(read_tensors(written, "moments")[0], arrays())


@pytest.mark.parametrize("texts", [None, {"version": "3"}])
def test_files_without_a_checksum(path, texts):
    save_file(arrays(), path, metadata=texts)
    assert refused(path, "it has no checksum: an older version wrote it, or another program")


def test_files_that_are_not_there(path):
    with pytest.raises(FileNotFoundError, match=r"sums\.safetensors"):
        read_tensors(path, "moments")
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"sums\.safetensors"):
        read_tensors(path, "moments")
    with pytest.raises(IsADirectoryError, match=r"sums\.safetensors"):
        write_tensors(path, {}, {})


def test_pipes_are_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"plain file.*sums\.safetensors"):
        read_tensors(path, "moments")


def test_unreadable_is_not_damaged(written, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(written))

    monkeypatch.setattr(type(written), "open", refuse)  # root may read everything
    with pytest.raises(PermissionError, match=r"denied: .*sums\.safetensors"):
        read_tensors(written, "moments")


@pytest.mark.parametrize(
    "failure",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: IoError(No space left on device)"),
    ],
    ids=["OSError", "SafetensorError"],
)
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_what_was_there(path, before, failure, monkeypatch):
    if before:
        write_tensors(path, {"x": np.arange(3.0)}, {"version": 1})

    def full(tensors, target, **_):
        Path(target).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(sealed_tensors, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_tensors(path, arrays(), METADATA)
    assert str(path) in str(caught.value)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name] * before
    if before:
        found, metadata = read_tensors(path, "moments")
        assert (found["x"].tolist(), metadata) == ([0, 1, 2], {"version": 1})


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_what_was_there(written, failure, monkeypatch):
    content = written.read_bytes()

    def interrupted(*_):
        raise failure

    monkeypatch.setattr(sealed_tensors, "_fill_in", interrupted)
    with pytest.raises(failure):
        write_tensors(written, {"x": np.zeros(3)}, {})
    assert written.read_bytes() == content
    assert [entry.name for entry in written.parent.iterdir()] == [written.name]


@pytest.mark.parametrize("value", [np.float64, {1, 2}, b"bytes", np.arange(2)])
def test_values_that_are_not_plain_are_refused_before_anything_is_written(path, value):
    with pytest.raises(TypeError, match="JSON serializable"):
        write_tensors(path, arrays(), {"value": value})
    assert list(path.parent.iterdir()) == []


def test_objects_are_refused(path):
    with pytest.raises((TypeError, OSError), match="object"):
        write_tensors(path, {"x": np.array([print])}, {})
    assert list(path.parent.iterdir()) == []
