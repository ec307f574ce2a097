"""Scaling on paper: what a fit costs on p devices of a class, none of which need be here.

One model, the counted work of :mod:`sdgpu.engine.costs` at the rates of
:mod:`sdgpu.backend.device_classes`, with the n rows in p equal parts. Seconds of a fit by a grown basis,
with its passes as guessed there:

    T(p) = setup(n / p) + passes (values / p + multiplications / p + algebra(n / p, k) + travel)

Values, n^2 / 2 (each pair once), multiplications, n^2 columns, and everything along n fall as 1 / p; the
algebra of the k vectors of the basis, k^3, is done by every rank. A rank receives, in bytes for each pass
of b columns, by layout:

=========  ====================================  =================================================
gather     8 (3 n b) (p - 1) / p                 every rank has all rows of X (once 8 n d bytes);
                                                 columns of all rows come, and sums of the results
ring       8 (n (d + b) + 2 n b) (p - 1) / p     a rank has its own rows and two pieces; rows come
                                                 while the last ones are multiplied
1.5D       8 (n (d + b) / q + 2 n b q / p)       q ranks, q^2 <= p, have the same rows and do 1 / q
                                                 of the work; n^2 / p values, no pair serves twice
=========  ====================================  =================================================

Products of pieces that come round are compiled on a CPU, and passes over tiles in memory on a GPU; those of
gathered rows are fused on both. The last
layout is that of n-body problems (Driscoll et al., 2013; Koanantakool and Yelick, 2014); q = p^1/2 is the
one of two dimensions. Of the layouts that fit beside the basis a fit takes the quickest by this model, but
gathers unless another one saves a tenth. A plan tells what that is, and what the others cost.

Features take one pass over n / p rows on every rank and one sum of k (k + c) numbers:

    T(p) = landmarks + n / p (1.5 k^2 / products + k / values) + 9 k^3 / products
           + 16 k (k + c) (p - 1) / p / bandwidth

Efficiency is T(1) / (p T(p)), T(1) by the same model, though it may not fit the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from sdgpu.backend.checks import integer, lam_grid, positive
from sdgpu.backend.device_classes import DeviceClass
from sdgpu.backend.memory import show
from sdgpu.engine.costs import LARGEST_BASIS, PASS, expected_passes, features_seconds
from sdgpu.engine.scaling_parts import Layout, Route, ScalingPlan, ScalingProblem
from sdgpu.engine.streaming import feature_bytes
from sdgpu.operators.tile_prices import TilePrices
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.preconditioners import Sketch
from sdgpu.solvers.subspace import Subspace

__all__ = ["chosen_layout", "copies_pay_from", "layouts_of", "product_seconds", "scaling_plan"]

COPIES = 2  # ready rows over X
WORTH = 0.9  # of the seconds of gathering: another layout that takes more is not worth it


def scaling_plan(
    n: int,
    d: int,
    c: int,
    lams: Any,
    steps: int,
    *,
    ranks: int,
    device: DeviceClass,
    tol: float,
    features: int = 2000,
) -> ScalingPlan:
    """Price a fit of n rows of d features with c outputs on so many devices.

    Parameters
    ----------
    n, d, c : int
    lams : number or array (L,)
    steps : int
    ranks : int
    device : DeviceClass
    tol : float
    features : int, default 2000
        k of the feature model.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, or more ranks than rows.
    """
    problem = ScalingProblem(
        n=integer("n", n, 1),
        d=integer("d", d, 1),
        c=integer("c", c, 1),
        lams=lam_grid("lams", lams),
        steps=integer("steps", steps, 1),
        tol=positive("tol", tol),
        device=device,
    )
    if integer("ranks", ranks, 1) > n:
        raise ValueError(
            f"ranks={ranks} is more than the n={n} rows: some would have nothing to do"
        )
    routes = sorted(_exact_routes(problem, ranks), key=_best)
    exact = min((route for route in routes if route.taken), key=_best)
    reasons = [
        f"{device.name}: {device.source}; {show(device.memory)}, {device.bandwidth(ranks) / 1e9:.3g} GB/s "
        f"from other ranks",
        *_rivals(routes, exact),
        _when_copies_pay(problem),
        _all_eigenvalues(problem, ranks),
    ]
    if not exact.fits:
        reasons.append(f"the exact route does not fit {show(device.memory)}: take more ranks")
    return ScalingPlan(
        n=problem.n,
        d=problem.d,
        c=problem.c,
        ranks=ranks,
        lam=float(problem.lams.min()),
        device=device.name,
        exact=exact,
        features=_feature_route(problem, ranks, features),
        reasons=tuple(reasons),
    )


def _best(route: Route) -> tuple[bool, float]:
    return not route.fits, route.seconds


def _rivals(routes: list[Route], exact: Route) -> list[str]:
    """A sentence for the best of every other layout."""
    seen, told = {exact.layout}, []
    for route in routes:
        if route.layout not in seen:
            seen.add(route.layout)
            over = "" if route.fits else ", more than a device has"
            name = route.layout + (f" with {route.copies} copies" if route.copies > 1 else "")
            told.append(
                f"{name}: about {route.seconds:.3g} s, {show(route.bytes)}{over}, "
                f"{show(int(route.traffic))} received"
            )
    return told


def copies_pay_from(problem: ScalingProblem) -> Route | None:
    """The route of q copies at the ranks, 4, 16, .., 4,096, from which on it beats gather and ring.

    A ring then sends 1 / q of the rows, for q times their memory; but no pair of rows serves twice.
    """
    found = None
    for ranks in reversed([4**k for k in range(1, 7) if 4**k <= problem.n]):
        routes = [route for route in _exact_routes(problem, ranks) if route.fits]
        best = min(routes, key=lambda route: (route.seconds, route.copies), default=None)
        if best is None or best.copies == 1:
            break
        found = best
    return found


def _when_copies_pay(problem: ScalingProblem) -> str:
    found = copies_pay_from(problem)
    if found is None:
        return "1.5D, copies of the rows: slower than gather and ring for up to 4,096 ranks"
    q = found.copies
    return (
        f"1.5D pays from about {found.ranks:,} ranks on, with {q} copies: 1 / {q} of the rows that a ring "
        f"sends, {q} times the memory for them"
    )


def _all_eigenvalues(problem: ScalingProblem, ranks: int) -> str:
    """A sentence for method="eigh": rank 0 decomposes, and each rank receives its rows of the basis.

    Seconds are those of one device, and of 8 n^2 bytes twice on the wire (sums in shares).
    """
    n, device = problem.n, problem.device
    sent, peak = 8.0 * n * n * (ranks - 1) / ranks, Eigh.peak_bytes(n)
    seconds = Eigh.seconds(n, device.rates) + 2 * sent / device.bandwidth(ranks)
    over = "" if peak <= device.memory else ", more than a device has"
    return (
        f"method='eigh', all eigenvalues by rank 0: about {seconds:.3g} s, {show(peak)} there{over}, "
        f"{show(int(sent))} sent; taken by name alone"
    )


def _exact_routes(problem: ScalingProblem, ranks: int) -> Iterator[Route]:
    lam = float(problem.lams.min())
    ways = [
        way
        for way in expected_passes(problem.n, problem.c, lam, problem.tol)
        if way[0] != "cg"  # which has no spectrum
    ]
    alone = min(
        _fit_costs(problem, 1, block, rank, passes)(layouts_of(problem, 1, block)[0])[0]
        for _, block, rank, passes in ways
    )
    for method, block, rank, passes in ways:
        price = _fit_costs(problem, ranks, block, rank, passes)
        size = int(min(problem.n, LARGEST_BASIS, max(passes * block, 4 * block)))
        layouts = layouts_of(problem, ranks, block)
        rest = _bytes(problem, ranks, replace(layouts[0], held=0.0), size, (block, rank))
        room = problem.device.memory - rest
        how: dict[str, Any] = {"layouts": layouts, "room": room, "passes": passes}
        taken = chosen_layout(problem, ranks, block, **how)
        for layout in layouts:
            seconds, compute, traffic = price(layout)
            peak = _bytes(problem, ranks, layout, size, (block, rank))
            yield Route(
                name="exact",
                layout=layout.name,
                seconds=seconds,
                compute=compute,
                travel=max(seconds - compute, 0.0),
                bytes=peak,
                traffic=traffic,
                efficiency=alone / (ranks * seconds),
                fits=peak <= problem.device.memory,
                copies=layout.copies,
                taken=layout is taken,
                ranks=ranks,
                reason=f"{method}, about {passes:.0f} passes of {block} columns in {problem.precision}"
                + (f", sketch of rank {rank:,}" if rank else ""),
            )


def product_seconds(
    problem: ScalingProblem, ranks: int, layout: Layout, block: int
) -> tuple[float, float]:
    """Seconds of a product with `block` columns on each of so many ranks, and those of its work."""
    n, d, device = problem.n, problem.d, problem.device
    rates = device.rates
    if not layout.fused:
        rates = replace(rates, tiles=rates.powers, tiles32=rates.powers32)
    tiles = TilePrices(n, d, problem.precision, compiled=True)
    values, products = tiles.value_seconds(rates), tiles.multiply_seconds(block, rates)
    work = (values * (1 if layout.halved else 2) + products * (1 if layout.fused else 2)) / ranks
    bandwidth = device.bandwidth(ranks)
    waited = layout.sums / bandwidth + layout.messages * device.latency
    return max(work, layout.rows / bandwidth) + waited, work


def chosen_layout(
    problem: ScalingProblem,
    ranks: int,
    block: int,
    *,
    layouts: list[Layout],
    room: float,
    passes: float,
) -> Layout:
    """What a fit takes: the quickest of the layouts that fit, but gathering unless another saves a tenth.

    `room` are bytes of a rank for rows and columns of others, beside its basis. Where nothing fits it is
    what needs least.
    """
    roomy = [layout for layout in layouts if layout.held <= room]
    if not roomy:
        return min(layouts, key=lambda layout: layout.held)

    def price(layout: Layout) -> float:
        seconds, _ = product_seconds(problem, ranks, layout, block)
        seconds += layout.once / problem.device.bandwidth(ranks) / passes
        return seconds * (WORTH if layout.name == "gather" else 1.0)

    return min(roomy, key=price)


def _fit_costs(
    problem: ScalingProblem, ranks: int, block: int, rank: int, passes: float
) -> Callable[[Layout], tuple[float, float, float]]:
    """Seconds, seconds of work and bytes received of a fit, by layout."""
    n, device = problem.n, problem.device
    bandwidth = device.bandwidth(ranks)
    share = -(-n // ranks)
    vectors = int(np.ceil(min(0.6 * n + block, passes * block, n)))
    algebra = Subspace.pass_seconds(share, vectors, block, rank, device.rates)
    setup = Sketch.seconds(share, rank, device.rates) if rank else 0.0
    # k x k sums of the basis with itself and with its residuals
    basis_sums = (ranks - 1) / ranks * 16.0 * vectors * (block + vectors / 2)

    def price(layout: Layout) -> tuple[float, float, float]:
        product, work = product_seconds(problem, ranks, layout, block)
        waited = product + basis_sums / bandwidth
        seconds = setup + layout.once / bandwidth + passes * (PASS + waited + algebra)
        compute = setup + passes * (PASS + work + algebra)
        traffic = layout.once + passes * (layout.rows + layout.sums + basis_sums)
        return float(seconds), float(compute), float(traffic)

    return price


def layouts_of(
    problem: ScalingProblem, ranks: int, block: int, *, copies: int = COPIES
) -> list[Layout]:
    """What ranks may do with their rows, and the bytes of it: the table above.

    `copies` are those that a kernel makes of X when it makes it ready.
    """
    n, d, p = problem.n, problem.d, ranks
    own = 8.0 * n * d * (1 + copies) / p
    if p == 1:
        return [Layout("alone", 0.0, 0.0, 0.0, own, 0.0)]
    others, compiled = (p - 1) / p, not problem.device.is_gpu
    layouts = [
        Layout(
            "gather",
            once=8.0 * n * d * others,
            rows=0.0,
            sums=24.0 * n * block * others,
            held=8.0 * n * d * (1 + copies) + 40.0 * n * block,
            messages=5.0 * (p - 1),  # two notes of lengths, and three messages of columns
        ),
        Layout(
            "ring",
            once=0.0,
            rows=8.0 * n * (d + block) * others,
            sums=16.0 * n * block * others,
            held=own + 16.0 * n * (d + block) / p + 16.0 * n * block / p,
            messages=(2.0 + 3.0 * p) * (p - 1),  # a sum for each rank
            fused=compiled,
        ),
    ]
    q = 2
    while q * q <= p:
        if p % (q * q) == 0:
            layouts.append(
                Layout(
                    "1.5D",
                    once=8.0 * n * d * (q - 1) / p,
                    rows=8.0 * n * (d + block) / q,
                    sums=16.0 * n * block * q / p,
                    held=q * (own + 16.0 * n * (d + block) / p),
                    messages=p / q**2 + 2.0 * q + (q + 1.0) * (p - 1),
                    halved=False,
                    fused=compiled,
                    copies=q,
                )
            )
        q += 1
    return layouts


def _bytes(
    problem: ScalingProblem, ranks: int, layout: Layout, size: int, columns: tuple[int, int]
) -> int:
    """Peak of a rank: its rows, its part of the basis and of the sketch, and tiles."""
    block, rank = columns
    share = -(-problem.n // ranks)
    grid = problem.c * problem.steps * len(problem.lams)
    basis = Subspace.peak_bytes(share, size, rank, block, grid)
    tiles = TilePrices(min(share, 4096), problem.d, problem.precision).peak_bytes(block)
    return int(basis + layout.held + tiles)


def _feature_route(problem: ScalingProblem, ranks: int, features: int) -> Route:
    n, c, device = problem.n, problem.c, problem.device
    k = min(features, n)
    precision = "mixed" if problem.precision != "float64" else "float64"

    def compute(p: int) -> float:
        return features_seconds(n, -(-n // p), k, precision, device.rates)

    traffic = 16.0 * k * (k + c) * (ranks - 1) / ranks
    travel = traffic / device.bandwidth(ranks) + 2.0 * (ranks - 1) * device.latency
    seconds = compute(ranks) + travel
    peak = feature_bytes(k, c, precision)
    return Route(
        name="features",
        layout="sums",
        seconds=seconds,
        compute=compute(ranks),
        travel=travel,
        bytes=int(peak),
        traffic=traffic,
        efficiency=compute(1) / (ranks * seconds),
        fits=peak <= device.memory,
        ranks=ranks,
        reason=f"features=sdgpu.Nystrom({k:,}): one pass, and the answer of these features",
    )
