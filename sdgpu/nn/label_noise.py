"""Wrong labels on purpose: symmetric noise, with the clean labels kept for scores.

A network distilled from itself hears the labels less and its teacher more. Where some labels are wrong that
may be worth more than where all are right, so the paper's experiment is run with both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from sdgpu.backend.checks import integer, number
from sdgpu.nn.images import Images
from sdgpu.nn.samples import Samples

__all__ = ["with_label_noise"]

SEED_PURPOSE = 3  # of the draws of a split seed: 0, 1 and 2 are those of image_splits


Part = TypeVar("Part", Images, Samples)


def with_label_noise(part: Part, share: float, *, seed: int = 0) -> Part:
    """Give a share of the rows of a part the label of another class, drawn uniformly.

    Parameters
    ----------
    part : Images or Samples
        With n rows and c classes.
    share : float
        In [0, 1): round(share n) rows are drawn without replacement, and each gets one of the c - 1 other
        labels with equal probability ("symmetric noise"; of uniform draws from all c classes, which some
        publications report, c / (c - 1) times as much is needed for the same share of wrong labels).
    seed : int, default 0

    Returns
    -------
    Images or Samples
        The inputs shared, the labels new, and what they were as `clean_labels`; of a part that has been
        made noisy before, what they were at first.

    Raises
    ------
    TypeError, ValueError
        If the share is no number in [0, 1).

    Examples
    --------
    >>> from sdgpu.nn.data import generated_images
    >>> noisy = with_label_noise(generated_images(100), 0.2)
    >>> int((noisy.labels != noisy.clean_labels).sum())
    20
    """
    if not 0 <= number("label_noise", share) < 1:
        raise ValueError(f"label_noise={share} must be a share in [0, 1), such as 0.2 for a fifth")
    sequence = np.random.SeedSequence(integer("seed", seed, 0), spawn_key=(SEED_PURPOSE,))
    generator = np.random.default_rng(sequence)
    n = len(part)
    rows = generator.permutation(n)[: round(share * n)]
    labels = part.labels.cpu().numpy().copy()
    shifts = generator.integers(1, part.classes, size=len(rows))
    labels[rows] = (labels[rows] + shifts) % part.classes
    clean = part.labels if part.clean_labels is None else part.clean_labels
    return replace(part, labels=torch.from_numpy(labels).to(part.labels.device), clean_labels=clean)
