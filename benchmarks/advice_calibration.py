"""How often advice is right: `python -m benchmarks.advice_calibration [DRAWS]`, 200 draws of each model.

Spiked models (`sdgpu/study/theory/spiked.py`) with the number of spikes known, and models where tuned
ridge is the best: without spikes, with spikes that carry no more signal than other directions, Gaussian
processes, and noise that is heavy-tailed or differs by row. A line for each: oracle risks of 1, 2, ..
steps, shares of draws in which advice took fewer, as many and more steps than spikes, what it said is
saved beside what is, and how often the two are within two standard errors.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import sdgpu
from sdgpu.distill.joint_weights import joint_weights
from sdgpu.distill.schedules import tails
from sdgpu.study.theory.spiked import SpikedModel

STEPS = 5
ORACLE = 20  # draws of which the best risks are computed

#: Models whose every spike is worth a step, by what the oracle saves with it.
SPIKED = (
    SpikedModel(400, 600),
    SpikedModel(400, 600, (30.0,), (2.0,)),
    SpikedModel(600, 1800, (1400.0, 9.0), (50.0, 2.2), noise=1.4),
    SpikedModel(1000, 3000, (1780.0, 83.0, 7.0), (50.0, 2.4, 2.2), noise=1.4),
)
#: Models whose last step is worth less than their rows can always tell.
HARDER = (
    SpikedModel(800, 2400, (1780.0, 83.0, 7.0), (50.0, 2.4, 2.2), noise=1.4),
    SpikedModel(400, 600, (30.0,), (1.0,)),
    SpikedModel(400, 600, (60.0, 8.0), (1.0, 1.0)),
)
#: Nothing to gain, other shapes.
NULL = (
    SpikedModel(400, 200, noise=0.5),
    SpikedModel(200, 600),
    SpikedModel(100, 50),
    SpikedModel(400, 600, (60.0, 8.0), (1 / 600, 1 / 600)),
)


@dataclass(frozen=True, eq=False)
class Drawn:
    """What advice said of a draw, beside the oracle: steps, gain, its error, what is saved, risks (T,)."""

    steps: int
    gain: float
    error: float
    saved: float
    risks: np.ndarray


def of_spikes(model: SpikedModel, seed: int) -> Drawn:
    """One draw."""
    draw = model.draw(seed)
    low = float(model.lams(2)[0])
    advice = sdgpu.fit(draw.X, draw.Y, "linear", [low], method="eigh").advise(steps=STEPS)
    table, lams = advice.table, model.lams(40)[: 40 if seed < ORACLE else 1]
    chosen = table["lam"].values
    triangles = draw.triangles(np.concatenate([lams, chosen]), STEPS)
    expected = np.asarray(triangles.expected(model.noise))
    risks = joint_weights(expected[: len(lams)]).losses.min(axis=0)
    carried_out = []
    for t in range(STEPS):
        weights = table["alpha"].values[t, :t]
        products = np.concatenate([tails(weights), np.zeros(STEPS - 1 - t), [1.0]])
        carried_out.append(float(np.sum((expected[len(lams) + t] @ products) ** 2)))
    return Drawn(
        steps=advice.steps,
        gain=advice.gain,
        error=advice.standard_error,
        saved=carried_out[0] - carried_out[max(advice.steps, 2) - 1],
        risks=risks,
    )


def spiked_line(model: SpikedModel, draws: int) -> str:
    """A row of the table in Markdown."""
    start, spikes = time.perf_counter(), len(model.spikes)
    found = [of_spikes(model, seed) for seed in range(draws)]
    steps = np.array([one.steps for one in found]) - 1
    gain, error, saved = (
        np.array([getattr(one, name) for one in found]) for name in ("gain", "error", "saved")
    )
    risks = np.mean([one.risks for one in found[:ORACLE]], axis=0)
    cells = [
        f"{model.n} x {model.p}",
        " ".join(f"{spike:g}" for spike in model.spikes) or "none",
        " ".join(f"{value:.3g}" for value in model.signal),
        f"{model.noise:g}",
        " ".join(f"{risk:.4g}" for risk in risks),
        f"{100 * np.mean(steps < spikes):.1f}",
        f"**{100 * np.mean(steps == spikes):.1f}**",
        f"{100 * np.mean(steps > spikes):.1f}",
        f"{gain.mean():.3g}, {saved.mean():.3g}",
        f"{100 * np.mean(np.abs(gain - saved) <= 2 * error):.0f}",
        f"{time.perf_counter() - start:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def process(seed: int, kernel: sdgpu.Gaussian, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian process of the kernel that fits it, with noise: ridge is the best of all estimators."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, 3))
    delta, V = np.linalg.eigh(kernel(X))
    F = V @ (np.sqrt(np.maximum(delta, 0)) * rng.standard_normal(rows))
    return X, F + 0.5 * rng.standard_normal(rows)


def heavy(seed: int, kernel: sdgpu.Gaussian) -> tuple[np.ndarray, np.ndarray]:
    """The same with noise of a t distribution with 3 degrees of freedom."""
    X, Y = process(seed, kernel)
    return X, Y + 0.5 * np.random.default_rng([seed, 1]).standard_t(3, len(X))


def by_row(seed: int, kernel: sdgpu.Gaussian) -> tuple[np.ndarray, np.ndarray]:
    """The same with noise that grows with the first feature."""
    X, Y = process(seed, kernel)
    return X, Y + np.exp(X[:, 0]) * np.random.default_rng([seed, 1]).standard_normal(len(X))


def null_line(make: Callable[..., tuple[np.ndarray, np.ndarray]], draws: int) -> str:
    """Share of draws in which something is claimed."""
    kernel = sdgpu.Gaussian(0.2)
    claims = [
        sdgpu.fit(*make(seed, kernel), kernel, [1e-3], method="eigh").advise(steps=STEPS).worthwhile
        for seed in range(draws)
    ]
    name = (make.__doc__ or "").split(":")[0].rstrip(".")
    return f"| {name} | {100 * np.mean(claims):.1f} |"


def main() -> None:
    """Print both tables."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    head = (
        "rows x p",
        "spikes",
        "signal",
        "noise",
        "oracle risk of 1 .. 5 steps",
        "fewer, %",
        "as many, %",
        "more, %",
        "said, saved",
        "in 2 se, %",
        "time",
    )
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for model in (*SPIKED, *HARDER, *NULL):
        print(spiked_line(model, draws), flush=True)
    print("\n| nothing to gain | claimed, % |\n|---|---|", flush=True)
    for make in (process, heavy, by_row):
        print(null_line(make, draws), flush=True)


if __name__ == "__main__":
    main()
