"""Self-distillation of networks (Section 5): images, models and the views they are trained on."""

from sdgpu.nn.augment import Augment, normalise, order, stream
from sdgpu.nn.data import (
    Data,
    Images,
    generated_images,
    images_from_arrays,
    load_images,
    split_images,
)
from sdgpu.nn.pretrained import load_weights
from sdgpu.nn.resnet import (
    make_model,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    resnet56,
    smallcnn,
)

__all__ = [
    "Augment",
    "Data",
    "Images",
    "generated_images",
    "images_from_arrays",
    "load_images",
    "load_weights",
    "make_model",
    "normalise",
    "order",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "smallcnn",
    "split_images",
    "stream",
]
