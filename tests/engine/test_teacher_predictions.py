"""What teachers say, from arrays, files, networks and functions: values, probabilities, logits, top-k."""

import numpy as np
import pandas as pd
import pytest
import torch

import sdgpu
from sdgpu.backend.prediction_files import write_predictions
from tests.problems import assert_near

KERNEL, LAMS = sdgpu.Gaussian(0.3), [0.1, 1.0]
N, C = 20, 4


def problem():
    rng = np.random.default_rng(5)
    X, X_val, logits = (rng.standard_normal(s) for s in ((N, 3), (6, 3), (N, C)))
    return X, np.eye(C)[rng.integers(0, C, N)], X_val, 3 * logits


def plain_softmax(logits, temperature=1.0):
    """The formula as it stands, in long double."""
    e = np.exp(np.asarray(logits, dtype=np.longdouble) / temperature)
    return (e / e.sum(axis=1, keepdims=True)).astype(float)


def says(values, c=C, n=N, **how):
    Y = np.eye(c)[np.arange(n) % c] if c > 1 else np.zeros((n, 1))
    return sdgpu.TeacherPredictions(values, **how).at(np.zeros((n, 3)), Y)


def explicit_top_k(p, indices, rest):
    """Row by row."""
    found = np.zeros((len(p), C))
    for i, (row, classes) in enumerate(zip(p, indices, strict=True)):
        others = [j for j in range(C) if j not in classes]
        for value, j in zip(row, classes, strict=True):
            found[i, j] = value / row.sum() if rest == "renormalise" else value
        for j in others if rest == "spread" else ():
            found[i, j] = (1 - row.sum()) / len(others)
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["numpy", "torch", "half", "list"])
def test_logits_are_the_softmax(kind, temperature):
    _, _, _, logits = problem()
    given = {
        "numpy": logits,
        "torch": torch.tensor(logits),
        "half": torch.tensor(logits, dtype=torch.float16),
        "list": logits.tolist(),
    }[kind]
    found = says(given, output="logits", temperature=temperature)
    assert_near(
        found, plain_softmax(logits, temperature), 1e-2 / temperature if kind == "half" else 1e-13
    )
    shifted = says(logits + 1e4, output="logits", temperature=temperature)
    assert_near(shifted, plain_softmax(logits, temperature), 1e-10 / temperature)


def test_a_softmax_does_not_overflow():
    for row, wanted in (([1e308, -1e308, 0.0], [1, 0, 0]), ([1e-300, 0.0, 0.0], [1 / 3] * 3)):
        for extra in ({}, {"indices": [[0, 1, 2]]}):
            assert_near(says([row], c=3, n=1, output="logits", **extra), [wanted], 1e-15)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("rest", ["spread", "renormalise"])
def test_top_k(rest, k):
    p = plain_softmax(problem()[3])
    indices = np.argsort(-p, axis=1)[:, :k]
    top = np.take_along_axis(p, indices, axis=1)
    how = {"indices": indices, "rest": rest}
    found = says(top, output="probabilities", **how)
    assert_near(found, explicit_top_k(top, indices, rest), 1e-13)
    assert_near(found.sum(axis=1), np.ones(N), 1e-12)
    if k == C:
        assert_near(found, p, 1e-12)
    # logits of k classes know nothing of the others
    some = says(np.log(top), output="logits", indices=indices)
    assert_near(some, explicit_top_k(top, indices, "renormalise"), 1e-12)


def test_a_class_that_the_teacher_never_saw():
    """Columns of some classes, the same in every row."""
    p = plain_softmax(problem()[3][:, :3])
    found = says(p, output="probabilities", indices=[3, 0, 1])
    assert_near(found[:, [3, 0, 1]], p, 1e-15)
    assert np.abs(found[:, 2]).max() < 1e-15
    with pytest.raises(ValueError, match=r"teacher has 3 classes, Y has 4: name those of its col"):
        says(p, output="probabilities")


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_files(tmp_path, ending, dtype):
    """They may say what they have, or not."""
    logits = problem()[3].astype(dtype)
    path = tmp_path / f"teacher.{ending}"
    if ending == "npy":
        np.save(path, logits)
    elif ending == "npz":
        write_predictions(path, logits, output="logits")
    else:
        pd.DataFrame(logits, columns=[f"class_{j}" for j in range(C)]).to_parquet(path)
    wanted = says(logits, output="logits", temperature=3.0)
    for name in (path, str(path)):
        found = says(name, output="logits", temperature=3.0)
        assert_near(found, wanted, 1e-6 if dtype == np.float32 else 1e-13)
    if ending == "npz":
        assert_near(says(path, temperature=3.0), wanted, 1e-6)
        with pytest.raises(ValueError, match=r"npz says that it has logits, and output='probabil"):
            says(path, output="probabilities")
    else:
        assert_near(says(path), logits, 1e-15)  # predictions, as nobody says more


def test_files_of_top_k(tmp_path):
    p = plain_softmax(problem()[3])
    indices = np.argsort(-p, axis=1)[:, :2]
    top, path = np.take_along_axis(p, indices, axis=1), tmp_path / "top.npz"
    write_predictions(path, top, output="probabilities", indices=indices)
    wanted = explicit_top_k(top, indices, "spread")
    assert_near(says(path), wanted, 1e-13)
    assert_near(says(path, rest="renormalise"), explicit_top_k(top, indices, "renormalise"), 1e-13)
    with pytest.raises(ValueError, match=r"top\.npz has indices of its own"):
        says(path, indices=indices)
    np.savez(path, predictions=top, indices=indices)
    with pytest.raises(ValueError, match=r"indices are of classes.*name the output"):
        says(path)


def test_labels_in_a_file_show_other_rows(tmp_path):
    X, Y, _, logits = problem()
    path = tmp_path / "teacher.npz"
    write_predictions(path, logits, output="logits", labels=Y.argmax(axis=1))
    sdgpu.student(path, KERNEL, LAMS, X, Y)
    more = np.concatenate([Y.argmax(axis=1)[:12], np.zeros(8, dtype=int)])  # unlabelled ones last
    write_predictions(path, logits, output="logits", labels=more)
    sdgpu.student(path, KERNEL, LAMS, X[:12], Y[:12], unlabelled=X[12:])
    write_predictions(path, logits, output="logits", labels=Y.argmax(axis=1)[::-1].copy())
    with pytest.raises(ValueError, match=r"other labels than Y in \d+ of 20 rows"):
        sdgpu.student(path, KERNEL, LAMS, X, Y)


def test_networks_and_functions(monkeypatch):
    """In eval mode, in batches, and left as they were."""
    X, Y, X_val, _ = problem()
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(8, C)
    ).double()
    module[1].eval()
    weights = [parameter.detach().clone() for parameter in module.parameters()]
    layers = (module[0], module[3])
    hidden = np.maximum(
        X @ layers[0].weight.detach().numpy().T + layers[0].bias.detach().numpy(), 0
    )
    logits = hidden @ layers[1].weight.detach().numpy().T + layers[1].bias.detach().numpy()
    monkeypatch.setattr("sdgpu.engine.teachers.BATCH", 7)
    how = {"output": "logits", "temperature": 2.0}
    found = sdgpu.TeacherPredictions(module, **how).at(X, Y)
    assert_near(found, plain_softmax(logits, 2.0), 1e-12)
    assert [part.training for part in module] == [True, False, True, True]
    assert module.training
    assert all(map(torch.equal, weights, module.parameters()))
    assert all(parameter.grad is None for parameter in module.parameters())
    assert_near(sdgpu.TeacherPredictions(module.float(), **how).at(X, Y), found, 1e-5)

    function = sdgpu.TeacherPredictions(lambda rows: plain_softmax(rows @ np.ones((3, C))))
    one = sdgpu.student(function, KERNEL, LAMS, X, Y).predict(X_val, None, 1.0, 0.3)
    other = sdgpu.student(np.full((N, C), 1 / C), KERNEL, LAMS, X, Y).predict(X_val, None, 1.0, 0.3)
    assert_near(one, other, 1e-10)


def test_a_student_of_logits_is_that_of_their_softmax(tmp_path):
    X, Y, X_val, logits = problem()
    np.save(tmp_path / "logits.npy", logits)
    p = plain_softmax(logits, 2.0)
    wanted = sdgpu.student(p, KERNEL, LAMS, X, Y).predict(X_val, None, 1.0, 0.3, 2)
    how = {"teacher_output": "logits", "temperature": 2.0}
    for teacher in (logits, tmp_path / "logits.npy", torch.tensor(logits)):
        made = sdgpu.student(teacher, KERNEL, LAMS, X, Y, **how)
        assert_near(made.predict(X_val, None, 1.0, 0.3, 2), wanted, 1e-10)
    # several teachers, each with what it has
    two = [sdgpu.TeacherPredictions(logits, "logits", 2.0), p, sdgpu.fit(X, Y, KERNEL, LAMS)]
    made = sdgpu.student(two, KERNEL, LAMS, X, Y, weights=[0.25, 0.75, 0.0])
    assert_near(made.predict(X_val, 1.0, 1.0, 0.3, 2), wanted, 1e-10)


@pytest.mark.parametrize(
    ("values", "how", "words"),
    [
        ("logits", {"output": "probabilities"}, "of logits pass the softmax, or say so"),
        ("p", {"output": "logits"}, "every row sums to 1, as probabilities do"),
        ("p/2", {"output": "probabilities"}, "one sums to 0.5"),
        ("p", {"output": "percent"}, "teacher_output='percent'"),
        ("logits", {"output": "logits", "temperature": 0.0}, "temperature"),
        ("logits", {"output": "logits", "temperature": -1.0}, "temperature"),
        ("p", {"output": "probabilities", "temperature": 2.0}, "temperature=2 is of logits"),
        ("p", {"indices": np.zeros((N, C))}, "indices are of classes"),
        (
            "p",
            {"output": "probabilities", "indices": np.zeros((N, 2))},
            r"indices must be whole numbers",
        ),
        (
            "p",
            {"output": "probabilities", "indices": np.zeros((N, C))},
            "indices of row 0 name a class twice",
        ),
        ("p", {"output": "probabilities", "indices": [0, 1, 2, 4]}, "indices run from 0 to 4"),
        ("p", {"output": "probabilities", "indices": [0, 1, 2, 2.5]}, "must be whole numbers"),
        ("p", {"output": "probabilities", "indices": [-1, 1, 2, 0]}, "indices run from -1 to 2"),
        ("five", {"output": "probabilities", "indices": range(5)}, "top-k with k=5 of classes=4"),
        ("p", {"output": "probabilities", "rest": "others"}, "rest='others'"),
        (
            "0",
            {"output": "probabilities", "indices": [0, 1], "rest": "renormalise"},
            "which is 0 in a row",
        ),
        ("p", {"temperature": 2.0}, "a temperature is of classes"),
        ("nan", {"output": "logits"}, "teacher has 80 entries that are NaN"),
        ("rows", {"output": "logits"}, "teacher has 19 rows, but its inputs have 20"),
    ],
)
def test_refusals(values, how, words):
    logits = problem()[3]
    p = plain_softmax(logits)
    given = {
        "logits": logits,
        "p": p,
        "p/2": p / 2,
        "five": np.full((N, 5), 0.2),
        "0": np.zeros((N, 2)),
        "nan": np.full((N, C), np.nan),
        "rows": logits[1:],
    }[values]
    with pytest.raises(ValueError, match=words):
        says(given, **{**how, **({"indices": list(range(5))} if values == "five" else {})})


def test_labels_that_are_no_classes():
    X, Y, _, logits = problem()
    how = {"teacher_output": "logits"}
    with pytest.raises(ValueError, match="labels are one-hot rows"):
        sdgpu.student(logits, KERNEL, LAMS, X, 2 * Y, **how)
    with pytest.raises(ValueError, match="probabilities of one class are 1"):
        sdgpu.student(logits[:, 0], KERNEL, LAMS, X, Y[:, 0], **how)
    with pytest.raises(ValueError, match="unlabelled has 2 features"):
        sdgpu.student(logits, KERNEL, LAMS, X, Y, unlabelled=X[:, :2], **how)
    with pytest.raises(ValueError, match="Y has 19 rows"):
        sdgpu.student(logits, KERNEL, LAMS, X, Y[1:], **how)
