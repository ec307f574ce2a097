"""The configuration of a training: everything but the model and the data, checked and saved as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdgpu.nn.config_checks import check_together, checked_fields, read_fields
from sdgpu.nn.learning_rates import EPOCHS_COUNT, rate_factor
from sdgpu.nn.own_functions import identity

__all__ = ["FITS", "IMAGES", "SPEED", "Config"]

# what changes how a run is carried out, not what it computes: a checkpoint may be resumed with others
_FREE = ("eval_batch", "find_unused_parameters", "save_seconds", "tensorboard", "extendable")
# what came later: a checkpoint that does not name them was made without
_LATER = (
    *("clip_norm", "ema", "label_smoothing", "mixup", "cutmix", "class_weights"),
    *("patience", "monitor", "keep", "parameter_groups"),
)


#: A function of the user's own.
Own = Callable[..., Any]

# groups of options of the command line
IMAGES, FITS, SPEED = "Images", "Every training", "Speed and memory"


def _option(default: Any, group: str, text: str) -> Any:
    """A field that the command line sets too, by an option of the same name."""
    return dataclasses.field(default=default, metadata={"group": group, "help": text})


@dataclass(frozen=True)
class Config:
    """How a network is trained. Every field is checked when the object is made.

    Attributes
    ----------
    epochs, batch : int
        Passes over the data; rows of one optimiser step, over all ranks. An incomplete last batch is
        used, and weighs as one step.
    lr : float
        Largest learning rate.
    optimiser : {"adam", "adamw", "sgd", "lion"} or callable
        AdamW is Adam with decoupled decay; Lion is :class:`~sdgpu.nn.Lion`. A function of the user's own is
        called with groups of parameters and gives a ``torch.optim.Optimizer``; the rate of every step is
        set in all its groups, and a checkpoint holds its ``state_dict``.
    betas : tuple of two floats; momentum : float; nesterov : bool
        Of Adam, AdamW and Lion (whose paper has 0.9 and 0.99); of SGD.
    schedule : {"constant", "cosine", "linear", "milestones"} or callable
        Of the learning rate, a function of the position: down to 0 at the end as a half cosine or a
        line, or times `drop` at each epoch in `milestones`; or times what a function of the user's own
        gives for the position in epochs (1.5 is the middle of the second).
    warmup : float
        Epochs over which the rate rises linearly, to `lr` and never beyond.
    clip_norm : float
        Largest Euclidean norm of the gradient of all parameters (of each member of a stack); a longer one
        is shortened. Weight decay comes after it, as in torch. 0 for none.
    ema : float
        If > 0 the weights that are validated and returned are a moving average of those after each step:
        of t steps, step s has the weight ema^(t - s) (1 - ema) / (1 - ema^t). So are buffers (batch norm).
    loss, activation, temperature
        See :func:`~sdgpu.nn.loss.data_loss`; a loss of the user's own is a function of logits and targets.
    label_smoothing : float
        Share of the ground truth that is spread over all classes, before a teacher is mixed in. Targets
        that are given as a tensor are taken as they are.
    mixup, cutmix : float
        a of the Beta(a, a) from which the share of a batch's images is drawn that each keeps, the rest
        being that of another image of the batch: of all its pixels (Zhang et al. 2018), or a rectangle of
        them (Yun et al. 2019). Targets are mixed by the same share, and a teacher in the loop sees the
        mixed image. With both, each batch has one of them, by a coin. Accuracies of training count an
        image's own label. 0 for none.
    class_weights : tuple of c floats, or "balanced"
        Factors of the loss of a row by its label; "balanced" is n / (c n_k) for class k with n_k rows.
        Together with the weights of the images they are scaled to the mean 1 over the training images,
        so that a common factor changes nothing. Empty: 1.
    penalty : {"l2", "decoupled", "paper-script"}
        decay/2 ||theta||^2 in the loss, as in (18); decoupled weight decay, theta <- (1 - rate decay)
        theta, which AdamW and Lion have in place of "l2"; or the norms that the paper's script adds, not
        squared.
    decay : float
        Weight of the penalty against the **mean** loss of a row: lam / n for lam of (18).
    penalty_covers : {"all", "weights"}
    parameter_groups : dict or callable, optional
        Rates and decays of some parameters: settings by pattern of names (* stands for anything, the first
        that fits decides), as ``{"stem.*": {"lr_scale": 0.1}, "head.*": {"weight_decay": 0.0}}``; or a
        function of the model that gives a list of groups as torch has them, dicts with "params" and the
        same settings, which options of the optimiser may join. "lr_scale" is a factor of the rate of every
        step, "lr" a largest rate in place of `lr`, "weight_decay" stands for `decay`.
    teacher : {"cached", "views", "online", "paper-script"}
        Predictions of the teacher on the clean inputs, once; on `views` augmented views of all inputs,
        which the student then sees epoch by epoch, at step 1 too; on the very view the student sees, in
        the loop; or in the loop with the teacher's batch norm in training mode, so that it drifts, as in
        the paper's script. A teacher in the loop is evaluated part by part and rank by rank like the
        student, but for the last, whose drift is that of whole batches.
    hard : bool
        One-hot targets from the teacher.
    order : {"shuffled", "paper-script"}
        A new permutation every epoch, or one for all of them.
    crop_pad : int; flip : bool
        Augmentation: zeros around the picture before a random crop; horizontal flips.
    patience : int
        Epochs without a better `monitor` after which the training ends; 0: it never ends early.
    monitor : {"val_loss", "val_accuracy", "train_loss"}
        What the best epoch is best in; of equal ones the first.
    keep : {"last", "best"}
        The weights that are returned: of the last epoch, or of the best one.
    init_seed, order_seed, augment_seed : int
        Of the weights (where a chain builds the model), of the order, of augmentation and dropout. Dropout
        draws on every rank for itself, so its masks depend on the number of processes; nothing else does.
    amp : {"off", "bf16", "fp16"}
        Autocast while it trains; "fp16" with a gradient scaler, which skips a batch that overflows: it
        changes nothing, and counts in no mean of losses. Evaluation is in float32.
    channels_last, compile, cuda_graphs, tf32, deterministic : bool
        Memory format (None: of :func:`~sdgpu.nn.evaluate.channels_come_last`); torch.compile; the same with
        CUDA graphs, for small steps; TF32 products on CUDA; deterministic algorithms only (on CUDA with
        CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment).
    find_unused_parameters : bool
        Under several processes: look in every batch for parameters that had no part in it, as torch's
        DistributedDataParallel must be told to where some have none. Changes no number.
    accumulate : int
        Parts into which a batch is cut, one after the other, to save memory; divides `batch`. The gradient
        is that of the whole batch, but batch norm takes the statistics of each part, and dropout draws
        anew: with them it is not the same as one batch.
    eval_batch : int
        Rows of a batch without gradients.
    save_seconds : float
        Time between checkpoints within an epoch; 0 saves after every batch. Every epoch's end is
        saved if as much time has passed, and the end of the training always.
    tensorboard : bool
        Also write TensorBoard logs (needs the package tensorboard).
    extendable : bool
        Keep the state of the optimiser when the training ends, two thirds of the checkpoint, so that it may
        be called again with more `epochs`. Chains do not.

    Raises
    ------
    TypeError, ValueError
        With the name of the field, its value and what it may be.
    """

    epochs: int = _option(75, FITS, "passes over the images")
    batch: int = _option(128, FITS, "images of one optimiser step")
    lr: float = _option(1e-4, FITS, "largest learning rate")
    optimiser: str | Own = _option("adam", FITS, "adam, adamw, sgd or lion")
    betas: tuple[float, float] = _option(
        (0.9, 0.999), FITS, "two of adam, adamw and lion, for example 0.9,0.99"
    )
    momentum: float = _option(0.9, FITS, "of sgd")
    nesterov: bool = _option(False, FITS, "of sgd")
    schedule: str | Own = _option("constant", FITS, "constant, cosine, linear or milestones")
    warmup: float = _option(0.0, FITS, "epochs over which the rate rises")
    milestones: tuple[int, ...] = _option(
        (), FITS, "epochs at which the rate drops, for example 30,60"
    )
    drop: float = _option(0.1, FITS, "factor of the rate at a milestone")
    clip_norm: float = _option(0.0, FITS, "largest norm of the gradient; 0 for any")
    ema: float = _option(0.0, FITS, "of a moving average of the weights, for example 0.999")
    loss: str | Own = _option(
        "squared", FITS, "squared (of probabilities), cross-entropy or hinton"
    )
    activation: str = _option("softmax", FITS, "softmax or identity")
    temperature: float = _option(1.0, FITS, "of the softmax")
    label_smoothing: float = _option(0.0, FITS, "share of the truth spread over all classes")
    mixup: float = _option(0.0, IMAGES, "a of Beta(a, a) for mixup, for example 0.2")
    cutmix: float = _option(0.0, IMAGES, "a of Beta(a, a) for cutmix, for example 1")
    class_weights: tuple[float, ...] | str = _option(
        (), FITS, "of the classes, by commas, or balanced"
    )
    penalty: str = _option("l2", FITS, "l2, decoupled or paper-script")
    decay: float = _option(1e-4, FITS, "weight of the penalty")
    penalty_covers: str = _option("all", FITS, "all or weights")
    parameter_groups: dict[str, dict[str, float]] | Own | None = None
    teacher: str = _option("cached", FITS, "cached, views, online or paper-script")
    views: int = _option(4, FITS, "augmented views of teacher=views")
    hard: bool = _option(False, FITS, "one-hot targets from the teacher")
    order: str = _option("shuffled", FITS, "shuffled, or paper-script: one order for all epochs")
    crop_pad: int = _option(4, IMAGES, "zeros around the picture before a random crop")
    flip: bool = _option(True, IMAGES, "horizontal flips")
    patience: int = _option(0, FITS, "epochs without a better monitor before the end; 0 for any")
    monitor: str = _option("val_loss", FITS, "val_loss, val_accuracy or train_loss")
    keep: str = _option("last", FITS, "last or best: which epoch's weights")
    init_seed: int = 0
    order_seed: int = 0
    augment_seed: int = 0
    amp: str = _option("off", SPEED, "off, bf16 or fp16")
    channels_last: bool | None = _option(
        None, SPEED, "memory format (default: for convolutions in float32 on a CPU)"
    )
    compile: bool = _option(False, SPEED, "torch.compile")
    cuda_graphs: bool = _option(False, SPEED, "CUDA graphs, for small steps")
    tf32: bool = _option(False, SPEED, "products in TF32 on CUDA")
    deterministic: bool = _option(False, SPEED, "deterministic algorithms only")
    find_unused_parameters: bool = _option(
        False, SPEED, "several processes: parameters may have no part in a batch"
    )
    accumulate: int = _option(1, SPEED, "parts of a batch, to save memory")
    eval_batch: int = _option(256, SPEED, "images of a batch without gradients")
    save_seconds: float = _option(60.0, SPEED, "seconds between checkpoints within an epoch")
    tensorboard: bool = _option(False, SPEED, "TensorBoard logs beside the csv")
    extendable: bool = True

    def __post_init__(self) -> None:
        # kept as Python's own numbers: those of NumPy are equal, but cannot be written as JSON
        for name, value in checked_fields(self).items():
            object.__setattr__(self, name, value)
        check_together(self)

    def rate(self, epoch: int, batch: int, batches: int) -> float:
        """Learning rate at one position: no state, so nothing to save."""
        return self.lr * rate_factor(self, epoch, batch, batches)

    def replace(self, seed: int) -> Config:
        """The same with all three seeds set to `seed`."""
        return dataclasses.replace(self, init_seed=seed, order_seed=seed, augment_seed=seed)

    @property
    def penalty_form(self) -> str:
        """The penalty in force: AdamW and Lion have decoupled decay in place of "l2"."""
        decoupled = self.optimiser in ("adamw", "lion") and self.penalty == "l2"
        return "decoupled" if decoupled else self.penalty

    @property
    def output_temperature(self) -> float:
        """That of predictions: 1 with the loss "hinton", whose temperature is the teacher's alone."""
        return 1.0 if self.loss == "hinton" else self.temperature

    def fields(self) -> dict[str, Any]:
        """All fields as JSON has them: functions of the user's own by what they are known by."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return {
            name: identity(name, value) if callable(value) else _plain(value)
            for name, value in values.items()
        }

    def to_json(self) -> str:
        """All fields, as the text that stands beside the results."""
        return json.dumps(self.fields(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If it is no JSON object, has fields that this version does not know, or had functions of the
            user's own.
        """
        fields = read_fields(text, cls, "a configuration")
        for name in ("betas", "milestones", "class_weights"):
            if isinstance(fields.get(name), list):
                fields[name] = tuple(fields[name])
        return cls(**fields)

    def binding(self) -> dict[str, Any]:
        """The fields that a checkpoint must share with the run that resumes it.

        `epochs` is among them where the schedule counts them; otherwise it may be raised.
        """
        defaults = {one.name: one.default for one in dataclasses.fields(self)}
        free = (*_FREE, *(() if self.schedule in EPOCHS_COUNT else ("epochs",)))
        return {
            name: value
            for name, value in self.fields().items()
            if name not in free and not (name in _LATER and getattr(self, name) == defaults[name])
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
