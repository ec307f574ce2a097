"""Points of a learning curve against explicit refits, and the table that the documentation prints."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import qm9_curves
from tests.problems import assert_near

ROOT = Path(__file__).parent.parent.parent
POINTS = ROOT / "benchmarks" / "figures" / "qm9_curves.jsonl"


@pytest.fixture
def problem(rng, monkeypatch):
    """Smooth functions of four numbers, and counts that tell a part of them."""
    monkeypatch.setattr(qm9_curves, "HELD_OUT", 25)
    X = rng.uniform(0, 3, (100, 4))
    counts = rng.integers(0, 4, (100, 2)).astype(float)
    Y = np.stack([np.sin(X).sum(1), X[:, 0] * X[:, 1], np.cos(2 * X[:, 3])], axis=1) + counts[:, :1]
    return qm9_curves.Problem(X, Y, counts)


def kernel(A, B, width):
    return np.exp(-np.abs(A[:, None] - B).sum(axis=2) / width)


def chain(K, y, choice):
    """Targets of the last step, and its dual coefficients, by the recursion."""
    dual = np.linalg.solve(K + choice.lam * np.eye(len(K)), y)
    for _ in range(choice.step - 1):
        target = choice.alpha * y + (1 - choice.alpha) * (K @ dual)
        dual = np.linalg.solve(K + choice.lam * np.eye(len(K)), target)
    return dual


def test_a_point_is_what_refits_say(problem):
    n = 40
    found = qm9_curves.exact(problem, n, None)
    left, left_out = problem.targets(n)
    X, X_test = problem.X[:n], problem.X[-25:]
    for choices in (found["ridge"], found["chosen"]):
        for j, choice in enumerate(choices):
            K = kernel(X, X, choice.width)
            predicted = kernel(X_test, X, choice.width) @ chain(K, left[:, j], choice)
            assert_near(choice.mae, np.abs(predicted - left_out[:, j]).mean(), rtol=1e-6)
            errors = []
            for i in range(n):
                rest = np.delete(np.arange(n), i)
                dual = chain(K[np.ix_(rest, rest)], left[rest, j], choice)
                errors.append(K[i, rest] @ dual - left[i, j])
            assert_near(choice.loo, np.sqrt(np.mean(np.square(errors))), rtol=1e-6)
    assert all(one.step == 1 for one in found["ridge"])
    for j, (ridge, chosen) in enumerate(zip(found["ridge"], found["chosen"], strict=True)):
        assert chosen.loo <= ridge.loo * (1 + 1e-12), j


def test_the_best_width_has_neighbours(problem, monkeypatch):
    widths = []
    at_width = qm9_curves.at_width
    monkeypatch.setattr(
        qm9_curves, "at_width", lambda width, *rest: widths.append(width) or at_width(width, *rest)
    )
    found = qm9_curves.exact(problem, 40, 7)  # far too wide to begin with
    assert len(set(widths)) == len(widths) <= qm9_curves.MOST_WIDTHS
    if len(widths) < qm9_curves.MOST_WIDTHS:
        for choice in found["ridge"]:
            assert {choice.width / 2, choice.width * 2} <= set(widths)


def test_conjugate_gradients_say_the_same(problem, monkeypatch):
    monkeypatch.setattr(qm9_curves, "TOL", 1e-6)
    choices = [
        qm9_curves.Choice(4.0, 0.02, alpha, step) for alpha, step in ((0.3, 3), (1, 1), (0, 4))
    ]
    found = qm9_curves.carried(problem, 50, choices)
    left, left_out = problem.targets(50)
    X, X_test = problem.X[:50], problem.X[-25:]
    first = [qm9_curves.Choice(4.0, 0.02, 1.0, 1)] * 3
    for kind, every in (("ridge", first), ("chosen", choices)):
        for j, choice in enumerate(every):
            dual = chain(kernel(X, X, 4.0), left[:, j], choice)
            predicted = kernel(X_test, X, 4.0) @ dual
            truth = np.abs(predicted - left_out[:, j]).mean()
            assert_near(found[kind][j].mae, truth, rtol=1e-4)
            assert found[kind][j].step == choice.step


def test_what_is_carried_on_costs_no_property_more_than_the_margin(problem):
    n = 40
    left, _ = problem.targets(n)
    X = problem.X[:n]
    distances = np.abs(X[:, None] - X).sum(axis=2)
    tried = {
        power: qm9_curves.at_width(2.0**power, (distances, distances), (left, left))
        for power in range(-1, 4)
    }
    carry = qm9_curves.one_for_all(tried)
    assert len({(one.width, one.lam) for one in carry}) == 1
    every = np.sqrt([[tried[p].losses[i, 0, 0] for i in range(19)] for p in tried])
    best = every.min(axis=(0, 1))
    place = list(tried).index(int(np.log2(carry[0].width)))
    at = list(qm9_curves.LAMS).index(carry[0].lam)
    excess = (every / best).max(axis=2)
    assert excess[place, at] <= max(qm9_curves.MARGIN, excess.min())
    larger = excess[:, at + 1 :]
    assert not larger.size or larger.min() > max(qm9_curves.MARGIN, excess.min())
    for j, one in enumerate(carry):
        losses = tried[int(np.log2(one.width))].losses[at, :, :, j]
        assert one.loo**2 <= losses.min() * (1 + 2e-6)


def test_the_baseline_is_a_linear_fit(problem):
    left, left_out = problem.targets(50)
    design = np.column_stack([np.ones(100), problem.counts])
    slopes = np.linalg.solve(design[:50].T @ design[:50], design[:50].T @ problem.Y[:50])
    assert_near(left, problem.Y[:50] - design[:50] @ slopes, rtol=1e-10)
    assert_near(left_out, problem.Y[-25:] - design[-25:] @ slopes, rtol=1e-10)


def test_points_go_on(problem, tmp_path, capsys):
    path = tmp_path / "curve.jsonl"
    qm9_curves.one_size(problem, "coulomb", 20, path)
    with path.open("a") as file:
        file.write('{"rows": "coul')  # torn by a kill
    (first, *_) = every = qm9_curves.points(path)
    assert len(every) == 3
    assert first["method"] == "eigh"
    assert [p["property"] for p in qm9_curves.before(every, "coulomb", 50)] == [*qm9_curves.NAMES]
    assert qm9_curves.before(every, "bonds", 50) == []
    assert "| sorted Coulomb matrix | 20 |" in qm9_curves.table(every)
    qm9_curves.draw(every, str(tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_chains_are_cut_to_step_1():
    chain_of_3 = qm9_curves.Choice(4.0, 0.02, 0.3, 3, loo=0.5)
    assert qm9_curves.shortened(chain_of_3, 3) is chain_of_3
    assert qm9_curves.shortened(chain_of_3, 2) == qm9_curves.Choice(4.0, 0.02, 1.0, 1)


def test_the_documentation_prints_the_points():
    page = (ROOT / "docs" / "chemistry.md").read_text()
    for line in qm9_curves.table(qm9_curves.points(POINTS)).splitlines():
        assert line in page
    assert all(json.loads(line) for line in POINTS.read_text().splitlines())
