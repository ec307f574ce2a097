"""Commands of the kernel engine: ``demo`` and ``fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.markup import escape

from sdgpu.cli.comparison_table import print_comparison
from sdgpu.cli.terminal import (
    RANK,
    Device,
    Memory,
    Method,
    OperatorName,
    Tol,
    bars,
    command_ranks,
    console,
    home,
    new_table,
    numbers,
    write_figure,
)

if TYPE_CHECKING:
    from sdgpu.kernels import Kernel
    from sdgpu.study.real_data.datasets import Split

__all__ = [
    "Classify",
    "Data",
    "Encode",
    "Header",
    "Impute",
    "KernelName",
    "Rows",
    "Seed",
    "Target",
    "demo",
    "fit",
    "named_kernel",
    "split_data",
]

Data = Annotated[
    str,
    typer.Argument(
        help="diabetes, digits, flights, qm9, or a .csv, .tsv, .txt (.gz, ..) or .npz file; of sweep also "
        "earth, marble, power"
    ),
]
Rows = Annotated[int | None, typer.Option(help="take a random sample of so many rows; 60 % train")]
Target = Annotated[
    str | None, typer.Option(help="column of a table to predict (default: last); property of qm9")
]
Classify = Annotated[bool, typer.Option("--classify", help="the target holds class labels")]
Encode = Annotated[
    bool, typer.Option("--encode", help="make columns of zeros and ones of columns of words")
]
Impute = Annotated[
    str | None, typer.Option(help="for missing cells: mean or median of all rows, or a number")
]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="whether the first row of a table holds names"),
]
KernelName = Annotated[str, typer.Option(help="rbf, laplacian, matern12/32/52, poly, linear, ...")]
Gamma = Annotated[
    str, typer.Option(help="width: a number, or 'median' for 0.5 / median distance^2")
]
Seed = Annotated[int, typer.Option(help="seed of the split")]


def demo(
    out: Annotated[
        Path, typer.Option(callback=home, help="folder for pictures and results")
    ] = Path("out"),
    steps: Annotated[int, typer.Option(help="largest number of steps on the real data")] = 10,
) -> None:
    """Run the paper's example and a full sweep on two real data sets.

    [bold]Example:[/] sdgpu demo --out out
    """
    from sdgpu.backend.storage import check_writable
    from sdgpu.study import pictures
    from sdgpu.study.compare import compare
    from sdgpu.study.example import paper_example
    from sdgpu.study.real_data.datasets import SHIPPED, load, split

    check_writable(out / "sweep.nc")
    out.mkdir(parents=True, exist_ok=True)
    example = paper_example()
    _print_example(example)
    figures = (
        ("figure2_steps", pictures.steps_figure),
        ("figure3_diagonal", pictures.diagonal_figure),
        ("figure4_ratios", pictures.ratio_figure),
        ("appendix_d_tolerance", pictures.constrained_figure),
    )
    for name, draw in figures:
        write_figure(draw(example), out / f"{name}.png")
    for name in SHIPPED:
        data = split(load(name))
        with bars() as hook:
            comparison = compare(
                data, named_kernel("rbf", "median", data.X_train), steps=steps, progress=hook
            )
        print_comparison(comparison)
        write_figure(
            pictures.loss_heatmap(comparison.sweep, title=name), out / f"heatmap_{name}.png"
        )
        comparison.sweep.save(out / f"sweep_{name}.nc")
        console.print(f"wrote {out / f'sweep_{name}.nc'}")


def fit(
    data: Data,
    lam: Annotated[float, typer.Option(help="ridge of K + lam I")] = 1.0,
    alpha: Annotated[
        str, typer.Option(help="weight of the ground truth: one, or steps - 1 by commas")
    ] = "0.5",
    steps: Annotated[int, typer.Option(help="distillation steps")] = 5,
    target: Target = None,
    classify: Classify = False,
    encode: Encode = False,
    impute: Impute = None,
    header: Header = None,
    kernel: KernelName = "rbf",
    gamma: Gamma = "median",
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = None,
    rows: Rows = None,
    method: Method = "auto",
    operator: OperatorName = "auto",
    tol: Tol = 1e-6,
    out: Annotated[
        Path | None, typer.Option(callback=home, help="write predictions and losses (.nc, .zarr)")
    ] = None,
) -> None:
    """Fit one chain of steps and print its losses on train, validation and test rows.

    [bold]Example:[/] sdgpu fit diabetes --lam 0.5 --alpha 0.3 --steps 5 --out path.nc

    Processes of torchrun share the rows: torchrun --nproc-per-node 2 -m sdgpu fit flights ..
    """
    import sdgpu
    from sdgpu.backend.checks import positive
    from sdgpu.selection.sweep import check_target, write_dataset
    from sdgpu.study.chain_dataset import chain_dataset
    from sdgpu.study.rank_shares import share_of

    if out is not None:
        check_target(out)
    positive("lam", lam)
    weights = numbers("alpha", alpha)
    parts = split_data(
        data,
        target,
        classify=classify,
        encode=encode,
        impute=impute,
        header=header,
        rows=rows,
        seed=seed,
    )
    kappa = named_kernel(kernel, gamma, parts.X_train)
    ranks = command_ranks(device)
    if ranks is not None:
        parts = share_of(parts, ranks)
    with bars() as hook:
        fitted = sdgpu.fit(
            parts.X_train,
            parts.Y_train,
            kappa,
            lams=lam,
            device=device,
            memory=memory,
            method=method,
            operator=operator,
            tol=tol,
            steps=steps,
            progress=hook,
            distributed=False if ranks is None else ranks,
        )
    schedule: Any = float(weights[0]) if len(weights) == 1 else weights
    dataset = chain_dataset(fitted, parts, schedule, steps, ranks=ranks)
    _print_chain(dataset, f"{data}: {kappa}, lam = {lam:g}")
    console.print(
        f"{fitted.info.status}; {sum(fitted.info.seconds.values()):.2f} s on {fitted.info.backend}",
        highlight=False,
    )
    if out is not None and RANK == 0:  # the first process writes
        write_dataset(dataset, out)
        console.print(f"wrote {escape(str(out))}")


def split_data(
    source: str,
    target: str | None,
    *,
    classify: bool,
    encode: bool,
    impute: str | None,
    header: bool | None,
    rows: int | None,
    seed: int,
) -> Split:
    """Load a data set and split it."""
    from sdgpu.study.real_data.datasets import load, split

    data = load(
        source,
        target,
        classify=classify,
        encode=encode,
        impute=_imputation(impute),
        header=header,
        rows=rows,
        seed=seed,
    )
    return split(data, seed=seed)


def _imputation(text: str | None) -> float | str | None:
    """A number, or what the library makes of a word."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def named_kernel(name: str, gamma: str, X: np.ndarray) -> Kernel:
    """A kernel by its name, with its width as a number or that of the rows."""
    from sdgpu.kernels import as_kernel, median_distance

    if gamma == "median":
        return as_kernel(name, gamma=0.5 / median_distance(X) ** 2)
    try:
        return as_kernel(name, gamma=float(gamma))
    except ValueError as error:
        if "could not convert" not in str(error):
            raise
        raise ValueError(f"gamma={gamma!r}: write a number > 0, or median") from error


def _print_example(example: Any) -> None:
    from sdgpu.study.example import PAPER_LOSSES, STEPS, example_losses

    heads = [f"{who}, {alpha:g}" for alpha in PAPER_LOSSES for who in ("paper", "sdgpu")]
    table = new_table("step", *heads, title="the paper's example: loss by step and alpha")
    pairs = [(PAPER_LOSSES[alpha], example_losses(example, alpha)) for alpha in PAPER_LOSSES]
    names = [*map(str, range(1, STEPS + 1)), "limit"]
    for i, name in enumerate(names):
        table.add_row(name, *(f"{losses[i]:.5f}" for pair in pairs for losses in pair))
    console.print(table)
    heads = ["alpha*", "loss", "clipped alpha*", "its loss"]
    table = new_table("step", *heads, title="Algorithm 1 on the same points")
    chains = [
        example.fit.optimal_alphas(example.X_val, example.truth, steps=STEPS, clip=clip)
        for clip in (False, True)
    ]
    for step in range(1, STEPS + 1):
        cells = []
        for chain in chains:
            weight = f"{chain.alphas[step - 2]:.5f}" if step > 1 else "-"
            cells += [weight, f"{chain.mse[step - 1]:.5f}"]
        table.add_row(str(step), *cells)
    console.print(table)


def _print_chain(table: Any, title: str) -> None:
    listing = new_table("step", "alpha", "train mse", "val. mse", "test mse", title=title)
    for step in table["step"].values:
        point = table.sel(step=step)
        alpha = float(point["alpha"])
        losses = (f"{float(point[f'{part}_mse']):.6f}" for part in ("train", "validation", "test"))
        listing.add_row(str(step), "-" if np.isnan(alpha) else f"{alpha:.4g}", *losses)
    console.print(listing)
