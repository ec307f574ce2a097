"""Networks of other libraries: what they give, what they tie, what is no weight; and files of trained ones."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from sdgpu.nn import (
    Config,
    Teacher,
    distill_chain,
    load_images,
    load_model,
    make_data,
    make_model,
    penalty,
    predict,
    smallcnn,
    train,
    train_stacked,
    with_output,
)
from sdgpu.nn.loss import penalised
from sdgpu.nn.model_outputs import logits_of
from tests.nn.lookalikes import (
    ForImageClassification,
    ForSequenceClassification,
    VisionTransformer,
    seeded,
)
from tests.nn.problems import StopError, convnet, data, same_bits, state, stop_after, two_ranks
from tests.nn.test_own_data import texts

CONFIG = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=1, save_seconds=0)


class Bare(nn.Module):
    """The logits of a network alone, by hand: what with_output and logits_of must equal."""

    def __init__(self, model, pick):
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, x):
        return self.pick(self.model(x))


class Several(nn.Module):
    """Outputs in any form."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.body, self.aux = nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x):
        x = x.flatten(1)
        main, aux = self.body(x), self.aux(x)
        return {
            "tuple": (main, aux),
            "list": [main, aux],
            "mapping": {"aux": aux, "logits": main},
            "single": {"whatever": main},
        }[self.form]


@pytest.mark.parametrize("form", ["tuple", "list", "mapping", "single", "object"])
@pytest.mark.parametrize("teacher", ["cached", "online", "views", "paper-script"])
def test_logits_are_found_in_what_a_model_gives(form, teacher):
    model = seeded(ForImageClassification) if form == "object" else seeded(Several, form)
    picks = {"mapping": lambda out: out["logits"], "single": lambda out: out["whatever"]}
    pick = picks.get(form, lambda out: out[0])
    bare = Bare(copy.deepcopy(model), pick)
    problem, config = data(), dataclasses.replace(CONFIG, teacher=teacher, views=2)
    both = [train(m, problem, Teacher(m, 0.3), config) for m in (model, bare)]
    assert same_bits(both[0].model, both[1].model.model)
    assert type(both[0].model) is type(model)
    assert type(both[0].model(torch.zeros(1, 16, dtype=torch.float64))) is type(
        model(torch.zeros(1, 16, dtype=torch.float64))
    )
    assert torch.equal(predict(both[0].model, problem.val), predict(both[1].model, problem.val))


def test_chains_and_stacks_of_such_models():
    problem = data()
    model = seeded(ForImageClassification)
    chain = distill_chain(model, problem, CONFIG, steps=2, alphas="algorithm1")
    bare = distill_chain(
        Bare(copy.deepcopy(model), lambda out: out.logits),
        problem,
        CONFIG,
        steps=2,
        alphas="algorithm1",
    )
    assert chain.alphas == bare.alphas
    Y = problem.train.one_hot(torch.float64)
    stack = train_stacked([model, model], problem, torch.stack([Y, 0.5 * Y]), CONFIG)
    alone = train(model, problem, 0.5 * Y, CONFIG)
    assert_allclose(state(stack[1].model), state(alone.model), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("output", ["aux", 1, lambda out: out[1]])
def test_another_output(tmp_path, output):
    form = "mapping" if output == "aux" else "tuple"
    model = seeded(Several, form)
    problem = make_data((np.random.default_rng(0).normal(size=(30, 16)), np.arange(30) % 2), val=4)
    with pytest.raises(ValueError, match=r"shape \(1, 3\) .* classes=2.* with_output\(model, ..\)"):
        train(model, problem, None, CONFIG)
    chosen = with_output(model, output)
    assert [name for name, _ in chosen.named_parameters()] == [
        n for n, _ in model.named_parameters()
    ]
    assert same_bits(chosen, model)
    pick = (lambda out: out["aux"]) if output == "aux" else (lambda out: out[1])
    found = train(chosen, problem, Teacher(chosen, 0.2), CONFIG, folder=tmp_path)
    bare = Bare(copy.deepcopy(model), pick)
    truth = train(bare, problem, Teacher(bare, 0.2), CONFIG)
    assert same_bits(found.model, truth.model.model)
    back = load_model(tmp_path, chosen)
    assert torch.equal(predict(back, problem.val), predict(truth.model, problem.val))
    Y = problem.train.one_hot(torch.float64)
    if not callable(output):
        stack = train_stacked(
            [chosen, with_output(model, output)], problem, Y.expand(2, -1, -1), CONFIG
        )
        assert len(stack) == 2


def test_outputs_that_are_none():
    with pytest.raises(TypeError, match=r"gives NoneType, but must give one tensor"):
        logits_of(None)
    with pytest.raises(TypeError, match=r"dict with a, b, but must .* with_output\(model, ..\)"):
        logits_of({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)})
    with pytest.raises(TypeError, match=r"tuple of list, but must"):
        logits_of(([1.0],))
    with pytest.raises(TypeError, match=r"torch.int64, which has no derivative"):
        logits_of((torch.zeros(2, 2, dtype=torch.int64),))
    with pytest.raises(TypeError, match=r"output=1.5 must be a name, a place or a function"):
        with_output(nn.Linear(2, 2), 1.5)
    with pytest.raises(TypeError, match=r"output=True must be"):
        with_output(nn.Linear(2, 2), True)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, not function"):
        with_output(smallcnn, 1)
    for output in ("logit", 7):
        with pytest.raises(
            LookupError, match=rf"output={output!r}, but the model gives dict with aux"
        ):
            with_output(seeded(Several, "mapping"), output)(torch.zeros(1, 16).double())


def test_what_a_penalty_on_weights_leaves_out():
    model = seeded(VisionTransformer)
    covered = penalised(model, "weights")
    assert covered == [
        "patch_embed.weight",
        "blocks.0.attn.in_proj_weight",
        "blocks.0.attn.out_proj.weight",
        "blocks.0.mlp.0.weight",
        "blocks.0.mlp.2.weight",
        "head.weight",
    ]
    text = seeded(ForSequenceClassification)
    assert penalised(text, "weights") == ["embeddings.weight", "classifier.weight"]
    named = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    named.no_weight_decay = lambda: {"0.weight"}
    assert penalised(named, "weights") == ["1.weight"]
    named.no_weight_decay_keywords = lambda: {"1.w"}
    assert penalised(named, "weights") == []
    assert len(penalised(named)) == 4
    wide = nn.Module()  # a bias for each place is no weight, whatever its axes
    wide.bias, wide.weight = (nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
    assert penalised(wide, "weights") == ["weight"]


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_transformer_is_trained_as_with_groups_by_hand(optimiser):
    """Groups of parameters with and without decay, as a user of timm writes them."""
    from sdgpu.nn import normalise, order

    problem = data()
    config = dataclasses.replace(
        CONFIG, optimiser=optimiser, penalty_covers="weights", decay=0.3, crop_pad=0, flip=False
    )
    found = train(seeded(VisionTransformer), problem, None, config).model
    model = seeded(VisionTransformer)
    skip = model.no_weight_decay()
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or n in skip]
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in skip]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}]
    kinds = {
        "adam": lambda: torch.optim.Adam(groups, lr=config.lr),
        "sgd": lambda: torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum),
    }
    own = kinds[optimiser]()
    X = normalise(problem.train.pixels, problem.train.mean, problem.train.std, torch.float64)
    Y = problem.train.one_hot(torch.float64)
    for epoch in range(config.epochs):
        for rows in order(len(X), 0, epoch).split(config.batch):
            own.zero_grad()
            (0.5 * (model(X[rows]).softmax(1) - Y[rows]).square().sum(1).mean()).backward()
            own.step()
    assert_allclose(state(found), state(model), rtol=1e-6, atol=1e-8)


def test_tied_weights_count_once(tmp_path):
    model, problem = seeded(ForSequenceClassification), make_data(texts(), val=6)
    squares = sum(float(p.detach().square().sum()) for p in model.parameters())
    assert float(penalty(model, 0.5).detach()) == pytest.approx(0.25 * squares)
    assert "decoder.weight" in model.state_dict()
    config = dataclasses.replace(CONFIG, epochs=2)
    whole = train(model, problem, None, config)
    assert whole.model.decoder.weight is whole.model.embeddings.weight
    with pytest.raises(StopError):
        train(model, problem, None, config, folder=tmp_path, progress=stop_after(5))
    resumed = train(model, problem, None, config, folder=tmp_path)
    assert same_bits(whole.model, resumed.model)
    back = load_model(tmp_path, model)
    assert back.decoder.weight is back.embeddings.weight
    assert back.decoder.weight is not model.decoder.weight
    assert same_bits(back, whole.model)


SMALL = [
    ("resnet20", {"classes": 7, "channels": 1}),
    ("resnet56", {}),
    ("smallcnn", {"classes": 4, "channels": 2}),
    ("resnet18", {"stem": "imagenet", "classes": 5}),
    ("resnet34", {"channels": 1}),
    ("resnet50", {"stem": "imagenet"}),
]


@pytest.mark.parametrize(("name", "options"), SMALL, ids=[name for name, _ in SMALL])
def test_known_networks_are_recognised(tmp_path, name, options):
    model = make_model(name, seed=3, **options)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    back = load_model(tmp_path / "weights.pth")
    assert same_bits(back, model)
    assert not back.training
    X = torch.rand(2, options.get("channels", 3), 32, 32)
    assert torch.equal(back(X), model.train(False)(X))


def test_folders_of_trainings(tmp_path):
    problem = load_images("generated", rows=60)
    config = Config(epochs=1, batch=20)
    chain = distill_chain("smallcnn", problem, config, steps=2, alphas=0.3, folder=tmp_path)
    for step, model in enumerate(chain.models, start=1):
        assert same_bits(load_model(tmp_path / f"step-{step}"), model)
    networks = [make_model("smallcnn", channels=3, seed=seed) for seed in (0, 1)]
    Y = problem.train.one_hot()
    results = train_stacked(
        networks, problem, Y.expand(2, -1, -1), config, folder=tmp_path / "both"
    )
    for result in results:
        assert same_bits(load_model(result.path, member=result.member), result.model)
    with pytest.raises(ValueError, match="holds 2 networks that were trained side by side"):
        load_model(tmp_path / "both")


def test_files_of_unknown_networks(tmp_path):
    for number, model in enumerate(
        (convnet(), nn.Linear(3, 2), VisionTransformer(), smallcnn(width=8), nn.Sequential())
    ):
        path = tmp_path / f"{number}.pth"
        torch.save(model.state_dict(), path)
        with pytest.raises(ValueError, match=r"no network that make_model knows: give model="):
            load_model(path)
        assert same_bits(load_model(path, model), model)
    narrow = load_model(tmp_path / "3.pth", lambda: smallcnn(width=8))
    assert same_bits(narrow, load_model(tmp_path / "3.pth", smallcnn(width=8)))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_model(tmp_path / "none")


class Sometimes(nn.Module):
    """A head that has no part in training, and a block that is left out of every second batch."""

    def __init__(self):
        super().__init__()
        self.body, self.block, self.unused = nn.Linear(16, 3), nn.Linear(3, 3), nn.Linear(16, 5)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        z = self.body(x.flatten(1))
        z = z + self.block(z) if self.calls % 2 else z
        return {"logits": z, "hidden": z.detach()}


WORKER = """
import dataclasses, sys
import torch
torch.set_num_threads(1)
import sdgpu.backend.distributed
from sdgpu.nn import make_data, train
from tests.nn.lookalikes import seeded
from tests.nn.problems import data, state
from tests.nn.test_own_models import CONFIG, Sometimes

config = dataclasses.replace(CONFIG, find_unused_parameters=True)
rank, world = torch.distributed.get_rank, sdgpu.backend.distributed.World
model = train(seeded(Sometimes), data(), None, CONFIG).model  # one host: gradients in one piece
torch.save(state(model), f"{sys.argv[1]}/{rank()}-host.pt")
world.on_one_host = False
model = train(seeded(Sometimes), data(), None, config).model
torch.save(state(model), f"{sys.argv[1]}/{rank()}-hosts.pt")
try:
    train(seeded(Sometimes), data(), None, CONFIG)
except RuntimeError as error:
    assert "find_unused_parameters=True" in str(error), error
else:
    raise AssertionError("parameters without a part were not told")
"""


def test_parameters_without_a_part_on_two_processes(tmp_path):
    two_ranks(WORKER, tmp_path)
    alone = state(train(seeded(Sometimes), data(), None, CONFIG).model)
    for path in (
        tmp_path / f"{rank}-{where}.pt" for rank in range(2) for where in ("host", "hosts")
    ):
        assert_allclose(torch.load(path), alone, rtol=1e-9, atol=1e-11)
