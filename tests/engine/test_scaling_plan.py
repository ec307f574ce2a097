"""Scaling on paper: traffic by hand, limits that must hold, and the plan of one rank."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import sdgpu
from sdgpu.backend.device_classes import CLASSES, device_class
from sdgpu.backend.memory import budget, show
from sdgpu.engine import scaling_plan as scaling_module
from sdgpu.engine.costs import LARGEST_BASIS, PASS, Work, expected_passes, features_option
from sdgpu.engine.rank_layouts import layout_of_fit
from sdgpu.engine.scaling_parts import ScalingProblem
from sdgpu.engine.scaling_plan import chosen_layout, copies_pay_from, layouts_of, scaling_plan
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.preconditioners import Sketch
from sdgpu.solvers.subspace import Subspace


def problem(n=10**6, d=9, c=1, device="h100", tol=1e-4, lam=None):
    lams = np.array([1e-4 * n if lam is None else lam])
    return ScalingProblem(n, d, c, lams, 10, tol, device_class(device))


@pytest.mark.parametrize(
    ("n", "d", "p", "b"), [(1000, 3, 2, 8), (10**6, 9, 64, 8), (640, 5, 16, 4)]
)
def test_traffic_of_layouts_by_hand(n, d, p, b):
    """What each rank receives, counted piece by piece."""
    by_name = {}
    for layout in layouts_of(problem(n, d), p, b):
        by_name.setdefault(layout.name, []).append(layout)
    (gather,), (ring,) = by_name["gather"], by_name["ring"]
    rows = n / p
    pieces = sum(8 * rows * (d + b) for _ in range(p - 1))
    assert ring.rows == pytest.approx(pieces)
    # a sum over p ranks: each receives its share from the others, and the shares of the others
    summed = 2 * sum(8 * rows * b for _ in range(p - 1))
    assert ring.sums == pytest.approx(summed)
    assert gather.sums == pytest.approx(summed + sum(8 * rows * b for _ in range(p - 1)))
    assert gather.once == pytest.approx(sum(8 * rows * d for _ in range(p - 1)))
    for number, layout in enumerate(by_name.get("1.5D", [])):
        q = [q for q in range(2, p) if q * q <= p and p % (q * q) == 0][number]
        pieces = p // q**2  # of q n / p rows each
        assert layout.rows == pytest.approx(pieces * 8 * (q * n / p) * (d + b))
        assert layout.sums == pytest.approx(2 * 8 * (q * n / p) * b)


def test_one_rank_costs_what_the_cost_model_says():
    """The seconds of `Work`, term by term, for the same rates."""
    task = problem(200_000, 9, device="cpu")
    found = scaling_plan(200_000, 9, 1, 20.0, 10, ranks=1, device=task.device, tol=1e-4)
    rates, n = task.device.rates, task.n
    seconds = []
    for method, block, rank, passes in expected_passes(n, 1, 20.0, 1e-4):
        if method == "cg":
            continue
        ways = (method, "tiled", "mixed", block, rank, passes)
        work = Work(n, 9, 1, *ways, 1, 10, 2, compiled=True)
        vectors = int(np.ceil(min(0.6 * n + block, passes * block, n)))
        seconds.append(work.seconds(rates, passes, vectors))
    assert found.seconds == pytest.approx(min(seconds), rel=1e-12)
    assert (found.exact.layout, found.efficiency, found.traffic) == ("alone", 1.0, 0.0)


def test_features_of_one_rank_cost_what_the_cost_model_says():
    from sdgpu.engine.costs import Task

    device = device_class("h100")
    found = scaling_plan(10**7, 9, 1, 1e3, 10, ranks=1, device=device, tol=1e-4).features
    task = Task(10**7, 9, 1, np.array([1e3]), 10, 1e-4, 2**40, "mixed", False, 2, 1)
    assert found.seconds == pytest.approx(features_option(task, device.rates, 2000).seconds)


@pytest.mark.parametrize("device", sorted(CLASSES))
@pytest.mark.parametrize("n", [10**5, 10**7])
def test_more_ranks_are_faster_and_never_free(device, n):
    plans = [
        sdgpu.plan(n, 9, lams=1e-4 * n, ranks=p, device=device, tol=1e-4, memory="10TiB")
        for p in (1, 2, 4, 16, 64)
    ]
    for route in ("exact", "features"):
        routes = [getattr(plan, route) for plan in plans]
        assert routes[0].efficiency == pytest.approx(1.0)
        for p, found in zip((1, 2, 4, 16, 64), routes, strict=True):
            assert 0 < found.efficiency <= 1 + 1e-9
            assert found.seconds == pytest.approx(routes[0].seconds / (p * found.efficiency))
            assert found.seconds >= found.compute * (1 - 1e-12)
            assert found.travel == pytest.approx(found.seconds - found.compute, abs=1e-9)
        traffic = [found.traffic for found in routes]
        assert traffic[0] == 0
        assert min(traffic[1:]) > 0
    if n == 10**7:  # fewer rows are done before the messages are through
        assert all(a.seconds > b.seconds for a, b in itertools.pairwise(plans))


def test_efficiency_falls_where_rows_are_few():
    few, many = (
        sdgpu.plan(n, 9, lams=1e-4 * n, ranks=64, device="h100", tol=1e-4)
        for n in (10**5, 3 * 10**7)
    )
    assert few.efficiency < 0.3 < 0.95 < many.efficiency


def test_memory_decides_betweenlayouts_of():
    """All rows on every rank while they fit; a ring, or copies of few, when they do not."""
    how = {"n": 10**7, "d": 9, "lams": 1e3, "ranks": 64, "device": "h100", "tol": 1e-4}
    roomy, tight = sdgpu.plan(**how, memory="1TiB"), sdgpu.plan(**how, memory="3GiB")
    assert (roomy.exact.layout, tight.exact.layout) == ("gather", "ring")
    assert tight.bytes < 3 * 2**30 < roomy.bytes
    assert roomy.seconds < tight.seconds
    hopeless = sdgpu.plan(**how, memory="10MiB")
    assert not hopeless.exact.fits
    assert "does not fit 10 MB: take more ranks" in hopeless.reasons[-1]


@pytest.mark.parametrize("memory", ["1MiB", "40MiB", "200MiB", "4GiB", "100GiB"])
@pytest.mark.parametrize(("ranks", "d"), [(1, 3), (2, 5), (4, 400), (6, 50), (16, 3000), (64, 9)])
def test_a_fit_takes_the_layout_of_the_plan(ranks, d, memory):
    """Of the same memory: what is planned on paper is what the ranks of a fit choose."""
    n, lams, b = 20_000, np.array([2.0]), 16
    task = replace(problem(n, d, device="cpu", lam=2.0), steps=5)
    memory = budget(memory, "cpu")
    layouts = layouts_of(task, ranks, b)
    plan = sdgpu.plan(n, d, lams=lams, method="subspace", operator="tiled", tol=task.tol)
    plan = replace(plan, block=b, bytes=ranks * 2**19)
    place = {"device": "cpu", "memory": memory, "copies": 2}
    room = memory - 2**19
    passes = next(w[3] for w in expected_passes(n, 1, 2.0, task.tol) if w[0] == "subspace")
    taken = chosen_layout(task, ranks, b, layouts=layouts, room=room, passes=passes)
    assert layout_of_fit((n, d, 1), lams, plan, place, ranks) == taken
    seconds = {
        (x.name, x.copies): scaling_module.product_seconds(task, ranks, x, b)[0]
        + x.once / task.device.bandwidth(ranks) / passes
        for x in layouts
        if x.held <= room
    }
    if not seconds:
        assert taken.name == ("alone" if ranks == 1 else "ring")  # the least
    elif taken.name == "gather":
        assert 0.9 * seconds["gather", 1] <= min(seconds.values())
    else:
        assert seconds[taken.name, taken.copies] == min(seconds.values())
        assert ("gather", 1) not in seconds or min(seconds.values()) < 0.9 * seconds["gather", 1]


def test_other_layouts_are_told():
    found = sdgpu.plan(10**6, 3000, lams=1e2, ranks=64, device="cpu", tol=1e-4)
    assert found.exact.taken
    told = " ".join(found.reasons)
    assert all(name in told for name in {"gather", "ring", "1.5D"} - {found.exact.layout})
    assert "not written" not in told


@pytest.mark.parametrize(
    ("n", "d", "device"),
    [(10**5, 5000, "cpu"), (10**6, 3000, "cpu"), (10**6, 9, "h100"), (10**5, 20_000, "h100")],
)
def test_when_copies_pay_by_brute_force(n, d, device):
    """Every layout at every number of ranks, priced one by one."""
    task = problem(n, d, device=device)
    wanted = None
    for p in (4096, 1024, 256, 64, 16, 4):
        seconds = {}
        for _, block, rank, passes in expected_passes(n, 1, float(task.lams[0]), task.tol):
            if _ == "cg":
                continue
            price = scaling_module._fit_costs(task, p, block, rank, passes)
            size = int(min(n, LARGEST_BASIS, max(passes * block, 4 * block)))
            for layout in layouts_of(task, p, block):
                peak = scaling_module._bytes(task, p, layout, size, (block, rank))
                if peak <= task.device.memory:
                    kind = layout.copies
                    seconds[kind] = min(seconds.get(kind, np.inf), price(layout)[0])
        best = min(seconds, key=seconds.get, default=1)
        if best == 1:
            break
        wanted = p, best
    found = copies_pay_from(task)
    assert (None if found is None else (found.ranks, found.copies)) == wanted
    reasons = sdgpu.plan(n, d, lams=task.lams, ranks=16, device=device, tol=task.tol).reasons
    told = [reason for reason in reasons if "copies" in reason]
    words = (
        "slower than gather and ring"
        if wanted is None
        else f"pays from about {wanted[0]:,} ranks on"
    )
    assert any(words in reason for reason in told)


def test_no_device_is_needed(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in CLASSES:
        assert sdgpu.plan(10**9, 9, lams=1e5, ranks=64, device=device).seconds > 0
    assert sdgpu.plan(1000, 9, ranks=2, device="auto").device == "cpu"


def test_sizes_and_names_are_refused():
    with pytest.raises(ValueError, match="ranks=11 is more than the n=10 rows"):
        sdgpu.plan(10, 2, ranks=11, device="cpu")
    with pytest.raises(ValueError, match="ranks=0"):
        sdgpu.plan(10, 2, ranks=0, device="cpu")
    with pytest.raises(ValueError, match="method='eigh' is for plans of the device at hand"):
        sdgpu.plan(10, 2, ranks=2, device="cpu", method="eigh")
    with pytest.raises(ValueError, match=r"device='h100' is a class of devices.*ranks=1"):
        sdgpu.plan(10, 2, device="h100")
    with pytest.raises(ValueError, match="device='b200'"):
        sdgpu.plan(10, 2, ranks=2, device="b200")
    with pytest.raises(ValueError, match="take one of h100, h200, a100, cpu"):
        device_class("b200")


def test_prices_of_the_parts_fall_with_the_rows():
    """What is divided by p is divided: the model adds no work of its own."""
    device = device_class("a100")
    n, p, b, rank, passes = 10**6, 8, 8, 2000, 5.0
    whole, part = (Sketch.seconds(m, rank, device.rates) for m in (n, n // p))
    assert part < whole / p + 6 * rank**3 / device.rates.products
    algebra = [Subspace.pass_seconds(m, 40, b, rank, device.rates) for m in (n, n // p)]
    assert algebra[1] < algebra[0]
    assert PASS * passes < whole


@pytest.mark.parametrize(("n", "ranks"), [(1000, 1), (20_000, 4), (200_000, 64)])
def test_all_eigenvalues_by_rank_0_are_priced(n, ranks):
    """9 n^3 operations of one device, and n^2 numbers on the wire, by hand."""
    device = device_class("h100")
    reasons = sdgpu.plan(n, 9, lams=1e-4 * n, ranks=ranks, device="h100", tol=1e-4).reasons
    (told,) = [reason for reason in reasons if reason.startswith("method='eigh'")]
    sent = 8 * n * n * (ranks - 1) / ranks
    seconds = Eigh.seconds(n, device.rates) + 2 * sent / device.bandwidth(ranks)
    assert f"about {seconds:.3g} s" in told
    assert f"{show(int(sent))} sent" in told
    assert ("more than a device has" in told) == (8 * 3 * n * n > device.memory)
