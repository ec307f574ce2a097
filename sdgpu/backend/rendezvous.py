"""How processes find each other: the environment of ``torchrun``, one store, equal versions, one group.

Who does not come is named, with the address where the others waited.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed

from sdgpu.backend.ranks import RankFailure, named, rank_timeout

__all__ = ["check_versions", "own_versions", "ranks", "start_group"]

JOIN = 300.0  # seconds for all to come; hosts of a cluster start minutes apart


def start_group(device: torch.device, timeout: float | None = None) -> None:
    """Initialise the group of processes, unless the caller has: gloo on CPUs, NCCL on CUDA.

    Parameters
    ----------
    device : torch.device
        Of this process.
    timeout : float, optional
        Seconds that ranks wait for each other, :func:`~sdgpu.backend.ranks.rank_timeout`; for the
        others to come 300 at most.

    Raises
    ------
    RankFailure
        If the others cannot be reached; names the address, and who is missing.
    ValueError
        If the environment says something else than numbers, or other ranks have other versions.
    """
    if distributed.is_initialized():
        return
    seconds = rank_timeout(timeout)
    world = ranks()
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = _meet(world["RANK"], world["WORLD_SIZE"], backend, min(seconds, JOIN))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # NCCL works on the current one
    try:
        distributed.init_process_group(
            backend,
            store=distributed.PrefixStore("group", store),
            rank=world["RANK"],
            world_size=world["WORLD_SIZE"],
            timeout=timedelta(seconds=seconds),
        )
    except RuntimeError as error:
        raise RankFailure(
            f"rank {world['RANK']} met the others, but could not connect to them by {backend}: {error}. "
            "Hosts must reach each other on all ports; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the "
            "interface of the network"
        ) from error
    atexit.register(leave_group)


def leave_group() -> None:
    """End the group of this process, if there is one."""
    if distributed.is_initialized():
        # wrappers of models hold the group: its threads end badly if they outlive the interpreter
        gc.collect()
        distributed.destroy_process_group()


def own_versions(backend: str) -> dict[str, str]:
    """Versions of what decides numbers here, and the library that connects the ranks."""
    return {
        "sdgpu": sys.modules["sdgpu"].__version__,  # this floor imports nothing above it
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        # the minor version: 3.11.7 and 3.11.9 compute the same
        "python": ".".join(platform.python_version_tuple()[:2]),
        "backend": backend,
    }


def check_versions(versions: Sequence[dict[str, str]]) -> None:
    """Refuse ranks of different versions.

    Parameters
    ----------
    versions : sequence of dict
        :func:`own_versions` of all ranks, in their order.

    Raises
    ------
    ValueError
        Names what differs, with the ranks of each version.
    """
    different = []
    for name in versions[0]:
        groups: dict[str, list[int]] = {}
        for rank, found in enumerate(versions):
            groups.setdefault(found.get(name, "none"), []).append(rank)
        if len(groups) > 1:
            told = "; ".join(f"{named(members)}: {version}" for version, members in groups.items())
            different.append(f"{name} ({told})")
    if different:
        raise ValueError(
            f"the ranks have different versions of {', '.join(different)}: install the same ones on all "
            "hosts, and give all ranks devices of one kind"
        )


def ranks() -> dict[str, int]:
    """The numbers that ``torchrun`` sets: RANK, LOCAL_RANK and WORLD_SIZE; 0, 0 and 1 alone.

    Raises
    ------
    ValueError
        If one of them is no number, or a rank is not below the size.
    """
    world = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}
    if "WORLD_SIZE" not in os.environ:
        return world  # names that others use too
    for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)):
        text = os.environ.get(name, str(default))
        if not (text.isascii() and text.isdigit()) or (name == "WORLD_SIZE" and int(text) < 1):
            raise ValueError(
                f"the environment says {name}={text!r}, which must be a whole number: unset it, or start "
                "the processes with torchrun"
            )
        world[name] = int(text)
    if world["RANK"] >= world["WORLD_SIZE"] > 1:
        raise ValueError(
            f"the environment says RANK={world['RANK']} of WORLD_SIZE={world['WORLD_SIZE']}: ranks count "
            "from 0; start the processes with torchrun"
        )
    return world


def _meet(rank: int, size: int, backend: str, seconds: float) -> distributed.Store:
    """The store of all ranks, once all have told their versions."""
    address, port = _address()
    place = f"MASTER_ADDR={address} MASTER_PORT={port}"
    # torchrun begins anew with the next attempt, whatever the last one has left in the store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    deadline = time.monotonic() + seconds
    try:
        store: Any = distributed.TCPStore(
            address,
            port,
            is_master=rank == 0 and not agent,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )
        store = distributed.PrefixStore(f"sdgpu/{attempt}", store)
        store.set(f"versions/{rank}", json.dumps(own_versions(backend)))
    except RuntimeError as error:
        raise RankFailure(_nobody(rank, size, place, seconds, error)) from error
    keys = [f"versions/{other}" for other in range(size)]
    try:
        store.wait(keys, timedelta(seconds=max(deadline - time.monotonic(), 0.1)))
        told = [json.loads(store.get(key)) for key in keys]
    except RuntimeError as error:
        missing = _missing(store, keys)
        raise RankFailure(
            f"{named(missing) if missing else 'another rank'} of {size} did not come to {place} within "
            f"{seconds:g} s: start one process for each of WORLD_SIZE={size} ranks, with the same address; "
            "torchrun does",
            tuple(missing),
        ) from error
    try:
        check_versions(told)
    except ValueError:
        _let_all_read(store, rank, size)
        raise
    return store


def _address() -> tuple[str, int]:
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not address:
        raise ValueError(
            "the environment has WORLD_SIZE but no MASTER_ADDR: set it to the host of rank 0, or start the "
            "processes with torchrun"
        )
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(
            f"the environment says MASTER_PORT={port!r}, which must be a port of {address}: set it to the "
            "same free one on all hosts, or start the processes with torchrun"
        )
    return address, int(port)


def _nobody(rank: int, size: int, place: str, seconds: float, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    if rank == 0:
        return f"rank 0 of {size} could not listen at {place} ({reason}): name a free port of this host"
    return (
        f"rank {rank} of {size} found nobody at {place} within {seconds:g} s ({reason}): rank 0 must run "
        "on that host, and this host must reach it; with several hosts torchrun needs --rdzv-endpoint"
    )


def _missing(store: distributed.Store, keys: Sequence[str]) -> list[int]:
    with contextlib.suppress(RuntimeError):
        return [rank for rank, key in enumerate(keys) if not store.check([key])]
    return []


def _let_all_read(store: distributed.Store, rank: int, size: int, seconds: float = 10.0) -> None:
    """The store ends with rank 0, who waits until all have seen why."""
    with contextlib.suppress(RuntimeError):
        if store.add("read", 1) == size:
            store.set("all read", "yes")
        if rank == 0:
            store.wait(["all read"], timedelta(seconds=seconds))
