"""The command ``plan``: what a fit would cost here."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from sdgpu.cli.terminal import Device, Memory, Method, OperatorName, Tol, console, new_table

__all__ = ["plan"]


def plan(
    n: Annotated[int, typer.Argument(help="training rows")],
    d: Annotated[int, typer.Argument(help="features")],
    c: Annotated[int, typer.Option(help="outputs")] = 1,
    lam: Annotated[float | None, typer.Option(help="smallest ridge (default: 1e-4 n)")] = None,
    steps: Annotated[int, typer.Option(help="distillation steps")] = 10,
    tol: Tol = 1e-6,
    device: Device = "auto",
    memory: Memory = None,
    method: Method = "auto",
    operator: OperatorName = "auto",
) -> None:
    """Show how a fit would be done, why, and what it would cost.

    [bold]Example:[/] sdgpu plan 100000 12 --lam 10 --memory 8GiB
    """
    import sdgpu
    from sdgpu.backend.memory import show

    ridge = 1e-4 * n if lam is None else lam
    fit_plan = sdgpu.plan(
        n,
        d,
        c,
        ridge,
        steps,
        device=device,
        memory=memory,
        tol=tol,
        method=method,
        operator=operator,
    )
    table = new_table("what", "chosen", title=f"{n:,} rows, lam >= {ridge:g}")
    for name in ("method", "operator", "precision", "block", "rank", "max_size"):
        table.add_row(name, str(getattr(fit_plan, name)))
    table.add_row("seconds", f"about {fit_plan.seconds:.3g}")
    table.add_row("memory", show(fit_plan.bytes))
    console.print(table)
    for reason in fit_plan.reasons:
        console.print(f"- {escape(reason)}", highlight=False)
