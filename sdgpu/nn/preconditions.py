"""What a training refuses before any work: data, models and surroundings that do not fit."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdgpu.backend.copying import copy_module
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import autocast, float_type, inference
from sdgpu.nn.loss_checks import (
    check_mixing,
    check_probabilities_given,
    check_schedule,
    try_loss,
    warn_of_probabilities,
)
from sdgpu.nn.model_outputs import logits_of
from sdgpu.nn.network_teachers import Teacher
from sdgpu.nn.parameter_groups import parameter_groups
from sdgpu.nn.training_setup import resting, start_training

__all__ = ["check_cacheable", "check_device", "check_networks", "check_request", "check_teacher"]

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def check_request(model: Any, data: Any, targets: Any, config: Config, folder: Any) -> None:
    """Refuse what does not fit together, before anything is made.

    Raises
    ------
    TypeError, ValueError
        For a model that is none, a batch that exceeds the images, labels out of range, targets of another
        shape or not finite, and what :func:`check_device` refuses.
    """
    images = data.train
    if config.batch > len(images):
        raise ValueError(f"batch={config.batch} exceeds the n={len(images)} training images")
    if config.tensorboard and folder is None:
        raise ValueError("tensorboard=True needs folder=, where its logs are written")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}: make_model makes one"
        )
    _check_parts(model, config)
    check_schedule(config, len(images))
    _check_monitor(data, config, getattr(model, "members", None))
    _check_targets(targets, images, config, getattr(model, "members", None))
    check_device(config, images.device)


def check_cacheable(images: Any, config: Config) -> None:
    """Refuse to cache what a teacher says of items that are made with random numbers.

    Raises
    ------
    ValueError
    """
    if config.teacher == "cached" and getattr(images, "draws", False):
        raise ValueError(
            f"teacher='cached' with {images.name}, whose items are made with random numbers: what a "
            "teacher says of one draw is not what it says of the next. Use Config(teacher='online'), "
            "which asks it for the very items that the student sees, or 'views', which draws `views` "
            "times in all"
        )


def _check_monitor(data: Any, config: Config, members: int | None) -> None:
    """Refuse to look for a best epoch where there is nothing to tell it by."""
    asking = [
        text
        for text, asked in (
            (f"patience={config.patience}", config.patience > 0),
            ("keep='best'", config.keep == "best"),
        )
        if asked
    ]
    if not asking:
        return
    if members is not None:
        raise ValueError(
            f"{asking[0]} is for one network: those of a stack have best epochs of their own, train them "
            "one by one"
        )
    if config.monitor.startswith("val") and (data.val is None or not len(data.val)):
        raise ValueError(
            f"{asking[0]} needs validation images for monitor={config.monitor!r}: give data.val, or "
            "monitor='train_loss'"
        )


def check_goes_on(saved: dict[str, Any], config: Config, folder: Path) -> None:
    """Refuse a checkpoint that has gone further than is asked for, or that cannot go on.

    Raises
    ------
    ValueError
    """
    epochs, begun = saved["epoch"], saved["batch"] > 0
    if epochs + begun > config.epochs:
        raise ValueError(
            f"the checkpoint in {folder} has {'begun' if begun else 'ended'} epoch {epochs + begun}, but "
            f"epochs={config.epochs}: raise it, or name another folder"
        )
    if epochs < config.epochs and saved["optimiser"] is None and not saved.get("stopped"):
        raise ValueError(
            f"the checkpoint in {folder} ended after {epochs} epochs and holds no optimiser to go on to "
            f"epochs={config.epochs} with (extendable=False, or a chain): name another folder"
        )


def _check_parts(model: nn.Module, config: Config) -> None:
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError(
                f"{name or 'the model'} is compiled by torch.jit: give the module itself"
            )
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
            raise ValueError(f"{name} of the model has sparse gradients: make it with sparse=False")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name} of the model is on the meta device and has no values: load some"
            )
        if tensor.is_complex():
            raise TypeError(f"{name} of the model is complex: images are real numbers")
        if tensor.dtype == torch.float16 and tensor.requires_grad and config.amp == "fp16":
            raise ValueError(
                f"{name} of the model is float16, which amp='fp16' cannot train: make it float32 with "
                "model.float(), autocast does the rest"
            )


def check_networks(
    student: nn.Module, images: Any, targets: Any, config: Config, *, weighted: bool = False
) -> None:
    """Refuse a student or a teacher that cannot do with the images what it must.

    Raises
    ------
    TypeError, ValueError
        If they lie on different devices, if outputs are not one for each class, in evaluation or in
        training mode, if there is nothing to train, or if a last part of one row has no statistics.
    """
    members = getattr(student, "members", None)
    _check_model(student, images, config, "the model", members)
    outputs = _check_trained(student, images, config, members)
    try_loss(outputs, images, config, weighted=weighted)
    check_mixing(_sample(student, images, 1), config)
    parameter_groups(student, config)
    if isinstance(targets, Teacher):
        check_teacher(targets, images, config)


def check_teacher(teacher: Teacher, images: Any, config: Config) -> None:
    """Refuse networks of a teacher that cannot do with the images what they must.

    Raises
    ------
    TypeError, ValueError
        As :func:`check_networks`.
    """
    for number, (_, network) in enumerate(teacher.networks):
        name = "the teacher" if len(teacher.networks) == 1 else f"teacher {number + 1}"
        _check_model(network, images, config, name, None)


def check_device(config: Config, device: torch.device) -> None:
    """Refuse what a device cannot do.

    Raises
    ------
    ValueError
        For CUDA graphs elsewhere than on CUDA, or deterministic products on it without the variable of
        the environment that cuBLAS reads.
    """
    if config.cuda_graphs and device.type != "cuda":
        raise ValueError(f"cuda_graphs=True needs the images on a CUDA device, not on {device}")
    workspaces = (":4096:8", ":16:8")
    if config.deterministic and device.type == "cuda" and os.environ.get(CUBLAS) not in workspaces:
        raise ValueError(
            f"deterministic=True on CUDA needs {CUBLAS}={workspaces[0]} in the environment before the "
            f"process starts, but it is {os.environ.get(CUBLAS)!r}: set it, or deterministic=False"
        )


def _check_targets(targets: Any, images: Any, config: Config, members: int | None) -> None:
    """Refuse targets that do not fit the images; warn of a loss without a minimum."""
    n, c = len(images), images.classes
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= c:
        raise ValueError(
            f"labels run from {low} to {high}, but classes={c}: they must be in 0..{c - 1}"
        )
    if targets is None:
        return
    if isinstance(targets, Teacher):
        if targets.networks:
            check_cacheable(images, config)
        targets.check(images, config)
        weights = [weight for weight, _ in (*targets.networks, *targets.tables)]
        if not 0 <= targets.alpha <= 1:
            _warn_of_loss(config, f"alpha={targets.alpha:g}")
        elif min(weights) < 0:
            _warn_of_loss(config, f"a teacher of weight {min(weights):g}")
        return
    if not isinstance(targets, torch.Tensor):
        raise TypeError(
            f"targets must be a tensor, a Teacher or None (the labels), not {type(targets).__name__}"
        )
    shape = (n, c) if members is None else (members, n, c)
    if tuple(targets.shape) != shape:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, but must have shape {shape}")
    if not bool(torch.isfinite(targets).all()):
        raise ValueError("targets must be finite: NaN or infinity found")
    check_probabilities_given(targets, config)
    least = float(targets.min())
    if least < -1e-3:  # rounding of probabilities is far from that
        _warn_of_loss(config, f"a target of {least:.3g}")


def _warn_of_loss(config: Config, what: str) -> None:
    if config.loss in ("cross-entropy", "hinton"):
        warnings.warn(
            f"loss={config.loss!r} with {what} has no minimum: it falls for ever as a probability with a "
            "negative target tends to 0. Use alpha in [0, 1], or loss='squared'",
            stacklevel=5,
        )


def _check_model(
    model: nn.Module, images: Any, config: Config, name: str, members: int | None
) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device != images.device:
            raise ValueError(
                f"{name} has weights on {tensor.device}, but the images are on {images.device}: "
                f"move one of them with .to({str(images.device)!r})"
            )
    sample = _sample(model, images, 1)
    with inference(model), autocast(config, images.device):
        try:
            outputs = model(sample)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"{name} does not take {images.kind} of shape {images.shape} as {sample.dtype} ({error}): "
                "make_model has channels= for images; a network of your own must take what data.train holds"
            ) from error
    checked = _check_outputs(outputs, 1, images.classes, members, name)
    warn_of_probabilities(checked, config, name)


def _check_trained(
    model: nn.Module, images: Any, config: Config, members: int | None
) -> torch.Tensor:
    """Try the smallest part of a batch in training mode, on a copy of the model."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no parameter with requires_grad=True: nothing to train")
    part_size = config.batch // config.accumulate
    rows = len(images) % config.batch % part_size or part_size
    rows = min(rows, 2)
    trial = start_training(copy_module(model), resting(model))
    with torch.no_grad(), autocast(config, images.device):
        try:
            outputs = trial(_sample(model, images, rows))
        except ValueError as error:
            if rows > 1:
                raise
            raise ValueError(
                f"the last part of an epoch has one row (n={len(images)}, batch={config.batch}, "
                f"accumulate={config.accumulate}), which this model cannot be trained on ({error}): choose "
                "another batch, or one image more or less"
            ) from error
    return _check_outputs(outputs, rows, images.classes, members, "the model in training mode")


def _sample(model: nn.Module, images: Any, rows: int) -> torch.Tensor:
    return next(iter(images.clean(range(rows), rows, float_type(model))))


def _check_outputs(outputs: Any, rows: int, classes: int, members: Any, name: str) -> torch.Tensor:
    logits = logits_of(outputs)
    shape = (rows, classes) if members is None else (members, rows, classes)
    if tuple(logits.shape) != shape:
        raise ValueError(
            f"{name} gives outputs of shape {tuple(logits.shape)} for {rows} image{'s' * (rows > 1)}, but "
            f"classes={classes}: it must give one number for each class; of several outputs "
            "with_output(model, ..) takes another"
        )
    return logits
