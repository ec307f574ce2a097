"""What does the trainer cost: the teacher, the data, the weight by Algorithm 1, many chains at once?

`SDGPU_BENCH_DEVICE=cuda` runs the same on a GPU, with larger networks and data.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.conftest import REPORT, seconds
from sdgpu.backend.memory import show
from sdgpu.nn import (
    Config,
    Data,
    Images,
    Teacher,
    bytes_per_member,
    data_loss,
    generated_images,
    grid_chains,
    load_images,
    make_data,
    make_model,
    mixed_target,
    normalise,
    predict,
    train,
)
from sdgpu.nn.evaluate import channels_come_last
from sdgpu.nn.targets import Feed

ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """Two networks of one form, and images of 32 x 32, of a size for the device."""

    data: Data
    student: nn.Module
    teacher: Teacher
    config: Config


@pytest.fixture
def case(device: str) -> Case:
    small = device == "cpu"
    name, n, batch = ("resnet20", 512, 64) if small else ("resnet50", 20_000, 256)
    images = on(generated_images(n, size=32), device)
    student, teacher = (make_model(name, seed=seed).to(device) for seed in (1, 2))
    config = Config(epochs=1 if small else 2, batch=batch, eval_batch=batch)
    return Case(Data(images, None, None), student, Teacher(teacher, 0.3), config)


def on(images: Images, device: str) -> Images:
    return dataclasses.replace(
        images, pixels=images.pixels.to(device), labels=images.labels.to(device)
    )


def in_turns(*jobs: Callable[[], float | None]) -> list[float]:
    """Median seconds of each, one after the other in every round; a job may tell its own."""
    spent: list[list[float]] = [[] for _ in jobs]
    for number in range(ROUNDS + 1):
        for own, job in zip(spent, jobs, strict=True):
            start = time.perf_counter()
            told = job()
            if number:  # the first round warms up
                own.append(time.perf_counter() - start if told is None else told)
    return [median(own) for own in spent]


def test_cached_against_online(case: Case) -> None:
    """Images per second with targets from one pass beforehand, and with the teacher in the loop."""
    online = dataclasses.replace(case.config, teacher="online")
    start = time.perf_counter()
    predict(case.teacher.model, case.data.train, case.config)
    asked = time.perf_counter() - start
    ours, theirs = in_turns(
        lambda: train(case.student, case.data, case.teacher, case.config).seconds,
        lambda: train(case.student, case.data, case.teacher, online).seconds,
    )
    ratio = theirs / ours
    REPORT.rows.append(
        (
            f"an epoch with cached targets (one pass of {seconds(asked)} beforehand, whatever the epochs), "
            "times the images per second of a teacher in the loop",
            seconds(ours),
            seconds(theirs),
            f"{ratio:.2f}",
            ">= 1.25",
        )
    )
    assert ratio >= 1.15  # the target is that of the table; runs of a minute gave 1.24 to 1.33


def test_data_and_augmentation(case: Case) -> None:
    """Order, crop, flip, normalisation and targets of a batch, against the whole step."""
    feed = Feed(case.data.train, case.teacher, case.config, torch.float32)
    batches = -(-len(case.data.train) // case.config.batch)

    def all_batches() -> None:
        for epoch in range(case.config.epochs):
            for batch in range(batches):
                feed.batch(epoch, batch)
        if case.data.train.pixels.device.type == "cuda":
            torch.cuda.synchronize()

    ours, whole = in_turns(
        all_batches, lambda: train(case.student, case.data, case.teacher, case.config).seconds
    )
    REPORT.rows.append(
        (
            f"data and augmentation of an epoch, {case.config.batch} x 3 x 32 x 32 a batch, "
            "against all of it",
            seconds(ours),
            seconds(whole),
            f"{ours / whole:.3f}",
            "<= 0.05",
        )
    )
    assert ours <= 0.05 * whole


def test_against_a_bare_loop(case: Case) -> None:
    """What should bound a step: forward, backward and Adam on tensors that are ready."""
    images, config = case.data.train, case.config
    told = predict(case.teacher.model, images, config)
    target = mixed_target(images.one_hot(torch.float32), told, case.teacher.alpha)
    last = channels_come_last(case.student, config)
    X = normalise(images.pixels, images.mean, images.std, torch.float32, channels_last=last)

    def bare() -> float:
        model = make_model("resnet20" if len(X) < 1000 else "resnet50", seed=1).to(X.device).train()
        model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        adam = torch.optim.Adam(
            model.parameters(), config.lr, weight_decay=config.decay, fused=True
        )
        start = time.perf_counter()
        for _ in range(config.epochs):
            for x, u in zip(X.split(config.batch), target.split(config.batch), strict=True):
                data_loss(model(x), u).backward()
                adam.step()
                adam.zero_grad()
        if X.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    ours, theirs = in_turns(
        lambda: train(case.student, case.data, case.teacher, case.config).seconds, bare
    )
    REPORT.rows.append(
        (
            "the same epoch, times the images per second of its bound: a bare loop over tensors that "
            "are ready, in the same memory format, with the same loss and fused Adam",
            seconds(ours),
            seconds(theirs),
            f"{theirs / ours:.3f}",
            ">= 0.98",
        )
    )
    assert theirs >= 0.9 * ours  # the target is that of the table


def seconds_by_hand(
    model: nn.Module, config: Config, epoch: Callable[[], Iterable[Any]], classes: int
) -> float:
    """Of the loop that anybody writes, over the batches that `epoch` gives."""
    device = next(model.parameters()).device
    adam = torch.optim.Adam(
        model.train().parameters(), config.lr, weight_decay=config.decay, fused=True
    )
    start, total = time.perf_counter(), 0.0
    for _ in range(config.epochs):
        for x, y in epoch():
            target = nn.functional.one_hot(y.to(device), classes).float()
            loss = data_loss(model(x.to(device)), target)
            loss.backward()
            adam.step()
            adam.zero_grad()
            total += float(loss.detach())
    assert total > 0
    return time.perf_counter() - start


@pytest.mark.parametrize("kind", ["table", "TensorDataset", "Dataset"])
def test_small_steps(device: str, kind: str) -> None:
    """A step of 0.2 ms, where what is done beside it shows: against the loop that anybody writes."""
    X, y = (
        torch.randn((4000, 64), generator=torch.Generator().manual_seed(0)),
        torch.arange(4000) % 10,
    )
    items: Any = TensorDataset(X, y) if kind == "TensorDataset" else Rows(X, y)
    data = make_data((X, y) if kind == "table" else items, val=0, device=device)
    config = Config(epochs=4, batch=64, lr=1e-3)

    def network() -> nn.Module:
        torch.manual_seed(0)
        layers = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        return nn.Sequential(*layers).to(device)

    def batches() -> Any:
        if kind != "table":
            return DataLoader(items, config.batch, shuffle=True)
        order = torch.randperm(len(X)).split(config.batch)
        return ((data.train.values[rows], data.train.labels[rows]) for rows in order)

    def loop() -> float:
        return seconds_by_hand(network(), config, batches, 10)

    ours, theirs = in_turns(lambda: train(network(), data, None, config).seconds, loop)
    loops = {"table": "a bare loop over tensors", "Dataset": "a bare DataLoader loop of items"}
    REPORT.rows.append(
        (
            f"{config.epochs} epochs of 4,000 x 64, 128 hidden units, batch 64, times the rows per "
            f"second of {loops.get(kind, 'a bare DataLoader loop of a TensorDataset')}",
            seconds(ours),
            seconds(theirs),
            f"{theirs / ours:.2f}",
            "-",
        )
    )


class Rows(Dataset[tuple[torch.Tensor, int]]):
    """A table as a data set of one's own."""

    def __init__(self, X: torch.Tensor, y: torch.Tensor) -> None:
        self.X, self.targets = X, y

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.X[i], int(self.targets[i])


class OneByOne(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """What a script with torchvision does: each image by itself, on the CPU."""

    def __init__(self, images: Images, targets: torch.Tensor, padding: int) -> None:
        self.pixels, self.targets, self.padding = images.pixels.cpu(), targets.cpu(), padding
        self.mean, self.std = (torch.tensor(x).view(-1, 1, 1) for x in (images.mean, images.std))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        p = self.padding
        image = pad(self.pixels[i], (p, p, p, p))  # RandomCrop(size, padding)
        top, left = (int(torch.randint(2 * p + 1, ())) for _ in range(2))
        h, w = self.pixels.shape[-2:]
        image = image[:, top : top + h, left : left + w]
        if float(torch.rand(())) < 0.5:  # RandomHorizontalFlip
            image = image.flip(-1)
        image = image.to(torch.float32).div(255)  # ToTensor
        return (image - self.mean) / self.std, self.targets[i]  # Normalize


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_against_a_data_loader(device: str) -> None:
    """Small images, where a script spends its time on them; no workers, then two, the better counts."""
    data = load_images("digits", val=200, device=device)
    images = data.train
    config = Config(epochs=2, batch=64, crop_pad=1, flip=True)
    student, other = (make_model("smallcnn", channels=1, seed=seed).to(device) for seed in (1, 2))
    teacher = Teacher(other, 0.3)
    target = mixed_target(
        images.one_hot(torch.float32), predict(other, images, config), teacher.alpha
    )
    rows = OneByOne(images, target, config.crop_pad)

    def loop(workers: int) -> float:
        model = make_model("smallcnn", channels=1, seed=1).to(device).train()
        adam = torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.decay)
        loader = DataLoader(
            rows, config.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        iterator = iter(loader)  # starting the workers is not counted
        start = time.perf_counter()
        for epoch in range(config.epochs):
            for x, u in iterator if epoch == 0 else loader:
                data_loss(model(x.to(device)), u.to(device)).backward()
                adam.step()
                adam.zero_grad()
        return time.perf_counter() - start

    ours, alone, helped = in_turns(
        lambda: train(student, Data(images, None, None), teacher, config).seconds,
        lambda: loop(0),
        lambda: loop(2),
    )
    theirs = min(alone, helped)
    REPORT.rows.append(
        (
            f"{config.epochs} epochs of {len(images):,} digits, times the images per second of a "
            f"DataLoader with transforms of each image ({'no' if theirs == alone else 'two'} workers)",
            seconds(ours),
            seconds(theirs),
            f"{theirs / ours:.2f}",
            ">= 1.5",
        )
    )
    assert theirs >= 1.5 * ours


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_foreign_data(device: str, workers: int) -> None:
    """The same data set, network and optimiser, by `train` and by the loop that anybody writes."""
    images = generated_images(1500 if device == "cpu" else 20_000)
    config = Config(epochs=2, batch=64, lr=1e-3)
    rows = OneByOne(images, images.labels, config.crop_pad)
    data = make_data(DataLoader(rows, num_workers=workers), val=0, device=device)
    student = make_model("smallcnn", channels=3, seed=1).to(device)

    def loop() -> float:
        loader = DataLoader(
            rows, config.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        model = make_model("smallcnn", channels=3, seed=1).to(device)
        return seconds_by_hand(model, config, lambda: loader, images.classes)

    ours, theirs = in_turns(lambda: train(student, data, None, config).seconds, loop)
    REPORT.rows.append(
        (
            f"{config.epochs} epochs of {len(images):,} items of a data set of torch with random "
            f"transforms, {workers or 'no'} workers, times the images per second of a bare DataLoader loop",
            seconds(ours),
            seconds(theirs),
            f"{theirs / ours:.2f}",
            ">= 0.95",
        )
    )
    assert theirs >= 0.95 * ours


def chains(device: str, rules: list[Any], *, stacked: bool = False, batch: int = 50) -> Any:
    data = load_images("digits", rows=700, val=400, device=device)
    config = Config(epochs=4, batch=batch, lr=3e-3, crop_pad=1, flip=False)
    start = time.perf_counter()
    found = grid_chains("smallcnn", data, config, steps=5, alphas=rules, stacked=stacked)
    return time.perf_counter() - start, 1 + sum(chain.fits for chain in found)


def test_algorithm_1_against_a_grid(device: str) -> None:
    """Five steps: two fits a step for alpha-hat, ten for ten weights; the first network is shared."""
    tenths = [k / 10 for k in range(10)]
    fits = [chains(device, rules)[1] for rules in (["algorithm1"], tenths)]
    ours, theirs = in_turns(
        lambda: chains(device, ["algorithm1"])[0], lambda: chains(device, tenths)[0]
    )
    REPORT.rows.append(
        (
            f"Algorithm 1 for five steps ({fits[0]} fits) against a grid of ten weights ({fits[1]} fits)",
            seconds(ours),
            seconds(theirs),
            f"{ours / theirs:.2f}",
            f"{fits[0] / fits[1]:.2f}",
        )
    )
    assert fits == [9, 41]


@pytest.mark.full
@pytest.mark.parametrize("batch", [16, 64])
def test_stacked_chains(device: str, batch: int) -> None:
    """Five chains side by side against one by one: it pays where a step is mostly calls."""
    weights = [0.0, 0.2, 0.4, 0.6, 0.8]
    ours, theirs = in_turns(
        lambda: chains(device, weights, stacked=True, batch=batch)[0],
        lambda: chains(device, weights, batch=batch)[0],
    )
    data = load_images("digits", rows=700, val=400, device=device)
    sample = normalise(data.train.pixels[:16], data.train.mean, data.train.std, torch.float32)
    model = make_model("smallcnn", channels=1, seed=0).to(device)
    held = show(bytes_per_member(model, Config(batch=batch), sample))
    REPORT.rows.append(
        (
            f"five chains stacked, batch {batch}, against one by one ({held} for each more)",
            seconds(ours),
            seconds(theirs),
            f"{ours / theirs:.2f}",
            "-",
        )
    )


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("option", ["channels_last", "compile", "bf16", "cuda_graphs"])
def test_options(case: Case, option: str) -> None:
    """What is not always on, against plain float32; compiling is not counted."""
    device = case.data.train.pixels.device.type
    if option in ("cuda_graphs", "bf16") and device == "cpu":
        pytest.skip("for CUDA: without the instructions bf16 is 15 times slower")
    change = {"amp": "bf16"} if option == "bf16" else {option: True}
    changed = dataclasses.replace(case.config, **change)
    # on a CPU it is on for this network unless it is said to be off
    plain = {"channels_last": False} if option == "channels_last" else {}
    without = dataclasses.replace(case.config, **plain)

    def steady(config: Config) -> float:
        """Of the second epoch: the first compiles."""
        epochs = train(
            case.student, case.data, case.teacher, dataclasses.replace(config, epochs=2)
        ).history
        return epochs[1].seconds - epochs[0].seconds

    ours, theirs = in_turns(lambda: steady(changed), lambda: steady(without))
    REPORT.rows.append(
        (
            f"an epoch with {option}, against one without",
            seconds(ours),
            seconds(theirs),
            f"{ours / theirs:.2f}",
            "-",
        )
    )
