"""Self-distillation of networks (Section 5): images, views, models, training and chains."""

from sdgpu.nn.alpha_hat import estimate_alpha
from sdgpu.nn.augment import Augment, normalise, order, stream
from sdgpu.nn.chain import Chain, StepRecord, distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.data import (
    Data,
    Images,
    generated_images,
    images_from_arrays,
    load_images,
    split_images,
)
from sdgpu.nn.evaluate import Score, checksum, predict, score
from sdgpu.nn.grid import grid_chains
from sdgpu.nn.loss import data_loss, mixed_target, penalty, predictions
from sdgpu.nn.pretrained import load_weights
from sdgpu.nn.records import Epoch, TrainResult
from sdgpu.nn.resnet import make_model, resnet18, resnet20, resnet34, resnet50, resnet56, smallcnn
from sdgpu.nn.stacked import Stack, bytes_per_member, train_stacked
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train

__all__ = [
    "Augment",
    "Chain",
    "Config",
    "Data",
    "Epoch",
    "Images",
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
    "generated_images",
    "grid_chains",
    "images_from_arrays",
    "load_images",
    "load_weights",
    "make_model",
    "mixed_target",
    "normalise",
    "order",
    "penalty",
    "predict",
    "predictions",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "score",
    "smallcnn",
    "split_images",
    "stream",
    "train",
    "train_stacked",
]
