"""One step of the optimiser: rate, decay, clipping, scaler, and what an overflow must not touch."""

from __future__ import annotations

import math

import torch
from torch import nn

from sdgpu.nn.config import Config
from sdgpu.nn.loss import add_script_gradient, penalty
from sdgpu.nn.optimisers import make_optimiser
from sdgpu.nn.parameter_groups import parameter_groups

__all__ = ["LEAST_SCALE", "Update"]

#: Where float16 gives up. The scaler starts at 2^16 and halves at every overflow: thirty in a row are no
#: matter of scaling.
LEAST_SCALE = 2.0**-14


class Update:
    """The optimiser of a training with its penalty and its gradient scaler.

    A step that the scaler skips, for a gradient is not finite, leaves the model as it was before the
    batch: no decay of the weights, and no statistics of batch norm from activations that overflowed.

    Parameters
    ----------
    model : Module
        Its parameters with ``requires_grad`` are trained.
    config : Config
    device : torch.device
        Of the model.

    Attributes
    ----------
    groups : list of ParameterGroup
    optimiser : torch.optim.Optimizer
    scaler : torch.amp.GradScaler
        Of no effect without amp="fp16".

    Raises
    ------
    TypeError, ValueError
        As :func:`~sdgpu.nn.parameter_groups.parameter_groups` and
        :func:`~sdgpu.nn.optimisers.make_optimiser`.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device) -> None:
        self.model, self.config = model, config
        self.groups = parameter_groups(model, config)
        self.optimiser = make_optimiser(self.groups, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self._own = not isinstance(config.optimiser, str)  # it may have a zero_grad of its own
        decoupled = config.penalty_form == "decoupled"
        self._decaying = [group for group in self.groups if decoupled and group.decay > 0]
        self._buffer_backups: list[torch.Tensor] = []

    @property
    def hopeless(self) -> bool:
        """Whether so many steps overflowed that no scale will help; waits for the device."""
        return self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE

    def begin(self) -> None:
        """Before the forward pass of a batch: remember what an overflow must not spoil."""
        if self.scaler.is_enabled():
            self._buffer_backups = [buffer.clone() for buffer in self.model.buffers()]

    def keep_gradients(self) -> None:
        """After the first of several parts, with CUDA graphs: gradients get memory of their own.

        A graph writes the gradients of the next part where those of the last one lie.
        """
        for parameter in self.trainable:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def step(self, rate: float) -> None:
        """Step at a learning rate, and clear the gradients."""
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        finite = self._unscale() if self.scaler.is_enabled() else None
        self._decay(rate, finite)
        if config.penalty == "paper-script" and config.decay:
            # the other penalties need no graph either: their gradient is that of weight decay
            add_script_gradient(self.model, config.decay, covers=config.penalty_covers)
        if config.clip_norm:
            self._clip()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self._own:
            self.optimiser.zero_grad(set_to_none=True)
            return
        for parameter in self.trainable:  # the same, without torch's profiling around it
            parameter.grad = None

    @torch.no_grad()
    def _decay(self, rate: float, finite: torch.Tensor | None) -> None:
        """Decoupled decay, unless the gradient is not `finite`."""
        for group in self._decaying:
            parameters: list[torch.Tensor] = [*group.parameters]
            factor = 1 - rate * group.lr_scale * group.decay
            if finite is None:
                torch._foreach_mul_(parameters, factor)
            else:
                torch._foreach_mul_(parameters, torch.where(finite, factor, 1.0))

    @torch.no_grad()
    def penalty(self) -> torch.Tensor:
        """The penalty of the weights as they are, (), of a stack (members,)."""
        config = self.config
        decays = {name: group.decay for group in self.groups for name in group.names}
        return penalty(self.model, config.decay, form=config.penalty_form, decays=decays)

    @torch.no_grad()
    def _clip(self) -> None:
        """Shorten the gradient of all parameters, of each member of a stack by itself."""
        members: int | None = getattr(self.model, "members", None)
        if members is None:
            nn.utils.clip_grad_norm_(self.trainable, self.config.clip_norm)
            return
        gradients = [p.grad for p in self.trainable if p.grad is not None]
        squares = [g.reshape(members, -1).square().sum(dim=1) for g in gradients]
        # as torch does it, with its guard against 0
        norms = torch.stack(squares).sum(dim=0).sqrt() + 1e-6
        factors = (self.config.clip_norm / norms).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.reshape(-1, *(1,) * (gradient.ndim - 1)))

    def _unscale(self) -> torch.Tensor:
        """Whether all gradients are finite, on the device; buffers come back if not."""
        self.scaler.unscale_(self.optimiser)
        gradients = [p.grad for p in self.trainable if p.grad is not None]
        norms = torch._foreach_norm(gradients, math.inf)
        finite = torch.stack([norm.float() for norm in norms]).isfinite().all()
        with torch.no_grad():
            for buffer, backup in zip(self.model.buffers(), self._buffer_backups, strict=True):
                buffer.copy_(torch.where(finite, buffer, backup))
        return finite
