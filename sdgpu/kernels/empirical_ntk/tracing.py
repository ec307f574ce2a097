"""One forward pass of a module, watched: which parameters only linear maps use, and which lack gradients.

A weight that anything but ``Linear`` and plain ``Conv2d`` maps touches counts as any other parameter, so
shared, reparametrised and oddly used weights cost more and are right as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

__all__ = ["Use", "Watch", "first_line", "trial"]

_CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
#: Functions whose derivative is 0 wherever they have one.
_STEPS = frozenset(("round", "sign", "sgn", "floor", "ceil", "trunc", "fix", "heaviside"))
_REMEDY = (
    "put something differentiable there, or leave these parameters out with requires_grad_(False)"
)


@dataclass(frozen=True)
class Use:
    """One linear map in the forward pass of a row.

    Attributes
    ----------
    weight : str
    shape : tuple
        Of its output.
    input_size : int
        Numbers of its input.
    window : dict or None
        Kernel size, stride, padding and dilation of a convolution.
    """

    weight: str
    shape: tuple[int, ...]
    input_size: int
    window: dict[str, Any] | None

    @property
    def positions(self) -> int:
        """p: how often the weight is applied."""
        return torch.Size(self.shape).numel() // self.shape[-1 if self.window is None else 1]

    def signals(self, gradients: torch.Tensor) -> torch.Tensor:
        """Gradients of g outputs with respect to the output of the map, (g, *shape), as (p, g, o)."""
        signals = gradients if self.window is None else gradients.movedim(2, -1)
        return signals.reshape(signals.shape[0], -1, signals.shape[-1]).transpose(0, 1)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """What the weight multiplies at each position, (p, i)."""
        columns = x if self.window is None else torch.nn.functional.unfold(x, **self.window).mT
        return columns.reshape(-1, columns.shape[-1])


class Watch(TorchFunctionMode):
    """Sees every function of torch that is called while it is on.

    Parameters
    ----------
    names : dict
        id of a parameter to its name.
    probes : sequence of tensors, optional
        Added to the outputs of the linear maps in turn; gradients with respect to them are the signals.

    Attributes
    ----------
    uses, inputs : list
        Linear maps of the named parameters, and what goes in.
    used, used_elsewhere : set of str
        Parameters that any function was called with, and any but linear maps.
    steps : set of str
        Step functions that were called.
    numbers : int
        Numbers of all results.
    """

    def __init__(self, names: dict[int, str], probes: Sequence[torch.Tensor] | None = None) -> None:
        super().__init__()
        self.names, self.probes = names, probes
        self.uses: list[Use] = []
        self.inputs: list[torch.Tensor] = []
        self.used: set[str] = set()
        self.used_elsewhere: set[str] = set()
        self.steps: set[str] = set()
        self.numbers = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        x, weight, window = _linear_map(func, args, kwargs)
        if id(weight) in self.names:
            if self.probes is not None:
                result = result + self.probes[len(self.uses)]
            self.uses.append(Use(self.names[id(weight)], tuple(result.shape), x.numel(), window))
            self.inputs.append(x)
        if self.probes is None:
            self._record(getattr(func, "__name__", ""), (args, kwargs), result, weight)
        return result

    def _record(self, function_name: str, arguments: Any, result: Any, weight: Any) -> None:
        if function_name == "__get__":  # shape, dtype, device
            return
        for tensor in _tensors(arguments):
            if id(tensor) in self.names:
                self.used.add(self.names[id(tensor)])
                if tensor is not weight:
                    self.used_elsewhere.add(self.names[id(tensor)])
        self.numbers += sum(tensor.numel() for tensor in _tensors(result))
        if function_name.rstrip("_") in _STEPS:
            self.steps.add(function_name)


def _linear_map(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Input, weight and window of a function that multiplies by a matrix or convolves; else Nones."""
    if func is torch.nn.functional.linear:
        arguments = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        if arguments["weight"].ndim == 2:
            return arguments["input"], arguments["weight"], None
    if func is torch.conv2d:
        arguments = dict(zip(_CONV2D, args, strict=False)) | kwargs
        options = ("stride", "padding", "dilation")
        window: dict[str, Any] = {key: arguments[key] for key in options if key in arguments}
        plain = arguments["input"].ndim == 4 and arguments.get("groups", 1) == 1
        if plain and not isinstance(window.get("padding"), str):
            window["kernel_size"] = tuple(arguments["weight"].shape[2:])
            return arguments["input"], arguments["weight"], window
    return None, None, None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def trial(
    module: torch.nn.Module,
    constants: dict[str, torch.Tensor],
    trained: dict[str, torch.Tensor],
    X: torch.Tensor,
    output: int | None,
) -> tuple[int, Watch]:
    """Run single rows forwards and backwards by plain autograd.

    Parameters
    ----------
    module : torch.nn.Module
    constants, trained : dict of tensors
        What it is called with; gradients are taken with respect to the second.
    X : tensor (s, *shape)
        A few rows.
    output : int, optional
        The only output that counts.

    Returns
    -------
    outputs : int
        c.
    watch : Watch
        What was seen at the first row.

    Raises
    ------
    TypeError, ValueError
        If the module cannot take a row or does not give (1, c), if it has no such output, if a forward
        pass changes a parameter or a buffer, or if the gradient of a parameter that it uses is missing.
    """
    originals = {name: value.detach().clone() for name, value in (constants | trained).items()}
    watch = Watch({id(tensor): name for name, tensor in trained.items()})
    generator = torch.Generator().manual_seed(0)
    largest = dict.fromkeys(trained, -1.0)  # of the entries of each gradient; -1 if it has none
    outputs = 0
    # autograd keeps watch too: an operation in place that spoils a gradient is an error here
    with torch.enable_grad():
        for k in range(len(X)):
            with watch if k == 0 else nullcontext():
                y = _run(module, constants, trained, X[k : k + 1].clone())
            outputs = _outputs(y, output)
            weights = torch.randn(outputs, generator=generator, dtype=torch.float64, device="cpu")
            if output is not None:
                weights = torch.eye(outputs, dtype=torch.float64, device="cpu")[output]
            target = (y[0] * weights.to(y)).sum()
            if not target.requires_grad:
                continue
            for name, gradient in zip(trained, _gradients(target, trained), strict=True):
                if gradient is not None:
                    magnitude = float(gradient.abs().max()) if gradient.numel() else 1.0
                    largest[name] = max(magnitude, largest[name])  # NaN counts as one
    _refuse_changes(originals, constants | trained)
    _refuse_missing(largest, watch)
    return outputs, watch


def _run(module: torch.nn.Module, constants: Any, trained: Any, x: torch.Tensor) -> Any:
    try:
        return functional_call(module, (constants, trained), (x,))
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever the module raises
        raise ValueError(
            f"module fails on one row, an input of shape {tuple(x.shape)} (shape= makes rows into the "
            f"inputs that it takes): {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, without the tables that torch adds to it."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _gradients(target: torch.Tensor, trained: dict[str, torch.Tensor]) -> list[torch.Tensor | None]:
    try:
        gradients = torch.autograd.grad(target, list(trained.values()), allow_unused=True)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # an operation in place, a backward pass of the module's own
        raise ValueError(f"module cannot be differentiated: {first_line(error)}") from error
    for name, gradient in zip(trained, gradients, strict=True):
        if gradient is not None and gradient.is_sparse:
            raise ValueError(
                f"the gradient of {name} is sparse, which torch.func.vmap cannot take: make its layer with "
                "sparse=False"
            )
    return list(gradients)


def _refuse_changes(originals: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Refuse a module whose outputs depend on how often it was called; counters may count."""
    for name, value in after.items():
        current, original = value.detach(), originals[name]
        same = (current == original) | (current.isnan() & original.isnan())
        if value.is_floating_point() and not bool(same.all()):
            raise ValueError(
                f"a forward pass changes {name} of module, as spectral norm and running statistics do in "
                "training mode: call module.eval()"
            )


def _outputs(y: Any, output: int | None) -> int:
    """c of the outputs (1, c) of one row."""
    if not isinstance(y, torch.Tensor):
        raise TypeError(f"module must return a tensor (rows, c), got {type(y).__name__}")
    if y.ndim != 2 or y.shape[0] != 1 or not y.shape[1]:
        raise ValueError(
            f"module must return (rows, c), got shape {tuple(y.shape)} for one row: reshape its output"
        )
    if not y.dtype.is_floating_point:
        raise TypeError(
            f"module returns {y.dtype}, which has no derivative: return its real outputs"
        )
    if output is not None and output >= y.shape[1]:
        raise ValueError(
            f"output={output}, but module has {y.shape[1]} outputs, 0 .. {y.shape[1] - 1}"
        )
    return int(y.shape[1])


def _refuse_missing(largest: dict[str, float], watch: Watch) -> None:
    """Refuse parameters that are used but have no gradient; unused ones have no part in the kernel."""
    if max(largest.values()) < 0 and not watch.used:
        raise ValueError(
            "module does not use any of its trainable parameters: there is no gradient"
        )
    missing = [name for name, size in largest.items() if size < 0 and name in watch.used]
    if missing:
        raise ValueError(
            f"the gradient of {', '.join(missing)} is missing: module uses it, but what follows has no "
            f"derivative (detach, no_grad, argmax, a comparison): {_REMEDY}"
        )
    flat = [name for name, size in largest.items() if size == 0]
    if flat and watch.steps:
        raise ValueError(
            f"the gradient of {', '.join(flat)} is 0 everywhere, as {', '.join(sorted(watch.steps))}() is "
            f"a step function: {_REMEDY}"
        )
