"""Objects of JSON with a checksum of their fields: whole files, and lines of a growing one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdgpu.backend.checksums import digest
from sdgpu.backend.storage import write_file

__all__ = ["plain", "read_json", "read_line", "sealed_line", "write_json"]


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write an object of JSON with a checksum of its fields.

    Raises
    ------
    OSError
        As :func:`~sdgpu.backend.storage.write_file`.
    """
    text = json.dumps({**fields, "checksum": checksum_of(fields)}, indent=2)
    write_file(path, text.encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is damaged or something else; names the file.
    """
    content = path.read_bytes()
    try:
        fields = json.loads(content)
        if not isinstance(fields, dict) or "checksum" not in fields:
            raise ValueError("it has no checksum")
        if fields.pop("checksum") != checksum_of(fields):
            raise ValueError("its checksum is another")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged, or was not written by this version of sdgpu ({error})"
        ) from error
    return fields


def sealed_line(fields: Mapping[str, Any]) -> str:
    """One line of JSON with a checksum of its fields."""
    return json.dumps({**fields, "checksum": checksum_of(fields)}) + "\n"


def read_line(line: str) -> dict[str, Any] | None:
    """The fields of a :func:`sealed_line`; None if it is damaged, or the torn end of a file."""
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict) or fields.pop("checksum", None) != checksum_of(fields):
            return None
    except (ValueError, RecursionError):
        return None
    return fields


def plain(value: Any) -> Any:
    """What JSON can hold: lists for tuples, None for NaN, "inf" for what is infinite."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def checksum_of(fields: Mapping[str, Any]) -> str:
    """Digest of the fields in the order of their names."""
    return digest(json.dumps(fields, sort_keys=True))
