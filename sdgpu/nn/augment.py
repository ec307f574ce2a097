"""Views of images: random crops and flips in whole batches on the device, and what they are drawn from.

Every random number of a training run is a function of (seed, purpose, position): :func:`stream` makes
the generator of a purpose, :func:`order` the permutation of an epoch. A run that is cut off in the
middle of an epoch needs its position and no generator state to go on exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sdgpu.backend.checks import choice, integer
from sdgpu.nn.config import Config

__all__ = [
    "Augment",
    "SeedsAhead",
    "constants",
    "normalise",
    "order",
    "scaled",
    "stream",
    "stream_seed",
    "training_order",
]

STREAMS = ("init", "order", "augment")


def stream(
    seed: int, name: str, *numbers: int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator of its own for each purpose and position.

    Parameters
    ----------
    seed : int
        Of the run, at least 0.
    name : {"init", "order", "augment"}
        The purpose.
    *numbers : int
        The position: (epoch,) for an order, (epoch, batch) for augmentation.
    device : str or torch.device, default "cpu"
        Where the generator draws. The sequences of the CPU and of CUDA differ.

    Returns
    -------
    torch.Generator
        Seeded by ``numpy.random.SeedSequence(seed, spawn_key=(purpose, *numbers))``. As a spawn key,
        unlike as further entropy, (1, 0) and (1,) are different positions.

    Raises
    ------
    TypeError, ValueError
        For an unknown name, or numbers that are not whole and >= 0.

    Examples
    --------
    >>> import torch
    >>> draws = [torch.rand(1, generator=stream(0, "augment", 3, batch)) for batch in (0, 1, 0)]
    >>> bool(draws[0] == draws[1]), bool(draws[0] == draws[2])
    (False, True)
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(seed, name, *numbers))
    return generator


def stream_seed(seed: int, name: str, *numbers: int) -> int:
    """What the generator of :func:`stream` is seeded by; parameters and errors are the same."""
    purpose = STREAMS.index(choice("name", name, STREAMS))
    position = [integer(f"numbers[{i}]", number, 0) for i, number in enumerate(numbers)]
    sequence = np.random.SeedSequence(integer("seed", seed, 0), spawn_key=(purpose, *position))
    return int(sequence.generate_state(1, np.uint64)[0])


class SeedsAhead:
    """Seeds of the positions (epoch, batch, ..) of a stream, made for some batches at once.

    One costs 10 microseconds in a row with others, and 90 between two steps of a network, which leave
    nothing of it in the caches.

    Parameters
    ----------
    seed, name
        As for :func:`stream`.
    """

    TOGETHER = 32

    def __init__(self, seed: int, name: str) -> None:
        self._seed, self._name = seed, name
        self._position: tuple[int, ...] = ()
        self._seeds: list[int] = []

    def __call__(self, epoch: int, batch: int, *purpose: int) -> int:
        """The seed of :func:`stream` at (epoch, batch, *purpose)."""
        first = batch - batch % self.TOGETHER
        position = (epoch, first, *purpose)
        if position != self._position:
            batches = range(first, first + self.TOGETHER)
            self._seeds = [stream_seed(self._seed, self._name, epoch, i, *purpose) for i in batches]
            self._position = position
        return self._seeds[batch - first]


def order(n: int, seed: int, epoch: int, device: str | torch.device = "cpu") -> Tensor:
    """Return the permutation (n,) in which an epoch visits the training images, int64.

    It follows from (seed, epoch) alone, and is drawn on the CPU: the same on every device.

    Raises
    ------
    TypeError, ValueError
        If n < 1, or `seed` or `epoch` is below 0 or no whole number.

    Examples
    --------
    >>> order(5, seed=0, epoch=1).sort().values
    tensor([0, 1, 2, 3, 4])
    """
    integer("epoch", epoch, 0)
    generator = stream(seed, "order", epoch)
    return torch.randperm(integer("n", n, 1), generator=generator, device="cpu").to(device)


def training_order(n: int, config: Config, epoch: int) -> Tensor:
    """The permutation (n,) of an epoch of a training: of its own, or that of the first one for all."""
    return order(n, config.order_seed, 0 if config.order == "paper-script" else epoch)


def normalise(
    pixels: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Return (pixels / 255 - mean) / std for each channel.

    Parameters
    ----------
    pixels : Tensor (b, C, H, W), uint8
    mean, std : tuple of C floats
        Of pixels / 255, for example those of :class:`~sdgpu.nn.data.Images`.
    dtype : torch.dtype, default float32
        Of the result. Half precision is rounded once, from float32.
    channels_last : bool, default False
        Lay the result out in torch's channels-last memory format.

    Returns
    -------
    Tensor (b, C, H, W)
        Within some eps of `dtype` of dividing, subtracting and dividing one after another: it is
        pixels * 1 / (255 std) - mean / std, two passes over the result.

    Raises
    ------
    TypeError
        If the pixels are not uint8, or `dtype` is no floating point type.
    ValueError
        If they have not four axes, `mean` or `std` has not C entries, or a `std` is not > 0.
    """
    return scaled(pixels, constants(pixels, mean, std, dtype), dtype, channels_last=channels_last)


def constants(
    pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    """Factors and summands (2, C, 1, 1) of :func:`normalise`, on the device of the pixels.

    A copy from the host, which waits for the device: made once, not for every batch.

    Raises
    ------
    TypeError, ValueError
        As :func:`normalise`.
    """
    _check_pixels(pixels)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype={dtype} cannot hold normalised pixels: give torch.float32")
    channels = pixels.shape[1]
    if len(mean) != channels or len(std) != channels or not min(std) > 0:
        raise ValueError(
            f"mean={mean} and std={std} must have one entry for each of {channels} channels, std > 0"
        )
    work_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    scale = [1 / (255 * deviation) for deviation in std]
    shift = [-centre / deviation for centre, deviation in zip(mean, std, strict=True)]
    return torch.tensor([scale, shift], dtype=work_dtype, device=pixels.device)[:, :, None, None]


def scaled(
    pixels: Tensor, constants: Tensor, dtype: torch.dtype, *, channels_last: bool = False
) -> Tensor:
    """:func:`normalise` with its :func:`constants` at hand."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # moved as bytes; constants for every place, as a pass over numbers that lie alike is faster
    values = pixels.contiguous(memory_format=layout).to(constants.dtype)
    scale, shift = constants.expand(2, *pixels.shape[1:]).contiguous(memory_format=layout)
    return torch.addcmul(shift, values, scale).to(dtype)


@dataclass(frozen=True)
class Augment:
    """Random crop of the zero-padded image, then a horizontal flip; each image on its own.

    Parameters
    ----------
    crop_pad : int, default 4
        Zeros (black, not the mean) on each side before the crop to the old size; 0: no crop.
    flip : bool, default True
        Mirror left and right with probability 1/2.

    Raises
    ------
    TypeError, ValueError
        If `crop_pad` is no whole number >= 0, or `flip` is no bool.

    Notes
    -----
    The order is that of the paper's script (Appendix B.2): pad, crop, flip, normalise. Padding with
    zeros before the normalisation gives the border the value -mean / std.

    Examples
    --------
    >>> import torch
    >>> pixels = torch.zeros((2, 3, 8, 8), dtype=torch.uint8)
    >>> view = Augment()(pixels, (0.5,) * 3, (0.25,) * 3, stream(0, "augment", 0, 0))
    >>> view.shape, view.dtype, view.unique()
    (torch.Size([2, 3, 8, 8]), torch.float32, tensor([-2.]))
    """

    crop_pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        integer("crop_pad", self.crop_pad, 0)
        if not isinstance(self.flip, bool):
            raise TypeError(f"flip={self.flip!r} must be True or False")

    def __call__(
        self,
        pixels: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        *,
        channels_last: bool = False,
    ) -> Tensor:
        """Return one random view of each image, normalised.

        Parameters
        ----------
        pixels : Tensor (b, C, H, W), uint8
        mean, std : tuple of C floats
            As for :func:`normalise`.
        generator : torch.Generator
            Its device draws: one on the CPU gives the same views on every device, for the copy of
            some hundred bytes a batch.
        dtype : torch.dtype, default float32
        channels_last : bool, default False
            As for :func:`normalise`.

        Returns
        -------
        Tensor (b, C, H, W)
            On the device of the pixels. Cost: one gather of bytes, then the normalisation.

        Raises
        ------
        TypeError, ValueError
            As :func:`normalise`.
        """
        _check_pixels(pixels)
        view = self.view(pixels, generator)
        return normalise(view, mean, std, dtype, channels_last=channels_last)

    def view(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """The same view of each image (b, C, H, W) before the normalisation, uint8."""
        return self.shown(pixels, *self.draw(len(pixels), generator))

    def shown(self, pixels: Tensor, offsets: Tensor, mirrored: Tensor) -> Tensor:
        """The view of each image (b, C, H, W), uint8, by what :meth:`draw` gave, on any device."""
        height, width = pixels.shape[-2:]
        offsets, mirrored = _to_device(offsets, mirrored, pixels.device)
        # row (b, H) and column (b, W) of the padded image that each place of a view shows
        rows = torch.arange(height, device=pixels.device)
        columns = torch.arange(width, device=pixels.device)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
        padded = pad(pixels, (self.crop_pad,) * 4)
        return _gather(padded, offsets[0, :, None] + rows, offsets[1, :, None] + columns)

    def draw(self, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the offsets (2, b), down and right, and which images are mirrored (b,).

        Both are drawn always, so that a run without flips sees the crops of a run with them.
        """
        device, places = generator.device, 2 * self.crop_pad + 1
        offsets = torch.randint(places, (2, b), generator=generator, device=device)
        mirrored = torch.randint(2, (b,), generator=generator, device=device).bool()
        return offsets, mirrored & self.flip


def _to_device(offsets: Tensor, mirrored: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The draws on a device: one copy, from memory that the device reads while the host goes on."""
    if offsets.device == device:
        return offsets, mirrored
    draws = torch.cat([offsets, mirrored[None]])
    if device.type == "cuda":
        draws = draws.pin_memory()
    draws = draws.to(device, non_blocking=True)
    return draws[:2], draws[2].bool()


def _gather(padded: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick padded[i, :, rows[i], columns[i]] for every image i: (b, C, H, W)."""
    b, channels, _, width = padded.shape
    flat = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # (b, H W)
    pixels = padded.flatten(2).gather(2, flat[:, None].expand(-1, channels, -1))
    return pixels.view(b, channels, rows.shape[1], columns.shape[1])


def _check_pixels(pixels: Tensor) -> None:
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels must be uint8 (0 to 255), got {pixels.dtype}")
    if pixels.ndim != 4:
        raise ValueError(f"pixels must be (b, C, H, W), got shape {tuple(pixels.shape)}")
