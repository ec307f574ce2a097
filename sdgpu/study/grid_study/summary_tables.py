"""Tables of a study as text, CSV, LaTeX and markdown: mean test losses of every rule, with their errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sdgpu.backend.checks import choice
from sdgpu.study.grid_study.study_results import StudyResults

__all__ = ["FORMATS", "caption_of", "formatted", "shown_cells"]

FORMATS = ("text", "csv", "latex", "markdown")


def shown_cells(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as texts: "0.513 +- 0.024", with two digits of the error."""
    rules = list(dict.fromkeys(rule for rule, _ in summary.columns))
    columns = {
        rule: [
            _shown(mean, error)
            for mean, error in zip(summary[rule, "mean"], summary[rule, "error"], strict=True)
        ]
        for rule in rules
    }
    return pd.DataFrame(columns, index=summary.index)


def caption_of(results: StudyResults, loss: str, summary: pd.DataFrame) -> str:
    """What a table shows: "name: test_mse, mean and standard error over 5 cells a row"."""
    counts = summary.attrs["cells"]
    some = f"{counts[0]}" if counts[0] == counts[1] else f"{counts[0]} to {counts[1]}"
    words = f"{some} cell{'s' * (counts[1] != 1)} a row"
    return f"{results.config.name}: {loss}, mean and standard error over {words}"


def _shown(mean: float, error: float) -> str:
    if not np.isfinite(mean):
        return "-"
    if not np.isfinite(error) or error == 0:
        return f"{mean:.4g}"
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 12))
    return f"{mean:.{digits}f} +- {error:.{digits}f}"


def formatted(results: StudyResults, kind: str, *, loss: str = "test_mse", by: Any = None) -> str:
    """The summary of a study in one of `FORMATS`.

    Parameters
    ----------
    results : StudyResults
    kind : {"text", "csv", "latex", "markdown"}
        CSV has means and errors in columns of their own, with all their digits.
    loss, by
        As in :meth:`~sdgpu.study.grid_study.study_results.StudyResults.summary`.

    Raises
    ------
    ValueError
        For an unknown format, loss or axis, and a study without a finished cell.
    """
    choice("format", kind, FORMATS)
    summary = results.summary(loss=loss, by=by)
    if kind == "csv":
        flat = summary.copy()
        flat.columns = [f"{rule} {part}" for rule, part in summary.columns]
        return str(flat.reset_index().to_csv(index=False))
    table = shown_cells(summary).reset_index()
    caption = caption_of(results, loss, summary)
    if kind == "markdown":
        return f"{caption}\n\n{table.to_markdown(index=False, disable_numparse=True)}\n"
    if kind == "latex":
        text = table.to_latex(index=False, escape=True, caption=caption.replace("_", r"\_"))
        return str(text).replace("+-", r"$\pm$")
    return f"{caption}\n{table.to_string(index=False)}\n"
