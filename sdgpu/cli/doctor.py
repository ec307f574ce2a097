"""The command ``doctor``: versions, devices, and what each backend can do on this machine."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from sdgpu.cli.terminal import console, new_table

__all__ = ["doctor"]


def doctor() -> None:
    """Show versions and devices, and what each backend can do here.

    [bold]Example:[/] sdgpu doctor
    """
    from sdgpu.backend.environment import Capability, backends, versions
    from sdgpu.operators import keops

    table = new_table("package", "version", title="versions")
    for name, version in versions():
        table.add_row(name, version)
    console.print(table)
    table = Table("backend", "works", "what it does here", title="backends", box=SIMPLE_HEAD)
    reason = keops.why_not()
    capability = Capability(
        "keops", not reason, reason or "compiles a formula here; operator='keops'"
    )
    for row in (*backends(), capability):
        works = "[green]yes[/]" if row.works else "[yellow]no[/]"
        table.add_row(row.name, works, escape(row.detail))
    console.print(table)
