"""Types of the keys of a study: numbers and lists of them, and errors that name their key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from sdgpu.backend.checks import choice

__all__ = [
    "Count",
    "Finite",
    "Levels",
    "Names",
    "Orders",
    "Positive",
    "Ridges",
    "Scales",
    "Seeds",
    "StudyTable",
    "Tables",
    "Weights",
    "Whole",
    "check_choice",
    "check_key",
    "fault_of",
    "listed",
    "require_different",
]


class StudyTable(BaseModel):
    """A table of the file: no other keys, no values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def listed(value: Any) -> Any:
    """One value or a list as a tuple."""
    return (
        tuple(value) if isinstance(value, list) else value if isinstance(value, tuple) else (value,)
    )


def _grid(value: Any, *, geometric: bool) -> Any:
    """Numbers, or ``low:high:count`` of a grid."""
    if not isinstance(value, str):
        return listed(value)
    try:
        low, high, count = value.split(":")
        ends, size = (float(low), float(high)), int(count)
    except ValueError:
        raise ValueError(f"{value!r}: write numbers, or 'low:high:count'") from None
    if size < 1 or not np.isfinite(ends).all() or (geometric and min(ends) <= 0):
        raise ValueError(f"{value!r}: both ends finite{' and > 0' * geometric}, and a count >= 1")
    return tuple((np.geomspace if geometric else np.linspace)(*ends, size).tolist())


def require_different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse an empty list, and one that names a value twice."""
    if not values:
        raise ValueError("the list is empty: give at least one value")
    if len(set(values)) < len(values):
        raise ValueError(f"{list(values)} names one value twice")
    return values


def _geometric(value: Any) -> Any:
    return _grid(value, geometric=True)


def _even(value: Any) -> Any:
    return _grid(value, geometric=False)


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Ridges = Annotated[tuple[Positive, ...], BeforeValidator(_geometric)]
Scales = Annotated[tuple[Positive, ...], BeforeValidator(_geometric)]
Weights = Annotated[tuple[Finite, ...], BeforeValidator(_even)]
Whole = Annotated[tuple[Count, ...], BeforeValidator(listed)]
Orders = Annotated[tuple[Annotated[int, Field(ge=0, le=3)], ...], BeforeValidator(listed)]
Names = Annotated[tuple[str, ...], BeforeValidator(listed)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Levels = Annotated[tuple[NotNegative, ...], BeforeValidator(_even)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(listed)]
Tables = BeforeValidator(listed)


def fault_of(key: str, message: str) -> PydanticCustomError:
    """An error of one key, for the line that it stands on."""
    return PydanticCustomError("of_key", "{message}", {"message": message, "key": key})


def check_key(key: str, check: Callable[[Any], Any], value: Any) -> None:
    """Call `check` on a value; its ValueError becomes one of the key."""
    try:
        check(value)
    except ValueError as error:
        raise fault_of(key, str(error)) from None


def check_choice(key: str, value: str, allowed: Iterable[str]) -> str:
    """One of several names, or an error of the key with the nearest."""
    check_key(key, lambda name: choice(key, name, allowed), value)
    return value
