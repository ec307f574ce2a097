"""Processes that share a training: NCCL on GPUs, gloo in a dry run; and what each of them runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import torch
from torch import distributed

from benchmarks.gpu_check.check import Setting, Skipped

__all__ = ["one", "two"]


def one(setting: Setting) -> dict[str, Any]:
    """A group of one: the library starts."""
    return _launch(setting, 1)


def two(setting: Setting) -> dict[str, Any]:
    """Sums, copies, messages, and a training that ends as that of one process."""
    if setting.device == "cuda" and torch.cuda.device_count() < 2:
        raise Skipped(f"NCCL wants a GPU for each rank, and there are {torch.cuda.device_count()}")
    return _launch(setting, 2)


def _launch(setting: Setting, count: int) -> dict[str, Any]:
    # one machine without a network: everything goes through the loopback
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
    environment = {**os.environ, **dict.fromkeys(names, "lo"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "1",
        "--nproc-per-node",
        str(count),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command += ["-m", "benchmarks.gpu_check.ranks", setting.device]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert run.returncode == 0, run.stderr[-3000:]
    assert lines, run.stdout[-3000:]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main(kind: str) -> None:
    """What each rank does; the first prints."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    found: dict[str, Any] = {"backend": distributed.get_backend(), "ranks": size}
    total = torch.full((1000,), float(rank + 1), device=device, dtype=torch.float64)
    distributed.all_reduce(total)
    assert float(total[0]) == size * (size + 1) / 2
    copy = torch.full((1000,), float(rank), device=device)
    distributed.broadcast(copy, src=size - 1)
    assert float(copy[-1]) == size - 1
    parts = [torch.empty(10, device=device) for _ in range(size)]
    distributed.all_gather(parts, torch.full((10,), float(rank), device=device))
    assert [float(part[0]) for part in parts] == list(range(size))
    if size > 1:  # even ranks send first
        mine, theirs = torch.full((10,), float(rank), device=device), torch.empty(10, device=device)
        peer = rank ^ 1
        for sends in (rank % 2 == 0, rank % 2 == 1):
            (distributed.send if sends else distributed.recv)(mine if sends else theirs, peer)
        assert float(theirs[0]) == peer
    found |= _training(device)
    found |= _fit(device, rank, size)
    if rank == 0:
        print(json.dumps(found))
    distributed.destroy_process_group()


def _training(device: torch.device) -> dict[str, Any]:
    """The trainer as a group: it joins the one that is there, or makes its own."""
    from sdgpu.nn.config import Config
    from sdgpu.nn.data import load_images
    from sdgpu.nn.resnet import make_model
    from sdgpu.nn.trainer import train

    data = load_images("generated", device=device, rows=400)
    torch.manual_seed(0)
    model = make_model("smallcnn", classes=10, channels=3)
    result = train(model, data, None, Config(epochs=1, batch=40, lr=1e-3))
    loss = result.history[-1].train_loss
    whole = torch.tensor([loss, -loss], dtype=torch.float64, device=device)
    distributed.all_reduce(whole, distributed.ReduceOp.MAX)
    assert float(whole[0]) == -float(whole[1]), "ranks disagree about the loss"
    return {"train loss": loss, "images a second": result.images_per_second}


def _fit(device: torch.device, rank: int, size: int) -> dict[str, Any]:
    """The fit of rows that are on several ranks, against that of all rows on one."""
    import sdgpu

    draw = torch.Generator().manual_seed(0)
    X = torch.randn(1500, 4, generator=draw, dtype=torch.float64)
    Y = torch.sin(X.sum(dim=1)) + 0.1 * torch.randn(1500, generator=draw, dtype=torch.float64)
    w = torch.rand(1500, generator=draw, dtype=torch.float64) + 0.5
    X, Y, w = X.to(device), Y.to(device), w.to(device)
    mine = slice(1500 * rank // size, 1500 * (rank + 1) // size)
    how: dict[str, Any] = {"kernel": sdgpu.Gaussian(0.2), "lams": 1.0, "method": "lanczos"}
    how |= {"device": str(device), "intercept": True}
    shared = sdgpu.fit(X[mine], Y[mine], sample_weight=w[mine], distributed=True, **how)
    alone = sdgpu.fit(X, Y, sample_weight=w, operator="tiled", **how)
    found: dict[str, Any] = {"passes": shared.info.passes}
    for name, near in (("fitted", 1e-6), ("left out", 1e-4)):
        one, all_rows = (
            fit.path(alphas=0.3, steps=3).fitted
            if name == "fitted"
            else fit.loo(alphas=0.3, steps=3)
            for fit in (shared, alone)
        )
        difference = float((one - all_rows[:, mine]).abs().max())
        assert difference < near, f"{name} of {size} ranks are off by {difference:.1e}"
        found[f"difference, {name}"] = difference
    return found


if __name__ == "__main__":
    main(sys.argv[1])
