"""Weights from files, checkpoints of this package or of torchvision: read without running them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdgpu.backend.copying import copy_module
from sdgpu.backend.untrusted_files import check_zip
from sdgpu.nn.resnet import STEMS, WITH_STEM, WITHOUT_STEM, make_model
from sdgpu.nn.training_files import CHECKPOINT, check_seal

__all__ = ["load_model", "load_weights"]


def load_weights(
    model: nn.Module, path: str | Path, *, adapt_fc: bool = False, member: int | None = None
) -> nn.Module:
    """Load weights from a file, for example a checkpoint of torchvision, and nothing but weights.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place, and only after everything was checked.
    path : str or Path
        A file of ``torch.save(model.state_dict())``, read with ``weights_only=True`` so that it cannot
        run code; a ``.safetensors`` file; a ``checkpoint.pt`` of :func:`~sdgpu.nn.train`, or its folder,
        finished or not.
    adapt_fc : bool, default False
        If the last layer ``fc`` has another shape (other classes), keep the model's own.
    member : int, optional
        Which network of a checkpoint of several that were trained side by side; `member` of
        :class:`~sdgpu.nn.TrainResult` and :class:`~sdgpu.nn.StepRecord`.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    PermissionError
        If it may not be read.
    ValueError
        If the file is damaged or holds more than weights, a name or shape differs, or `member` does not
        fit the file.

    Examples
    --------
    >>> import tempfile
    >>> from sdgpu.nn import Config, load_images, make_model, train
    >>> data = load_images("generated", rows=50)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trained = train(make_model("smallcnn"), data, None, Config(epochs=1, batch=45), folder=folder)
    ...     model = load_weights(make_model("smallcnn", seed=1), folder)
    >>> all(a.equal(b) for a, b in zip(model.parameters(), trained.model.parameters()))
    True
    """
    path = _file(path)
    state = model.state_dict()
    weights = dict(_of_model(path, *_read_weights(path), model, member))
    # torchvision's older checkpoints lack this counter, which torch itself fills in
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    weights |= {name: state[name] for name in counters - weights.keys()}
    if adapt_fc and _shape(state, "fc.weight") != _shape(weights, "fc.weight"):
        weights |= {name: state[name] for name in ("fc.weight", "fc.bias") if name in state}
    _check_weights(path, state, weights)
    model.load_state_dict(weights, strict=True)
    return model


def load_model(
    path: str | Path,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    member: int | None = None,
) -> nn.Module:
    """Give a trained network back, from the folder of its training or from a file of weights.

    Parameters
    ----------
    path : str or Path
        As for :func:`load_weights`: the folder that :func:`~sdgpu.nn.train` was given, one of the folders
        of a chain (``step-2``), a checkpoint, or a ``state_dict``, torchvision's among them.
    model : Module or callable, optional
        What the weights are of, or a function that builds one; copied, not changed. Not needed for
        networks of :func:`~sdgpu.nn.make_model`, which are known by names and shapes of their weights.
    member : int, optional
        As for :func:`load_weights`.

    Returns
    -------
    torch.nn.Module
        On the CPU, or where `model` is, in evaluation mode.

    Raises
    ------
    FileNotFoundError, PermissionError, ValueError
        As :func:`load_weights`; also if the weights are of no known network and `model` is not given.

    Examples
    --------
    >>> import tempfile
    >>> from sdgpu.nn import Config, load_images, predict, train
    >>> data = load_images("generated", rows=50)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trained = train(make_model("smallcnn"), data, None, Config(epochs=1, batch=45), folder=folder)
    ...     model = load_model(folder)
    >>> bool((predict(model, data.test) == predict(trained.model, data.test)).all())
    True
    """
    path = _file(path)
    if model is None:
        weights, members = _read_weights(path)
        shapes = {
            name.replace("/", ".") if members else name: tuple(tensor.shape[int(bool(members)) :])
            for name, tensor in weights.items()
        }
        fresh = _recognised(shapes)
        if fresh is None:
            raise ValueError(
                f"{path} holds weights of no network that make_model knows: give model=, a network of the "
                "kind that was trained, or a function that builds one"
            )
    else:
        fresh = copy_module(model) if isinstance(model, nn.Module) else model()
    return load_weights(fresh, path, member=member).train(False)


def _recognised(shapes: dict[str, tuple[int, ...]]) -> nn.Module | None:
    """The network of make_model whose weights have these names and shapes."""
    for name in (*WITH_STEM, *WITHOUT_STEM):
        for stem in STEMS if name in WITH_STEM else STEMS[:1]:
            with torch.device("meta"):
                like = (WITH_STEM | WITHOUT_STEM)[name](2)
            matrices = [key for key, p in like.named_parameters() if p.ndim > 1]
            if _named(like.state_dict()) != _named(shapes):
                continue
            first, last = shapes[matrices[0]], shapes[matrices[-1]]
            if len(first) != 4 or last[0] < 2:
                continue
            model = make_model(name, classes=last[0], channels=first[1], stem=stem)
            if all(tuple(t.shape) == shapes.get(k, t.shape) for k, t in model.state_dict().items()):
                return model
    return None


def _named(weights: Mapping[str, Any]) -> set[str]:
    return {name for name in weights if not name.endswith("num_batches_tracked")}


def _file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        path /= CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path


def _shape(weights: dict[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _read_weights(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """Names and tensors of a file, and how many networks these are of, if that is a stack."""
    weights: Any = None
    is_checkpoint = False
    path.open("rb").close()  # what may not be read is not damaged
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            _check_archive(path)
            content = path.read_bytes()
            weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            is_checkpoint = (
                isinstance(weights, dict) and {"format", "owner", "model"} <= weights.keys()
            )
            if is_checkpoint:
                check_seal(content)
    except Exception as error:  # a damaged file fails in as many ways as it has layers
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is damaged, or holds more than weights, which is refused: {reason}"
        ) from error
    members = weights.get("members") if is_checkpoint else None
    if is_checkpoint:
        weights = weights["model"]
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"{path} must hold a state_dict, names with tensors: save that of the model"
        )
    return weights, members


def _of_model(
    path: Path,
    weights: dict[str, Tensor],
    members: int | None,
    model: nn.Module,
    member: int | None,
) -> dict[str, Tensor]:
    """The weights of one network."""
    if members is None and member is not None:
        raise ValueError(f"member={member}, but {path} holds one network: leave it out")
    return weights if members is None else _of_stack(path, weights, model, members, member)


def _of_stack(
    path: Path, stacked: dict[str, Tensor], model: nn.Module, members: int, member: int | None
) -> dict[str, Tensor]:
    """The weights of one of several networks that were trained side by side."""
    if member is None or not 0 <= member < members:
        raise ValueError(
            f"{path} holds {members} networks that were trained side by side: give member in "
            f"0..{members - 1}, not {member}"
        )
    state = model.state_dict()
    # a stack keeps what a network does not save, and one of the names of a tensor that has several
    passing = {name for name, _ in model.named_buffers()} - state.keys()
    tensors = {name.replace("/", "."): tensor for name, tensor in stacked.items()}
    weights = {name: tensor[member] for name, tensor in tensors.items() if name not in passing}
    by_address: dict[int, str] = {}
    for name, tensor in state.items():
        first_name = by_address.setdefault(tensor.data_ptr(), name)
        if tensor.numel() and name not in weights and first_name in weights:
            weights[name] = weights[first_name]
    return weights


def _check_archive(path: Path) -> None:
    """Compare sizes and checksums of a file of torch, which torch itself does not."""
    if not zipfile.is_zipfile(path):  # the form before torch 1.6 has none
        return
    with zipfile.ZipFile(path) as archive:
        packed = [
            entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED
        ]
        if packed:
            raise ValueError(f"{packed[0].filename} is packed, which torch does not do")
        check_zip(archive.infolist(), path.stat().st_size)
        broken = archive.testzip()
    if broken:
        raise ValueError(
            f"{broken} fails its checksum (or was saved under set_crc32_options(False): save it again)"
        )


def _check_weights(path: Path, state: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in state if name not in weights]
    problems += [f"{name} is not known" for name in weights if name not in state]
    for name in state.keys() & weights.keys():
        if state[name].shape != weights[name].shape:
            stored_shape, own_shape = tuple(weights[name].shape), tuple(state[name].shape)
            remedy = ""
            if name == "conv1.weight":
                remedy = " (another stem or number of channels: stem='imagenet' fits torchvision's)"
            elif name == "fc.weight":
                remedy = " (other classes: adapt_fc=True keeps the model's own last layer)"
            problems.append(f"{name} is {stored_shape} there and {own_shape} in the model{remedy}")
    if problems:
        listing = "; ".join(sorted(problems)[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path} does not fit the model: {listing}{more}")
