"""Classes that a part lacks, parts without images, parts that do not belong together, and the memory it takes."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdgpu.backend.distributed import World
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.data import Data, images_from_arrays, split_images
from sdgpu.nn.evaluate import predict
from sdgpu.nn.image_splits import sample, set_test_apart
from tests.nn.problems import CLASSES, data, images, mlp, state

SIZES = (90, 30, 9, 3, 1)  # a long tail


def tail(sizes=SIZES, classes=None):
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    pixels = rng.integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    return images_from_arrays(pixels, labels, classes=classes)


@pytest.mark.parametrize("val", [0, 1, 5, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("own_test", [False, True])
def test_every_class_stays_in_training(val, own_test):
    whole = tail()
    parts = split_images(whole, tail((5, 2), 5) if own_test else None, val=val, seed=1)
    assert parts.train.labels.unique().tolist() == list(range(5))
    rest = len(whole) if own_test else len(whole) - len(parts.test)
    assert len(parts.val) == (val if isinstance(val, int) else round(val * rest))
    assert len(parts.train) + len(parts.val) == rest
    assert parts.val.classes == parts.test.classes == 5


@pytest.mark.parametrize("rows", [5, 6, 20, 133])
def test_a_sample_has_every_class(rows):
    taken = sample(tail(), rows, 0)
    assert (len(taken), taken.labels.unique().tolist()) == (rows, list(range(5)))


def test_quotas_are_what_they_were_where_no_class_is_rare():
    whole = tail((40, 40, 40, 40))
    rest, test = set_test_apart(whole)
    assert torch.bincount(test.labels).tolist() == [8] * 4
    assert torch.bincount(split_images(rest, test, val=0.25).val.labels).tolist() == [8] * 4


def test_a_class_that_no_image_shows_is_trained():
    """Of the classes given, the last has no image at all."""
    parts = split_images(tail(classes=6), val=0)
    assert parts.train.one_hot().shape == (len(parts.train), 6)


def test_training_without_validation_images():
    parts = data()
    none = replace(parts.val, pixels=parts.val.pixels[:0], labels=parts.val.labels[:0])
    config = Config(epochs=1, batch=8)
    one, two = (
        distill_chain(mlp(), replace(parts, val=val), config, steps=2, alphas=0.3)
        for val in (none, None)
    )
    assert one.records[1].val is two.records[1].val is None
    assert torch.equal(state(one.models[1]), state(two.models[1]))
    with pytest.raises(ValueError, match="needs validation images"):
        distill_chain(mlp(), replace(parts, val=none), config, steps=2, alphas="algorithm1")


@pytest.mark.parametrize("name", ["val", "test"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.0,)}, r"has mean \(0.0,\), but train \("),
        ({"std": (2.0,)}, r"has std \(2.0,\), but train \("),
        ({"classes": CLASSES + 1}, "has classes 4, but train 3"),
        (
            {"labels": torch.zeros(4, dtype=torch.int64)},
            r"has labels \(4,\) for pixels \(1[25], 1, ",
        ),
        (
            {"labels": torch.full((12,), 7), "pixels": images(12, 0).pixels},
            "has labels from 7 to 7",
        ),
        (
            {"pixels": torch.zeros(12, 1, 9, 4), "labels": torch.zeros(12).long()},
            r"has images of shape \(1, 9, 4\)",
        ),
    ],
)
def test_parts_that_do_not_belong_together(name, change, message):
    parts = data()
    with pytest.raises(ValueError, match=f"{name} {message}"):
        replace(parts, **{name: replace(getattr(parts, name), **change)})


def test_parts_that_are_no_parts():
    parts = data()
    with pytest.raises(TypeError, match="val must be Images, Samples or LoadedSamples, not tuple"):
        replace(parts, val=(parts.val.pixels, parts.val.labels))
    with pytest.raises(
        TypeError, match="train must be Images, Samples or LoadedSamples, not NoneType"
    ):
        Data(None, None, None)
    with pytest.raises(ValueError, match="train has no images"):
        Data(parts.train.take(torch.arange(0)), None, None)


class Alone(World):
    """A rank that gathers from nobody."""

    def gather_rows(self, block, counts):
        assert len(block) == counts[self.rank]
        return block


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_fewer_rows_than_processes(rows):
    part, model = data().val.take(torch.arange(rows)), mlp()
    for batch in (1, 2, 256):
        config = Config(eval_batch=batch)
        whole = predict(model, part, config)
        shares = [predict(model, part, config, world=Alone(rank, 3)) for rank in range(3)]
        assert torch.equal(torch.cat(shares), whole)  # the same batches: the same bits


MEMORY = """
import sys
import numpy as np
from sdgpu.nn.images import images_from_arrays

def status(field):
    return 1024 * int(open("/proc/self/status").read().split(field)[1].split()[0])

shape, last, locked = eval(sys.argv[1])
pixels = np.ones(shape, np.uint8)
labels = np.arange(len(pixels)) % 2
images_from_arrays(pixels[:4], labels[:4], channels_last=last)
pixels.flags.writeable = not locked
before = status("VmRSS:")
images_from_arrays(pixels, labels, channels_last=last)
print((status("VmHWM:") - before) / pixels.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("shape", "last", "locked", "copies"),
    [((20, 3, 1000, 1000), False, False, 0), ((20, 1000, 1000, 3), True, True, 1)],
)
def test_memory_is_that_of_the_copies(shape, last, locked, copies):
    """Large images: their moments once took them as floating point, four times the data."""
    told = subprocess.run(
        [sys.executable, "-c", MEMORY, repr((shape, last, locked))],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert float(told.stdout) < copies + 0.8
