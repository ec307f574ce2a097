"""Two processes that find each other as under torchrun: the same results as one, and one that prints."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import sdgpu
from tests.problems import assert_near, finish
from tests.rank_processes import ROOT, free_port, run_ranks
from tests.ranks import cuts, on_ranks

LIMIT = 240.0  # seconds for a pair of processes on a busy machine

FIT = """
import json, os, sys
import numpy as np, sdgpu
rank = int(os.environ["RANK"])
rng = np.random.default_rng(0)
X = rng.standard_normal((300, 3))
Y = np.sin(X @ rng.standard_normal((3, 2)))
rows = [slice(0, 120), slice(120, 300)][rank]
fit = sdgpu.fit(X[rows], Y[rows], sdgpu.Gaussian(0.5), [0.1, 10.0], distributed=True, method=sys.argv[1],
    tol=1e-9, dtype="float64")
path = fit.path(0.1, 0.4, 3)
sweep = fit.sweep(X[rows][:9 - 9 * rank], Y[rows][:9 - 9 * rank] + 0.1, steps=3)
found = {"fitted": path.fitted, "predicted": path.predict(X[rank :: 50]),
    "mse": sweep.dataset["mse"].values}
print(json.dumps({"status": fit.info.status} | {name: array.tolist() for name, array in found.items()}))
"""


def same_problem():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 3))
    return X, np.sin(X @ rng.standard_normal((3, 2)))


@pytest.mark.parametrize("method", ["subspace", "lanczos"])
def test_two_processes(method):
    told = [json.loads(text) for text in run_ranks(FIT, 2, method, limit=LIMIT)]
    X, Y = same_problem()
    how = {"method": method, "tol": 1e-9, "dtype": "float64"}
    one = sdgpu.fit(X, Y, sdgpu.Gaussian(0.5), [0.1, 10.0], **how)
    path = one.path(0.1, 0.4, 3)
    fitted = np.concatenate([rank["fitted"] for rank in told], axis=1)
    assert_near(fitted, path.fitted, 1e-9)
    wanted = one.sweep(X[:9], Y[:9] + 0.1, steps=3).dataset["mse"].values
    for number, rank in enumerate(told):
        assert_near(rank["predicted"], path.predict(X[number::50]), 1e-9)
        assert_near(rank["mse"], wanted, 1e-8)
    assert told[0]["mse"] == told[1]["mse"]

    def threads(ranks, rows):
        made = sdgpu.fit(
            X[rows], Y[rows], sdgpu.Gaussian(0.5), [0.1, 10.0], distributed=ranks, **how
        )
        return made.path(0.1, 0.4, 3).fitted

    parts = on_ranks(cuts(300, [120, 180], None), threads)
    # what the processes do, threads do: libraries in other processes may round a bit otherwise
    assert_near(np.concatenate(parts, axis=1), fitted, 1e-10)


ANSWERS = """
import json, os, sys
import numpy as np, sdgpu
rank, method = int(os.environ["RANK"]), sys.argv[1]
rng = np.random.default_rng(0)
X = rng.standard_normal((120, 3))
Y = np.sin(X @ rng.standard_normal((3, 2)))
w = rng.uniform(0.5, 2, 120) * (np.arange(120) % 9 > 0)
rows = [slice(0, 50), slice(50, 50), slice(50, 120)][rank]
fit = sdgpu.fit(X[rows], Y[rows], sdgpu.Gaussian(0.5), [0.1, 10.0], sample_weight=w[rows], intercept=True,
    distributed=True, method=method, tol=1e-9, dtype=None if method == "eigh" else "float64", probes=64)
path = fit.path(0.1, 0.4, 3)
interval = path.interval(X[: 2 * rank], 0.5, folds=3)
best = fit.sweep(steps=3, alphas=[0.0, 0.4], metrics=["mae", "explained_variance"])
found = {"fitted": path.fitted, "loo": fit.loo(0.1, 0.4, 3), "upper": interval.upper,
    "mse": best.dataset["mse"].values, "mae": best.dataset["mae"].values}
alone = path.predictor().predict(X[:4])
print(json.dumps({"alone": alone.tolist()} | {name: array.tolist() for name, array in found.items()}))
"""


@pytest.mark.parametrize("method", ["subspace", "eigh"])
def test_weights_rows_left_out_and_intervals_of_three_processes(method):
    told = [json.loads(text) for text in run_ranks(ANSWERS, 3, method, limit=LIMIT)]
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 3))
    Y = np.sin(X @ rng.standard_normal((3, 2)))
    w = rng.uniform(0.5, 2, 120) * (np.arange(120) % 9 > 0)
    how = {"sample_weight": w, "intercept": True, "method": method, "tol": 1e-9, "probes": 64}
    one = sdgpu.fit(X, Y, sdgpu.Gaussian(0.5), [0.1, 10.0], **how)
    path, sweep = one.path(0.1, 0.4, 3), one.sweep(steps=3, alphas=[0.0, 0.4], metrics=["mae"])
    rtol = 1e-8 if method == "eigh" else 1e-4  # leverages are estimates, of the same probes
    for name, wanted, near in [
        ("fitted", path.fitted, 1e-8),
        ("loo", one.loo(0.1, 0.4, 3), rtol),
        ("upper", path.interval(X[[0, 1, 0, 1, 2, 3]], 0.5, folds=3).upper, 1e-6),
    ]:
        parts = [np.array(rank[name]).reshape(3, -1, 2) for rank in told]
        assert_near(np.concatenate(parts, axis=1), wanted, near)
    for rank in told:
        assert_near(rank["alone"], path.predict(X[:4])[-1], 1e-8)
        for name in ("mse", "mae"):
            assert_near(rank[name], sweep.dataset[name].values, rtol)
            assert rank[name] == told[0][name]


DIFFERENT = """
import os
import numpy as np, sdgpu
rank = int(os.environ["RANK"])
try:
    sdgpu.fit(np.ones((5, 2)) * rank, np.ones(5), "rbf", 0.1 + rank, distributed=True)
except ValueError as error:
    print(error)
"""


def test_processes_that_disagree():
    for text in run_ranks(DIFFERENT, 2, limit=LIMIT):
        assert "different lams" in text
        assert "rank 0: [0.1]" in text
        assert "rank 1: [1.1]" in text


def torchrun(*arguments, size=2, folder=ROOT):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size)]
    command += ["--master-port", str(free_port()), "-m", "sdgpu", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ((out, err),) = finish(process, seconds=LIMIT)
    return process.returncode, out, err


@pytest.mark.parametrize(
    "how", [["--method", "lanczos", "--tol", "1e-9"], ["--features", "nystrom", "--size", "20"]]
)
def test_the_command_sweep(how, tmp_path):
    """As typed: one table, one file, and the numbers of one process."""
    asked = ["sweep", "diabetes", *how, "--lams", "1e-1:1e2:4", "--steps", "3", "--out"]
    code, out, err = torchrun(*asked, str(tmp_path / "two.nc"))
    assert code == 0, err[-3000:]
    assert out.count("alpha* chain") == 1
    assert out.count("wrote") == 1
    alone = subprocess.run(
        [sys.executable, "-m", "sdgpu", *asked, str(tmp_path / "one.nc")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert "alpha* chain" in alone.stdout
    one, two = (sdgpu.open_sweep(tmp_path / f"{name}.nc").dataset for name in ("one", "two"))
    for name in ("mse", "train_mse", "limit_mse", "star_mse"):
        assert_near(two[name].values, one[name].values, 1e-8)
    assert two.attrs["validation_rows"] == one.attrs["validation_rows"]


@pytest.mark.parametrize("method", ["lanczos", "subspace"])
def test_the_command_fit(method, tmp_path):
    """Each process has its share of the rows, the first prints and writes, and the numbers are those of one."""
    asked = ["fit", "diabetes", "--method", method, "--tol", "1e-9", "--lam", "2", "--alpha", "0.3"]
    asked += ["--steps", "3", "--out"]
    code, out, err = torchrun(*asked, str(tmp_path / "two.nc"), size=3)
    assert code == 0, err[-3000:]
    assert out.count("wrote") == 1
    assert out.count("train mse") == 1
    assert "3 ranks" in out
    alone = subprocess.run(
        [sys.executable, "-m", "sdgpu", *asked, str(tmp_path / "one.nc")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert "train mse" in alone.stdout
    one, two = (xr.open_dataset(tmp_path / f"{name}.nc") for name in ("one", "two"))
    assert one.sizes == two.sizes
    for name in one.variables:
        assert_near(two[name].fillna(0).values, one[name].fillna(0).values, 1e-8)
    assert two.attrs["training_rows"] == one.attrs["training_rows"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["diabetes", "--operator", "keops"], "operator='keops' is not for rows of several ranks"),
        (["diabetes", "--features", "nystrom", "--checkpoint", "sums.txt"], "must end in"),
    ],
)
def test_the_command_refuses_by_name(arguments, text):
    code, _, err = torchrun("sweep", *arguments)
    assert code != 0
    assert text in err
