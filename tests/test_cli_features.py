"""``sdgpu sweep`` with features in place of the kernel matrix, and of data that are read in blocks."""

import numpy as np
import pytest
from typer.testing import CliRunner

import sdgpu
from sdgpu.cli import app
from sdgpu.study.real_data import large_data
from sdgpu.study.real_data.globe import LandMask


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    rng = np.random.default_rng(0)
    sea = np.repeat(np.repeat(rng.random((8, 12)) < 0.6, 9, axis=0), 8, axis=1)
    mask = LandMask(np.packbits(sea, axis=1))
    monkeypatch.setattr(large_data, "land_mask", lambda: mask)

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


@pytest.mark.parametrize(
    "options",
    [
        ("--features", "nystrom", "--size", 50),
        ("--features", "nystrom", "--size", 50, "--landmarks", "kmeans"),
        ("--features", "fourier", "--size", 50),
        ("--features", "own", "--kernel", "linear"),
    ],
)
def test_features_of_a_table(run, options):
    output = run("sweep", "diabetes", "--steps", 3, *options)
    assert "joint optimum" in output
    assert "features, " in output


@pytest.mark.filterwarnings("ignore:the joint optimum")
def test_the_earth(run, tmp_path):
    """A pass that is saved, and gone on from, to the same numbers; a picture and a file."""
    command = ("sweep", "earth", "--size", 40, "--steps", 3, "--lams", "1e-1:10:5")
    first = run(*command, "--checkpoint", "pass.safetensors", "--out", "one.nc", "--map", "map.png")
    assert "accuracy" in first
    assert (tmp_path / "map.png").stat().st_size > 10_000
    run(*command, "--checkpoint", "pass.safetensors", "--out", "two.nc")
    one, two = (sdgpu.open_sweep(f"{name}.nc").dataset for name in ("one", "two"))
    np.testing.assert_array_equal(one["mse"], two["mse"])
    assert float(one["mse"].min()) < 0.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("erth",), "to sweep also earth, marble, power"),
        (("diabetes", "--size", 5), "size=5 is of features: add --features nystrom"),
        (("diabetes", "--landmarks", "kmeans"), "is of features: add --features nystrom"),
        (("diabetes", "--features", "nystroem"), "did you mean 'nystrom'"),
        (("diabetes", "--features", "own"), "has no finite number of features of its own"),
        (
            ("diabetes", "--features", "own", "--size", 5, "--kernel", "linear"),
            "size=5: a kernel has",
        ),
        (("diabetes", "--features", "fourier", "--landmarks", "kmeans"), "for --features nystrom"),
        (("diabetes", "--features", "nystrom", "--size", 0), "size"),
        (
            ("diabetes", "--features", "nystrom", "--size", 9999),
            "take at most as many as there are",
        ),
        (("diabetes", "--features", "nystrom", "--method", "eigh"), "method: not for features="),
        (("diabetes", "--map", "map.png"), "--map: for earth and marble alone"),
        (("earth", "--map", "map.gif"), ".gif' is not known"),
        (("earth", "--target", "a"), "target='a' is for files, not for earth"),
        (("earth", "--classify"), "classify=True is for files, not for earth"),
        (("earth", "--rows", 0), "rows"),
        (("earth", "--checkpoint", "pass.npz"), "must end in .safetensors"),
    ],
)
def test_refusals(run, arguments, words):
    output = run("sweep", *arguments, "--steps", 2, code=2)
    assert words in " ".join(output.split())
    assert "Traceback" not in output
