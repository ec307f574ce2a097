"""Teams of ranks that hold their rows together: the layout of 1.5 dimensions, with a ring as much shorter.

p ranks are p / q teams of q neighbours. Each member of a team has the rows of all its members, and
multiplies them with every q-th piece of the ring of teams, from another one on than the other members. So a
piece makes p / q^2 steps, and a rank receives 1 / q of the rows; the sums of a team stay in it.

Driscoll, Georganas, Koanantakool, Solomonik and Yelick (2013), A communication-optimal n-body algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sdgpu.backend.checks import integer
from sdgpu.backend.sharded_arrays import RowLayout

__all__ = ["RowTeams"]


@dataclass(frozen=True, eq=False)
class RowTeams:
    """Who is in a team with whom, and what travels. Every method is called by all ranks.

    Parameters
    ----------
    layout : RowLayout
    copies : int
        q, members of a team; the number of ranks is a multiple of it, and no team has more than there are
        teams.

    Raises
    ------
    ValueError
        For another number.
    """

    layout: RowLayout
    copies: int

    def __post_init__(self) -> None:
        q, p = integer("copies", self.copies, 1), self.layout.ranks.size
        if p % q or q * q > p:
            raise ValueError(
                f"copies={q} are not for {p} ranks: they must divide the ranks, and their square be no more"
            )

    @property
    def teams(self) -> int:
        """p / q."""
        return self.layout.ranks.size // self.copies

    @property
    def team(self) -> int:
        """That of this rank."""
        return self.layout.ranks.rank // self.copies

    @property
    def member(self) -> int:
        """Number of this rank in its team."""
        return self.layout.ranks.rank % self.copies

    def together(self, own: Any) -> Any:
        """Own rows (m, ..) -> those of the whole team, in the order of its members."""
        import torch

        routes = [self._within(1)] * (self.copies - 1)
        pieces = dict(self.layout.ranks.ring(own, routes))
        return torch.cat([pieces[rank] for rank in sorted(pieces)])

    def pieces(self, rows: Any) -> Iterator[tuple[int, Any]]:
        """(team, its `rows`) of every q-th team: each piece comes to one member of each team."""
        q, rounds = self.copies, -(-self.teams // self.copies)
        first = [self._number(team + member, member) for team, member in self._everyone()]
        later = [self._number(team + q, member) for team, member in self._everyone()]
        found = self.layout.ranks.ring(rows, [first, *[later] * (rounds - 1)])
        for step, (owner, piece) in enumerate(found):
            # the first is the own piece, before the members have parted
            if step and self.member + (step - 1) * q < self.teams:
                yield owner // q, piece

    def own_sum(self, share: Any) -> Any:
        """Sums over the team of what each member made for its rows (m_team, c); the own rows of it."""
        ranks, q = self.layout.ranks, self.copies
        starts, base = self.layout.starts, self.layout.starts[self.team * q]

        def rows_for(member: int) -> Any:
            rank = self.team * q + member
            start = starts[rank] - base
            return share[start : start + self.layout.counts[rank]].contiguous()

        made = {self.member: rows_for(self.member)}
        for hop in range(1, q):
            to = rows_for((self.member + hop) % q)
            *_, (owner, piece) = ranks.ring(to, [self._within(hop)])
            made[owner % q] = piece
        total = made[0].clone()
        for member in range(1, q):  # the same order in every run
            total += made[member]
        return total

    def _everyone(self) -> list[tuple[int, int]]:
        """(team, member) of each rank."""
        return [divmod(rank, self.copies) for rank in range(self.layout.ranks.size)]

    def _number(self, team: int, member: int) -> int:
        return (team % self.teams) * self.copies + member

    def _within(self, hop: int) -> list[int]:
        """To the member so many places further on in the own team."""
        q = self.copies
        return [self._number(team, (member + hop) % q) for team, member in self._everyone()]
