"""Models and data sets with the interfaces of timm, Hugging Face and torchvision, which are not installed."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image
from torch import nn


class VisionTransformer(nn.Module):
    """As timm's: names of parameters, no_weight_decay(), a forward pass in two halves."""

    def __init__(self, size=4, channels=1, classes=3, width=8, depth=1):
        super().__init__()
        self.num_classes = classes
        self.patch_embed = nn.Conv2d(channels, width, 2, stride=2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (size // 2) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.head_dist = None

    def no_weight_decay(self):
        return {"pos_embed", "cls_token", "dist_token"}

    def forward_features(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))

    def forward_head(self, x, pre_logits=False):
        x = x[:, 0]
        return x if pre_logits else self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ModelOutput(OrderedDict):
    """As transformers': a dataclass that is a dictionary, and indexed like a tuple too."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                self[field.name] = value

    def __getitem__(self, key):
        if isinstance(key, str):
            return dict(self.items())[key]
        return tuple(self.values())[key]


@dataclass
class ImageClassifierOutput(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor = None
    hidden_states: tuple | None = None


class ForImageClassification(nn.Module):
    """As transformers': an encoder, a head, and an object with `.logits`."""

    def __init__(self, inputs=16, width=8, classes=3):
        super().__init__()
        self.encoder = nn.Linear(inputs, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, pixel_values, labels=None, output_hidden_states=False):
        hidden = torch.tanh(self.encoder(pixel_values.flatten(1)))
        states = (hidden,) if output_hidden_states else None
        return ImageClassifierOutput(logits=self.classifier(hidden), hidden_states=states)


@dataclass
class SequenceClassifierOutput(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor = None


class ForSequenceClassification(nn.Module):
    """As transformers' of texts; the embedding of the words is tied to a projection of the head."""

    def __init__(self, words=11, width=6, classes=3):
        super().__init__()
        self.embeddings = nn.Embedding(words, width)
        self.position_embeddings = nn.Parameter(torch.zeros(1, 7, width))
        self.LayerNorm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, words, bias=False)
        self.decoder.weight = self.embeddings.weight
        self.classifier = nn.Linear(words, classes)

    def forward(self, input_ids):
        x = self.LayerNorm(self.embeddings(input_ids) + self.position_embeddings)
        return SequenceClassifierOutput(logits=self.classifier(self.decoder(x.mean(dim=1))))


def seeded(make, *arguments, dtype=torch.float64, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*arguments, **options).to(dtype)


class FakeCIFAR(torch.utils.data.Dataset):
    """As torchvision's: `data` and `targets`, PIL images, transform and target_transform."""

    def __init__(self, n=34, size=6, classes=3, transform=None, target_transform=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.data = torch.randint(0, 256, (n, size, size, 3), generator=generator).byte().numpy()
        self.targets = [row % classes for row in range(n)]
        self.classes = [f"class {label}" for label in range(classes)]
        self.transform, self.target_transform = transform, target_transform

    def __getitem__(self, index):
        image, target = Image.fromarray(self.data[index]), self.targets[index]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def __len__(self):
        return len(self.data)


class Compose:
    """As torchvision.transforms'."""

    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)


class Normalize:
    def __call__(self, tensor):
        return (tensor - 0.5) / 0.25


class RandomCrop:
    """Draws from torch's global generator, as torchvision's does."""

    def __call__(self, image):
        wide = np.pad(np.array(image), ((1, 1), (1, 1), (0, 0)))
        top, left = torch.randint(0, 3, (2,)).tolist()
        height, width = np.array(image).shape[:2]
        return Image.fromarray(wide[top : top + height, left : left + width])


class RandomHorizontalFlip:
    def __call__(self, image):
        return image.transpose(Image.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image


class OldNoise:
    """Draws from NumPy's and Python's global generators, as older code does."""

    def __call__(self, tensor):
        return tensor + 0.1 * float(np.random.normal()) + 0.1 * random.random()  # noqa: NPY002


class OwnNoise:
    """Draws from a generator of its own, which nobody can seed."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __call__(self, tensor):
        return tensor + float(self.generator.normal())


class HuggingFace:
    """As datasets.Dataset: columns, items that are dictionaries, items in batches, transforms."""

    def __init__(self, columns, transform=None):
        self.columns, self.transform = columns, transform
        self.batches = 0

    @property
    def column_names(self):
        return list(self.columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def with_format(self, kind=None):
        return HuggingFace(self.columns)

    def with_transform(self, transform):
        return HuggingFace(self.columns, transform)

    def __getitem__(self, key):
        if isinstance(key, str):
            return list(self.columns[key])
        return self.__getitems__([key])[0]

    def __getitems__(self, keys):
        self.batches += 1
        batch = {name: [column[key] for key in keys] for name, column in self.columns.items()}
        if self.transform is not None:
            batch = self.transform(batch)
        return [{name: batch[name][row] for name in batch} for row in range(len(keys))]
