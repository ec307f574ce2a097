"""Studies: what a run costs beside the fits in it, and a page of many cells."""

from __future__ import annotations

import itertools
import os
import time
from copy import deepcopy

import numpy as np
import pytest

from benchmarks.conftest import REPORT, seconds
from sdgpu.backend.sealed_json import sealed_line
from sdgpu.study import open_study, read_study, run
from sdgpu.study.grid_study.cell_fit import fit_cells
from sdgpu.study.grid_study.cells import decompositions
from sdgpu.study.grid_study.study_folder import StudyFolder, write_cells
from sdgpu.study.report.page import write_report

CELLS = 200


def tables(workers: int) -> dict:
    """40 seeds of 833 digits, 500 of them to train on, and five widths."""
    return {
        "name": "bench",
        "seeds": list(range(CELLS // 5)),
        "data": {"source": "digits", "rows": 833},
        "kernel": {"name": "gaussian", "width_over_median": [0.25, 0.5, 1.0, 2.0, 4.0]},
        "compute": {"workers": workers},
    }


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_against_the_sum_of_its_fits(race, tmp_path, workers):
    """Fit, sweep, choices and test losses of every cell, one after the other, nothing written."""
    study, numbers = read_study(tables(workers)), itertools.count()
    race(
        f"study of {CELLS} cells of 500 rows, {workers} worker{'s' * (workers > 1)} / its fits alone",
        lambda: run(study, tmp_path / str(next(numbers))),
        lambda: [fit_cells(job) for job in decompositions(study)] and None,
        at_most=1.1,
        rounds=3,
    )


@pytest.mark.full
def test_a_page_of_ten_thousand_cells(tmp_path, monkeypatch):
    """100 seeds, 50 widths, two levels of noise; the records are those of a few cells, changed."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # of ten thousand files: minutes
    small = {
        "name": "large",
        "seeds": list(range(100)),
        "data": {"source": "diabetes", "rows": 60},
        "noise": {"levels": [0.0, 0.5]},
        "kernel": {"name": "gaussian", "gamma": "0.001:1:50"},
        "grid": {"lams_over_n": "1e-4:1:10", "alphas": "0:1:11", "steps": 5},
        "compute": {"workers": 1},
    }
    begun = run(
        small | {"seeds": [0], "kernel": {"name": "gaussian", "gamma": 0.1}}, tmp_path / "a"
    )
    record, rng, cells = begun.records[0], np.random.default_rng(0), []
    arrays = {name: begun.dataset[name].values[0] for name in ("lam", "mse", "alpha_star")}
    for cell in itertools.chain.from_iterable(
        job.cells for job in decompositions(read_study(small))
    ):
        own = deepcopy(record) | dict(cell.labels) | {"key": cell.key}
        for choice in own["chosen"].values():
            choice["test_mse"] *= float(rng.uniform(0.9, 1.1))
        cells.append(own)
    write_cells(tmp_path / "a", [(own, arrays) for own in cells])
    lines = [sealed_line(own) for own in cells]
    (tmp_path / "a" / "cells.jsonl").write_text("".join(lines))
    fields = read_study(small)
    StudyFolder(tmp_path / "a").open(fields, {})
    start = time.perf_counter()
    page = write_report(open_study(tmp_path / "a"), tmp_path / "page.html")
    spent = time.perf_counter() - start
    size = page.stat().st_size / 1e6
    question = f"page of {len(lines):,} cells, {size:.1f} MB"
    REPORT.rows.append((question, seconds(spent), "10 s", f"{spent / 10:.2f}", "<= 1"))
    assert len(lines) == 10_000
    assert size < 5
    assert spent < 10
