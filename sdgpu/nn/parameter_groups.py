"""Groups of parameters with rates and decays of their own, as torch and timm have them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sdgpu.backend.checks import positive
from sdgpu.nn.config import Config
from sdgpu.nn.config_checks import GROUP_SETTINGS
from sdgpu.nn.loss import penalised

__all__ = ["ParameterGroup", "parameter_groups"]

#: What groups may hold beside, for those who read them.
_NAMES = ("param_names", "name", "initial_lr")


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters of one rate and one decay.

    Attributes
    ----------
    names : tuple of str
    parameters : list of Parameter
    lr_scale : float
        Factor of the rate of every step.
    decay : float
        Weight of their penalty, decay/2 ||theta||^2.
    options : dict
        Of the optimiser, in place of those of all: momentum, betas.
    place : str
        For errors.
    """

    names: tuple[str, ...]
    parameters: list[nn.Parameter]
    lr_scale: float
    decay: float
    options: dict[str, Any] = field(default_factory=dict)
    place: str = ""

    @property
    def description(self) -> str:
        """All that a checkpoint must share with the run that resumes it."""
        options = "".join(f", {name} {value!r}" for name, value in sorted(self.options.items()))
        return f"lr_scale {self.lr_scale!r}, weight_decay {self.decay!r}{options}"


def parameter_groups(model: nn.Module, config: Config) -> list[ParameterGroup]:
    """All parameters that are trained, by rate and decay.

    Without `config.parameter_groups` those that the penalty covers and the others. A group without a
    "weight_decay" of its own has `config.decay` for those that the penalty covers, and none for the others.

    Parameters
    ----------
    model : Module
        Of a :class:`~sdgpu.nn.stacked.Stack` the names are those of a member, and a function is called
        with a network without values.
    config : Config

    Raises
    ------
    TypeError, ValueError
        For a pattern that fits no parameter; if a function gives no groups, groups of other parameters
        than those of the model it is called with, one twice or not all that are trained; if there is
        nothing to train.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("the model has no parameter with requires_grad=True: nothing to train")
    covered = set(penalised(model, config.penalty_covers))
    groups = []
    for place, names, settings in _asked(model, config, list(trainable)):
        scale, decay, options = _checked(place, settings, config)
        parts = [(names, decay)]
        if decay is None:
            parts = [
                ([name for name in names if name in covered], config.decay),
                ([name for name in names if name not in covered], 0.0),
            ]
        for part, weight in parts:
            if part and weight is not None:
                parameters = [trainable[name] for name in part]
                groups.append(
                    ParameterGroup(tuple(part), parameters, scale, weight, options, place)
                )
    return groups


Asked = Iterator[tuple[str, list[str], Mapping[str, Any]]]


def _asked(model: nn.Module, config: Config, trainable: list[str]) -> Asked:
    """Each group as it was asked for: its place in errors, names and settings."""
    given = config.parameter_groups
    if given is None:
        yield "", trainable, {}
    elif callable(given):
        yield from _of_function(model, given, trainable)
    else:
        yield from _of_patterns(model, given, trainable)


def _of_patterns(
    model: nn.Module, patterns: Mapping[str, Mapping[str, float]], trainable: list[str]
) -> Asked:
    """The first pattern that fits a name decides; what none fits is as without any."""
    stacked = getattr(model, "members", None) is not None
    dotted = {
        name: name.replace("/", ".") if stacked else name for name, _ in model.named_parameters()
    }
    rest = list(trainable)
    for pattern, settings in patterns.items():
        if not any(fnmatch.fnmatchcase(name, pattern) for name in dotted.values()):
            raise ValueError(
                f"parameter_groups has the pattern {pattern!r}, which fits no parameter: they are called "
                f"{', '.join(list(dotted.values())[:4])}, .., and * stands for anything"
            )
        names = [name for name in rest if fnmatch.fnmatchcase(dotted[name], pattern)]
        rest = [name for name in rest if name not in names]
        yield f"parameter_groups[{pattern!r}]", names, settings
    yield "", rest, {}


def _of_function(model: nn.Module, function: Any, trainable: list[str]) -> Asked:
    stacked = getattr(model, "members", None) is not None
    skeleton: Any = getattr(model, "skeleton", [model])
    network = skeleton[0] if stacked else model
    groups = function(network)
    if not isinstance(groups, Sequence) or not all(isinstance(g, Mapping) for g in groups):
        raise TypeError(
            f"parameter_groups(model) must give a list of dicts, as torch.optim takes them, not "
            f"{type(groups).__name__}: [{{'params': model.head.parameters(), 'lr_scale': 10.0}}, ..]"
        )
    names_of = {
        id(p): name.replace(".", "/") if stacked else name
        for name, p in reversed([*network.named_parameters(remove_duplicate=False)])
    }
    every = dict(model.named_parameters())
    seen: dict[str, str] = {}
    for number, group in enumerate(groups):
        place, names = f"parameter_groups(model)[{number}]", []
        for parameter in _listed(place, group):
            name = names_of.get(id(parameter))
            if name is None:
                raise ValueError(
                    f"{place} has a parameter of another network: take those of the model that the "
                    "function is called with, which is a copy of yours"
                )
            if name in seen:
                raise ValueError(f"{place} has {name}, which is in {seen[name]} too: give it once")
            if name in every:  # and is no second name of a tied one, which a stack has once
                seen[name] = place
                names.append(name)
        settings = {k: v for k, v in group.items() if k not in ("params", *_NAMES)}
        yield place, [name for name in names if every[name].requires_grad], settings
    missing = [name for name in trainable if name not in seen]
    if missing:
        raise ValueError(
            f"parameter_groups(model) leaves out {', '.join(missing[:3])}{', ..' * (len(missing) > 3)}: "
            "put all parameters into groups, and freeze those that stay with requires_grad=False"
        )


def _listed(place: str, group: Mapping[str, Any]) -> list[Any]:
    """Parameters of a group: one, several, or pairs with their names, as torch takes them."""
    given = group.get("params")
    if given is None:
        raise TypeError(f"{place} has no 'params': give the parameters of the group")
    listed = [given] if isinstance(given, torch.Tensor) else list(given)
    return [one[1] if isinstance(one, tuple) else one for one in listed]


def _checked(
    place: str, settings: Mapping[str, Any], config: Config
) -> tuple[float, float | None, dict[str, Any]]:
    """Factor of the rate, weight of the penalty if it has its own, and options of the optimiser."""
    numbers = {
        name: positive(f"{place}[{name!r}]", settings[name], zero=True)
        for name in GROUP_SETTINGS
        if settings.get(name) is not None
    }
    if "lr" in numbers and "lr_scale" in numbers:
        raise ValueError(
            f"{place} has lr={numbers['lr']:g} and lr_scale={numbers['lr_scale']:g}: give one of them"
        )
    decay = numbers.get("weight_decay")
    if decay is not None and config.penalty_form == "paper-script":
        raise ValueError(
            f"{place} has weight_decay={decay:g}, but penalty='paper-script' has one weight for all: use "
            "'l2' or 'decoupled'"
        )
    scale = numbers["lr"] / config.lr if "lr" in numbers else numbers.get("lr_scale", 1.0)
    options = {name: value for name, value in settings.items() if name not in GROUP_SETTINGS}
    return scale, decay, options
