"""CuPy on a machine without CUDA: NumPy's numbers behind CuPy's manners.

Inside :func:`pretend_cupy` the module ``cupy`` can be imported and is this one. Its ``ndarray`` is a class of its
own that array-api-compat takes for CuPy's. As CuPy it refuses NumPy's arrays beside its own, in functions,
operators and assignments (as indices and in ``asarray`` they are sent); ``np.asarray(x)`` raises TypeError;
results of reductions are arrays of no axis, not numbers; cuSOLVER's errors are ignored unless
``cupyx.errstate(linalg="raise")`` says otherwise, and eigenvectors come in Fortran order. Memory is shared with
pretended CUDA tensors of torch by DLPack, and with nobody else.

What it cannot show: kernels, streams, the limits of cuSOLVER, and speed.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import scipy.linalg

from tests.cuda_stand_in import CudaTensor

__all__ = ["ndarray", "pretend_cupy"]

_SETTINGS = {"linalg": "ignore"}
_COPIES = {"read": 0, "sent": 0}


class Device:
    """``cupy.cuda.Device``."""

    def __init__(self, device: Any = None) -> None:
        self.id = int(getattr(device, "id", 0 if device is None else device))

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def synchronize(self) -> None:
        pass


def _refuse(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _inside(value: Any) -> Any:
    """The numbers of an argument; arrays of NumPy are none."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inside, value))
    return value._host if isinstance(value, ndarray) else _refuse(value)


def _outside(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    if type(value) in (list, tuple):
        return type(value)(map(_outside, value))
    if isinstance(value, tuple):  # a named one
        return type(value)(*map(_outside, value))
    return value


def _index(key: Any) -> Any:
    """Indices may be arrays of NumPy and lists, which are sent."""
    if isinstance(key, tuple):
        return tuple(map(_index, key))
    if isinstance(key, (np.ndarray, list)):
        _COPIES["sent"] += 1
    return key._host if isinstance(key, ndarray) else key


class ndarray:
    """An array of the device; `_host` has its numbers."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: Any, dtype: Any = float) -> None:
        self._host = host if isinstance(host, np.ndarray) else np.empty(host, dtype)

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    strides = property(lambda self: self._host.strides)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: ndarray(self._host.T))
    mT = property(lambda self: ndarray(self._host.mT))  # noqa: N815 - CuPy's name
    device = property(lambda self: Device(0))

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy "
            "array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        return _outside(ufunc(*map(_inside, inputs), **{k: _inside(v) for k, v in kwargs.items()}))

    def __array_namespace__(self, *, api_version: Any = None) -> Any:
        return sys.modules["cupy"]

    def get(self, *_: Any, **__: Any) -> np.ndarray:
        _COPIES["read"] += 1
        return self._host.copy()

    def item(self, *args: Any) -> Any:
        _COPIES["read"] += 1
        return self._host.item(*args)

    def tolist(self) -> Any:
        _COPIES["read"] += 1
        return self._host.tolist()

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("memory of the device goes to libraries of the device alone")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def astype(self, dtype: Any, order: str = "K", *, copy: bool = True, **_: Any) -> ndarray:
        made = self._host.astype(dtype, order=order, copy=copy)
        return self if made is self._host else ndarray(made)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Any]:
        return map(_outside, iter(self._host))

    def __bool__(self) -> bool:
        _COPIES["read"] += 1
        return bool(self._host)

    def __float__(self) -> float:
        _COPIES["read"] += 1
        return float(self._host)

    def __int__(self) -> int:
        _COPIES["read"] += 1
        return int(self._host)

    def __index__(self) -> int:
        _COPIES["read"] += 1
        return self._host.__index__()

    def __repr__(self) -> str:
        return repr(self._host)

    def __format__(self, spec: str) -> str:
        return format(self._host, spec)

    def __getitem__(self, key: Any) -> Any:
        return ndarray(np.asarray(self._host[_index(key)]))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_index(key)] = _inside(value)


def _method(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self._host, name)(
            *_inside(args), **{k: _inside(v) for k, v in kwargs.items()}
        )
        return _outside(result)

    return method


def _operator(name: str) -> Any:
    def operate(self: ndarray, *others: Any) -> Any:
        if any(isinstance(other, CudaTensor) for other in others):
            return NotImplemented
        result = getattr(self._host, name)(*map(_inside, others))
        if name[2] == "i" and result is self._host:
            return self
        return result if result is NotImplemented else _outside(result)

    return operate


for _name in [
    "sum",
    "max",
    "min",
    "mean",
    "std",
    "var",
    "prod",
    "all",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "cumsum",
    "dot",
    "nonzero",
]:
    setattr(ndarray, _name, _method(_name))
for _name in [
    "copy",
    "reshape",
    "ravel",
    "transpose",
    "swapaxes",
    "squeeze",
    "take",
    "repeat",
    "fill",
    "diagonal",
    "trace",
    "flatten",
    "clip",
    "round",
]:
    setattr(ndarray, _name, _method(_name))
for _name in [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
]:
    for _prefix in ("", "r", "i"):
        setattr(ndarray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in ["eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "divmod"]:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
ndarray.__module__ = "cupy"


def asarray(a: Any, dtype: Any = None, order: Any = None, **_: Any) -> ndarray:
    if isinstance(a, ndarray):
        return a if dtype is None else a.astype(dtype, copy=False)
    if isinstance(a, CudaTensor):
        return from_dlpack(a)
    _COPIES["sent"] += 1
    return ndarray(
        np.array(_inside(a) if isinstance(a, (list, tuple)) else a, dtype=dtype, order=order)
    )


def array(obj: Any, dtype: Any = None, copy: Any = True, **kwargs: Any) -> ndarray:
    made = asarray(obj, dtype, **kwargs)
    return made.copy() if made is obj and copy else made


def asnumpy(a: Any) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def from_dlpack(x: Any, **_: Any) -> ndarray:
    if isinstance(x, CudaTensor):
        return ndarray(x.detach().host.numpy())
    if isinstance(x, ndarray):
        return x
    raise BufferError("CPU arrays cannot be directly imported to CuPy")


def take(a: ndarray, indices: Any, axis: Any = None, **_: Any) -> ndarray:
    if not isinstance(indices, ndarray):
        _COPIES["sent"] += 1
    return ndarray(np.take(_inside(a), np.asarray(_index(indices)), axis=axis))


def nonzero(a: ndarray) -> Any:
    _COPIES["read"] += 1
    return _outside(np.nonzero(_inside(a)))


def _function(name: str, host: Any) -> Any:
    """A function of NumPy on arrays of the device."""

    def function(*args: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        kwargs = {k: (v if k == "dtype" else _inside(v)) for k, v in kwargs.items()}
        result = host(*_inside(args), **kwargs)
        return out if isinstance(out, ndarray) else _outside(result)

    function.__name__ = name
    return function


def _eigh(a: ndarray, UPLO: str = "L") -> Any:
    if not np.isfinite(_inside(a)).all():
        return _failed("xsyevd", ndarray(np.zeros(a.shape[0])), ndarray(np.zeros(a.shape)))
    values, vectors = np.linalg.eigh(_inside(a), UPLO)
    return ndarray(values), ndarray(np.asfortranarray(vectors))


def _cholesky(a: ndarray, *, upper: bool = False) -> Any:
    try:
        return ndarray(np.linalg.cholesky(_inside(a)))
    except np.linalg.LinAlgError:  # what was done until then stays
        return _failed("dpotrf", ndarray(np.tril(_inside(a))))[0]


def _failed(name: str, *unfinished: Any) -> Any:
    """cuSOLVER's status, which CuPy looks at when it is asked to."""
    if _SETTINGS["linalg"] == "raise":
        raise np.linalg.LinAlgError(f"Error reported by {name} in cuSOLVER. devInfo = 1.")
    return unfinished


def _solve_triangular(
    a: ndarray, b: ndarray, trans: Any = 0, lower: bool = False, **_: Any
) -> ndarray:
    return ndarray(scipy.linalg.solve_triangular(_inside(a), _inside(b), trans=trans, lower=lower))


@contextmanager
def _errstate(*, linalg: str | None = None, **_: Any) -> Iterator[None]:
    with mock.patch.dict(_SETTINGS, {} if linalg is None else {"linalg": linalg}):
        yield


def _modules() -> dict[str, types.ModuleType]:
    """cupy, its parts and cupyx."""
    cupy, linalg, cuda, fft = (
        types.ModuleType(f"cupy{x}") for x in ("", ".linalg", ".cuda", ".fft")
    )
    for name in dir(np):
        value = getattr(np, name)
        plain = name.startswith("_") or isinstance(value, types.ModuleType)
        if not plain:
            is_function = callable(value) and not isinstance(value, type)
            setattr(cupy, name, _function(name, value) if is_function else value)
    for name in ("finfo", "iinfo", "result_type", "can_cast", "issubdtype", "isdtype", "isscalar"):
        if hasattr(np, name):
            setattr(cupy, name, getattr(np, name))
    own = (ndarray, asarray, array, asnumpy, from_dlpack, take, nonzero)
    for value in own:
        setattr(cupy, value.__name__, value)
    cupy.__version__ = "14.0.0"
    cupy.__all__ = [name for name in vars(cupy) if not name.startswith("_")]
    for name in np.linalg.__all__:
        value = getattr(np.linalg, name)
        setattr(linalg, name, value if isinstance(value, type) else _function(name, value))
    linalg.eigh, linalg.cholesky = _eigh, _cholesky
    linalg.__all__ = [name for name in vars(linalg) if not name.startswith("_")]
    for name in np.fft.__all__:
        setattr(fft, name, _function(name, getattr(np.fft, name)))
    fft.__all__ = list(np.fft.__all__)
    device = types.ModuleType("cupy.cuda.device")
    device.Device = cuda.Device = Device
    cuda.device = device
    cuda.Stream = type("Stream", (), {"null": None})
    cuda.runtime = types.SimpleNamespace(getDeviceCount=lambda: 1, is_hip=False)
    cupyx, scipy_part, scipy_linalg = map(
        types.ModuleType, ("cupyx", "cupyx.scipy", "cupyx.scipy.linalg")
    )
    cupyx.errstate, cupyx.scipy, scipy_part.linalg = _errstate, scipy_part, scipy_linalg
    scipy_linalg.solve_triangular = _solve_triangular
    cupy.linalg, cupy.cuda, cupy.fft = linalg, cuda, fft
    modules = [cupy, linalg, cuda, device, fft, cupyx, scipy_part, scipy_linalg]
    return {module.__name__: module for module in modules}


@contextmanager
def pretend_cupy() -> Iterator[dict[str, int]]:
    """``import cupy`` gives the stand-in; what is yielded counts reads and what was sent."""
    from sdgpu.backend import cupy_backend

    compat = importlib.import_module("array_api_compat")
    known = vars(compat).get("cupy")  # of a CuPy that is there
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.split(".")[0] in ("cupy", "cupyx")]:
            del sys.modules[name]
        for name in [name for name in sys.modules if name.startswith("array_api_compat.cupy")]:
            del sys.modules[name]
        sys.modules.update(_modules())
        cupy_backend.why_not.cache_clear()
        importlib.import_module("array_api_compat.cupy")
        _COPIES.update(read=0, sent=0)
        try:
            yield _COPIES
        finally:
            cupy_backend.why_not.cache_clear()
            vars(compat).pop("cupy", None)
            if known is not None:
                compat.cupy = known
