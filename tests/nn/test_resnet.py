"""Networks against torchvision's names and shapes, written out here anew; seeds; files of weights."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

from sdgpu.nn.pretrained import load_weights
from sdgpu.nn.resnet import (
    CifarResNet,
    PadShortcut,
    make_model,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    resnet56,
    smallcnn,
)
from tests.damage import cut, damages, flipped, zeroed


def batch_norm(name, planes):
    vectors = ("weight", "bias", "running_mean", "running_var")
    return [(f"{name}.{vector}", (planes,)) for vector in vectors] + [
        (f"{name}.num_batches_tracked", ())
    ]


def torchvision_names(blocks, convolutions, expansion, classes=1000):
    """List (name, shape) of torchvision's state_dict; `convolutions` of a block: (size, in, out).

    The widths of a block's convolutions are multiples of its planes, "in" is what comes in.
    """
    names = [("conv1.weight", (64, 3, 7, 7)), *batch_norm("bn1", 64)]
    incoming = 64
    for stage, (count, planes) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        for block in range(count):
            start = f"layer{stage}.{block}"
            width = incoming
            for i, (size, factor) in enumerate(convolutions, 1):
                out = factor * planes
                names.append((f"{start}.conv{i}.weight", (out, width, size, size)))
                names += batch_norm(f"{start}.bn{i}", out)
                width = out
            # of resnet18 and 34 the first stage keeps its shape, of resnet50 it widens
            if block == 0 and (stage > 1 or expansion > 1):
                names.append((f"{start}.downsample.0.weight", (width, incoming, 1, 1)))
                names += batch_norm(f"{start}.downsample.1", width)
            incoming = width
    return [*names, ("fc.weight", (classes, 512 * expansion)), ("fc.bias", (classes,))]


BASIC = [(3, 1), (3, 1)]
BOTTLENECK = [(1, 1), (3, 1), (1, 4)]


@pytest.mark.parametrize(
    ("build", "names", "parameters"),
    [
        (resnet18, torchvision_names((2, 2, 2, 2), BASIC, 1), 11_689_512),
        (resnet34, torchvision_names((3, 4, 6, 3), BASIC, 1), 21_797_672),
        (resnet50, torchvision_names((3, 4, 6, 3), BOTTLENECK, 4), 25_557_032),
    ],
)
def test_names_and_shapes_are_torchvisions(build, names, parameters):
    model = build(classes=1000, stem="imagenet")
    assert [(name, tuple(value.shape)) for name, value in model.state_dict().items()] == names
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_some_names_from_memory_of_the_published_checkpoint():
    """What the list above is generated from might share a slip with the code: these are literal."""
    state = resnet50(classes=1000, stem="imagenet").state_dict()
    assert len(state) == 320
    for name, shape in {
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.running_mean": (256,),
        "layer2.0.conv1.weight": (128, 256, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer3.5.conv3.weight": (1024, 256, 1, 1),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "layer4.2.bn3.num_batches_tracked": (),
        "fc.weight": (1000, 2048),
    }.items():
        assert tuple(state[name].shape) == shape
    assert len(resnet18(classes=1000, stem="imagenet").state_dict()) == 122


def test_strides_stand_where_torchvision_has_them():
    model = resnet50()
    assert model.layer2[0].conv1.stride == (1, 1)
    assert model.layer2[0].conv2.stride == model.layer2[0].downsample[0].stride == (2, 2)
    assert model.layer1[0].conv2.stride == (1, 1)
    assert resnet18().layer2[0].conv1.stride == (2, 2)


@pytest.mark.parametrize(
    ("stem", "sizes"), [("imagenet", (16, 8, 8, 4, 2, 1)), ("cifar", (32, 32, 32, 16, 8, 4))]
)
def test_stems(stem, sizes):
    model = resnet18(stem=stem).eval()
    x = torch.zeros(2, 3, 32, 32)
    found = []
    for layer in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        x = getattr(model, layer)(x)
        found.append(x.shape[-1])
    assert tuple(found) == sizes
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def by_hand(block, x):
    """A basic block in evaluation mode, from its weights."""

    def norm(bn, x):
        centred = x - bn.running_mean[:, None, None]
        scaled = centred / (bn.running_var + bn.eps).sqrt()[:, None, None]
        return scaled * bn.weight[:, None, None] + bn.bias[:, None, None]

    stride = block.conv1.stride
    inner = nn.functional.conv2d(x, block.conv1.weight, stride=stride, padding=1)
    inner = norm(block.bn1, inner).clamp(min=0)
    inner = norm(block.bn2, nn.functional.conv2d(inner, block.conv2.weight, padding=1))
    if isinstance(block.downsample, PadShortcut):
        shortcut = torch.zeros_like(inner)
        shortcut[:, x.shape[1] // 2 : -(x.shape[1] // 2)] = x[:, :, ::2, ::2]
    elif block.downsample is not None:
        shortcut = norm(
            block.downsample[1], nn.functional.conv2d(x, block.downsample[0].weight, stride=stride)
        )
    else:
        shortcut = x
    return (inner + shortcut).clamp(min=0)


@pytest.mark.parametrize(
    ("build", "widths"), [(resnet20, (16, 16, 32)), (lambda: resnet18(stem="cifar"), (64, 64, 128))]
)
def test_blocks_compute_what_they_should(build, widths):
    model = build().double()
    torch.manual_seed(0)
    model(torch.randn(8, 3, 8, 8, dtype=torch.float64))  # running statistics that are not 0 and 1
    model.eval()
    for layer, width in zip((model.layer1, model.layer2, model.layer3), widths, strict=True):
        x = torch.randn(2, width, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(layer[0](x), by_hand(layer[0], x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("build", "m"), [(resnet20, 3), (resnet56, 9)])
def test_cifar_networks_have_the_published_size(build, m):
    """6 m + 2 layers with weights; shortcuts A add no parameters."""
    model = build()
    assert isinstance(model, CifarResNet)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) + 1 == 6 * m + 2
    expected = 27 * 16 + 2 * 16 + 64 * 10 + 10
    for narrow, wide in ((16, 16), (16, 32), (32, 64)):
        expected += 9 * narrow * wide + (2 * m - 1) * 9 * wide * wide + 2 * m * 2 * wide
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_initialisation():
    model = make_model("resnet18", seed=1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            deviation = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            weight = module.weight.detach()
            count = weight.numel()
            # five standard errors of the mean and of the deviation of so many normal numbers
            assert abs(float(weight.mean())) < 5 * deviation / count**0.5
            assert abs(float(weight.std()) / deviation - 1) < 5 / (2 * count) ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all() and (module.bias == 0).all())
    assert bool((resnet18(zero_init_residual=True).layer3[1].bn2.weight == 0).all())
    assert bool((resnet50(zero_init_residual=True).layer3[1].bn3.weight == 0).all())


def equal(one, two):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def custom():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize("name", ["resnet20", "smallcnn", custom])
def test_seeds(name):
    torch.manual_seed(9)
    state = torch.get_rng_state()
    one = make_model(name, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(10)
    assert equal(one, make_model(name, seed=1))
    assert not equal(one, make_model(name, seed=2))
    assert one.training


def test_a_factory_that_fails_leaves_the_random_numbers_alone():
    def fail():
        torch.rand(3)
        raise RuntimeError("no")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        make_model(fail)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet20", "resnet34", "resnet50", "resnet56", "smallcnn"]
)
def test_sizes_reach_the_network(name):
    model = make_model(name, classes=7, channels=1).eval()
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 7)


def test_bad_names():
    with pytest.raises(ValueError, match=r"'resnet19' is not known: did you mean 'resnet1?"):
        make_model("resnet19")
    with pytest.raises(ValueError, match=r"stem='imagnet' is not known: did you mean 'imagenet'"):
        make_model("resnet18", stem="imagnet")
    with pytest.raises(ValueError, match="stem='imagenet' is for resnet18"):
        make_model("resnet20", stem="imagenet")
    with pytest.raises(ValueError, match="classes=1 must be at least 2"):
        make_model(custom, classes=1)
    with pytest.raises(ValueError, match="channels=0 must be at least 1"):
        resnet50(channels=0)
    with pytest.raises(ValueError, match="width=0 must be at least 1"):
        smallcnn(width=0)
    with pytest.raises(TypeError, match="must be the name of a network or a function"):
        make_model(custom())
    with pytest.raises(TypeError, match=r"the factory gave int, not a torch.nn.Module"):
        make_model(lambda: 3)
    with pytest.raises(ValueError, match="made weight on meta, where seed=0 does not reach"):
        make_model(lambda: nn.Linear(2, 2, device="meta"))


def test_weights_come_back(tmp_path):
    source, target = (make_model("resnet18", stem="imagenet", seed=seed) for seed in (1, 2))
    torch.save(source.state_dict(), tmp_path / "r18.pth")
    assert load_weights(target, tmp_path / "r18.pth") is target
    assert equal(source, target)
    # as torchvision's checkpoints from before torch counted batches
    old = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    target = make_model("resnet18", stem="imagenet", seed=3)
    assert equal(source, load_weights(target, str(tmp_path / "old.pth")))


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    source, target = (make_model("smallcnn", seed=seed) for seed in (1, 2))
    save_file(source.state_dict(), tmp_path / "small.safetensors")
    assert equal(source, load_weights(target, tmp_path / "small.safetensors"))


def test_other_classes_only_if_asked(tmp_path):
    source = make_model("resnet18", classes=20, stem="imagenet", seed=1)
    torch.save(source.state_dict(), tmp_path / "r18.pth")
    target = make_model("resnet18", stem="imagenet", seed=2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"fc.weight is \(20, 512\) there .* adapt_fc=True"):
        load_weights(target, tmp_path / "r18.pth")
    # nothing has changed
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    load_weights(target, tmp_path / "r18.pth", adapt_fc=True)
    assert torch.equal(target.fc.weight, before["fc.weight"])
    assert torch.equal(target.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_weights_that_do_not_fit(tmp_path):
    model = make_model("resnet18", seed=1)
    torch.save(make_model("resnet18", stem="imagenet").state_dict(), tmp_path / "stem.pth")
    with pytest.raises(ValueError, match=r"conv1.weight is \(64, 3, 7, 7\) there .*another stem"):
        load_weights(model, tmp_path / "stem.pth")
    torch.save(make_model("resnet34").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"layer1.2.bn1.bias is not known.*and \d+ more"):
        load_weights(model, tmp_path / "other.pth")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="must hold a state_dict"):
        load_weights(model, tmp_path / "nested.pth")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_weights(model, tmp_path / "none.pth")
    whole = tmp_path / "stem.pth"
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    for name in ("cut.pth", "cut.safetensors"):
        with pytest.raises(ValueError, match="is damaged, or holds more than weights"):
            load_weights(model, tmp_path / name)


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_weights_are_named(tmp_path, legacy):
    """A file of torch carries CRC-32 of its parts, which torch itself does not look at."""
    path, silent = tmp_path / "w.pth", 0
    source = torch.nn.Sequential(torch.nn.Linear(20, 5), torch.nn.Linear(5, 2))
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    kinds = (cut,) if legacy else (flipped, cut, zeroed)  # the older form has no checksums
    for found in damages(path.read_bytes(), 8, *kinds):
        path.write_bytes(found)
        target = torch.nn.Sequential(torch.nn.Linear(20, 5), torch.nn.Linear(5, 2))
        try:
            load_weights(target, path)
        except ValueError as error:
            silent += str(path) not in str(error)
        else:
            silent += not equal(source, target)
    assert silent == 0


def test_weights_that_ask_for_memory_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.writestr("archive/data/0", bytes(10**6))
    with pytest.raises(ValueError, match="packed, which torch does not do"):
        load_weights(make_model("resnet18"), tmp_path / "w.pth")


def test_unreadable_weights_are_not_damaged(tmp_path, monkeypatch):
    (tmp_path / "w.pth").touch()

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "w.pth")

    monkeypatch.setattr(type(tmp_path), "open", refused)  # root may read everything
    with pytest.raises(PermissionError):
        load_weights(make_model("resnet18"), tmp_path / "w.pth")


def test_weights_never_run_code(tmp_path):
    torch.save({"fc.weight": Hostile(tmp_path / "ran")}, tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "ran"), protocol=2))
    (tmp_path / "ran").unlink(missing_ok=True)
    for name in ("bad.pth", "plain.pth"):
        with pytest.raises(ValueError, match="holds more than weights, which is refused"):
            load_weights(make_model("resnet18"), tmp_path / name)
    assert not (tmp_path / "ran").exists()
