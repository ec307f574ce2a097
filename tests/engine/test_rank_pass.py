"""Passes of features over the rows of several ranks go on, on any number of ranks, and refuse what is not theirs."""

import numpy as np
import pytest

import sdgpu
from sdgpu.engine import streaming
from sdgpu.engine.rank_pass import joined, missing
from tests.problems import assert_near
from tests.rank_processes import run_ranks
from tests.ranks import cuts, on_ranks

KERNEL = sdgpu.Gaussian(0.3)
N = 300
LIMIT = 240.0  # seconds for a pair of processes on a busy machine


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, 3)), rng.standard_normal(N) + 5.0, rng.uniform(0.5, 2, N)


@pytest.fixture
def always(monkeypatch):
    """Small blocks, and a save after each."""
    monkeypatch.setattr("sdgpu.engine.rank_pass.INTERVAL", 0.0)
    monkeypatch.setattr("sdgpu.engine.rank_pass.SHARE", np.inf)
    monkeypatch.setattr("sdgpu.engine.rank_pass.EVERY", 1)
    monkeypatch.setattr("sdgpu.engine.rank_features.block_rows", lambda k: 16)


class CutError(Exception):
    """What ends a pass."""


def fitted(arrays, counts, *, cut=None, monkeypatch=None, **options):
    """Predictions, and the rows that were summed; `cut` ends rank 1 after so many of its blocks."""
    X, Y, w = arrays
    rows_summed, blocks = [], [0] * len(counts)
    true_moments = streaming.block_moments

    def counted(block, *args, **how):
        rows_summed.append(block.rows)
        return true_moments(block, *args, **how)

    def work(ranks, rows):
        def progress(event):
            if event.stage == "rows" and ranks.rank == 1 and event.total > 1:
                blocks[1] += 1
                if blocks[1] == cut:
                    raise CutError

        how = {"features": sdgpu.Nystrom(10), "intercept": True, "progress": progress, **options}
        fit = sdgpu.fit(
            X[rows], Y[rows], KERNEL, 0.1, sample_weight=w[rows], distributed=ranks, **how
        )
        return fit.path(0.1, 0.3, 3).predict(X[:9])

    with monkeypatch.context() as patched:
        patched.setattr(streaming, "block_moments", counted)
        try:
            return on_ranks(cuts(len(X), counts, None), work), sum(rows_summed)
        except CutError:
            return None, sum(rows_summed)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("counts", [[N], [100, 200], [0, 120, 180], [100, 50, 70, 80]])
def test_a_pass_goes_on_on_any_number_of_ranks(
    arrays, counts, dtype, tmp_path, always, monkeypatch
):
    path, how = tmp_path / "sums.safetensors", {"dtype": dtype, "monkeypatch": monkeypatch}
    truth, _ = fitted(arrays, [140, 160], **how)
    nothing, _ = fitted(arrays, [140, 160], checkpoint=path, cut=4, **how)
    assert nothing is None
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found, after = fitted(arrays, counts, checkpoint=path, **how)
    assert 0 < after <= N - 6 * 16  # three blocks of each rank were saved at least
    for predicted in found:
        assert_near(predicted, truth[0], 1e-9 if dtype == "float64" else 1e-4)
        np.testing.assert_array_equal(predicted, found[0])
    again, rows = fitted(arrays, [N], checkpoint=path, **how)  # a pass that is done is done
    assert rows == 0
    assert_near(again[0], truth[0], 1e-9 if dtype == "float64" else 1e-4)


def test_a_pass_of_something_else_is_refused(arrays, tmp_path, always, monkeypatch):
    path, how = tmp_path / "sums.safetensors", {"monkeypatch": monkeypatch}
    fitted(arrays, [140, 160], checkpoint=path, **how)
    X, Y, w = arrays
    for other in [(X[::-1].copy(), Y, w), (X, Y + 1e-12, w), (X, Y, 2 * w)]:
        with pytest.raises(ValueError, match="a pass with other rows, features or precision"):
            fitted(other, [140, 160], checkpoint=path, **how)
    for options in [{"features": sdgpu.Nystrom(11)}, {"dtype": "float32"}, {"seed": 1}]:
        with pytest.raises(ValueError, match="a pass with other rows, features or precision"):
            fitted(arrays, [140, 160], checkpoint=path, **options, **how)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"rank 0: .*damaged|rank 0: .*sums"):
        fitted(arrays, [140, 160], checkpoint=path, **how)
    with pytest.raises(OSError, match=r"rank 0: .*folder"):
        fitted(arrays, [140, 160], checkpoint=tmp_path / "no" / "sums.safetensors", **how)


def test_a_full_disk_is_told_to_all(arrays, tmp_path, always, monkeypatch):
    def full(path, *content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sdgpu.engine.rank_pass.write_tensors", full)
    with pytest.raises(OSError, match=r"No space left"):
        fitted(arrays, [100, 200], checkpoint=tmp_path / "s.safetensors", monkeypatch=monkeypatch)


@pytest.mark.parametrize("seed", range(30))
def test_ranges_are_sets_of_rows(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    done = rng.random(n) < rng.random()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], done.astype(int), [0]])))
    ranges = [list(map(int, pair)) for pair in edges.reshape(-1, 2)]
    start = int(rng.integers(0, n))
    stop = int(rng.integers(start, n)) + 1
    found = missing(start, stop, [ranges[i] for i in rng.permutation(len(ranges))])
    rows = [row for low, high in found for row in range(low, high)]
    assert rows == [row for row in range(start, stop) if not done[row]]
    assert joined([*ranges, *missing(0, n, ranges)]) == [[0, n]]
    assert joined([ranges[i] for i in rng.permutation(len(ranges))]) == ranges


PROCESSES = """
import os, sys
import numpy as np, sdgpu
from sdgpu.engine import rank_features, rank_pass
rank_pass.INTERVAL, rank_pass.SHARE, rank_pass.EVERY = 0.0, np.inf, 1
rank_features.block_rows = lambda k: 16
rank = int(os.environ["RANK"])
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((300, 3)), rng.standard_normal(300)
rows = [slice(0, 120), slice(120, 300)][rank]
heard = []
def progress(event):
    if event.stage == "rows" and event.total > 1:
        heard.append(event.done)
        if sys.argv[2] == "kill" and rank == 1 and event.done >= 64:
            os._exit(9)
fit = sdgpu.fit(X[rows], Y[rows], sdgpu.Gaussian(0.3), 0.1, features=sdgpu.Nystrom(10), distributed=True,
    checkpoint=sys.argv[1], progress=progress)
print(len(heard), float(abs(fit.path(0.1, 0.3, 3).predict(X[:5])).sum()))
"""


def test_processes_that_are_killed(tmp_path):
    path = tmp_path / "sums.safetensors"
    whole = [
        text.split()
        for text in run_ranks(PROCESSES, 2, tmp_path / "w.safetensors", "whole", limit=LIMIT)
    ]
    with pytest.raises(AssertionError):
        run_ranks(PROCESSES, 2, path, "kill", limit=LIMIT)
    assert path.exists()
    again = [text.split() for text in run_ranks(PROCESSES, 2, path, "whole", limit=LIMIT)]
    for first, second in zip(whole, again, strict=True):
        assert int(second[0]) < int(first[0])
        np.testing.assert_allclose(float(second[1]), float(first[1]), rtol=1e-9)
