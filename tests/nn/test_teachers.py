"""Teachers from memory, from files and several of them, against explicit mixed targets."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sdgpu.backend.prediction_files import write_predictions
from sdgpu.nn.config import Config
from sdgpu.nn.data import load_images
from sdgpu.nn.evaluate import predict
from sdgpu.nn.loss import mixed_target
from sdgpu.nn.network_teachers import SavedTeacher, Teacher, TeacherEnsemble
from sdgpu.nn.own_data import make_data
from sdgpu.nn.targets import Feed
from sdgpu.nn.trainer import train
from tests.nn.problems import CLASSES, StopError, convnet, data, mlp, same_bits, stop_after

PLAIN = Config(epochs=2, batch=10, lr=0.02, decay=0.01, crop_pad=1, temperature=2.0)
DATA = data()
NETWORK = train(convnet(3), DATA, None, dataclasses.replace(PLAIN, epochs=30)).model
P = predict(NETWORK, DATA.train, PLAIN)
Y = DATA.train.one_hot(torch.float64)


def logits(network=NETWORK):
    return predict(
        network, DATA.train, dataclasses.replace(PLAIN, activation="identity", temperature=1.0)
    )


def mixed(model, config=PLAIN, alpha=0.3):
    """Targets of all rows as the feed makes them."""
    return Feed(DATA.train, Teacher(model, alpha), config, torch.float64)._mixed


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


def test_what_a_network_has_said_is_the_network():
    truth = mixed(NETWORK)
    for saved in (
        SavedTeacher(P),
        SavedTeacher(P.numpy()),
        SavedTeacher(logits(), "logits"),
        SavedTeacher(*P.topk(CLASSES)[:1], indices=P.topk(CLASSES)[1]),
        SavedTeacher(P, "predictions"),
    ):
        torch.testing.assert_close(mixed(saved), truth, rtol=1e-12, atol=1e-14)
    one = train(mlp(), DATA, Teacher(NETWORK, 0.3), PLAIN)
    two = train(mlp(), DATA, Teacher(SavedTeacher(P), 0.3), PLAIN)
    assert same_bits(one.model, two.model)


def test_hard_targets_and_other_activations():
    hard = change(hard=True)
    torch.testing.assert_close(mixed(SavedTeacher(logits(), "logits"), hard), mixed(NETWORK, hard))
    plain = change(activation="identity")
    torch.testing.assert_close(
        mixed(SavedTeacher(logits(), "logits"), plain), mixed(NETWORK, plain)
    )
    # probabilities are used as they are
    torch.testing.assert_close(mixed(SavedTeacher(P), plain), mixed_target(Y, P, 0.3))


@pytest.mark.parametrize("rest", ["spread", "renormalise"])
def test_a_top_k_row_by_row(rest):
    values, indices = P.topk(2)
    found = mixed(SavedTeacher(values, indices=indices, rest=rest), alpha=0.0)
    for row in range(len(P)):
        known = dict(zip(indices[row].tolist(), values[row].tolist(), strict=True))
        total = sum(known.values())
        for j in range(CLASSES):
            other = (1 - total) / (CLASSES - 2) if rest == "spread" else 0.0
            expected = known.get(j, other) / (total if rest == "renormalise" else 1)
            assert float(found[row, j]) == pytest.approx(expected, rel=1e-12)


def test_top_k_logits_have_the_temperature_of_the_configuration():
    values, indices = logits().topk(2)
    found = mixed(SavedTeacher(values, "logits", indices), alpha=0.0)
    expected = torch.zeros_like(found).scatter_(1, indices, (values / PLAIN.temperature).softmax(1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="a top-k of logits needs activation='softmax'"):
        fit(SavedTeacher(values, "logits", indices), activation="identity")


@pytest.mark.parametrize("mode", ["cached", "views", "online"])
def test_several_teachers_are_their_weighted_sum(mode):
    config, other = change(teacher=mode, views=2), mlp(9, width=5)
    weights = (0.5, 0.7, -0.2)
    inner = TeacherEnsemble([other, SavedTeacher(P)], [1.4, -0.4])
    flat = Teacher(TeacherEnsemble([NETWORK, other, SavedTeacher(P)], weights), 0.3)
    with pytest.raises(ValueError, match="weights sum to"):
        TeacherEnsemble([other, NETWORK], [0.7, 0.7])
    nested = TeacherEnsemble([NETWORK, inner], [0.5, 0.5])
    singles = [Teacher(one, 0.3) for one in (NETWORK, other, SavedTeacher(P))]
    feeds = [
        Feed(DATA.train, t, config, torch.float64) for t in (flat, Teacher(nested, 0.3), *singles)
    ]
    for epoch in range(3):
        found = []
        for feed in feeds:
            batch = feed.batch(epoch, 1)
            rows = batch.rows
            found.append(feed.ask(batch) if batch.target is None else batch.target)
        expected = sum(w * (one - 0.3 * Y[rows]) for w, one in zip(weights, found[2:], strict=True))
        for target in found[:2]:
            torch.testing.assert_close(target, 0.3 * Y[rows] + expected, rtol=1e-12, atol=1e-14)
    result = train(mlp(), DATA, flat, config)
    assert not same_bits(result.model, train(mlp(), DATA, singles[0], config).model)


def test_equal_weights_and_one_teacher_of_several():
    other = mlp(9)
    equal = TeacherEnsemble([NETWORK, other])
    assert equal.weights == (0.5, 0.5)
    assert torch.equal(mixed(TeacherEnsemble([NETWORK])), mixed(NETWORK))
    assert Teacher(TeacherEnsemble([NETWORK]), 0.3).identity() == Teacher(NETWORK, 0.3).identity()


@pytest.mark.parametrize("mode", ["views", "online", "paper-script"])
def test_predictions_alone_are_of_every_view(mode):
    config = change(teacher=mode)
    teacher = Teacher(SavedTeacher(P), 0.3)
    if mode == "paper-script":
        with pytest.raises(
            ValueError, match="'paper-script' needs one network, whose batch norm drifts"
        ):
            train(mlp(), DATA, teacher, config)
        return
    batch = Feed(DATA.train, teacher, config, torch.float64).batch(1, 1)
    rows, target = batch.rows, batch.target
    torch.testing.assert_close(target, mixed_target(Y, P, 0.3)[rows])
    train(mlp(), DATA, teacher, config)


def test_a_file_is_a_teacher_and_the_script_of_the_docs(tmp_path):
    path = tmp_path / "teacher.npz"
    labels = DATA.train.labels.numpy()
    write_predictions(path, P.numpy(), output="probabilities", labels=labels)
    saved = SavedTeacher.read(path)
    assert saved.name == str(path)
    assert torch.equal(mixed(saved), mixed(SavedTeacher(P)))
    np.save(tmp_path / "logits.npy", logits().numpy())
    assert SavedTeacher.read(tmp_path / "logits.npy", "logits").output == "logits"
    with pytest.raises(ValueError, match=r"logits.npy: rows of probabilities.*say output='logits'"):
        SavedTeacher.read(tmp_path / "logits.npy")
    with pytest.raises(ValueError, match="says that it holds probabilities, not output='logits'"):
        SavedTeacher.read(path, "logits")
    # rows of the file that a split left
    part = dataclasses.replace(DATA, train=DATA.train.take(torch.arange(3, 24)))
    train(mlp(), part, Teacher(saved.take(np.arange(3, 24)), 0.5), PLAIN)


def test_a_run_resumes_with_its_own_teacher_only(tmp_path):
    config = change(save_seconds=0.0)
    teacher = Teacher(SavedTeacher(P), 0.3)
    with pytest.raises(StopError):
        train(mlp(), DATA, teacher, config, folder=tmp_path, progress=stop_after(3))
    others = {
        "values": SavedTeacher(P.flip(0)),
        "kind": SavedTeacher(P, "predictions"),
        "several": TeacherEnsemble([SavedTeacher(P), NETWORK], [0.9, 0.1]),
    }
    for model in others.values():
        with pytest.raises(ValueError, match="belongs to another targets"):
            train(mlp(), DATA, Teacher(model, 0.3), config, folder=tmp_path)
    same = Teacher(SavedTeacher(P.clone()), 0.3)
    resumed = train(mlp(), DATA, same, config, folder=tmp_path)
    assert same_bits(resumed.model, train(mlp(), DATA, teacher, config).model)


def test_nobody_changes_what_was_said():
    mine = P.clone()
    saved = SavedTeacher(mine)
    before = saved.identity()
    mine.zero_()
    assert saved.identity() == before
    assert len(saved) == 24


SHUFFLED = torch.arange(60).roll(1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SavedTeacher(logits()), ValueError, "if these are logits, say output='logits'"),
        (lambda: SavedTeacher(P / 2), ValueError, "sum to 1, and one sums to 0.5"),
        (lambda: SavedTeacher(P, "logit"), ValueError, "output='logit' is not known: did you mean"),
        (
            lambda: SavedTeacher(P * float("nan")),
            ValueError,
            "the teacher: predictions must be finite",
        ),
        (lambda: SavedTeacher(P, rest="spread"), ValueError, "rest='spread' is of a top-k"),
        (
            lambda: SavedTeacher(P, indices=P),
            ValueError,
            r"indices must be whole numbers \(24, 3\)",
        ),
        (
            lambda: fit(SavedTeacher(P[:20])),
            ValueError,
            "predicts 20 rows, but there are 24 training",
        ),
        (
            lambda: fit(SavedTeacher(P[:, :2].softmax(1))),
            ValueError,
            "the teacher: predictions have 2 columns for 3 classes",
        ),
        (
            lambda: fit(
                SavedTeacher(torch.full((24, 4), 0.1), indices=torch.arange(4).expand(24, 4))
            ),
            ValueError,
            "the teacher: top-k with k=4 of classes=3: there are not so many",
        ),
        (
            lambda: fit(SavedTeacher(P, labels=DATA.train.labels.flip(0))),
            ValueError,
            "is of other rows: .* of its 24 labels are not those of the training images",
        ),
        (lambda: fit(mlp_of(5)), ValueError, "the teacher gives outputs of shape .* classes=3"),
        (lambda: fit(TeacherEnsemble([NETWORK, mlp_of(5)])), ValueError, "teacher 2 gives outputs"),
        (lambda: TeacherEnsemble([]), ValueError, "teachers is empty"),
        (lambda: TeacherEnsemble([P]), TypeError, r"teachers\[0\] must be a network, not Tensor"),
        (lambda: TeacherEnsemble([NETWORK], [1.0, 0.0]), ValueError, "2 entries for 1 teachers"),
        (lambda: TeacherEnsemble([NETWORK], [float("inf")]), ValueError, "weights must be finite"),
        (lambda: Teacher(P.numpy(), 0.5), TypeError, r"make SavedTeacher\(P\)"),
        (lambda: Teacher("a/p.npz", 0.5), TypeError, r"of a file make SavedTeacher.read\(path\)"),
        (lambda: Teacher([NETWORK], 0.5), TypeError, r"of several make TeacherEnsemble"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def fit(model, **fields):
    return train(mlp(), DATA, Teacher(model, 0.5), change(**fields))


def mlp_of(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double()


def test_rows_in_another_order_are_warned_of():
    wide = data(60)
    said = wide.train.one_hot(torch.float64)
    with pytest.warns(UserWarning, match="no more than by chance .* may be in another order"):
        train(mlp(), wide, Teacher(SavedTeacher(said[SHUFFLED]), 0.5), PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(mlp(), wide, Teacher(SavedTeacher(said), 0.5), PLAIN)


def test_a_weight_below_0_has_no_cross_entropy():
    model = TeacherEnsemble([NETWORK, SavedTeacher(P)], [1.5, -0.5])
    with pytest.warns(UserWarning, match="a teacher of weight -0.5 has no minimum"):
        train(mlp(), DATA, Teacher(model, 0.5), change(loss="cross-entropy"))


@pytest.mark.parametrize("kind", ["images", "samples", "a file"])
def test_rows_are_found_before_the_split(kind, tmp_path):
    """A table of all rows of the arrays serves whatever part was split off from them."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (50, 4, 4), np.uint8), np.arange(50) % CLASSES
    if kind == "a file":
        np.savez(tmp_path / "i.npz", images=pixels, labels=labels)
        problem = load_images(str(tmp_path / "i.npz"), val=10, rows=30, label_noise=0.2)
    else:
        X = pixels if kind == "images" else pixels.astype(float)
        problem = make_data((X, labels), val=10, test=10, seed=3)
    part = problem.train
    contents = part.contents()[0].numpy().reshape(len(part), -1)
    origin = part.origin.rows.numpy()
    np.testing.assert_array_equal(contents, pixels.reshape(50, -1)[origin])
    assert part.origin.total == 50
    every = rng.dirichlet(np.ones(CLASSES), size=50)
    every = 0.5 * every + 0.5 * np.eye(CLASSES)[labels]
    whole, own = SavedTeacher(every, labels=labels), SavedTeacher(every[origin])
    for teacher in (whole, own):
        teacher.check(part, PLAIN)
    assert torch.equal(*(one.on(part, PLAIN, torch.float64) for one in (whole, own)))
    with pytest.raises(
        ValueError, match=r"predicts 49 rows, but there are .* of 50 before the split"
    ):
        SavedTeacher(every[1:]).check(part, PLAIN)
    with pytest.raises(ValueError, match="is of other rows"):
        SavedTeacher(every, labels=np.roll(labels, 1)).check(part, PLAIN)
