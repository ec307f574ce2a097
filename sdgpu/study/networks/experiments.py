"""Experiments with networks as values: data, network, training, weights and seeds, with presets.

An :class:`Experiment` says everything that decides the numbers; where the data lie, on what device and
in which folder is said where it is run (:mod:`sdgpu.study.networks.network_runs`).
"""

from __future__ import annotations

import dataclasses
import json
import numbers
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sdgpu.backend.checks import choice, integer, number
from sdgpu.nn import Config, Data, load_images, make_model
from sdgpu.nn.config_checks import FUNCTIONS, read_fields, several
from sdgpu.nn.data import NAMES
from sdgpu.nn.image_files import FORMS, split_name
from sdgpu.nn.resnet import STEMS, WITH_STEM, WITHOUT_STEM

__all__ = ["PRESETS", "Experiment", "preset"]

MODELS = (*WITH_STEM, *WITHOUT_STEM)


@dataclass(frozen=True)
class Experiment:
    """Chains of one network for several weights, Algorithm 1 and several seeds, as in Section 5.

    Every chain of a seed starts from the same weights, sees the same order and views, and shares the
    first network: they differ in the weight alpha of the ground truth alone. The last weights of every
    training are used. Fits for each seed: g (T - 1) + 1 for g given weights (those equal to 1 cost none),
    and at most 2 (T - 1) + 1 for Algorithm 1, one of them shared.

    Attributes
    ----------
    name : str
        For titles.
    data : str
        As for :func:`~sdgpu.nn.load_images`: "cifar10", "cifar100", "mnist", "digits", "generated", a path
        ``*.npz``, "idx:FOLDER" or "folder:FOLDER".
    model : str
        As for :func:`~sdgpu.nn.make_model`: "resnet50", "resnet20", "smallcnn" ...
    config : Config
        Of every fit; its three seeds give way to `seeds`.
    steps : int
        T.
    alphas : tuple of g floats
        One chain each, with this weight at every step; may be empty.
    algorithm1 : bool
        A chain with alpha-hat too.
    clip : bool
        Clip alpha-hat to [0, 1].
    seeds : tuple of int
        Of initialisation, order and augmentation.
    stem : {"cifar", "imagenet"}
        First layers of resnet18, 34 and 50.
    val : float or int
        Share or number of images on which alpha-hat is estimated, taken from the training images; 0 for
        none, without Algorithm 1.
    rows : int or None
        Use so many of the images that are not for the test.
    label_noise : float
        Share of the training and validation images that get a wrong label, see
        :func:`~sdgpu.nn.with_label_noise`; the test set keeps its own.
    size : int or None
        Height and width to which pictures from a folder are cut and scaled.
    split_seed : int
        Of these choices.
    test_as_validation : bool
        Estimate alpha-hat on the test set, as the paper's script does; its test accuracies are then not
        of unseen data.
    threads : int or None
        Of torch on the CPU while the experiment runs; None leaves what is set.

    Raises
    ------
    TypeError, ValueError
        With the name of the field, its value and what it may be.
    """

    name: str
    data: str
    model: str
    config: Config = field(default_factory=Config)
    steps: int = 5
    alphas: tuple[float, ...] = (0.0, 0.5)
    algorithm1: bool = True
    clip: bool = False
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    stem: str = "cifar"
    val: float | int = 0.1
    rows: int | None = None
    label_noise: float = 0.0
    size: int | None = None
    split_seed: int = 0
    test_as_validation: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if split_name(self.data) is None:
            forms = (f"{form}:PATH" for form in FORMS)
            choice("data", self.data, (*NAMES, "a path ending in .npz", *forms))
        choice("model", self.model, MODELS)
        choice("stem", self.stem, STEMS)
        if self.stem != "cifar" and self.model not in WITH_STEM:
            raise ValueError(
                f"stem={self.stem!r} is for {', '.join(WITH_STEM)}; {self.model} has one form"
            )
        if not isinstance(self.config, Config):
            raise TypeError(f"config must be a Config, not {type(self.config).__name__}")
        choices = FUNCTIONS | {"parameter_groups": ("settings by patterns of names",)}
        for name in choices:
            if callable(getattr(self.config, name)):
                raise ValueError(
                    f"config.{name} is a function of your own, but an experiment is all text: give one of "
                    f"{', '.join(choices[name])}, or use distill_chain"
                )
        for name in ("name", "data"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}={getattr(self, name)!r} must be a text")
        self._keep("steps", integer("steps", self.steps, 1))
        self._keep("split_seed", integer("split_seed", self.split_seed, 0))
        self._keep("label_noise", number("label_noise", self.label_noise))
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"label_noise={self.label_noise} must be a share in [0, 1)")
        for name in ("rows", "size", "threads"):
            if getattr(self, name) is not None:
                self._keep(name, integer(name, getattr(self, name), 1))
        for name in ("algorithm1", "clip", "test_as_validation"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise TypeError(f"{name}={getattr(self, name)!r} must be True or False")
            self._keep(name, bool(getattr(self, name)))
        whole = isinstance(self.val, numbers.Integral) and not isinstance(self.val, bool)
        self._keep("val", integer("val", self.val, 0) if whole else number("val", self.val))
        self._set("alphas", [number("alphas", alpha) for alpha in several("alphas", self.alphas)])
        self._set("seeds", [integer("seeds", seed, 0) for seed in several("seeds", self.seeds)])
        if not self.seeds:
            raise ValueError("seeds is empty: give at least one")
        if not self.alphas and not self.algorithm1:
            raise ValueError("alphas is empty: give a weight, or algorithm1=True")
        if self.clip and not self.algorithm1:
            raise ValueError("clip=True concerns Algorithm 1 alone: set algorithm1=True as well")
        if self.algorithm1 and not self.val and not self.test_as_validation:
            raise ValueError(
                "val=0 leaves no images to estimate alpha-hat on: give val, or algorithm1=False and alphas"
            )

    def _set(self, name: str, values: list[Any]) -> None:
        """Keep values as they were read: 1 and 1.0 are one weight, which is not to be trained twice."""
        if len(set(values)) < len(values):
            raise ValueError(f"{name}={values} names one value twice")
        self._keep(name, tuple(values))

    def _keep(self, name: str, value: Any) -> None:
        """Keep a value as Python's own, which can be written as JSON."""
        object.__setattr__(self, name, value)

    @property
    def rules(self) -> tuple[float | str, ...]:
        """The weights, and "algorithm1" last."""
        return (*self.alphas, *(["algorithm1"] if self.algorithm1 else []))

    def fits(self, rule: float | str, *, taught: bool = False) -> int:
        """Fits that a chain needs beyond the ordinary one: at most, for Algorithm 1.

        With `taught` step 1 has a teacher too, and is a fit of its own.
        """
        steps = self.steps if taught else self.steps - 1
        if isinstance(rule, str):
            return 2 * steps
        return 0 if rule == 1 else steps

    def load(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> Data:
        """Read and split the images; `folder` is where the files of CIFAR or MNIST are.

        Raises
        ------
        FileNotFoundError, TypeError, ValueError
            As :func:`~sdgpu.nn.load_images`: the message says what to put where.
        """
        return load_images(
            self.data,
            folder,
            val=self.val,
            seed=self.split_seed,
            device=device,
            test_as_validation=self.test_as_validation,
            rows=self.rows,
            label_noise=self.label_noise,
            size=self.size,
        )

    def network(self, data: Data, seed: int) -> nn.Module:
        """The network that all chains of a seed start from, on the CPU.

        Raises
        ------
        ValueError
            If the data are no images.
        """
        if len(data.train.shape) != 3:
            raise ValueError(
                f"data={self.data!r} has {data.train.kind} of shape {data.train.shape}, but {self.model} "
                "is for images (C, H, W): train a network of your own with sdgpu.nn.distill_chain"
            )
        return make_model(
            self.model,
            classes=data.train.classes,
            channels=data.train.shape[0],
            seed=seed,
            stem=self.stem,
        )

    def to_json(self) -> str:
        """All fields, as the text that stands beside the results."""
        fields = dataclasses.asdict(self) | {"config": json.loads(self.config.to_json())}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Experiment:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If it is no JSON object, or has fields that this version does not know.
        """
        fields = read_fields(text, cls, "an experiment")
        for name in ("alphas", "seeds"):
            if name in fields:
                fields[name] = tuple(fields[name])
        if "config" in fields:
            fields["config"] = Config.from_json(json.dumps(fields["config"]))
        return cls(**fields)

    def binding(self) -> dict[str, Any]:
        """What finished chains must share with a run that adds to them: not seeds, weights, steps."""
        free = ("name", "steps", "alphas", "algorithm1", "seeds", "threads")
        fields = json.loads(self.to_json())
        config = {
            f"config.{name}": value
            for name, value in json.loads(json.dumps(self.config.binding())).items()
            if not name.endswith("_seed")
        }
        config["config.epochs"] = self.config.epochs  # a chain of more epochs is another
        return {k: v for k, v in fields.items() if k not in (*free, "config")} | config


#: The paper's weights: 0, 0.1, .., 0.9.
_TENTHS = tuple(round(0.1 * k, 1) for k in range(10))

#: Experiments by name. Those whose figures are in the documentation say the memory format that they were
#: made in: another one has other last bits.
PRESETS: dict[str, Experiment] = {
    # Section 5: Adam with rate and penalty 1e-4, 75 epochs, crops of 32 from 40, flips. The paper's script
    # has the stem for ImageNet, of which the last stage sees one place of a 32 x 32 image, and chooses
    # alpha-hat on the test set; here the stem is that of CIFAR and 5,000 training images are set apart.
    "cifar10-resnet50": Experiment(
        name="cifar10-resnet50",
        data="cifar10",
        model="resnet50",
        config=Config(epochs=75, batch=128, lr=1e-4, decay=1e-4, crop_pad=4, flip=True),
        alphas=_TENTHS,
        val=5000,
    ),
    # the same with 1/87 of the parameters, which wants a larger rate to come as far in as many epochs
    "cifar10-resnet20": Experiment(
        name="cifar10-resnet20",
        data="cifar10",
        model="resnet20",
        config=Config(epochs=75, batch=128, lr=1e-3, decay=1e-4, crop_pad=4, flip=True),
        alphas=_TENTHS,
        val=5000,
    ),
    # hours on two cores: 5,000 images to train on, of the published files or of a copy of them
    # (sdgpu train copy.npz --preset cifar10-small), with --label-noise too
    "cifar10-small": Experiment(
        name="cifar10-small",
        data="cifar10",
        model="resnet20",
        config=Config(
            epochs=10,
            batch=64,
            lr=3e-3,
            decay=1e-4,
            schedule="cosine",
            crop_pad=4,
            channels_last=False,
        ),
        steps=3,
        alphas=(0.0, 0.3, 0.6, 0.9),
        seeds=(0, 1),
        val=1000,
        rows=6000,
    ),
    # minutes on two cores, with the extra mnist: 600 of MNIST's digits to train on
    "mnist": Experiment(
        name="mnist",
        data="mnist",
        model="smallcnn",
        config=Config(
            epochs=30,
            batch=50,
            lr=1e-2,
            decay=1e-4,
            schedule="cosine",
            crop_pad=2,
            flip=False,
            channels_last=False,
        ),
        alphas=(0.0, 0.4, 0.8),
        val=400,
        rows=1000,
        threads=1,
    ),
    # minutes on two cores: few training images, so that there is something to lose and to gain, and enough
    # validation images to tell weights apart; a digit that is flipped is no digit. Layers this small want
    # one thread: a fit takes 1.4 s, with two 1.8 s, and 87 s with two while another program has a core.
    "digits": Experiment(
        name="digits",
        data="digits",
        model="smallcnn",
        config=Config(
            epochs=30, batch=50, lr=3e-3, decay=1e-4, crop_pad=1, flip=False, channels_last=False
        ),
        alphas=(0.0, 0.2, 0.4, 0.6, 0.8),
        val=400,
        rows=700,
        threads=1,
    ),
}


def preset(name: str) -> Experiment:
    """Look an experiment up.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists those there are.
    """
    return PRESETS[choice("preset", name, PRESETS)]
