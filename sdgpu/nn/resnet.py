"""Residual networks, a small convolutional network, and their seeds.

``resnet18``, ``resnet34`` and ``resnet50`` have the modules, names and shapes of torchvision's, so that
its checkpoints load (:mod:`sdgpu.nn.pretrained`). ``resnet20`` and ``resnet56`` are the networks for
CIFAR of He et al. (2016), Section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from sdgpu.backend.checks import choice, integer
from sdgpu.nn.augment import stream

__all__ = ["make_model", "resnet18", "resnet20", "resnet34", "resnet50", "resnet56", "smallcnn"]

STEMS = ("cifar", "imagenet")


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution with padding 1 and no bias: a batch norm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1 x 1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""

    expansion = 1

    def __init__(
        self, in_channels: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut; the 3 x 3 has the stride (torchvision)."""

    expansion = 4

    def __init__(
        self, in_channels: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, planes * self.expansion)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 planes; parameters named as in torchvision.

    Parameters
    ----------
    block : type
        :class:`BasicBlock` or :class:`Bottleneck`.
    blocks : tuple of 4 ints
        Blocks of each stage.
    classes, channels : int
        Outputs c, and channels of the images.
    stem : {"cifar", "imagenet"}
        "imagenet": a 7 x 7 convolution with stride 2 and max pooling, as torchvision and the paper's
        script have it: of a 32 x 32 image the last stage sees one place. "cifar": a 3 x 3 convolution
        with stride 1, no pooling.
    zero_init_residual : bool
        Start with the last batch norm of each block at 0, so that each block is its shortcut.

    Notes
    -----
    Initialisation is torchvision's: convolutions normal with variance 2 / fan-out (He et al. 2015),
    batch norms 1 and 0, the last layer as ``torch.nn.Linear``.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        classes: int,
        channels: int,
        *,
        stem: str,
        zero_init_residual: bool,
    ) -> None:
        super().__init__()
        _check_sizes(classes, channels)
        imagenet = choice("stem", stem, STEMS) == "imagenet"
        self.conv1 = (
            nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            if imagenet
            else conv3x3(channels, 64)
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        widths = (64, *(planes * block.expansion for planes in (64, 128, 256, 512)))
        self.layer1 = _stage(block, widths[0], 64, blocks[0], 1)
        self.layer2 = _stage(block, widths[1], 128, blocks[1], 2)
        self.layer3 = _stage(block, widths[2], 256, blocks[2], 2)
        self.layer4 = _stage(block, widths[3], 512, blocks[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[4], classes)
        _initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    planes: int,
    blocks: int,
    stride: int,
) -> nn.Sequential:
    """Blocks of one width; a 1 x 1 convolution carries the first shortcut over a change of shape."""
    out_channels = planes * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(
            conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, planes, stride, downsample)
    return nn.Sequential(first, *(block(out_channels, planes) for _ in range(blocks - 1)))


def _initialise(model: nn.Module, *, zero_init_residual: bool = False) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in model.modules():
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)


class PadShortcut(nn.Module):
    """Every second row and column, and channels of zeros: the shortcut A of He et al. (2016)."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        half = self.extra // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.extra - half))


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 planes with m blocks each: 6 m + 2 layers.

    He et al. (2016), Section 4.2, with shortcuts of kind A: a change of shape adds no parameters.
    """

    def __init__(self, blocks: int, classes: int, channels: int) -> None:
        super().__init__()
        _check_sizes(classes, channels)
        self.conv1 = conv3x3(channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16) for _ in range(blocks)))
        self.layer2 = _widening_stage(16, blocks)
        self.layer3 = _widening_stage(32, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _widening_stage(planes: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(planes, 2 * planes, 2, PadShortcut(planes))
    return nn.Sequential(first, *(BasicBlock(2 * planes, 2 * planes) for _ in range(blocks - 1)))


def resnet18(
    classes: int = 10, stem: str = "cifar", channels: int = 3, *, zero_init_residual: bool = False
) -> ResNet:
    """ResNet-18: basic blocks 2, 2, 2, 2. See :class:`ResNet`."""
    return ResNet(
        block=BasicBlock,
        blocks=(2, 2, 2, 2),
        classes=classes,
        channels=channels,
        stem=stem,
        zero_init_residual=zero_init_residual,
    )


def resnet34(
    classes: int = 10, stem: str = "cifar", channels: int = 3, *, zero_init_residual: bool = False
) -> ResNet:
    """ResNet-34: basic blocks 3, 4, 6, 3. See :class:`ResNet`."""
    return ResNet(
        block=BasicBlock,
        blocks=(3, 4, 6, 3),
        classes=classes,
        channels=channels,
        stem=stem,
        zero_init_residual=zero_init_residual,
    )


def resnet50(
    classes: int = 10, stem: str = "cifar", channels: int = 3, *, zero_init_residual: bool = False
) -> ResNet:
    """ResNet-50, the network of the paper's Section 5: bottlenecks 3, 4, 6, 3. See :class:`ResNet`."""
    return ResNet(
        block=Bottleneck,
        blocks=(3, 4, 6, 3),
        classes=classes,
        channels=channels,
        stem=stem,
        zero_init_residual=zero_init_residual,
    )


def resnet20(classes: int = 10, channels: int = 3) -> CifarResNet:
    """ResNet-20 for small images (270 thousand parameters). See :class:`CifarResNet`."""
    return CifarResNet(3, classes, channels)


def resnet56(classes: int = 10, channels: int = 3) -> CifarResNet:
    """ResNet-56 for small images (853 thousand parameters). See :class:`CifarResNet`."""
    return CifarResNet(9, classes, channels)


def smallcnn(classes: int = 10, channels: int = 1, width: int = 16) -> nn.Sequential:
    """Three 3 x 3 convolutions with batch norm, of width, 2 width and 4 width planes, for demonstrations.

    The second and third have stride 2, so that images of 4 x 4 and more will do.

    Examples
    --------
    >>> import torch
    >>> smallcnn()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    _check_sizes(classes, channels)
    widths = (channels, *(integer("width", width, 1) * factor for factor in (1, 2, 4)))
    layers: list[nn.Module] = []
    for index, (in_channels, out_channels) in enumerate(pairwise(widths)):
        layers += [
            conv3x3(in_channels, out_channels, 2 if index else 1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)
    )
    _initialise(model)
    return model


WITH_STEM: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}
WITHOUT_STEM: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "smallcnn": smallcnn,
}


def _check_sizes(classes: int, channels: int) -> None:
    integer("classes", classes, 2)
    integer("channels", channels, 1)


def make_model(
    name_or_factory: str | Callable[[], nn.Module],
    *,
    classes: int = 10,
    channels: int = 3,
    seed: int = 0,
    stem: str = "cifar",
) -> nn.Module:
    """Build a network with seeded weights; the caller's random numbers stay untouched.

    Parameters
    ----------
    name_or_factory : str or callable
        "resnet18", "resnet20", "resnet34", "resnet50", "resnet56" or "smallcnn"; or a function without
        arguments that builds a ``torch.nn.Module`` on the CPU with `classes` outputs, for which
        `channels` and `stem` have no meaning.
    classes : int, default 10
        Outputs c.
    channels : int, default 3
        Channels of the images.
    seed : int, default 0
        The weights are a function of it: stream "init" of :func:`~sdgpu.nn.augment.stream`.
    stem : {"cifar", "imagenet"}, default "cifar"
        First layers of resnet18, 34 and 50; the others have one form. The paper's run used
        "imagenet".

    Returns
    -------
    torch.nn.Module
        On the CPU, in training mode.

    Raises
    ------
    TypeError
        If the factory is no function (a network, say) or gives no ``torch.nn.Module``.
    ValueError
        For an unknown name or stem, a stem that a network does not have, or weights that the factory
        made elsewhere than on the CPU, where the seed does not reach.

    Examples
    --------
    >>> one, two = (make_model("smallcnn", channels=1, seed=3) for _ in range(2))
    >>> all(bool((p == q).all()) for p, q in zip(one.parameters(), two.parameters()))
    True
    """
    _check_sizes(classes, channels)
    choice("stem", stem, STEMS)
    if isinstance(name_or_factory, str):
        factory = _factory(name_or_factory, classes, channels, stem)
    elif callable(name_or_factory) and not isinstance(name_or_factory, nn.Module):
        factory = name_or_factory
    else:
        raise TypeError(
            f"name_or_factory must be the name of a network or a function that builds a new one, not "
            f"{type(name_or_factory).__name__}: a network that exists has its weights already"
        )
    init_seed = stream(seed, "init").initial_seed()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # only the CPU's: torch.manual_seed would also reach the generators of CUDA
        torch.default_generator.manual_seed(init_seed)
        model = factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"the factory gave {type(model).__name__}, not a torch.nn.Module")
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise ValueError(
                f"the factory made {name} on {parameter.device}, where seed={seed} does not reach: "
                "build the network on the CPU"
            )
    return model.train()


def _factory(name: str, classes: int, channels: int, stem: str) -> Callable[[], nn.Module]:
    """Return the function that builds a known network."""
    choice("name_or_factory", name, (*WITH_STEM, *WITHOUT_STEM))
    if name in WITH_STEM:
        return partial(WITH_STEM[name], classes, stem, channels)
    if stem != "cifar":
        raise ValueError(f"stem={stem!r} is for {', '.join(WITH_STEM)}; {name} has one form")
    return partial(WITHOUT_STEM[name], classes, channels)
