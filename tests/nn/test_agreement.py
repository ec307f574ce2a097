"""Consensus retraining: rows by hand, and what it is worth where labels are wrong."""

import dataclasses

import numpy as np
import pytest
import torch

from sdgpu.nn.agreement import consensus
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import predict
from sdgpu.nn.network_teachers import SavedTeacher, TeacherEnsemble
from sdgpu.nn.trainer import train
from tests.nn.problems import CLASSES, data, mlp

CONFIG = Config(epochs=60, batch=50, lr=0.01, decay=0.0, crop_pad=0, flip=False)


def hear(P):
    return SavedTeacher(torch.as_tensor(P, dtype=torch.float64))


def test_rows_by_hand():
    problem = data()
    teacher = train(mlp(3), problem, None, dataclasses.replace(CONFIG, batch=12)).model
    P = predict(teacher, problem.train)
    found = consensus(problem, teacher)
    expected = [i for i in range(24) if int(P[i].argmax()) == int(problem.train.labels[i])]
    assert found.rows.nonzero().flatten().tolist() == expected
    assert torch.equal(found.data.train.pixels, problem.train.pixels[expected])
    assert torch.equal(found.data.train.labels, problem.train.labels[expected])
    assert found.data.train.mean == problem.train.mean
    assert found.data.val is problem.val
    labels = problem.train.labels.tolist()
    assert found.total == tuple(labels.count(j) for j in range(CLASSES))
    assert found.kept == tuple(sum(labels[i] == j for i in expected) for j in range(CLASSES))
    assert found.share == len(expected) / 24
    assert torch.equal(consensus(problem, hear(P)).rows, found.rows)
    weights = torch.rand(24, generator=torch.Generator().manual_seed(0))
    weighted = consensus(dataclasses.replace(problem, weights=weights), teacher)
    assert torch.equal(weighted.data.weights, weights[expected])
    said = problem.train.one_hot(torch.float64)
    said[::3] = said[::3].roll(1, dims=1)
    some = consensus(dataclasses.replace(problem, weights=weights), hear(said)).data
    assert torch.equal(some.weights, weights[torch.arange(24) % 3 > 0])
    both = TeacherEnsemble([teacher, mlp(4)], [0.6, 0.4])
    mixed = 0.6 * P + 0.4 * predict(mlp(4), problem.train)
    assert torch.equal(consensus(problem, both).rows, mixed.argmax(1) == problem.train.labels)


def test_weights_of_teachers_decide():
    """A network that is sure of the next class, beside one that is less sure of the right one."""
    problem = data()
    labels = (problem.train.labels + 1) % CLASSES
    rolled = dataclasses.replace(problem, train=dataclasses.replace(problem.train, labels=labels))
    short = dataclasses.replace(CONFIG, batch=12, epochs=15)
    right = train(mlp(3), problem, None, short).model
    wrong = train(mlp(4), rolled, None, dataclasses.replace(CONFIG, batch=12)).model
    P, Q = (predict(network, problem.train) for network in (right, wrong))
    expected = (0.8 * P + 0.2 * Q).argmax(1) == problem.train.labels
    assert not torch.equal(expected, (P + Q).argmax(1) == problem.train.labels)
    found = consensus(problem, TeacherEnsemble([right, wrong], [0.8, 0.2]))
    assert torch.equal(found.rows, expected)


def test_nothing_to_train_on_is_an_error_and_a_lost_class_a_warning():
    problem = data()
    Y = problem.train.one_hot(torch.float64)
    with pytest.raises(ValueError, match=r"agree nowhere \(0 of 24 rows\): nothing to train on"):
        consensus(problem, hear(Y.roll(1, dims=1)))
    only = Y.roll(1, dims=1)
    only[problem.train.labels == 1] = Y[problem.train.labels == 1]
    with pytest.raises(ValueError, match=r"agree in class 1 alone \(8 of 24 rows\)"):
        consensus(problem, hear(only))
    only[problem.train.labels == 2] = Y[problem.train.labels == 2]
    with pytest.warns(UserWarning, match="in no image of class 0: the student will never see it"):
        found = consensus(problem, hear(only))
    assert found.kept == (0, 8, 8)
    with pytest.raises(ValueError, match="predicts 20 rows, but there are 24"):
        consensus(problem, hear(Y[:20]))


def test_wrong_labels_are_left_out():
    """Of 40 % wrong labels half go, and four retrained networks know the clean ones better on average."""
    clean, config = data(400), dataclasses.replace(CONFIG, epochs=20)
    gains = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        wrong = torch.from_numpy(rng.random(400) < 0.4)
        moved = clean.train.labels + torch.from_numpy(rng.integers(1, CLASSES, 400))
        labels = torch.where(wrong, moved % CLASSES, clean.train.labels)
        noisy = dataclasses.replace(clean, train=dataclasses.replace(clean.train, labels=labels))
        first = train(mlp(), noisy, None, config).model
        found = consensus(noisy, first, config)
        second = train(mlp(), found.data, None, config).model
        assert float(wrong[found.rows].double().mean()) < 0.25
        before, after = (
            float((predict(m, clean.train).argmax(1) == clean.train.labels).double().mean())
            for m in (first, second)
        )
        gains.append(after - before)
    assert np.mean(gains) > 0.01
