"""Items of a data set of torch as a part, made as they are needed, by workers."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdgpu.nn.augment import training_order
from sdgpu.nn.config import Config
from sdgpu.nn.item_generators import pass_seed
from sdgpu.nn.item_memory import ItemMemory
from sdgpu.nn.keyed_loading import Keys, Loading
from sdgpu.nn.parts import Reader, all_contents_of, all_labels_of, one_hot
from sdgpu.nn.training_files import digest

__all__ = ["PRINTS", "LoadedReader", "LoadedSamples"]

PRINTS = 8  # items whose bytes are remembered

# A checksum of every item costs 1 % of loading a picture, but 8 % of the steps of a small network on a
# table: items of fewer bytes are held against what they were in one of so many batches of a training.
SMALL, EVERY = 2**13, 8


@dataclass(frozen=True, eq=False)
class LoadedSamples:
    """Labelled items of a data set of torch; :func:`~sdgpu.nn.loaded_samples` makes it.

    Attributes
    ----------
    dataset : Dataset
        With a length, and items by number.
    index : Tensor (n,), int64
        Which of its items these are, on the CPU.
    labels : Tensor (n,), int64
        Classes 0 .. classes - 1, on the device.
    classes : int
    name : str
    loading : Loading
    shape : tuple of int
        Of the inputs of one item.
    draws : tuple of str
        Global generators that items are made with: "torch", "numpy", "python".
    repeats : bool
        Whether an item is the same again with the same random numbers.
    prints : str
        Of the bytes of some items.
    clean_labels : Tensor (n,), int64, or None
        What the labels were before noise.
    memory : ItemMemory or None
        Of a part whose items are held against what they were (:meth:`remembering`).
    """

    dataset: Any
    index: Tensor
    labels: Tensor
    classes: int
    name: str
    loading: Loading
    shape: tuple[int, ...]
    draws: tuple[str, ...]
    repeats: bool
    prints: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    clean_labels: Tensor | None = None
    memory: ItemMemory | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where inputs come to."""
        return self.labels.device

    @property
    def kind(self) -> str:
        """For messages."""
        return "samples"

    def to(self, device: str | torch.device) -> LoadedSamples:
        """The same items, whose inputs come to a device."""
        return replace(self, **all_labels_of(self, lambda labels: labels.to(device)))

    def take(self, index: Tensor) -> LoadedSamples:
        """The items at `index` (b,), an int64 tensor, in that order; some of them are read."""
        index = index.cpu()
        there = index.to(self.device)
        labels = all_labels_of(self, lambda labels: labels[there])
        part = replace(self, index=self.index[index], memory=None, **labels)
        return replace(part, prints=part.fingerprints()) if len(part) else part

    def one_hot(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The targets Y (n, c): 1 in the column of the label, 0 elsewhere."""
        return one_hot(self.labels, self.classes, dtype)

    def contents(self) -> tuple[Tensor, ...]:
        """Tensors whose bytes tell them from any others, as far as labels and some items can."""
        prints = torch.frombuffer(bytearray(self.prints.encode()), dtype=torch.uint8)
        return all_contents_of(self, prints)

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """None: inputs are taken as they come."""
        return (), ()

    def check(self, name: str) -> None:
        """Refuse labels that are not one for each item.

        Raises
        ------
        ValueError
        """
        if self.labels.shape != self.index.shape:
            raise ValueError(
                f"{name} has labels {tuple(self.labels.shape)} for items {tuple(self.index.shape)}"
            )

    def fingerprints(self) -> str:
        """Checksum of some items, with random numbers that are always the same."""
        return digest(*next(self._some([self._tried_rows()])))

    def remembering(self, *, by_pass: bool) -> LoadedSamples:
        """The same items, each held against a checksum of what it was when it was first read.

        Not compared are items that are never the same again (`repeats`), that lie on a GPU, or whose
        bytes depend on the other items of their batch, as a collate_fn may make them. Of texts that are
        padded to the longest of a batch those are compared that come in the length of the first. Items of
        less than 8 KiB are compared in every eighth batch of a training, others in the next epoch.

        Parameters
        ----------
        by_pass : bool
            Compare items of passes with the same seed alone, where random transforms draw the same.
        """
        if self.memory is not None or not self.repeats or not self._alike_alone():
            return self
        memory = ItemMemory(self.name, self.index.numpy(), self.shape, by_pass=by_pass)
        return replace(self, memory=memory)

    def _alike_alone(self) -> bool:
        """Whether some items have the same bytes by themselves and with others in a batch."""
        rows = self._tried_rows()
        together, _ = next(self._some([rows]))
        alone = [inputs[0] for inputs, _ in self._some([rows[i : i + 1] for i in range(len(rows))])]
        return all(
            a.shape != b.shape or digest(a) == digest(b)
            for a, b in zip(alone, together, strict=True)
        )

    def _tried_rows(self) -> np.ndarray:
        return np.unique(np.linspace(0, len(self) - 1, PRINTS).astype(int))

    def _some(self, blocks: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of blocks of rows, with random numbers that are always the same."""
        keys = [self.keys(rows, pass_seed(0)) for rows in blocks]
        return self.stream(keys)

    def stream(self, keys: Iterable[Keys]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Inputs and labels of batches as the workers make them, on the CPU."""
        pinned = self.device.type == "cuda"
        return self.loading.batches(self.dataset, keys, self.draws, pinned=pinned)

    def keys(self, rows: np.ndarray, base: int) -> Keys:
        """Numbers of the items of some rows, and what their seeds are made of."""
        return Keys(self.index.numpy()[rows], base)

    def host_labels(self) -> Tensor:
        """What the items themselves say their labels are, on the CPU."""
        return (self.labels if self.clean_labels is None else self.clean_labels).cpu()

    def clean(
        self, rows: range, size: int, dtype: torch.dtype, *, channels_last: bool = False
    ) -> Iterator[Tensor]:
        """Inputs of consecutive rows, at most `size` at a time; of random items always the same draw."""
        starts = range(rows.start, rows.stop, size)
        blocks = [np.arange(start, min(start + size, rows.stop)) for start in starts]
        yield from self.inputs(blocks, pass_seed(0), dtype, channels_last=channels_last)

    def inputs(
        self, blocks: list[np.ndarray], base: int, dtype: torch.dtype, *, channels_last: bool
    ) -> Iterator[Tensor]:
        """Inputs of blocks of rows, with the random numbers of one pass."""
        keys = [self.keys(block, base) for block in blocks]
        truth = self.host_labels()
        with closing(self.stream(keys)) as batches:
            for block, (inputs, labels) in zip(blocks, batches, strict=True):
                self.compare(block, base, inputs)
                yield self.brought(inputs, labels, truth[block], dtype, channels_last=channels_last)

    def compare(self, rows: np.ndarray, base: int, inputs: Tensor) -> None:
        """Hold inputs of some rows against what they were, if that is remembered.

        Raises
        ------
        RuntimeError
            If some are not.
        """
        if self.memory is not None:
            self.memory.compare(rows, base, inputs)

    def brought(
        self,
        inputs: Tensor,
        labels: Tensor,
        truth: Tensor,
        dtype: torch.dtype,
        *,
        channels_last: bool,
    ) -> Tensor:
        """Inputs on the device, in the type of the network.

        Raises
        ------
        RuntimeError
            If the items have other labels than they had.
        """
        if not torch.equal(labels, truth):
            raise RuntimeError(
                f"{self.name}: {int((labels != truth).sum())} of {len(truth)} items have other labels than "
                "before: the data set has changed its order or its items; fix its order (sort the files, "
                "shuffle not at all: Config draws the order of a training)"
            )
        inputs = inputs.to(self.device, non_blocking=True)
        if inputs.is_floating_point():
            inputs = inputs.to(dtype)
        if channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def reader(self, config: Config, dtype: torch.dtype) -> Reader:
        """Items in the order of a training, made ahead."""
        return LoadedReader(self, config, dtype)


class LoadedReader:
    """The batches of a training, one after the other from wherever it begins.

    Parameters
    ----------
    part : LoadedSamples
    config : Config
    dtype : torch.dtype

    Raises
    ------
    RuntimeError
        If items are not what they were when the part was made.
    """

    def __init__(self, part: LoadedSamples, config: Config, dtype: torch.dtype) -> None:
        self.part, self.config, self.dtype = part, config, dtype
        self.batches = math.ceil(len(part) / config.batch)
        self._stream: Generator[tuple[Tensor, Tensor], None, None] | None = None
        self._next: tuple[int, int] | None = None
        self._order: tuple[int, Tensor, int] = (-1, torch.empty(0, device="cpu"), 0)
        self._truth = part.host_labels()
        if part.repeats and part.fingerprints() != part.prints:
            raise RuntimeError(
                f"{part.name}: items are not what they were when the data were made: the data set has "
                "changed its order or its items"
            )

    def batch(self, order: Tensor, epoch: int, batch: int) -> Tensor:
        """Inputs (b, ...) of a batch of the order (n,) of an epoch; the next ones are on their way."""
        if self._next != (epoch, batch):
            self.close()
            self._stream = self.part.stream(self._from(epoch, batch))
        assert self._stream is not None
        inputs, labels = next(self._stream)
        size = self.config.batch
        own_order, base = self._pass(epoch)
        rows, own_rows = (o[batch * size : (batch + 1) * size] for o in (order, own_order))
        if rows.device.type == "cpu" and not torch.equal(rows, own_rows):
            raise RuntimeError(
                f"{self.part.name}: items were read in another order than is trained on"
            )
        self._next = (epoch, batch + 1) if batch + 1 < self.batches else (epoch + 1, 0)
        truth = self._truth[own_rows]
        if self._compares(inputs, epoch, batch) and torch.equal(labels, truth):
            self.part.compare(own_rows.numpy(), base, inputs)
        return self.part.brought(
            inputs, labels, truth, self.dtype, channels_last=bool(self.config.channels_last)
        )

    def close(self) -> None:
        """Let the workers end."""
        if self._stream is not None:
            self._stream.close()

    def _compares(self, inputs: Tensor, epoch: int, batch: int) -> bool:
        """Whether items of a batch are held against what they were: in small ones now and then."""
        every = min(EVERY, self.batches) if inputs.nbytes < SMALL * len(inputs) else 1
        return self.part.memory is not None and (batch - epoch) % every == 0

    def _pass(self, epoch: int) -> tuple[Tensor, int]:
        """Rows of an epoch in their order, and what the seeds of its items are made of."""
        if self._order[0] != epoch:
            rows = training_order(len(self.part), self.config, epoch)
            self._order = (epoch, rows, self._base(epoch))
        return self._order[1:]

    def _base(self, epoch: int) -> int:
        config = self.config
        number = epoch % config.views if config.teacher == "views" else epoch
        return pass_seed(config.augment_seed, number)

    def view(self, number: int, size: int) -> Iterator[Tensor]:
        """All inputs of one of the views of teacher="views", at most `size` at a time."""
        blocks = [
            np.arange(a, min(a + size, len(self.part))) for a in range(0, len(self.part), size)
        ]
        base = pass_seed(self.config.augment_seed, number)
        yield from self.part.inputs(
            blocks, base, self.dtype, channels_last=bool(self.config.channels_last)
        )

    def _from(self, epoch: int, batch: int) -> Iterator[Keys]:
        """Keys of all batches from a position to the end of the training."""
        config = self.config
        for later in range(epoch, config.epochs):
            base = self._base(later)
            order = training_order(len(self.part), config, later).numpy()
            for start in range(batch * config.batch, len(order), config.batch):
                yield self.part.keys(order[start : start + config.batch], base)
            batch = 0
