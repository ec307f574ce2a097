from .agreement import Consensus, consensus
from .alpha_hat import estimate_alpha
from .augment import Augment, normalise, order, stream
from .chain import distill_chain
from .chain_records import Chain, StepRecord
from .config import Config
from .data import Data, Images, generated_images, images_from_arrays, load_images, split_images
from .evaluate import Score, checksum, confusion_matrix, predict, score, top_k_accuracy
from .grid import grid_chains
from .label_noise import with_label_noise
from .loaded_parts import LoadedSamples
from .loaded_samples import loaded_samples
from .loss import data_loss, hinton_target, mixed_target, penalty, predictions
from .model_outputs import with_output
from .network_teachers import SavedTeacher, Teacher, TeacherEnsemble
from .optimisers import Lion
from .own_data import make_data
from .pretrained import load_model, load_weights
from .records import Epoch, FitLabel, TrainResult
from .resnet import make_model, resnet18, resnet20, resnet34, resnet50, resnet56, smallcnn
from .samples import Samples, samples_from_arrays
from .stacked import Stack, bytes_per_member, train_stacked
from .trainer import train

__all__ = [
    "Augment",
    "Chain",
    "Config",
    "Consensus",
    "Data",
    "Epoch",
    "FitLabel",
    "Images",
    "Lion",
    "LoadedSamples",
    "Samples",
    "SavedTeacher",
    "Score",
    "Stack",
    "StepRecord",
    "Teacher",
    "TeacherEnsemble",
    "TrainResult",
    "bytes_per_member",
    "checksum",
    "confusion_matrix",
    "consensus",
    "data_loss",
    "distill_chain",
    "estimate_alpha",
    "generated_images",
    "grid_chains",
    "hinton_target",
    "images_from_arrays",
    "load_images",
    "load_model",
    "load_weights",
    "loaded_samples",
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
    "top_k_accuracy",
    "train",
    "train_stacked",
    "with_label_noise",
    "with_output",
]
