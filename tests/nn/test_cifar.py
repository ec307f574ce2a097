"""The published files of CIFAR in small: byte for byte the pickles that Python 2 wrote, and hostile ones."""

import hashlib
import os
import pickle
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from sdgpu.nn import cifar
from sdgpu.nn.data import load_images


def text(content):
    return b"T" + struct.pack("<I", len(content)) + content


def number(value):
    return b"J" + struct.pack("<i", value)


def array(pixels, fortran=False):
    """Opcodes of a uint8 array as cPickle of Python 2 wrote them with protocol 2."""
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03U\x01|NNN"
    dtype += number(-1) * 2 + b"K\x00tb"
    raw = pixels.tobytes(order="F" if fortran else "C")
    shape = number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return start + b"(K\x01" + shape + dtype + (b"\x88" if fortran else b"\x89") + text(raw) + b"tb"


def python2(pixels, labels, key=b"labels", fortran=False):
    """Return the bytes of a batch file: a dictionary with text keys, as the published ones."""
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    names = b"](" + text(b"leptodactylus_pentadactylus_s_000004.png") * len(labels) + b"e"
    items = text(b"batch_label") + text(b"training batch 1 of 5") + text(key) + listed
    items += text(b"data") + array(pixels, fortran) + text(b"filenames") + names
    return b"\x80\x02}(" + items + b"u."


def parts(name):
    """Pixels (n, 3072) and labels of each batch file, in small."""
    known = cifar.PUBLISHED[name]
    rng = np.random.default_rng(0)
    for i, file in enumerate((*known.train, *known.test)):
        n = 2 * known.classes if i % 2 else 3 * known.classes
        yield (
            file,
            rng.integers(0, 256, (n, 3072), dtype=np.uint8),
            rng.permutation(n) % known.classes,
        )


def publish(monkeypatch, name, files, archive=b""):
    """Let `files` be the published ones."""

    def md5(content):
        return hashlib.md5(content).hexdigest()

    known = cifar.PUBLISHED[name]
    changed = replace(
        known,
        archive_md5=md5(archive),
        train={file: md5(files[file]) for file in known.train},
        test={file: md5(files[file]) for file in known.test},
    )
    monkeypatch.setitem(cifar.PUBLISHED, name, changed)
    return changed


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request, monkeypatch, tmp_path):
    """A folder with the batch files of a small data set, and what they hold."""
    name = request.param
    known = cifar.PUBLISHED[name]
    contents = list(parts(name))
    files = {file: python2(X, y.tolist(), known.labels) for file, X, y in contents}
    publish(monkeypatch, name, files)
    folder = tmp_path / known.folder
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return name, folder, contents, files


def test_published_checksums():
    assert set(cifar.PUBLISHED["cifar10"].train) == {f"data_batch_{i}" for i in range(1, 6)}
    assert cifar.PUBLISHED["cifar10"].test["test_batch"] == "40351d587109b95175f43aff81a1287e"
    for known in cifar.PUBLISHED.values():
        for md5 in (known.archive_md5, *known.train.values(), *known.test.values()):
            assert len(md5) == 32
            int(md5, 16)


def test_batches_are_read_as_pickle_reads_them(small):
    """The reference is Python's own unpickler, on files that this test has written itself."""
    _, _, contents, files = small
    for file, X, y in contents:
        batch = pickle.loads(files[file], encoding="bytes")
        assert np.array_equal(batch[b"data"], X)
        assert batch[b"labels" if b"labels" in batch else b"fine_labels"] == y.tolist()


@pytest.mark.parametrize("inside", [True, False])
def test_folder(small, inside):
    name, folder, contents, _ = small
    train, test = cifar.read(name, folder if inside else folder.parent)
    pixels = np.concatenate([X for _, X, _ in contents[:-1]])
    assert np.array_equal(train[0], pixels.reshape(-1, 3, 32, 32))
    assert np.array_equal(train[1], np.concatenate([y for _, _, y in contents[:-1]]))
    assert np.array_equal(test[0].reshape(-1, 3072), contents[-1][1])
    assert np.array_equal(test[1], contents[-1][2])
    data = load_images(name, folder, val=cifar.PUBLISHED[name].classes)
    assert data.train.classes == data.val.classes == cifar.PUBLISHED[name].classes
    assert len(data.train) + len(data.val) == len(pixels)
    assert np.array_equal(data.test.pixels.numpy(), test[0])


@pytest.mark.parametrize("direct", [True, False])
def test_archive(small, monkeypatch, tmp_path, direct):
    name, folder, contents, files = small
    known = cifar.PUBLISHED[name]
    path = tmp_path / known.archive
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, known.folder)
    for file in folder.iterdir():
        file.unlink()
    publish(monkeypatch, name, files, path.read_bytes())
    train, _ = cifar.read(name, path if direct else tmp_path)
    assert np.array_equal(train[1], np.concatenate([y for _, _, y in contents[:-1]]))
    assert not list(folder.iterdir())  # nothing was unpacked
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"tar.gz has md5 .* download it again from https"):
        cifar.read(name, path)


def test_archive_without_a_file(small, monkeypatch, tmp_path):
    name, folder, _, files = small
    known = cifar.PUBLISHED[name]
    path = tmp_path / known.archive
    last = next(iter(known.test))
    with tarfile.open(path, "w:gz") as archive:
        for file in known.train:
            archive.add(folder / file, f"{known.folder}/{file}")
    publish(monkeypatch, name, files, path.read_bytes())
    with pytest.raises(ValueError, match=f"lacks {last}: download it again"):
        cifar.read(name, path)


def test_column_major_data(monkeypatch, tmp_path):
    contents = list(parts("cifar10"))
    files = {file: python2(X, y.tolist(), fortran=True) for file, X, y in contents}
    publish(monkeypatch, "cifar10", files)
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    train, _ = cifar.read("cifar10", tmp_path)
    assert np.array_equal(train[0][:30].reshape(-1, 3072), contents[0][1])


def test_missing_files_say_where_to_put_them(small, tmp_path, monkeypatch):
    name, folder, _, _ = small
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"download .*tar.gz from https://.* folder="):
        load_images(name, empty)
    monkeypatch.chdir(empty)
    with pytest.raises(FileNotFoundError, match=r"empty/data: download"):
        load_images(name)
    os.symlink(folder.parent, empty / "data")
    load_images(name, val=cifar.PUBLISHED[name].classes)
    last = next(iter(cifar.PUBLISHED[name].test))
    (folder / last).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {last}: unpack the archive again"):
        load_images(name, folder)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def loads(content):
    return cifar._images(cifar.PUBLISHED["cifar10"], "data_batch_1", content)


def test_a_changed_file_is_not_even_parsed(small, tmp_path):
    name, folder, _, _ = small
    first = next(iter(cifar.PUBLISHED[name].train))
    (folder / first).write_bytes(pickle.dumps(Hostile(open, str(tmp_path / "ran"), "w")))
    with pytest.raises(ValueError, match=f"{first} of .* has md5 .*the published file"):
        load_images(name, folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("make", "asked"),
    [
        (lambda mark: Hostile(open, mark, "w"), "io.open|_io.open"),
        (lambda mark: Hostile(os.mkdir, mark), "posix.mkdir|nt.mkdir"),
        (lambda mark: Hostile(eval, f"open({mark!r}, 'w')"), "builtin"),
        (lambda mark: Hostile(np.save, mark, 1), "numpy"),
        (lambda mark: {"data": getattr, "labels": [mark]}, "builtin"),
        (lambda mark: np.array([mark, open], dtype=object), "open|codecs"),
    ],
)
def test_hostile_pickles_are_refused(tmp_path, protocol, make, asked):
    mark = str(tmp_path / "ran")
    with pytest.raises(
        ValueError, match=rf"data_batch_1 cannot be read: it asks for .*({asked}).*refused"
    ):
        loads(pickle.dumps(make(mark), protocol=protocol))
    assert not os.path.exists(mark)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        b"\x80\x02}(",
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x02Ppersistent\n.",
        b"\x80\x02cnumpy\nndarray\n(tR.",  # calling a stand-in that is none
        b"\x80\x02cnumpy\ndtype\n}U\x0c__setstate__NsbK\x01.",  # changing a stand-in
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"\x80\x04cbuiltins\ngetattr\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
    ],
)
def test_malformed_pickles_are_refused(content):
    with pytest.raises(ValueError, match="data_batch_1 cannot be read"):
        loads(content)


def test_stand_ins_keep_what_they_are():
    before = dict(vars(cifar._State))
    hostile = b"\x80\x02cnumpy\ndtype\n(N}U\x0c__setstate__U\x01xs\x86tb."
    with pytest.raises(ValueError, match="data_batch_1"):
        loads(hostile)
    assert dict(vars(cifar._State)) == before


GOOD = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1], protocol=2), "holds no dictionary with data and labels"),
        (python2(GOOD, [0, 1], key=b"fine_labels"), "holds no dictionary with data and labels"),
        (python2(GOOD, [0, 1, 2]), "the data are no 3 rows of 3072 bytes"),
        (python2(GOOD[:, :1000], [0, 1]), "the data are no 2 rows of 3072 bytes"),
        (python2(GOOD, [0, 1]).replace(b"\x89", b"\x89N0"), None),
        (python2(GOOD.astype(np.uint16), [0, 1]), "the data are no 2 rows of 3072 bytes"),
        (b"\x80\x02}(" + text(b"data") + b"N" + text(b"labels") + b"]u.", "the data are no 0 rows"),
        (
            b"\x80\x02}(" + text(b"data") + b"N" + text(b"labels") + b"](\x88eu.",
            "the labels are no list of whole numbers",
        ),
    ],
)
def test_contents_that_are_no_images(content, message):
    if message is None:
        assert loads(content)[0].shape == (2, 3, 32, 32)  # a harmless detour of opcodes
        return
    with pytest.raises(ValueError, match=message):
        loads(content)


def test_a_copy_that_numpy_2_wrote():
    """NumPy 2 pickles its arrays under another module; the bytes are those of protocol 4."""
    X, labels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072), [3, 1]
    pixels, read = loads(pickle.dumps({b"data": X, b"labels": labels}, protocol=4))
    assert np.array_equal(pixels.reshape(2, 3072), X)
    assert read.tolist() == labels
