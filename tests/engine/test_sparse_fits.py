"""Fits of sparse rows by the kernel itself: the answers of the same rows dense, by every method."""

import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
import torch

import sdgpu
from sdgpu.backend.backends import TorchBackend
from sdgpu.backend.sealed_tensors import read_tensors, write_tensors
from sdgpu.operators import DenseOperator, KeOpsOperator, TiledOperator
from sdgpu.operators.tile_prices import TilePrices
from tests.problems import assert_near

N, M, D, C = 110, 17, 40, 2
LAM = 0.05
RNG = np.random.default_rng(11)
ROWS = np.where(RNG.random((N + M, D)) < 0.15, RNG.standard_normal((N + M, D)), 0.0)
ROWS[5] = 0.0  # a row without entries
ROWS[:, 4] = 0.0  # a feature without
ROWS[8] = ROWS[9]  # equal rows
ROWS[12] = ROWS[13] * (1 + 1e-9)  # and nearly so
ROWS[N + 2] = -ROWS[20]  # an opposite one
X, X_NEW = ROWS[:N], ROWS[N:]
TRUTH = np.stack([np.sin(ROWS.sum(axis=1)), ROWS[:, 0]], axis=1) + 0.1 * RNG.standard_normal(
    (N + M, C)
)
Y, Y_NEW = TRUTH[:N], TRUTH[N:]
WEIGHTS = np.where(np.arange(N) % 7, RNG.uniform(0.2, 2, N), 0.0)
csr = scipy.sparse.csr_array
KERNELS = [
    sdgpu.Gaussian(0.2),
    sdgpu.Gaussian(0.5, np.linspace(0.7, 3, D)),
    sdgpu.Matern(0.5, 2.0),
    sdgpu.Matern(2.5, 2.0),
    sdgpu.RationalQuadratic(0.7, 2.0),
    sdgpu.Linear(),
    sdgpu.Polynomial(3, 0.5, 1.0),
    sdgpu.Cosine(),
    sdgpu.Tanimoto(),
    sdgpu.ArcCosine(0),
    sdgpu.ArcCosine(1),
    sdgpu.ArcCosine(2),
    sdgpu.NNGP(2),
    sdgpu.NTK(1),
    sdgpu.NTK(2, bias_var=0.1),
    2.0 * sdgpu.Gaussian(0.2) * sdgpu.Linear() + sdgpu.On([3, 7, 0, 9], sdgpu.Tanimoto()),
]
WAYS = [
    ("eigh", "dense"),
    ("lanczos", "dense"),
    ("lanczos", "tiled"),
    ("subspace", "dense"),
    ("subspace", "tiled"),
    ("cg", "dense"),
    ("cg", "tiled"),
]


def both(kernel, rows=X, targets=Y, **how):
    """The fit of sparse rows, and of the same rows dense."""
    how = {"tol": 1e-9, **how}
    return (
        sdgpu.fit(csr(rows), targets, kernel, LAM, **how),
        sdgpu.fit(rows, targets, kernel, LAM, **how),
    )


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize(("method", "operator"), WAYS)
def test_predictions_are_those_of_the_dense_rows(kernel, method, operator):
    sparse, dense = both(kernel, method=method, operator=operator)
    assert (sparse.info.method, sparse.info.operator) == (method, operator)
    assert sparse.info.d == D
    one, other = (fitted.path(LAM, [0.3, -0.2], 3) for fitted in (sparse, dense))
    wanted = other.predict(X_NEW)
    near = (
        1e-10 if method == "eigh" else 1e-8
    )  # grown bases are right to `tol` each, and stop there
    for new in (csr(X_NEW), X_NEW, scipy.sparse.coo_array(X_NEW)):
        assert_near(one.predict(new), wanted, near)
    assert_near(one.fitted, other.fitted, near)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("method", "operator"), WAYS)
def test_answers_are_those_of_the_dense_rows(method, operator, intercept, weights):
    how = {"method": method, "operator": operator}
    how |= {"sample_weight": weights, "intercept": intercept}
    sparse, dense = both(sdgpu.Matern(1.5, 2.0), **how)
    grid = {"alphas": [0.0, 0.4], "steps": 3}
    one, other = sparse.sweep(csr(X_NEW), Y_NEW, **grid), dense.sweep(X_NEW, Y_NEW, **grid)
    for name in ("mse", "train_mse", "limit_mse"):
        assert_near(one.dataset[name], other.dataset[name], 1e-9)
    assert_near(sparse.limit(LAM, 0.4).predict(csr(X_NEW)), dense.limit(LAM, 0.4).predict(X_NEW))
    exact = method == "eigh"  # what a basis has not seen is estimated, in float32 by tiles
    rtol = 1e-9 if exact else 1e-3
    assert_near(sparse.loo(LAM, 0.3, 3), dense.loo(LAM, 0.3, 3), rtol)
    assert_near(sparse.sweep(**grid).dataset["mse"], dense.sweep(**grid).dataset["mse"], rtol)
    if exact:
        ways = (sparse.path(LAM, 0.3, 3), csr(X_NEW)), (dense.path(LAM, 0.3, 3), X_NEW)
        found, wanted = (path.variance(rows).posterior for path, rows in ways)
        assert_near(found, wanted, 1e-9)


def test_intervals_are_those_of_the_dense_rows():
    for method in ("eigh", "lanczos"):
        sparse, dense = both(sdgpu.Gaussian(0.2), method=method)
        ways = (sparse.path(LAM, 0.3, 2), csr(X_NEW)), (dense.path(LAM, 0.3, 2), X_NEW)
        found, wanted = (path.interval(rows, folds=5) for path, rows in ways)
        assert_near(found.lower, wanted.lower, 1e-8)
        assert_near(found.upper, wanted.upper, 1e-8)


@pytest.mark.parametrize("precision", ["float32", "mixed"])
@pytest.mark.parametrize("kernel", [sdgpu.Gaussian(0.2), sdgpu.Tanimoto(), sdgpu.NTK(1)], ids=repr)
def test_precisions(kernel, precision):
    how = {"method": "lanczos", "operator": "tiled", "dtype": precision, "tol": 1e-3}
    sparse, dense = both(kernel, **how)
    one, other = sparse.path(LAM, 0.3, 3), dense.path(LAM, 0.3, 3)
    assert_near(one.predict(csr(X_NEW)), other.predict(X_NEW), 2e-4)
    exact = sdgpu.fit(X, Y, kernel, LAM, method="eigh").path(LAM, 0.3, 3)
    size = np.linalg.norm(exact.fitted)
    assert np.linalg.norm(one.fitted - exact.fitted) <= sparse.info.error_estimate * size


@pytest.mark.parametrize("method", ["eigh", "lanczos"])
def test_rows_of_float32(method):
    rows, new = X.astype(np.float32), X_NEW.astype(np.float32)
    sparse, dense = both(sdgpu.Gaussian(0.2), rows, Y.astype(np.float32), method=method)
    found = sparse.path(LAM, 0.3, 2).predict(csr(new))
    assert found.dtype == np.float32
    assert_near(found, dense.path(LAM, 0.3, 2).predict(new), 1e-6)


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
@pytest.mark.parametrize(("method", "operator"), [("eigh", "dense"), ("lanczos", "tiled")])
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
def test_tensors(layout, method, operator):
    def pack(dense):
        return getattr(torch.tensor(dense), f"to_sparse_{layout}")()

    how = {"method": method, "operator": operator, "tol": 1e-9}
    fitted = sdgpu.fit(pack(X), torch.tensor(Y), sdgpu.Gaussian(0.2), LAM, **how)
    found = fitted.path(LAM, 0.3, 2).predict(pack(X_NEW))
    assert isinstance(found, torch.Tensor)
    wanted = sdgpu.fit(X, Y, sdgpu.Gaussian(0.2), LAM, **how).path(LAM, 0.3, 2).predict(X_NEW)
    assert_near(found.numpy(), wanted, 1e-10)
    assert_near(fitted.path(LAM, 0.3, 2).predict(torch.tensor(X_NEW)).numpy(), wanted, 1e-10)


@pytest.mark.parametrize(("method", "operator"), [("eigh", "dense"), ("cg", "tiled")])
def test_on_another_backend(method, operator):
    how = {"method": method, "operator": operator, "device": TorchBackend("cpu")}
    sparse, dense = both(sdgpu.NTK(1), **how)
    found = sparse.path(LAM, 0.3, 2).predict(csr(X_NEW))
    assert type(found) is np.ndarray
    assert_near(found, dense.path(LAM, 0.3, 2).predict(X_NEW), 1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_random_problems(seed):
    rng = np.random.default_rng(seed)
    n, d, c = (int(rng.integers(1, high)) for high in (40, 90, 4))
    rows = scipy.sparse.random_array(
        (n + 5, d), density=rng.choice([0.0, 0.02, 0.3, 1.0]), rng=rng, format="csr"
    ) * float(10.0 ** rng.uniform(-3, 3))
    targets = rng.standard_normal((n, c))
    kernel = KERNELS[int(rng.choice([0, 2, 4, 6, 7, 8, 10, 12, 14]))]
    size = float(np.linalg.norm(kernel(rows[:n].toarray()), 2)) or 1.0
    lam = size * float(10.0 ** rng.uniform(-6, 3))
    dense = sdgpu.fit(rows[:n].toarray(), targets, kernel, lam, method="eigh").path(lam, 0.3, 3)
    for method, operator in (WAYS[0], WAYS[int(rng.integers(1, len(WAYS)))]):
        fitted = sdgpu.fit(
            rows[:n], targets, kernel, lam, method=method, operator=operator, tol=1e-8
        )
        found = fitted.path(lam, 0.3, 3)
        error = max(1e-8, fitted.info.error_estimate)
        assert np.linalg.norm(found.fitted - dense.fitted) <= 3 * error * max(
            np.linalg.norm(dense.fitted[:1]), 1e-300
        )
        if method == "eigh":
            assert_near(found.predict(rows[n:]), dense.predict(rows[n:].toarray()), 1e-7)


def test_the_certificate_knows_that_rows_are_not_centred():
    """Rows far from 0 and near each other: centred rows have digits that squares of these have lost."""
    near = np.zeros((60, 5))
    near[:, 0], near[:, 1] = 1e4, np.linspace(0, 1, 60)
    targets = np.sin(5 * near[:, 1])
    kernel = sdgpu.Gaussian(0.5)
    sparse = sdgpu.fit(csr(near), targets, kernel, 1e-3, method="eigh")
    dense = sdgpu.fit(near, targets, kernel, 1e-3, method="eigh")
    bounds = [fit.info.error_estimate for fit in (sparse, dense)]
    one, other = sparse.path(1e-3, 0.3, 2), dense.path(1e-3, 0.3, 2)
    assert bounds[0] > 100 * bounds[1]
    difference = np.linalg.norm(one.fitted - other.fitted) / np.linalg.norm(other.fitted)
    assert difference <= bounds[0] + bounds[1]


def test_no_row_is_made_dense():
    """1,500 rows of a million features would be 12 GB; what is planned holds."""
    rng = np.random.default_rng(0)
    rows = scipy.sparse.random_array((1500, 10**6), density=2e-5, rng=rng, format="csr")
    targets = rng.standard_normal(1500)
    for method, operator in (("eigh", "dense"), ("lanczos", "tiled"), ("cg", "dense")):
        tracemalloc.start()
        fitted = sdgpu.fit(
            rows, targets, sdgpu.Gaussian(0.1), 1.0, method=method, operator=operator
        )
        path = fitted.path(1.0, 0.3, 2)
        path.predict(rows[:7])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < min(fitted.info.bytes, 2e8)
        K = sdgpu.Gaussian(0.1)(rows)
        wanted = sdgpu.fit(K, targets, "precomputed", 1.0, method="eigh").path(1.0, 0.3, 2)
        assert_near(path.fitted, wanted.fitted, 1e-5)


def test_the_callers_rows_are_neither_kept_nor_changed():
    rows = csr(X)
    before = rows.copy()
    fitted = sdgpu.fit(rows, Y, sdgpu.Gaussian(0.2), LAM)
    predicted = fitted.path(LAM).predict(X_NEW)
    np.testing.assert_array_equal(rows.toarray(), before.toarray())
    rows.data[:] = np.nan
    np.testing.assert_array_equal(fitted.path(LAM).predict(X_NEW), predicted)


def test_pickled_and_gone_on_from_a_checkpoint(tmp_path):
    kernel, file = sdgpu.Gaussian(0.2), tmp_path / "basis.safetensors"
    how = {"method": "lanczos", "operator": "tiled", "checkpoint": file}
    fitted = sdgpu.fit(csr(X), Y, kernel, LAM, **how)
    again = sdgpu.fit(csr(X), Y, kernel, LAM, **how)
    predictor = fitted.path(LAM, 0.3, 2).predictor()
    found = pickle.loads(pickle.dumps(predictor)).predict(csr(X_NEW))
    assert_near(found, again.path(LAM, 0.3, 2).predict(X_NEW)[-1], 1e-9)
    other = csr(X)
    other.data[3] += 1.0
    with pytest.raises(ValueError, match="checkpoint"):
        sdgpu.fit(other, Y, kernel, LAM, **how)


def test_own_features_where_they_are_fewer():
    """And the kernel matrix where that is the smaller problem, or is asked for."""
    few = sdgpu.fit(csr(X), Y, sdgpu.Linear(), LAM)
    many = sdgpu.fit(csr(X[:20]), Y[:20], sdgpu.Linear(), LAM)
    named = sdgpu.fit(csr(X), Y, sdgpu.Linear(), LAM, method="eigh")
    primal = sdgpu.fit(csr(X), Y, sdgpu.Linear(), LAM, method="primal")
    assert (few.info.k, many.info.k, named.info.k, primal.info.k) == (D, 20, N, D)
    wanted = sdgpu.fit(X, Y, sdgpu.Linear(), LAM, method="eigh").path(LAM, 0.3, 2).predict(X_NEW)
    for fitted in (few, named, primal):
        assert_near(fitted.path(LAM, 0.3, 2).predict(csr(X_NEW)), wanted, 1e-9)
    least = sdgpu.fit(csr(X), Y, sdgpu.Gaussian(0.2), 0, method="auto")
    assert least.info.method == "eigh"


def test_plans():
    entries = csr(X).nnz / N
    plan = sdgpu.plan(N, D, C, LAM, entries=entries, kernel=sdgpu.Gaussian(0.2))
    fitted = sdgpu.fit(csr(X), Y, sdgpu.Gaussian(0.2), LAM, plan=plan)
    assert (fitted.info.method, fitted.info.bytes) == (plan.method, plan.bytes)
    wide = {"n": 3000, "d": 10**6, "method": "lanczos", "operator": "tiled", "memory": "2GB"}
    sparse = sdgpu.plan(**wide, lams=1.0, entries=50)
    assert sparse.bytes < 2e8
    assert sdgpu.plan(**wide, lams=1.0, entries=5000).bytes > sparse.bytes
    assert sdgpu.plan(**wide, lams=1.0, entries=5000).seconds > sparse.seconds
    with pytest.raises(MemoryError, match="3,000 rows need"):
        sdgpu.plan(**wide, lams=1.0)


def test_prices_count_entries():
    many, few = (TilePrices(3000, 50_000, "float64", entries=e) for e in (1000, 10))
    rates = sdgpu.backend.rates.NOMINAL
    pairs = 3000**2 / 2
    assert many.value_seconds(rates) - few.value_seconds(rates) == pytest.approx(
        pairs * 1e-9 * (1000**2 - 10**2) / 50_000
    )
    assert many.peak_bytes(1) - few.peak_bytes(1) == 8 * 2 * 3000 * 1485


def test_operators_of_sparse_rows():
    kernel, V = sdgpu.Matern(1.5, 2.0), RNG.standard_normal((N, 3))
    K, cross = kernel(X), kernel(X_NEW, X)
    for make in (
        lambda: DenseOperator(kernel, csr(X)),
        lambda: TiledOperator(kernel, csr(X), tile=32),
        lambda: TiledOperator(kernel, csr(X), tile=32, keep=True),
    ):
        operator = make()
        assert_near(operator.matmat(V), K @ V, 1e-12)
        assert_near(operator.columns([3, 0, 7]), K[:, [3, 0, 7]], 1e-12)
        assert_near(operator.diag(), np.ones(N), 1e-12)
        assert_near(operator.cross(csr(X_NEW)).matmat(V), cross @ V, 1e-12)
        assert_near(operator.cross(X_NEW).dense(), cross, 1e-12)
    for make in (DenseOperator, TiledOperator):
        with pytest.raises(TypeError, match=r"Laplacian.* has no values of sparse rows"):
            make(sdgpu.Laplacian(), csr(X))
    with pytest.raises(TypeError, match="X is sparse, which KeOps does not take"):
        KeOpsOperator(kernel, csr(X))


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        (
            {"kernel": sdgpu.Laplacian()},
            TypeError,
            "Laplacian.* has no values of sparse rows: pass",
        ),
        ({"kernel": sdgpu.Wendland()}, TypeError, r"Wendland.* pass X.toarray\(\)"),
        ({"kernel": sdgpu.Gaussian() + sdgpu.ChiSquared()}, TypeError, "ChiSquared"),
        ({"kernel": "precomputed"}, TypeError, "X is sparse .csr_array.*Precomputed"),
        ({"operator": "keops"}, ValueError, "operator='keops' takes no sparse rows"),
        ({"method": "primal"}, ValueError, "method='primal' is for kernels with fewer features"),
        ({"X": csr((0, D)), "Y": Y[:0]}, ValueError, "X has no rows"),
        ({"plan": sdgpu.plan(N, D, C, LAM)}, ValueError, "plan= was made for dense rows"),
        (
            {"plan": sdgpu.plan(N, D, C, LAM, entries=0.5)},
            ValueError,
            r"made for 0.5 entries a row, but the data have 5.*entries=6",
        ),
        (
            {"X": X, "plan": sdgpu.plan(N, D, C, LAM, entries=8)},
            ValueError,
            "plan= was made for sparse rows, but the data are dense",
        ),
    ],
)
def test_refusals(how, error, words):
    how = {"X": csr(X), "Y": Y, "kernel": sdgpu.Gaussian(0.2), "lams": LAM, **how}
    with pytest.raises(error, match=words):
        sdgpu.fit(**how)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"entries": 50}, ValueError, "entries=50 of a row are more than its d = 40"),
        ({"entries": -1}, ValueError, "entries"),
        ({"entries": 5, "given": True}, ValueError, "entries= is of sparse rows, and given=True"),
        ({"entries": 5, "kernel": "laplacian"}, TypeError, "no values of sparse rows"),
        ({"entries": 5, "operator": "keops"}, ValueError, "takes no sparse rows"),
    ],
)
def test_refused_plans(how, error, words):
    with pytest.raises(error, match=words):
        sdgpu.plan(N, D, C, LAM, **how)


def test_what_sparse_training_rows_have_not():
    path = sdgpu.fit(csr(X), Y, sdgpu.Gaussian(0.2), LAM).path(LAM, 0.3, 2)
    with pytest.raises(ValueError, match=r"derivatives are not: pass X_new.toarray"):
        path.gradient(csr(X_NEW))
    with pytest.raises(ValueError, match="X_new has 5 features, but the fit has 40"):
        path.predict(csr(X_NEW[:, :5]))
    with pytest.raises(ValueError, match="X_new has 1 entries that are NaN or infinite"):
        path.predict(np.where(np.arange(D) == 3, np.nan, X_NEW[:1]))
    assert path.predict(csr(X_NEW)[:0]).shape == (2, 0, C)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_files_and_modules_are_those_of_dense_rows(
    kernel, weighted, tmp_path, monkeypatch
):
    """Predictors of sparse training rows, which no file nor derivative makes dense as a whole."""
    monkeypatch.setattr("sdgpu.operators.slopes.ENTRIES", 7 * D)  # seven rows at a time
    how = {"method": "eigh"}
    if weighted:
        weights = np.where(np.arange(N) % 4 == 1, 0.0, 1.0 + np.arange(N) % 3)
        how |= {"sample_weight": weights, "intercept": True}
    sparse, dense = both(kernel, **how)
    one, other = (fitted.path(LAM, [0.3, -0.2], 3) for fitted in (sparse, dense))
    new_rows = X_NEW + 0.1 * RNG.standard_normal(
        X_NEW.shape
    )  # some kernels have kinks at rows of zeros
    wanted = other.gradient(new_rows)
    assert_near(one.gradient(new_rows), wanted, 1e-7)
    predictor = one.predictor()
    assert_near(predictor.gradient(new_rows), wanted[-1], 1e-7)
    followed = torch.tensor(new_rows, requires_grad=True)
    rows = torch.tensor(X)
    by_torch = sdgpu.fit(rows.to_sparse(), torch.tensor(Y), kernel, LAM, tol=1e-9, **how)
    by_torch.path(LAM, [0.3, -0.2], 3).predict(followed)[-1].sum().backward()
    assert_near(followed.grad.numpy(), wanted[-1].sum(axis=1), 1e-7)
    predictor.save(tmp_path / "one.safetensors")
    opened, truth = sdgpu.open_predictor(tmp_path / "one.safetensors"), other.predict(X_NEW)[-1]
    for new in (csr(X_NEW), X_NEW):
        assert_near(opened.predict(new), truth, 1e-8)
    assert_near(opened.gradient(new_rows), wanted[-1], 1e-7)
    opened.save(tmp_path / "two.safetensors")  # again: the same function
    again = sdgpu.open_predictor(tmp_path / "two.safetensors")
    assert_near(again.predict(X_NEW), truth, 1e-8)
    module = predictor.module()
    assert_near(module(torch.tensor(X_NEW)).detach().numpy(), truth, 1e-7)


def test_a_file_of_sparse_rows_is_checked(tmp_path):
    """Places beyond the features, of other types, and float32 that moves predictions."""
    fitted = sdgpu.fit(csr(X), Y, sdgpu.Gaussian(0.2), LAM, method="eigh")
    path = tmp_path / "p.safetensors"
    fitted.path(LAM).predictor().save(path, dtype="float32")
    found = sdgpu.open_predictor(path).predict(csr(X_NEW))
    assert_near(found, fitted.path(LAM).predict(csr(X_NEW))[-1], 1e-4)
    arrays, metadata = read_tensors(path, "predictor")
    metadata.pop("checksum", None)
    assert path.stat().st_size < 8 * X.size  # of its entries
    for name, change in [
        ("X.indices", lambda a: a + D),
        ("X.indices", lambda a: a - 1),
        ("X.indices", lambda a: a.astype(np.float32)),
        ("X.indptr", lambda a: a[::-1].copy()),
        ("X.indptr", lambda a: a[:1]),
        ("X.data", lambda a: a[:-1]),
        ("X.data", lambda a: np.full_like(a, np.nan)),
    ]:
        write_tensors(path, {**arrays, name: change(arrays[name])}, metadata)
        with pytest.raises(ValueError, match="holds no predictor"):
            sdgpu.open_predictor(path)


def test_a_module_that_does_not_fit(monkeypatch):
    fitted = sdgpu.fit(csr(X), Y, sdgpu.Gaussian(0.2), LAM, method="eigh")
    monkeypatch.setattr("sdgpu.engine.torch_module.budget", lambda memory, device: 1000)
    with pytest.raises(MemoryError, match="save or pickle the predictor"):
        fitted.path(LAM).predictor().module()
