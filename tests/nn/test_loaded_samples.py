"""Data sets and DataLoaders of torch: the same training as by hand, the same bits after a resume."""

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from sdgpu.nn import (
    Config,
    Data,
    Teacher,
    distill_chain,
    grid_chains,
    keyed_loading,
    loaded_samples,
    make_data,
    order,
    predict,
    train,
    with_label_noise,
)
from sdgpu.nn.item_generators import (
    GENERATORS,
    StateReader,
    item_seeds,
    pass_seed,
    put_back,
    states,
)
from tests.nn.lookalikes import (
    Compose,
    FakeCIFAR,
    ForImageClassification,
    HuggingFace,
    Normalize,
    OldNoise,
    OwnNoise,
    RandomCrop,
    RandomHorizontalFlip,
    ToTensor,
    seeded,
)
from tests.nn.problems import StopError, same_bits, state, stop_after, two_ranks
from tests.nn.test_own_data import linear

CONFIG = Config(epochs=3, batch=10, lr=0.02, decay=0.01, save_seconds=0, teacher="online")
FIXED = Compose(ToTensor(), Normalize())
RANDOM = Compose(RandomCrop(), RandomHorizontalFlip(), ToTensor(), Normalize())


def arrays(dataset):
    """All items of a data set that draws nothing, as tensors."""
    items = [dataset[row] for row in range(len(dataset))]
    return torch.stack([x for x, _ in items]).double(), torch.tensor([y for _, y in items])


def network(seed=0):
    return linear(3 * 6 * 6, seed=seed)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("teacher", ["cached", "online", "views", "paper-script"])
def test_a_data_set_is_trained_on_as_its_arrays(workers, teacher):
    dataset, val = FakeCIFAR(transform=FIXED), FakeCIFAR(12, transform=FIXED, seed=1)
    loaded = make_data(
        DataLoader(dataset, 16, shuffle=True, num_workers=workers), DataLoader(val, 16), val
    )
    assert not loaded.train.draws
    assert loaded.train.shape == (3, 6, 6)
    assert (loaded.val.loading.workers, loaded.train.loading.workers) == (0, workers)
    resident = make_data(arrays(dataset), arrays(val), arrays(val))
    config = dataclasses.replace(CONFIG, teacher=teacher, views=2)
    told = Teacher(network(1), 0.3)
    one, two = (train(network(), data, told, config) for data in (loaded, resident))
    assert same_bits(one.model, two.model)
    assert [e.val_loss for e in one.history] == [e.val_loss for e in two.history]
    assert torch.equal(predict(one.model, loaded.test), predict(two.model, resident.test))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transform", ["torch", "numpy"])
@pytest.mark.parametrize("teacher", ["online", "views"])
def test_random_transforms_go_on_in_the_middle_of_an_epoch(tmp_path, workers, transform, teacher):
    transforms = {"torch": RANDOM, "numpy": Compose(ToTensor(), OldNoise())}
    config = dataclasses.replace(CONFIG, teacher=teacher, views=2)
    told = Teacher(network(1), 0.3)

    def data(workers=0):
        dataset = FakeCIFAR(transform=transforms[transform])
        return make_data(DataLoader(dataset, num_workers=workers), val=4)

    assert data().train.draws
    whole = train(network(), data(), told, config)
    for batches in (1, 5, 6):
        with pytest.raises(StopError):
            train(
                network(),
                data(workers),
                told,
                config,
                folder=tmp_path / "fit",
                progress=stop_after(batches),
            )
        random.seed(batches)  # what the caller draws has no part in it
        torch.manual_seed(batches)
    resumed = train(network(), data(), told, config, folder=tmp_path / "fit")
    assert same_bits(whole.model, resumed.model)
    other = train(network(), data(), told, dataclasses.replace(config, augment_seed=1))
    assert not same_bits(whole.model, other.model)


def test_items_are_those_of_their_seed_by_hand():
    """What a reader would compute: seeds of an epoch, items one by one, the loop of anybody."""
    dataset = FakeCIFAR(transform=RANDOM)
    own = make_data(dataset, val=0)
    found = train(network(), own, None, CONFIG).model
    model, X, y = network(), None, torch.tensor(dataset.targets)
    optimiser = torch.optim.Adam(model.parameters(), lr=CONFIG.lr, weight_decay=CONFIG.decay)
    Y = torch.eye(3, dtype=torch.float64)[y]
    for epoch in range(CONFIG.epochs):
        items = []
        for row, seed in enumerate(item_seeds(np.arange(34), pass_seed(0, epoch)).tolist()):
            torch.manual_seed(seed)
            items.append(dataset[row][0].double())
        X = torch.stack(items)

        for rows in order(34, 0, epoch).split(CONFIG.batch):
            optimiser.zero_grad()
            (0.5 * (model(X[rows]).softmax(1) - Y[rows]).square().sum(1).mean()).backward()
            optimiser.step()
    assert_allclose(state(found), state(model), rtol=1e-9, atol=1e-11)
    seeds = item_seeds(np.arange(10_000), 5)
    assert len({*seeds.tolist()}) == 10_000
    bits = np.unpackbits(seeds.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert (abs(bits - 0.5) < 0.03).all()


class Rarely:
    """Draws from each generator now and then, by the brightness of an image, and from none at first."""

    def __call__(self, tensor):
        kind = int(tensor[0, 0, 0] * 255) % 7
        draws = {1: lambda: float(torch.rand(1)), 2: random.random, 3: np.random.rand}
        return tensor + draws[kind]() if kind in draws else tensor


@pytest.mark.parametrize("workers", [0, 1])
def test_generators_that_were_not_found_out_are_seeded_too(workers):
    dataset = FakeCIFAR(transform=Compose(ToTensor(), Rarely()))
    dataset.data[::5, 0, 0, 0] = dataset.data[-1, 0, 0, 0] = 0
    own = make_data(DataLoader(dataset, num_workers=workers), val=0)
    known = dataclasses.replace(own.train, draws=("torch", "numpy", "python"))
    partly = dataclasses.replace(own.train, draws=("numpy",))
    own = Data(dataclasses.replace(own.train, draws=()), None, None)
    random.seed(1)
    before = random.getstate()
    one, two, three = (
        train(network(), data, None, CONFIG)
        for data in (own, Data(known, None, None), Data(partly, None, None))
    )
    assert random.getstate() == before
    assert same_bits(one.model, two.model)
    assert same_bits(three.model, two.model)


def normal_in_store():
    np.random.randn()  # noqa: NPY002


def many():  # as many words as it makes at a time
    np.random.rand(312)  # noqa: NPY002


def other_bits():
    np.random.set_bit_generator(np.random.MT19937(np.random.randint(9999)))  # noqa: NPY002


def nothing():
    pass


@pytest.mark.parametrize(
    "draw",
    [
        *(np.random.rand, np.random.randn, normal_in_store, random.random, lambda: torch.rand(1)),
        *(many, other_bits, nothing, lambda: random.gauss(0, 1)),
    ],
)
@pytest.mark.parametrize("before", [nothing, normal_in_store, lambda: random.gauss(0, 1)])
def test_states_of_generators_show_every_draw(draw, before):
    """As NumPy tells them in full, though it is hardly ever asked."""
    bits = np.random.get_bit_generator()
    np.random.seed(1)  # noqa: NPY002
    try:
        read = StateReader()
        for _ in range(3):
            before()
            first = read(GENERATORS)
            assert first == states() == read(GENERATORS)
            draw()
            last = read(GENERATORS)
            assert last == states() == read(GENERATORS)
            assert (last == first) == (draw is nothing)
        put_back(GENERATORS, first)
        assert states() == first
    finally:
        np.random.set_bit_generator(bits)


class OneByOne(TensorDataset):
    """Whose items may be anything."""

    def __getitem__(self, row):
        x, y = super().__getitem__(row)
        return x + 1, y


@pytest.mark.parametrize("workers", [0, 1])
def test_tensors_in_memory_are_taken_by_whole_batches(monkeypatch, workers):
    X, y = arrays(FakeCIFAR(transform=FIXED))
    plain = TensorDataset(X, y, X)
    part = Subset(Subset(plain, [*range(30, 2, -1)]), np.arange(25))
    for dataset in (plain, part, OneByOne(X, y)):
        one = make_data(DataLoader(dataset, num_workers=workers), val=4)
        with monkeypatch.context() as patch:
            patch.setattr(keyed_loading, "_gathered", lambda dataset: None)
            slow = make_data(dataset, val=4)
            truth = train(network(), slow, None, CONFIG)
        found = train(network(), one, None, CONFIG)
        assert same_bits(found.model, truth.model)
        assert found.history[-1].val_loss == truth.history[-1].val_loss
    data = make_data(part, val=4)
    monkeypatch.setattr(TensorDataset, "__getitem__", None)
    predict(network(), data.train)


def test_the_callers_random_numbers_stay():
    own = make_data(FakeCIFAR(transform=Compose(RANDOM, OldNoise())), val=0)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    numbers = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    train(network(), own, None, CONFIG)
    predict(network(), own.train)
    make_data(FakeCIFAR(transform=RANDOM), val=3)
    assert numbers == (torch.rand(1), random.random(), np.random.rand())  # noqa: NPY002


def test_cached_teachers_want_items_that_stay():
    own = make_data(FakeCIFAR(transform=RANDOM), val=4)
    cached = dataclasses.replace(CONFIG, teacher="cached")
    message = r"teacher='cached' with data, train, whose items .* Config\(teacher='online'\)"
    with pytest.raises(ValueError, match=message):
        train(network(), own, Teacher(network(), 0.5), cached)
    with pytest.raises(ValueError, match=message):
        distill_chain(network(), own, cached, steps=2, alphas=0.5)
    with pytest.raises(ValueError, match=message):
        grid_chains(network(), own, cached, steps=2, alphas=[0.5])
    assert len(distill_chain(network(), own, cached, steps=1, alphas=0.5).models) == 1
    chain = distill_chain("smallcnn", own, CONFIG, steps=2, alphas="algorithm1")
    assert np.isfinite(chain.alphas).all()


def test_generators_that_nobody_can_seed():
    dataset = FakeCIFAR(transform=Compose(ToTensor(), OwnNoise()))
    with pytest.warns(UserWarning, match=r"data, train: items are not the same again"):
        own = make_data(dataset, val=0)
    assert own.train.draws
    assert not own.train.repeats
    train(network(), own, None, CONFIG)


def hugging_face(n=30):
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(x) for x in rng.normal(size=(n, 4, 4)).astype(np.float32)]
    plain = HuggingFace({"image": images, "label": [row % 3 for row in range(n)]})

    def transform(batch):
        scaled = [2 * image for image in batch["image"]]
        return {"pixel_values": scaled, "labels": batch["label"]}

    return plain, plain.with_transform(transform)


def test_data_sets_of_hugging_face():
    plain, transformed = hugging_face()
    own = make_data(transformed, val=6, test=plain)
    assert own.train.labels.tolist() == [plain["label"][i] for i in own.train.index.tolist()]
    model = seeded(ForImageClassification)
    chain = distill_chain(
        model, own, dataclasses.replace(CONFIG, teacher="cached"), steps=2, alphas="algorithm1"
    )
    X = torch.stack([2 * image for image in plain["image"]]).double()
    resident = make_data((X, plain["label"]), val=6, test=(X / 2, plain["label"]))
    truth = distill_chain(
        model, resident, dataclasses.replace(CONFIG, teacher="cached"), steps=2, alphas="algorithm1"
    )
    assert chain.alphas == truth.alphas
    before = transformed.batches
    predict(model, own.train)
    assert transformed.batches - before <= 2  # items come in batches where a data set can give them
    named = HuggingFace({"picture": plain["image"], "kind": plain["label"]})
    with pytest.raises(ValueError, match=r"items have \['picture', 'kind'\]: say which are"):
        make_data(named)
    assert make_data(named, keys=("picture", "kind"), val=0).train.shape == (4, 4)
    with pytest.raises(ValueError, match=r"items have no 'image', only \['picture', 'kind'\]"):
        make_data(named, keys=("image", "kind"))


class Unlabelled(torch.utils.data.Dataset):
    """Says nothing of its labels but in its items."""

    reads = 0

    def __len__(self):
        return 20

    def __getitem__(self, row):
        self.reads += 1
        return torch.full((3,), float(row)), row % 2


def test_labels_are_found_where_they_are_kept():
    cifar = FakeCIFAR(transform=FIXED)
    X, y = arrays(cifar)
    subset = Subset(cifar, [5, 3, 20, 4])
    for dataset, labels in (
        (cifar, y),
        (subset, y[[5, 3, 20, 4]]),
        (Subset(subset, [3, 0, 1]), y[[4, 5, 3]]),
        (ConcatDataset([cifar, subset]), torch.cat([y, y[[5, 3, 20, 4]]])),
        (TensorDataset(X, y), y),
        (Unlabelled(), torch.arange(20) % 2),
        (FakeCIFAR(transform=FIXED, target_transform=lambda y: 2 - y), 2 - y),
    ):
        assert torch.equal(loaded_samples(dataset, classes=3).labels, labels)
    told = Unlabelled()
    part = loaded_samples(told, np.arange(20) % 2)
    assert told.reads < 40
    assert part.labels.tolist() == [0, 1] * 10
    by_loader = DataLoader(cifar, sampler=torch.utils.data.SubsetRandomSampler([7, 1, 2]))
    assert loaded_samples(by_loader, classes=3).labels.tolist() == y[[7, 1, 2]].tolist()


class Moving(FakeCIFAR):
    """Items that are in another order from some time on."""

    shift = 0

    def __getitem__(self, index):
        return super().__getitem__((index + self.shift) % len(self))


def test_another_order_is_told(tmp_path):
    dataset = Moving(transform=FIXED)
    own, config = make_data(dataset, val=0), dataclasses.replace(CONFIG, teacher="cached")
    whole = train(network(), own, Teacher(network(1), 0.3), config)
    with pytest.raises(StopError):
        train(network(), own, None, config, folder=tmp_path, progress=stop_after(5))
    dataset.shift = 1
    with pytest.raises(RuntimeError, match=r"items (are not what they were|have other labels)"):
        train(network(), own, None, config)
    with pytest.raises(RuntimeError, match=r"10 of 10 items have other labels than before"):
        predict(whole.model, own.train, dataclasses.replace(config, eval_batch=10))
    dataset.shift = 3  # labels are in order, the items are not
    with pytest.raises(RuntimeError, match="items are not what they were"):
        train(network(), own, None, config)
    again = make_data(dataset, val=0)
    with pytest.raises(ValueError, match="belongs to another data"):
        train(network(), again, None, config, folder=tmp_path)
    dataset.shift = 0
    resumed = train(network(), make_data(dataset, val=0), None, config, folder=tmp_path)
    assert same_bits(resumed.model, train(network(), own, None, config).model)

    def later(event):
        dataset.shift = int(event.done > 4)

    with pytest.raises(
        RuntimeError, match="have other labels than before: the data set has changed"
    ):
        train(network(), own, None, config, progress=later)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.zeros(3), 0


class NoLength(torch.utils.data.Dataset):
    def __getitem__(self, row):
        return torch.zeros(3), 0


def test_what_cannot_be_trained_on():
    for dataset in (Endless(), DataLoader(Endless()), NoLength()):
        with pytest.raises(
            TypeError, match=r"data, train: \w+ has no length and no items by number"
        ):
            make_data(dataset)
    with pytest.raises(ValueError, match="has no items"):
        make_data(TensorDataset(torch.zeros(0, 3), torch.zeros(0)))
    cifar = FakeCIFAR(transform=FIXED)
    weighted = torch.utils.data.WeightedRandomSampler([1.0] * 34, 34)
    with pytest.raises(
        ValueError, match="draws with WeightedRandomSampler, but a training draws its"
    ):
        make_data(DataLoader(cifar, sampler=weighted))
    with pytest.raises(TypeError, match=r"items cannot be put into a batch: .* \(ToTensor\)"):
        make_data(FakeCIFAR())
    with pytest.raises(TypeError, match=r"inputs of a batch are torch.uint8, but must be floats"):
        make_data(FakeCIFAR(transform=lambda image: torch.from_numpy(np.array(image))))
    with pytest.raises(ValueError, match="items have 1 entry: they must be"):
        make_data(TensorDataset(torch.zeros(9, 3)))
    with pytest.raises(ValueError, match=r"labels of a batch are torch.float32 \(9,\)"):
        make_data(TensorDataset(torch.zeros(9, 3), torch.zeros(9)))
    with pytest.raises(ValueError, match=r"labels must be \(34,\), one per item, got \(3,\)"):
        loaded_samples(cifar, [0, 1, 2])
    with pytest.raises(ValueError, match="no item of class 1 among 12"):
        loaded_samples(Subset(cifar, [i for i in range(34) if i % 3 != 1][:12]))
    with pytest.raises(ValueError, match="no row of class 1 among 12"):
        make_data(Subset(cifar, [i for i in range(34) if i % 3 != 1][:12]), val=cifar)
    with pytest.raises(ValueError, match="standardise=True is for arrays of numbers"):
        make_data(cifar, standardise=True)
    own = make_data(Subset(cifar, range(20)), val=Subset(cifar, [0, 3, 6]))
    assert own.val.classes == 3
    with pytest.raises(ValueError, match=r"has labels \(19,\) for items \(20,\)"):
        Data(dataclasses.replace(own.train, labels=own.train.labels[1:]), None, None)


def test_noise_on_labels_of_items():
    own = make_data(FakeCIFAR(transform=FIXED), val=0)
    noisy = Data(with_label_noise(own.train, 0.3), None, None)
    resident = make_data(arrays(FakeCIFAR(transform=FIXED)), val=0)
    truth = Data(with_label_noise(resident.train, 0.3), None, None)
    one, two = (train(network(), data, None, CONFIG) for data in (noisy, truth))
    assert same_bits(one.model, two.model)


def test_a_collate_function_and_workers_of_ones_own(tmp_path):
    started = []

    def collate(items):
        return {
            "x": torch.stack([2 * x for x, _ in items]),
            "y": torch.tensor([y for _, y in items]),
        }

    dataset = FakeCIFAR(transform=FIXED)
    loader = DataLoader(
        dataset, 4, collate_fn=collate, worker_init_fn=started.append, num_workers=1
    )
    X, y = arrays(dataset)
    own, resident = make_data(loader, val=0), make_data((2 * X, y), val=0)
    one, two = (train(network(), data, None, CONFIG) for data in (own, resident))
    assert_allclose(state(one.model), state(two.model), rtol=1e-6, atol=1e-7)
    assert make_data(loader, val=0, workers=0).train.loading.workers == 0


WORKER = """
import sys
import torch
torch.set_num_threads(1)
from sdgpu.nn import Teacher, make_data, train
from tests.nn.lookalikes import FakeCIFAR
from tests.nn.problems import state
from tests.nn.test_loaded_samples import CONFIG, FIXED, RANDOM, network, of_positions

data, told = make_data(FakeCIFAR(transform=RANDOM), val=6), Teacher(network(1), 0.3)
model = train(network(), data, told, CONFIG).model
train(network(), make_data(FakeCIFAR(transform=FIXED), val=6), told, of_positions(), folder=sys.argv[1] + "/fit")
torch.save(state(model), f"{sys.argv[1]}/{torch.distributed.get_rank()}.pt")
"""


def of_positions():
    return dataclasses.replace(CONFIG, teacher="cached", eval_batch=10)


def test_two_processes_see_what_one_sees(tmp_path):
    two_ranks(WORKER, tmp_path)
    data, told = make_data(FakeCIFAR(transform=RANDOM), val=6), Teacher(network(1), 0.3)
    alone = state(train(network(), data, told, CONFIG).model)
    # each asked a teacher for its share of the items; their checksums are those of all in one process
    fixed = make_data(FakeCIFAR(transform=FIXED), val=6)
    assert train(network(), fixed, told, of_positions(), folder=tmp_path / "fit").history
    for rank in range(2):
        assert_allclose(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-9, atol=1e-11)


def test_channels_last_and_other_types():
    own = make_data(FakeCIFAR(transform=FIXED), val=4)
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))

        def forward(self, x):
            seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return self.inner(x)

    train(Watched().double(), own, None, dataclasses.replace(CONFIG, channels_last=True))
    assert {*seen[4:]} == {(torch.float64, True)}


INTERRUPTED = """
import os, signal, sys, time
import torch
torch.set_num_threads(1)
from torch.utils.data import DataLoader
from sdgpu.nn import make_data, train
from tests.nn.lookalikes import FakeCIFAR
from tests.nn.test_loaded_samples import CONFIG, RANDOM, network

def hook(event):
    if event.done == 5:
        os.killpg(0, signal.SIGINT)  # as a terminal does: to the workers too
        time.sleep(0.5)

data = make_data(DataLoader(FakeCIFAR(transform=RANDOM), num_workers=2), val=4)
try:
    train(network(), data, None, CONFIG, folder=sys.argv[1], progress=hook)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(os.name != "posix", reason="groups of processes")
def test_an_interrupt_of_all_processes_is_a_saved_training(tmp_path):
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 130, run.stderr[-2000:]
    data = make_data(FakeCIFAR(transform=RANDOM), val=4)
    resumed = train(network(), data, None, CONFIG, folder=tmp_path)
    assert same_bits(resumed.model, train(network(), data, None, CONFIG).model)
