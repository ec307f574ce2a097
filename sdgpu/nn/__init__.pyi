from .alpha_hat import estimate_alpha
from .augment import Augment, normalise, order, stream
from .chain import Chain, StepRecord, distill_chain
from .config import Config
from .data import Data, Images, generated_images, images_from_arrays, load_images, split_images
from .evaluate import Score, checksum, predict, score
from .grid import grid_chains
from .label_noise import with_label_noise
from .loss import data_loss, mixed_target, penalty, predictions
from .own_data import make_data
from .pretrained import load_weights
from .records import Epoch, TrainResult
from .resnet import make_model, resnet18, resnet20, resnet34, resnet50, resnet56, smallcnn
from .samples import Samples, samples_from_arrays
from .stacked import Stack, bytes_per_member, train_stacked
from .targets import Teacher
from .trainer import train

__all__ = [
    "Augment",
    "Chain",
    "Config",
    "Data",
    "Epoch",
    "Images",
    "Samples",
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
    "make_data",
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
    "samples_from_arrays",
    "score",
    "smallcnn",
    "split_images",
    "stream",
    "train",
    "train_stacked",
    "with_label_noise",
]
