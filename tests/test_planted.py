"""A pickle in place of every file that the package reads: refused by name, and never run."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import sdgpu
from sdgpu.backend.datafiles import read_dataset
from sdgpu.backend.idx_files import read_idx
from sdgpu.backend.prediction_files import read_predictions
from sdgpu.backend.rows import checked_blocks
from sdgpu.backend.zarr_layout import check_store
from sdgpu.nn.data import load_images
from sdgpu.nn.pretrained import load_weights
from sdgpu.solvers.checkpoint import Checkpoint
from sdgpu.study.networks.network_runs import open_experiment
from sdgpu.study.real_data.datasets import load
from tests.test_foreign_files import Canary


def weights(path):
    return load_weights(nn.Linear(2, 2), path)


def training(path):
    """A checkpoint of a training, resumed."""
    from sdgpu.backend.distributed import World
    from sdgpu.nn.training_files import Store

    Store(path.parent, {}).load(World(), torch.device("cpu"))


def read_rows(path):
    """All rows of a source."""
    list(checked_blocks(sdgpu.rows.open(path), 100))


def said(path):
    """Predictions of a teacher."""
    sdgpu.TeacherPredictions(path).at(np.zeros((3, 2)), np.eye(3))


ROWS = (
    "rows.parquet",
    "rows.feather",
    "rows.arrow",
    "rows.npy",
    "rows.npz",
    "rows.csv",
    "rows.tsv",
    "rows.csv.gz",
    "rows.csv.zst",
)
READERS = {
    "sweep.nc": sdgpu.open_sweep,
    "any.nc": read_dataset,
    "results.nc": lambda path: open_experiment(path.parent),
    "sweep.zarr/zarr.json": lambda path: sdgpu.open_sweep(path.parent),
    "store.zarr/zarr.json": lambda path: check_store(path.parent),
    "basis.safetensors": lambda path: Checkpoint(path, {}).load(),
    "table.npz": lambda path: load(str(path)),
    "table.csv": lambda path: load(str(path)),
    "moments.safetensors": sdgpu.open_moments,
    "predictor.safetensors": sdgpu.open_predictor,
    "space.safetensors": sdgpu.federated.open_space,
    "spectrum.safetensors": sdgpu.federated.open_spectrum,
    **{name: lambda path: read_rows(path) for name in ROWS},
    **{f"teacher.{kind}": lambda path: said(path) for kind in ("npy", "npz", "parquet")},
    "rows.zarr/zarr.json": lambda path: read_rows(path.parent),
    **{f"predictions.{kind}": read_predictions for kind in ("npy", "npz", "parquet")},
    "images.npz": lambda path: load_images(str(path)),
    "train-images-idx3-ubyte.gz": read_idx,
    "train/a/picture.png": lambda path: load_images(f"folder:{path.parents[1]}"),
    "weights.pth": weights,
    "weights.safetensors": weights,
    "checkpoint.pt": training,
    "data_batch_1": lambda path: load_images("cifar10", path.parent),
    "train": lambda path: load_images("cifar100", path.parent),
    "cifar-10-python.tar.gz": lambda path: load_images("cifar10", path.parent),
}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", READERS)
def test_no_reader_runs_a_pickle(tmp_path, name, protocol):
    canary, path = tmp_path / "canary", tmp_path / "in" / name
    payload = pickle.dumps(Canary(canary), protocol=protocol)
    path.parent.mkdir(parents=True)
    path.write_bytes(payload)
    for other in (
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "test",
    ):
        if name in ("data_batch_1", "train"):  # the readers want all of them
            path.with_name(other).write_bytes(payload)
    with pytest.raises(ValueError, match=path.name.split(".")[0]) as caught:
        READERS[name](path)
    assert not canary.exists()
    assert type(caught.value) is ValueError or "csv" in name
    pickle.loads(payload)  # the canary sings where it is let
    assert canary.exists()


def test_no_reader_runs_a_pickle_of_torch(tmp_path):
    """In the very form of torch.save."""
    canary, payload = tmp_path / "canary", Canary(tmp_path / "canary")
    for name in ("weights.pth", "checkpoint.pt"):
        for new in (True, False):
            torch.save({"weight": payload}, tmp_path / name, _use_new_zipfile_serialization=new)
            with pytest.raises(ValueError, match=name):
                READERS[name](tmp_path / name)
            assert not canary.exists()
