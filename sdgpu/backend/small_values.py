"""Small values as bytes, and back: JSON with arrays in it. Nothing in it is ever executed.

Numbers come back with all their bits, NaN and infinity too; tuples as lists; arrays of NumPy and of torch
with their dtype and shape, those of torch on the CPU.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import array_api_compat as compat
import numpy as np

__all__ = ["from_bytes", "to_bytes"]

ARRAY = "array of"  # the key that marks one


def to_bytes(value: Any, name: str = "value") -> bytes:
    """Bytes of a value.

    Parameters
    ----------
    value : None, bool, int, float, str, array, or a list, tuple or dict of such
        Keys of dicts are strings.
    name : str
        For the error messages.

    Raises
    ------
    TypeError
        For anything else; names it.
    """
    return json.dumps(_plain(value, name)).encode()


def from_bytes(content: bytes) -> Any:
    """The value whose bytes these are.

    Raises
    ------
    ValueError
        If they are not those of a value.
    """
    try:
        return _restored(json.loads(content))
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"these bytes are no value of small_values ({error})") from error


def _plain(value: Any, name: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == ARRAY:
                raise TypeError(f"{name} has the key {key!r}: keys must be strings, not {ARRAY!r}")
        return {key: _plain(entry, f"{name}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, f"{name}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, np.generic) or compat.is_numpy_array(value):
        return _array("numpy", np.asarray(value), name)
    if compat.is_torch_array(value):
        return _array("torch", value.detach().cpu().numpy(), name)
    raise TypeError(
        f"{name} is a {type(value).__name__}: ranks tell each other numbers, strings, arrays, and "
        "lists and dicts of them"
    )


def _array(library: str, array: np.ndarray, name: str) -> dict[str, Any]:
    if array.dtype.kind not in "biufcUSmM":
        raise TypeError(f"{name} has dtype {array.dtype}: it must hold numbers or text")
    return {
        ARRAY: library,
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "bytes": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
    }


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if ARRAY not in value:
        return {key: _restored(entry) for key, entry in value.items()}
    dtype = np.dtype(value["dtype"])
    if dtype.hasobject:
        raise ValueError(f"an array of dtype {dtype} is no value of small_values")
    content = bytearray(base64.b64decode(value["bytes"], validate=True))
    array = np.frombuffer(content, dtype=dtype).reshape(value["shape"])
    if value[ARRAY] == "torch":
        import torch

        return torch.from_numpy(array)
    return array if array.ndim else array[()]
