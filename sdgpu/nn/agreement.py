"""Consensus retraining: train where the teacher and the label agree.

With noisy labels the rows that a trained network would label alike are right more often than all rows
are. Retraining on them alone, with their labels, needs no weight and no clean data.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdgpu.backend.distributed import World, join
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import predict
from sdgpu.nn.network_teachers import SavedTeacher, Teacher, TeacherEnsemble
from sdgpu.nn.parts import Data

__all__ = ["Consensus", "consensus"]


@dataclass(frozen=True, eq=False)
class Consensus:
    """Where a teacher and the labels agree.

    Attributes
    ----------
    data : Data
        Its training part has the rows where they do, in their order, with their weights, normalised as
        before; validation and test images are all there.
    rows : tensor (n,), bool
        Which of the training images they are.
    kept, total : tuple of c ints
        Training images of each class (by their labels), those that are left and all.
    """

    data: Data
    rows: torch.Tensor
    kept: tuple[int, ...]
    total: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the training images that are left."""
        return sum(self.kept) / sum(self.total)


def consensus(
    data: Data, teacher: nn.Module | SavedTeacher | TeacherEnsemble, config: Config | None = None
) -> Consensus:
    """Rows whose label is the class that a teacher finds most likely: argmax_j p_ij = label_i.

    Parameters
    ----------
    data : Data
    teacher : Module, SavedTeacher or TeacherEnsemble
        As for :class:`~sdgpu.nn.Teacher`: the network that was trained on these labels, as a rule. Clean
        images are shown to it, shared out over the processes of ``torchrun``.
    config : Config, optional
        Its activation, temperature, channels_last and eval_batch.

    Returns
    -------
    Consensus
        For :func:`~sdgpu.nn.train` with the labels as targets (None), or any chain. Cost: one forward pass.

    Raises
    ------
    ValueError
        If they agree nowhere or in one class alone; names how often, and what else there is.

    Warns
    -----
    UserWarning
        If a class that had images has none left; names it.

    References
    ----------
    Das, Dhillon, Epasto, Javanmard, Mao, Mirrokni, Sanghavi, Zhong (2024), Retraining with predicted hard
    labels provably increases model accuracy, arXiv 2406.11206: "consensus-based retraining".

    Examples
    --------
    >>> from sdgpu.nn import SavedTeacher, consensus, load_images
    >>> data = load_images("digits", rows=60, val=10)
    >>> agreed = consensus(data, SavedTeacher(data.train.one_hot()))
    >>> agreed.share, len(agreed.data.train)
    (1.0, 50)
    """
    config, images = config or Config(), data.train
    heard = Teacher(teacher, 0.0)
    heard.check(images, config)
    world = join(images.device)
    top = _predictions(heard, images, config, world).argmax(dim=-1)
    rows = top == images.labels
    kept, total = (
        tuple(torch.bincount(labels, minlength=images.classes).tolist())
        for labels in (images.labels[rows], images.labels)
    )
    _check_classes(kept, total)
    part = images.take(rows.nonzero().flatten())
    weights = None if data.weights is None else data.weights[rows.to(data.weights.device)]
    return Consensus(dataclasses.replace(data, train=part, weights=weights), rows, kept, total)


def _predictions(teacher: Teacher, images: Any, config: Config, world: World) -> torch.Tensor:
    total = teacher.said(images, config, torch.float32)
    for weight, network in teacher.networks:
        P = weight * predict(network, images, config, world=world)
        total = P if total is None else total + P
    assert total is not None
    return total


def _check_classes(kept: tuple[int, ...], total: tuple[int, ...]) -> None:
    left = [label for label, count in enumerate(kept) if count]
    if len(left) < 2:
        where = f"in class {left[0]} alone" if left else "nowhere"
        raise ValueError(
            f"the teacher and the labels agree {where} ({sum(kept)} of {sum(total)} rows): nothing to "
            "train on; see whether the teacher has learned (its accuracy) and whether its rows and "
            "classes are in the order of the images, or mix both with a Teacher and its alpha"
        )
    lost = [label for label, count in enumerate(total) if count and not kept[label]]
    if lost:
        named = ", ".join(map(str, lost[:5])) + (", .." if len(lost) > 5 else "")
        warnings.warn(
            f"the teacher and the labels agree in no image of class {named}: the student will never see it",
            stacklevel=3,
        )
