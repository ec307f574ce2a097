"""Learning curves of molecules: `python -m benchmarks.qm9_curves OUT.png N .. [--rows coulomb bonds]`.

Atomisation energy, HOMO-LUMO gap and polarisability of QM9 (extra `chemistry`) from N molecules, judged
on the same 10,831 others. A linear fit of the counts of atoms to the training rows, which is the
baseline, is taken off the targets beforehand. What it leaves is learned with a Laplacian kernel of three
representations.

Up to 8,000 rows all eigenvalues are found, and exact leave-one-out of the training rows chooses width,
lam, alpha and step of each property: widths are powers of two, and the search goes on until the best of
each property has both neighbours. Beyond, the largest exact fit of the same representation says which one
width and lam serve all properties: the largest lam, and for it the smallest width, for which no property
has an error by leave-one-out more than 2 % above its best; alpha and step of each are the best there. (The
best lam are small and their losses flat, and so the systems are not harder to solve than they need be.) The
steps are then solved by conjugate gradients without the matrix.

Every point is a line of OUT.jsonl; points that are there are not computed again. OUT.md has the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import sdgpu
from sdgpu.backend.progress import Event
from sdgpu.backend.storage import append_line, write_file
from sdgpu.kernels import Precomputed
from sdgpu.kernels.coordinate_sums import coordinate_sum
from sdgpu.selection.sweep import Best
from sdgpu.study.real_data.molecules import (
    Molecules,
    atom_counts,
    bags_of_bonds,
    coulomb_matrices,
    coulomb_spectra,
)
from sdgpu.study.real_data.qm9 import PROPERTIES, read_qm9

NAMES = ("atomisation", "gap", "polarisability")
ROWS: dict[str, Callable[[Molecules], np.ndarray]] = {
    "coulomb": coulomb_matrices,
    "bonds": bags_of_bonds,
    "spectrum": coulomb_spectra,
}
TITLES = {
    "coulomb": "sorted Coulomb matrix",
    "bonds": "bag of bonds",
    "spectrum": "eigenvalues of the Coulomb matrix",
}
#: Mean absolute errors as later tables quote them, and the largest size of Faber et al. (2017, arXiv
#: 1702.05532): docs/chemistry.md says where they were read.
PUBLISHED = {
    "coulomb": {"atomisation": 2.98 * 0.0433641, "gap": 5.32 * 0.0433641},  # kcal/mol there
    "bonds": {"atomisation": 0.0667, "gap": 0.148, "polarisability": 0.298},
}
PUBLISHED_SIZE = 117_000
HELD_OUT = 10_831
LARGEST_EXACT = 8000
LAMS = np.geomspace(1e-9, 1.0, 19)
ALPHAS = np.linspace(0, 1, 21)
STEPS = 5
MOST_WIDTHS = 8
MARGIN = (
    1.02  # of errors by leave-one-out, above the best: what conjugate gradients may choose from
)
TOL = 1e-3  # of predictions by conjugate gradients


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows in an order that never changes: the first n train, the last are held out."""

    X: np.ndarray
    Y: np.ndarray  # (all, properties)
    counts: np.ndarray

    def targets(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """What the linear fit of counts leaves of n training rows and of those held out."""
        design = np.column_stack([np.ones(len(self.counts)), self.counts])
        slopes = np.linalg.lstsq(design[:n], self.Y[:n], rcond=None)[0]
        left = self.Y - design @ slopes
        return left[:n], left[-HELD_OUT:]


@dataclass(frozen=True, eq=False)
class AtWidth:
    """What leave-one-out chose at a width: the best "ridge" and "chosen" chain of each property.

    `losses` (lam, alpha, step, property) are mean squared errors by leave-one-out.
    """

    best: dict[str, list[Choice]]
    losses: np.ndarray


@dataclass(frozen=True)
class Choice:
    """Width, lam, alpha and step of a property; its error by leave-one-out and on the held-out rows."""

    width: float
    lam: float
    alpha: float
    step: int
    loo: float | None = None
    mae: float | None = None


def problem(representation: str) -> Problem:
    data = read_qm9(NAMES)
    order = np.random.default_rng(0).permutation(len(data))
    molecules = data.molecules.take(order)
    Y = np.stack([data.properties[name][order] for name in NAMES], axis=1)
    return Problem(ROWS[representation](molecules), Y, atom_counts(molecules))


def exact(data: Problem, n: int, guess: int | None) -> dict[str, list[Choice]]:
    """For "ridge", "chosen" and what larger sizes "carry" on, the choice of each property."""
    left, left_out = data.targets(n)
    X, X_test = data.X[:n], data.X[-HELD_OUT:]
    distances, others = coordinate_sum("l1", X, X), coordinate_sum("l1", X_test, X)
    power = round(np.log2(np.median(distances))) + 1 if guess is None else guess
    tried: dict[int, AtWidth] = {}
    pending = [power]
    while pending and len(tried) < MOST_WIDTHS:
        start, power = time.perf_counter(), pending[0]
        tried[power] = at_width(2.0**power, (distances, others), (left, left_out))
        errors = " ".join(f"{one.loo:.4f}" for one in tried[power].best["ridge"])
        say(f"  width {2.0**power:g}: leave-one-out rmse {errors}", start)
        pending = [k for k in missing_neighbours(tried) if k not in tried]
    found = {
        kind: [tried[power].best[kind][j] for j, power in enumerate(powers)]
        for kind, powers in best_powers(tried).items()
    }
    return {**found, "carry": one_for_all(tried)}


def at_width(
    width: float, distances: tuple[np.ndarray, np.ndarray], left: tuple[np.ndarray, np.ndarray]
) -> AtWidth:
    K, K_test = (np.exp(-part / width) for part in distances)
    fit = sdgpu.fit(K, left[0], Precomputed(), LAMS, method="eigh", steps=STEPS)
    sweep = fit.sweep(alphas=ALPHAS, steps=STEPS, per_output=True)
    found = {}
    for kind, best in (
        ("ridge", sweep.best("ridge", per_output=True)),
        ("chosen", sweep.best(per_output=True)),
    ):
        mae = np.abs(fit.predictor(best).predict(K_test) - left[1]).mean(axis=0)
        found[kind] = [choice_of(width, best, j, mae[j]) for j in range(len(NAMES))]
    return AtWidth(found, sweep.dataset["mse_per_output"].values)


def choice_of(width: float, best: Best, j: int, mae: float) -> Choice:
    step = int(best.step[j])
    alpha = float(best.alpha[j]) if step > 1 else 1.0
    return Choice(width, float(best.lam[j]), alpha, step, float(best.mse[j]) ** 0.5, float(mae))


def best_powers(tried: dict[int, AtWidth]) -> dict[str, list[int]]:
    """The power of two that is the best width of each property."""
    powers = list(tried)
    return {
        kind: [
            powers[int(np.argmin([tried[power].best[kind][j].loo for power in powers]))]
            for j in range(len(NAMES))
        ]
        for kind in ("ridge", "chosen")
    }


def missing_neighbours(tried: dict[int, AtWidth]) -> Iterator[int]:
    for powers in best_powers(tried).values():
        for power in powers:
            yield from (power + 1, power - 1)


def one_for_all(tried: dict[int, AtWidth]) -> list[Choice]:
    """One width and lam that cost no property more than the margin; the best alpha and step there."""
    powers = sorted(tried)
    rmse = np.sqrt([tried[power].losses[:, 0, 0] for power in powers])  # (width, lam, property)
    excess = (rmse / rmse.min(axis=(0, 1))).max(axis=2)
    good = np.argwhere(excess <= max(MARGIN, excess.min()))
    width, lam = max(good.tolist(), key=lambda point: (point[1], -point[0]))
    choices = []
    for j in range(len(NAMES)):
        losses = tried[powers[width]].losses[lam, :, :, j]
        alpha, step = map(int, np.unravel_index(np.argmin(losses), losses.shape))
        # step 1 has no weight, and comes first where others are no better
        step = 0 if losses[alpha, step] > losses[0, 0] * (1 - 1e-6) else step
        weight = float(ALPHAS[alpha]) if step else 1.0
        loo = float(losses[alpha, step]) ** 0.5
        choices.append(Choice(2.0 ** powers[width], float(LAMS[lam]), weight, step + 1, loo=loo))
    return choices


def carried(data: Problem, n: int, choices: list[Choice]) -> dict[str, list[Choice]]:
    """Step 1 and the chains of the largest exact fit, made again with n rows by conjugate gradients."""
    left, left_out = data.targets(n)
    width, lam = choices[0].width, choices[0].lam
    start = time.perf_counter()
    fit = sdgpu.fit(
        data.X[:n],
        left,
        sdgpu.Laplacian(1 / width),
        lam,
        method="cg",
        operator="tiled",
        dtype="mixed",
        tol=TOL,
        steps=max(one.step for one in choices),
        progress=every_minute(),
    )
    say(f"  width {width:g}, lam {lam:g}: {fit.info.passes} passes, {fit.info.status}", start)
    found: dict[str, list[Choice]] = {"ridge": [], "chosen": [], "carry": choices}
    first = fit.path(lam, 0.0, 1).predict(data.X[-HELD_OUT:])[0]
    for j, one in enumerate(choices):
        errors = np.abs(first[:, j] - left_out[:, j])
        found["ridge"].append(Choice(width, lam, 1.0, 1, mae=float(errors.mean())))
        if one.step > 1:
            steps = fit.path(lam, one.alpha, one.step).predict(data.X[-HELD_OUT:])
            errors = np.abs(steps[-1][:, j] - left_out[:, j])
        found["chosen"].append(Choice(width, lam, one.alpha, one.step, mae=float(errors.mean())))
    say("  predicted", start)
    return found


def every_minute() -> Callable[[Event], None]:
    last = [time.perf_counter()]
    begun = last[0]

    def show(event: Event) -> None:
        if time.perf_counter() - last[0] > 60:
            last[0] = time.perf_counter()
            say(f"    {event.stage} {event.done} of {event.total}, error {event.error}", begun)

    return show


def say(text: str, start: float) -> None:
    print(f"{text} ({time.perf_counter() - start:.0f} s)", flush=True)


def points(path: Path) -> list[dict[str, Any]]:
    """Finished points, the last of each; a line that a kill tore is left out."""
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            point = json.loads(line)
        except ValueError:
            continue
        found[point["rows"], point["n"], point["property"]] = point
    return list(found.values())


def before(every: list[dict[str, Any]], representation: str, n: int) -> list[dict[str, Any]]:
    """The points of the largest exact fit of a representation with fewer rows."""
    mine = [
        p for p in every if p["rows"] == representation and p["method"] == "eigh" and p["n"] < n
    ]
    largest = max((p["n"] for p in mine), default=0)
    return sorted((p for p in mine if p["n"] == largest), key=lambda p: NAMES.index(p["property"]))


def shortened(choice: Choice, steps: int) -> Choice:
    """A chain of more steps than that becomes its step 1."""
    return choice if choice.step <= steps else replace(choice, alpha=1.0, step=1, loo=None)


def one_size(data: Problem, representation: str, n: int, path: Path, *, steps: int = STEPS) -> None:
    """The points of a representation with n rows, at the end of the file."""
    start, earlier = time.perf_counter(), before(points(path), representation, n)
    print(f"{TITLES[representation]}, {n:,} molecules", flush=True)
    if n <= LARGEST_EXACT:
        guess = round(np.log2(earlier[0]["ridge"]["width"])) if earlier else None
        found, method = exact(data, n, guess), "eigh"
    elif len(earlier) < len(NAMES):
        raise SystemExit(f"{n} rows need a choice: run sizes up to {LARGEST_EXACT} before")
    else:
        choices = [shortened(Choice(**p["carry"]), steps) for p in earlier]
        found, method = carried(data, n, choices), "cg"
    seconds = time.perf_counter() - start
    baseline = np.abs(data.targets(n)[1]).mean(axis=0)
    lines = []
    for j, name in enumerate(NAMES):
        point: dict[str, Any] = {
            "rows": representation,
            "property": name,
            "n": n,
            "method": method,
            "baseline": float(baseline[j]),
            **{kind: vars(every[j]) for kind, every in found.items()},
            "seconds": round(seconds, 1),
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        lines.append(json.dumps(point) + "\n")
        print(f"  {name}: {point['ridge']['mae']:.4f}, {point['chosen']['mae']:.4f}", flush=True)
    append_line(path, "".join(lines))
    say("  all", start)


def table(every: list[dict[str, Any]]) -> str:
    """Errors of step 1, and of the chosen chain where they differ, with its alpha and step."""
    units = [f"{name} [{PROPERTIES[name][1]}]" for name in NAMES]
    lines = ["| " + " | ".join(["rows", "n", *units, "s"]) + " |", "|---" * (len(NAMES) + 3) + "|"]
    where = {(p["rows"], p["n"], p["property"]): p for p in every}
    for n in sorted({n for _, n, _ in where}):
        first = next(rows for rows, size, _ in where if size == n)
        errors = [f"{where[first, n, name]['baseline']:.3f}" for name in NAMES]
        lines.append("| " + " | ".join(["counts, linear", f"{n:,}", *errors, ""]) + " |")
    for rows, title in TITLES.items():
        for n in sorted({size for one, size, _ in where if one == rows}):
            mine = [where[rows, n, name] for name in NAMES]
            cells = [title, f"{n:,}", *map(errors_of, mine), f"{mine[0]['seconds']:.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def errors_of(point: dict[str, Any]) -> str:
    ridge, chosen = point["ridge"], point["chosen"]
    first, last = f"{ridge['mae']:.3f}", f"{chosen['mae']:.3f}"
    return first if first == last else f"{first}, {last} ({chosen['alpha']:.2f}, {chosen['step']})"


def draw(every: list[dict[str, Any]], out: str) -> None:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(NAMES)), NAMES, strict=True):
        for number, representation in enumerate(ROWS):
            mine = sorted(
                (p for p in every if p["property"] == name and p["rows"] == representation),
                key=lambda p: p["n"],
            )
            if mine:
                sizes = [p["n"] for p in mine]
                label = TITLES[representation]
                colour = f"C{number}"
                first, chosen = ([p[kind]["mae"] for p in mine] for kind in ("ridge", "chosen"))
                axis.plot(sizes, first, "x:", ms=4, color=colour)
                axis.plot(sizes, chosen, "o-", ms=4, color=colour, label=label)
                quoted = PUBLISHED.get(representation, {}).get(name)
                if quoted is not None:
                    axis.plot(PUBLISHED_SIZE, quoted, "*", ms=9, color=colour, mfc="none")
        base = sorted({(p["n"], p["baseline"]) for p in every if p["property"] == name})
        axis.plot(*zip(*base, strict=True), "--", color="0.5", label="counts of atoms, linear")
        axis.set(
            xscale="log", yscale="log", xlabel="molecules to learn from", title=name.capitalize()
        )
        axis.set_ylabel(f"mean absolute error [{PROPERTIES[name][1].replace('^3', '³')}]")
        for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatted("{x:g}")
        axis.tick_params(axis="y", which="both", labelsize=7)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    star = Line2D([], [], marker="*", ls="", ms=9, color="0.3", mfc="none")
    figure.legend(
        [*handles, star], [*labels, "published"], loc="outside lower center", ncols=5, fontsize=8
    )
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", help="picture; table and points lie beside it as .md and .jsonl")
    parser.add_argument("sizes", nargs="*", type=int, help="molecules to learn from")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--steps", type=int, default=STEPS, help="at most, beyond exact sizes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    path = Path(arguments.out).with_suffix(".jsonl")
    for representation in arguments.rows:
        done = {(p["rows"], p["n"]) for p in points(path) if p["property"] == NAMES[-1]}
        sizes = [n for n in sorted(arguments.sizes) if (representation, n) not in done]
        if sizes:
            start = time.perf_counter()
            data = problem(representation)
            say(f"{TITLES[representation]}: {data.X.shape} rows", start)
            if not 10 <= min(sizes) <= max(sizes) <= len(data.X) - HELD_OUT:
                raise SystemExit(f"sizes must lie in 10 .. {len(data.X) - HELD_OUT}")
        for n in sizes:
            one_size(data, representation, n, path, steps=arguments.steps)
    every = points(path)
    write_file(Path(arguments.out).with_suffix(".md"), table(every).encode())
    draw(every, arguments.out)
    print(table(every))


if __name__ == "__main__":
    main()
