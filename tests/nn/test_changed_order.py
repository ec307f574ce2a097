"""Data sets whose items change places within a class: what a teacher said is kept by position."""

import dataclasses
import multiprocessing
import re

import numpy as np
import pytest
import torch
import xxhash
from torch.utils.data import DataLoader, Subset, TensorDataset

from sdgpu.backend.checksums import row_checksums
from sdgpu.nn import (
    Config,
    SavedTeacher,
    Teacher,
    TeacherEnsemble,
    grid_chains,
    loaded_parts,
    make_data,
    order,
    predict,
    train,
)
from sdgpu.nn.item_memory import ItemMemory
from tests.nn.lookalikes import Compose, FakeCIFAR, OldNoise, OwnNoise, ToTensor
from tests.nn.problems import StopError, same_bits, stop_after
from tests.nn.test_loaded_samples import FIXED, RANDOM, Rarely, network

CACHED = Config(epochs=3, batch=10, lr=0.02, decay=0.01, save_seconds=0, teacher="cached")
VIEWS = dataclasses.replace(CACHED, teacher="views", views=2)
CHANGED = r"data, train: \d of \d+ items are not those that the teacher was asked for, numbers"


@pytest.fixture(autouse=True)
def every_batch(monkeypatch):
    monkeypatch.setattr(loaded_parts, "SMALL", 0)


class Exchanging(FakeCIFAR):
    """Two items of one class change places once a number says so, which workers share."""

    pair = (6, 27)  # none of those whose bytes are looked at when a training begins

    def __init__(self, **options):
        super().__init__(**options)
        self.exchanged = torch.zeros((), dtype=torch.int64, device="cpu").share_memory_()

    def __getitem__(self, index):
        if self.exchanged and index in self.pair:
            index = sum(self.pair) - index
        return super().__getitem__(index)


def exchange_after(dataset, batches):
    def hear(event):
        dataset.exchanged.fill_(int(event.done >= batches))

    return hear


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("config", "transform"), [(CACHED, FIXED), (VIEWS, RANDOM)])
def test_an_exchange_within_a_class_is_told(config, transform, workers):
    dataset = Exchanging(transform=transform)
    own = make_data(DataLoader(dataset, shuffle=True, num_workers=workers), val=0)
    told = Teacher(network(1), 0.3)
    with pytest.raises(RuntimeError, match=CHANGED) as caught:
        train(network(), own, told, config, progress=exchange_after(dataset, 4))
    message = str(caught.value)
    assert "sort the files" in message
    assert "Config(teacher='online')" in message
    if config is CACHED:
        assert re.search(r"(6 is what 27|27 is what 6) was: the data set has changed its", message)


def test_small_items_are_compared_in_every_eighth_batch(monkeypatch):
    """In one of each epoch at least, and all of an order that stays within eight epochs."""
    X, y = torch.zeros(40, 3), torch.arange(40) % 2
    part = make_data(TensorDataset(X, y), val=0).train.remembering(by_pass=False)
    compared = []
    monkeypatch.setattr(
        ItemMemory, "compare", lambda self, rows, base, inputs: compared.append(len(rows))
    )
    for small, batch, most in ((12, 2, 20), (13, 2, 3), (13, 8, 1), (13, 40, 1)):
        monkeypatch.setattr(loaded_parts, "SMALL", small)  # an item has 12 bytes
        reader = part.reader(dataclasses.replace(CACHED, epochs=8, batch=batch), torch.float32)
        numbers = []
        for epoch in range(8):
            compared.clear()
            rows = order(40, 0, epoch)
            for number in range(40 // batch):
                before = len(compared)
                reader.batch(rows, epoch, number)
                numbers += [number] * (len(compared) - before)
            assert max(1, most - 1) <= len(compared) <= most
        assert set(numbers) == set(range(40 // batch))


def test_workers_end_with_their_training():
    """At once, also while somebody holds the error: torch's collector waits 5 seconds for each."""
    before = set(multiprocessing.active_children())
    dataset = Exchanging(transform=FIXED)
    own = make_data(DataLoader(dataset, num_workers=2), val=0)
    told = Teacher(network(1), 0.3)
    with pytest.raises(StopError) as stopped:
        train(network(), own, told, CACHED, progress=stop_after(3))
    assert set(multiprocessing.active_children()) <= before
    with pytest.raises(RuntimeError, match=CHANGED) as changed:
        train(network(), own, told, CACHED, progress=exchange_after(dataset, 4))
    assert set(multiprocessing.active_children()) <= before
    part = own.train.remembering(by_pass=False)
    config = dataclasses.replace(CACHED, eval_batch=10)
    predict(network(), part, config)
    dataset.exchanged.fill_(0)
    with pytest.raises(RuntimeError, match=CHANGED) as asked:
        predict(network(), part, config)
    assert set(multiprocessing.active_children()) <= before
    del stopped, changed, asked


def test_numbers_are_those_of_the_data_set():
    dataset = Exchanging(transform=FIXED)
    own = make_data(Subset(Subset(dataset, range(33, -1, -1)), range(34)), val=0)
    part = own.train.take(torch.arange(33, 2, -1)).remembering(by_pass=False)
    predict(network(), part)
    dataset.exchanged.fill_(1)
    message = r"2 of 31 items .*, numbers 27, 6 of the data set; 27 is what 6 was"
    with pytest.raises(RuntimeError, match=message):
        predict(network(), part)


def test_before_the_first_batch():
    """Between what a teacher says and the training itself, and between two teachers of one ensemble."""

    class Late(torch.nn.Module):  # asked once, all is exchanged
        def __init__(self, inner, dataset):
            super().__init__()
            self.inner, self.dataset, self.asked = inner, dataset, 0

        def forward(self, X):
            self.asked += len(X)
            self.dataset.exchanged.fill_(int(self.asked >= 34))
            return self.inner(X)

    for several in (False, True):
        dataset = Exchanging(transform=FIXED)
        own = make_data(dataset, val=0)
        late = Late(network(1), dataset)
        told = TeacherEnsemble([late, network(2)]) if several else late
        with pytest.raises(RuntimeError, match=CHANGED):
            train(network(), own, Teacher(told, 0.3), CACHED)


def test_side_by_side():
    dataset = Exchanging(transform=FIXED)
    own = make_data(dataset, val=0)
    hear = exchange_after(dataset, 4)

    def later(event):
        if "stack" in event.stage:
            hear(event)

    with pytest.raises(RuntimeError, match=CHANGED):
        grid_chains(
            network(), own, CACHED, steps=2, alphas=[0.2, 0.5], stacked=True, progress=later
        )


def test_a_first_teacher_of_a_stack_wants_items_that_stay():
    own = make_data(FakeCIFAR(transform=RANDOM), val=0)
    with pytest.raises(ValueError, match="teacher='cached' with data, train, whose items are made"):
        grid_chains(
            network(), own, CACHED, steps=1, alphas=[0.2], stacked=True, first_teacher=network(1)
        )


@pytest.mark.parametrize(("config", "transform"), [(CACHED, FIXED), (VIEWS, RANDOM)])
def test_a_resume_with_another_order_is_refused(tmp_path, config, transform):
    told, dataset = Teacher(network(1), 0.3), Exchanging(transform=transform)
    whole = train(network(), make_data(dataset, val=0), told, config).model

    def go_on(**options):
        return train(network(), make_data(dataset, val=0), told, config, folder=tmp_path, **options)

    with pytest.raises(StopError):
        go_on(progress=stop_after(5))
    dataset.exchanged.fill_(1)
    with pytest.raises(ValueError, match=r"belongs to another targets \(items: 'xxh3:"):
        go_on()
    dataset.exchanged.fill_(0)
    assert same_bits(go_on().model, whole)
    dataset.exchanged.fill_(1)  # a training that has ended too
    with pytest.raises(ValueError, match=r"belongs to another targets \(items: 'xxh3:"):
        go_on()


def test_what_is_not_kept_by_position_may_change_places():
    dataset = Exchanging(transform=FIXED)
    own, online = make_data(dataset, val=0), dataclasses.replace(CACHED, teacher="online")
    for told in (None, Teacher(network(1), 0.3)):
        dataset.exchanged.fill_(0)
        train(network(), own, told, online, progress=exchange_after(dataset, 4))
        assert dataset.exchanged


@pytest.mark.parametrize("workers", [0, 2])
def test_no_false_alarm_of_random_items(workers):
    """Those that draw, now and then or always, and those that are never the same again."""
    told = Teacher(network(1), 0.3)
    for transform in (Compose(RANDOM, OldNoise()), Compose(ToTensor(), Rarely())):
        dataset = FakeCIFAR(transform=transform)
        dataset.data[::5, 0, 0, 0] = dataset.data[-1, 0, 0, 0] = 0
        own = make_data(DataLoader(dataset, num_workers=workers), val=0)
        train(network(), own, told, VIEWS)
        said = SavedTeacher(0.7 * own.train.one_hot() + 0.1)
        train(network(), own, Teacher(said, 0.3), CACHED)
    with pytest.warns(UserWarning, match="items are not the same again"):
        own = make_data(FakeCIFAR(transform=Compose(ToTensor(), OwnNoise())), val=0)
    train(network(), own, told, VIEWS)


def test_items_that_draw_where_nobody_noticed():
    """A teacher's word on one draw is not its word on the next: told, where it was silently wrong."""
    dataset = FakeCIFAR(transform=Compose(ToTensor(), Rarely()))
    rows = np.unique(np.linspace(0, 33, 8).astype(int))
    dataset.data[rows, 0, 0, 0] = 0
    own = make_data(dataset, val=0)
    assert not own.train.draws
    told = Teacher(network(1), 0.3)
    with pytest.raises(RuntimeError, match=f"{CHANGED}.* or draws random numbers for some of them"):
        train(network(), own, told, CACHED)
    train(network(), own, told, dataclasses.replace(CACHED, teacher="online"))


class Texts(torch.utils.data.Dataset):
    """Of several lengths, the most of 5 words; two change places."""

    exchanged = False

    def __len__(self):
        return 40

    def __getitem__(self, row):
        if self.exchanged and row in (6, 26):
            row = 32 - row
        length = 3 if row % 7 == 5 else 5
        return torch.arange(row, row + length), row % 2


def padded(items):
    longest = max(len(x) for x, _ in items)
    X = torch.zeros(len(items), longest, dtype=torch.int64, device="cpu")
    for i, (x, _) in enumerate(items):
        X[i, : len(x)] = x
    return X, torch.tensor([y for _, y in items], device="cpu")


def standardised(items):
    X = torch.stack([x for x, _ in items])
    return X - X.mean(0), torch.tensor([y for _, y in items], device="cpu")


class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = torch.nn.Embedding(60, 4), torch.nn.Linear(4, 2)

    def forward(self, X):
        return self.head(self.words(X).mean(1))


def test_batches_that_are_more_than_their_items():
    torch.manual_seed(0)
    config = dataclasses.replace(CACHED, batch=3, eval_batch=7)  # lengths of batches differ
    own = make_data(DataLoader(Texts(), collate_fn=padded), val=0)
    told = Teacher(Words(), 0.3)
    train(Words(), own, told, config)
    changing = Texts()
    own = make_data(DataLoader(changing, collate_fn=padded), val=0)
    with pytest.raises(RuntimeError, match=CHANGED):
        train(
            Words(),
            own,
            told,
            config,
            progress=lambda event: setattr(changing, "exchanged", event.done > 14),
        )
    dataset = FakeCIFAR(transform=FIXED)
    own = make_data(DataLoader(dataset, collate_fn=standardised), val=0)
    assert own.train.remembering(by_pass=False).memory is None
    train(network(), own, Teacher(network(1), 0.3), CACHED)


def test_checksums_of_rows(rng):
    for array in (
        rng.normal(size=(5, 3, 4)).astype(np.float32),
        rng.normal(size=(6, 8))[::2, ::-1],
        np.asfortranarray(rng.integers(0, 9, (4, 2))),
        np.zeros((3, 1), dtype=bool),
    ):
        truth = [xxhash.xxh3_64_intdigest(row.tobytes()) for row in array]
        assert row_checksums(array).tolist() == truth
    assert row_checksums(np.empty((0, 3))).shape == (0,)
    assert row_checksums(np.empty((3, 0))).tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match="no checksums of an array of object"):
        row_checksums(np.array([[None]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("by_pass", [False, True])
def test_memory_against_all_pairs(dtype, by_pass, rng):
    """Random visits, in any order and size, against a list of what was seen."""
    X = torch.from_numpy(rng.integers(0, 3, (9, 2))).to(dtype)
    memory, seen = ItemMemory("these", np.arange(9) + 100, (2,), by_pass=by_pass), {}
    alarms = 0
    for _ in range(300):
        base, rows = int(rng.integers(2)), rng.permutation(9)[: rng.integers(1, 9)]
        block = X[rows].clone()
        if rng.random() < 0.2:
            block[0, 0] += 1
        keys = [(base * by_pass, row) for row in rows.tolist()]
        different = [
            row
            for key, row, x in zip(keys, rows.tolist(), block, strict=True)
            if key in seen and seen[key] != x.tolist()
        ]
        if different:
            alarms += 1
            text = (
                f"these: {len(different)} of {len(rows)} items are .*, numbers {different[0] + 100}"
            )
            with pytest.raises(RuntimeError, match=text):
                memory.compare(rows, base, block)
            continue
        memory.compare(rows, base, block)
        seen.update(zip(keys, (x.tolist() for x in block), strict=True))
    assert alarms > 10
    assert memory.sums().shape == (9, 2 if by_pass else 1)
    memory.compare(np.arange(9), 0, X.new_full((9, 3), 5))  # of another length


@pytest.mark.parametrize(("many", "listed"), [(1, "7"), (3, "7, 8, 9"), (4, "7, 8, 9, ..")])
def test_an_error_names_the_first_numbers(many, listed):
    memory = ItemMemory("these", np.arange(7, 12), (1,), by_pass=False)
    X = torch.arange(5.0)[:, None]
    memory.compare(np.arange(5), 0, X)
    with pytest.raises(
        RuntimeError, match=f"{many} of {many} items .* numbers {listed} of the data"
    ):
        memory.compare(np.arange(many), 0, X[:many] + 10)
