"""Which columns of a table or of a matrix are features, which are targets, and which one holds weights."""

from __future__ import annotations

import difflib
import numbers
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["NamedColumns", "NumberedColumns", "by_name", "by_number"]

_SHOWN = 10  # names in an error message


@dataclass(frozen=True)
class NamedColumns:
    """Columns of a table.

    Attributes
    ----------
    features, targets : tuple of str
        In the order of the rows that are made of them; no targets at all are allowed.
    weights : str or None
    """

    features: tuple[str, ...]
    targets: tuple[str, ...]
    weights: str | None

    @property
    def all(self) -> list[str]:
        """Every column that is read."""
        return [*self.features, *self.targets, *([] if self.weights is None else [self.weights])]


@dataclass(frozen=True)
class NumberedColumns:
    """Columns of a matrix, counted from 0.

    Attributes
    ----------
    features, targets : tuple of int
    weights : int or None
    """

    features: tuple[int, ...]
    targets: tuple[int, ...]
    weights: int | None

    def parts(self, matrix: Any) -> tuple[Any, Any, Any]:
        """X (b, d), Y (b, c) or None and weights (b,) or None of rows (b, width)."""
        whole = self.features == tuple(range(matrix.shape[1]))  # then no copy is needed
        X = matrix if whole else matrix[:, list(self.features)]
        Y = matrix[:, list(self.targets)] if self.targets else None
        return X, Y, None if self.weights is None else matrix[:, self.weights]


def by_name(
    names: Sequence[str],
    target: Any = None,
    features: Any = None,
    weights: Any = None,
    *,
    place: str,
    index: Collection[str] = (),
) -> NamedColumns:
    """Choose columns of a table by their names.

    Parameters
    ----------
    names : sequence of str
        Of all columns.
    target : str or sequence of str, optional
        By default the last column that is neither of weights nor of the index; an empty list: none.
    features : str or sequence of str, optional
        By default all other columns.
    weights : str, optional
        One column; by default rows have no weights.
    place : str
        The table, for messages.
    index : collection of str
        Columns that are taken where they are asked for by name alone.

    Raises
    ------
    TypeError
        For what is no name.
    ValueError
        For unknown names, a column that is asked for twice, and if no feature is left.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{place} has {twice[0]!r} as the name of two columns: rename one of them")
    weight_columns = _names("weights", weights, names, place)
    target_columns = _names("target", target, names, place)
    feature_columns = _names("features", features, names, place)
    if weights is not None and len(weight_columns) != 1:
        raise ValueError(f"weights={weights!r} must be the name of one column of {place}")
    free = [name for name in names if name not in index and name not in weight_columns]
    if target is None:
        target_columns = free[-1:]
    if features is None:
        feature_columns = [name for name in free if name not in target_columns]
    _check_once(
        {"features": feature_columns, "target": target_columns, "weights": weight_columns},
        place,
        remedy="name the targets, target=..; target=[] for none"
        if target is None
        else "leave it out of one of them",
    )
    return NamedColumns(
        tuple(feature_columns), tuple(target_columns), weight_columns[0] if weight_columns else None
    )


def by_number(
    width: int, target: Any = None, features: Any = None, weights: Any = None, *, place: str
) -> NumberedColumns:
    """Choose columns of a matrix by their numbers; negative ones count from the end.

    Parameters
    ----------
    width : int
        Columns of the matrix.
    target : int or sequence of int, optional
        By default there are no targets.
    features : int or sequence of int, optional
        By default all other columns.
    weights : int, optional
        One column; by default rows have no weights.
    place : str
        The matrix, for messages.

    Raises
    ------
    TypeError
        For what is no whole number.
    ValueError
        For numbers of no column, a column that is asked for twice, and if no feature is left.
    """
    weight_columns = _numbers("weights", weights, width, place)
    target_columns = _numbers("target", target, width, place)
    feature_columns = _numbers("features", features, width, place)
    if weights is not None and len(weight_columns) != 1:
        raise ValueError(f"weights={weights!r} must be the number of one column of {place}")
    if features is None:
        feature_columns = [
            j for j in range(width) if j not in target_columns and j not in weight_columns
        ]
    _check_once(
        {"features": feature_columns, "target": target_columns, "weights": weight_columns},
        place,
        remedy="leave it out of one of them",
    )
    return NumberedColumns(
        tuple(feature_columns), tuple(target_columns), weight_columns[0] if weight_columns else None
    )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, (str, bytes, os.PathLike, numbers.Number)):
        return [value]
    try:
        return list(value)
    except TypeError:
        return [value]


def _names(what: str, value: Any, names: Sequence[str], place: str) -> list[str]:
    columns, known = _listed(value), set(names)  # tables may have thousands of columns
    for column in columns:
        if not isinstance(column, str):
            raise TypeError(
                f"{what}={value!r} must be a name, or a list of names, of columns of {place}: "
                f"{_listing(names)}"
            )
        if column not in known:
            lower = {name.lower(): name for name in names}
            near = difflib.get_close_matches(column.lower(), lower, n=1)
            hint = f"did you mean {lower[near[0]]!r}? " if near else ""
            raise ValueError(
                f"{what}={column!r} is no column of {place}: {hint}it has {_listing(names)}"
            )
    return columns


def _numbers(what: str, value: Any, width: int, place: str) -> list[int]:
    columns = []
    for column in _listed(value):
        if isinstance(column, bool) or not isinstance(column, (int, np.integer)):
            raise TypeError(
                f"{what}={value!r} must be a number, or a list of numbers, of columns of {place}: "
                f"0 to {width - 1}"
            )
        if not -width <= column < width:
            raise ValueError(f"{what}={column} is no column of {place}: it has 0 to {width - 1}")
        columns.append(int(column) % width)
    return columns


def _check_once(columns: dict[str, list[Any]], place: str, *, remedy: str) -> None:
    """Refuse a column that is asked for twice, and a choice without features."""
    roles: dict[Any, str] = {}
    for role, role_columns in columns.items():
        for column in role_columns:
            if roles.get(column) == role:
                raise ValueError(f"{role} names the column {column!r} of {place} twice")
            if column in roles:
                raise ValueError(
                    f"the column {column!r} of {place} is in {roles[column]} and in {role}: {remedy}"
                )
            roles[column] = role
    if not columns["features"]:
        raise ValueError(f"{place} has no column left for features: name some, features=[..]")


def _listing(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", .." if len(names) > _SHOWN else "")
