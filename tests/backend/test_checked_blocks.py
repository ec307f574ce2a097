"""Blocks cut anew: the same rows whatever a source holds together, and every bad one named by its place."""

import itertools

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.backend.rows import arrays, blocks, checked_blocks
from sdgpu.backend.rows.array_source import ArraySource
from sdgpu.backend.rows.prefetch import prefetched
from sdgpu.backend.rows.source import Block, RowSource

N, D, C = 11, 3, 2
RNG = np.random.default_rng(3)
X, Y, WEIGHTS = RNG.standard_normal((N, D)), RNG.standard_normal((N, C)), RNG.random(N)


def pieces(*sizes, last=()):
    """The rows in blocks of the given sizes, as a function makes them."""
    ends = np.cumsum((0, *sizes))

    def make():
        for start, end in itertools.pairwise(ends):
            yield X[start:end], Y[start:end], WEIGHTS[start:end]
        yield from last

    return make


def source(block, n=None, c=C, dtype="float64"):
    """A source of one block."""
    return blocks(lambda: iter([block]), d=D, c=c, n=n, dtype=dtype)


def read(rows_source, rows=4):
    return list(checked_blocks(rows_source, rows))


def test_sources_are_row_sources():
    assert isinstance(arrays(X), RowSource)
    assert isinstance(source((X, Y)), RowSource)
    assert not isinstance(X, RowSource)


@pytest.mark.parametrize("rows", range(1, N + 2))
@pytest.mark.parametrize("sizes", [(11,), (5, 6), (0, 4, 0, 0, 7, 0), (1,) * 11, (10, 1)])
def test_every_size_gives_the_same_rows(rows, sizes):
    found = read(blocks(pieces(*sizes), d=D, c=C, n=N), rows)
    starts = [start for start, _ in found]
    assert starts == list(range(0, N, rows))
    for start, block in found:
        part = slice(start, start + rows)
        assert np.array_equal(block.X, X[part])
        assert np.array_equal(block.Y, Y[part])
        assert np.array_equal(block.weights, WEIGHTS[part])
        assert block.place.startswith("block ")


@pytest.mark.parametrize("rows", [1, 4, 11, 12])
def test_arrays_give_the_same_rows(rows):
    found = read(arrays(X, Y, WEIGHTS), rows)
    assert [start for start, _ in found] == list(range(0, N, rows))
    assert np.array_equal(np.concatenate([block.X for _, block in found]), X)
    assert np.array_equal(np.concatenate([block.weights for _, block in found]), WEIGHTS)
    assert found[-1][1].place == f"X, row {found[-1][0]}"


def test_flat_targets_are_one_output():
    for rows_source in (arrays(X, Y[:, 0]), source((X, Y[:, 0]), c=1)):
        assert rows_source.c == 1
        assert np.array_equal(np.concatenate([b.Y for _, b in read(rows_source)]), Y[:, :1])


def test_targets_that_nobody_announced_are_left_out():
    assert all(block.Y is None for _, block in read(source((X, Y), c=0)))
    assert all(block.weights is None for _, block in read(source((X, Y))))
    assert read(source(X, c=0))[0][1].Y is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["X", "Y", "weights"])
def test_what_is_not_finite_names_its_place_and_row(name, value):
    parts = {"X": X.copy(), "Y": Y.copy(), "weights": WEIGHTS.copy()}
    parts[name][7] = value
    rows_source = ArraySource(**parts, name="table.csv")
    with pytest.raises(
        ValueError, match=rf"^{name} at table.csv, row 5, row 2 of the block, is NaN"
    ):
        read(rows_source, 5)
    with pytest.raises(ValueError, match=rf"^{name} at block 0, row 7 of the block, is NaN"):
        read(source(tuple(parts.values())))


def test_nothing_comes_after_an_error():
    bad = X.copy()
    bad[9, 1] = np.nan
    found = checked_blocks(arrays(bad, Y), 4)
    assert [next(found)[0], next(found)[0]] == [0, 4]
    with pytest.raises(ValueError, match="row 8, row 1 of the block"):
        next(found)


@pytest.mark.parametrize(
    ("block", "match"),
    [
        ((X[:, :2], Y), r"X at block 0 has shape \(11, 2\), but rows of 3 were announced"),
        ((X[:, 0], Y), r"X at block 0 has shape \(11,\)"),
        ((X[:, :, None], Y), r"X at block 0 has shape \(11, 3, 1\)"),
        ((X, Y[:, :1]), r"Y at block 0 has shape \(11, 1\), but rows of 2 were announced"),
        ((X, Y, WEIGHTS[:, None]), "weights at block 0 has shape"),
        ((X, Y[:5]), "the block at block 0 has 11 rows of X and 5 of Y"),
        ((X, Y, WEIGHTS[:5]), "the block at block 0 has 11 rows of X and 5 of weights"),
        ((X,), "the block at block 0 has no targets, but the source said 2"),
        ((X, Y, WEIGHTS, X), "block 0 has 4 parts"),
        ((X, Y, -WEIGHTS), "weights at block 0, row 0 of the block, are negative"),
    ],
)
def test_blocks_of_another_form_are_refused(block, match):
    with pytest.raises(ValueError, match=match):
        read(source(block))


def test_the_first_negative_weight_is_named():
    weights = WEIGHTS.copy()
    weights[6] = -1e-300
    with pytest.raises(ValueError, match="row 6 of the block, are negative"):
        read(source((X, Y, weights)))
    weights[6] = 0.0
    assert len(read(source((X, Y, weights)))) == 3


@pytest.mark.parametrize(("n", "given"), [(10, 11), (12, 11), (1, 11)])
def test_another_number_of_rows_than_announced(n, given):
    match = rf"said {n} rows and gave {given}: it changed while it was read"
    with pytest.raises(ValueError, match=match):
        read(source((X, Y), n=n))
    assert len(read(source((X, Y), n=N))) == 3


def test_blocks_that_come_too_late_count_too():
    with pytest.raises(ValueError, match="said 11 rows and gave 13"):
        read(blocks(pieces(11, last=[(X[:2], Y[:2], WEIGHTS[:2])]), d=D, c=C, n=N))


@pytest.mark.parametrize("rows", [1, 4, 20])
def test_torch_stays_torch(rows):
    tensor, truth = torch.tensor(X, requires_grad=True), torch.tensor(Y, dtype=torch.float32)
    found = read(arrays(tensor, truth), rows)
    for _, block in found:
        assert isinstance(block.X, torch.Tensor)
        assert isinstance(block.Y, torch.Tensor)
        assert not block.X.requires_grad
        assert block.Y.dtype == torch.float64
    assert torch.equal(torch.cat([block.X for _, block in found]), tensor.detach())


def test_blocks_of_torch_are_joined():
    halves = [(torch.tensor(X[part]), torch.tensor(Y[part])) for part in (slice(5), slice(5, 11))]
    found = read(blocks(lambda: iter(halves), d=D, c=C), 8)
    assert [len(block.X) for _, block in found] == [8, 3]
    assert torch.equal(torch.cat([block.X for _, block in found]), torch.tensor(X))


@pytest.mark.parametrize(
    "tensor",
    [torch.full((4, D), torch.nan), torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.inf, 0.0]])],
)
def test_torch_that_is_not_finite_names_its_row(tensor):
    row = int((~torch.isfinite(tensor)).any(dim=1).int().argmax())
    with pytest.raises(
        ValueError, match=f"X at block 0, row {row} of the block, is NaN or infinite"
    ):
        read(source(tensor, c=0))
    with pytest.raises(ValueError, match=r"X at block 0 has shape \(3,\)"):
        read(source(tensor[0], c=0))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int8", "float64"),
        ("int64", "float64"),
        ("uint64", "float64"),
        ("bool", "float64"),
        (">f8", "float64"),
        (">f4", None),
    ],
)
def test_in_which_precision_rows_are_worked_on(kind, dtype):
    values = (RNG.standard_normal((N, D)) * 3).astype(kind)
    rows_source = arrays(values, values[:, 0])
    for _, block in read(rows_source):
        assert block.X.dtype == rows_source.dtype
        assert block.X.dtype.isnative
        assert block.Y.dtype == np.float64
    assert dtype in (None, rows_source.dtype)
    assert np.array_equal(np.concatenate([b.X for _, b in read(rows_source)]), values)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(torch.float16, "float32"), (torch.bfloat16, "float32"), (torch.int32, "float64")],
)
def test_in_which_precision_tensors_are_worked_on(kind, dtype):
    values = torch.arange(N * D).reshape(N, D).to(kind)
    rows_source = arrays(values)
    assert rows_source.dtype == dtype
    assert {block.X.dtype for _, block in read(rows_source)} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    "values",
    [
        np.array([["a", "b", "c"]]),
        np.array([[1, None, 2]], dtype=object),
        np.array([[1j, 2, 3]]),
        np.array([["2020-01-01"] * 3], dtype="M8[D]"),
    ],
)
def test_what_is_no_number_is_refused(values):
    with pytest.raises(TypeError, match=r"X at block 0 holds .*: real numbers are wanted"):
        read(source(values, c=0))
    with pytest.raises(TypeError, match=r"Y at block 0 holds .*: real numbers are wanted"):
        read(source((X[:1], values), c=D))


def test_empty_blocks_are_no_blocks():
    empty = (X[:0], Y[:0], WEIGHTS[:0])
    assert read(source(empty)) == []
    with pytest.raises(ValueError, match="said 1 rows and gave 0"):
        read(source(empty, n=1))
    with pytest.raises(ValueError, match="rows of 3 were announced"):
        read(source((X[:0, :2], Y[:0])))


def test_a_source_is_asked_for_blocks_of_that_size():
    sizes = []

    class Asked(ArraySource):
        def blocks(self, rows):
            sizes.append(rows)
            yield Block(self.X, self.Y)

    found = read(Asked(X, Y), 6)
    assert sizes == [6]
    assert [start for start, _ in found] == [0, 6]
    assert found[0][1].place == "row 0"  # where a source says nothing


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ((X[:, 0],), r"X must be \(rows, features\), got shape \(11,\)"),
        ((X[:, :0],), r"got shape \(11, 0\)"),
        ((X[:0],), "X has no rows"),
        ((X, Y[:4]), "Y has 4 rows, but X has 11"),
        ((X, Y, WEIGHTS[:4]), "weights has 4 rows, but X has 11"),
        ((X, Y[:, :0]), r"Y must be \(rows,\) or \(rows, outputs\), got shape \(11, 0\)"),
        ((X, Y[:, :, None]), r"got shape \(11, 2, 1\)"),
    ],
)
def test_arrays_of_another_form_are_refused_at_once(parts, match):
    with pytest.raises(ValueError, match=match):
        arrays(*parts)


def test_a_named_source_says_its_name():
    with pytest.raises(ValueError, match="X of a table has no rows"):
        ArraySource(X[:0], name="a table")
    assert next(ArraySource(X, name="a table").blocks(3)).place == "a table, row 0"


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"d": 0}, ValueError, "d=0 must be at least 1"),
        ({"d": 2.5}, TypeError, "d=2.5 must be a whole number"),
        ({"d": 2, "c": -1}, ValueError, "c=-1 must be at least 0"),
        ({"d": 2, "n": 0}, ValueError, "n=0 must be at least 1"),
        ({"d": 2, "dtype": "float16"}, ValueError, "dtype='float16' is not known"),
    ],
)
def test_what_blocks_announce_is_checked(keywords, error, match):
    with pytest.raises(error, match=match):
        blocks(lambda: iter([]), **keywords)
    with pytest.raises(TypeError, match="must be callable"):
        blocks([(X, Y)], d=D)


def test_what_a_source_says_of_itself():
    whole, made = arrays(X, Y), source((X, Y), n=N)
    assert (whole.n, whole.d, whole.c, whole.rereadable) == (N, D, C, True)
    assert (made.n, made.d, made.c, made.rereadable) == (N, D, C, True)
    assert source((X, Y)).n is None
    assert arrays(X).c == 0
    assert (whole.columns, whole.outputs, made.columns, made.outputs) == (None,) * 4
    assert not blocks(lambda: iter([]), d=1, rereadable=False).rereadable
    assert len(read(made)) == len(read(made)) == 3


def source_of(*parts, c=0, dtype="float64", n=None):
    return sdgpu.rows.blocks(lambda: iter(parts), d=2, c=c, dtype=dtype, n=n)


ROWS, TARGETS = np.ones((3, 2)), np.zeros(3)


@pytest.mark.parametrize("first", [True, False])
def test_all_blocks_have_weights_or_none(first):
    """Those of a block that followed one without were lost."""
    parts = [(ROWS, TARGETS, np.ones(3)), (ROWS, TARGETS)]
    with pytest.raises(
        ValueError, match="the block at block 1 is of another kind: all or none have weights"
    ):
        list(checked_blocks(source_of(*(parts if first else parts[::-1]), c=1), 4))


def test_all_blocks_are_of_torch_or_none():
    with pytest.raises(ValueError, match="all or none have rows of torch"):
        list(checked_blocks(source_of(ROWS, torch.ones(3, 2)), 4))


def test_what_would_be_lost_is_refused():
    masked = np.ma.array(ROWS, mask=ROWS > 0)
    for values, message in (
        (masked, "X at block 0 is a masked array"),
        (torch.ones(3, 2, dtype=torch.complex64), "X at block 0 holds torch.complex64"),
    ):
        with pytest.raises(TypeError, match=message):
            list(checked_blocks(source_of(values), 4))


def test_what_float32_cannot_hold_is_named():
    with pytest.raises(ValueError, match="row 1 of the block, is NaN or infinite in float32"):
        list(checked_blocks(source_of(ROWS * [[1.0], [1e300], [1.0]], dtype="float32"), 4))


def test_more_rows_than_announced_are_not_given():
    blocks = checked_blocks(source_of(ROWS, ROWS, n=4), 3)
    assert next(blocks)[0] == 0
    with pytest.raises(ValueError, match="the source said 4 rows and gave 6"):
        next(blocks)


def test_blocks_of_no_rows_never_end():
    with pytest.raises(ValueError, match="rows=0"):
        list(checked_blocks(source_of(ROWS), 0))


def test_weights_of_torch_that_have_gradients():
    weights = torch.ones(3, requires_grad=True)
    (_, block), *_ = checked_blocks(source_of((ROWS, TARGETS, weights), c=1), 4)
    assert (block.weights == 1).all()


def test_a_reader_that_is_no_longer_wanted_lets_go():
    closed = []

    def make():
        try:
            for _ in range(100):
                yield ROWS
        finally:
            closed.append(True)

    blocks = prefetched(checked_blocks(sdgpu.rows.blocks(make, d=2), 3))
    next(blocks)
    blocks.close()
    assert closed == [True]
