"""The report: one file of HTML with everything in it, for a desk, a telephone, by day and by night."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from sdgpu.backend.storage import check_writable, write_file
from sdgpu.selection.metrics import larger_is_better
from sdgpu.study.grid_study.cells import axes_of, place_on
from sdgpu.study.grid_study.study_results import StudyResults
from sdgpu.study.grid_study.summary_tables import caption_of, shown_cells
from sdgpu.study.pictures.inline_svg import inline_svg
from sdgpu.study.report.study_pictures import study_pictures

__all__ = ["write_report"]

ROWS = 1000  # of the table of means
FAILED = 100  # tracebacks that are shown
NUMBERS = ("rows", "noise", "size", "workers")  # axes


def write_report(
    results: StudyResults, path: str | os.PathLike[str], *, loss: str = "test_mse"
) -> Path:
    """Write the page of a study.

    Parameters
    ----------
    results : StudyResults
        As far as they are.
    path : path
        Of the page, ``.html``.
    loss : str, default "test_mse"
        The test loss of tables and pictures.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        For an unknown loss, another ending, and a study with nothing to show.
    OSError
        If it cannot be written.
    """
    target = Path(path).expanduser()
    if target.suffix not in (".html", ".htm"):
        raise ValueError(f"path={str(path)!r} must end in .html")
    check_writable(target)
    if not (results.records or results.failed or results.config.network):
        raise ValueError(f"the study in {results.folder} has no finished cell: run it first")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("page.html").render(_content(results, loss))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, text.encode())
    return target


def _content(results: StudyResults, loss: str) -> dict[str, Any]:
    summary = _summary(results, loss) if results.records else None
    pictures = _pictures(results, loss)
    sections = [("summary", "Table of rules")] if summary else []
    sections += [(group["anchor"], group["title"]) for group in pictures]
    cells = _cells(results, loss) if results.records else None
    warnings = Counter(
        text for record in results.records for text in dict.fromkeys(record["warnings"])
    ).most_common(20)
    for present, anchor, title in (
        (cells, "cells", "All cells"),
        (results.failed, "failed", "Failures"),
        (warnings, "warnings", "Warnings"),
        (True, "made", "How it was made"),
    ):
        if present:
            sections.append((anchor, title))
    unfinished = ""
    if results.open_cells or results.failed:
        unfinished = f"{results.open_cells:,} cells are open, {len(results.failed):,} have failed."
    return {
        "name": results.config.name,
        "description": results.config.description,
        "facts": _facts(results),
        "sections": sections,
        "unfinished": unfinished,
        "loss": loss.replace("_", " "),
        "summary": summary,
        "pictures": pictures,
        "cells": cells,
        "failed": results.failed[:FAILED],
        "more_failed": max(0, len(results.failed) - FAILED),
        "warnings": warnings,
        "made": _made(results),
        "tables": json.dumps(results.config.model_dump(exclude_unset=True), indent=2, default=str),
    }


def _facts(results: StudyResults) -> list[tuple[str, str]]:
    records = results.records
    seconds = sum(record["cell_seconds"] for record in records)
    facts = [("cells", f"{len(records):,}")]
    if records:
        refits = sum(record["refits_replaced"] for record in records)
        facts += [
            ("refits that closed forms replaced", f"{refits:,}"),
            ("seconds of work", f"{seconds:,.1f}"),
            ("seeds", f"{len({record['seed'] for record in records})}"),
        ]
    if results.config.network:
        facts.append(("experiments with networks", f"{len(results.config.network)}"))
    return facts


def _summary(results: StudyResults, loss: str) -> dict[str, Any]:
    summary = results.summary(loss=loss)
    texts = shown_cells(summary).reset_index()
    axes, rules = list(summary.index.names), list(texts.columns[summary.index.nlevels :])
    rows = []
    for number, line in enumerate(texts.itertuples(index=False)):
        if number == ROWS:
            break
        means = {rule: float(summary[rule, "mean"].iloc[number]) for rule in rules}
        largest = larger_is_better(loss.removeprefix("test_"))
        judged = {rule: mean for rule, mean in means.items() if rule != "oracle" and mean == mean}
        best = (max if largest else min)(judged.values(), default=math.nan)
        row = [_labelled(value) for value in line[: len(axes)]]
        for rule, text in zip(rules, line[len(axes) :], strict=True):
            kind = "number best" if means[rule] == best and rule != "oracle" else "number"
            row.append({"text": text.replace("+-", "\u00b1"), "kind": kind, "value": means[rule]})
        rows.append(row)
    caption = caption_of(results, loss, summary)
    if len(texts) > ROWS:
        caption += f"; the first {ROWS:,} of {len(texts):,} rows"
    gains = _gains(results, loss, axes, rules) if "ridge" in rules and len(rules) > 1 else None
    heads = _heads(axes, rules)
    return {"caption": caption, "heads": heads, "rows": rows, "gains": gains}


def _heads(axes: list[Any], rules: list[str]) -> list[dict[str, str]]:
    return [{"text": axis, "kind": "number" if axis in NUMBERS else ""} for axis in axes] + [
        {"text": rule, "kind": "number"} for rule in rules
    ]


def _gains(results: StudyResults, loss: str, axes: list[Any], rules: list[str]) -> dict[str, Any]:
    """Differences to ridge cell by cell, in per cent of its loss."""
    frame = results.frame.set_index([*axes, "seed", "rule"])
    wide = frame[loss].unstack("rule", sort=False)
    others = [rule for rule in rules if rule != "ridge"]
    gain = 100 * (1 - wide[others].div(wide["ridge"], axis=0))
    groups = gain.groupby(level=list(range(len(axes))), sort=False, dropna=False)
    means, errors = groups.mean(), groups.sem()
    rows = []
    for number, place in enumerate(means.index[:ROWS]):
        labels = place if isinstance(place, tuple) else (place,)
        row = [_labelled(value) for value in labels]
        for rule in others:
            mean, error = float(means[rule].iloc[number]), float(errors[rule].iloc[number])
            text = "-" if math.isnan(mean) else f"{mean:+.2f}"
            text += "" if math.isnan(error) or math.isnan(mean) else f" \u00b1 {error:.2f}"
            row.append({"text": text, "kind": "number", "value": mean})
        rows.append(row)
    return {"heads": _heads(axes, others), "rows": rows}


def _labelled(value: Any) -> dict[str, Any]:
    if isinstance(value, float):
        text = "" if math.isnan(value) else f"{value:g}"
        return {"text": text, "kind": "number", "value": text}
    return {"text": str(value), "kind": "", "value": str(value)}


def _pictures(results: StudyResults, loss: str) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for picture in study_pictures(results, loss=loss):
        entry = {
            "svg": Markup(inline_svg(picture.figure, picture.name)),
            "caption": picture.caption,
        }
        groups.setdefault(picture.group, []).append(entry)
    return [
        {
            "anchor": re.sub(r"\W+", "-", title.lower()) + "-pictures",
            "title": title,
            "text": "",
            "pictures": entries,
        }
        for title, entries in groups.items()
    ]


def _cells(results: StudyResults, loss: str) -> dict[str, Any]:
    """A row for each cell: axes that differ, and the loss of every rule."""
    axes = [axis for axis in axes_of(results.config) if axis in ("seed", *results.varied)]
    rules = results.config.choose.rules
    rows = [
        [*(place_on(axis, record) for axis in axes), *(_loss(record, rule, loss) for rule in rules)]
        for record in results.records
    ]
    return {"heads": [*axes, *rules], "rows": rows}


def _loss(record: dict[str, Any], rule: str, loss: str) -> float | None:
    value = record["chosen"][rule].get(loss)
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else None


def _made(results: StudyResults) -> list[tuple[str, str]]:
    records, made = results.records, []

    def several(values: Iterable[Any]) -> str:
        different = list(dict.fromkeys(str(value) for value in values if value is not None))
        return ", ".join(different[:6]) + (", .." if len(different) > 6 else "")

    if records:
        times = sorted(record["finished"] for record in records)
        made.append(("finished", f"{times[0]} to {times[-1]}"))
        made.append(("devices", several(r["device"] for r in records)))
        made.append(("backends", several(r["fit"]["backend"] for r in records)))
        made.append(("methods", several(r["fit"]["method"] for r in records)))
        made.append(("revision", several(r["revision"] for r in records) or "no git"))
        made += [
            (package, several(record["versions"].get(package) for record in records))
            for package in records[-1]["versions"]
        ]
        error = max((r["fit"]["error_estimate"] or 0.0) for r in records)
        made.append(("largest error estimate of predictions", f"{error:.1e}"))
    made.append(("seeds", several(results.config.seeds)))
    made.append(("written", pd.Timestamp.now().strftime("%Y-%m-%d %H:%M")))
    return made
