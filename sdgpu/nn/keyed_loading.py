"""A data set of torch read in a given order, every item with random numbers of its own.

Items are asked for by their rows and a seed. Before one is made, the generators that transforms draw from
(torch's, NumPy's and Python's global ones) are seeded with its own, so an item is a function of row and
seed: in any worker, in any batch, after a resume. In this process the generators come back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from sdgpu.backend.signals import leave_interrupts_to_the_parent
from sdgpu.nn.item_generators import (
    GENERATORS,
    StateReader,
    generators_kept,
    item_seeds,
    put_back,
    seed_all,
)

__all__ = ["Keys", "Loading"]


@dataclass(frozen=True, eq=False)
class Keys:
    """Which items are a batch.

    Attributes
    ----------
    rows : array (b,), int64
        Their numbers in the data set.
    base : int
        Of the pass over the data: with a row it makes the seed of an item.
    """

    rows: np.ndarray
    base: int

    def seeds(self) -> list[int]:
        """Of every item."""
        return item_seeds(self.rows, self.base).tolist()


_INPUTS = ("pixel_values", "input_ids", "image", "img", "inputs", "input", "x", "X", "data")
_LABELS = ("labels", "label", "targets", "target", "y", "fine_label")


@dataclass(frozen=True, eq=False)
class Loading:
    """How items become batches: what a DataLoader was given, without its order.

    Attributes
    ----------
    workers : int
    collate : callable or None
        None: torch's own.
    keys : (inputs, label) or None
        Of items that are mappings; None looks for the usual names.
    start : callable or None
        Called in every worker.
    prefetch : int or None
        Batches that a worker prepares ahead.
    context : optional
        How workers are started.
    timeout : float
        Seconds to wait for a batch; 0 for any.
    """

    workers: int = 0
    collate: Callable[[list[Any]], Any] | None = None
    keys: tuple[Any, Any] | None = None
    start: Callable[[int], None] | None = None
    prefetch: int | None = None
    context: Any = None
    timeout: float = 0

    def batches(
        self,
        dataset: Any,
        batches: Iterable[Keys],
        draws: tuple[str, ...] = GENERATORS,
        *,
        pinned: bool = False,
    ) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Inputs and labels of batches, prepared ahead by the workers.

        Whoever leaves off before the end must call ``close()``. If the rest is found by the garbage
        collector instead, torch closes the queues first, and then waits 5 seconds for each worker to hear
        by its queue that it may end.

        Parameters
        ----------
        dataset : Dataset
        batches : iterable of Keys
        draws : names of generators
            That items draw from, as far as is known; any other is noticed, and costs a second reading.
        pinned : bool
            In memory that a GPU reads while the host goes on.

        Raises
        ------
        TypeError, ValueError
            If items cannot be put into batches of tensors and labels.
        """
        gather = _gathered(dataset) if self.collate in (None, default_collate) else None
        collate = _Collate(self.collate or default_collate)
        loader: DataLoader[Any] = DataLoader(
            _Keyed(dataset, draws) if gather is None else _Gathered(gather),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=collate if gather is None else _as_it_is,
            pin_memory=pinned,
            worker_init_fn=_Start(self.start) if self.workers else None,
            prefetch_factor=self.prefetch if self.workers else None,
            multiprocessing_context=self.context if self.workers else None,
            timeout=self.timeout,
            generator=torch.Generator("cpu"),  # so that nothing is drawn from that of the caller
        )
        for batch in loader:
            yield self.pick(batch)

    def pick(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of a batch.

        Raises
        ------
        TypeError, ValueError
        """
        inputs, labels = self._pair(batch)
        if not isinstance(inputs, torch.Tensor):
            raise TypeError(
                f"the inputs of a batch are {type(inputs).__name__}, but must be one tensor: give the data "
                "set a transform, or the DataLoader a collate_fn, that makes it"
            )
        if inputs.dtype in (torch.uint8, torch.bool) or inputs.is_complex():
            raise TypeError(
                f"the inputs of a batch are {inputs.dtype}, but must be floats, or whole numbers for an "
                "embedding: let the data set's transform scale bytes (ToTensor), or train on make_data((X, "
                "y)) of the bytes themselves"
            )
        labels = torch.as_tensor(labels, device="cpu")
        if labels.dtype.is_floating_point or labels.shape != inputs.shape[:1]:
            raise ValueError(
                f"the labels of a batch are {labels.dtype} {tuple(labels.shape)} for inputs "
                f"{tuple(inputs.shape)}: they must be one class for each item"
            )
        whole = inputs.is_floating_point()
        return inputs if whole else inputs.to(torch.int64), labels.to(torch.int64)

    def _pair(self, batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, list | tuple):
            if len(batch) < 2:
                raise ValueError(f"items have {len(batch)} entry: they must be (inputs, label)")
            return batch[0], batch[1]
        if not hasattr(batch, "keys"):
            raise TypeError(
                f"batches are {type(batch).__name__}, but must be (inputs, labels) or mappings with both"
            )
        names = list(batch.keys())
        if self.keys is not None:
            missing = [key for key in self.keys if key not in names]
            if missing:
                raise ValueError(f"keys={self.keys}: items have no {missing[0]!r}, only {names}")
            return batch[self.keys[0]], batch[self.keys[1]]
        found = [
            next((name for name in known if name in names), None) for known in (_INPUTS, _LABELS)
        ]
        if None in found:
            raise ValueError(
                f"items have {names}: say which are inputs and label, keys=('image', 'label')"
            )
        return batch[found[0]], batch[found[1]]


class _Keyed(Dataset[Any]):
    """The data set that a worker sees: items by their keys."""

    def __init__(self, dataset: Any, draws: tuple[str, ...]) -> None:
        self.dataset, self.draws = dataset, draws
        self.others = tuple(name for name in GENERATORS if name not in draws)
        self._reader: StateReader | None = None  # of the process that items are made in

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Keys) -> list[Any]:
        if get_worker_info() is not None:  # nobody else draws there
            return self._items(keys)
        with generators_kept(self.draws):
            return self._items(keys)

    def _items(self, keys: Keys) -> list[Any]:
        """Items, whose generators were found out beforehand; if others drew too, all over again."""
        states = self._reader = self._reader or StateReader()
        before = states(self.others)
        items = self._drawn(keys, self.draws)
        if states(self.others) == before:
            return items
        try:
            return self._drawn(keys, GENERATORS)
        finally:
            put_back(self.others, before)
            self._reader = None

    def _drawn(self, keys: Keys, names: tuple[str, ...]) -> list[Any]:
        rows = keys.rows.tolist()
        if not names:
            several = getattr(self.dataset, "__getitems__", None)
            return several(rows) if several else [self.dataset[row] for row in rows]
        items = []
        for row, seed in zip(rows, keys.seeds(), strict=True):
            seed_all(names, seed)
            items.append(self.dataset[row])
        return items


class _Gathered(Dataset[Any]):
    """Whole batches of tensors that lie in memory, where items one by one would give the same."""

    def __init__(self, gather: Callable[[torch.Tensor], list[torch.Tensor]]) -> None:
        self.gather = gather

    def __getitems__(self, keys: Keys) -> list[torch.Tensor]:
        return self.gather(torch.from_numpy(keys.rows))


def _gathered(dataset: Any) -> Callable[[torch.Tensor], list[torch.Tensor]] | None:
    """What takes rows of a TensorDataset, or of a Subset of one, all at once; None for any other."""
    if type(dataset) is TensorDataset:
        plain = (t.device.type == "cpu" and t.layout is torch.strided for t in dataset.tensors)
        return partial(_rows, dataset.tensors) if all(plain) else None
    if type(dataset) is Subset:
        inner = _gathered(dataset.dataset)
        indices = torch.as_tensor(dataset.indices, device="cpu")
        return None if inner is None else partial(_inside, inner, indices)
    return None


def _rows(tensors: Sequence[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    return [tensor[rows] for tensor in tensors]


def _inside(inner: Any, indices: torch.Tensor, rows: torch.Tensor) -> Any:
    return inner(indices[rows])


def _as_it_is(batch: Any) -> Any:
    return batch


class _Collate:
    """A collate_fn whose errors say what to do."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        try:
            return self.collate(items)
        except (TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(
                f"items cannot be put into a batch: {reason}. Give the data set a transform that makes "
                "tensors of one size (ToTensor), or the DataLoader a collate_fn"
            ) from error


class _Start:
    """What a worker does first."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        leave_interrupts_to_the_parent()
        if self.then is not None:
            self.then(worker)
