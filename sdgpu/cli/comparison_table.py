"""The table of four ways to choose, on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape

from sdgpu.cli.terminal import console, new_table

if TYPE_CHECKING:
    from sdgpu.selection.sweep import Sweep
    from sdgpu.study.compare import Comparison

__all__ = ["print_comparison"]


def print_comparison(comparison: Comparison) -> None:
    """One row for each way to choose, doubts, scores of classes, and what it cost."""
    classes = bool(np.isfinite(comparison.rows[0].test_accuracy))
    columns = ["choice", "lam", "alpha", "step", "val. mse", "test mse"]
    table = new_table(*columns, *(["accuracy"] if classes else []), title=comparison.name)
    for row in comparison.rows:
        alpha = np.atleast_1d(row.best.alpha)
        if row.best.step == 1:
            alpha_text = "-"
        elif alpha.size == 1:
            alpha_text = f"{alpha[0]:.4g}"
        else:
            alpha_text = f"{alpha.min():.3g} .. {alpha.max():.3g}"
        cells = [
            row.name,
            f"{row.best.lam:.3g}",
            alpha_text,
            f"{row.best.step}",
            f"{row.best.mse:.6f}",
            f"{row.test_mse:.6f}",
        ]
        table.add_row(*cells, *([f"{row.test_accuracy:.4f}"] if classes else []))
    console.print(table)
    for note in filter(None, (row.note for row in comparison.rows)):
        console.print(f"[yellow]{escape(note)}[/]", highlight=False)
    if "accuracy" in comparison.sweep.dataset:
        _print_scores(comparison.sweep)
    sizes = comparison.sweep.dataset["mse"].sizes
    console.print(
        f"{sizes['lam']} lam x {sizes['alpha']} alpha x {sizes['step']} steps = "
        f"{comparison.sweep.dataset['mse'].size:,} losses from one decomposition of "
        f"{comparison.fit.info.n:,} rows in {comparison.seconds:.2f} s, in place of "
        f"{comparison.refits:,} refits",
        highlight=False,
    )
    info = comparison.fit.info
    console.print(f"{info.method}, {info.operator}: {escape(info.status)}", highlight=False)


def _print_scores(sweep: Sweep) -> None:
    """Where each score of classes is best on the validation rows, and what the others are there."""
    from sdgpu.selection.class_scores import SCORES

    # the best calibrated one may know nothing: the share of each class for every row has no such error
    criteria = [name for name in SCORES if name != "ece"]
    table = new_table("best", "lam", "alpha", "step", *SCORES, title="classes, validation rows")
    for name in criteria:
        best = sweep.best(name)
        alpha = 0.0 if best.step == 1 else best.alpha
        point = sweep.dataset.sel(lam=best.lam, alpha=alpha, step=best.step)
        alpha_text = "-" if best.step == 1 else f"{best.alpha:.4g}"
        cells = (f"{float(point[score]):.4f}" for score in SCORES)
        table.add_row(name, f"{best.lam:.3g}", alpha_text, f"{best.step}", *cells)
    console.print(table)
