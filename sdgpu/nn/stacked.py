"""Several networks as one: chains that share data and order are trained at once.

A small network on a small batch leaves a GPU idle between its many short kernels. K networks of one
kind, with their parameters stacked along a new first axis, need the launches of one. They see the same
batches and views and have targets of their own; every parameter belongs to one member, so the gradient
of the sum of their losses is each member's own, and Adam and SGD, which work entry by entry, do to the
stack what they would do to each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from sdgpu.backend.checks import integer
from sdgpu.backend.copying import copy_module
from sdgpu.backend.progress import Progress
from sdgpu.nn.config import Config
from sdgpu.nn.listening import OnEpoch
from sdgpu.nn.model_outputs import logits_of
from sdgpu.nn.records import TrainResult, of_member
from sdgpu.nn.same_architecture import difference
from sdgpu.nn.trainer import train
from sdgpu.nn.training_setup import resting, start_training

__all__ = ["Stack", "bytes_per_member", "train_stacked"]


class Stack(nn.Module):
    """K networks of one architecture as one network with outputs (K, b, c).

    Parameters
    ----------
    models : sequence of Module
        Of the same kind; their parameters and buffers are copied. Batch norm works: its statistics
        are stacked like the parameters, and each member updates its own.

    Attributes
    ----------
    members : int
        K.
    skeleton : list of one Module
        Whose code the members share.

    Raises
    ------
    ValueError
        If the models differ in more than the values of parameters and buffers, or have a layer that
        cannot be stacked: dropout, whose draws would not be those of separate training, or batch norm
        without momentum, which reads a counter.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        if not models:
            raise ValueError("models is empty: give at least one to stack")
        _check_same(models)
        _check_layers(models[0])
        self.members = len(models)
        frozen = {name for name, p in models[0].named_parameters() if not p.requires_grad}
        parameters, buffers = stack_module_state(list(models))
        # a dot is not allowed in the name of a parameter
        self._names = [(name, name.replace(".", "/")) for name in parameters]
        self._buffer_names = [(name, name.replace(".", "/")) for name in buffers]
        for name, key in self._names:
            tensor = parameters[name].detach()
            self.register_parameter(key, nn.Parameter(tensor, requires_grad=name not in frozen))
        for name, key in self._buffer_names:
            self.register_buffer(key, buffers[name].detach())
        # in a list, so that torch does not count it as a part: it lends its code, not its numbers
        self.skeleton = [copy_module(models[0]).to("meta")]
        # tied tensors are one here, but the move has made them several there
        self._aliases = [
            *_aliases(models[0].named_parameters(remove_duplicate=False)),
            *_aliases(models[0].named_buffers(remove_duplicate=False)),
        ]
        self._eval_parts = resting(models[0])
        self._all_parts = frozenset(name for name, _ in models[0].named_modules())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs (K, b, c) of inputs (b, ...) that all members see."""
        skeleton = self.skeleton[0]
        start_training(skeleton, self._eval_parts if self.training else self._all_parts)
        parameters = {name: self.get_parameter(key) for name, key in self._names}
        buffers = {name: self.get_buffer(key) for name, key in self._buffer_names}

        def one(p: dict[str, Any], b: dict[str, Any]) -> torch.Tensor:
            tensors = p | b
            tied = {name: tensors[first] for name, first in self._aliases}
            outputs = functional_call(skeleton, tensors | tied, (inputs,), tie_weights=False)
            return logits_of(outputs)

        return vmap(one, randomness="error")(parameters, buffers)

    @torch.no_grad()
    def split(self, like: nn.Module) -> list[nn.Module]:
        """The members as networks of their own, copies of `like` with the weights of each."""
        models = []
        for member in range(self.members):
            model = copy_module(like).to(next(iter(self.parameters())).device)
            tensors = dict((*model.named_parameters(), *model.named_buffers()))
            for name, key in (*self._names, *self._buffer_names):
                tensors[name].copy_(getattr(self, key)[member])
            models.append(model.train(self.training))
        return models


def bytes_per_member(model: nn.Module, config: Config, sample: torch.Tensor) -> int:
    """Device memory that one more member of a stack takes, without the workspace of the library.

    Parameters + gradients + moments of the optimiser (Adam 2, SGD with momentum 1) + buffers, and what
    autograd keeps of a forward pass over the rows of one part of a batch (measured on `sample`, whose
    storages are counted once each, and scaled by rows). An account, not yet compared with a GPU's.

    Parameters
    ----------
    model : Module
        On the device of `sample`; nothing of it changes.
    config : Config
        Its optimiser, batch and accumulate.
    sample : tensor (b, C, H, W)
        A few normalised inputs, at least 2 (batch norm needs them).

    Returns
    -------
    int
    """
    integer("len(sample)", len(sample), 2)
    moments = 2 if config.optimiser == "adam" else int(config.momentum > 0)
    trained_bytes = sum(_size(p) for p in model.parameters() if p.requires_grad)
    state_bytes = sum(_size(p) for p in (*model.parameters(), *model.buffers()))
    state_addresses = {
        tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()
    }
    activation_sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state_addresses:
            activation_sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    trial = copy_module(model).train()
    state_addresses |= {
        tensor.untyped_storage().data_ptr() for tensor in trial.state_dict().values()
    }
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = trial(sample)  # held until the sizes are summed, so that no address comes twice
    activation_bytes = sum(activation_sizes.values())
    del outputs
    rows = config.batch // config.accumulate
    return state_bytes + (1 + moments) * trained_bytes + activation_bytes * rows // len(sample)


def train_stacked(
    models: Sequence[nn.Module],
    data: Any,
    targets: torch.Tensor,
    config: Config,
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    resume: bool = True,
    stage: str = "train stacked",
    on_epoch: OnEpoch | None = None,
) -> list[TrainResult]:
    """Train K networks at once, each on its own targets; equal to K calls of `train` within rounding.

    Parameters
    ----------
    models : sequence of K Modules
        Initialisations of one kind; copied, not changed.
    data : Data
    targets : tensor (K, n, c)
        Mixed targets of each.
    config : Config
        One for all. The penalty, the schedule and the optimiser work on every member by itself.
    folder, progress, resume, stage
        As for :func:`~sdgpu.nn.trainer.train`; one checkpoint holds all members.
    on_epoch : callable, optional
        Hears the :class:`~sdgpu.nn.Epoch` of every member by itself, `fit.member`. True ends the training
        of that one: it stays as it is, and the stack goes on without it until all have ended.

    Returns
    -------
    list of K TrainResult
        `seconds` is that of the stack divided by K: the share of one.

    Raises
    ------
    TypeError, ValueError, FloatingPointError, OSError
        As :func:`~sdgpu.nn.trainer.train` and :class:`Stack`; also with amp="fp16", whose one scaler
        would skip a step of all members when one overflows.

    Notes
    -----
    Memory: :func:`bytes_per_member` for each. Pays where kernels are short: small networks and
    batches. On a CPU it rarely does.
    """
    if config.amp == "fp16":
        raise ValueError("amp='fp16' scales the losses of all members as one: use 'bf16' or 'off'")
    stack = Stack(models)
    result = train(
        stack,
        data,
        targets,
        config,
        folder=folder,
        progress=progress,
        resume=resume,
        stage=stage,
        on_epoch=on_epoch,
    )
    assert isinstance(result.model, Stack)
    return [
        _result(result, model, member, stack.members)
        for member, model in enumerate(result.model.split(models[0]))
    ]


def _result(whole: TrainResult, model: nn.Module, member: int, members: int) -> TrainResult:
    """What came of one member."""
    told = [of_member(epoch, member) for epoch in whole.history]
    history = tuple(epoch for epoch in told if epoch is not None)
    status = f"{whole.status}, in a stack of {members}"
    if len(history) < len(whole.history):
        status = f"{len(history)} epochs: on_epoch ended it, {status}"
    return TrainResult(
        model=model,
        history=history,
        seconds=whole.seconds / members,
        images_per_second=whole.images_per_second * members,
        status=status,
        path=whole.path,
        member=None if whole.path is None else member,
    )


def _aliases(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, str]]:
    """Further names of tensors, each with the first name of the same one."""
    first_names: dict[int, str] = {}
    for name, tensor in named_tensors:
        if first_names.setdefault(id(tensor), name) != name:
            yield name, first_names[id(tensor)]


def _check_same(models: Sequence[nn.Module]) -> None:
    for number, model in enumerate(models):
        mismatch = difference(models[0], model)
        if mismatch is not None:
            raise ValueError(
                f"models[{number}] is of another kind than models[0]: they differ in {mismatch}, but a "
                "stack needs networks that differ in the values of their parameters and buffers alone"
            )


def _check_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        rate = getattr(module, "p", 0) if "Dropout" in type(module).__name__ else 0
        if rate:
            raise ValueError(
                f"layer {name!r} is dropout, which a stack cannot draw as separate training does: train "
                "the chains one by one"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None:
            raise ValueError(
                f"layer {name!r} is batch norm with momentum=None, which cannot be stacked: give it a "
                "momentum, or train the chains one by one"
            )


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
