"""Where a key stands in a TOML file, and errors of pydantic in words: line, table, key, nearest key."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

__all__ = ["Lines", "explain"]

_TABLE = re.compile(r"\s*\[(\[)?\s*([A-Za-z0-9_.\"' -]+?)\s*\]\]?\s*(#.*)?")
_KEY = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=")

Place = tuple[str | int, ...]


class Lines:
    """The lines of tables and keys of a text.

    Parameters
    ----------
    text : str
        TOML that can be read.
    file : str
        Its name, for messages.
    """

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self._lines: dict[Place, int] = {}
        table: Place = ()
        counts: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if match := _TABLE.fullmatch(line):
                name = match[2].strip("\"' ")
                index = counts.get(name, -1) + 1 if match[1] else 0
                counts[name] = index
                table = (name, index)
                self._lines[table] = number
            elif match := _KEY.match(line):
                self._lines.setdefault((*table, match[1]), number)

    def where(self, place: Place) -> str:
        """File, line and table of a key, as far as it is known: "file.toml, line 7, [kernel] gamma"."""
        names = [part for part in place if isinstance(part, str)]
        numbers = [part for part in place if isinstance(part, int)]
        table, key = (names[0], names[1]) if len(names) > 1 else (names[0] if names else "", "")
        index = numbers[0] if numbers else 0
        candidates: list[Place] = [(table, index, key), (table, 0, key), (table, index), (table,)]
        line = next((self._lines[c] for c in candidates if c in self._lines), None)
        several = (table, 1) in self._lines
        label = f"[{table}]{f' number {index + 1}' if several else ''} {key}" if key else table
        return ", ".join(
            part for part in (self.file, line and f"line {line}", label.strip()) if part
        )


def explain(error: ValidationError, lines: Lines, model: type[BaseModel]) -> str:
    """All faults that pydantic found, a line for each."""
    return "\n".join(dict.fromkeys(_fault(fault, lines, model) for fault in error.errors()))


def _fault(fault: Any, lines: Lines, model: type[BaseModel]) -> str:
    place: Place = fault["loc"]
    context = fault.get("ctx", {})
    if fault["type"] == "of_key":
        place = (*place, context["key"])
    where = lines.where(place)
    if fault["type"] == "extra_forbidden":
        known = list(_table(model, place[:-1]).model_fields)
        close = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{where}: there is no key {place[-1]!r}: {hint}known: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"{where}: the key {place[-1]!r} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if fault["type"] in ("of_key", "value_error"):
        return f"{where}: {message}"
    return f"{where}={fault['input']!r}: {message}"


def _table(model: type[BaseModel], place: Place) -> type[BaseModel]:
    """The model of the table at a place."""
    for part in place:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            for candidate in (annotation, *get_args(annotation)):
                if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                    model = candidate
    return model
