"""What the device at hand does in a second, by a clock: it predicts, and chooses nothing.

Only the seconds that a plan prints come from here, by products and kernel values that take some 20 MB and
well under a second.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sdgpu.backend.backends import Backend
from sdgpu.backend.rates import Rates
from sdgpu.kernels import Gaussian
from sdgpu.operators.tiled import TiledOperator

__all__ = ["calibrate", "with_compiled_loop"]


COMPILED = 3.0  # kernel values of the compiled loop over those of torch's passes: bench_products

SIDE = 512  # of the matrices that are multiplied: 2 MiB each
READ = 2**21  # numbers of the array that is read: 16 MiB, beyond the cache of a core


def with_compiled_loop(rates: Rates, backend: Backend) -> Rates:
    """The rates with tiles as the compiled loop makes them; the same where it cannot be used."""
    if "cuda" in backend.name or importlib.util.find_spec("llvmlite") is None:
        return rates
    return replace(rates, tiles=COMPILED * rates.powers, tiles32=COMPILED * rates.powers32)


def calibrate(backend: Backend) -> Rates:
    """Measure the rates of a backend's device, once in a process; well under a second."""
    if backend.name not in _RATES:
        _RATES[backend.name] = _measure(backend)
    return _RATES[backend.name]


_RATES: dict[str, Rates] = {}


def _measure(backend: Backend) -> Rates:
    rng = np.random.default_rng(0)
    xp = backend.xp
    # tiles first: the threads of another library's products would still be spinning
    X, ones = backend.asarray(rng.standard_normal((SIDE, 8))), backend.asarray(np.ones((SIDE, 1)))
    powers = {}
    for precision in ("float64", "float32"):
        multiply = TiledOperator(Gaussian(0.1), X, precision, tile=SIDE // 2).matmat
        powers[precision] = SIDE**2 / 2 / _seconds(partial(multiply, ones), backend)
    tall = xp.ones((READ // SIDE, SIDE), dtype=xp.float64, device=backend.device)
    bandwidth = 8 * READ / _seconds(lambda: tall @ tall[:SIDE, :1], backend)
    wide = backend.asarray(rng.standard_normal((SIDE, SIDE)))
    single = xp.astype(wide, xp.float32)
    products = SIDE**3 / _seconds(lambda: wide @ wide, backend)
    products32 = SIDE**3 / _seconds(lambda: single @ single, backend)
    powers64, powers32 = powers["float64"], powers["float32"]
    return Rates(
        products=products,
        products32=products32,
        powers=powers64,
        powers32=powers32,
        bandwidth=bandwidth,
        tiles=powers64,
        tiles32=powers32,
    )


def _seconds(work: Callable[[], Any], backend: Backend, rounds: int = 5) -> float:
    work()
    seconds = []
    for _ in range(rounds):
        backend.synchronize()
        start = time.perf_counter()
        work()
        backend.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
