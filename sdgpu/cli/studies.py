"""The commands ``study init | plan | run | resume | table | plot | report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sdgpu.cli.terminal import bars, console, errors, home, new_table, write_figure

if TYPE_CHECKING:
    from sdgpu.study.grid_study.study_results import StudyResults

__all__ = ["study"]

study = typer.Typer(
    no_args_is_help=True,
    help="Studies from a TOML file: every cell once, in parallel, with tables, pictures and a report.",
)

File = Annotated[Path, typer.Argument(callback=home, help="the study, a TOML file")]
Place = Annotated[
    Path, typer.Argument(callback=home, help="the study, a TOML file, or the folder of its results")
]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", callback=home, help="of the results (default: beside the file)"),
]
Workers = Annotated[int | None, typer.Option(help="processes (default: one a core, or a GPU)")]
Loss = Annotated[str, typer.Option(help="test_mse, test_accuracy, or test_ of a metric")]


@study.command()
def init(
    file: Annotated[Path, typer.Argument(callback=home, help="where to write it")] = Path(
        "study.toml"
    ),
) -> None:
    """Write a commented study of the diabetes data, which runs in half a minute.

    [bold]Example:[/] sdgpu study init study.toml
    """
    from importlib.resources import files

    from sdgpu.backend.storage import write_file

    if file.suffix != ".toml":
        raise ValueError(f"file={str(file)!r}: studies are written in TOML, name it {file}.toml")
    if file.exists():
        raise FileExistsError(f"{file} exists: name another file, or remove it")
    text = files("sdgpu.study.grid_study").joinpath("first_study.toml").read_bytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, text)
    console.print(f"wrote {escape(str(file))}: next, sdgpu study run {escape(str(file))}")


@study.command()
def plan(file: File) -> None:
    """Show the fits of a study, and the seconds and bytes that they would take; nothing runs.

    [bold]Example:[/] sdgpu study plan study.toml
    """
    from sdgpu.backend.memory import show
    from sdgpu.study import plan_study, read_study
    from sdgpu.study.grid_study.study_cost import RESULTS_LIMIT

    config = read_study(file)
    cost = plan_study(config)
    heads = ("data", "method", "rows", "features", "fits", "cells", "s a fit", "memory")
    table = new_table(*heads, title=f"{config.name}: what it would cost")
    for price in cost.prices:
        table.add_row(
            escape(Path(price.data).name),
            price.method,
            f"{price.n:,}",
            str(price.d),
            f"{price.fits:,}",
            f"{price.cells:,}",
            f"{price.seconds:.2g}",
            show(price.bytes),
        )
    if cost.prices:
        console.print(table)
    lines = [
        f"{cost.fits:,} fits for {cost.cells:,} cells, in place of {cost.refits:,} refits",
        f"about {_duration(cost.seconds)} with {cost.workers} worker{'s' * (cost.workers != 1)}",
        f"{show(cost.result_bytes)} of results",
    ]
    if cost.networks:
        lines.append(f"{cost.networks} experiment(s) with networks, whose time is not predicted")
    for line in lines:
        console.print(f"- {line}", highlight=False)
    if cost.result_bytes > RESULTS_LIMIT:
        console.print(f"[yellow]- more results than {show(RESULTS_LIMIT)}: 'run' refuses them[/]")


@study.command()
def run(file: File, folder: Folder = None, workers: Workers = None) -> None:
    """Work on all cells of a study that are not finished.

    [bold]Example:[/] sdgpu study run study.toml --workers 2
    """
    _run(file, folder, workers, resume=False)


@study.command()
def resume(file: File, folder: Folder = None, workers: Workers = None) -> None:
    """Go on with a study that was begun: as run, but never begins one.

    [bold]Example:[/] sdgpu study resume study.toml
    """
    _run(file, folder, workers, resume=True)


@study.command()
def table(
    place: Place,
    folder: Folder = None,
    kind: Annotated[str, typer.Option("--format", help="text, csv, latex or markdown")] = "text",
    loss: Loss = "test_mse",
    by: Annotated[
        str | None, typer.Option(help="axes of a row, by commas (default: all that differ)")
    ] = None,
    out: Annotated[Path | None, typer.Option(callback=home, help="write it to a file")] = None,
) -> None:
    """Print the mean test loss of every rule, with its standard error over the seeds.

    [bold]Example:[/] sdgpu study table study.toml --format latex --out table.tex
    """
    from sdgpu.backend.checks import choice
    from sdgpu.backend.storage import write_file
    from sdgpu.study.grid_study.summary_tables import FORMATS, caption_of, formatted, shown_cells

    choice("format", kind, FORMATS)
    results = _opened(place, folder)
    axes = None if by is None else [axis.strip() for axis in by.split(",")]
    if kind == "text" and out is None:
        summary = results.summary(loss=loss, by=axes)
        cells = shown_cells(summary).reset_index()
        shown = new_table(*map(str, cells.columns), title=caption_of(results, loss, summary))
        for row in cells.itertuples(index=False):
            shown.add_row(
                *(escape(f"{cell:g}" if isinstance(cell, float) else str(cell)) for cell in row)
            )
        console.print(shown)
        return
    text = formatted(results, kind, loss=loss, by=axes)
    if out is None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
        return
    write_file(out, text.encode())
    console.print(f"wrote {escape(str(out))}")


@study.command()
def plot(
    place: Place,
    folder: Folder = None,
    out: Annotated[
        Path | None, typer.Option(callback=home, help="folder (default: pictures/ of the study)")
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="png, svg or pdf")] = "png",
    loss: Loss = "test_mse",
) -> None:
    """Draw the rules, the axes with numbers, losses over (lam, alpha) and alpha*.

    [bold]Example:[/] sdgpu study plot study.toml --format pdf
    """
    from sdgpu.backend.checks import choice
    from sdgpu.study.report.study_pictures import study_pictures

    choice("format", kind, ("png", "svg", "pdf"))
    results = _opened(place, folder)
    results.check_loss(loss)
    target = results.folder / "pictures" if out is None else out
    for picture in study_pictures(results, loss=loss):
        write_figure(picture.figure, target / f"{picture.name}.{kind}")


@study.command()
def report(
    place: Place,
    folder: Folder = None,
    out: Annotated[
        Path | None,
        typer.Option(callback=home, help="the page (default: report.html of the study)"),
    ] = None,
    loss: Loss = "test_mse",
) -> None:
    """Write one page of HTML with all tables and pictures, which needs no network.

    [bold]Example:[/] sdgpu study report study.toml
    """
    from sdgpu.study.report.page import write_report

    results = _opened(place, folder)
    path = write_report(results, out or results.folder / "report.html", loss=loss)
    console.print(f"wrote {escape(str(path))}")


def _run(file: Path, folder: Path | None, workers: int | None, *, resume: bool) -> None:
    from sdgpu.backend.checks import integer
    from sdgpu.study import run

    if workers is not None:
        integer("workers", workers, 1)
    with bars() as progress:
        results = run(file, folder, workers=workers, resume=resume, progress=progress)
    _print_state(results)
    if results.failed:
        raise typer.Exit(1)


def _print_state(results: StudyResults) -> None:
    count = len(results.records)
    console.print(
        f"{count:,} cells are finished, in {escape(str(results.folder))}", highlight=False
    )
    if results.open_cells:
        console.print(f"{results.open_cells:,} are open: run the study again", style="yellow")
    reasons: dict[str, list[str]] = {}
    for record in results.failed:
        reasons.setdefault(record["error"], []).append(record["key"])
    for error, keys in reasons.items():
        errors.print(
            f"[bold red]{len(keys)} failed[/], {escape(keys[0])} first: {escape(error)}",
            highlight=False,
            soft_wrap=True,
        )
    if results.failed:
        errors.print(
            f"tracebacks are in {escape(str(results.folder / 'cells.jsonl'))}", highlight=False
        )


def _opened(place: Path, folder: Path | None) -> Any:
    """Results of a study by its file or its folder."""
    from sdgpu.study import open_study
    from sdgpu.study.grid_study.running import default_folder

    if folder is None:
        folder = place if place.is_dir() else default_folder(place)
    results = open_study(folder)
    if results.open_cells or results.failed:
        counts = f"{results.open_cells:,} cells are open, {len(results.failed):,} failed"
        errors.print(f"{counts}: what is finished is shown", style="yellow", highlight=False)
    return results


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
