"""The command line, ``sdgpu demo | fit | sweep | study | train | ..``: all that prints."""

from __future__ import annotations

from typing import Annotated

import typer

from sdgpu.cli.benchmarks import bench
from sdgpu.cli.doctor import doctor
from sdgpu.cli.fit import demo, fit
from sdgpu.cli.plan import plan
from sdgpu.cli.studies import study
from sdgpu.cli.sweeping import sweep
from sdgpu.cli.terminal import Friendly, console
from sdgpu.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    cls=Friendly,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(show: bool) -> None:
    if show:
        from sdgpu import __version__

        console.print(f"sdgpu {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Kernel self-distillation with closed forms for every regularisation, weight and step."""


for command in (demo, fit, sweep, plan, train, doctor):
    app.command()(command)
app.add_typer(study, name="study")
app.add_typer(bench, name="bench")
