"""Functions of the user's own in a configuration, and what they are known by in files."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

from sdgpu.backend.checksums import digest

__all__ = ["OWN", "identity"]

#: What the identity of a function of the user's own begins with.
OWN = "own:"


def identity(name: str, function: Any) -> str:
    """Text that tells one function from another, for folders and configurations.

    A function, or an object that can be called, with an attribute `name` (a text) is known by it alone.
    Any other by its module and name and a checksum of what it does: of a function the byte code, its
    constants, defaults and what it takes from where it was made; of an object its attributes; of a class
    the name alone. Byte code is that of one version of Python.

    Parameters
    ----------
    name : str
        Of the argument, for errors.
    function : callable

    Returns
    -------
    str
        ``own:`` and the name, then ``#`` and eight digits.

    Raises
    ------
    TypeError
        If something in it has no text but its place in memory: give it an attribute `name`.
    """
    given = getattr(function, "name", None)
    if isinstance(given, str) and given:
        return f"{OWN}{given}"
    if isinstance(function, type) or inspect.isbuiltin(function):
        return f"{OWN}{function.__module__}.{function.__qualname__}"
    checksum = digest(repr(_parts(name, function, depth=0))).removeprefix("xxh3:")[:8]
    described = function if hasattr(function, "__qualname__") else type(function)
    return f"{OWN}{described.__module__}.{described.__qualname__}#{checksum}"


def _parts(name: str, value: Any, *, depth: int) -> Any:
    """What makes a value the one that it is, as tuples of texts."""
    if depth > 8:
        raise _nameless(name, value)
    deeper = functools.partial(_parts, name, depth=depth + 1)
    if isinstance(value, (str, bytes, bool, int, float, complex, types.NoneType)):
        return repr(value)
    if isinstance(value, types.CodeType):
        return value.co_code.hex(), value.co_names, [deeper(one) for one in value.co_consts]
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = (value.__defaults__, value.__kwdefaults__)
        return deeper(value.__code__), [deeper(one) for one in (*cells, *defaults)]
    if inspect.ismethod(value):
        return deeper(value.__func__), deeper(value.__self__)
    if isinstance(value, functools.partial):
        return deeper(value.func), deeper(value.args), deeper(value.keywords)
    if isinstance(value, type) or inspect.isbuiltin(value) or inspect.ismodule(value):
        return (
            f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}"
        )
    if isinstance(value, dict):
        return [(deeper(key), deeper(one)) for key, one in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [deeper(one) for one in value]
        return sorted(map(repr, parts)) if isinstance(value, (set, frozenset)) else parts
    if hasattr(value, "detach"):  # a tensor
        return str(value.dtype), deeper(value.detach().cpu().tolist())
    if hasattr(value, "tolist"):  # an array, or a number of NumPy
        return str(value.dtype), deeper(value.tolist())
    if getattr(value, "__dict__", None) is not None:
        return type(value).__qualname__, deeper(vars(value))
    if type(value).__repr__ is object.__repr__:
        raise _nameless(name, value)
    return repr(value)


def _nameless(name: str, value: Any) -> TypeError:
    return TypeError(
        f"{name} holds a {type(value).__name__}, by which it cannot be told from another: give the "
        "function an attribute name, the text by which its folder knows it"
    )
