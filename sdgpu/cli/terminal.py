"""What the commands share: consoles, options, one-line errors, progress, tables, numbers and files."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperGroup

from sdgpu.backend.checks import choice
from sdgpu.backend.signals import terminable
from sdgpu.backend.storage import atomic_file, check_writable

if TYPE_CHECKING:
    from sdgpu.backend.progress import Event
    from sdgpu.backend.progress import Progress as Hook

__all__ = [
    "RANK",
    "Device",
    "Friendly",
    "Memory",
    "Method",
    "OperatorName",
    "Tol",
    "bars",
    "check_figure",
    "command_ranks",
    "console",
    "errors",
    "home",
    "new_table",
    "numbers",
    "write_figure",
]


def _rank() -> int:
    """The number of this process among several; 0 too where that is garbage, which a command then says."""
    try:
        alone = int(os.environ.get("WORLD_SIZE", "1")) <= 1
        return 0 if alone else int(os.environ.get("RANK", "0"))
    except ValueError:
        return 0


#: Which process of ``torchrun`` this is: the first one speaks, the others report errors alone.
RANK = _rank()

console = Console(quiet=RANK > 0)
errors = Console(stderr=True)

Method = Annotated[str, typer.Option(help="auto, eigh, lanczos, subspace or cg")]
OperatorName = Annotated[str, typer.Option(help="how K is held: auto, dense, tiled or keops")]
Tol = Annotated[float, typer.Option(help="relative error of all methods but eigh")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, ...")]
Memory = Annotated[str | None, typer.Option(help="bytes that may be used, for example 8GiB")]


class Friendly(TyperGroup):
    """Report what the library refuses as one line, without a traceback; take SIGTERM for Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            if "WORLD_SIZE" in os.environ:
                from sdgpu.backend.distributed import ranks

                ranks()
            with terminable(), _warnings_in_a_line():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            errors.print("stopped")
            raise typer.Exit(130) from None
        except (
            ValueError,
            TypeError,
            MemoryError,
            OSError,
            ImportError,
            FloatingPointError,
        ) as error:
            _told(error)
            raise typer.Exit(2) from error
        except RuntimeError as error:
            from sdgpu.backend.ranks import RankFailure

            if not isinstance(error, RankFailure):
                raise
            _told(error)
            raise typer.Exit(2) from error


def _told(error: Exception) -> None:
    """One line for an error."""
    prefix = f"process {RANK}: " if RANK else ""
    # "[Errno 28]" says nothing to a reader; a message of ours names the file itself
    message = isinstance(error, OSError) and error.filename is None and error.strerror
    text = escape(str(message or error))
    errors.print(f"{prefix}[bold red]error:[/] {text}", highlight=False, soft_wrap=True)


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Show warnings as errors are shown: their text, without the line of code that they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        prefix = f"process {RANK}: " if RANK else ""
        text = escape(" ".join(str(message).split()))
        errors.print(f"{prefix}[bold yellow]warning:[/] {text}", highlight=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def home(path: Path | None) -> Path | None:
    """Make ``~`` in an option the home folder: shells do not where an = comes before it.

    Raises
    ------
    ValueError
        If there is no such user.
    """
    if path is None:
        return None
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: the home folder is not known ({error})") from error


def numbers(name: str, text: str, *, geometric: bool = False) -> np.ndarray:
    """Read ``low:high:count`` or numbers by commas."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            ends = float(low), float(high)
            if not np.isfinite(ends).all() or (geometric and min(ends) <= 0):
                raise ValueError("both ends must be finite" + " and > 0" * geometric)
            return (np.geomspace if geometric else np.linspace)(*ends, int(count))
        return np.array([float(part) for part in text.split(",")])
    except ValueError as error:
        raise ValueError(
            f"{name}={text!r}: write numbers by commas, or low:high:count ({error})"
        ) from error


@contextmanager
def bars(*, stages: int | None = None) -> Iterator[Hook]:
    """Progress on stderr: a bar where the amount of work is known, a pulse where it is not.

    With `stages` no more bars are shown than that: the first stage and the latest ones.
    """
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=RANK > 0,
    )
    tasks: dict[str, Any] = {}

    def hook(event: Event) -> None:
        stage, done, total, error, seconds_left = event
        if stage not in tasks:
            # the length of one factorisation is unknown while it runs: a pulse, not a bar
            tasks[stage] = bar.add_task(stage, total=None if total == 1 else total)
            if stages is not None and len(tasks) > stages:
                oldest = list(tasks)[1]
                bar.remove_task(tasks.pop(oldest))
        suffix = "" if math.isnan(error) else f", error {error:.1e}"
        suffix += (
            "" if math.isnan(seconds_left) or done == total else f", {_duration(seconds_left)} left"
        )
        bar.update(
            tasks[stage],
            completed=done,
            total=total if done or total > 1 else None,
            description=stage + suffix,
        )

    with bar:
        yield hook


def _duration(seconds: float) -> str:
    """Seconds as a reader wants them: 90 s, 12 min, 5.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


LEAST = 8  # characters of a wrapped column of names


class WholeTable(Table):
    """A table whose cells are never cut: where the terminal is narrow its columns come in several parts.

    Each part begins with the first column. What alone is too wide is wrapped.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [
            max(Measurement.get(console, options, text).maximum for text in (head, *cells))
            for head, *cells in self._texts()
        ]
        room = options.max_width - 2  # the edges
        if sum(widths) + len(widths) - 1 <= room:
            yield from super().__rich_console__(console, options)
            return
        parts: list[list[int]] = []
        for k in range(1, len(widths)):
            width = sum(widths[i] + 1 for i in (parts[-1] if parts else [])) + widths[k]
            if not parts or width > room:
                parts.append([0])
            parts[-1].append(k)
        for number, part in enumerate(parts or [[0]]):
            tight = sum(widths[k] + 1 for k in part) - 1 > room
            # the first column holds names, which can be wrapped, numbers rather not
            wrapped = {k for k in part if tight and (k == 0 or widths[k] + LEAST > room)}
            yield self._part(part, wrapped, first=not number)

    def _texts(self) -> list[list[Any]]:
        """Head and cells of every column."""
        return [[column.header, *column.cells] for column in self.columns]

    def _part(self, columns: list[int], wrapped: set[int], *, first: bool) -> Table:
        texts = self._texts()
        part = Table(title=self.title if first else None, box=self.box, padding=0, pad_edge=False)
        for k in columns:
            part.add_column(texts[k][0], no_wrap=k not in wrapped, overflow="fold")
        for row in zip(*(texts[k][1:] for k in columns), strict=True):
            part.add_row(*row)
        return part


def new_table(*heads: str, title: str) -> Table:
    """A table whose cells are never cut: fits 80 columns, and comes in parts where there are fewer."""
    table = WholeTable(title=escape(title), box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for head in heads:
        table.add_column(head, no_wrap=True)
    return table


def check_figure(path: Path) -> None:
    """Find out before the work whether a figure can be written."""
    choice("figure ending", path.suffix, (".png", ".pdf", ".svg", ".jpg"))
    if path.is_dir():
        raise ValueError(f"figure={str(path)!r} is a folder: name a file")
    check_writable(path)


def write_figure(figure: Any, path: Path) -> None:
    """Save a figure, in a folder that is made if it is missing, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
    console.print(f"wrote {escape(str(path))}")


def command_ranks(device: str) -> Any:
    """The ranks of ``torchrun``, which share the rows of a command; None for one process."""
    from sdgpu.backend.distributed import ranks

    if ranks()["WORLD_SIZE"] == 1:
        return None
    from sdgpu.engine.rank_fitting import joined_ranks

    return joined_ranks(device)
