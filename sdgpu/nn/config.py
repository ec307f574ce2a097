"""The configuration of a training: everything but the model and the data, checked and saved as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from sdgpu.nn.config_checks import check_together, checked_fields, read_fields
from sdgpu.nn.learning_rates import rate_factor

__all__ = ["FITS", "IMAGES", "SPEED", "Config"]

# what changes how a run is carried out, not what it computes: a checkpoint may be resumed with others
_FREE = ("eval_batch", "find_unused_parameters", "save_seconds", "tensorboard")


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
    optimiser : {"adam", "sgd"}
    betas : tuple of two floats; momentum : float; nesterov : bool
        Of Adam; of SGD.
    schedule : {"constant", "cosine", "linear", "milestones"}
        Of the learning rate, a function of the position: down to 0 at the end as a half cosine or a
        line, or times `drop` at each epoch in `milestones`.
    warmup : float
        Epochs over which the rate rises linearly, to `lr` and never beyond.
    loss, activation, temperature
        See :func:`~sdgpu.nn.loss.data_loss`.
    penalty : {"l2", "decoupled", "paper-script"}
        decay/2 ||theta||^2 in the loss, as in (18); decoupled weight decay, theta <- (1 - rate decay)
        theta (AdamW); or the norms that the paper's script adds, not squared.
    decay : float
        Weight of the penalty against the **mean** loss of a row: lam / n for lam of (18).
    penalty_covers : {"all", "weights"}
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
    init_seed, order_seed, augment_seed : int
        Of the weights (where a chain builds the model), of the order, of augmentation and dropout. Dropout
        draws on every rank for itself, so its masks depend on the number of processes; nothing else does.
    amp : {"off", "bf16", "fp16"}
        Autocast while it trains; "fp16" with a gradient scaler, which skips a batch that overflows: it
        changes nothing, and counts in no mean of losses. Evaluation is in float32.
    channels_last, compile, cuda_graphs, tf32, deterministic : bool
        Memory format; torch.compile; the same with CUDA graphs, for small steps; TF32 products on CUDA;
        deterministic algorithms only (on CUDA with CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment).
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

    Raises
    ------
    TypeError, ValueError
        With the name of the field, its value and what it may be.
    """

    epochs: int = _option(75, FITS, "passes over the images")
    batch: int = _option(128, FITS, "images of one optimiser step")
    lr: float = _option(1e-4, FITS, "largest learning rate")
    optimiser: str = _option("adam", FITS, "adam or sgd")
    betas: tuple[float, float] = _option((0.9, 0.999), FITS, "two of adam, for example 0.9,0.999")
    momentum: float = _option(0.9, FITS, "of sgd")
    nesterov: bool = _option(False, FITS, "of sgd")
    schedule: str = _option("constant", FITS, "constant, cosine, linear or milestones")
    warmup: float = _option(0.0, FITS, "epochs over which the rate rises")
    milestones: tuple[int, ...] = _option(
        (), FITS, "epochs at which the rate drops, for example 30,60"
    )
    drop: float = _option(0.1, FITS, "factor of the rate at a milestone")
    loss: str = _option("squared", FITS, "squared (of probabilities) or cross-entropy")
    activation: str = _option("softmax", FITS, "softmax or identity")
    temperature: float = _option(1.0, FITS, "of the softmax")
    penalty: str = _option("l2", FITS, "l2, decoupled or paper-script")
    decay: float = _option(1e-4, FITS, "weight of the penalty")
    penalty_covers: str = _option("all", FITS, "all or weights")
    teacher: str = _option("cached", FITS, "cached, views, online or paper-script")
    views: int = _option(4, FITS, "augmented views of teacher=views")
    hard: bool = _option(False, FITS, "one-hot targets from the teacher")
    order: str = _option("shuffled", FITS, "shuffled, or paper-script: one order for all epochs")
    crop_pad: int = _option(4, IMAGES, "zeros around the picture before a random crop")
    flip: bool = _option(True, IMAGES, "horizontal flips")
    init_seed: int = 0
    order_seed: int = 0
    augment_seed: int = 0
    amp: str = _option("off", SPEED, "off, bf16 or fp16")
    channels_last: bool = _option(False, SPEED, "memory format")
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

    def to_json(self) -> str:
        """All fields, as the text that stands beside the results."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If it is no JSON object, or has fields that this version does not know.
        """
        fields = read_fields(text, cls, "a configuration")
        for name in ("betas", "milestones"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return cls(**fields)

    def binding(self) -> dict[str, Any]:
        """The fields that a checkpoint must share with the run that resumes it."""
        fields = dataclasses.asdict(self)
        return {name: _plain(value) for name, value in fields.items() if name not in _FREE}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
