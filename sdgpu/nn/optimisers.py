"""Optimisers by name, Lion among them, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from sdgpu.nn.config import Config

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


def make_optimiser(
    model: nn.Module, config: Config, covered: set[str], device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of `config`; its weight decay is the gradient of decay/2 ||theta||^2.

    Parameters
    ----------
    model : Module
        Its parameters with ``requires_grad`` are trained.
    config : Config
        An `optimiser` of the user's own is called with the groups of parameters, each with its
        "weight_decay", and gives a ``torch.optim.Optimizer`` of them. Its rates are set at every step.
    covered : set of str
        Names of the parameters that the penalty covers.
    device : torch.device

    Raises
    ------
    TypeError
        If the user's own gives something else, or a state that a checkpoint cannot hold.
    ValueError
        If the model has no parameters to train, or it leaves out some of them.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the model has no parameter with requires_grad=True: nothing to train")
    decay = config.decay if config.penalty_form == "l2" else 0.0
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trainable if name in covered], "weight_decay": decay},
        {"params": [p for name, p in trainable if name not in covered], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = True  # one loop over all parameters in place of ten calls for each
    if not isinstance(config.optimiser, str):
        return _checked(config.optimiser(groups), [p for _, p in trainable])
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused
        )
    if config.optimiser == "lion":
        return Lion(groups, lr=config.lr, betas=config.betas)
    # of AdamW the decay is that of every optimiser with decoupled decay
    return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=fused)


def _checked(optimiser: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise TypeError(
            "optimiser must give a torch.optim.Optimizer of the groups of parameters it is called with, "
            f"not {type(optimiser).__name__}: for example lambda groups: torch.optim.RMSprop(groups)"
        )
    held = [id(p) for group in optimiser.param_groups for p in group["params"]]
    if set(held) != {id(p) for p in parameters}:
        raise ValueError(
            f"optimiser has {len(held)} parameters, but the model trains {len(parameters)}: give it all "
            "the groups it is called with, and freeze parameters with requires_grad=False"
        )
    return optimiser
