"""Losses and hits of the batches of an epoch: added up on the device, read now and then."""

from __future__ import annotations

import math

import torch

from sdgpu.backend.distributed import World

__all__ = ["EpochSums"]


class EpochSums:
    """What the batches of one epoch gave, one number each, for every member of a stack.

    Reading waits for the device, so it is done for many batches at once. Under several processes every
    rank has the sums over its own rows.

    Parameters
    ----------
    batches : int
        Of an epoch.
    members : int or None
        Of a stack.
    device : torch.device

    Attributes
    ----------
    losses, hits : tensor (batches,) or (members, batches), float64
    read : int
        Batches that have been looked at.
    """

    def __init__(self, batches: int, members: int | None, device: torch.device) -> None:
        shape = (batches,) if members is None else (members, batches)
        self.losses = torch.zeros(shape, dtype=torch.float64, device=device)
        self.hits = torch.zeros(shape, dtype=torch.float64, device=device)
        self.read = 0

    def add(self, batch: int, loss: torch.Tensor, hits: torch.Tensor) -> None:
        """Count a part of a batch: its share of the mean loss, and rows whose largest output is the label.

        Parameters
        ----------
        batch : int
        loss, hits : tensor () or (members,)
        """
        self.losses[..., batch].add_(loss)
        self.hits[..., batch].add_(hits)

    def look(self, batches: int, world: World) -> tuple[int, float] | None:
        """Look at the losses from the last look up to `batches`, and wait for them.

        Returns
        -------
        (batch, loss) or None
            The first that is not finite, over all members, with its number in the epoch.
        """
        losses = self.losses[..., self.read : batches]
        if world.size > 1:
            losses = world.sum(losses.clone())
        first, self.read = self.read, batches
        if math.isfinite(losses.sum().item()):  # one number; the sum of what is finite
            return None
        members = losses.reshape(-1, losses.shape[-1]).cpu()
        nonfinite = ~torch.isfinite(members).all(dim=0)
        if not bool(nonfinite.any()):
            return None
        batch = int(nonfinite.int().argmax())
        return first + batch, float(members[:, batch].sum())

    def means(
        self, n: int, size: int, world: World
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Mean loss and accuracy of the epoch, () or (members,) each, on the host.

        Batches without a finite loss, which overflowed in float16 and changed nothing, are left out of
        the mean; None if there is no other.

        Parameters
        ----------
        n : int
            Rows of an epoch.
        size : int
            Of a batch; the last one has what is left.
        world : World
        """
        losses = world.sum(self.losses.clone()).cpu()
        batches = losses.shape[-1]
        sizes = torch.full((batches,), float(size), dtype=torch.float64, device="cpu")
        sizes[-1] = n - (batches - 1) * size
        finite = torch.isfinite(losses)
        if not bool(finite.any()):
            return None, None
        mean = losses.nan_to_num(0.0, 0.0, 0.0) @ sizes / (finite.double() @ sizes)
        return mean, world.sum(self.hits.clone()).cpu().sum(dim=-1) / n

    def clear(self) -> None:
        """Begin an epoch."""
        self.losses.zero_()
        self.hits.zero_()
        self.read = 0

    def of_all(self, world: World) -> dict[str, torch.Tensor]:
        """The sums of all ranks, for a checkpoint."""
        return {
            "losses": world.sum(self.losses.clone()).cpu(),
            "hits": world.sum(self.hits.clone()).cpu(),
        }

    def restore(self, sums: dict[str, torch.Tensor], batches: int, world: World) -> None:
        """Take up what :meth:`of_all` gave after so many batches."""
        self.read = batches
        # sums of all ranks: kept by the first, so that they are not counted again
        if world.rank == 0:
            self.losses.copy_(sums["losses"])
            self.hits.copy_(sums["hits"])
