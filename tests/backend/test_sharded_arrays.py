"""Arrays of several ranks against NumPy's: the same numbers, or an error that names the operation."""

import numpy as np
import pytest
import torch

from sdgpu.backend.backends import TorchBackend, to_numpy
from sdgpu.backend.sharded_arrays import RowLayout, ShardedArray, first_row, is_sharded, own_part
from sdgpu.backend.sharded_backend import ShardedBackend
from tests.problems import assert_near
from tests.ranks import cuts, on_ranks


def spread(ranks, rows, n):
    layout = RowLayout.of(ranks, rows.stop - rows.start)
    assert layout.n == n
    assert layout.own == rows
    return ShardedBackend(TorchBackend("cpu"), layout)


def whole(found, axis):
    """The array of all ranks, from what each has."""
    return np.concatenate([to_numpy(own_part(part)) for part in found], axis=axis)


SHARES = [(1, 1), (1, 3), (2, [0, 2, 0]), (7, [3, 4]), (12, [5, 0, 7]), (12, 4)]


@pytest.mark.parametrize(("n", "counts"), SHARES)
def test_products(n, counts, rng):
    A, B, small = (rng.standard_normal(s) for s in ((3, n), (n, 2), (4, 3)))

    def work(ranks, rows):
        backend = spread(ranks, rows, n)
        a, b = backend.spread(A, 1), backend.spread(B, 0)
        s = backend.asarray(small)
        assert a.shape == (3, n)
        assert b.T.shape == (2, n)
        assert not is_sharded(a @ b)
        replicated = backend.asarray(B)  # all rows on each rank: cut to the own ones
        return a @ b, s @ a, b @ s[:2, :2], b.T @ a.T, a @ replicated, s @ a @ b

    found = on_ranks(cuts(n, counts, rng), work)
    for one in found:
        assert_near(one[0], A @ B, 1e-14)
        assert_near(one[3], (A @ B).T, 1e-14)
        assert_near(one[4], A @ B, 1e-14)
        assert_near(one[5], small @ A @ B, 1e-14)
        assert torch.equal(one[0], found[0][0])  # the same bits on all ranks
    assert_near(whole([f[1] for f in found], 1), small @ A, 1e-14)
    assert_near(whole([f[2] for f in found], 0), B @ small[:2, :2], 1e-14)


@pytest.mark.parametrize(("n", "counts"), SHARES)
def test_reductions_and_elementwise_work(n, counts, rng):
    A, column, vector = rng.standard_normal((3, n)), rng.standard_normal((3, 1)), rng.random(n)

    def work(ranks, rows):
        backend = spread(ranks, rows, n)
        xp, a = backend.xp, backend.spread(A, 1)
        made = (xp.abs(a) * 2 - backend.asarray(column)) / 3.0 + backend.asarray(vector)
        a2 = xp.asarray(a, copy=True)
        a2[:2, :] = -a[1:, :]
        a2 -= a
        reduced = [
            xp.sum(a, axis=1),
            xp.sum(a),
            xp.max(a, axis=1),
            xp.min(a),
            xp.mean(a, axis=-1, keepdims=True),
            xp.any(a > 1.5),
            xp.all(a > -9, axis=1),
            xp.sum(a, axis=(0, 1)),
            xp.argmin(a),
            xp.argmin(xp.round(a)),  # the first of equal ones
        ]
        assert backend.rows_here(n) == rows
        assert first_row(a) == rows.start
        assert first_row(backend.asarray(A)) == 0
        return reduced, xp.sum(a * a, axis=0), made, a2, xp.where(a > 0, a, 0 * a)

    found = on_ranks(cuts(n, counts, rng), work)
    wanted = [
        A.sum(1),
        A.sum(),
        A.max(1),
        A.min(),
        A.mean(1, keepdims=True),
        (A > 1.5).any(),
        (A > -9).all(1),
        A.sum(),
        A.argmin(),
        np.round(A).argmin(),
    ]
    for reduced, *_ in found:
        for one, truth in zip(reduced, wanted, strict=True):
            assert tuple(one.shape) == np.shape(truth)
            assert_near(to_numpy(one).astype(float), np.asarray(truth, dtype=float), 1e-13)
    changed = A.copy()
    changed[:2] = -A[1:]
    truths = [(A * A).sum(0), (np.abs(A) * 2 - column) / 3 + vector, changed - A, np.maximum(A, 0)]
    for i, truth in enumerate(truths, start=1):
        assert_near(whole([f[i] for f in found], -1), truth, 1e-14)


@pytest.mark.parametrize(("n", "counts"), SHARES)
def test_shapes(n, counts, rng):
    A, order = rng.standard_normal((4, n)), np.array([2, 0])
    rows_of_all = np.array([n - 1, 0])

    def work(ranks, rows):
        backend = spread(ranks, rows, n)
        xp, a = backend.xp, backend.spread(A, 1)
        index = xp.asarray(order)
        cube = xp.reshape(a, (2, 2, n))
        assert xp.reshape(a.T, (n, 2, -1)).shape == (n, 2, 2)
        local = [
            a[1:3, :],
            a[0, :],
            a[..., None, :],
            xp.take(a, index, axis=0),
            xp.concat([a, a[:1, :]], axis=0),
            xp.stack([a, a], axis=0),
            xp.moveaxis(cube, -1, 0),
            xp.permute_dims(cube, (1, 2, 0)),
            xp.broadcast_to(a[:1, :], (5, n)),
        ]
        return local, xp.take(a, xp.asarray(rows_of_all), axis=1), np.asarray(a[1, :])

    found = on_ranks(cuts(n, counts, rng), work)
    cube = A.reshape(2, 2, n)
    wanted = [
        (A[1:3], 1),
        (A[0], 0),
        (A[:, None, :], 2),
        (A[order], 1),
        (np.concatenate([A, A[:1]]), 1),
        (np.stack([A, A]), 2),
        (np.moveaxis(cube, -1, 0), 0),
        (cube.transpose(1, 2, 0), 1),
        (np.broadcast_to(A[:1], (5, n)), 1),
    ]
    for i, (truth, axis) in enumerate(wanted):
        parts = [f[0][i] for f in found]
        assert all(part.shape == truth.shape and part.axis == axis for part in parts)
        np.testing.assert_array_equal(whole(parts, axis), truth)
    for _, taken, vector in found:
        np.testing.assert_array_equal(to_numpy(taken), A[:, rows_of_all])
        np.testing.assert_array_equal(vector, A[1])


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (lambda xp, a, b: xp.linalg.qr(a), "ShardedArray"),
        (lambda xp, a, b: xp.sort(a), "sort is not an operation"),
        (lambda xp, a, b: a[:, 1:], "picks some of the rows"),
        (lambda xp, a, b: a.T @ a, "a number for each pair of rows"),
        (lambda xp, a, b: a + a.T, "same axis"),
        (lambda xp, a, b: xp.concat([a, a], axis=1), "concat"),
        (lambda xp, a, b: xp.reshape(a, (-1,)), "no axis of their own"),
        (lambda xp, a, b: np.asarray(a), "does not come to one host"),
        (lambda xp, a, b: bool(a), "neither true nor false"),
        (lambda xp, a, b: a * b[:, :2], "meets the 5 rows"),
        (lambda xp, a, b: a @ a, "sums over the rows of one of them"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(operation, text, rng):
    A = rng.standard_normal((5, 5))

    def work(ranks, rows):
        backend = spread(ranks, rows, 5)
        with pytest.raises(TypeError, match=text):
            operation(backend.xp, backend.spread(A, 1), backend.asarray(A))

    on_ranks(cuts(5, [2, 3], rng), work)


def test_ranks_that_have_computed_other_numbers_are_found(rng):
    """Nothing is added up that does not belong together."""
    A = rng.standard_normal((3, 6))

    def work(ranks, rows):
        backend = spread(ranks, rows, 6)
        a = backend.spread(A, 1)
        other = backend.asarray(np.full((2, 3), 1.0 + 1e-16 * ranks.rank + 2e-16 * ranks.rank))
        product = other @ a
        with pytest.raises(RuntimeError, match="other small numbers"):
            backend.xp.sum(product)

    on_ranks(cuts(6, [2, 4], rng), work)


def test_decompositions_are_those_of_rank_0(rng):
    K = np.eye(4)  # any basis would do: it must be the same one

    def work(ranks, rows):
        backend = spread(ranks, rows, 5)
        mine = K if ranks.rank == 0 else K[::-1]
        values, vectors = backend.small_eigh(np.ascontiguousarray(mine))
        both = backend.eigh(backend.asarray(mine))
        assert backend.told(ranks.rank) == 0
        assert not backend.everywhere(ranks.rank == 0)
        return values, vectors, *map(to_numpy, both)

    first, *others = on_ranks(cuts(5, [2, 2, 1], rng), work)
    for other in others:
        for one, two in zip(first, other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_rows_must_be_those_of_the_layout(rng):
    def work(ranks, rows):
        backend = spread(ranks, rows, 3)
        with pytest.raises(ValueError, match="has not the"):
            ShardedArray(torch.zeros(9, 2), 0, backend.layout)
        with pytest.raises(ValueError, match="4 rows, but the ranks have 3"):
            backend.empty_rows(2, 4)
        with pytest.raises(TypeError, match="meets the 3 rows"):
            backend.spread(np.zeros((4, 2)), 0)

    on_ranks(cuts(3, [1, 2], rng), work)
