"""Cells whose rows are with workers, against FeatureSpace by hand; their places, plan and resume."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import sdgpu
from sdgpu import federated
from sdgpu.cli import app
from sdgpu.study import open_study, plan_study, read_study, run
from sdgpu.study.grid_study import workers
from sdgpu.study.grid_study.cell_fit import fit_cells
from sdgpu.study.grid_study.cells import decompositions
from sdgpu.study.grid_study.study_results import read_results
from sdgpu.study.real_data.datasets import load, split
from sdgpu.study.report import page
from tests.problems import assert_near
from tests.study.grid_study.test_cells import ALPHAS, LAMS, STEPS
from tests.study.grid_study.test_cells import tables as one_cell

FOURIER = {"features": "fourier", "size": 12}
ALL = {"workers": [1, 3], "splits": ["random", "targets", "inputs"], "ranks": [2, 5]}
ALL |= {"answers": ["merged", "mean", "distilled"], "unlabelled": 0.25}


def tables(**more):
    return one_cell(**{"method": FOURIER, "compute": {"workers": 1}, **more})


def results(**more):
    jobs = decompositions(read_study(tables(**more)))
    return [result for job in jobs for result in fit_cells(job)]


def parts_of(source="diabetes"):
    return split(load(source, rows=60, seed=3), seed=3)


def by_hand(parts, X, Y, space, record, *, features, intercept=True):
    """The fit of a cell from what `sdgpu.federated` has."""
    n, M = 27, record["workers"]  # of 36 rows 9 lie at the server
    order = {
        "random": np.random.default_rng([3, 3]).permutation(n),
        "targets": np.argsort(parts.Y_train[:n, 0], kind="stable"),
        "inputs": np.argsort(principal(X[:n]), kind="stable"),
    }[record["split"]]
    rank = None if record["sent"] == "moments" else int(record["sent"].removeprefix("rank "))
    rows = np.array_split(order, M)
    make = space.moments if rank is None else lambda X, Y: space.spectrum(X, Y, rank=rank)
    messages = [make(X[part], Y[part]) for part in rows]
    if record["answer"] != "distilled":
        fit = space.fit if record["answer"] == "merged" else space.average
        return fit(messages, LAMS, intercept=intercept), messages
    teachers = [space.fit([one], np.array(LAMS) / M, intercept=intercept) for one in messages]
    how = {"features": features, "intercept": intercept, "seed": 3}
    if M == 1:
        lam, weights = record["fit"]["teacher_lam"], [1.0]
    else:
        nothing = np.zeros((0, X.shape[1])), np.zeros((0, 1))
        kernel = sdgpu.Gaussian(0.05)
        made = sdgpu.student(
            teachers, kernel, LAMS, *nothing, unlabelled=X[n:], weights="fitted", **how
        )
        best = made.fit_weights(parts.X_val, parts.Y_val, kind="simplex", alphas=[0.0]).best()
        lam, weights = best["teacher_lam"], best["weights"]
    said = sum(
        weight * one.path(lam, steps=1).predict(X[n:])[0]
        for weight, one in zip(weights, teachers, strict=True)
    )
    assert_near(record["fit"]["teacher_weights"], weights, 1e-8)
    return sdgpu.fit(X[n:], said[:, None], sdgpu.Gaussian(0.05), LAMS, **how), messages


def principal(X):
    direction = np.linalg.eigh(np.cov(X.T))[1][:, -1]
    return X @ (direction * np.sign(direction[np.abs(direction).argmax()]))


@pytest.mark.parametrize("kind", ["fourier", "nystrom"])
def test_every_cell_is_what_the_library_makes_by_hand(kind):
    rules = ["ridge", "fixed", "star", "limit", "gcv", "loo"]
    method = FOURIER if kind == "fourier" else {"features": "nystrom", "size": 8}
    table = ALL if kind == "fourier" else {**ALL, "workers": 3, "splits": "inputs", "ranks": 2}
    found = results(federated=table, choose={"rules": rules}, method=method)
    assert len(found) == 1 + (6 * 9 if kind == "fourier" else 6)
    parts = parts_of()
    X, Y = parts.X_train, parts.Y_train
    kernel, features = sdgpu.Gaussian(0.05), sdgpu.RandomFourier(12)
    if kind == "nystrom":  # of rows that everybody may see
        public = np.concatenate([X[27:], parts.X_val])
        picked = sdgpu.Nystrom(8).prepare(kernel, public, 10, 3).landmarks
        features = sdgpu.Nystrom(landmarks=picked)
    space = federated.FeatureSpace(kernel, features, d=10, seed=3)
    seen = set()
    for one in found[1:]:
        record, arrays = one.record, one.arrays
        seen.add((record["workers"], record["split"], record["sent"], record["answer"]))
        fit, messages = by_hand(parts, X, Y, space, record, features=features)
        sweep = fit.sweep(parts.X_val, parts.Y_val, alphas=ALPHAS, steps=STEPS)
        assert_near(arrays["mse"], sweep.dataset["mse"].values, 1e-7)
        assert record["sent_bytes"] == sum(message.nbytes for message in messages)
        assert record["n"] == fit.info.n == (9 if record["answer"] == "distilled" else 27)
        chosen = record["chosen"]
        for rule in ("fixed", "star"):
            choice = chosen[rule]
            best = sweep.best(rule)
            assert choice["value"] == pytest.approx(best.value, rel=1e-6)
            alpha = choice["alpha"] if len(choice["alpha"]) > 1 else choice["alpha"][0]
            point = (choice["lam"], alpha if choice["step"] > 1 else 0.0, choice["step"])
            path = fit.path(*point[:2], int(point[2]))
            error = np.ravel(path.predict(parts.X_test)[-1]) - parts.Y_test[:, 0]
            assert choice["test_mse"] == pytest.approx(np.mean(error**2), rel=1e-6)
            cut = record["answer"] == "merged" and record["sent"] != "moments"
            assert ("cut_bound" in choice) == cut
            if cut:
                off = federated.coefficient_bound(messages, fit, *point[:2], int(point[2]))[-1, 0]
                size = np.linalg.norm(path.dual[-1])
                assert choice["cut_bound"] == pytest.approx(off / size, rel=1e-6)
        merged = record["answer"] == "merged"
        assert ("no training rows" in chosen["gcv"]["note"]) == (record["answer"] == "mean")
        assert np.isnan(arrays["gcv"]).all() == (not merged)
        assert chosen["loo"].keys() == {"note"}
        assert (chosen["gcv"]["note"] == "") == merged
    assert len(seen) == len(found) - 1


def test_all_rows_stay_as_they_are():
    """The cell beside the others has the key and the bits that it has without them."""
    levels, few = {"levels": [0.0, 0.5]}, {**ALL, "splits": "random", "ranks": 2}
    alone, beside = results(noise=levels), results(noise=levels, federated=few)
    assert len(beside) == 2 + 2 * 2 * 6
    for one, other in zip(alone, beside[:2], strict=True):
        assert one.record["key"] == other.record["key"]
        assert repr(one.record["chosen"]) == repr(other.record["chosen"])
        assert "sent_bytes" not in one.record.keys() | other.record.keys()
        for name, values in one.arrays.items():
            np.testing.assert_array_equal(values, other.arrays[name])
    keys = [cell.record["key"] for cell in beside]
    assert len(set(keys)) == len(keys)
    less = results(noise=levels, federated={**few, "unlabelled": 0.5, "workers": 3})
    assert {one.record["key"] for one in less} & set(keys) == set(keys[:2])


def test_moments_of_all_rows_are_the_fit_of_all_rows():
    """With noise, whoever has which rows; several outputs and classes too."""
    for source in ("diabetes", "digits"):
        more = {"data": {"source": source, "rows": 60}, "kernel": {"name": "linear"}}
        more["federated"] = {"workers": 4, "splits": ["random", "targets"], "answers": "merged"}
        kind = "gaussian" if source == "diabetes" else "symmetric"
        found = results(method={"features": "own"}, noise={"kind": kind, "levels": 0.3}, **more)
        whole = found[0]
        for one in found[1:]:
            for name in ("mse", "gcv", "train_mse", "star_mse"):
                assert_near(one.arrays[name], whole.arrays[name], 1e-6)
            for rule, choice in one.record["chosen"].items():
                wanted = whole.record["chosen"][rule]["test_mse"]
                assert choice["test_mse"] == pytest.approx(wanted, rel=1e-5)
    classes = parts_of("digits").Y_train.argmax(axis=1)
    order = np.argsort(classes, kind="stable")
    table = read_study(
        tables(data={"source": "digits", "rows": 60}, federated={"workers": 9, "splits": "targets"})
    )
    from sdgpu.study.grid_study.shared_fits import rows_of_workers

    rows = rows_of_workers(parts_of("digits"), table.federated.sharings[0], 36, 3)
    np.testing.assert_array_equal(np.concatenate(rows), order)
    assert {len(part) for part in rows} == {4}


def test_a_lam_for_each_step_and_no_intercept():
    method = {**FOURIER, "later_lam_over_first": [4.0], "intercept": False}
    shared = {"workers": 2, "ranks": 3}
    found = results(federated=shared, method=method)
    assert [one.record["answer"] for one in found[1:]] == ["merged", "mean"] * 2
    parts = parts_of()
    features = sdgpu.RandomFourier(12)
    space = federated.FeatureSpace(sdgpu.Gaussian(0.05), features, d=10, seed=3)
    rows = np.array_split(np.random.default_rng([3, 3]).permutation(36), 2)
    messages = [space.spectrum(parts.X_train[one], parts.Y_train[one], rank=3) for one in rows]
    lams = np.outer(LAMS, [1.0, 4.0, 4.0])
    for one, make in zip(found[3:], (space.fit, space.average), strict=True):
        fit = make(messages, LAMS)
        sweep = fit.sweep(parts.X_val, parts.Y_val, lams=lams, alphas=ALPHAS, steps=STEPS)
        assert_near(one.arrays["mse"], sweep.dataset["mse"].values, 1e-8)
    assert found[3].record["chosen"]["star"]["cut_bound"] > 0


def test_a_study_from_plan_to_page_and_again(tmp_path, monkeypatch):
    more = {"ranks": 4, "answers": ["merged", "mean", "distilled"], "unlabelled": 0.25}
    study = tables(seeds=[0, 1], choose={"rules": ["ridge", "fixed", "gcv"]})
    shared = {**study, "federated": {"workers": 2, **more}}
    plan = plan_study(read_study(shared))
    assert plan.cells == 2 * (1 + 6)
    assert [price.method for price in plan.prices] == [
        "fourier, 12",
        "fourier, 12; 2 workers, random",
    ]
    assert all(np.isfinite(price.seconds) for price in plan.prices)
    before = run(study, tmp_path / "a")
    cells = tmp_path / "a" / "cells"
    times = {path.name: path.stat().st_mtime_ns for path in cells.iterdir()}
    with monkeypatch.context() as patch:  # cut off after the first sharing
        done, fit = [], workers.fit_cells

        def once(job, **how):
            if done:
                raise KeyboardInterrupt
            done.append(job)
            return fit(job, **how)

        patch.setattr(workers, "fit_cells", once)
        with pytest.raises(KeyboardInterrupt):
            run(shared, tmp_path / "a")
    found = run(shared, tmp_path / "a", resume=True)
    for name, changed in times.items():  # of all rows: finished before there were workers
        assert (cells / name).stat().st_mtime_ns == changed
    whole = run(shared, tmp_path / "b")
    timed = [name for name in whole.dataset if str(name).endswith("_seconds")]
    assert found.dataset.drop_vars(timed).identical(whole.dataset.drop_vars(timed))
    assert open_study(tmp_path / "a").dataset.identical(found.dataset)
    assert read_results(tmp_path / "a").identical(found.dataset)
    wider = read_study({**study, "federated": {"workers": [2, 3], **more}})
    keys = {cell.key for job in decompositions(wider) for cell in job.cells}
    assert {record["key"] for record in whole.records} < keys  # more workers: the others stay
    data = whole.dataset.set_index(cell=["seed", "workers", "sent", "answer"])["test_mse"]
    assert data.sel(workers=2, sent="rank 4", answer="mean", rule="fixed").shape == (2,)
    assert whole.varied == ["workers", "split", "sent", "answer"]
    assert "workers" not in before.dataset.coords
    sent = whole.frame.groupby(["sent", "answer"])["sent_bytes"].first()
    assert sent["rows", "all rows"] == 8 * 36 * 11
    assert sent["rank 4", "mean"] < sent["moments", "mean"] == 2 * 8 * (12 * 14 + 3)
    bound = whole.dataset["cut_bound"]
    cut = (whole.dataset["sent"] == "rank 4") & (whole.dataset["answer"] == "merged")
    assert bool((bound.notnull() == cut).all())
    summary = whole.summary(by=["answer"])
    assert list(summary.index) == ["all rows", "merged", "mean", "distilled"]
    assert pd.isna(summary.loc["mean", ("gcv", "mean")])
    with pytest.raises(ValueError, match=r"by=\['worker'\]: axes are .*, answer"):
        whole.summary(by=["worker"])
    with pytest.raises(ValueError, match=r"by=\['workers'\]: axes are .*, precision$"):
        before.summary(by=["workers"])
    monkeypatch.setattr(page, "inline_svg", lambda figure, name: name)  # which takes seconds
    html = page.write_report(whole, tmp_path / "page.html").read_text()
    assert "bytes that all workers send" in html
    assert "distilled" in html
    shown = CliRunner().invoke(app, ["study", "table", str(tmp_path / "b"), "--by", "sent,answer"])
    assert "rank 4" in shown.output


@pytest.mark.parametrize(
    ("table", "method", "words"),
    [
        ({"workers": 40}, FOURIER, r"workers = 40: there are 36 training rows"),
        ({"workers": 30, "unlabelled": 0.2}, FOURIER, r"workers = 30: there are 29 training rows"),
        (
            {"workers": 2, "unlabelled": 0.01, "answers": "distilled"},
            FOURIER,
            r"unlabelled = 0\.01 of 36 training rows is none",
        ),
        (
            {"workers": 2},
            {"features": "nystrom", "size": 13},
            r"the 13 landmarks .* and the server has 12 \(validation rows",
        ),
    ],
)
def test_too_few_rows_are_told_before_any_work(tmp_path, table, method, words):
    study = tables(federated=table, method=method)
    with pytest.raises(ValueError, match=words):
        plan_study(read_study(study))
    with pytest.raises(ValueError, match=words):
        run(study, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match=r"6 fits \(1 x 1 x 1 x 1 x 1 x 6: .*all rows and workers"):
        decompositions(
            read_study(tables(federated={"workers": [1, 2, 3, 4, 5]}, compute={"max_fits": 5}))
        )
