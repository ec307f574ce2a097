"""What every field of a configuration must be, and which of them do not go together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sdgpu.backend.checks import choice, integer, number, positive
from sdgpu.nn.own_functions import OWN, identity

__all__ = [
    "ACTIVATIONS",
    "FUNCTIONS",
    "GROUP_SETTINGS",
    "LOSSES",
    "PENALTIES",
    "check_together",
    "checked_fields",
    "read_fields",
    "several",
]

ACTIVATIONS = ("softmax", "identity")
LOSSES = ("squared", "cross-entropy", "hinton")
PENALTIES = ("l2", "decoupled", "paper-script")

#: Fields that may be a function of the user's own as well.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "optimiser": ("adam", "adamw", "sgd", "lion"),
    "schedule": ("constant", "cosine", "linear", "milestones"),
    "loss": LOSSES,
}
#: What a group of parameters may have of its own.
GROUP_SETTINGS = ("lr", "lr_scale", "weight_decay")
_CHOICES: dict[str, tuple[str, ...]] = {
    "activation": ACTIVATIONS,
    "penalty": PENALTIES,
    "penalty_covers": ("all", "weights"),
    "teacher": ("cached", "views", "online", "paper-script"),
    "order": ("shuffled", "paper-script"),
    "amp": ("off", "bf16", "fp16"),
    "monitor": ("val_loss", "val_accuracy", "train_loss"),
    "keep": ("last", "best"),
}
_SWITCHES = (
    "flip",
    "hard",
    "nesterov",
    "compile",
    "cuda_graphs",
    "deterministic",
    "tf32",
    "tensorboard",
    "find_unused_parameters",
    "extendable",
)
#: Whole numbers, each with the least that it may be.
_WHOLE = {
    "epochs": 1,
    "batch": 1,
    "accumulate": 1,
    "views": 1,
    "crop_pad": 0,
    "eval_batch": 1,
    "patience": 0,
    "init_seed": 0,
    "order_seed": 0,
    "augment_seed": 0,
}
_ABOVE_0 = ("lr", "temperature", "drop")
_FROM_0 = ("decay", "warmup", "save_seconds", "momentum", "clip_norm", "mixup", "cutmix")
_BELOW_1 = ("momentum", "ema", "label_smoothing")


def checked_fields(config: Any) -> dict[str, Any]:
    """Values of fields of a Config as Python's own, each checked by itself.

    Raises
    ------
    TypeError, ValueError
        With the name of the field, its value and what it may be.
    """
    for name, choices in _CHOICES.items():
        choice(name, getattr(config, name), choices)
    for name, choices in FUNCTIONS.items():
        _check_function(name, getattr(config, name), choices)
    fields: dict[str, Any] = {}
    for name, minimum in _WHOLE.items():
        fields[name] = integer(name, getattr(config, name), minimum)
    for name in _SWITCHES:
        if not isinstance(getattr(config, name), (bool, np.bool_)):
            raise TypeError(f"{name}={getattr(config, name)!r} must be True or False")
        fields[name] = bool(getattr(config, name))
    fields["channels_last"] = _or_none(config.channels_last)
    for name in _ABOVE_0:
        fields[name] = positive(name, getattr(config, name))
    for name in _FROM_0:
        fields[name] = positive(name, getattr(config, name), zero=True)
    for name in _BELOW_1:
        fields[name] = positive(name, getattr(config, name), zero=True)
        if fields[name] >= 1:
            raise ValueError(f"{name}={fields[name]:g} must be below 1")
    fields["betas"] = tuple(number("betas", beta) for beta in several("betas", config.betas))
    epochs = several("milestones", config.milestones)
    fields["milestones"] = tuple(integer("milestones", epoch, 1) for epoch in epochs)
    fields["class_weights"] = _class_weights(config.class_weights)
    fields["parameter_groups"] = _parameter_groups(config.parameter_groups)
    return fields


def _check_own(name: str, value: Any) -> None:
    if isinstance(value, str) and value.startswith(OWN):
        raise ValueError(
            f"{name}={value!r} was a function of your own, which a file does not hold: give the function"
        )


def _check_function(name: str, value: Any, choices: tuple[str, ...]) -> None:
    _check_own(name, value)
    if callable(value):
        identity(name, value)  # or it cannot be told from another
    else:
        choice(name, value, choices)


def _parameter_groups(groups: Any) -> Any:
    """Patterns with their settings as Python's own numbers; a function as it is."""
    _check_own("parameter_groups", groups)
    if groups is None:
        return None
    if callable(groups):
        identity("parameter_groups", groups)
        return groups
    form = "{'head.*': {'lr_scale': 10.0, 'weight_decay': 0.0}}, or a function of the model"
    if not isinstance(groups, Mapping):
        raise TypeError(f"parameter_groups={groups!r} must be settings by pattern of names, {form}")
    checked: dict[str, dict[str, float]] = {}
    for pattern, settings in groups.items():
        place = f"parameter_groups[{pattern!r}]"
        if not isinstance(pattern, str) or not isinstance(settings, Mapping):
            raise TypeError(f"{place}={settings!r} must be settings by pattern of names, {form}")
        checked[pattern] = {}
        for name, value in settings.items():
            choice(f"{place} setting", name, GROUP_SETTINGS)
            checked[pattern][name] = positive(f"{place}[{name!r}]", value, zero=True)
    return checked


def _or_none(value: Any) -> bool | None:
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"channels_last={value!r} must be True, False, or None for what is faster as a rule"
        )
    return None if value is None else bool(value)


def _class_weights(values: Any) -> tuple[float, ...] | str:
    if isinstance(values, str):
        return choice("class_weights", values, ("balanced",))
    weights = tuple(
        positive("class_weights", weight, zero=True) for weight in several("class_weights", values)
    )
    if weights and not any(weights):
        raise ValueError("class_weights are all 0: at least one class must count")
    return weights


def check_together(config: Any) -> None:
    """Refuse fields of a Config that do not go together.

    Raises
    ------
    ValueError
    """
    if config.batch % config.accumulate:
        raise ValueError(
            f"accumulate={config.accumulate} does not divide batch={config.batch}: the parts of a batch "
            "must be of one size"
        )
    if config.loss in ("cross-entropy", "hinton") and config.activation != "softmax":
        raise ValueError(
            f"loss={config.loss!r} needs activation='softmax', not {config.activation!r}: "
            "or use loss='squared'"
        )
    if config.warmup >= config.epochs and config.warmup > 0:
        raise ValueError(f"warmup={config.warmup:g} must be below epochs={config.epochs}")
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise ValueError(f"betas={config.betas!r} must be two numbers in [0, 1)")
    if config.schedule == "milestones" and not config.milestones:
        raise ValueError("schedule='milestones' needs milestones, the epochs at which lr drops")


def several(name: str, values: Any) -> list[Any]:
    """A list of what is given one by one, without copies of strings.

    Raises
    ------
    TypeError
        If `values` is one value.
    """
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise TypeError(f"{name}={values!r} must be several numbers: write ({values!r},) for one")
    return list(values)


def read_fields(text: str, cls: Any, what: str) -> dict[str, Any]:
    """Read a JSON object of fields of a dataclass.

    Raises
    ------
    ValueError
        If it is none, or has fields that this version does not know.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"{what} is a JSON object of fields")
    names = {field.name for field in dataclasses.fields(cls)}
    for name in fields:
        choice("field", name, names)
    return fields
