"""Weights from files, for example checkpoints of torchvision: read without running them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from sdgpu.device.intake import check_zip

__all__ = ["load_weights"]


def load_weights(model: nn.Module, path: str | Path, *, adapt_fc: bool = False) -> nn.Module:
    """Load weights from a file, for example a checkpoint of torchvision, and nothing but weights.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place, and only after everything was checked.
    path : str or Path
        A file of ``torch.save(model.state_dict())``, read with ``weights_only=True`` so that it cannot
        run code; or a ``.safetensors`` file.
    adapt_fc : bool, default False
        If the last layer ``fc`` has another shape (other classes), keep the model's own.

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
        If the file is damaged or holds more than weights, or a name or shape differs.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    stored = dict(_read_weights(path))
    own = model.state_dict()
    # torchvision's older checkpoints lack this counter, which torch itself fills in
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    stored |= {name: own[name] for name in counters - stored.keys()}
    if adapt_fc and _shape(own, "fc.weight") != _shape(stored, "fc.weight"):
        stored |= {name: own[name] for name in ("fc.weight", "fc.bias") if name in own}
    _check_weights(path, own, stored)
    model.load_state_dict(stored, strict=True)
    return model


def _shape(weights: dict[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _read_weights(path: Path) -> dict[str, Tensor]:
    path.open("rb").close()  # what may not be read is not damaged
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _check_archive(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as it has layers
        first = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is damaged, or holds more than weights, which is refused: {first}"
        ) from error
    if not isinstance(stored, dict) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise ValueError(
            f"{path} must hold a state_dict, names with tensors: save that of the model"
        )
    return stored


def _check_archive(path: Path) -> None:
    """Compare sizes and checksums of a file of torch, which torch itself does not."""
    if not zipfile.is_zipfile(path):  # the form before torch 1.6 has none
        return
    with zipfile.ZipFile(path) as archive:
        packed = [one for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0].filename} is packed, which torch does not do")
        check_zip(archive.infolist(), path.stat().st_size)
        broken = archive.testzip()
    if broken:
        raise ValueError(
            f"{broken} fails its checksum (or was saved under set_crc32_options(False): save it again)"
        )


def _check_weights(path: Path, own: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in own if name not in stored]
    problems += [f"{name} is not known" for name in stored if name not in own]
    for name in own.keys() & stored.keys():
        if own[name].shape != stored[name].shape:
            there, here = tuple(stored[name].shape), tuple(own[name].shape)
            remedy = ""
            if name == "conv1.weight":
                remedy = " (another stem or number of channels: stem='imagenet' fits torchvision's)"
            elif name == "fc.weight":
                remedy = " (other classes: adapt_fc=True keeps the model's own last layer)"
            problems.append(f"{name} is {there} there and {here} in the model{remedy}")
    if problems:
        listed = "; ".join(sorted(problems)[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path} does not fit the model: {listed}{more}")
