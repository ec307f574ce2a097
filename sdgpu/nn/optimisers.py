"""Optimisers by name, Lion among them, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from sdgpu.nn.config import Config
from sdgpu.nn.parameter_groups import ParameterGroup

__all__ = ["Lion", "make_optimiser"]


class Lion(torch.optim.Optimizer):
    """Steps by the signs of an interpolated momentum.

    Chen et al. 2023, "Symbolic discovery of optimization algorithms", Algorithm 2. With gradient g,
    momentum m from 0 and betas (b1, b2), in every step

        theta <- theta - lr (sign(b1 m + (1 - b1) g) + weight_decay theta),    m <- b2 m + (1 - b2) g.

    Every entry moves by lr, so lr is three to ten times smaller than Adam's, and the decay as much larger.
    Parameters without a gradient stay as they are.

    Parameters
    ----------
    params : iterable of tensors or of groups
    lr : float, default 1e-4
    betas : tuple of two floats, default (0.9, 0.99)
        Those of the paper.
    weight_decay : float, default 0
        Decoupled.

    Notes
    -----
    One array of the size of the parameters is kept, where Adam keeps two.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; the value of `closure`, if it is given."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(parameters, group)
        return value

    def _step(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), rate = group["betas"], group["lr"]
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in parameters]
        gradients: list[torch.Tensor] = [p.grad for p in parameters if p.grad is not None]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        directions = torch._foreach_lerp(momenta, gradients, 1 - beta1)
        torch._foreach_sign_(directions)
        torch._foreach_add_(parameters, directions, alpha=-rate)
        torch._foreach_lerp_(momenta, gradients, 1 - beta2)


def make_optimiser(groups: Sequence[ParameterGroup], config: Config) -> torch.optim.Optimizer:
    """The optimiser of `config`; its weight decay is the gradient of decay/2 ||theta||^2.

    Parameters
    ----------
    groups : sequence of ParameterGroup
    config : Config
        An `optimiser` of the user's own is called with the groups of parameters, each with its
        "weight_decay" and, where its rate is another, the factor "lr_scale", and gives a
        ``torch.optim.Optimizer`` of them. Its rates are set at every step.

    Raises
    ------
    TypeError
        If the user's own gives something else.
    ValueError
        If it leaves out some of the parameters or their "lr_scale", or does not know an option of a group.
    """
    l2 = config.penalty_form == "l2"
    dicts: list[dict[str, Any]] = [
        {
            "params": group.parameters,
            "weight_decay": group.decay if l2 else 0.0,
            **({} if group.lr_scale == 1 else {"lr_scale": group.lr_scale}),
            **group.options,
        }
        for group in groups
    ]
    fused = True  # one loop over all parameters in place of ten calls for each
    if not isinstance(config.optimiser, str):
        optimiser = _checked(config.optimiser(dicts), groups)
    elif config.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            dicts, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused
        )
    elif config.optimiser == "lion":
        optimiser = Lion(dicts, lr=config.lr, betas=config.betas)
    else:  # of AdamW the decay is that of every optimiser with decoupled decay
        optimiser = torch.optim.Adam(dicts, lr=config.lr, betas=config.betas, fused=fused)
    for group in groups:
        for name, value in group.options.items():
            if name not in optimiser.defaults:
                known = ("lr_scale", *optimiser.defaults)
                raise ValueError(
                    f"{group.place} has {name}={value!r}, which {type(optimiser).__name__} does not know: "
                    f"it has {', '.join(known)}"
                )
    return optimiser


def _checked(optimiser: Any, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise TypeError(
            "optimiser must give a torch.optim.Optimizer of the groups of parameters it is called with, "
            f"not {type(optimiser).__name__}: for example lambda groups: torch.optim.RMSprop(groups)"
        )
    scales = {id(p): group.lr_scale for group in groups for p in group.parameters}
    held = {
        id(p): group.get("lr_scale", 1.0)
        for group in optimiser.param_groups
        for p in group["params"]
    }
    if held.keys() != scales.keys():
        raise ValueError(
            f"optimiser has {len(held)} parameters, but the model trains {len(scales)}: give it all "
            "the groups it is called with, and freeze parameters with requires_grad=False"
        )
    if held != scales:
        raise ValueError(
            "optimiser has groups without the lr_scale of those that it is called with: keep it in every "
            "group that it makes of them, or leave out parameter_groups"
        )
    return optimiser
