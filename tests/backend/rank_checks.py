"""What every kind of ranks must do, against sums and rows that are made on each rank alone."""

import math

import numpy as np
import pytest
import torch

SHAPES = [(), (1,), (7, 3), (0, 4), (40_000,), (3, 10_001)]


def block(rank, shape, dtype="float64"):
    """The array of one rank, which every rank can make."""
    values = np.random.default_rng([rank, 7]).standard_normal(shape) * 10.0 ** (rank % 5)
    return np.asarray(values).astype(dtype)


def rows_of(rank, size):
    """Uneven blocks of rows, some of them empty."""
    return np.random.default_rng(rank).standard_normal(((rank * 5 + 2) % (size + 2), 3))


def check_sums(ranks):
    for shape in SHAPES:
        for dtype in ("float64", "float32", "int64"):
            arrays = [block(rank, shape, dtype) for rank in range(ranks.size)]
            total, largest = arrays[0], arrays[0]
            for array in arrays[1:]:
                total = total + array
                largest = np.maximum(largest, array)
            own = arrays[ranks.rank].copy()
            own.flags.writeable = False
            for found, truth in ((ranks.sum(own), total), (ranks.max(own), largest)):
                assert isinstance(found, np.ndarray)
                assert (found.dtype, found.shape) == (np.dtype(dtype), shape)
                np.testing.assert_array_equal(found, truth)  # the same bits, in the order of ranks
            tensor = torch.from_numpy(arrays[ranks.rank].copy())
            found = ranks.sum(tensor)
            assert isinstance(found, torch.Tensor)
            assert torch.equal(found, torch.from_numpy(np.asarray(total)))
            assert torch.equal(tensor, torch.from_numpy(arrays[ranks.rank]))  # left as it was
            found.add_(1)
            assert torch.equal(tensor, torch.from_numpy(arrays[ranks.rank]))
    bfloat = torch.full((3,), float(ranks.rank), dtype=torch.bfloat16)
    assert torch.equal(ranks.max(bfloat), torch.full_like(bfloat, float(ranks.size - 1)))
    strided = torch.arange(12.0).reshape(3, 4).T
    assert torch.equal(ranks.sum(strided), strided * ranks.size)
    holed = np.array([1.0, math.nan if ranks.rank == ranks.size - 1 else 2.0])
    assert np.isnan(ranks.max(holed)[1])
    assert np.isnan(ranks.sum(holed)[1])


def check_small_values(ranks):
    mine = {
        "rank": ranks.rank,
        "nested": [1, 0.1 + 0.2, None, True, "ridge", {"inf": math.inf}],
        "array": np.arange(ranks.rank * 2, dtype="float32"),
        "tensor": torch.arange(3),
        "scalar": np.float64(1 / 3),
        "text": "x" * (10 + 1000 * ranks.rank),
    }
    for rank, told in enumerate(ranks.gather(mine)):
        assert told["rank"] == rank
        assert told["nested"] == mine["nested"]
        np.testing.assert_array_equal(told["array"], np.arange(rank * 2, dtype="float32"))
        assert told["array"].dtype == np.float32
        assert torch.equal(told["tensor"], torch.arange(3))
        assert told["scalar"] == 1 / 3
        assert len(told["text"]) == 10 + 1000 * rank
    assert math.isnan(ranks.first(math.nan))
    assert ranks.first(("a", 2**70, ranks.rank)) == ["a", 2**70, 0]
    with pytest.raises(TypeError, match=r"value\['f'\] is a builtin_function_or_method"):
        ranks.gather({"f": len})


def check_rows(ranks):
    every = [rows_of(rank, ranks.size) for rank in range(ranks.size)]
    own = every[ranks.rank]
    np.testing.assert_array_equal(ranks.gather_rows(own), np.concatenate(every))
    tensor = torch.from_numpy(own.copy()).to(torch.float32)
    truth = torch.from_numpy(np.concatenate(every)).to(torch.float32)
    assert torch.equal(ranks.gather_rows(tensor), truth)
    flat = np.arange(ranks.rank, dtype="int32")
    truth = np.concatenate([np.arange(rank, dtype="int32") for rank in range(ranks.size)])
    np.testing.assert_array_equal(ranks.gather_rows(flat), truth)
    joined = ranks.gather_rows(np.empty((0, 2)))
    assert joined.shape == (0, 2)


def check_ring(ranks):
    order = [(ranks.rank - step) % ranks.size for step in range(ranks.size)]
    every = [rows_of(rank, ranks.size) for rank in range(ranks.size)]
    for form in (lambda rows: rows, torch.from_numpy):
        seen, held = [], []
        for owner, piece in ranks.ring(form(every[ranks.rank].copy())):
            seen.append(owner)
            held.append(piece)
            np.testing.assert_array_equal(np.asarray(piece), every[owner])
        assert seen == order
        for owner, piece in zip(
            order, held, strict=True
        ):  # pieces that are kept stay what they are
            np.testing.assert_array_equal(np.asarray(piece), every[owner])
    large = np.full((20_000, 8), float(ranks.rank))
    assert [(owner, piece[-1, -1]) for owner, piece in ranks.ring(large)] == [
        (owner, float(owner)) for owner in order
    ]


def check_routes(ranks):
    """Pieces that go where routes say: swaps, steps of two, ranks that keep theirs, and none at all."""
    size, every = ranks.size, [rows_of(rank, ranks.size) for rank in range(ranks.size)]
    swap = [r ^ 1 if r ^ 1 < size else r for r in range(size)]
    routes = [swap, [(r + 2) % size for r in range(size)], list(range(size)), swap, swap]
    owners, seen = list(range(size)), []
    for route in [None, *routes]:
        if route is not None:
            owners = [owners[route.index(r)] for r in range(size)]
        seen.append(owners[ranks.rank])
    found = list(ranks.ring(every[ranks.rank].copy(), routes))
    assert [owner for owner, _ in found] == seen
    for owner, piece in found:
        np.testing.assert_array_equal(np.asarray(piece), every[owner])
    assert [owner for owner, _ in ranks.ring(np.zeros((1, 1)), [])] == [ranks.rank]


def check_agreement_and_barrier(ranks):
    ranks.agree("lams", [1.0, 1e-3])
    ranks.agree("X", np.arange(5.0))
    for place in ("here", "there"):
        ranks.barrier(place)
    ranks.check()
    if ranks.size == 1:
        return
    with pytest.raises(ValueError, match=r"different lams \(rank 0: 0; ranks? 1.*same arguments"):
        ranks.agree("lams", min(ranks.rank, 1))
    with pytest.raises(ValueError, match=r"different rows in ring \(rank"):
        list(ranks.ring(np.zeros((2, 1 + min(ranks.rank, 1)))))
    check_unequal_arrays(ranks)


def check_unequal_arrays(ranks):
    """Small and large ones, other shapes of as many entries, other dtypes: never garbage, never a hang."""
    last = ranks.rank == ranks.size - 1
    for own, other in [
        (np.zeros(1), np.zeros(2)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(40_000), np.zeros(40_001)),
        (np.zeros(40_000), np.zeros(3)),
        (np.zeros(0), np.zeros(5)),
        (np.zeros(4), np.zeros(4, dtype="float32")),
    ]:
        for reduce in (ranks.sum, ranks.max):
            with pytest.raises(
                ValueError, match=rf"different arrays in \w+ \(.*rank {ranks.size - 1}"
            ):
                reduce(other if last else own)
            assert float(ranks.sum(np.ones(2))[1]) == ranks.size  # all are where they were
    with pytest.raises(ValueError, match=r"different arrays in .*'max'.*'sum'|'sum'.*'max'"):
        (ranks.max if last else ranks.sum)(np.zeros(2))


CHECKS = [
    check_sums,
    check_small_values,
    check_rows,
    check_ring,
    check_routes,
    check_agreement_and_barrier,
]
