"""CUDA tensors on a machine without CUDA: real numbers on the host, and the manners of a device.

Inside :func:`pretend_cuda` whatever is made on, or moved to, "cuda" is a :class:`CudaTensor`: its numbers lie
in a tensor on the CPU, its ``device`` is cuda:0, and it refuses what a tensor on a GPU refuses: tensors of the
host beside it, and ``numpy()``. So whole fits and trainings run, with true results, and whatever would have
failed on a GPU fails here. What makes the host wait is written down, with the line of the package that did
it: numbers that are read (``item``, ``bool``, ``cpu``, sizes that depend on values), and numbers that are
sent (torch waits for those too, unless they come from pinned memory without blocking).

What it cannot show is what happens below torch's operations: kernels, streams, memory. Nor batch norm
under torch.func.vmap, for which torch makes tensors where it finds the input, below Python.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

__all__ = ["CudaTensor", "Transfer", "Transfers", "on_host", "pretend_cuda"]

ROOT = str(Path(__file__).parents[1])
CUDA = torch.device("cuda:0")
MEMORY = 8 * 2**30
aten = torch.ops.aten

# operations whose results have a size, or raise an error, that only the numbers know
_WAITS = {
    "_linalg_eigh",
    "_linalg_svd",
    "_unique2",
    "bincount",
    "equal",
    "inverse",
    "linalg_cholesky",
    "linalg_eig",
    "linalg_inv_ex",
    "linalg_lstsq",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
_CARRIERS = {"to_numpy", "asarray", "<listcomp>", "<genexpr>"}  # whoever calls these is named
_RESHAPES = {"as_strided_", "squeeze_", "unsqueeze_", "t_", "transpose_"}


@dataclass(frozen=True)
class Transfer:
    """Something for which the host waits."""

    kind: str  # "read" or "sent"
    what: str
    where: str  # file and function of the package, or of the test
    size: int  # numbers


@dataclass
class Transfers:
    """What was written down so far."""

    all: list[Transfer] = field(default_factory=list)

    def note(self, kind: str, what: str, size: int) -> None:
        self.all.append(Transfer(kind, what, _caller(), size))

    @property
    def reads(self) -> list[Transfer]:
        """Where the host waited for numbers of the device."""
        return [one for one in self.all if one.kind == "read"]

    @property
    def sent(self) -> list[Transfer]:
        """Where numbers went to the device."""
        return [one for one in self.all if one.kind == "sent"]

    def places(self, kind: str = "read") -> Counter[str]:
        """How often each place did so."""
        return Counter(f"{one.where} {one.what}" for one in self.all if one.kind == kind)

    @contextmanager
    def during(self) -> Iterator[Transfers]:
        """Those of a block alone."""
        part, start = Transfers(), len(self.all)
        yield part
        part.all.extend(self.all[start:])


_JOURNAL: list[Transfers] = []


def _note(kind: str, what: str, size: int) -> None:
    if _JOURNAL:
        _JOURNAL[-1].note(kind, what, size)


def _caller() -> str:
    """The innermost function of the package; of the tests where there is none."""
    frame, test = sys._getframe(2), ""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{ROOT}/sdgpu/") and frame.f_code.co_name not in _CARRIERS:
            return f"{path[len(ROOT) + 7 :]}:{frame.f_code.co_name}"
        if not test and path.startswith(f"{ROOT}/tests/") and path != __file__:
            test = f"{path[len(ROOT) + 1 :]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return test


class CudaTensor(torch.Tensor):
    """A tensor that says it is on cuda:0; `host` has its numbers."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> CudaTensor:
        how = {"strides": host.stride(), "dtype": host.dtype, "layout": host.layout}
        tensor = torch.Tensor._make_wrapper_subclass(cls, host.shape, device="cpu", **how)
        tensor.host = host.detach()
        return tensor

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    # defined here, and not by a mode, for a mode holds for one thread alone
    def cpu(self) -> torch.Tensor:
        return _moved(self, to_device=False)

    def cuda(self, *_: Any, **__: Any) -> CudaTensor:
        return self

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return _to(self, *args, **kwargs)

    def pin_memory(self) -> Any:
        raise RuntimeError(
            "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
        )

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    __array__ = share_memory_ = numpy

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("memory of the device goes to libraries of the device alone")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)  # kDLCUDA

    def tolist(self) -> Any:
        _note("read", "tolist", self.numel())
        return self.host.tolist()

    def get_device(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"CudaTensor({self.host!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> CudaTensor:
        if id(self) not in memo:
            copy = CudaTensor(self.host.clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copy._is_param = True
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> Any:
        _note("read", "pickle", self.numel())
        return self.host.__reduce_ex__(protocol)

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def on_host(value: Any) -> Any:
    """The numbers of a result, for a test to look at; nobody counts it."""
    return value.host if isinstance(value, CudaTensor) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation of torch on the numbers of tensors of the device."""
    name = func.overloadpacket.__name__
    flat, tree = tree_flatten((args, kwargs))
    _refuse_mixtures(func, name, flat, args)
    owners, before = {id(x.host): x for x in flat if isinstance(x, CudaTensor)}, (args, kwargs)
    args, kwargs = tree_unflatten([on_host(x) for x in flat], tree)
    kwargs = {k: ("cpu" if k == "device" and v is not None else v) for k, v in kwargs.items()}
    if name in _WAITS or _has_masks(name, args):
        _note("read", name, 1)
    if name == "_local_scalar_dense":
        _note("read", name, 1)
        return func(*args, **kwargs)
    result = func(*args, **kwargs)
    if name == "copy_" and not isinstance(flat[0], CudaTensor):
        _note("read", name, args[0].numel())
        return flat[0]

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return owners[id(x)] if id(x) in owners else CudaTensor(x)

    if name in _RESHAPES:
        with torch._C._DisableTorchDispatch():
            func(*before[0], **before[1])
    for tensor in owners.values():
        if tensor.shape != tensor.host.shape or tensor.stride() != tensor.host.stride():
            raise NotImplementedError(f"{name} changes the shape of a tensor in place")
    flat, tree = tree_flatten(result)
    return tree_unflatten([wrap(x) for x in flat], tree)


def _refuse_mixtures(func: Any, name: str, flat: list[Any], args: Any) -> None:
    """As torch on CUDA: all tensors of an operation are on the device, but for numbers and indices."""
    host = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, CudaTensor)]
    if not host:
        return
    if name in ("copy_", "_to_copy"):
        if isinstance(flat[0], CudaTensor):
            _note("sent", name, host[0].numel())
        return
    scalars = all(x.ndim == 0 for x in host)
    if scalars and (torch.Tag.pointwise in func.tags or name.startswith("_foreach")):
        return
    if name in ("index", "index_put_", "_unsafe_index") and isinstance(args[0], CudaTensor):
        values = [x for x in args[2:] if isinstance(x, torch.Tensor)]
        if all(isinstance(x, CudaTensor) or x.ndim == 0 for x in values):
            _note("sent", f"indices of {name}", sum(x.numel() for x in host))
            return
    shapes = [tuple(x.shape) for x in host]
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu: "
        f"{name} with tensors {shapes} on the host, in {_caller()}"
    )


def _has_masks(name: str, args: Any) -> bool:
    if name not in ("index", "index_put_", "_unsafe_index", "index_put"):
        return False
    indices = [x for x in args[1] if x is not None]
    return any(x.dtype in (torch.bool, torch.uint8) for x in indices)


class _Move(torch.autograd.Function):
    """Between host and device, with its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Any, to_device: bool) -> Any:
        ctx.to_device = to_device
        return CudaTensor(x.clone()) if to_device else x.host.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        if ctx.to_device:
            return gradient.host.clone(), None
        return CudaTensor(gradient.clone()), None


def _moved(x: torch.Tensor, *, to_device: bool, waits: bool = True) -> torch.Tensor:
    if isinstance(x, CudaTensor) == to_device:
        return x
    if waits or not to_device:
        _note("sent" if to_device else "read", "copy", x.numel())
    if x.requires_grad:
        return _Move.apply(x, to_device)
    return CudaTensor(x.clone()) if to_device else x.host.clone()


def _to(x: torch.Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> torch.Tensor:
    """``x.to``, whatever its arguments."""
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, at_once, layout = torch._C._nn._parse_to(*args, **kwargs)
    moved = x if device is None else _moved(x, to_device=_is_cuda(device), waits=not at_once)
    if copy and moved is x:
        moved = x.clone()
    how = {"dtype": dtype, "memory_format": layout}
    how = {name: value for name, value in how.items() if value is not None}
    return torch.Tensor.to(moved, **how) if how else moved


def _one_hot(labels: CudaTensor, num_classes: int = -1) -> CudaTensor:
    """torch looks for bad labels on the host alone."""
    if num_classes < 0:
        _note("read", "one_hot", 1)
    return CudaTensor(torch.nn.functional.one_hot(labels.host, num_classes))


def _is_cuda(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and "cuda" in str(device)


class _Devices(TorchFunctionMode):
    """Sees ``device=`` before torch's own code does, which would look for a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func is torch.Tensor.cuda:
            return _moved(first, to_device=True)
        if func is torch.Tensor.to:
            return _to(*args, **kwargs)
        if func is torch.Tensor.pin_memory:
            return first
        if func is torch.nn.functional.one_hot and isinstance(first, CudaTensor):
            return _one_hot(*args, **kwargs)
        if "device" in kwargs and func is not torch._C._nn._parse_to:
            return self._made(func, args, kwargs)
        return func(*args, **kwargs)

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What is made on a device: by torch.zeros(..), torch.tensor(..), x.new_zeros(..)."""
        device = kwargs.pop("device")
        if device is None:
            return func(*args, **kwargs)
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func in (torch.as_tensor, torch.asarray, torch.tensor) and source is not None:
            dtype = kwargs.get("dtype") or source.dtype
            return _moved(source.detach(), to_device=_is_cuda(device)).to(dtype)
        args = tree_map(on_host, args)
        needs_gradient = kwargs.pop("requires_grad", False)
        made = func(*args, device="cpu", **kwargs)
        if not isinstance(made, torch.Tensor):
            return made
        if _is_cuda(device):
            if func in (torch.as_tensor, torch.asarray, torch.tensor):
                _note("sent", func.__name__, made.numel())
            made = CudaTensor(made)
        return made.requires_grad_() if needs_gradient else made


class _Generator(torch.Generator):
    """One that draws where it says."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls, "cpu")
        made.place = CUDA if _is_cuda(device) else torch.device("cpu")
        return made

    device = property(lambda self: self.place)


def _autocast(device_type: str, **kwargs: Any) -> Any:
    return _AUTOCAST("cpu" if device_type == "cuda" else device_type, **kwargs)


_AUTOCAST = torch.autocast


def _from_dlpack(array: Any) -> torch.Tensor:
    """Memory of the device is shared, nothing is copied: as long as the exporter is on the device too."""
    host = getattr(array, "_host", None)
    return _FROM_DLPACK(array) if host is None else CudaTensor(torch.from_numpy(host))


_FROM_DLPACK = torch.from_dlpack


def _grouped(tensorlistlist: Any, with_indices: bool = False) -> Any:
    """torch's optimisers ask for devices below Python."""
    groups = _GROUPED(tensorlistlist, with_indices)

    def key(one: Any) -> Any:
        device, dtype = one
        lists = groups[one][0]
        return (CUDA if isinstance(lists[0][0], CudaTensor) else device, dtype)

    return {key(one): group for one, group in groups.items()}


_GROUPED = torch.utils._foreach_utils._group_tensors_by_device_and_dtype


def _load(file: Any, map_location: Any = None, **how: Any) -> Any:
    """What lies in a file comes to the host, and from there to the device."""
    flat, tree = tree_flatten(_LOAD(file, map_location="cpu", **how))
    to_device = _is_cuda(map_location)
    moved = [_moved(x, to_device=to_device) if isinstance(x, torch.Tensor) else x for x in flat]
    return tree_unflatten(moved, tree)


_LOAD = torch.load


def _properties(*_: Any) -> Any:
    names = {"name": "pretended", "total_memory": MEMORY, "multi_processor_count": 1}
    return SimpleNamespace(**names, major=8, minor=0)


@contextmanager
def pretend_cuda() -> Iterator[Transfers]:
    """One CUDA device, of :class:`CudaTensor`, for torch and for the package; gives what was transferred."""
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "synchronize": lambda *_: None,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_properties": _properties,
        "get_device_capability": lambda *_: (8, 0),
        "manual_seed": torch.default_generator.manual_seed,
        "manual_seed_all": torch.default_generator.manual_seed,
        "default_generators": (torch.default_generator,),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }
    transfers = Transfers()
    with (
        mock.patch.multiple("torch.cuda", **cuda),
        mock.patch.multiple(
            "torch", Generator=_Generator, autocast=_autocast, from_dlpack=_from_dlpack, load=_load
        ),
        mock.patch("torch.optim.optimizer._group_tensors_by_device_and_dtype", _grouped),
        mock.patch("sdgpu.backend.backends._driver_present", return_value=True),
        _Devices(),
    ):
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # as between devices
        _JOURNAL.append(transfers)
        try:
            yield transfers
        finally:
            _JOURNAL.pop()
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
