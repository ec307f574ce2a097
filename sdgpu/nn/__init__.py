"""Self-distillation of networks (Section 5): images, models and the views they are trained on."""

from sdgpu.nn.chain import Chain, StepRecord, distill_chain, estimate_alpha
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import Score, checksum, predict, score
from sdgpu.nn.grid import grid_chains
from sdgpu.nn.loss import data_loss, mixed_target, penalty, predictions
from sdgpu.nn.records import Epoch, TrainResult
from sdgpu.nn.stacked import Stack, bytes_per_member, train_stacked
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train

__all__ = [
    "Chain",
    "Config",
    "Epoch",
    "Score",
    "Stack",
    "StepRecord",
    "Teacher",
    "TrainResult",
    "bytes_per_member",
    "checksum",
    "data_loss",
    "distill_chain",
    "estimate_alpha",
    "grid_chains",
    "mixed_target",
    "penalty",
    "predict",
    "predictions",
    "score",
    "train",
    "train_stacked",
]
