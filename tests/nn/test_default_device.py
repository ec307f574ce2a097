"""Under torch.set_default_device nothing lands elsewhere than with the data: every tensor names its device."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.kernels import EmpiricalNTK
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.data import generated_images, images_from_arrays, split_images
from sdgpu.nn.images import find_device
from sdgpu.nn.resnet import make_model
from sdgpu.nn.stacked import train_stacked
from sdgpu.nn.trainer import train
from sdgpu.study.theory.tangent import wide_network
from tests.nn.problems import convnet, data, mlp, same_bits, state

CONFIG = Config(epochs=2, batch=10, lr=0.02, decay=0.01, crop_pad=1, accumulate=2)


@pytest.fixture
def elsewhere():
    """The device of all that names none holds no numbers at all."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize(
    "fields",
    [
        {"teacher": "views", "views": 2, "penalty": "decoupled"},
        {"teacher": "online", "optimiser": "sgd", "hard": True},
        {"teacher": "paper-script", "penalty": "paper-script", "loss": "cross-entropy"},
        {"amp": "fp16", "channels_last": True},
    ],
)
def test_training_on_the_device_of_the_data(elsewhere, tmp_path, fields):
    config = dataclasses.replace(CONFIG, save_seconds=0.0, **fields)
    dtype = torch.float32 if "amp" in fields else torch.float64
    model, parts = convnet(dtype=dtype), data()
    truth = distill_chain(model, parts, config, steps=2, alphas=0.3).models
    elsewhere()
    found = distill_chain(model, parts, config, steps=2, alphas=0.3, folder=tmp_path).models
    again = distill_chain(model, parts, config, steps=2, alphas=0.3, folder=tmp_path).models
    for one, two, three in zip(truth, found, again, strict=True):
        assert same_bits(one, two)
        assert same_bits(one, three)


def test_stacks_models_and_data_on_the_cpu(elsewhere):
    models, parts = [mlp(), mlp(1)], data()
    U = torch.stack([parts.train.one_hot(torch.float64)] * 2)
    truth = train_stacked(models, parts, U, CONFIG)
    network, pictures = make_model("smallcnn", channels=1), split_images(generated_images(60))
    elsewhere()
    for a, b in zip(train_stacked(models, parts, U, CONFIG), truth, strict=True):
        assert same_bits(a.model, b.model)
    assert same_bits(make_model("smallcnn", channels=1), network)
    assert torch.equal(split_images(generated_images(60)).train.pixels, pictures.train.pixels)
    host = images_from_arrays(np.zeros((3, 4, 4), np.uint8), [0, 1, 1])
    assert {host.pixels.device.type, host.labels.device.type} == {"cpu"}
    first = train(make_model("smallcnn", channels=3), pictures, None, CONFIG).model
    assert {p.device.type for p in first.parameters()} == {"cpu"}


@pytest.mark.parametrize("projection", [None, 64])
@pytest.mark.parametrize("memory", [None, 40_000])
def test_tangent_kernels_on_the_device_of_the_data(elsewhere, projection, memory):
    module = wide_network(4, 3, width=6, depth=2, seed=0)
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((30, 4)), rng.standard_normal((30, 2))
    kernel = EmpiricalNTK(module, projection=projection, memory=memory)
    truth = kernel(X), sdgpu.fit(X, Y, kernel, lams=[0.1]).path(0.1, 0.5, 2).predict(X[:5])
    elsewhere()
    assert torch.equal(state(wide_network(4, 3, width=6, depth=2, seed=0)), state(module))
    kernel = EmpiricalNTK(module, projection=projection, memory=memory)
    np.testing.assert_array_equal(kernel(X), truth[0])
    found = sdgpu.fit(X, Y, kernel, lams=[0.1]).path(0.1, 0.5, 2).predict(X[:5])
    np.testing.assert_allclose(found, truth[1], rtol=0, atol=1e-12 * np.abs(truth[1]).max())


MAKERS = {
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand",
    "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
ROOT = Path(sdgpu.__file__).parent
FILES = sorted(path for part in ("nn", "kernels", "study") for path in (ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_every_tensor_names_its_device(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
            and node.func.attr in MAKERS
        ):
            named = {keyword.arg for keyword in node.keywords}
            assert "device" in named, f"line {node.lineno}: torch.{node.func.attr} without device="


def test_every_rank_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert find_device("auto") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 2)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match=r"process 4 of this machine, which sees 4 CUDA devices"):
        find_device("auto")
