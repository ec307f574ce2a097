"""Real processes that find each other as under torchrun, each with a time limit."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.problems import finish

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(code, size, *arguments, **environment):
    """Start `code` in `size` processes; each has RANK, WORLD_SIZE and an address to meet at."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, **shared, "RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def run_ranks(code, size, *arguments, limit=60.0, **environment):
    """Run `code` in `size` processes to a good end."""
    workers = start_ranks(code, size, *arguments, **environment)
    told = finish(*workers, seconds=limit)
    for worker, (_, errors) in zip(workers, told, strict=True):
        assert worker.returncode == 0, errors[-3000:]
    return [output for output, _ in told]
