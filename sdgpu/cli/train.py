"""The command ``train``: chains of networks, from a preset or from options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sdgpu.cli.terminal import (
    RANK,
    Device,
    bars,
    console,
    errors,
    home,
    new_table,
    numbers,
    write_figure,
)
from sdgpu.nn.config import IMAGES, SPEED, Config

if TYPE_CHECKING:
    import xarray as xr

    from sdgpu.nn import SavedTeacher
    from sdgpu.study.networks.experiments import Experiment

__all__ = ["train"]

CHAINS = "Chains"
#: Options that set the field of their name.
_DIRECT = (
    *("model", "stem", "steps", "clip"),
    *("rows", "label_noise", "size", "test_as_validation", "threads"),
)


def _chains(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=CHAINS)


def _images(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=IMAGES)


ImageData = Annotated[
    str | None,
    typer.Argument(
        help="digits, mnist, cifar10, cifar100, generated, an .npz file, idx:FOLDER or folder:FOLDER"
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="mnist, digits, cifar10-small, cifar10-resnet20 or cifar10-resnet50 (the paper's)"
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(callback=home, help="folder of this experiment (default: runs/ and its name)"),
]
Resume = Annotated[
    bool, typer.Option("--resume/--fresh", help="go on with what the folder holds, or remove it")
]
Model = Annotated[str | None, _chains("resnet18, resnet20, resnet34, resnet50, resnet56, smallcnn")]
Stem = Annotated[str | None, _chains("cifar or imagenet: first layers of resnet18, 34 and 50")]
Steps = Annotated[int | None, _chains("distillation steps")]
Alphas = Annotated[
    str | None, _chains("a chain each: numbers by commas or low:high:count, algorithm1")
]
FirstTeacher = Annotated[
    Path | None,
    typer.Option(
        callback=home,
        help="predictions that step 1 learns from: .npy, .npz or .parquet, a row for each training image",
        rich_help_panel=CHAINS,
    ),
]
FirstTeacherOutput = Annotated[
    str | None, _chains("what they are, where the file does not say: probabilities or logits")
]
RankTimeout = Annotated[
    float | None, typer.Option(help="seconds that processes wait for each other (default 1800)")
]
Clip = Annotated[bool | None, _chains("clip alpha-hat to 0 .. 1")]
Seeds = Annotated[str | None, _chains("by commas, for example 0,1,2,3")]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        callback=home,
        help="where the files of CIFAR or MNIST are",
        rich_help_panel=IMAGES,
    ),
]
Val = Annotated[str | None, _images("validation images: a share or a number")]
Rows = Annotated[int | None, _images("use so many of the images that are not for the test")]
LabelNoise = Annotated[
    float | None,
    _images("give this share of training and validation images a wrong label", "--label-noise"),
]
Size = Annotated[
    int | None, _images("height and width to which pictures from a folder are cut and scaled")
]
TestToo = Annotated[
    bool | None, _images("validate on the test set, as the paper's script", "--test-as-validation")
]
Stacked = Annotated[
    bool,
    typer.Option(
        "--stacked", help="train the chains of given weights side by side", rich_help_panel=SPEED
    ),
]
Threads = Annotated[int | None, typer.Option(help="of torch on the CPU", rich_help_panel=SPEED)]


def configurable(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of :class:`~sdgpu.nn.config.Config` that has a text.

    They come last in the signature, which is all that typer looks at, and their values are in the context.
    """

    @functools.wraps(command)
    def wrapped(**options: Any) -> None:
        command(**{name: value for name, value in options.items() if name in parameters})

    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    all_parameters = dict(parameters)
    for field in dataclasses.fields(Config):
        if field.metadata:
            option = typer.Option(
                help=field.metadata["help"], rich_help_panel=field.metadata["group"]
            )
            # several numbers are written by commas
            kind = type(field.default) if not isinstance(field.default, tuple) else str
            if field.default is None:  # of channels_last, which the network decides
                kind = bool
            all_parameters[field.name] = inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
    wrapped.__signature__ = inspect.Signature(list(all_parameters.values()))  # type: ignore[attr-defined]
    wrapped.__annotations__ = {
        name: parameter.annotation for name, parameter in all_parameters.items()
    }
    return wrapped


@configurable
def train(
    context: typer.Context,
    images: ImageData = None,
    preset: Preset = None,
    out: Out = None,
    resume: Resume = True,
    model: Model = None,
    stem: Stem = None,
    steps: Steps = None,
    alphas: Alphas = None,
    clip: Clip = None,
    seeds: Seeds = None,
    data_folder: DataFolder = None,
    val: Val = None,
    rows: Rows = None,
    label_noise: LabelNoise = None,
    size: Size = None,
    test_as_validation: TestToo = None,
    stacked: Stacked = False,
    threads: Threads = None,
    first_teacher: FirstTeacher = None,
    first_teacher_output: FirstTeacherOutput = None,
    rank_timeout: RankTimeout = None,
    device: Device = "auto",
) -> None:
    """Train chains of networks: one for each weight and seed, and one by Algorithm 1.

    What is not said is as in the preset, which may be had with other images. Without one: all images, one
    seed, alpha = 0, 0.5 and Algorithm 1, and all else as in the preset digits (for digits) or
    cifar10-resnet20.

    [bold]Example:[/] sdgpu train --preset digits --out runs/digits

    [bold]Example:[/] sdgpu train digits --model resnet20 --epochs 5 --steps 3 --alphas 0.3,algorithm1

    [bold]Example:[/] sdgpu train copy.npz --preset cifar10-small --label-noise 0.2

    [bold]Example:[/] sdgpu train --preset cifar10-resnet50 --data ~/cifar --amp bf16 --channels-last
    """
    from sdgpu.backend.storage import check_writable
    from sdgpu.study.networks.network_runs import run_experiment
    from sdgpu.study.pictures import accuracy_figure

    experiment = _experiment(context.params)
    folder = out or Path("runs") / Path(experiment.name).stem
    if RANK == 0:
        check_writable(folder / "experiment.json")
    try:
        with bars(stages=2) as hook, _out_of_memory():
            results = run_experiment(
                experiment,
                folder,
                data_folder=data_folder,
                device=device,
                stacked=stacked,
                progress=hook,
                resume=resume,
                first_teacher=_first_teacher(first_teacher, first_teacher_output),
                rank_timeout=rank_timeout,
            )
    except KeyboardInterrupt:
        done = len(list((folder / "chains").glob("*.json")))
        total = len(experiment.seeds) * len(experiment.rules)
        errors.print(
            f"stopped after {done} of {total} chains: the same command with --resume (the default) goes "
            f"on from {escape(str(folder))}",
            highlight=False,
        )
        raise typer.Exit(130) from None
    _print_results(results, experiment)
    if RANK == 0:
        write_figure(accuracy_figure(results, title=experiment.name), folder / "figure5.png")
    for name in ("results.nc", "results.csv", "experiment.json"):
        console.print(f"wrote {escape(str(folder / name))}", highlight=False)


def _first_teacher(path: Path | None, output: str | None) -> SavedTeacher | None:
    from sdgpu.nn import SavedTeacher

    if path is not None:
        return SavedTeacher.read(path, output)
    if output is not None:
        raise ValueError(f"first_teacher_output={output!r} is of a file: name it, --first-teacher")
    return None


def _experiment(options: dict[str, Any]) -> Experiment:
    """The preset, or what stands in for one, with the options that were given."""
    from sdgpu.study.networks.experiments import preset

    options = {name: value for name, value in options.items() if value is not None}
    if not {"preset", "images"} & options.keys():
        raise ValueError(
            "name the images to train on (sdgpu train digits), a preset (sdgpu train --preset digits), or "
            "both: the preset's training of these images"
        )
    base = preset(options["preset"]) if "preset" in options else _without_preset(options)
    if {"preset", "images"} <= options.keys() and options["images"] != base.data:
        name = f"{Path(options['images']).stem}-{base.name}"
        base = dataclasses.replace(base, name=name, data=options["images"])
    # options have the names of the fields that they set
    changes: dict[str, Any] = {name: options[name] for name in _DIRECT if name in options}
    if "alphas" in options:
        changes["alphas"], changes["algorithm1"] = _rules(options["alphas"])
    if "seeds" in options:
        changes["seeds"] = tuple(_whole("seeds", part) for part in options["seeds"].split(","))
    if "val" in options:
        changes["val"] = _share(options["val"])
    names = {field.name for field in dataclasses.fields(Config)} & options.keys()
    fields = {name: options[name] for name in names}
    if "milestones" in fields:
        fields["milestones"] = [
            _whole("milestones", part) for part in options["milestones"].split(",")
        ]
    if "betas" in fields:
        fields["betas"] = numbers("betas", options["betas"])
    if fields.get("class_weights", "balanced") != "balanced":
        fields["class_weights"] = numbers("class_weights", options["class_weights"])
    config = dataclasses.replace(base.config, **fields)
    return dataclasses.replace(base, config=config, **changes)


def _without_preset(options: dict[str, Any]) -> Experiment:
    from sdgpu.study.networks.experiments import preset

    images = options["images"]
    base = preset("digits" if images == "digits" else "cifar10-resnet20")
    return dataclasses.replace(
        base,
        name=f"{Path(images).stem}-{options.get('model', base.model)}",
        data=images,
        alphas=(0.0, 0.5),
        seeds=(0,),
        rows=None,
        val=0.1,
    )


def _rules(text: str) -> tuple[tuple[float, ...], bool]:
    """Weights, and whether Algorithm 1 is among them."""
    parts = [part.strip() for part in text.split(",")]
    weights = [part for part in parts if part != "algorithm1"]
    try:
        alphas = numbers("alphas", ",".join(weights)).tolist() if weights else []
        alphas = [round(alpha, 12) for alpha in alphas]  # 0:1:11 has 0.3, not 0.30000000000000004
    except ValueError as error:
        raise ValueError(f"{error}, and algorithm1 for alpha-hat") from error
    return tuple(alphas), len(weights) < len(parts)


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: write whole numbers by commas") from error


def _share(text: str) -> float | int:
    try:
        return int(text) if text.strip().isdigit() else float(text)
    except ValueError as error:
        raise ValueError(
            f"val={text!r}: write a share such as 0.1, or a number of images such as 5000"
        ) from error


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """Say what helps when a device has no more memory."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(
            f"{str(error).splitlines()[0]} Raise --accumulate, lower --batch or leave out --stacked; "
            "finished chains stay"
        ) from error


def _print_results(results: xr.Dataset, experiment: Experiment) -> None:
    """Accuracy of every rule and step, and what both ways to a weight cost."""
    seeds = len(experiment.seeds)
    spread = f": mean of {seeds} seeds, lowest .. highest" if seeds > 1 else ""
    heads = ("rule", "step", "alpha", "training", "validation", "test")
    table = new_table(*heads, title=f"{experiment.name}, accuracy in %{spread}")
    taught = "first_teacher" in results.attrs
    if not taught:
        table.add_row("first fit", "1", "-", *_cells(results.isel(rule=0, step=0)))
    for rule in results["rule"].values:
        chain, title = results.sel(rule=rule), "alpha-hat" if rule == "algorithm1" else "fixed"
        table.add_section()
        for step in results["step"].values[0 if taught else 1 :]:
            point = chain.sel(step=step)
            alpha = float(point["alpha"].mean())
            alpha_text = f"{alpha:.2f}" if rule == "algorithm1" else f"{alpha:g}"
            table.add_row(title, str(step), alpha_text, *_cells(point))
    console.print(table)
    weights = f"{len(experiment.alphas)} weight{'s' * (len(experiment.alphas) != 1)}"
    for name, label in (("algorithm1", "Algorithm 1"), ("grid", weights)):
        if f"{name}_fits" in results.attrs:
            fits, seconds = (
                results.attrs[f"{name}_{unit}"] / seeds for unit in ("fits", "seconds")
            )
            console.print(
                f"{label}: {fits:g} fits and {seconds:.1f} s of training for each seed",
                highlight=False,
            )
    if experiment.test_as_validation:
        console.print("the validation set was the test set: alpha-hat has seen it", style="yellow")


def _cells(point: xr.Dataset) -> list[str]:
    cells = []
    for part in ("train", "validation", "test"):
        values = 100 * point[f"{part}_accuracy"]
        if bool(values.isnull().all()):  # there are no such images
            cells.append("-")
            continue
        cell = f"{float(values.mean()):.2f}"
        if values.size > 1:
            cell += f" {float(values.min()):.1f}..{float(values.max()):.1f}"
        cells.append(cell)
    return cells
