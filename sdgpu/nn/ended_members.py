"""Members of a stack whose training has ended before that of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

__all__ = ["EndedMembers"]


class EndedMembers:
    """They stay in the stack, and every step of it is taken back for them: their weights are the record.

    So a checkpoint needs nothing but their numbers, and the rest of the training sees networks that do not
    move.

    Attributes
    ----------
    epochs : dict of int
        By member: the epoch, from 1, after which it ended.
    """

    def __init__(self) -> None:
        self.epochs: dict[int, int] = {}
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._members = torch.empty(0, dtype=torch.int64, device="cpu")

    def end(self, members: Iterable[int], epoch: int, models: Iterable[nn.Module]) -> None:
        """Keep these members as they are now, in the stack and in the average of its weights."""
        self.restore(self.epochs | dict.fromkeys(members, epoch), models)

    @torch.no_grad()
    def restore(self, epochs: Mapping[int, int], models: Iterable[nn.Module]) -> None:
        """Keep those of a checkpoint as they are in `models`."""
        self.epochs = {int(member): int(epoch) for member, epoch in epochs.items()}
        self._kept = []
        if not self.epochs:
            return
        tensors = [tensor for one in models for tensor in (*one.parameters(), *one.buffers())]
        self._members = torch.tensor(sorted(self.epochs), device=tensors[0].device)
        self._kept = [(tensor, tensor[self._members].clone()) for tensor in tensors]

    @torch.no_grad()
    def put_back(self) -> None:
        """After a step: give them the weights and statistics that they had."""
        for tensor, kept in self._kept:
            tensor.index_copy_(0, self._members, kept)
