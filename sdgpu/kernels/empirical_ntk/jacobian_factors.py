"""Gradients of a module at some rows, kept as factors where that is less, and their inner products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sdgpu.backend.arrays import slices

__all__ = ["Factors", "WeightFactors", "sketch"]

_Map = Callable[[torch.Tensor], torch.Tensor]

BLOCK = 256  # rows of a block of a symmetric product, of which half are left out
PIECE = 2**22  # numbers of an intermediate result at a time


@dataclass(frozen=True, eq=False)
class WeightFactors:
    """Factors of the gradients sum_p s_p a_p' with respect to one weight of linear maps, at b rows.

    Attributes
    ----------
    signals : tensor (b, p, g, o)
        s_p, for g outputs of the module.
    inputs : tensor (b, p, i), or (b, 1, channels, height, width) with a window
        a_p, or the images whose patches they are.
    strips : bool
        Whether products multiply the factors out, a strip of inputs at a time.
    window : dict, optional
        Of ``torch.nn.functional.unfold``.
    """

    signals: torch.Tensor
    inputs: torch.Tensor
    strips: bool = False
    window: dict[str, Any] | None = None

    def columns(self, channels: slice) -> torch.Tensor:
        """a_p of some channels, (b, p, i)."""
        if self.window is None:
            return self.inputs[..., channels]
        images = self.inputs[:, :, channels].flatten(0, 1)
        patches = torch.nn.functional.unfold(images, **self.window).mT
        return patches.reshape(len(self.inputs), -1, patches.shape[-1])

    def gradients(self, output: int, channels: slice) -> torch.Tensor:
        """Entries of the gradient of one output that belong to some channels, (b, o i)."""
        return (self.signals[:, :, output].mT @ self.columns(channels)).flatten(1)


@dataclass(frozen=True, eq=False)
class Factors:
    """Gradients of g outputs at b rows.

    Attributes
    ----------
    dense : tensor (b, g, P)
        Gradients with respect to the P parameters that are kept as they are.
    weights : tuple of WeightFactors
    """

    dense: torch.Tensor
    weights: tuple[WeightFactors, ...]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """dense, then signals and inputs in turns: all that depends on the rows."""
        pairs = ((weight.signals, weight.inputs) for weight in self.weights)
        return self.dense, *itertools.chain(*pairs)

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Factors:
        """The same kinds of factors with other :attr:`tensors`."""
        weights = (
            replace(weight, signals=signals, inputs=inputs)
            for weight, signals, inputs in zip(
                self.weights, tensors[1::2], tensors[2::2], strict=True
            )
        )
        return Factors(tensors[0], tuple(weights))

    def __len__(self) -> int:
        return int(self.dense.shape[0])

    def __getitem__(self, rows: slice) -> Factors:
        return self.with_tensors([part[rows] for part in self.tensors])

    def of_outputs(self, group: slice) -> Factors:
        """Those of some outputs."""
        weights = (replace(weight, signals=weight.signals[:, :, group]) for weight in self.weights)
        return Factors(self.dense[:, group], tuple(weights))

    def product(self, other: Factors) -> torch.Tensor:
        """Inner products with the gradients at other rows, summed over outputs, (b, b').

        Those with themselves are computed by half and mirrored.
        """
        same = other is self
        tile = self.dense.new_zeros(len(self), len(other))
        for left, right in self._vectors(other):
            for rows, far in _blocks(len(self), len(other), same=same):
                tile[rows, far].addmm_(left[rows], right[far].T)
        for near, distant in zip(self.weights, other.weights, strict=True):
            if not near.strips:
                for rows, far in _blocks(len(self), len(other), same=same):
                    _add_pairs(tile[rows, far], near, distant, rows, far)
        if same:
            for rows in slices(len(self), BLOCK):
                tile[: rows.start, rows] = tile[rows, : rows.start].T
        return tile

    def _vectors(self, other: Factors) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Parts of the gradients at these rows (b, N) and at others (b', N)."""
        yield self.dense.flatten(1), other.dense.flatten(1)
        for near, far in zip(self.weights, other.weights, strict=True):
            if near.strips:
                for strip in _strips(near, len(self) + (0 if far is near else len(other))):
                    left = near.gradients(*strip)
                    yield left, left if far is near else far.gradients(*strip)

    def squares(self) -> torch.Tensor:
        """Squared lengths of the gradients, summed over outputs, (b,)."""
        total = self.dense.square().sum((1, 2))
        for weight in self.weights:
            if weight.strips:
                for strip in _strips(weight, len(self)):
                    total += weight.gradients(*strip).square().sum(1)
                continue
            signals, inputs, p = weight.signals.flatten(2), weight.inputs, weight.inputs.shape[1]
            for rows in slices(len(self), max(1, PIECE // (p * p))):
                values = signals[rows] @ signals[rows].mT
                total[rows] += (values * (inputs[rows] @ inputs[rows].mT)).sum((1, 2))
        return total


def _blocks(rows: int, others: int, *, same: bool) -> Iterator[tuple[slice, slice]]:
    """Blocks of a product: one, or those on and below the diagonal."""
    for block in slices(rows, BLOCK if same else max(rows, 1)):
        yield block, slice(0, block.stop if same else others)


def _strips(weight: WeightFactors, rows: int) -> Iterator[tuple[int, slice]]:
    """Outputs and channels whose gradients at so many rows are of limited size."""
    count = weight.inputs.shape[-1 if weight.window is None else 2]
    width = 1 if weight.window is None else torch.Size(weight.window["kernel_size"]).numel()
    p, g, o = weight.signals.shape[1:]
    size = max(1, PIECE // max(rows * width * (p + o), 1))
    return itertools.product(range(g), slices(count, size))


def _add_pairs(
    tile: torch.Tensor, near: WeightFactors, far: WeightFactors, rows: slice, others: slice
) -> None:
    """Add sum_{p,p'} (s_p . s'_p') (a_p . a'_p') to a block of a product."""
    p, o = near.signals.shape[1], near.signals[0, 0].numel() if len(near.signals) else 1
    signals, inputs = near.signals[rows].reshape(-1, p, o), near.inputs[rows]
    far_signals = far.signals[others].reshape(-1, o)
    far_inputs = far.inputs[others].flatten(0, 1)
    for part in slices(len(tile), max(1, PIECE // max(p * len(far_inputs), 1))):
        values = signals[part].flatten(0, 1) @ far_signals.T
        values *= inputs[part].flatten(0, 1) @ far_inputs.T  # (rows p, others p)
        tile[part] += values.view(-1, p, tile.shape[1], p).sum((1, 3)) if p > 1 else values


def sketch(
    q: int, seed: int, dense: int, pairs: Sequence[tuple[int, int]], like: torch.Tensor
) -> Callable[[Factors], torch.Tensor]:
    """A seeded random map of gradients to features (b, q) with E[Phi Phi'] = J J'.

    A count sketch adds every entry, with a random sign, to one of q places at random. That of an outer
    product s a' is the circular convolution of those of s and of a (Pham and Pagh 2013), so paired
    weights are not multiplied out: p (o + i + q log q) operations for each row and weight. Only the
    places and signs are held.

    Parameters
    ----------
    q, seed : int
    dense : int
        Entries of the dense gradients of a row.
    pairs : sequence of pairs
        Entries of the signals and of the inputs of each paired weight, at one position.
    like : tensor
        Of the dtype and on the device of the gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    dense_map, *maps = (
        _count_sketch(entries, q, generator, like) for entries in (dense, *itertools.chain(*pairs))
    )

    def project(factors: Factors) -> torch.Tensor:
        features = dense_map(factors.dense.flatten(1))
        for left, right, weight in zip(maps[::2], maps[1::2], factors.weights, strict=True):
            features += _convolution(left, right, weight.signals.flatten(2), weight.inputs, q)
        return features

    return project


def _convolution(
    left: _Map, right: _Map, signals: torch.Tensor, inputs: torch.Tensor, q: int
) -> torch.Tensor:
    """Sketches of sum_p s_p a_p', (b, q), from signals (b, p, o) and inputs (b, p, i)."""
    b, p = inputs.shape[:2]

    def spectra(sketch: _Map, values: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(sketch(values.flatten(0, 1))).unflatten(0, (b, -1))

    parts = [
        (spectra(left, signals[:, positions]) * spectra(right, inputs[:, positions])).sum(1)
        for positions in slices(p, max(1, PIECE // (b * q)))
    ]
    return torch.fft.irfft(sum(parts), n=q)


def _count_sketch(entries: int, q: int, generator: torch.Generator, like: torch.Tensor) -> _Map:
    """A map of rows (b, entries) to (b, q): each entry goes to one place, with a sign."""
    places = torch.randint(q, (entries,), generator=generator, device="cpu").to(like.device)
    signs = (2 * torch.randint(2, (entries,), generator=generator, device="cpu") - 1).to(like)

    def project(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(values), q).index_add_(1, places, values * signs)

    return project
