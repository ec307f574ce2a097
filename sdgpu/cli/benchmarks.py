"""The command ``bench compare``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sdgpu.cli.terminal import console, home, new_table

__all__ = ["bench"]

bench = typer.Typer(no_args_is_help=True, help="Results of benchmarks, which `make bench` writes.")


@bench.callback()
def group() -> None:
    """Keep `compare` a command of its own name."""


@bench.command()
def compare(
    before: Annotated[
        Path,
        typer.Argument(callback=home, help="results: a file, a folder, or one of several runs"),
    ],
    after: Annotated[Path, typer.Argument(callback=home, help="those of another state")],
    every: Annotated[bool, typer.Option("--all", help="figures without a change too")] = False,
) -> None:
    """Show what became slower or faster beyond noise; ends with 1 if something became slower.

    [bold]Example:[/] sdgpu bench compare old-results benchmarks/results
    """
    from sdgpu.study.report.benchmark_comparison import compare_benchmarks

    changes = compare_benchmarks(before, after)
    shown = [change for change in changes if every or change.verdict != "same"]
    if shown:
        table = new_table(
            "question", "before", "after", "ratio", "counts beyond", "verdict", title=""
        )
        for change in shown:
            table.add_row(
                escape(change.question),
                _milliseconds(change.before),
                _milliseconds(change.after),
                "-" if math.isnan(change.ratio) else f"{change.ratio:.3f}",
                "-" if math.isnan(change.bound) else f"{100 * change.bound:.0f} %",
                change.verdict,
            )
        console.print(table)
    counts = {
        verdict: sum(c.verdict == verdict for c in changes) for verdict in ("slower", "unclear")
    }
    console.print(
        f"{len(changes)} figures: {counts['slower']} slower, {counts['unclear']} unclear",
        highlight=False,
    )
    if counts["slower"]:
        raise typer.Exit(1)


def _milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:,.3g} ms"
