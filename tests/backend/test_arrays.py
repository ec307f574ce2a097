"""The door for arrays: what passes unchanged, what is cast, and what is refused with a remedy."""

import array_api_strict
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from sdgpu.backend.arrays import Template, as_data, dtype_name, inputs, library, targets


class Exporter:
    """An array of an unknown library: it only speaks DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize(
    "array",
    [
        np.ones((4, 2)),
        np.ones((4, 2), dtype=np.float32),
        np.asfortranarray(np.ones((4, 2))),
        np.ones((8, 4))[::-2, ::2],
        torch.ones(4, 2),
        torch.ones(4, 2, dtype=torch.float64).T,
        array_api_strict.ones((4, 2)),
    ],
)
def test_floats_pass_unchanged(array):
    assert as_data(array, "X") is array or np.shares_memory(as_data(array, "X"), array)


def test_read_only_arrays_pass():
    array = np.ones((3, 2))
    array.flags.writeable = False
    assert as_data(array, "X") is array


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.ones((2, 2), dtype=np.int32), "float64"),
        (np.ones((2, 2), dtype=bool), "float64"),
        (np.ones((2, 2), dtype=np.float16), "float32"),
        (torch.ones(2, 2, dtype=torch.bfloat16), "float32"),
        (torch.ones(2, 2, dtype=torch.int64), "float64"),
        ([[1, 2], [3, 4]], "float64"),
        (pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}), "float64"),
        (pd.DataFrame({"a": [1, 2], "b": [True, False]}), "float64"),
        (pd.DataFrame({"a": [1, 2]}, dtype="Int64"), "float64"),
        (pd.DataFrame({"a": [1, 2]}, dtype="float32"), "float32"),
        (np.ones((2, 2), dtype=">f8"), "float64"),
        (np.ones((2, 2), dtype=np.longdouble), "float64"),
        (Exporter(np.ones((2, 2), dtype=np.float32)), "float32"),
    ],
)
def test_what_is_cast(array, dtype):
    assert dtype_name(as_data(array, "X")) == dtype


def test_gradients_are_left_outside():
    tensor = torch.ones(2, 2, requires_grad=True)
    assert not as_data(tensor, "X").requires_grad


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.array([[1.0, np.nan]]), ValueError, "X has 1 entries that are NaN or infinite"),
        (np.array([[1.0, np.inf]]), ValueError, "NaN or infinite"),
        (torch.tensor([[float("nan")]]), ValueError, "NaN or infinite"),
        (np.ones((2, 2), dtype=complex), TypeError, "complex"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "complex"),
        (np.array([["a", "b"]]), TypeError, "encode strings"),
        (np.array([[1, None]], dtype=object), TypeError, "dtype object"),
        (scipy.sparse.eye(3).tocsr(), TypeError, "toarray"),
        (scipy.sparse.csr_array(np.eye(3)), TypeError, "toarray"),
        (torch.eye(3).to_sparse(), TypeError, "to_dense"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), TypeError, "dates"),
        (None, TypeError, "NoneType"),
        (pd.DataFrame({"a": [1, None]}, dtype="Int64"), ValueError, "1 entries that are NaN"),
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), TypeError, "dtype object"),
        ("diabetes", TypeError, "str"),
        ([[1, 2], [3]], ValueError, "rectangular"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_what_is_refused(value, error, words):
    with pytest.raises(error, match=words):
        as_data(value, "X")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3,), r"X.reshape\(-1, 1\)"),
        ((2, 2, 2), "two-dimensional"),
        ((0, 2), "no rows"),
        ((2, 0), "no features"),
    ],
)
def test_shapes_of_inputs(shape, words):
    with pytest.raises(ValueError, match=words):
        inputs(np.ones(shape), "X")


def test_inputs_count_features():
    with pytest.raises(ValueError, match="X_new has 3 features, but the fit has 2"):
        inputs(np.ones((1, 3)), "X_new", features=2)
    assert inputs(np.ones((0, 2)), "X_new", features=2, empty=True).shape == (0, 2)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4,), "Y has 4 rows, but its inputs have 3"),
        ((3, 1, 1), "rows, outputs"),
        ((3, 0), "no outputs"),
    ],
)
def test_shapes_of_targets(shape, words):
    with pytest.raises(ValueError, match=words):
        targets(np.ones(shape), "Y", rows=3)


def test_targets_remember_the_axis():
    flat, was_flat = targets(np.ones(3), "Y", rows=3)
    assert flat.shape == (3, 1)
    assert was_flat
    assert not targets(np.ones((3, 1)), "Y", rows=3)[1]
    with pytest.raises(ValueError, match="2 outputs, but the fit has 1"):
        targets(np.ones((3, 2)), "Y_val", rows=3, outputs=1)


def test_two_libraries_are_refused():
    with pytest.raises(ValueError, match="X is numpy on cpu, Y is torch on cpu"):
        Template.of(np.ones((2, 1)), torch.ones(2, 1), flat=False)
    assert library(array_api_strict.ones(1)) == "array_api_strict"
