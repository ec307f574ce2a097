"""Chains of networks: alpha-hat is the alpha* of the kernel engine, and fits are counted."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import sdgpu
import sdgpu.nn.chain as nn_chain
from sdgpu.nn.alpha_hat import estimate_alpha
from sdgpu.nn.augment import normalise
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import predict
from sdgpu.nn.grid import grid_chains
from sdgpu.nn.network_teachers import SavedTeacher, Teacher
from sdgpu.nn.resnet import make_model
from sdgpu.nn.trainer import train
from tests.nn.problems import CLASSES, data, mlp, same_bits, state

SHORT = Config(epochs=2, batch=8, lr=0.02, decay=0.01, crop_pad=1)


@pytest.mark.parametrize("clip", [False, True])
def test_a_linear_network_has_the_weights_of_the_kernel_engine(clip):
    """Least squares with decay = lam / n, trained to convergence, is ridge with the linear kernel."""
    problem, lam, steps = data(60, size=3), 25.0, 4
    n = len(problem.train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(9, CLASSES, bias=False)).double()
    config = Config(
        epochs=60,
        batch=n,
        lr=0.6,
        optimiser="sgd",
        momentum=0.3,
        decay=lam / n,
        activation="identity",
        crop_pad=0,
        flip=False,
    )
    chain = distill_chain(linear, problem, config, steps=steps, alphas="algorithm1", clip=clip)
    X, V = (
        normalise(part.pixels, part.mean, part.std, torch.float64).flatten(1).numpy()
        for part in (problem.train, problem.val)
    )
    Y, Z = (part.one_hot(torch.float64).numpy() for part in (problem.train, problem.val))
    fit = sdgpu.fit(X, Y, sdgpu.Linear(), lams=[lam])
    truth = fit.optimal_alphas(V, Z, lam=lam, steps=steps, clip=clip)
    np.testing.assert_allclose(chain.alphas, truth.alphas, rtol=1e-6, atol=1e-7)
    losses = [record.val.loss for record in chain.records]
    # mse is the mean over rows and outputs, the score half the sum over outputs
    np.testing.assert_allclose(losses, truth.mse * CLASSES / 2, rtol=1e-8)
    assert chain.best_step == truth.best_step


def test_estimate_is_the_minimum_of_the_interpolated_loss():
    generator = torch.Generator().manual_seed(3)
    P1, P0, Y = torch.randn(3, 20, 4, generator=generator, dtype=torch.float64)
    alpha = estimate_alpha(P1, P0, Y)
    grid = torch.linspace(alpha - 1, alpha + 1, 201, dtype=torch.float64)
    losses = [float((a * P1 + (1 - a) * P0 - Y).square().sum()) for a in grid]
    assert int(np.argmin(losses)) == 100
    D, E = P0 - P1, Y - P1
    assert math.isclose(alpha, 1 - float((D * E).sum() / (D * D).sum()), rel_tol=1e-12)
    assert estimate_alpha(P1, P1, Y) == 1


def test_algorithm_1_step_by_step():
    problem, model = data(), mlp()
    chain = distill_chain(model, problem, SHORT, steps=3, alphas="algorithm1")
    first = train(model, problem, None, SHORT).model
    P1, Y = predict(first, problem.val), problem.val.one_hot(torch.float64)
    teacher, models = first, [first]
    for step in (2, 3):
        zero = train(model, problem, Teacher(teacher, 0.0), SHORT).model
        alpha = estimate_alpha(P1, predict(zero, problem.val), Y)
        assert chain.alphas[step - 2] == alpha
        teacher = train(model, problem, Teacher(teacher, alpha), SHORT).model
        models.append(teacher)
    assert all(same_bits(a, b) for a, b in zip(chain.models, models, strict=True))
    assert chain.fits == 2 * (3 - 1) + 1


def test_weights_that_are_known_cost_nothing():
    problem, model = data(), mlp()
    chain = distill_chain(model, problem, SHORT, steps=3, alphas=[1.0, 0.5])
    assert same_bits(chain.models[0], chain.models[1])
    assert chain.fits == 2
    # the weight 1 is step 1 again, bit for bit
    again = train(model, problem, Teacher(chain.models[0], 1.0), SHORT).model
    assert same_bits(again, chain.models[0])


def test_chains_start_again_from_the_same_weights_whatever_mode_of_a_factory():
    problem = data()
    factory = lambda: mlp(7)  # noqa: E731
    one = distill_chain(factory, problem, SHORT, steps=2, alphas=0.3)
    two = distill_chain(mlp(7), problem, SHORT, steps=2, alphas=[0.3])
    assert same_bits(one.models[-1], two.models[-1])
    name = distill_chain("smallcnn", problem, SHORT, steps=1, alphas=0.3)
    assert len(name.alphas) == 0


def test_a_grid_shares_the_first_network(tmp_path):
    problem, model, rules = data(), mlp(), [0.0, 0.5, "algorithm1"]
    chains = grid_chains(model, problem, SHORT, steps=3, alphas=rules, folder=tmp_path)
    shared = 1
    assert shared + sum(chain.fits for chain in chains) == 1 + 2 * 2 + 2 * 2
    alone = distill_chain(model, problem, SHORT, steps=3, alphas=0.5)
    assert same_bits(chains[1].models[-1], alone.models[-1])
    rows = json.loads((tmp_path / "seed-0" / "alpha-0.5" / "chain.json").read_text())
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[2]["alpha"] == 0.5
    assert rows[2]["val_loss"] == chains[1].records[2].val.loss


def test_a_stacked_grid_is_one_by_one():
    problem, model, rules = data(), mlp(), [0.0, [0.3, -0.2], "algorithm1"]
    one = grid_chains(model, problem, SHORT, steps=3, alphas=rules)
    stack = grid_chains(model, problem, SHORT, steps=3, alphas=rules, stacked=True)
    for a, b in zip(one, stack, strict=True):
        assert a.rule == b.rule
        assert a.fits == b.fits
        torch.testing.assert_close(state(a.models[-1]), state(b.models[-1]), rtol=1e-9, atol=1e-10)


def test_seeds_have_their_own_weights_and_order():
    chains = grid_chains(lambda: mlp_unseeded(), data(), SHORT, steps=2, alphas=[0.5], seeds=[0, 1])
    assert [chain.seed for chain in chains] == [0, 1]
    assert not same_bits(chains[0].models[0], chains[1].models[0])


def mlp_unseeded():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)).double()


def test_a_factory_that_seeds_itself_is_warned_of():
    problem = data(channels=1)
    seeded = lambda: make_model("smallcnn", classes=CLASSES, channels=1)  # noqa: E731
    once = dataclasses.replace(SHORT, epochs=1)
    with pytest.warns(UserWarning, match="gives seed 1 the weights of another seed"):
        chains = grid_chains(seeded, problem, once, steps=1, alphas=[0.5], seeds=[0, 1])
    assert [chain.seed for chain in chains] == [0, 1]
    named = grid_chains("smallcnn", problem, once, steps=1, alphas=[0.5], seeds=[0, 1])
    assert not same_bits(named[0].models[0], named[1].models[0])


@pytest.mark.parametrize("rule", [[1.0, 0.5], "algorithm1"])
def test_a_foreign_first_network_is_a_teacher_and_no_student(rule, monkeypatch):
    problem, model = data(), mlp()
    foreign = train(mlp(5), problem, None, SHORT)
    own = train(model, problem, None, SHORT).model
    monkeypatch.setattr(nn_chain, "estimate_alpha", lambda *_: 1.0)
    chain = distill_chain(model, problem, SHORT, steps=3, alphas=rule, first=foreign)
    assert chain.models[0] is foreign.model
    assert same_bits(chain.models[1], own)
    assert chain.records[1].fits == (2 if rule == "algorithm1" else 1)
    wide = train(mlp(5, width=20), problem, None, SHORT)
    with pytest.raises(
        ValueError, match=r"another architecture \(1.bias: .*\): as a teacher of step 1"
    ):
        distill_chain(model, problem, SHORT, steps=2, alphas=0.5, first=wide)
    with pytest.raises(TypeError, match=r"first must be a TrainResult.*not Sequential"):
        distill_chain(model, problem, SHORT, steps=2, alphas=0.5, first=own)


NO_VAL = dataclasses.replace(data(), val=None)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: distill_chain(mlp(), data(), SHORT, steps=0, alphas=0.5), ValueError, "steps=0"),
        (lambda: distill_chain(mlp(), data(), SHORT, steps=3, alphas=[0.5]), ValueError, "steps=3"),
        (
            lambda: distill_chain(mlp(), data(), SHORT, steps=2, alphas=math.nan),
            ValueError,
            "alphas",
        ),
        (
            lambda: distill_chain(mlp(), data(), SHORT, steps=2, alphas="algo"),
            ValueError,
            "algorithm1",
        ),
        (
            lambda: distill_chain(mlp(), NO_VAL, SHORT, steps=2, alphas="algorithm1"),
            ValueError,
            "validation",
        ),
        (
            lambda: distill_chain(mlp(), data(), SHORT, steps=2, alphas=0.5, clip=True),
            ValueError,
            "clip",
        ),
        (lambda: grid_chains(mlp(), data(), SHORT, steps=2, alphas=[]), ValueError, "empty"),
        (
            lambda: grid_chains(mlp(), data(), SHORT, steps=2, alphas=[0.5], seeds=[0, 1]),
            ValueError,
            "factory",
        ),
        (
            lambda: estimate_alpha(torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(3, 2)),
            ValueError,
            "P0 has shape",
        ),
        (
            lambda: estimate_alpha(
                torch.full((3, 2), math.nan), torch.zeros(3, 2), torch.zeros(3, 2)
            ),
            ValueError,
            "P1 must be finite",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_first_teacher_is_no_step(tmp_path):
    """By explicit trainings: step 1 of the student learns from it, and is no ordinary fit."""
    problem, model, other = data(), mlp(), mlp(5, width=20)
    said = SavedTeacher(predict(other, problem.train, SHORT))
    for teacher in (other, said):
        folder = tmp_path / type(teacher).__name__
        chain = distill_chain(
            model,
            problem,
            SHORT,
            steps=3,
            alphas=[0.2, 0.4, 1.0],
            first_teacher=teacher,
            folder=folder,
        )
        one = train(model, problem, Teacher(teacher, 0.2), SHORT).model
        two = train(model, problem, Teacher(one, 0.4), SHORT).model
        ordinary = train(model, problem, None, SHORT).model
        for found, expected in zip(chain.models, (one, two, ordinary), strict=True):
            assert same_bits(found, expected)
        assert chain.alphas.tolist() == [0.2, 0.4, 1.0]
        assert chain.fits == 3
        assert chain.first_teacher == f"first teacher {Teacher(teacher, 0.0).identity()}"
        told = [record.teacher for record in chain.records]
        assert told == [chain.first_teacher, "step 1", None]
        assert [row["teacher"] for row in json.loads((folder / "chain.json").read_text())] == told
        assert {path.name for path in folder.iterdir()} == {
            *(f"taught-step-{step}" for step in (1, 2, 3)),
            "chain.json",
        }
    # an ordinary chain in the same folder does not take them for its own
    plain = distill_chain(model, problem, SHORT, steps=2, alphas=0.4, folder=folder)
    assert same_bits(plain.models[0], ordinary)
    assert plain.first_teacher is None
    assert [record.teacher for record in plain.records] == [None, "step 1"]
    with pytest.raises(ValueError, match=r"taught-step-1.*belongs to another targets"):
        distill_chain(
            model, problem, SHORT, steps=1, alphas=0.2, first_teacher=mlp(6), folder=folder
        )


@pytest.mark.parametrize("clip", [False, True])
def test_algorithm_1_with_a_first_teacher_step_by_step(clip):
    problem, model, other = data(), mlp(), mlp(5, width=20)
    chain = distill_chain(
        model, problem, SHORT, steps=2, alphas="algorithm1", clip=clip, first_teacher=other
    )
    P1 = predict(train(model, problem, None, SHORT).model, problem.val)
    Y, teacher = problem.val.one_hot(torch.float64), other
    for step in (1, 2):
        zero = train(model, problem, Teacher(teacher, 0.0), SHORT).model
        alpha = estimate_alpha(P1, predict(zero, problem.val), Y)
        assert chain.records[step - 1].estimate == alpha
        alpha = min(max(alpha, 0.0), 1.0) if clip else alpha
        assert chain.alphas[step - 1] == alpha
        teacher = train(model, problem, Teacher(teacher, alpha), SHORT).model
        assert same_bits(teacher, chain.models[step - 1])
    assert chain.fits <= 2 * 2 + 1
    assert clip or chain.fits == 2 * 2 + 1


def test_a_grid_with_a_first_teacher_shares_the_ordinary_fit(tmp_path):
    problem, model, other = data(), mlp(), mlp(5, width=20)
    rules = [0.3, [0.5, 1.0], "algorithm1"]
    options = {"steps": 2, "first_teacher": other}
    chains = grid_chains(model, problem, SHORT, alphas=rules, folder=tmp_path, **options)
    assert [chain.fits for chain in chains] == [2, 1, 4]
    for chain, rule in zip(chains, rules, strict=True):
        alone = distill_chain(model, problem, SHORT, alphas=rule, **options)
        assert all(same_bits(a, b) for a, b in zip(chain.models, alone.models, strict=True))
    assert (tmp_path / "seed-0" / "step-1").exists()
    grid_chains(model, problem, SHORT, alphas=[0.3], folder=tmp_path / "none", **options)
    assert not (tmp_path / "none" / "seed-0" / "step-1").exists()


def test_first_teachers_that_do_not_fit():
    problem, model, other = data(), mlp(), mlp(5)
    ordinary = train(model, problem, None, SHORT)
    with pytest.raises(ValueError, match="first is step 1 and first_teacher is whom step 1 learns"):
        distill_chain(
            model, problem, SHORT, steps=2, alphas=0.5, first=ordinary, first_teacher=other
        )
    with pytest.raises(
        ValueError, match="alphas has 1 weights, but with first_teacher steps=2 needs"
    ):
        distill_chain(model, problem, SHORT, steps=2, alphas=[0.5], first_teacher=other)
    with pytest.raises(TypeError, match="the teacher's model must be a network, not Tensor"):
        distill_chain(model, problem, SHORT, steps=1, alphas=0.5, first_teacher=torch.zeros(24, 3))
