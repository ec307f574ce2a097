"""Views against a loop over images, and generators that depend on position alone."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sdgpu.nn.augment import Augment, SeedsAhead, normalise, order, stream

MEAN, STD = (0.49, 0.48, 0.44), (0.25, 0.24, 0.26)


@pytest.fixture
def pixels():
    return torch.randint(
        256, (9, 3, 10, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def slow_view(image, down, right, mirrored, p):
    """torchvision's order: pad with zeros, crop, flip, ToTensor, Normalize; in float64."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * p, width + 2 * p))
    padded[:, p : p + height, p : p + width] = image
    crop = padded[:, down : down + height, right : right + width]
    if mirrored:
        crop = crop[:, :, ::-1]
    mean, std = np.array(MEAN)[:, None, None], np.array(STD)[:, None, None]
    return (crop / 255 - mean) / std


# float32: scale, shift and the sum round once each, values reach 2.3; half types round once more
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.half, 2**-9)],
)
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("crop_pad", [0, 1, 4, 15])
def test_views_equal_a_loop(pixels, crop_pad, flip, dtype, tolerance):
    augment = Augment(crop_pad, flip)
    offsets, mirrored = augment.draw(len(pixels), stream(5, "augment", 2, 7))
    wanted = np.stack(
        [
            slow_view(image, int(down), int(right), bool(turned), crop_pad)
            for image, down, right, turned in zip(pixels.numpy(), *offsets, mirrored, strict=True)
        ]
    )
    views = augment(pixels, MEAN, STD, stream(5, "augment", 2, 7), dtype)
    assert views.dtype == dtype
    assert_close(views.double(), torch.from_numpy(wanted), rtol=0, atol=2.4 * tolerance)


def test_seeds_ahead_are_those_of_the_streams():
    seeds = SeedsAhead(3, "augment")
    for position in (
        (0, 0, 1),
        (0, 31, 1),
        (0, 32, 1),
        (0, 31, 1),
        (1, 31, 1),
        (1, 31, 0),
        (2, 70),
    ):
        assert seeds(*position) == stream(3, "augment", *position).initial_seed()
    assert SeedsAhead(4, "augment")(2, 70) != seeds(2, 70) != SeedsAhead(3, "order")(2, 70)


def test_pixels_survive_and_a_view_shows_only_bytes_of_its_image(pixels):
    before = pixels.clone()
    generator = stream(0, "augment", 0, 0)
    view = Augment()(pixels, (0.0,) * 3, (1.0,) * 3, generator, torch.float64)
    assert torch.equal(pixels, before)
    for shown, image in zip((view * 255).round().to(torch.uint8), pixels, strict=True):
        assert set(shown.unique().tolist()) <= set(image.unique().tolist()) | {0}


def test_layout(pixels):
    plain, last = (
        Augment()(pixels, MEAN, STD, stream(1, "augment", 0, 0), channels_last=flag)
        for flag in (False, True)
    )
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_strided_pixels(pixels):
    strided = pixels.permute(0, 1, 3, 2)[::2]
    one, two = (
        Augment()(array, MEAN, STD, stream(1, "augment", 0, 0))
        for array in (strided, strided.contiguous())
    )
    assert torch.equal(one, two)


def test_no_augmentation_is_the_evaluation(pixels):
    still = Augment(crop_pad=0, flip=False)(pixels, MEAN, STD, stream(0, "augment", 0, 0))
    assert torch.equal(still, normalise(pixels, MEAN, STD))


def test_draws_cover_all_crops_evenly():
    offsets, mirrored = Augment(crop_pad=2).draw(20_000, stream(3, "augment", 0, 0))
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(offsets.numpy()), 1)
    # 25 places of 800 draws expected: five standard deviations of a binomial
    assert abs(counts - 800).max() < 5 * np.sqrt(800 * 0.96)
    assert abs(float(mirrored.float().mean()) - 0.5) < 5 * 0.5 / np.sqrt(20_000)
    crops = Augment(crop_pad=2, flip=False).draw(20_000, stream(3, "augment", 0, 0))
    assert torch.equal(crops[0], offsets)
    assert not crops[1].any()


def test_streams_are_a_function_of_their_position():
    positions = [
        (0, "init"),
        (0, "order"),
        (0, "augment"),
        (0, "augment", 0),
        (0, "augment", 0, 0),
        (0, "augment", 0, 1),
        (0, "augment", 1, 0),
        (1, "augment", 0, 0),
        (2**32, "augment", 0, 0),
        (2**32 + 1, "augment", 0, 0),
        (1, "init", 0),
        (1, "init"),
        (1, "order", 2),
        (1, "order", 3),
    ]
    first = [torch.rand(4, generator=stream(*position)) for position in positions]
    again = [torch.rand(4, generator=stream(*position)) for position in reversed(positions)]
    for i, draw in enumerate(first):
        assert torch.equal(draw, again[-1 - i])
        assert not any(torch.equal(draw, other) for other in first[:i]), positions[i]


def test_streams_touch_no_global_state():
    torch.manual_seed(4)
    state = torch.get_rng_state()
    stream(0, "init")
    order(10, 0, 0)
    Augment()(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), MEAN, STD, stream(0, "augment", 0, 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_orders():
    orders = [order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(torch.equal(permutation.sort().values, torch.arange(50)) for permutation in orders)
    assert len({tuple(permutation.tolist()) for permutation in orders}) == 6
    assert torch.equal(order(50, 1, 2), orders[-1])
    assert order(1, 0, 0).tolist() == [0]


@pytest.mark.gpu
def test_a_cpu_generator_gives_the_same_views_on_cuda(pixels):
    here, there = (
        Augment()(array, MEAN, STD, stream(1, "augment", 0, 0)) for array in (pixels, pixels.cuda())
    )
    assert_close(there.cpu(), here, rtol=0, atol=1e-6)
    own = Augment()(pixels.cuda(), MEAN, STD, stream(1, "augment", 0, 0, device="cuda"))
    assert own.device.type == "cuda"
    assert torch.equal(order(50, 1, 2, device="cuda").cpu(), order(50, 1, 2))


def test_bad_input(pixels):
    generator = stream(0, "augment", 0, 0)
    with pytest.raises(ValueError, match="crop_pad=-1 must be at least 0"):
        Augment(-1)
    with pytest.raises(TypeError, match=r"crop_pad=1.5 must be a whole number"):
        Augment(1.5)
    with pytest.raises(TypeError, match="flip=1 must be True or False"):
        Augment(flip=1)
    with pytest.raises(TypeError, match="pixels must be uint8"):
        Augment()(pixels.float(), MEAN, STD, generator)
    with pytest.raises(ValueError, match=r"pixels must be \(b, C, H, W\), got shape \(3, 10, 12\)"):
        normalise(pixels[0], MEAN, STD)
    with pytest.raises(ValueError, match="one entry for each of 3 channels"):
        normalise(pixels, MEAN[:1], STD[:1])
    with pytest.raises(ValueError, match="std > 0"):
        normalise(pixels, MEAN, (0.2, 0.0, 0.2))
    with pytest.raises(TypeError, match=r"dtype=torch.int32 cannot hold"):
        normalise(pixels, MEAN, STD, torch.int32)
    with pytest.raises(ValueError, match=r"name='ordr' is not known: did you mean 'order'"):
        stream(0, "ordr")
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        stream(-1, "init")
    with pytest.raises(ValueError, match=r"numbers\[1\]=-2 must be at least 0"):
        stream(0, "augment", 0, -2)
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        order(0, 0, 0)
    with pytest.raises(TypeError, match=r"epoch=0.5 must be a whole number"):
        order(3, 0, 0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Augment().flip = False
