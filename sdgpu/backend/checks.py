"""Checks of numbers, names and grids that every floor uses, each with an error that says what to do.

Everything here works on host numbers (Python scalars and NumPy arrays). Data arrays go through
:mod:`sdgpu.backend.arrays` instead.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable

import numpy as np

__all__ = [
    "ROUNDED",
    "check_growth",
    "choice",
    "coefficient_box",
    "grid",
    "integer",
    "lam_grid",
    "number",
    "positive",
    "schedule",
    "served_lam",
    "shares",
]

ROUNDED = 1e-6  # a grid in float32 serves the numbers that it was rounded from
GROWTH = 100  # products of weights beyond 1e100 overflow when they are squared
SUBSETS = 20_000  # of coefficients that are tried, at most


def choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`; otherwise name the nearest of them.

    Raises
    ------
    ValueError
        For an unknown name; the message lists them and the closest match.
    """
    options = tuple(allowed)
    if isinstance(value, str) and value in options:
        return value
    matches = difflib.get_close_matches(str(value).lower(), options, n=1, cutoff=0.5)
    hint = f"did you mean {matches[0]!r}? " if matches else ""
    raise ValueError(f"{name}={value!r} is not known: {hint}known: {', '.join(options)}")


def number(name: str, value: object) -> float:
    """Return `value` as a finite Python float.

    Raises
    ------
    TypeError
        If `value` is no real number (a bool or a string, say).
    ValueError
        If it is NaN or infinite.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a 0-d array of any library
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be a real number, not {type(value).__name__}")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"{name}={value!r} must be finite")
    return result


def positive(name: str, value: object, *, zero: bool = False) -> float:
    """Return `value` as a float that is > 0 (>= 0 with `zero`); ValueError otherwise."""
    result = number(name, value)
    if result < 0 or (result == 0 and not zero):
        raise ValueError(f"{name}={value!r} must be {'>= 0' if zero else '> 0'}")
    return result


def integer(name: str, value: object, minimum: int) -> int:
    """Return `value` as an int >= `minimum`.

    Raises
    ------
    TypeError
        If `value` is no whole number.
    ValueError
        If it is below `minimum`.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} must be a whole number, not {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}")
    return int(value)


def grid(name: str, value: object) -> np.ndarray:
    """Return a number or a sequence of numbers as a 1-D float64 array, all finite and not empty.

    Raises
    ------
    TypeError
        If an entry is no real number.
    ValueError
        If the grid is empty, has more than one axis, or holds NaN or infinity.
    """
    host = _host(name, value)
    if host.ndim > 1:
        raise ValueError(f"{name} must be a number or one-dimensional, got shape {host.shape}")
    host = np.atleast_1d(host)
    if host.size == 0:
        raise ValueError(f"{name} is empty: give at least one number")
    _finite(name, host)
    return host


def shares(name: str, value: object, count: int, what: str) -> np.ndarray:
    """Return weights (count,) of so many things that sum to 1, equal ones for None.

    Raises
    ------
    TypeError, ValueError
        As :func:`grid`; if they are more or fewer, or sum to something else.
    """
    weights = np.full(count, 1 / count) if value is None else grid(name, value)
    if len(weights) != count:
        raise ValueError(f"{name} has {len(weights)} entries for {count} {what}")
    if not np.isclose(weights.sum(), 1):
        raise ValueError(
            f"{name} sum to {weights.sum():g}: they must sum to 1; divide them by their sum"
        )
    return weights


#: What stands for lam = 0, the fit of least norm: the smallest number with all its digits.
LEAST_NORM = float(np.finfo(float).tiny)


def lam_grid(name: str, value: object, *, zero: bool = False) -> np.ndarray:
    """Return regularisations as a 1-D float64 array (L,), each > 0 (the ridge of K + lam I).

    With `zero` the 0 is allowed, as the only one, and comes back as :data:`LEAST_NORM`.
    """
    host = grid(name, value)
    if zero and not host.any():
        return np.array([LEAST_NORM])
    if zero and (host == 0).any():
        raise ValueError(
            f"{name} has 0 beside others: the fit of least norm is one of its own, {name}=0"
        )
    if not (host > 0).all():
        bad = host[host <= 0][0]
        raise ValueError(f"{name} must be > 0 (the ridge of K + lam I), got {bad:g}")
    if not (host >= LEAST_NORM).all():  # 1 / lam is infinite
        bad = host[host < LEAST_NORM][0]
        raise ValueError(
            f"{name}={bad:g} is below {LEAST_NORM:.3g}, the smallest number with all its digits: rescale X "
            "or the parameters of the kernel"
        )
    return host


def schedule(
    alphas: object, steps: int, *, outputs: int | None = None, name: str = "alphas"
) -> np.ndarray:
    """Return the weights of steps 2..T as an array (T - 1,), or (T - 1, c) for one per output.

    Parameters
    ----------
    alphas : number or array_like
        One weight for every step, or one per step 2..T (step 1 has none). With `outputs`, an
        array (T - 1, c) gives every output its own weights.
    steps : int
        T, at least 1.
    outputs : int, optional
        c; without it an array with two axes is refused.
    name : str, default "alphas"
        For the error messages.

    Raises
    ------
    TypeError, ValueError
        For anything but finite numbers, or a schedule of the wrong length.
    """
    steps = integer("steps", steps, 1)
    host = _host(name, alphas)
    _finite(name, host)
    if host.ndim == 0 or steps == 1:
        check_growth(host, steps)
    elif np.log10(np.maximum(np.abs(1 - host), 1.0)).sum(axis=0).max() > GROWTH:
        raise ValueError(
            f"{name} reach {float(host.flat[np.argmax(np.abs(1 - host))]):g}: over steps={steps} the "
            f"weights overflow; keep the product of |1 - alpha| below 1e{GROWTH}"
        )
    if host.ndim == 0:
        return np.full(steps - 1, float(host))
    if host.shape == (steps - 1,):
        return host
    if outputs is not None and host.shape == (steps - 1, outputs):
        return host
    per_output = f", or an array ({steps - 1}, {outputs})" if outputs and outputs > 1 else ""
    raise ValueError(
        f"{name} has shape {host.shape}, but steps={steps} needs one number or {steps - 1} of them, "
        f"one per step 2..{steps} (step 1 has no weight){per_output}"
    )


def check_growth(alphas: np.ndarray, steps: int) -> None:
    """Refuse weights so far from 1 that their products over the steps overflow.

    Raises
    ------
    ValueError
        If |1 - alpha|^(steps - 1) may exceed 1e100.
    """
    if alphas.size and steps > 1:
        furthest = float(np.max(np.abs(1 - alphas)))
        if furthest > 1 and (steps - 1) * math.log10(furthest) > GROWTH:
            raise ValueError(
                f"alphas reach {float(alphas.flat[np.argmax(np.abs(1 - alphas))]):g}: over "
                f"steps={steps} the weights overflow; keep |1 - alpha| ** (steps - 1) below 1e100"
            )


def _host(name: str, value: object) -> np.ndarray:
    """Bring numbers of any library to a float64 NumPy array; they are few."""
    if isinstance(value, np.ndarray):
        host = value
    elif hasattr(value, "detach"):  # a torch tensor, on any device
        host = value.detach().cpu().numpy()
    elif hasattr(value, "get") and hasattr(value, "__cuda_array_interface__"):  # CuPy
        host = value.get()
    else:
        host = np.asarray(value)
    if host.dtype.kind not in "iuf":
        raise TypeError(f"{name}={value!r} must hold real numbers, got dtype {host.dtype}")
    return host.astype(np.float64)


def _finite(name: str, host: np.ndarray) -> None:
    if not np.isfinite(host).all():
        bad = host[~np.isfinite(host)].flat[0]
        raise ValueError(f"{name} must be finite, got {bad}")


def coefficient_box(box: object, terms: object, steps: int) -> tuple[float, float] | None:
    """Check bounds of coefficients that sum to 1, and how many may differ from 0."""
    count = steps if terms is None else integer("terms", terms, 1)
    if count > steps or math.comb(steps, count) > SUBSETS:
        raise ValueError(
            f"terms={count} of steps={steps}: at most all of them, and {SUBSETS:,} subsets are tried; use "
            "fewer steps or other terms"
        )
    if box is None:
        return None
    if not isinstance(box, (tuple, list)) or len(box) != 2:
        raise TypeError(f"box={box!r} must be a pair of numbers, (low, high)")
    low, high = number("box[0]", box[0]), number("box[1]", box[1])
    if not low <= 0 or high < 1:
        raise ValueError(
            f"box=({low:g}, {high:g}) must hold 0 and 1: one step alone has the coefficient 1, and unused "
            "ones are 0"
        )
    return low, high


def served_lam(lams: np.ndarray, lam: object) -> float:
    """Return lam if a fit of `lams` serves it; the only one if it is None."""
    if lam is None:
        if len(lams) > 1:
            raise ValueError(f"lam is missing: the fit serves {len(lams)} of them, name one")
        return float(lams[0])
    smallest = float(lams.min())
    ridge = positive("lam", lam, zero=smallest == LEAST_NORM) or LEAST_NORM
    if ridge < smallest * (1 - ROUNDED):
        raise ValueError(
            f"lam={ridge:g} is below the smallest fitted one, {smallest:.9g}: "
            "fit again with lams that reach down to it"
        )
    return ridge
