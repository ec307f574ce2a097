"""Small images, networks and data for the tests of training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from sdgpu.nn.data import Data, images_from_arrays
from tests.problems import finish

CLASSES = 3


def images(n, seed, *, channels=1, size=4):
    """Uniform bytes, with labels that depend on the mean of a corner."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, channels, size, size), generator=generator).byte()
    corner = pixels[:, 0, :2, :2].double().mean(dim=(1, 2))
    labels = (corner.argsort().argsort() * CLASSES) // n
    return images_from_arrays(pixels, labels, classes=CLASSES)


def data(n=24, *, size=4, channels=1):
    parts = [images(m, seed, channels=channels, size=size) for seed, m in enumerate((n, 15, 12))]
    # all with the moments of the training part
    from dataclasses import replace

    mean, std = parts[0].mean, parts[0].std
    return Data(*(replace(part, mean=mean, std=std) for part in parts))


def mlp(seed=0, *, size=4, channels=1, width=8, dropout=0.0, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(channels * size * size, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        return nn.Sequential(*layers, nn.Linear(width, CLASSES)).to(dtype)


def convnet(seed=0, *, channels=1, dtype=torch.float64):
    """With batch norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        ).to(dtype)


def state(model):
    return torch.cat([t.detach().double().reshape(-1) for t in model.state_dict().values()])


def same_bits(one, two):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def two_ranks(code, folder):
    """Run `code` with the folder as its argument in two processes that find each other, to a good end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "PYTHONPATH": str(root)},
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker, (_, errors) in zip(workers, finish(*workers), strict=True):
        assert worker.returncode == 0, errors[-3000:]


def stop_after(batches):
    """A hook of progress that ends a run by an error of its own, StopError."""

    def hook(event):
        if event.done == batches:
            raise StopError

    return hook


class StopError(Exception):
    """What a test ends a run with."""
