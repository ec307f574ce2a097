"""The labels of a data set of torch, without reading its items where that can be helped."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sdgpu.nn.keyed_loading import Keys, Loading

__all__ = ["all_labels"]


def all_labels(dataset: Any, loading: Loading, *, batch: int = 256) -> torch.Tensor:
    """Labels (n,), int64, of all items.

    They are where torchvision (`targets`, `labels`), Hugging Face (a column) and torch (`tensors`,
    `indices` of a Subset, `datasets` of a ConcatDataset) keep them, if some items say the same; else every
    item is read once.

    Raises
    ------
    TypeError, ValueError
        If items have no label.
    """
    n = len(dataset)
    known = _known(dataset, loading)
    if known is not None and known.shape == (n,):
        rows = np.unique(np.linspace(0, n - 1, 8).astype(int)).tolist()
        if torch.equal(_read(dataset, loading, rows, batch), known[rows]):
            return known
    return _read(dataset, loading, range(n), batch)


def _read(dataset: Any, loading: Loading, rows: Any, batch: int) -> torch.Tensor:
    numbers = np.asarray(rows)
    blocks = [Keys(numbers[start : start + batch], 0) for start in range(0, len(numbers), batch)]
    return torch.cat([labels for _, labels in loading.batches(dataset, blocks)])


def _known(dataset: Any, loading: Loading) -> torch.Tensor | None:
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        inner = _known(dataset.dataset, loading)
        return None if inner is None else inner[torch.as_tensor(dataset.indices, device="cpu")]
    if hasattr(dataset, "datasets"):
        inners = [_known(inner, loading) for inner in dataset.datasets]
        return None if any(x is None for x in inners) else torch.cat(inners)  # type: ignore[arg-type]
    for values in _candidates(dataset, loading):
        try:
            labels = torch.as_tensor(np.asarray(values), device="cpu")
        except (TypeError, ValueError):
            continue
        if labels.ndim == 1 and not labels.dtype.is_floating_point and labels.dtype != torch.bool:
            return labels.to(torch.int64)
    return None


def _candidates(dataset: Any, loading: Loading) -> Any:
    if hasattr(
        dataset, "column_names"
    ):  # of Hugging Face: without what is done to items on the way
        names = [loading.keys[1]] if loading.keys else ["labels", "label", "target", "y"]
        plain = dataset.with_format(None)
        yield from (plain[name] for name in names if name in dataset.column_names)
        return
    for name in ("targets", "labels"):
        if hasattr(dataset, name):
            yield getattr(dataset, name)
    tensors: Any = getattr(dataset, "tensors", ())
    if len(tensors) > 1:
        yield tensors[1]
