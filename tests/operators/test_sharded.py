"""K of rows on several ranks against the dense matrix, whatever way the rows travel."""

import numpy as np
import pytest

import sdgpu
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.thread_ranks import ThreadRanks
from sdgpu.operators import DenseOperator, ShardedOperator, TiledOperator
from tests.problems import assert_near
from tests.ranks import cuts, on_ranks

KERNELS = [
    sdgpu.Gaussian(0.7),
    sdgpu.Laplacian(0.3),
    sdgpu.Matern(1.5, 2.0),
    sdgpu.Polynomial(2),
    sdgpu.NTK(2),
    sdgpu.Gaussian(0.2) + sdgpu.Linear(),
]
SHARES = [(1, [1]), (1, [0, 1, 0]), (5, [2, 3]), (30, [0, 11, 19]), (40, 4), (40, 5), (3, 7)]


@pytest.mark.parametrize("travel", ["gather", "ring"])
@pytest.mark.parametrize("precision", ["float64", "mixed", "float32"])
@pytest.mark.parametrize(("n", "counts"), SHARES)
def test_everything_it_is_asked(n, counts, precision, travel, rng):
    kernel = KERNELS[rng.integers(len(KERNELS))]
    X, V, new = (rng.standard_normal(shape) for shape in ((n, 3), (n, 2), (4, 3)))
    dense = DenseOperator(kernel, X)
    parts, new_parts = cuts(n, counts, rng), cuts(4, len(cuts(n, counts, rng)), rng)
    picked = np.array([n - 1, 0, n // 2])

    def work(ranks, rows):
        operator = ShardedOperator(kernel, X[rows], ranks, precision=precision, travel=travel)
        assert (operator.n, operator.d, operator.is_precomputed) == (n, 3, False)
        block = operator.layout
        predicted = operator.cross(new[new_parts[ranks.rank]]) @ V[rows]
        found = operator.matmat(V[rows]), operator.diag(), operator.columns(picked)
        assert all(isinstance(x, np.ndarray) for x in found)
        assert block.own == rows
        return *found, to_numpy(predicted), operator.rounding(), operator.matmat(V[rows])

    found = on_ranks(parts, work)
    product, diag, columns, predicted = (np.concatenate([f[i] for f in found]) for i in range(4))
    rtol = 1e-12 if precision == "float64" else 2e-6 * n**0.5
    assert_near(product, dense.matmat(V), rtol)
    assert_near(diag, dense.diag(), rtol)
    assert_near(columns, dense.columns(picked), rtol)
    assert_near(predicted, dense.cross(new) @ V, rtol)
    for one in found:
        np.testing.assert_array_equal(one[0], one[5])  # the same bits every time
    assert len({one[4] for one in found}) == 1


@pytest.mark.parametrize("precision", ["float64", "mixed", "float32"])
@pytest.mark.parametrize(
    ("n", "counts", "copies"),
    [
        (40, 4, 2),
        (41, [7, 0, 21, 13], 2),
        (30, [0, 0, 30, 0], 2),  # one team has nothing
        (40, 6, 2),  # three teams: two pieces for one member, one for the other
        (23, [3, 1, 0, 9, 4, 6], 2),
        (50, 9, 3),
        (37, 12, 3),
        (3, 4, 2),
        (20, 4, 1),  # no copies: each rank goes round with all
    ],
)
def test_copies_of_rows(n, counts, copies, precision, rng):
    """The layout of 1.5 dimensions against the dense matrix, with shares of any size."""
    kernel = KERNELS[rng.integers(len(KERNELS))]
    X, V, new = (rng.standard_normal(shape) for shape in ((n, 3), (n, 2), (4, 3)))
    dense, parts = DenseOperator(kernel, X), cuts(n, counts, rng)
    new_parts = cuts(4, len(parts), rng)

    def work(ranks, rows):
        how = {"precision": precision, "travel": "copies", "copies": copies, "workers": 1}
        operator = ShardedOperator(kernel, X[rows], ranks, **how)
        predicted = operator.cross(new[new_parts[ranks.rank]]) @ V[rows]
        found = operator.matmat(V[rows]), operator.diag(), operator.columns([n - 1, 0])
        return *found, to_numpy(predicted), operator.matmat(V[rows])

    found = on_ranks(parts, work)
    product, diag, columns, predicted = (np.concatenate([f[i] for f in found]) for i in range(4))
    rtol = 1e-12 if precision == "float64" else 2e-6 * n**0.5
    assert_near(product, dense.matmat(V), rtol)
    assert_near(diag, dense.diag(), rtol)
    assert_near(columns, dense.columns([n - 1, 0]), rtol)
    assert_near(predicted, dense.cross(new) @ V, rtol)
    for one in found:
        np.testing.assert_array_equal(one[0], one[4])  # the same bits every time


@pytest.mark.parametrize(("size", "copies"), [(4, 2), (6, 2), (8, 2), (9, 3), (16, 4)])
def test_a_rank_receives_what_the_model_says(size, copies, rng, monkeypatch):
    """n (d + c) / q numbers of rows and columns of others, and n c q / p twice, less its own."""
    n, d, c = 4 * size, 3, 2
    X, V = rng.standard_normal((n, d)), rng.standard_normal((n, c))
    received, original = [0] * size, ThreadRanks.ring

    def ring(self, array, routes=None):
        before = self.rank
        for owner, piece in original(self, array, routes):
            if owner != before:
                received[self.rank] += piece.numel()
            before = owner
            yield owner, piece

    def work(ranks, rows):
        how = {"travel": "copies", "copies": copies, "workers": 1}
        operator = ShardedOperator(sdgpu.Gaussian(0.5), X[rows], ranks, **how)
        operator.matmat(V[rows])
        received[ranks.rank] = 0
        ranks.barrier("once is over")
        return operator.matmat(V[rows])

    monkeypatch.setattr(ThreadRanks, "ring", ring)
    on_ranks(cuts(n, [4] * size, rng), work)
    rounds = -(-(size // copies) // copies)
    piece = n * copies // size * (d + c)
    sums = 2 * (copies - 1) * (n // size) * c
    # the first member begins with its own piece
    assert received[0] == (rounds - 1) * piece + sums
    assert max(received) == rounds * piece + sums


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_same_bits_as_one_process_with_as_many_threads(size, rng, monkeypatch):
    """Tiles are dealt out alike, and their sums added in the same order."""
    X, V = rng.standard_normal((1300, 3)), rng.standard_normal((1300, 4))
    monkeypatch.setattr("sdgpu.operators.tiled.count", lambda: size)
    wanted = TiledOperator(sdgpu.Gaussian(0.5), X, tile=128).matmat(V)
    monkeypatch.undo()
    monkeypatch.setattr("sdgpu.operators.tiled.TILE_WIDE", 128)

    def work(ranks, rows):
        return ShardedOperator(sdgpu.Gaussian(0.5), X[rows], ranks, workers=1).matmat(V[rows])

    found = on_ranks(cuts(1300, size, rng), work)
    np.testing.assert_array_equal(np.concatenate(found), wanted)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("travel", ["gather", "ring"])
def test_every_pair_of_rows_is_computed_once(travel, size, rng, monkeypatch):
    X, V = rng.standard_normal((400, 2)), np.ones((400, 1))
    made, original = [], sdgpu.Gaussian.tile
    monkeypatch.setattr("sdgpu.operators.tiled.TILE_WIDE", 20)

    def tile(self, a, b, **how):
        made.append((len(a) * len(b), how.get("same", False)))
        return original(self, a, b, **how)

    monkeypatch.setattr(sdgpu.Gaussian, "tile", tile)

    def work(ranks, rows):
        operator = ShardedOperator(sdgpu.Gaussian(0.5), X[rows], ranks, travel=travel)
        before = sum(count for count, _ in made)
        operator.matmat(V[rows])
        return before

    on_ranks(
        cuts(400, [400 // size] * size, rng) if 400 % size == 0 else cuts(400, size, rng), work
    )
    # the diagonal tiles are whole ones: 400 / 20 of them, a few more where shares are no multiples
    assert 400 * 400 / 2 <= sum(count for count, _ in made) <= 400 * 400 / 2 + 400 * 20


def test_tiles_are_kept_by_the_rank_that_makes_them(rng):
    X, V = rng.standard_normal((60, 2)), rng.standard_normal((60, 1))

    def work(ranks, rows):
        operator = ShardedOperator(sdgpu.Gaussian(0.5), X[rows], ranks, keep=True)
        return operator.matmat(V[rows]), operator.matmat(V[rows])

    for first, second in on_ranks(cuts(60, 3, rng), work):
        np.testing.assert_array_equal(first, second)


def test_bad_input(rng):
    with pytest.raises(TypeError, match="precomputed kernel has no rows to spread"):
        ShardedOperator(sdgpu.Precomputed(), np.eye(2))
    with pytest.raises(ValueError, match="travel='walk'"):
        ShardedOperator(sdgpu.Gaussian(), np.eye(2), travel="walk")
    for copies in (2, 0):
        with pytest.raises(ValueError, match=f"copies={copies}"):
            ShardedOperator(sdgpu.Gaussian(), np.eye(2), travel="copies", copies=copies)
    with pytest.raises(ValueError, match="did you mean 'float32'"):
        ShardedOperator(sdgpu.Gaussian(), np.eye(2), precision="float3")
    with pytest.raises(ValueError, match="X has 1 entries that are NaN"):
        ShardedOperator(sdgpu.Gaussian(), np.array([[np.nan]]))
    alone = ShardedOperator(sdgpu.Gaussian(), np.eye(2))
    assert_near(
        alone.matmat(np.ones((2, 1))),
        DenseOperator(sdgpu.Gaussian(), np.eye(2)).matmat(np.ones((2, 1))),
    )
    with pytest.raises(ValueError, match="3 features, but the fit has 2"):
        alone.cross(np.ones((1, 3)))
    with pytest.raises(TypeError, match="not made whole"):
        alone.cross(np.ones((1, 2))).dense()
