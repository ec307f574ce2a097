"""Who is alive: one thread of every rank holds a line to rank 0, which tells all of the first failure.

A process that dies closes its line at once, whatever killed it; a host that vanishes is silent. A rank
that fails by an error says so before it ends. Collectives of torch.distributed know none of that: they
wait until their time-out, or say that some connection was closed.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdgpu.backend.ranks import RankFailure, named

__all__ = ["RankWatch"]

BEAT = 1.0  # seconds between signs of life
SILENCE = 8.0  # seconds without one after which a rank is dead, with BEAT less than 10
GRACE = 3.0  # seconds that a broken connection waits for its explanation
LINE = 65536  # bytes of a message, at most


@dataclass(eq=False)
class _Line:
    """A connection to another rank."""

    rank: int
    host: str
    pid: int
    connection: socket.socket
    silent: float = 0.0
    received: bytes = b""
    calls: int = 0
    place: str = "the start"
    left: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


class RankWatch:
    """The watch of one rank.

    Parameters
    ----------
    rank, size : int
    first : callable
        Tells all ranks a small value of rank 0: where to connect, and a secret, so that strangers cannot.
    seconds : float
        For the connections.
    silence : float, optional
        Seconds after which a silent rank is dead; SDGPU_RANK_SILENCE, else 8.

    Raises
    ------
    RankFailure
        If rank 0 cannot be reached.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        first: Callable[[Any], Any],
        *,
        seconds: float,
        silence: float | None = None,
    ) -> None:
        self.rank, self.size = rank, size
        self.silence = _silence(silence)
        self.failure: tuple[str, tuple[int, ...]] | None = None
        self._calls, self._place = 0, "the start"
        self._barrier, self._released = 0, 0
        self._arrived: dict[int, set[int]] = {}
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._lines = self._listen(first, seconds) if rank == 0 else self._connect(first, seconds)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sdgpu-watch", daemon=True)
        self._thread.start()

    def enter(self, place: str) -> None:
        """Note that this rank has come to its next meeting with the others."""
        self._calls += 1
        self._place = place
        self.check()

    def check(self) -> None:
        """Raise RankFailure if a rank has failed."""
        if self.failure is not None:
            raise RankFailure(*self.failure)

    def explain(self, message: str) -> RankFailure:
        """What went wrong when a connection broke: the failure of a rank if one is told, or `message`."""
        self._hand_in({"kind": "lost", "place": self._place})
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None, GRACE)
        if self.failure is not None:
            return RankFailure(*self.failure)
        after = ": rank 0 had ended before" if self.rank and self._lines[0].left else ""
        return RankFailure(f"rank {self.rank} {message}{after}")

    def late(self, seconds: float) -> RankFailure:
        """What to raise when the others did not come: asks rank 0 who is missing."""
        self._hand_in(
            {"kind": "late", "calls": self._calls, "place": self._place, "waited": seconds}
        )
        return self.explain(f"waited {seconds:g} s in {self._place} for the others")

    def fail(self, text: str) -> None:
        """Tell all ranks that this one failed; it meets them no more, whatever it still tries."""
        self._hand_in({"kind": "failed", "text": text[:2000]})
        self._decide(f"rank {self.rank} failed: {text[:2000]}", (self.rank,))

    def barrier(self, name: str, seconds: float) -> None:
        """Wait until all ranks are here.

        Raises
        ------
        RankFailure
            If one failed, or did not come in time; names it.
        """
        if not self.all_come(name, seconds):
            raise self.late(seconds)

    def all_come(self, name: str, seconds: float) -> bool:
        """Wait until all ranks are here, and say whether they came; if not, nothing is decided by it.

        Raises
        ------
        RankFailure
            If one failed.
        """
        self.enter(name)
        self._barrier += 1
        self._hand_in({"kind": "here", "barrier": self._barrier})
        with self._changed:
            self._changed.wait_for(
                lambda: self._released >= self._barrier or self.failure is not None, seconds
            )
        self.check()
        return self._released >= self._barrier

    def close(self) -> None:
        """Leave in good order: the others are told that this is no death."""
        self._closing = True
        self._send({"kind": "left"}, *self._lines.values())
        self._thread.join(timeout=2 * BEAT)
        for line in self._lines.values():
            line.connection.close()

    # connections

    def _listen(self, first: Callable[[Any], Any], seconds: float) -> dict[int, _Line]:
        """Rank 0: a line from every other rank."""
        address = os.environ.get("MASTER_ADDR", "")
        local = address in ("localhost", "::1") or address.startswith("127.")
        if local or not socket.has_dualstack_ipv6():
            server = socket.create_server(("127.0.0.1" if local else "", 0), backlog=self.size)
        else:
            server = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=self.size
            )
        secret = secrets.token_hex(16)
        name = socket.gethostname()
        addresses = ["127.0.0.1"] if local else list(dict.fromkeys(filter(None, [address, name])))
        first(
            {
                "addresses": addresses,
                "port": server.getsockname()[1],
                "secret": secret,
                "host": name,
                "pid": os.getpid(),
            }
        )
        lines: dict[int, _Line] = {}
        deadline = time.monotonic() + seconds
        with server:
            while len(lines) < self.size - 1:
                left = deadline - time.monotonic()
                if left <= 0:
                    missing = tuple(sorted(set(range(1, self.size)) - set(lines)))
                    for line in lines.values():
                        line.connection.close()
                    raise RankFailure(
                        f"{named(missing)} did not connect to port {server.getsockname()[1]} of "
                        f"{addresses} within {seconds:g} s: hosts must reach each other on all ports",
                        missing,
                    )
                server.settimeout(left)
                with contextlib.suppress(OSError):
                    greeted = _greeted(server.accept()[0], secret, self.size)
                    if greeted is not None:
                        lines[greeted.rank] = greeted
        return lines

    def _connect(self, first: Callable[[Any], Any], seconds: float) -> dict[int, _Line]:
        """Every other rank: a line to rank 0."""
        told = first(None)
        errors = []
        for address in told["addresses"]:
            try:
                connection = socket.create_connection((address, told["port"]), min(seconds, 30.0))
                greeting = {
                    "secret": told["secret"],
                    "rank": self.rank,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                }
                connection.sendall(_line(greeting))
            except OSError as error:
                errors.append(f"{address}: {error}")
                continue
            _prepare(connection)
            return {0: _Line(0, told["host"], told["pid"], connection)}
        raise RankFailure(
            f"rank {self.rank} could not reach rank 0 at port {told['port']} ({'; '.join(errors)}): hosts "
            "must reach each other on all ports",
            (0,),
        )

    # the thread

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for line in self._lines.values():
                selector.register(line.connection, selectors.EVENT_READ, line)
            beaten = looked = 0.0
            while not self._closing and selector.get_map():
                for key, _ in selector.select(BEAT / 2):
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                # what this rank slept through, stopped or starved, is no silence of the others
                awake, looked = min(now - looked, BEAT), now
                if now - beaten >= BEAT:
                    beaten = now
                    beat = {"kind": "beat", "calls": self._calls, "place": self._place}
                    self._send(beat, *self._lines.values())
                for line in self._lines.values():
                    line.silent += awake
                    if not line.left and line.silent > self.silence:
                        self._dead(line, f"has given no sign of life for {self.silence:g} s")

    def _read(self, line: _Line) -> bool:
        """Take in what a line brings; False when it has ended."""
        try:
            content = line.connection.recv(LINE)
        except OSError:
            content = b""
        if not content:
            if not line.left:
                self._dead(line, "died: its connection was closed without a word")
            line.left = True
            return False
        line.silent = 0.0
        *complete, line.received = (line.received + content).split(b"\n")
        for text in complete:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._take(line.rank, json.loads(text))
        return len(line.received) <= LINE

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        """Act on what `rank` says; on rank 0 also what rank 0 says itself."""
        kind = message["kind"]
        if kind == "beat" and rank in self._lines:
            self._lines[rank].calls = int(message["calls"])
            self._lines[rank].place = str(message["place"])
        elif kind == "left" and rank in self._lines:
            self._lines[rank].left = True
        elif kind == "verdict":
            self._decide(str(message["text"]), tuple(map(int, message["ranks"])))
        elif kind == "released":
            self._release(int(message["barrier"]))
        elif self.rank == 0:
            self._judge(rank, kind, message)

    def _judge(self, rank: int, kind: str, message: dict[str, Any]) -> None:
        """Rank 0: what follows from what a rank says."""
        if kind == "failed":
            where = "" if rank == 0 else f" on {self._lines[rank].host}"
            self._decide(f"rank {rank}{where} failed: {message['text']}", (rank,))
        elif kind == "here":
            barrier = int(message["barrier"])
            with self._changed:
                arrived = self._arrived.setdefault(barrier, set())
                arrived.add(rank)
                complete = len(arrived) == self.size
            if complete:
                del self._arrived[barrier]
                self._send({"kind": "released", "barrier": barrier}, *self._lines.values())
                self._release(barrier)
        elif kind == "lost":
            gone = tuple(line.rank for line in self._lines.values() if line.left)
            if gone:
                self._decide(
                    f"{named(gone)} ended while rank {rank} was in {message['place']}", gone
                )
        elif kind == "late":
            self._decide(*self._who_is_late(rank, message))

    def _who_is_late(self, rank: int, message: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
        calls = {line.rank: (line.calls, line.place) for line in self._lines.values()}
        calls[0] = self._calls, self._place
        behind = tuple(sorted(r for r, (count, _) in calls.items() if count < message["calls"]))
        waited = f"rank {rank} waited {message['waited']:g} s in {message['place']}"
        if not behind:
            return f"{waited}, where all had come: the network is stuck", ()
        last = ", ".join(f"rank {r} was last in {calls[r][1]}" for r in behind[:8])
        return f"{waited}; {named(behind)} did not come ({last})", behind

    def _dead(self, line: _Line, how: str) -> None:
        self._decide(f"{line} {how}", (line.rank,))

    def _decide(self, text: str, ranks: tuple[int, ...]) -> None:
        """The first failure is the one that all are told."""
        with self._changed:
            if self.failure is not None:
                return
            self.failure = text, ranks
            self._changed.notify_all()
        if self.rank == 0:
            verdict = {"kind": "verdict", "text": text, "ranks": list(ranks)}
            self._send(verdict, *self._lines.values())

    def _release(self, barrier: int) -> None:
        with self._changed:
            self._released = max(self._released, barrier)
            self._changed.notify_all()

    def _hand_in(self, message: dict[str, Any]) -> None:
        """Say something to rank 0, who may be this one."""
        if self.rank == 0:
            self._take(0, message)
        else:
            self._send(message, *self._lines.values())

    def _send(self, message: dict[str, Any], *lines: _Line) -> None:
        content = _line(message)
        with self._sending:
            for line in lines:
                if not line.left:
                    with contextlib.suppress(OSError):  # whoever is gone is noticed by reading
                        line.connection.sendall(content)


def _greeted(connection: socket.socket, secret: str, size: int) -> _Line | None:
    """The line of a rank that knows the secret; strangers are sent away."""
    connection.settimeout(5.0)
    content = b""
    try:
        while b"\n" not in content and len(content) < 1024:
            part = connection.recv(1024)
            if not part:
                break
            content += part
        greeting, _, rest = content.partition(b"\n")  # its first sign of life may follow at once
        told = json.loads(greeting)
        known = hmac.compare_digest(str(told["secret"]).encode(), secret.encode())
        rank = int(told["rank"])
        if known and 0 < rank < size:
            _prepare(connection)
            return _Line(rank, str(told["host"]), int(told["pid"]), connection, received=rest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    connection.close()
    return None


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(5.0)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _silence(seconds: float | None) -> float:
    text = os.environ.get("SDGPU_RANK_SILENCE")
    value = seconds if seconds is not None else text
    if value is None:
        return SILENCE
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 2 * BEAT <= number < 1e7:
        raise ValueError(
            f"SDGPU_RANK_SILENCE={value!r} must be a number of seconds, at least {2 * BEAT:g}"
        )
    return number
