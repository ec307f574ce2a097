"""Callers that hear every epoch of chains, grids and stacks, and may end a fit or one member."""

import csv
import dataclasses

import pytest
import torch

from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.grid import grid_chains
from sdgpu.nn.network_teachers import SavedTeacher, Teacher
from sdgpu.nn.records import FitLabel
from sdgpu.nn.stacked import Stack, train_stacked
from sdgpu.nn.trainer import train
from tests.nn.problems import StopError, convnet, data, mlp, same_bits, state, stop_after

SHORT = Config(epochs=3, batch=8, lr=0.02, decay=0.01, crop_pad=1)


def change(**fields):
    return dataclasses.replace(SHORT, **fields)


def close(one, two):
    torch.testing.assert_close(state(one), state(two), rtol=1e-9, atol=1e-10)


def without_time(history):
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in history]


def test_a_training_by_itself_says_its_stage():
    heard = []
    train(mlp(), data(), None, SHORT, on_epoch=heard.append, stage="mine")
    assert [epoch.fit for epoch in heard] == [FitLabel("mine")] * 3
    assert "fit" not in heard[0].numbers()
    assert heard[0].numbers()["val_loss"] == heard[0].val_loss


def test_a_chain_says_which_fit_an_epoch_is_of():
    heard = []
    chain = distill_chain(mlp(), data(), SHORT, steps=2, alphas="algorithm1", on_epoch=heard.append)
    names = [(e.fit.stage, e.fit.step, e.fit.alpha, e.epoch) for e in heard]
    alpha = float(chain.alphas[0])
    fits = (("step-1", 1, None), ("step-2-alpha-0", 2, 0.0), ("step-2", 2, alpha))
    assert names == [(*fit, epoch) for fit in fits for epoch in (1, 2, 3)]
    assert {(e.fit.rule, e.fit.seed, e.fit.member) for e in heard} == {("algorithm1", 0, None)}
    assert heard[-1].val_loss == chain.records[-1].val.loss


def test_a_step_that_is_ended_is_the_teacher_of_the_next(tmp_path):
    def stop(epoch):
        heard.append((epoch.fit.step, epoch.epoch))
        return epoch.fit.step == 2 and epoch.epoch == 1

    heard = []
    options = {"steps": 3, "alphas": 0.3, "folder": tmp_path, "on_epoch": stop}
    chain = distill_chain(mlp(), data(), SHORT, **options)
    assert heard == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2), (3, 3)]
    one = train(mlp(), data(), None, SHORT).model
    two = train(mlp(), data(), Teacher(one, 0.3), change(epochs=1)).model
    three = train(mlp(), data(), Teacher(two, 0.3), SHORT).model
    assert all(same_bits(a, b) for a, b in zip(chain.models, (one, two, three), strict=True))
    # what is done is done, whatever a later caller says
    heard.clear()
    again = distill_chain(mlp(), data(), SHORT, **options)
    assert heard == []
    assert all(same_bits(a, b) for a, b in zip(chain.models, again.models, strict=True))


def test_an_error_of_the_caller_ends_the_chain_which_goes_on(tmp_path):
    def fail(epoch):
        if (epoch.fit.step, epoch.epoch) == (2, 2):
            raise StopError

    options = {"steps": 3, "alphas": 0.3, "folder": tmp_path}
    with pytest.raises(StopError):
        distill_chain(mlp(), data(), SHORT, **options, on_epoch=fail)
    heard = []
    chain = distill_chain(mlp(), data(), SHORT, **options, on_epoch=heard.append)
    assert heard[0].fit.step == 2
    truth = distill_chain(mlp(), data(), SHORT, steps=3, alphas=0.3)
    assert all(same_bits(a, b) for a, b in zip(chain.models, truth.models, strict=True))


@pytest.mark.parametrize("stacked", [False, True])
def test_a_grid_is_heard_fit_by_fit_side_by_side_or_not(stacked):
    heard = []
    grid_chains(
        mlp(),
        data(),
        SHORT,
        steps=2,
        alphas=[0.0, [0.4]],
        seeds=[7],
        stacked=stacked,
        on_epoch=heard.append,
    )
    places = [(e.fit.step, e.fit.rule, e.fit.alpha, e.epoch) for e in heard]
    first = [(1, None, None, epoch) for epoch in (1, 2, 3)]
    rules = [("0.0", 0.0), ("0.4", 0.4)]
    second = [(2, *rule, epoch) for rule in rules for epoch in (1, 2, 3)]
    assert places[:3] == first
    assert sorted(places[3:]) == second
    assert {e.fit.seed for e in heard} == {7}
    assert {e.fit.member for e in heard} == ({None, 0, 1} if stacked else {None})
    assert all(isinstance(e.val_loss, float) for e in heard)


def ends(epochs):
    """Member m of a stack, or a rule of a grid, ends after epochs[m]; None lets it go on."""
    return lambda e: epochs[e.fit.member] == e.epoch


def targets(members):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(members, 24, 3, generator=generator, dtype=torch.float64)
    return logits.softmax(dim=-1)


@pytest.mark.parametrize("fields", [{}, {"ema": 0.7}, {"optimiser": "sgd", "clip_norm": 0.1}])
@pytest.mark.parametrize("make", [mlp, convnet])
def test_a_member_that_is_ended_is_the_network_of_a_shorter_training(make, fields, tmp_path):
    """Against separate trainings, and cut off in the middle of an epoch after it ended."""
    config, models, U = change(epochs=4, save_seconds=0.0, **fields), [make(0), make(1)], targets(2)
    whole = train_stacked(models, data(), U, config, on_epoch=ends([None, 2]))
    assert [len(result.history) for result in whole] == [4, 2]
    for result, model, target, epochs in zip(whole, models, U, (4, 2), strict=True):
        alone = train(model, data(), target, dataclasses.replace(config, epochs=epochs))
        close(result.model, alone.model)
        assert result.history[-1].val_loss == pytest.approx(alone.history[-1].val_loss, rel=1e-8)
    assert whole[1].status.startswith("2 epochs: on_epoch ended it, 4 epochs of 3 batches")
    for done in (8, 10):
        folder = tmp_path / str(done)
        with pytest.raises(StopError):
            train_stacked(
                models,
                data(),
                U,
                config,
                folder=folder,
                progress=stop_after(done),
                on_epoch=ends([None, 2]),
            )
        heard = []
        rest = train_stacked(models, data(), U, config, folder=folder, on_epoch=heard.append)
        assert {epoch.fit.member for epoch in heard} == {0}
        for one, two in zip(whole, rest, strict=True):
            assert same_bits(one.model, two.model)
            assert without_time(one.history) == without_time(two.history)
        rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
        assert [row["member"] for row in rows] == ["0", "1", "0", "1", "0", "0"]


def test_a_stack_whose_members_have_all_ended_has_ended(tmp_path):
    config, models = change(epochs=9), [mlp(), mlp(1)]
    run = lambda **more: train_stacked(  # noqa: E731
        models, data(), targets(2), config, folder=tmp_path, **more
    )
    one = run(on_epoch=ends([1, 3]))
    assert [len(result.history) for result in one] == [1, 3]
    assert one[0].status == (
        "1 epochs: on_epoch ended it, 3 epochs of 3 batches: on_epoch ended it, in a stack of 2"
    )
    again = run()
    assert all(same_bits(a.model, b.model) for a, b in zip(one, again, strict=True))
    with pytest.raises(TypeError, match="on_epoch must return True"):
        train_stacked(models, data(), targets(2), config, on_epoch=lambda e: e.fit.member)


def test_a_stacked_grid_ends_its_fits_as_one_by_one():
    def stop(epoch):
        return epoch.fit.rule == "0.6" and epoch.epoch == 2

    options = {"steps": 3, "alphas": [0.2, 0.6], "on_epoch": stop}
    one, stack = (
        grid_chains(mlp(), data(), SHORT, **options, stacked=stacked) for stacked in (False, True)
    )
    for a, b in zip(one, stack, strict=True):
        for x, y in zip(a.models, b.models, strict=True):
            close(x, y)


@pytest.mark.parametrize("saved", [False, True])
def test_a_stacked_grid_with_a_first_teacher_is_one_by_one(saved, tmp_path):
    """Another architecture, or predictions; step 1 has a weight of each rule, 1 among them."""
    problem = data()
    teacher = mlp(5, width=20)
    if saved:
        teacher = SavedTeacher(0.7 * problem.train.one_hot(torch.float64) + 0.1)
    options = {"steps": 2, "alphas": [0.2, [1.0, 0.5], "algorithm1"], "first_teacher": teacher}
    one = grid_chains(mlp(), problem, SHORT, **options)
    stack = grid_chains(mlp(), problem, SHORT, **options, stacked=True, folder=tmp_path)
    for a, b in zip(one, stack, strict=True):
        assert (a.rule, a.first_teacher) == (b.rule, b.first_teacher)
        assert [record.teacher for record in a.records][1:] == ["step 1"]
        assert b.records[0].teacher in (a.first_teacher, None)
        for x, y in zip(a.models, b.models, strict=True):
            close(x, y)
    # a stack trains a weight of 1 too
    assert [chain.fits for chain in one[:2]] == [2, 1]
    assert [chain.fits for chain in stack[:2]] == [2, 2]
    names = {path.name for path in (tmp_path / "seed-0").iterdir()}
    assert any(name.startswith("taught-stack-") for name in names)
    # another teacher is refused, and one of other classes before any fit
    options |= {"stacked": True, "folder": tmp_path, "first_teacher": mlp(6)}
    with pytest.raises(ValueError, match="belongs to another targets"):
        grid_chains(mlp(), problem, SHORT, **options)
    wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5)).double()
    with pytest.raises(ValueError, match=r"the teacher gives outputs of shape \(1, 5\)"):
        grid_chains(mlp(), problem, SHORT, **options | {"first_teacher": wide})


def test_a_stack_that_is_trained_directly_is_heard_by_member():
    heard = []
    train(Stack([mlp(), mlp(1)]), data(), targets(2), SHORT, on_epoch=heard.append)
    assert [(e.epoch, e.fit.member) for e in heard] == [(i, m) for i in (1, 2, 3) for m in (0, 1)]
