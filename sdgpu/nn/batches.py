"""What one step works on, and how much each row of it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sdgpu.nn.config import Config

__all__ = ["Batch", "row_weights"]


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step, or a part of it, works on.

    Attributes
    ----------
    rows : tensor (b,), int64
        Of the training images.
    inputs : tensor (b, C, H, W)
    target : tensor (..., b, c) or None
        None for targets that :meth:`Feed.ask` gives part by part.
    truth : tensor (b, c) or None
        The ground truth of these inputs, where a teacher is to be asked.
    said : tensor (b, c) or None
        What tables of predictions say of them, then too.
    weights : tensor (b,) or None
        Factors of the losses.
    """

    rows: torch.Tensor
    inputs: torch.Tensor
    target: torch.Tensor | None
    truth: torch.Tensor | None = None
    said: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, block: slice) -> Batch:
        """Some of its rows; all of them are the batch itself."""
        if block.indices(len(self))[:2] == (0, len(self)):
            return self
        truth, said, weights = (
            None if values is None else values[block]
            for values in (self.truth, self.said, self.weights)
        )
        target = None if self.target is None else self.target[..., block, :]
        return Batch(self.rows[block], self.inputs[block], target, truth, said, weights)


def row_weights(data: Any, config: Config, dtype: torch.dtype) -> torch.Tensor | None:
    """Factors (n,) of the losses of the training rows, with the mean 1; None if all are 1.

    Those of the classes times those of the rows.

    Raises
    ------
    ValueError
        If there is not one for each class, or all rows have the weight 0.
    """
    images, given = data.train, data.weights
    if given is None and not config.class_weights:
        return None
    weights = torch.ones(len(images), dtype=torch.float64, device=images.labels.device)
    if given is not None:
        weights = weights * given
    if config.class_weights:
        weights = weights * _class_weights(images, config.class_weights)[images.labels]
    mean = float(weights.mean())
    if not mean > 0:
        raise ValueError("the weights of the training images are all 0: at least one must count")
    return (weights / mean).to(dtype)


def _class_weights(images: Any, class_weights: tuple[float, ...] | str) -> torch.Tensor:
    if isinstance(class_weights, str):
        counts = torch.bincount(images.labels, minlength=images.classes).double()
        return len(images) / (images.classes * counts.clamp(min=1))
    if len(class_weights) != images.classes:
        raise ValueError(
            f"class_weights has {len(class_weights)} entries, but the images have {images.classes} "
            "classes: give one for each"
        )
    return torch.tensor(class_weights, dtype=torch.float64, device=images.labels.device)
