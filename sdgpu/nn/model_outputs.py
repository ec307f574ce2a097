"""What a network gives: a tensor, or something that holds the logits, as libraries of models give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sdgpu.backend.copying import copy_module

__all__ = ["logits_of", "with_output"]

#: Which output: a key or a field, a place, or a function of all that the network gives.
Output = str | int | Callable[[Any], torch.Tensor]


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits among the outputs of a network.

    Parameters
    ----------
    outputs : tensor, object with a field `logits`, mapping, tuple or list
        Of a mapping the entry "logits", or the only one; of a tuple the first entry. The models of Hugging
        Face, timm and torchvision give one of these.

    Returns
    -------
    tensor

    Raises
    ------
    TypeError
        If there is no tensor of floats in that place.
    """
    found = outputs
    if not isinstance(outputs, torch.Tensor):
        if isinstance(getattr(outputs, "logits", None), torch.Tensor):
            found = outputs.logits
        elif isinstance(outputs, Mapping):
            found = outputs.get("logits", *(outputs.values() if len(outputs) == 1 else [None]))
        elif isinstance(outputs, tuple | list) and outputs:
            found = outputs[0]
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"the model gives {_described(outputs)}, but must give one tensor, a row of outputs for each "
            "input, or have it as .logits, ['logits'] or [0]: say where it is, with_output(model, ..)"
        )
    if not found.is_floating_point():
        raise TypeError(f"the model gives {found.dtype}, which has no derivative")
    return found


def with_output(model: nn.Module, output: Output) -> nn.Module:
    """A copy of a network that gives one of its outputs alone.

    Parameters
    ----------
    model : Module
        Not changed.
    output : str, int or callable
        A key of a mapping or a field of an object, such as "aux"; a place of a tuple; or a function of all
        that the network gives.

    Returns
    -------
    Module
        With the same parameters under the same names: files of weights fit both. It works by a hook, which
        is copied with the network.

    Raises
    ------
    TypeError
        If the model is no Module, or `output` none of these.
    LookupError
        In the forward pass, if there is no such output.

    Examples
    --------
    >>> import torch
    >>> pair = torch.nn.LSTM(4, 3, batch_first=True)  # gives states of all times, and (h, c)
    >>> last = with_output(pair, lambda outputs: outputs[0][:, -1])
    >>> last(torch.zeros(2, 5, 4)).shape
    torch.Size([2, 3])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(output, bool) or not (isinstance(output, str | int) or callable(output)):
        raise TypeError(
            f"output={output!r} must be a name, a place or a function of the outputs: 'logits', 0, "
            "lambda outputs: outputs[0][:, -1]"
        )
    model = copy_module(model)
    model.register_forward_hook(_Pick(output))
    return model


class _Pick:
    """A hook that puts one output in the place of all; two of the same choice are equal."""

    def __init__(self, output: Output) -> None:
        self.output = output

    def __call__(self, module: nn.Module, inputs: Any, outputs: Any) -> Any:
        if callable(self.output):
            return self.output(outputs)
        field = getattr(outputs, self.output, None) if isinstance(self.output, str) else None
        if field is not None:
            return field
        try:
            return outputs[self.output]
        except (LookupError, TypeError) as error:
            raise LookupError(
                f"output={self.output!r}, but the model gives {_described(outputs)}"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pick) and self.output == other.output

    def __hash__(self) -> int:
        return hash(self.output)


def _described(outputs: Any) -> str:
    """The type of outputs, with the names or the number of what is in it."""
    kind = type(outputs).__name__
    if isinstance(outputs, torch.Tensor):
        return f"a tensor {tuple(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return f"{kind} with {', '.join(map(str, outputs)) or 'nothing'}"
    if isinstance(outputs, tuple | list):
        return f"{kind} of {', '.join(type(entry).__name__ for entry in outputs) or 'nothing'}"
    return kind
