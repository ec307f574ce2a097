"""The trainer: what each option does to the result and to the speed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from benchmarks.gpu_check.check import Setting, Skipped
from sdgpu.nn.config import Config
from sdgpu.nn.data import load_images
from sdgpu.nn.resnet import make_model
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train

__all__ = ["compiled", "options"]

NEAR = 0.25  # of the loss: amp and another order of sums change it, a fault changes it more


def _train(setting: Setting, fields: dict[str, Any], *, distilled: bool = False) -> Any:
    data = load_images("generated", device=setting.device, rows=None if not setting.dry else 200)
    plain = {"epochs": setting.size(3, 1), "batch": setting.size(250, 40), "lr": 1e-3}
    config = Config(**{**plain, **fields})
    torch.manual_seed(0)
    model = make_model("smallcnn" if setting.dry else "resnet20", classes=10, channels=3)
    target = None
    if distilled:
        teacher = make_model("smallcnn" if setting.dry else "resnet20", classes=10, channels=3)
        target = Teacher(teacher.to(setting.device), 0.3)
    result = train(model, data, target, config)
    for parameter in result.model.parameters():
        assert parameter.device.type == setting.device, "a parameter is elsewhere"
    return result


def _compare(setting: Setting, variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found, plain = {}, _train(setting, {}).history[-1].train_loss
    for name, fields in {"plain": {}, **variants}.items():
        distilled = "teacher" in fields
        result = _train(setting, fields, distilled=distilled)
        last = result.history[-1]
        found[name] = {
            "images a second": result.images_per_second,
            "train loss": last.train_loss,
            "train accuracy": last.train_accuracy,
        }
        assert distilled or abs(last.train_loss - plain) < NEAR * plain, (
            f"{name}: {last.train_loss}, {plain}"
        )
    return found


def options(setting: Setting) -> dict[str, Any]:
    """Mixed precision, memory format, accumulated batches, teachers."""
    variants: dict[str, dict[str, Any]] = {
        "bf16": {"amp": "bf16"},
        "channels_last": {"channels_last": True},
        "bf16 and channels_last": {"amp": "bf16", "channels_last": True},
        "accumulate": {"accumulate": 2},
        "cached teacher": {"teacher": "cached"},
        "online teacher": {"teacher": "online"},
    }
    if setting.device == "cuda":
        variants |= {"fp16": {"amp": "fp16"}, "tf32": {"tf32": True}}
    return _compare(setting, variants)


def compiled(setting: Setting) -> dict[str, Any]:
    """torch.compile, and CUDA graphs."""
    if setting.dry:
        fields = dataclasses.fields(Config)
        assert {"compile", "cuda_graphs"} <= {field.name for field in fields}
        raise Skipped("torch.compile takes a compiler and a minute, CUDA graphs a GPU")
    return _compare(setting, {"cuda_graphs": {"cuda_graphs": True}, "compile": {"compile": True}})
