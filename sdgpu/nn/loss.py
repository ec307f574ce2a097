"""The loss (18) of a network as one mixed target, and the penalty on its weights.

The function of a network is f = activation(logits / temperature), the same in the loss, for a teacher
and on validation data. With u = alpha Y + (1 - alpha) p_teacher, alpha any real number,

    alpha/2 ||f - Y||^2 + (1 - alpha)/2 ||f - p_teacher||^2
        = 1/2 ||f - u||^2 + alpha (1 - alpha)/2 ||Y - p_teacher||^2,

and the last term knows no weights: one target is enough, and no teacher in the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sdgpu.backend.checks import choice, number, positive
from sdgpu.nn.config_checks import ACTIVATIONS, LOSSES, PENALTIES
from sdgpu.nn.model_outputs import logits_of

__all__ = [
    "Loss",
    "add_script_gradient",
    "data_loss",
    "distillation_loss",
    "hinton_target",
    "mixed_target",
    "penalised",
    "penalty",
    "predictions",
    "smoothed",
]

#: Parameters of transformers that are places and tokens, not weights, in timm, torchvision and elsewhere.
TOKENS = frozenset(
    {
        *("pos_embed", "pos_embedding", "position_embeddings", "positional_embedding"),
        *("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token"),
        *("reg_token", "register_tokens", "mask_token", "relative_position_bias_table"),
    }
)
_HALF = (torch.float16, torch.bfloat16)

#: A loss: one of LOSSES, or a function of logits (b, c) and targets (b, c) that gives the losses (b,) of
#: the rows, or their mean.
Loss = str | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def predictions(
    logits: torch.Tensor, *, activation: str = "softmax", temperature: float = 1.0
) -> torch.Tensor:
    """f = softmax(logits / temperature), or logits / temperature with activation "identity".

    Parameters
    ----------
    logits : tensor (..., n, c)
        Of any floating type; half precision is widened to float32 first.
    activation : {"softmax", "identity"}
    temperature : float, default 1
        > 0. Gradients are not multiplied by temperature^2, as some libraries do.

    Returns
    -------
    tensor (..., n, c), float32 or float64

    Raises
    ------
    TypeError, ValueError
        If the logits are no tensor; for an unknown activation or a temperature <= 0.
    """
    choice("activation", activation, ACTIVATIONS)
    scaled = _scaled(logits, temperature)
    return scaled.softmax(dim=-1) if activation == "softmax" else scaled


def mixed_target(
    Y: torch.Tensor, teacher: torch.Tensor, alpha: float, *, hard: bool = False
) -> torch.Tensor:
    """u = alpha Y + (1 - alpha) p_teacher, the only target that a step needs.

    Parameters
    ----------
    Y : tensor (n, c)
        Ground truth, one-hot rows.
    teacher : tensor (..., n, c)
        Predictions of the teacher; leading axes are views of the inputs.
    alpha : float
        Weight of the ground truth, any finite number.
    hard : bool, default False
        Replace each row of the teacher by the one-hot row of its largest entry; one with NaN or infinity
        by NaN.

    Raises
    ------
    ValueError
        If alpha is NaN or infinite, or the shapes differ.
    """
    alpha, teacher = number("alpha", alpha), _told(Y, teacher, hard=hard)
    return alpha * Y + (1 - alpha) * teacher


def hinton_target(
    Y: torch.Tensor, teacher: torch.Tensor, alpha: float, *, hard: bool = False
) -> torch.Tensor:
    """Targets (..., n, 2 c) of loss "hinton": alpha Y and, beside it, (1 - alpha) p_teacher.

    Parameters and errors are those of :func:`mixed_target`; the teacher's predictions are those at the
    temperature of the loss.
    """
    alpha, teacher = number("alpha", alpha), _told(Y, teacher, hard=hard)
    return torch.cat([(alpha * Y).expand(teacher.shape), (1 - alpha) * teacher], dim=-1)


def _told(Y: torch.Tensor, teacher: torch.Tensor, *, hard: bool) -> torch.Tensor:
    """Predictions of a teacher for the rows of Y, or their one-hot rows."""
    if teacher.shape[-2:] != Y.shape:
        raise ValueError(
            f"teacher has shape {tuple(teacher.shape)}, but Y has shape {tuple(Y.shape)}: both need one "
            "row for each input and one column for each class"
        )
    if not hard:
        return teacher
    one_hot = nn.functional.one_hot(teacher.argmax(dim=-1), Y.shape[-1]).to(Y.dtype)
    # a row that is not finite stays so, for argmax would make a class of it; no wait for the device
    return torch.where(teacher.isfinite().all(dim=-1, keepdim=True), one_hot, math.nan)


def smoothed(Y: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Y (n, c) with the share `smoothing` of every row spread over all c classes; Y itself for 0."""
    return Y if smoothing == 0 else (1 - smoothing) * Y + smoothing / Y.shape[-1]


def data_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    loss: Loss = "squared",
    activation: str = "softmax",
    temperature: float = 1.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over the rows of the loss of a row, for each leading index.

    "squared": 1/2 ||f_i - u_i||^2, summed over the c outputs. The loss (18) is n times its mean over
    the data, so that lam of (18) is n times the `decay` of the trainer.
    "cross-entropy": - sum_j u_ij log f_ij, linear in u. Rows outside the simplex, which alpha outside
    [0, 1] makes, keep this formula: it is still the two-term loss, but need not be bounded below.
    "hinton": with z the logits and T the temperature,

        - sum_j alpha y_ij log softmax(z_i)_j - T^2 sum_j (1 - alpha) p_ij log softmax(z_i / T)_j,

    the teacher's predictions p at T too: the temperature is on the teacher's term alone, whose gradient
    T^2 keeps of one size (Hinton, Vinyals & Dean 2015). The constant entropy of p is not subtracted.

    Parameters
    ----------
    logits : tensor (..., n, c)
        Of any floating type; half precision is widened to float32 first.
    target : tensor (..., n, c)
        u; for "hinton" (..., n, 2 c) of :func:`hinton_target`, or Y alone.
    loss : {"squared", "cross-entropy", "hinton"} or callable
        A function of the user's own gets logits and target and gives the losses (..., n) of the rows, or
        their mean (...); activation and temperature are then its own affair.
    activation : {"softmax", "identity"}
    temperature : float, default 1
    weights : tensor (n,), optional
        Factors of the rows: the mean of weight times loss.

    Returns
    -------
    tensor (...)
        A scalar for logits (n, c); one number for each model of a stack.

    Raises
    ------
    TypeError, ValueError
        For unknown names, a temperature <= 0, another shape of the target, the cross-entropy of
        "identity", which has no probabilities, or what a function gives that is no loss.
    """
    if isinstance(loss, str):
        choice("loss", loss, LOSSES)
    logits = logits_of(logits)
    shapes = [logits.shape]
    if loss == "hinton":
        shapes.append(torch.Size((*logits.shape[:-1], 2 * logits.shape[-1])))
    if target.shape not in shapes:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, but the model gives {tuple(logits.shape)}: a row "
            "for each input, a column for each class"
        )
    if not isinstance(loss, str):
        rows = _own(loss, logits, target)
    elif loss == "squared":
        f = predictions(logits, activation=activation, temperature=temperature)
        rows = 0.5 * (f - target).square().sum(dim=-1)
    elif activation != "softmax":
        raise ValueError(
            f"loss={loss!r} needs activation='softmax', not {activation!r}: or use loss='squared'"
        )
    elif loss == "hinton":
        rows = _hinton(logits, target, temperature)
    else:
        rows = -(target * _log_softmax(logits, temperature)).sum(dim=-1)
    if rows.ndim < logits.ndim - 1:  # a mean already
        if weights is not None:
            raise ValueError(
                "loss gives a mean, but weights of rows or classes need the loss of every row: let it "
                "give the losses (n,), for example with reduction='none'"
            )
        return rows
    return (rows if weights is None else rows * weights).mean(dim=-1)


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return _scaled(logits, temperature).log_softmax(dim=-1)


def _hinton(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    classes = logits.shape[-1]
    rows = -(target[..., :classes] * _log_softmax(logits, 1.0)).sum(dim=-1)
    if target.shape[-1] > classes:
        told = (target[..., classes:] * _log_softmax(logits, temperature)).sum(dim=-1)
        rows = rows - temperature**2 * told
    return rows


def _own(loss: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Losses (..., n), or means (...), of a function of the user's own, in float32 at least."""
    wide = logits.float() if logits.dtype in _HALF else logits
    rows = loss(wide, target)
    if not isinstance(rows, torch.Tensor) or not rows.is_floating_point():
        kind = rows.dtype if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise TypeError(f"loss gives {kind}, but must give a tensor of losses, floating point")
    if rows.shape not in (logits.shape[:-1], logits.shape[:-2]):
        raise ValueError(
            f"loss gives shape {tuple(rows.shape)} for logits {tuple(logits.shape)}: it must give one "
            f"number for each row, {tuple(logits.shape[:-1])}, or their mean, {tuple(logits.shape[:-2])}"
        )
    return rows


def distillation_loss(
    logits: torch.Tensor, Y: torch.Tensor, teacher: torch.Tensor, alpha: float
) -> torch.Tensor:
    """The two terms of (18) as the paper prints them, for softmax outputs, averaged over the rows.

    Nothing trains with it: it is the reference that the mixed target is compared with. Its value
    exceeds that of :func:`data_loss` by alpha (1 - alpha)/2 mean ||y_i - p_i||^2 (the paper's
    footnote 8 prints another constant); its gradient is the same.
    """
    alpha = number("alpha", alpha)
    return alpha * data_loss(logits, Y) + (1 - alpha) * data_loss(logits, teacher)


def penalised(model: nn.Module, covers: str = "all") -> list[str]:
    """Names of the parameters that the penalty covers.

    Parameters
    ----------
    model : Module
        A :class:`~sdgpu.nn.stacked.Stack` answers for its members.
    covers : {"all", "weights"}
        "all", as in (18), or "weights": matrices and convolutions. No biases, no scales and shifts of
        normalisation layers (parameters with one axis), no embedded positions and tokens (parameters that
        are called pos_embed, cls_token and the like), and none that the model itself exempts: names that
        its method no_weight_decay() gives, words in them by no_weight_decay_keywords(), as in timm.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    choice("penalty_covers", covers, ("all", "weights"))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if covers == "all":
        return [name for name, _ in named]
    stacked = getattr(model, "members", None) is not None
    skeleton: Any = getattr(model, "skeleton", [model])
    exempt = _Exempt(skeleton[0] if stacked else model)
    return [
        name
        for name, parameter in named
        if not exempt(name.replace("/", "."), parameter.ndim - int(stacked))
    ]


class _Exempt:
    """Whether a parameter is no weight, by its name and axes."""

    def __init__(self, model: nn.Module) -> None:
        self.names, self.words = (
            frozenset(str(name) for name in method()) if callable(method) else frozenset()
            for method in (
                getattr(model, "no_weight_decay", None),
                getattr(model, "no_weight_decay_keywords", None),
            )
        )

    def __call__(self, name: str, axes: int) -> bool:
        last = name.rpartition(".")[2]
        return (
            axes < 2
            or last == "bias"
            or last in TOKENS
            or name in self.names
            or any(word in name for word in self.words)
        )


def penalty(
    model: nn.Module,
    decay: float,
    *,
    form: str = "l2",
    covers: str = "all",
    decays: Mapping[str, float] | None = None,
) -> torch.Tensor:
    """The penalty of (18), decay/2 ||theta||^2; or that of the paper's script.

    Parameters
    ----------
    model : Module
    decay : float
        >= 0. Per row of the data: lam of (18) is n times as large.
    form : {"l2", "decoupled", "paper-script"}
        "paper-script" is decay times the sum of the norms, not squared, of the parameter tensors.
        "decoupled" decay is no part of any loss and has the value 0.
    covers : {"all", "weights"}
        See :func:`penalised`.
    decays : mapping, optional
        Of every parameter by its name, in place of `decay` and `covers`.

    Returns
    -------
    tensor ()
        For a stack a tensor (members,).
    """
    choice("penalty", form, PENALTIES)
    members = getattr(model, "members", None)
    positive("decay", decay, zero=True)
    weights = dict.fromkeys(penalised(model, covers), decay) if decays is None else decays
    # one row for each member of a stack, one row otherwise
    weighted_rows = [
        (weights[name], p.reshape(members or 1, -1))
        for name, p in model.named_parameters()
        if weights.get(name)
    ]
    first = next(model.parameters())
    total = torch.zeros(members or 1, dtype=first.dtype, device=first.device)
    if form == "decoupled":
        return total if members else total[0]
    for weight, row in weighted_rows:
        square = row.square().sum(dim=1)
        total = total + weight * (0.5 * square if form == "l2" else square.sqrt())
    return total if members else total[0]


def add_script_gradient(model: nn.Module, decay: float, *, covers: str = "all") -> None:
    """Add the gradient of the "paper-script" penalty, decay theta / ||theta||, to ``.grad`` in place.

    Of a tensor that is 0 the gradient counts as 0.
    """
    members, covered = getattr(model, "members", None), set(penalised(model, covers))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in covered and parameter.grad is not None:
                flat = parameter.reshape(members or 1, -1)
                norms = flat.norm(dim=1, keepdim=True)
                scale = torch.where(norms > 0, decay / norms, 0.0)
                parameter.grad.add_((flat * scale).reshape(parameter.shape))


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    positive("temperature", temperature)
    logits = logits_of(logits)
    if logits.dtype in _HALF:
        logits = logits.float()
    return logits if temperature == 1 else logits / temperature
