"""The command ``sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sdgpu.cli.comparison_table import print_comparison
from sdgpu.cli.fit import (
    Classify,
    Data,
    Encode,
    Header,
    Impute,
    KernelName,
    Rows,
    Seed,
    Target,
    split_data,
)
from sdgpu.cli.terminal import (
    RANK,
    Device,
    Memory,
    Method,
    OperatorName,
    Tol,
    bars,
    check_figure,
    command_ranks,
    console,
    home,
    numbers,
    write_figure,
)

if TYPE_CHECKING:
    from sdgpu.study.compare import Comparison

__all__ = ["sweep"]


def sweep(
    data: Data,
    lams: Annotated[
        str | None, typer.Option(help="low:high:count (geometric) or numbers by commas")
    ] = None,
    alphas: Annotated[
        str, typer.Option(help="low:high:count (even) or numbers by commas")
    ] = "0:1:101",
    steps: Annotated[int, typer.Option(help="largest number of steps")] = 10,
    target: Target = None,
    classify: Classify = False,
    encode: Encode = False,
    impute: Impute = None,
    header: Header = None,
    kernel: KernelName = "rbf",
    gamma: Annotated[
        str,
        typer.Option(
            help="width: a number, 'median' for 0.5 / median distance^2, or 'auto': on the sphere what "
            "so many landmarks can follow, else the median"
        ),
    ] = "auto",
    features: Annotated[
        str | None,
        typer.Option(
            help="nystrom, fourier or own, in place of the kernel matrix (default: none, but nystrom for "
            "earth, marble and power)"
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="how many features (256)")] = None,
    landmarks: Annotated[
        str | None, typer.Option(help="of nystrom: rpcholesky (default), kmeans or uniform")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = None,
    rows: Rows = None,
    method: Method = "auto",
    operator: OperatorName = "auto",
    tol: Tol = 1e-6,
    out: Annotated[
        Path | None, typer.Option(callback=home, help="write the sweep (.nc or .zarr)")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(callback=home, help="write the heat map (.png, .pdf, .svg)")
    ] = None,
    globe: Annotated[
        Path | None,
        typer.Option("--map", callback=home, help="of earth and marble: draw it beside the truth"),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            callback=home, help="of features: save the pass (.safetensors), go on from it"
        ),
    ] = None,
) -> None:
    """Evaluate every lam, weight and step from one decomposition, and compare four ways to choose.

    [bold]Example:[/] sdgpu sweep digits --lams 1e-3:1e2:30 --out sweep.nc --figure heat.png

    Processes of torchrun share the rows: torchrun --nproc-per-node 2 -m sdgpu sweep flights ..
    """
    from sdgpu.cli.feature_options import chosen_features, is_large, opened
    from sdgpu.selection.sweep import check_target
    from sdgpu.study.compare import compare

    if out is not None:
        check_target(out)
    for picture in (figure, globe):
        if picture is not None:
            check_figure(picture)
    lam_values = None if lams is None else numbers("lams", lams, geometric=True)
    weights = numbers("alphas", alphas)
    table: dict[str, Any] = {
        "target": target,
        "classify": classify,
        "encode": encode,
        "impute": impute,
    }
    if is_large(data):
        parts: Any = opened(data, rows=rows, seed=seed, **table, header=header)
    else:
        parts = split_data(data, **table, header=header, rows=rows, seed=seed)
    kappa, recipe = chosen_features(
        parts, kernel, gamma, features=features, size=size, landmarks=landmarks, seed=seed
    )
    if globe is not None and getattr(parts, "grid", None) is None:
        raise ValueError("--map: for earth and marble alone")
    ranks = command_ranks(device)
    with bars() as hook:
        comparison = compare(
            parts,
            kappa,
            features=recipe,
            lams=lam_values,
            alphas=weights,
            steps=steps,
            device=device,
            memory=memory,
            method=method,
            operator=operator,
            tol=tol,
            checkpoint=checkpoint,
            progress=hook,
            ranks=ranks,
        )
    print_comparison(comparison)
    if RANK > 0:  # the first one writes
        return
    if out is not None:
        comparison.sweep.save(out)
        console.print(f"wrote {escape(str(out))}")
    _draw(comparison, parts, data, figure, globe)


def _draw(
    comparison: Comparison, parts: Any, title: str, figure: Path | None, globe: Path | None
) -> None:
    """The pictures that were asked for."""
    if figure is not None:
        from sdgpu.study.pictures import loss_heatmap

        write_figure(loss_heatmap(comparison.sweep, title=title), figure)
    if globe is not None:
        from sdgpu.study.pictures import globe_figure
        from sdgpu.study.real_data.globe_maps import predicted_map

        best = comparison.sweep.best()
        truth, predicted = predicted_map(comparison.fit, best, parts.grid)
        k = comparison.fit.info.k
        write_figure(globe_figure({"truth": truth, f"{k:,} features": predicted}), globe)
