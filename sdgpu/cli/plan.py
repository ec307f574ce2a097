"""The command ``plan``: what a fit would cost here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from sdgpu.cli.terminal import Device, Memory, Method, OperatorName, Tol, console, new_table

if TYPE_CHECKING:
    from sdgpu.engine.scaling_parts import ScalingPlan

__all__ = ["plan"]


def plan(
    n: Annotated[str | None, typer.Argument(help="training rows")] = None,
    d: Annotated[int | None, typer.Argument(help="features")] = None,
    rows: Annotated[str | None, typer.Option("--n", help="training rows: 1e9")] = None,
    features: Annotated[int | None, typer.Option("--d", help="features of a row (10)")] = None,
    c: Annotated[int, typer.Option(help="outputs")] = 1,
    lam: Annotated[float | None, typer.Option(help="smallest ridge (default: 1e-4 n)")] = None,
    steps: Annotated[int, typer.Option(help="distillation steps")] = 10,
    tol: Tol = 1e-6,
    device: Device = "auto",
    memory: Memory = None,
    method: Method = "auto",
    operator: OperatorName = "auto",
    entries: Annotated[
        float | None,
        typer.Option(help="entries of a sparse row, in the mean (default: dense rows)"),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(help="price it on so many devices: --device h100, h200, a100 or cpu"),
    ] = None,
) -> None:
    """Show how a fit would be done, why, and what it would cost; on devices that are not here, too.

    [bold]Example:[/] sdgpu plan 100000 12 --lam 10 --memory 8GiB

    [bold]Sparse rows:[/] sdgpu plan 20000 50000 --entries 80
    [bold]Example:[/] sdgpu plan --n 1e8 --ranks 64 --device h100
    """
    import sdgpu
    from sdgpu.backend.memory import show

    count = _count("n", rows if n is None else n)
    ridge = 1e-4 * count if lam is None else lam
    width = (features or 10) if d is None else d
    if ranks is not None:
        scaled = sdgpu.plan(
            count,
            width,
            c,
            ridge,
            steps,
            ranks=ranks,
            device=device,
            memory=memory,
            tol=tol,
            method=method,
            operator=operator,
        )
        _show_routes(scaled)
        return
    fit_plan = sdgpu.plan(
        count,
        width,
        c,
        ridge,
        steps,
        device=device,
        memory=memory,
        tol=tol,
        method=method,
        operator=operator,
        entries=entries,
    )
    kind = "" if entries is None else f" of about {entries:g} entries"
    table = new_table("what", "chosen", title=f"{count:,} rows{kind}, lam >= {ridge:g}")
    for name in ("method", "operator", "precision", "block", "rank", "max_size"):
        table.add_row(name, str(getattr(fit_plan, name)))
    table.add_row("seconds", f"about {fit_plan.seconds:.3g}")
    table.add_row("memory", show(fit_plan.bytes))
    console.print(table)
    for reason in fit_plan.reasons:
        console.print(f"- {escape(reason)}", highlight=False)


def _show_routes(plan: ScalingPlan) -> None:
    """The exact and the feature route side by side."""
    from sdgpu.backend.memory import show

    devices = f"{plan.ranks:,} x {plan.device}"
    table = new_table("what", "exact", "features", title=f"{plan.n:,} rows on {devices}, on paper")
    routes = (plan.exact, plan.features)
    rows = {
        "layout": [route.layout for route in routes],
        "seconds": [f"about {route.seconds:.3g}" for route in routes],
        "of them waiting": [f"{route.travel:.2g}" for route in routes],
        "memory of each": [show(route.bytes) for route in routes],
        "received by each": [show(int(route.traffic)) for route in routes],
        "efficiency": [f"{100 * route.efficiency:.3g} %" for route in routes],
    }
    for name, entries in rows.items():
        table.add_row(name, *entries)
    console.print(table)
    for reason in (*(route.reason for route in routes), *plan.reasons):
        console.print(f"- {escape(reason)}", highlight=False)


def _count(name: str, text: str | None) -> int:
    """A whole number, also as 1e9."""
    try:
        value = float(text or "")
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: write a number of rows, 100000 or 1e9") from error
    if not value.is_integer():
        raise ValueError(f"{name}={text} must be a whole number")
    return int(value)
