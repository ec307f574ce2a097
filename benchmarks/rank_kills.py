"""Random kills of fits on ranks under torchrun: `python -m benchmarks.rank_kills --kills 50`.

A fit of one problem on two or three processes that save at every pass. One of them, chosen at random, is
sent SIGKILL at a random moment; `torchrun --max-restarts` starts all again. Told are the largest difference
of the fitted values from those of a fit that nobody killed, and how much of the work was done again: passes
that were gone through more than once, and one for each kill that was under way, over all passes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORK = """
import os, sys, time
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
import sdgpu
from sdgpu.backend.ranks import row_shares
from sdgpu.backend.torch_ranks import join_ranks
from sdgpu.solvers import checkpoint

checkpoint.INTERVAL, checkpoint.SHARE = 0.0, np.inf  # at every pass
folder, n = Path(sys.argv[1]), int(sys.argv[2])
ranks = join_ranks(timeout=60.0)
(folder / f"pid-{ranks.rank}").write_text(str(os.getpid()))
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((n, 4)), rng.standard_normal(n)
rows = row_shares(n, ranks.size)[ranks.rank]
fresh = True

def progress(event):
    global fresh
    if ranks.rank == 0 and event.stage == "passes" and event.total > 1:
        with open(folder / "passes", "a") as log:
            log.write(f"{event.done} {int(fresh and event.done > 1)}\\n")  # loaded, not made
        fresh = False

fit = sdgpu.fit(X[rows], Y[rows], sdgpu.Gaussian(2.0), 0.1, method="lanczos", tol=1e-10, dtype="float64",
    checkpoint=folder / "basis.safetensors", distributed=ranks, progress=progress)
fitted = ranks.gather_rows(fit.path(0.1, 0.3, 3).fitted.T)
if ranks.rank == 0:
    np.save(folder / "fitted.npy", fitted)
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def made(folder: Path) -> list[int]:
    """Passes that were gone through, in their order."""
    path = folder / "passes"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [int(line.split()[0]) for line in lines if line.endswith(" 0")]


def run(
    folder: Path, n: int, size: int, kills: int, seed: int, whole: int = 0
) -> tuple[int, float]:
    """A fit under torchrun with so many kills: how many there were, and the longest restart."""
    folder.mkdir()
    (folder / "work.py").write_text(WORK)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}"]
    command += [f"--max-restarts={kills}", "--master-addr=127.0.0.1"]
    command += [f"--master-port={free_port()}", str(folder / "work.py"), str(folder), str(n)]
    root = str(Path(__file__).parents[1])
    how = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    draw, done, slowest = random.Random(seed), 0, 0.0
    goals = sorted(draw.randint(1, max(whole - 1, 1)) for _ in range(kills))
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=root, env=how, stdout=errors, stderr=errors)
        try:
            while process.poll() is None:
                time.sleep(0.005)
                passes = made(folder)
                if done < kills and passes and max(passes) >= goals[done]:
                    time.sleep(draw.uniform(0.0, 0.2))
                    victim = int((folder / f"pid-{draw.randrange(size)}").read_text())
                    before, start = len(made(folder)), time.monotonic()
                    try:
                        os.kill(victim, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    done += 1
                    while process.poll() is None and len(made(folder)) <= before:
                        time.sleep(0.02)
                        assert time.monotonic() - start < 120, "nothing went on"
                    slowest = max(slowest, time.monotonic() - start)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0, (folder / "errors").read_text()[-2000:]
    return done, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--each", type=int, default=2, help="kills of a run")
    parser.add_argument("--n", type=int, default=3000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        run(base / "whole", options.n, 2, 0, 0)
        truth, whole = np.load(base / "whole/fitted.npy"), len(made(base / "whole"))
        print(f"{whole} passes without a kill", flush=True)
        kills, again, total, error, slowest, number = 0, 0, 0, 0.0, 0.0, 0
        while kills < options.kills:
            folder, size = base / str(number), 2 + number % 2
            count = min(options.each, options.kills - kills)
            found, restart = run(folder, options.n, size, count, number, whole)
            passes = made(folder)
            again += len(passes) - len(set(passes)) + found  # what was under way
            total += len(set(passes))
            fitted = np.load(folder / "fitted.npy")
            error = max(error, float(abs(fitted - truth).max() / abs(truth).max()))
            kills, slowest, number = kills + found, max(slowest, restart), number + 1
            print(
                f"{kills} kills in {number} fits: {again} of {total} passes again "
                f"({100 * again / total:.1f} %), largest difference {error:.1e}, "
                f"{slowest:.1f} s to go on at the most",
                flush=True,
            )


if __name__ == "__main__":
    main()
