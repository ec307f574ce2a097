"""What callers hand in: read as what it is, or refused with a remedy that works; columns have names."""

import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sdgpu
from sdgpu.backend.arrays import as_data, library
from sdgpu.backend.conversion import column_names
from sdgpu.operators import DenseOperator, TiledOperator
from tests.problems import assert_near

KERNEL = sdgpu.Gaussian(0.5)
RNG = np.random.default_rng(2)
X, Y = RNG.standard_normal((20, 2)), RNG.standard_normal((20, 2))
NEW = RNG.standard_normal((5, 2))
WANTED = sdgpu.fit(X, Y, KERNEL).path().predict(NEW)


def predicted(X, Y, new):
    return sdgpu.fit(X, Y, KERNEL).path().predict(new)


class FakeJax:
    """What JAX arrays are to others: an array API object that cannot be written to."""

    def __init__(self, values):
        self.values = np.array(values)
        self.values.flags.writeable = False
        self.dtype, self.shape, self.ndim = self.values.dtype, self.values.shape, self.values.ndim
        self.size, self.device = self.values.size, "cpu"

    def item(self):
        return self.values.item()

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)

    def __array_namespace__(self, api_version=None):
        return sys.modules["jax"].numpy

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)


@pytest.fixture
def jax(monkeypatch):
    if "jax" in sys.modules:
        pytest.skip("the real one is here")
    module = types.ModuleType("jax")
    module.Array, module.numpy = FakeJax, types.ModuleType("jax.numpy")
    module.numpy.__array_namespace_info__, module.numpy.empty = None, FakeJax
    module.core = types.ModuleType("jax.core")
    module.core.Tracer = type("Tracer", (), {})
    for name in ("jax", "jax.numpy", "jax.core"):
        monkeypatch.setitem(
            sys.modules, name, module if name == "jax" else getattr(module, name[4:])
        )
    return FakeJax


def test_jax_is_read_into_numpy(jax):
    assert library(jax(X)) == "jax"
    found = predicted(jax(X), jax(Y), jax(NEW))
    assert type(found) is np.ndarray
    assert_near(found, WANTED)
    assert_near(KERNEL(jax(X), jax(NEW)), KERNEL(X, NEW))
    operator = sdgpu.operators.TiledOperator(KERNEL, jax(X))
    assert_near(operator.matmat(Y), KERNEL(X) @ Y)
    assert_near(sdgpu.fit(X, Y, KERNEL, lams=jax([1.0])).path(jax(1.0)).predict(NEW), WANTED)


def test_the_real_jax():
    jnp = pytest.importorskip("jax.numpy")
    assert_near(predicted(*(jnp.asarray(a) for a in (X, Y, NEW))), WANTED, rtol=1e-5)


class Kind:
    """A dtype of polars."""

    def __init__(self, name):
        self.name = name

    def is_numeric(self):
        return self.name in ("Float64", "Float32", "Int64", "Decimal")

    def __str__(self):
        return self.name

    def __eq__(self, other):
        return isinstance(other, Kind) and self.name == other.name

    __hash__ = None


class FakePolars:
    """What a frame of polars shows."""

    def __init__(self, columns, names):
        self.data, self.dtypes = columns, [Kind(name) for name in names]
        self.columns = list(columns)
        self.shape = (len(next(iter(columns.values()))), len(columns))

    def __getitem__(self, name):
        return FakeSeries(self.data[name], self.dtypes[self.columns.index(name)].name)

    def to_numpy(self):
        return np.array([list(column) for column in self.data.values()]).T


class FakeSeries:
    def __init__(self, values, name):
        self.values, self.dtype, self.shape = values, Kind(name), (len(values),)

    def to_numpy(self):
        return np.array(self.values)


class FakeLazy:
    columns = ("a", "b")

    def collect(self):
        return FakePolars({"a": X[:, 0], "b": X[:, 1]}, ["Float64"] * 2)

    def collect_schema(self):
        return {}


def test_frames_of_polars():
    frame, new = (
        FakePolars({"a": A[:, 0], "b": A[:, 1]}, ["Float64", "Float64"]) for A in (X, NEW)
    )
    assert_near(predicted(frame, Y, new), WANTED)
    assert_near(
        sdgpu.fit(X, FakeSeries(Y[:, 0], "Float64"), KERNEL).path().predict(NEW), WANTED[..., 0]
    )
    assert as_data(
        FakePolars({"a": [1, 2], "b": [True, False]}, ["Int64", "Boolean"]), "X"
    ).tolist() == [[1, 1], [2, 0]]
    with pytest.raises(
        TypeError, match=r"X is a FakeLazy that is not read yet: pass X.collect\(\)"
    ):
        predicted(FakeLazy(), Y, NEW)
    assert_near(predicted(FakeLazy().collect(), Y, NEW), WANTED)
    for name, values, words in (
        ("String", ["x", "y"], r"column 'b' \(String\) holds text: .*X.to_dummies\('b'\)"),
        ("String", ["1", "2"], r"column 'b' \(String\) holds numbers .*X\['b'\].cast\(float\)"),
        ("Date", [0, 1], r"column 'b' \(Date\) holds dates: .*\(X\['b'\] - X\['b'\].min\(\)\).dt"),
    ):
        with pytest.raises(TypeError, match=words):
            as_data(FakePolars({"a": [1.0, 2.0], "b": values}, ["Float64", name]), "X")


def test_the_real_polars():
    polars = pytest.importorskip("polars")
    frame, new = (polars.DataFrame({"a": A[:, 0], "b": A[:, 1]}) for A in (X, NEW))
    assert_near(predicted(frame, polars.DataFrame(Y), new), WANTED)
    with pytest.raises(ValueError, match="another order"):
        predicted(frame, Y, new.select("b", "a"))
    for column in (["x", "y"], ["1", "2"]):
        frame = polars.DataFrame({"a": [1.0, 2.0], "b": column})
        with pytest.raises(TypeError, match="column 'b'") as error:
            as_data(frame, "X")
        remedy = str(error.value).split("pass ")[-1].split("with ")[-1]
        as_data(eval(remedy, {"X": frame}), "X")


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("kind", ["i2", "i4", "i8", "u4", "f4", "f8"])
def test_byte_order(kind, order):
    array = np.arange(6).reshape(3, 2).astype(order + kind)
    found = as_data(array, "X")
    assert found.dtype.isnative
    assert (found == np.arange(6).reshape(3, 2)).all()


def test_an_array_like_of_pyarrow():
    class Table:
        column_names = ("a", "b")

        def combine_chunks(self):
            return self

        def to_pandas(self):
            return pd.DataFrame(X, columns=["a", "b"])

    assert_near(predicted(Table(), Y, NEW), WANTED)
    assert column_names(Table()) == ("a", "b")


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["x", "y"], "holds text"),
        (pd.array(["x", "y"], dtype="string"), "holds text"),
        (pd.Categorical(["u", "v"]), "holds text"),
        (pd.to_datetime(["2020-01-01", "2021-01-02"]), "holds dates"),
        (pd.to_datetime(["2020-01-01", "2021-01-02"], utc=True), "holds dates"),
        (pd.to_timedelta([1, 2], unit="s"), "holds dates"),
        (pd.period_range("2020", periods=2, freq="D"), "holds periods"),
        (np.array([1, 2.5], dtype=object), "stored as objects"),
        (np.array(["1", "2.5"]), "stored as objects"),
        (pd.Categorical([3, 4]), "stored as objects"),
        (np.array([1 + 2j, 3]), "is complex"),
    ],
)
def test_a_column_that_is_no_number_is_named_with_a_remedy_that_works(column, words):
    frame = pd.DataFrame({"a": [1.0, 2.0], "when": column})
    with pytest.raises(TypeError, match=f"column 'when' .*|{words}") as error:
        sdgpu.fit(frame, [1.0, 2.0], KERNEL)
    assert words in str(error.value)
    assert "'when'" in str(error.value)
    remedy = str(error.value).split("first, ")[-1].split("pass ")[-1].split("with ")[-1]
    mended = eval(remedy, {"X": frame, "pandas": pd, "numpy": np})
    if isinstance(mended, pd.DataFrame):
        as_data(mended, "X")
    else:
        as_data(frame.assign(when=mended), "X")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([["1", "2"]]), r"X.astype\(float\)"),
        (np.array([["1", "b"]]), "column 1 holds 'b': encode strings"),
        (np.array([[1, None]], dtype=object), r"X.astype\(float\)"),
        (np.array([[1, "b"]], dtype=object), "dtype object: column 1 holds 'b'"),
        (["a", "b"], "it holds 'a'"),
        ([["1", "2"]], r"numpy.asarray\(X, dtype=float\)"),
        ([[1, None]], r"numpy.asarray\(X, dtype=float\)"),
        ((one for one in [1.0, 2.0]), r"X is a generator, .*list\(X\)"),
        (xr.DataArray([["a", "1"]]), "column 0 holds 'a'"),
        (pd.Series(["a", "b"]), "it holds text"),
        (np.array(["2020-01-01", "2020-01-03"], dtype="datetime64[D]"), "dates"),
        (np.array([1, 2], dtype="timedelta64[s]"), "timedelta64"),
        (np.zeros(2, dtype=[("a", "f8"), ("b", "f8")]), "structured_to_unstructured"),
    ],
)
def test_arrays_that_are_no_numbers(value, words):
    with pytest.raises(TypeError, match=words) as error:
        as_data(value, "X")
    remedy = str(error.value).split("first, ")[-1].split("pass ")[-1]
    if "X" in remedy and "column" not in remedy:
        import numpy.lib.recfunctions

        mended = eval(remedy.split("with ")[-1], {"X": value, "numpy": numpy, "pandas": pd})
        assert np.asarray(mended).dtype.kind in "bf"


def test_lists_follow_the_library_of_the_rest():
    wanted = torch.tensor(WANTED)
    for one, two, new in (
        (torch.tensor(X), Y.tolist(), NEW.tolist()),
        (X.tolist(), torch.tensor(Y), torch.tensor(NEW)),
        (torch.tensor(X), [tuple(row) for row in Y], torch.tensor(NEW)),
    ):
        found = predicted(one, two, new)
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, wanted)
    fitted = sdgpu.fit(torch.tensor(X), Y.tolist(), KERNEL)
    grid = {"alphas": [0.5], "steps": 2}
    assert_near(
        fitted.sweep(NEW.tolist(), WANTED[0].tolist(), **grid).dataset["mse"],
        fitted.sweep(torch.tensor(NEW), torch.tensor(WANTED[0]), **grid).dataset["mse"],
    )
    with pytest.raises(ValueError, match="Y is numpy on cpu"):  # an array has a library of its own
        predicted(torch.tensor(X), Y, NEW)


FRAME, NEW_FRAME = (pd.DataFrame(A, columns=["a", "b"]) for A in (X, NEW))
TARGETS, NEW_TARGETS = (pd.DataFrame(A, columns=["u", "v"]) for A in (Y, NEW))
QUESTIONS = {
    "path": lambda f, new, truth: f.path().predict(new),
    "predictor": lambda f, new, truth: f.path().predictor().predict(new),
    "variance": lambda f, new, truth: f.path().variance(new).posterior,
    "limit": lambda f, new, truth: f.limit().predict(new),
    "sweep": lambda f, new, truth: f.sweep(new, truth, alphas=[0.5], steps=2).dataset["mse"],
    "optimal_alphas": lambda f, new, truth: f.optimal_alphas(new, truth).mse,
    "joint_alphas": lambda f, new, truth: f.joint_alphas(new, truth).mse,
    "constrained": lambda f, new, truth: sdgpu.constrained_path(
        FRAME, TARGETS, KERNEL, eps=0.5
    ).predict(new),
    "kernel": lambda f, new, truth: KERNEL(FRAME, new),
    "dense": lambda f, new, truth: DenseOperator(KERNEL, FRAME).cross(new).dense(),
    "tiled": lambda f, new, truth: TiledOperator(KERNEL, FRAME).cross(new).dense(),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_columns_keep_their_names(question):
    fitted, ask = sdgpu.fit(FRAME, TARGETS, KERNEL), QUESTIONS[question]
    wanted = np.asarray(ask(sdgpu.fit(X, Y, KERNEL), NEW, NEW))
    assert_near(np.asarray(ask(fitted, NEW_FRAME, NEW_TARGETS)), wanted)
    assert_near(np.asarray(ask(fitted, NEW, NEW)), wanted)  # arrays have no names
    for new, words in (
        (NEW_FRAME[["b", "a"]], r"has the columns of \w in another order, 'b', 'a'"),
        (NEW_FRAME.rename(columns={"a": "z"}), "without 'a' and with 'z'"),
        (NEW_FRAME[["a"]], "without 'b'"),
        (NEW_FRAME.assign(c=1.0), "with 'c'"),
    ):
        with pytest.raises(ValueError, match=words):
            ask(fitted, new, NEW_TARGETS)
    # what was fitted without names takes any
    if question not in ("constrained", "kernel", "dense", "tiled"):
        assert_near(np.asarray(ask(sdgpu.fit(X, Y, KERNEL), NEW_FRAME, NEW_TARGETS)), wanted)
    if question in ("sweep", "optimal_alphas", "joint_alphas"):
        with pytest.raises(ValueError, match="Y_val has the columns of Y in another order"):
            ask(fitted, NEW_FRAME, NEW_TARGETS[["v", "u"]])


def test_xarray():
    named = {"dims": ("row", "feature"), "coords": {"feature": ["a", "b"]}}
    one, new = (xr.DataArray(A, **named) for A in (X, NEW))
    assert_near(predicted(one, xr.DataArray(Y), new), WANTED)
    assert_near(predicted(X, xr.DataArray(Y[:, 0]), NEW), WANTED[..., 0])
    with pytest.raises(ValueError, match="another order"):
        predicted(one, Y, new[:, ::-1])
    with pytest.raises(TypeError, match=r"X cannot be read as an array: .*to_dataarray"):
        predicted(xr.Dataset({"a": ("row", X[:, 0])}), Y, NEW)


def test_names_follow_other_targets_and_single_columns():
    fitted = sdgpu.fit(FRAME, TARGETS, KERNEL).with_targets(NEW_TARGETS.iloc[[0] * 20][["v", "u"]])
    with pytest.raises(ValueError, match="another order"):
        fitted.optimal_alphas(NEW_FRAME, NEW_TARGETS)
    one = sdgpu.fit(FRAME, TARGETS[["u"]], KERNEL)  # there is nothing to confuse
    assert one.optimal_alphas(NEW_FRAME, NEW_TARGETS[["v"]]).mse.shape == (2,)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (FRAME, ("a", "b")),
        (pd.DataFrame(X), None),
        (pd.DataFrame(X, columns=["a", 1]), None),
        (X, None),
        (X.tolist(), None),
        (torch.tensor(X), None),
        (xr.DataArray(X, dims=("row", "feature")), None),
        (xr.DataArray(X, dims=("row", "feature"), coords={"feature": ["a", "b"]}), ("a", "b")),
        (pd.Series(Y[:, 0], name="u"), None),
    ],
)
def test_names_of_columns(value, names):
    assert column_names(value) == names


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, pd.Series])
def test_one_feature_has_a_remedy_that_works(make):
    x = make(X[:, 0])
    with pytest.raises(ValueError, match="for one feature use") as error:
        predicted(x, Y, NEW)
    column = eval(str(error.value).split("use ")[-1], {"X": x})
    assert sdgpu.fit(column, list(Y), KERNEL).info.d == 1
