"""Data sets and DataLoaders of torch, torchvision, timm and Hugging Face: what they say of themselves."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from sdgpu.nn.images import find_device, tensor_of
from sdgpu.nn.item_generators import GENERATORS, generators_kept, states
from sdgpu.nn.item_labels import all_labels
from sdgpu.nn.keyed_loading import Loading
from sdgpu.nn.loaded_parts import PRINTS, LoadedSamples
from sdgpu.nn.parts import class_count, labels_of

__all__ = ["is_dataset", "loaded_samples", "opened_samples"]


def is_dataset(value: Any) -> bool:
    """Whether something is a data set or a DataLoader, of torch or of a library that follows it."""
    if isinstance(value, DataLoader | torch.utils.data.Dataset):
        return True
    return hasattr(value, "column_names") and hasattr(value, "__getitem__")


def loaded_samples(
    dataset: Any,
    labels: Any = None,
    *,
    classes: int | None = None,
    keys: tuple[Any, Any] | None = None,
    workers: int | None = None,
    device: str | torch.device = "cpu",
    name: str = "data set",
) -> LoadedSamples:
    """Make a part of a data set or DataLoader of torch, torchvision, timm or Hugging Face.

    Parameters
    ----------
    dataset : Dataset or DataLoader
        Of items (inputs, label, ..), or mappings that have both. Inputs are a tensor: floats, or whole
        numbers for an embedding, all of one shape. Of a DataLoader its data set, workers, collate_fn and
        prefetching are used; order and size of batches are those of `Config`, and the last batch is kept.
    labels : array (n,), optional
        Of all items, where they are known; else they are looked up, or every item is read once.
    classes : int, optional
        c; by default the largest label + 1, and all have an item.
    keys : (inputs, label), optional
        Of mappings, by default the usual names: pixel_values, input_ids, image .., label, labels, target ..
    workers : int, optional
        Processes that make items; by default those of the DataLoader, or none.
    device : str or torch.device, default "cpu"
        Where inputs come to; "auto": CUDA if there is one.
    name : str, default "data set"
        For messages.

    Returns
    -------
    LoadedSamples
        Random transforms may draw from torch's, NumPy's and Python's global generators: they are seeded for
        every item by `Config.augment_seed`, the epoch and its number.

    Raises
    ------
    TypeError
        For data without a length, or batches that are no tensors.
    ValueError
        For a DataLoader with an order of its own; labels out of range or not one an item.

    Warns
    -----
    UserWarning
        If items draw from generators of their own: a resumed training is then another one.
    """
    part = opened_samples(dataset, labels, keys=keys, workers=workers, device=device, name=name)
    return replace(part, classes=class_count(name, part.labels, classes, "item"))


def opened_samples(
    dataset: Any,
    labels: Any = None,
    *,
    keys: tuple[Any, Any] | None = None,
    workers: int | None = None,
    device: str | torch.device = "cpu",
    name: str = "data set",
) -> LoadedSamples:
    """The part of :func:`loaded_samples` with as many classes as it shows, whichever it lacks."""
    torch_device = find_device(device)
    dataset, index, loading = _taken_apart(name, dataset, keys, workers)
    n = len(index)
    if labels is None:
        targets = all_labels(dataset, loading)[index]
    else:
        targets = labels_of(name, tensor_of(f"{name}: labels", labels), n, "item")
    blank = LoadedSamples(
        dataset=dataset,
        index=index,
        labels=targets.to(torch_device),
        classes=int(targets.max()) + 1,
        name=name,
        loading=loading,
        shape=(),
        draws=GENERATORS,
        repeats=True,
        prints="",
    )
    return _tried(blank)


def _tried(part: LoadedSamples) -> LoadedSamples:
    """The part, with what a look at some items shows."""
    shape = tuple(next(part.clean(range(1), 1, torch.float32)).shape[1:])
    prints = part.fingerprints()
    repeats = part.fingerprints() == prints
    if not repeats:
        warnings.warn(
            f"{part.name}: items are not the same again with the same random numbers: a training that was "
            "cut off does not go on to the same bits. Let transforms draw from torch, numpy.random or "
            "random, which are seeded for every item, and not from generators of their own",
            stacklevel=3,
        )
    return replace(
        part,
        shape=shape,
        prints=prints,
        repeats=repeats,
        draws=_draws(part) if repeats else GENERATORS,
    )


def _draws(part: LoadedSamples) -> tuple[str, ...]:
    """The generators that some items are made with."""
    rows = np.unique(np.linspace(0, len(part) - 1, PRINTS).astype(int))
    with generators_kept():
        before = states()
        for row in part.index.numpy()[rows].tolist():
            part.dataset[row]
        after = states()
    return tuple(name for name, a, b in zip(GENERATORS, before, after, strict=True) if a != b)


def _taken_apart(
    name: str, dataset: Any, keys: tuple[Any, Any] | None, workers: int | None
) -> tuple[Any, Tensor, Loading]:
    """The data set, numbers of its items, and how they are loaded."""
    loading, sampler = Loading(keys=keys), None
    if isinstance(dataset, DataLoader):
        loader, dataset = dataset, dataset.dataset
        loading = Loading(
            workers=loader.num_workers,
            collate=loader.collate_fn if loader.batch_size is not None else None,
            keys=keys,
            start=loader.worker_init_fn,
            prefetch=loader.prefetch_factor,
            context=loader.multiprocessing_context,
            timeout=loader.timeout,
        )
        sampler = loader.sampler
    if workers is not None:
        loading = replace(loading, workers=workers)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{name}: {type(dataset).__name__} has no length and no items by number, so no order to draw "
            "and nothing to resume: give a map-style Dataset (__len__ and __getitem__), or read the items "
            "into arrays, make_data((X, y))"
        )
    if not len(dataset):
        raise ValueError(f"{name} has no items")
    return dataset, _index(name, sampler, len(dataset)), loading


def _index(name: str, sampler: Any, n: int) -> Tensor:
    """Which items a DataLoader would give, if it gives each once."""
    if isinstance(sampler, SubsetRandomSampler):
        return torch.as_tensor(sampler.indices, dtype=torch.int64, device="cpu")
    plain = sampler is None or isinstance(sampler, SequentialSampler)
    if plain or (isinstance(sampler, RandomSampler) and not sampler.replacement):
        return torch.arange(n, device="cpu")
    raise ValueError(
        f"{name}: the DataLoader draws with {type(sampler).__name__}, but a training draws its own order "
        "from Config(order_seed) and shares batches out over the processes: leave the sampler out, or give "
        "torch.utils.data.Subset(dataset, indices)"
    )
