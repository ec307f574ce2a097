"""Figure 5 under wrong labels: `python -m benchmarks.wrong_labels OUT.png FOLDER...`, of `sdgpu train`.

A column for each folder, by its share of wrong labels: above the accuracy on training images, against the
labels that were trained on, below on test images, whose labels are right. Prints the table of test
accuracies: means over seeds, and the range.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from sdgpu.backend.datafiles import read_dataset
from sdgpu.study.networks.experiments import Experiment
from sdgpu.study.pictures import plot_accuracies


def opened(folder: str) -> tuple[Experiment, xr.Dataset]:
    """An experiment and its results."""
    dataset = read_dataset(Path(folder) / "results.nc")
    return Experiment.from_json(dataset.attrs["experiment"]), dataset


def table(dataset: xr.Dataset) -> str:
    """Test accuracy of every step and weight, and what Algorithm 1 estimated."""
    steps = dataset["step"].values
    lines = [f"| test accuracy, % | {' | '.join(f'step {t}' for t in steps)} |"]
    lines.append("|---" * (len(steps) + 1) + "|")
    for rule in dataset["rule"].values:
        values = 100 * dataset["test_accuracy"].sel(rule=rule)
        cells = [
            f"{float(values.sel(step=t).mean()):.2f} "
            f"({float(values.sel(step=t).min()):.2f} to {float(values.sel(step=t).max()):.2f})"
            for t in steps
        ]
        name = "alpha-hat" if rule == "algorithm1" else f"alpha = {float(rule):g}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "algorithm1" in dataset["rule"].values:
        means = dataset["alpha"].sel(rule="algorithm1").mean("seed")
        estimates = [f"{float(means.sel(step=t)):.2f}" for t in steps[1:]]
        lines.append(f"| (its mean) | | {' | '.join(estimates)} |")
    return "\n".join(lines)


def main(out: str, folders: list[str]) -> None:
    """Draw and print."""
    found = sorted(map(opened, folders), key=lambda one: one[0].label_noise)
    figure = Figure(figsize=(4.4 * len(found), 7.2), layout="constrained")
    rows = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
    for number, (experiment, dataset) in enumerate(found):
        for axis, part in zip(rows[:, number], ("train", "test"), strict=True):
            plot_accuracies(dataset, part, ax=axis)
            if (number, part) != (0, "train"):
                axis.legend().remove()
            if number:
                axis.set_ylabel("")
        share = 100 * experiment.label_noise
        rows[0, number].set_title(f"{share:g} % of labels wrong")
        rows[0, number].set_xlabel("")
        spent = {name: value for name, value in dataset.attrs.items() if name != "experiment"}
        print(f"\n{share:g} % of labels wrong, all seeds: {spent}\n")
        print(table(dataset))
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
