"""Predictors that are kept: the same predictions out of a file and in plain torch, damage named, code refused."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import sdgpu
from sdgpu.backend import sealed_tensors
from sdgpu.backend.sealed_tensors import read_tensors, write_tensors
from tests.damage import cut, damages, flipped, lengthened, zeroed
from tests.engine.test_gradients import differences
from tests.fuzz.problems import KERNELS

RNG = np.random.default_rng(5)
N, D, C, M, T = 40, 3, 2, 7, 3
X, NEW, Y = RNG.normal(size=(N, D)), RNG.normal(size=(M, D)), RNG.normal(size=(N, C))
WEIGHTS = np.where(np.arange(N) % 5 == 2, 0.0, RNG.uniform(0.2, 3.0, N))
NAMES = [name for name in KERNELS if name != "function"]
FEATURES = {
    "nystrom": (2 * sdgpu.Matern(1.5), sdgpu.Nystrom(12)),
    "fourier": (sdgpu.Gaussian(0.4, [1.0, 2.0, 0.5]), sdgpu.RandomFourier(30)),
    "own": (sdgpu.Polynomial(2) + sdgpu.Cosine(), sdgpu.Explicit()),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "p.safetensors"


def close(found, wanted, tol=1e-11):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tol * np.abs(wanted).max(initial=1e-9))


def rows_of(name):
    if name in ("cubicgreen", "cubicspline", "bridge"):
        return RNG.random((N, 1)), RNG.random((M, 1))
    if name in ("chi2", "additivechi2", "intersection"):
        return np.abs(X), np.abs(NEW)
    return X, NEW


@pytest.mark.parametrize("name", NAMES)
def test_out_of_a_file(name, path):
    x, new = rows_of(name)
    for weights, intercept in ((None, False), (WEIGHTS, True)):
        how = {"sample_weight": weights, "intercept": intercept, "method": "eigh"}
        fit = sdgpu.fit(x, Y, KERNELS[name](0.7), [0.5], **how)
        chain = fit.path(0.5, [0.3, -0.4], T)
        kept = [(chain.predictor(step), chain.predict(new)[step - 1]) for step in (1, 2, 3)]
        kept.append((fit.limit(0.5, 0.3).predictor(), fit.limit(0.5, 0.3).predict(new)))
        for predictor, wanted in kept:
            predictor.save(path)
            found = sdgpu.open_predictor(path)
            close(found.predict(new), wanted)
            close(found.gradient(new), predictor.gradient(new), 1e-9)
            n = N if weights is None else int((WEIGHTS > 0).sum())  # the others have no coefficient
            assert found.dual.shape == (n, C)
            found.save(path)  # once more: the same
            close(sdgpu.open_predictor(path).predict(new), wanted)


HOWS = {
    "lanczos": {"method": "lanczos"},
    "tiled": {"method": "subspace", "operator": "tiled"},
    "cg": {"method": "cg"},
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("intercept", [False, True])
def test_other_methods(how, intercept, path):
    fit = sdgpu.fit(X, Y, sdgpu.Gaussian(0.4), [0.5], intercept=intercept, **HOWS[how])
    fit.path(0.5, 0.3, T).predictor().save(path)
    close(sdgpu.open_predictor(path).predict(NEW), fit.path(0.5, 0.3, T).predict(NEW)[-1])
    module = fit.path(0.5, 0.3, T).predictor().module()
    close(module(torch.tensor(NEW)).numpy(), fit.path(0.5, 0.3, T).predict(NEW)[-1])


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("intercept", [False, True])
def test_feature_models(name, intercept, path):
    kernel, features = FEATURES[name]
    fit = sdgpu.fit(X, Y, kernel, [0.5], features=features, intercept=intercept)
    predictor, wanted = fit.limit(0.5, 0.3).predictor(), fit.limit(0.5, 0.3).predict(NEW)
    predictor.save(path)
    found = sdgpu.open_predictor(path)
    close(found.predict(NEW), wanted)
    if not intercept:
        assert np.array_equal(found.predict(NEW), wanted)
    module = predictor.module()
    close(module(torch.tensor(NEW)).numpy(), wanted, 1e-10)
    close(module.gradient(torch.tensor(NEW)).numpy(), predictor.gradient(NEW), 1e-9)
    close(found.gradient(NEW), predictor.gradient(NEW), 1e-12)


def test_a_fit_of_the_same_rows_is_the_same_to_the_bit(path):
    """Without weights and intercept no number changes, and all rows have coefficients."""
    chain = sdgpu.fit(X, Y, sdgpu.NTK(2), [0.5], method="eigh").path(0.5, 0.3, T)
    chain.predictor().save(path)
    assert np.array_equal(sdgpu.open_predictor(path).predict(NEW), chain.predictor().predict(NEW))


def test_shapes_libraries_and_names(path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=["a", "b", "c"])
    fit = sdgpu.fit(table, Y[:, 0], sdgpu.Gaussian(0.4), [0.5])
    fit.limit(0.5, 0.3).predictor().save(path)
    found, wanted = sdgpu.open_predictor(path), fit.limit(0.5, 0.3).predict(NEW)
    close(found.predict(NEW), wanted)
    assert found.predict(NEW).shape == (M,)
    assert found.predict(NEW[:0]).shape == (0,)
    close(found.predict(pandas.DataFrame(NEW, columns=["a", "b", "c"])), wanted)
    with pytest.raises(ValueError, match="in another order"):
        found.predict(pandas.DataFrame(NEW, columns=["b", "a", "c"]))
    rows = torch.tensor(NEW, requires_grad=True)
    values = found.predict(rows)
    close(values.detach().numpy(), wanted)
    values.sum().backward()
    close(rows.grad.numpy(), found.gradient(NEW), 1e-12)
    strict = pytest.importorskip("array_api_strict")
    assert type(found.predict(strict.asarray(NEW))) is type(strict.asarray(NEW))
    with pytest.raises(ValueError, match="X_new has 2 features"):
        found.predict(NEW[:, :2])
    again = pickle.loads(pickle.dumps(found))
    close(again.predict(NEW), wanted, 1e-15)


def test_sparse_rows(path):
    sparse = pytest.importorskip("scipy.sparse")
    fit = sdgpu.fit(sparse.csr_matrix(X), Y, sdgpu.Linear(), [0.5])
    fit.limit(0.5, 0.3).predictor().save(path)
    found = sdgpu.open_predictor(path)
    close(found.predict(sparse.csr_matrix(NEW)), fit.limit(0.5, 0.3).predict(NEW))
    close(found.predict(NEW), fit.limit(0.5, 0.3).predict(NEW))


def test_float32(path):
    fit = sdgpu.fit(X, Y, sdgpu.Gaussian(0.4), [0.5], intercept=True)
    predictor = fit.limit(0.5, 0.3).predictor()
    predictor.save(path)
    size = path.stat().st_size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.save(path, dtype="float32")
    assert path.stat().st_size < 0.6 * size + 800
    found = sdgpu.open_predictor(path)
    assert found.predict(NEW).dtype == np.float32
    close(found.predict(NEW), predictor.predict(NEW), 1e-6)
    module = predictor.module(dtype="float32")
    assert module(torch.tensor(NEW, dtype=torch.float32)).dtype == torch.float32
    close(module(torch.tensor(NEW, dtype=torch.float32)).numpy(), predictor.predict(NEW), 1e-5)
    narrow = sdgpu.fit(X, Y, sdgpu.Gaussian(0.01), [1e-6], method="eigh").path(1e-6, steps=1)
    with pytest.warns(UserWarning, match="float32 moves predictions by"):
        narrow.predictor().save(path, dtype="float32")
    huge = sdgpu.fit(X, 1e60 * Y, sdgpu.Gaussian(0.4), [0.5]).path(0.5).predictor()
    with pytest.raises(ValueError, match="coefficients leaves float32"):
        huge.save(path, dtype="float32")
    with pytest.raises(ValueError, match="numbers leave float32"):
        huge.module(dtype="float32")
    huge.save(path)
    close(sdgpu.open_predictor(path).predict(NEW), huge.predict(NEW))


def test_a_pickle_holds_neither_targets_nor_rows_of_a_feature_model():
    wide = RNG.normal(size=(4000, D))
    fit = sdgpu.fit(
        wide, wide @ np.ones((D, 20)), sdgpu.Gaussian(0.4), [0.5], features=sdgpu.Nystrom(8)
    )
    assert len(pickle.dumps(fit.path(0.5).predictor())) < 10_000 < wide.nbytes
    fit = sdgpu.fit(
        wide[:300], Y[:1] + wide[:300, :2], sdgpu.Gaussian(0.4), [9.0], method="lanczos"
    )
    path = fit.path(9.0)
    assert len(pickle.dumps(path.predictor())) + 8 * 300 * 2 < len(pickle.dumps(path))


def test_functions_without_coefficients(path):
    fit = sdgpu.fit(X, 0 * Y, sdgpu.Gaussian(0.4), [0.5])
    fit.path(0.5).predictor().save(path)
    assert not sdgpu.open_predictor(path).predict(NEW).any()
    single = sdgpu.fit(X[:1], Y[:1], sdgpu.Gaussian(0.4), [0.5], method="eigh").path(0.5)
    single.predictor().save(path)
    close(sdgpu.open_predictor(path).predict(NEW), single.predict(NEW)[-1])


# plain torch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_plain_torch(name):
    x, new = rows_of(name)
    fit = sdgpu.fit(x, Y, KERNELS[name](0.7), [0.5], sample_weight=WEIGHTS, intercept=True)
    predictor = fit.path(0.5, [0.3, -0.4], T).predictor()
    module = predictor.module()
    for rows in (new, x, x + 1e-9, new[:0], new[:1]):
        close(module(torch.tensor(rows)).numpy(), predictor.predict(rows), 1e-10)
    close(module.gradient(torch.tensor(new)).numpy(), predictor.gradient(new), 1e-9)
    assert torch.isfinite(module.gradient(torch.tensor(x))).all()
    assert not list(module.parameters())
    rows = torch.tensor(new[:2], requires_grad=True)
    assert torch.autograd.gradcheck(module, rows)
    assert torch.autograd.gradgradcheck(module, rows)


def test_the_state_goes_round_and_moves():
    fits = [sdgpu.fit(X, y, sdgpu.NTK(2), [0.5], intercept=True).path(0.5) for y in (Y, Y[::-1])]
    one, two = (fit.predictor().module() for fit in fits)
    rows = torch.tensor(NEW)
    wanted = one(rows)
    assert not torch.allclose(two(rows), wanted)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two(rows), wanted)
    single = one.to(torch.float32)
    close(single(rows.float()).numpy(), wanted.numpy(), 1e-5)
    assert pickle.loads(pickle.dumps(two))(rows).equal(wanted)


@pytest.mark.parametrize(
    "name", ["gaussian", "laplacian", "matern12", "arccosine0", "ntk_bias", "product", "spline"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Dynamo, about caches of array-api-compat
def test_exported_and_compiled(name):
    kernel = sdgpu.CubicSpline() if name == "spline" else KERNELS[name](0.7)
    x, new = rows_of("cubicspline" if name == "spline" else name)
    predictor = sdgpu.fit(x, Y[:, 0], kernel, [0.5]).path(0.5).predictor()
    module, rows = predictor.module(), torch.tensor(new)
    sizes = ({0: torch.export.Dim("m")},)
    exported = torch.export.export(module, (rows,), dynamic_shapes=sizes, strict=False).module()
    close(exported(torch.tensor(x)).numpy(), predictor.predict(x))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    close(compiled(rows).numpy(), predictor.predict(new))
    torch._dynamo.reset()


def test_rows_of_zeros_in_plain_torch():
    zero = np.vstack([NEW[:2], np.zeros((1, D))])
    rows = np.vstack([X, np.zeros((1, D))])
    targets = np.vstack([Y, Y[:1]])
    for kernel in (sdgpu.ArcCosine(0), sdgpu.ArcCosine(1), sdgpu.Cosine(), sdgpu.NTK(2)):
        predictor = sdgpu.fit(rows, targets, kernel, [0.5], method="eigh").path(0.5).predictor()
        close(predictor.module()(torch.tensor(zero)).numpy(), predictor.predict(zero), 1e-10)


def test_features_of_a_module_and_of_a_function():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(D, 5), torch.nn.Tanh()).double()
    for function in (net, lambda rows: rows**2):
        fit = sdgpu.fit(X, Y, lams=[0.5], features=sdgpu.Explicit(function), intercept=True)
        predictor = fit.path(0.5).predictor()
        close(predictor.module()(torch.tensor(NEW)).detach().numpy(), predictor.predict(NEW))
        close(predictor.gradient(NEW), differences(predictor.predict, NEW), 1e-7)
        with pytest.raises(TypeError, match="features= is a function: it cannot be saved"):
            predictor.save("no.safetensors")


# what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "rows", "saved", "made"),
    [
        (
            lambda a, b: a @ b.T,
            X,
            "no formula of this package; pickle",
            "FunctionKernel has no formula",
        ),
        (sdgpu.Precomputed(), X @ X.T, "cannot go into a file", "Precomputed has no formula"),
        (
            sdgpu.EmpiricalNTK(torch.nn.Linear(D, 1)),
            X,
            "cannot go into a file",
            "EmpiricalNTK has no",
        ),
    ],
)
def test_what_is_no_formula(kernel, rows, saved, made, path):
    predictor = sdgpu.fit(rows, Y, kernel, [0.5], method="eigh").path(0.5).predictor()
    if saved is not None:
        with pytest.raises(TypeError, match=saved):
            predictor.save(path)
        assert not path.exists()
    with pytest.raises(TypeError, match=made):
        predictor.module()


def test_bad_arguments(path):
    predictor = sdgpu.fit(X, Y, sdgpu.Gaussian(), [0.5]).path(0.5).predictor()
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        predictor.save(path.with_suffix(".pkl"))
    with pytest.raises(ValueError, match="dtype='float16'"):
        predictor.save(path, dtype="float16")
    with pytest.raises(ValueError, match="dtype='half'"):
        predictor.module(dtype="half")
    with pytest.raises(FileNotFoundError):
        sdgpu.open_predictor(path)
    one = sdgpu.fit(X[:, :1], Y, sdgpu.NTK(1), [0.5]).path(0.5).predictor()
    with pytest.raises(ValueError, match="loses half of its digits in plain torch"):
        one.module()


def test_a_write_that_fails_leaves_what_was_there(path, monkeypatch):
    predictor = sdgpu.fit(X, Y, sdgpu.Gaussian(), [0.5]).path(0.5).predictor()
    predictor.save(path)
    content = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed_tensors, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        predictor.save(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", [flipped, cut, zeroed, lengthened])
def test_damage_is_named_or_harmless(kind, path):
    fit = sdgpu.fit(X[:9], Y[:9, 0], sdgpu.Gaussian(), [0.5], features=sdgpu.Nystrom(4))
    fit.path(0.5).predictor().save(path)
    wanted, named, harmless = sdgpu.open_predictor(path).predict(NEW), 0, 0
    every = list(damages(path.read_bytes(), 3, kind, times=200))
    for content in every:
        path.write_bytes(content)
        try:
            found = sdgpu.open_predictor(path).predict(NEW)
        except ValueError as error:
            named += str(error).startswith(f"predictor {path} is damaged (")
        else:
            harmless += np.array_equal(found, wanted)
    assert named + harmless == len(every) > 150
    assert named > 0.9 * len(every)


LINEAR = {"kind": "Linear", "lengthscale": None}


@pytest.mark.parametrize(
    ("numbers", "arrays", "words"),
    [
        ({"predictor": 2}, {}, "it is of version 2, not 1"),
        ({"kernel": None}, {}, "neither a kernel nor a feature map"),
        ({"kernel": {"kind": "FunctionKernel"}}, {}, "'FunctionKernel' is no kernel"),
        ({"kernel": {"kind": "Gaussian", "gamma": -1}}, {}, "gamma=-1 must be > 0"),
        ({"kernel": {"kind": "Precomputed"}}, {}, "'Precomputed' is no kernel"),
        ({"kernel": {"kind": "CubicGreen"}}, {}, "kernel of one feature"),
        ({"kernel": {"kind": "Linear", "lengthscale": [1.0]}}, {}, "lengthscale has 1 entries"),
        ({"map": {"kind": "callable"}}, {}, "'callable' is no feature map"),
        ({"map": {"kind": "own", "d": 10**7}, "kernel": LINEAR}, {}, "no features of its own"),
        ({"map": {"kind": "fourier", "scale": 1.0}}, {}, "lacks 'frequencies'"),
        ({"map": {"kind": "own", "d": 5}, "kernel": LINEAR}, {}, "for 5 rows of 5 features"),
        ({"dtype": "float16"}, {}, "dtype='float16'"),
        ({"dtype": "float32"}, {}, "holds NaN, infinity or float64"),
        ({"flat": 1}, {}, "flat=1 is neither true nor false"),
        ({"flat": True}, {}, "2 outputs without an axis"),
        ({"d": 4}, {}, "for 9 rows of 3 features, not 4"),
        ({"d": "3"}, {}, "not '3'"),
        ({"columns": ["a"]}, {}, "1 names for 3 columns"),
        ({"columns": [1, 2, 3]}, {}, "3 names for 3 columns"),
        ({"columns": 7}, {}, "not iterable"),
        ({}, {"X": np.eye(3)}, "coefficients .9, 2. and constants .2,. for 3 rows"),
        ({}, {"X": np.full((9, 3), np.nan)}, "X holds NaN"),
        ({}, {"X": np.zeros(9)}, "X must be two-dimensional"),
        ({}, {"X": np.full((9, 3), 1e200)}, "overflows"),
        ({}, {"coefficients": np.zeros((9, 1))}, "coefficients .9, 1."),
        ({}, {"coefficients": np.zeros(9)}, "coefficients .9,."),
        ({}, {"constant": np.zeros(3)}, "constants .3,."),
        ({}, {"constant": np.float64(3)}, "constants .. for"),
        ({}, {"constant": np.zeros(0)}, "constants .0,."),
        ({}, {"constant": np.zeros(2, dtype=int)}, "constant holds NaN, infinity or int64"),
    ],
)
def test_files_that_say_something_else(numbers, arrays, words, path):
    fit = sdgpu.fit(X[:9], Y[:9], sdgpu.Gaussian(), [0.5], method="eigh", intercept=True)
    fit.path(0.5).predictor().save(path)
    stored, metadata = read_tensors(path, "predictor")
    if arrays.get("X") is not None and np.abs(arrays["X"]).max() > 1e100:
        metadata = metadata | {"kernel": LINEAR}
    write_tensors(
        path, {**stored, **{k: np.asarray(v) for k, v in arrays.items()}}, {**metadata, **numbers}
    )
    with pytest.raises(ValueError, match=rf"p.safetensors holds no predictor: .*{words}"):
        sdgpu.open_predictor(path)


def test_files_of_another_kind(path):
    sdgpu.Moments(sdgpu.Linear(), sdgpu.Explicit(), d=D).add(X, Y[:, 0]).save(path)
    with pytest.raises(ValueError, match="holds no predictor: 'predictor' is missing"):
        sdgpu.open_predictor(path)
    sdgpu.fit(X, Y, sdgpu.Gaussian(), [0.5]).path(0.5).predictor().save(path)
    with pytest.raises(ValueError, match="holds no moments: 'moments' is missing"):
        sdgpu.open_moments(path)
    save_file({"X": np.eye(2)}, path)
    with pytest.raises(ValueError, match="it has no checksum"):
        sdgpu.open_predictor(path)
