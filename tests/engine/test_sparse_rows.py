"""Sparse rows: the same answers as the same rows dense, of every format, and what is refused."""

import numpy as np
import pytest
import scipy.sparse
import torch

import sdgpu
from tests.problems import assert_near

N, M, D, C = 120, 15, 6, 2
RNG = np.random.default_rng(3)
KEEP = RNG.random((N + M, D)) < 0.4
ROWS = np.where(KEEP, RNG.standard_normal((N + M, D)), 0.0)
ROWS[5] = 0.0  # a row without entries
ROWS[:, 4] = 0.0  # a feature without
X, X_NEW = ROWS[:N], ROWS[N:]
TRUTH = np.sin(ROWS[:, :C]) + 0.2 * RNG.standard_normal((N + M, C)) + 3
Y, Y_NEW = TRUTH[:N], TRUTH[N:]
WEIGHTS = RNG.uniform(0, 2, N)
LAMS = [0.5, 0.05]
KERNELS = [
    sdgpu.Linear(),
    sdgpu.Linear(lengthscale=[1.0, 2.0, 0.5, 3.0, 1.0, 1.5]),
    sdgpu.Cosine(),
    2.5 * sdgpu.Cosine() + sdgpu.Linear(2.0),
    sdgpu.Polynomial(2, coef0=1.0),
    sdgpu.Linear() * sdgpu.Cosine() + 0.5 * sdgpu.Linear(),
]
FORMATS = {
    "csr_array": scipy.sparse.csr_array,
    "csr_matrix": scipy.sparse.csr_matrix,
    "csc": scipy.sparse.csc_array,
    "coo": scipy.sparse.coo_array,
    "lil": scipy.sparse.lil_array,
}


def halves(dense):
    """COO in which every entry is the sum of two."""
    coo = scipy.sparse.coo_array(dense)
    data, places = coo.data / 2, coo.coords
    both = tuple(np.concatenate([place, place]) for place in places)
    return scipy.sparse.coo_array((np.concatenate([data, data]), both), shape=dense.shape)


def answers(fitted, rows, truth):
    path = fitted.path(0.05, [0.3, -0.2], 3)
    sweep = fitted.sweep(rows, truth, alphas=[0.0, 0.4], steps=3).dataset
    left = fitted.sweep(alphas=[0.0, 0.4], steps=3).dataset
    names = ("mse", "train_mse", "gcv", "limit_mse")
    return [
        np.asarray(path.predict(rows)),
        np.asarray(path.variance(rows).posterior),
        np.asarray(fitted.loo(0.05, 0.3, 3)),
        *(np.asarray(data[name]) for data in (sweep, left) for name in names),
    ]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("intercept", [False, True])
def test_answers_are_those_of_the_dense_rows(kernel, intercept):
    fitted = sdgpu.fit(scipy.sparse.csr_array(X), Y, kernel, LAMS, intercept=intercept)
    dense = sdgpu.fit(X, Y, kernel, LAMS, features=sdgpu.Explicit(), intercept=intercept)
    new = scipy.sparse.csr_array(X_NEW)
    for one, other in zip(answers(fitted, new, Y_NEW), answers(dense, X_NEW, Y_NEW), strict=True):
        assert_near(one, other, rtol=1e-8)
    path = fitted.path(0.05, 0.3, 3)
    assert_near(path.predict(X_NEW), path.predict(new), rtol=1e-12)
    other = dense.path(0.05, 0.3, 3)
    assert_near(other.predict(new), other.predict(X_NEW), rtol=1e-12)


def test_answers_are_those_of_explicit_refits():
    fitted = sdgpu.fit(scipy.sparse.csr_array(X), Y, sdgpu.Linear(), LAMS)
    exact = sdgpu.fit(X, Y, sdgpu.Linear(), LAMS, method="eigh")
    new = scipy.sparse.csr_array(X_NEW)
    assert_near(
        fitted.path(0.05, 0.3, 4).predict(new), exact.path(0.05, 0.3, 4).predict(X_NEW), rtol=1e-9
    )
    assert_near(fitted.loo(0.5, 0.3, 4), exact.loo(0.5, 0.3, 4), rtol=1e-9)


@pytest.mark.parametrize("make", [*FORMATS.values(), halves], ids=[*FORMATS, "duplicates"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, bool])
def test_every_format(make, dtype):
    dense = (4 * X).astype(dtype)
    rows = make(dense) if make is not halves else halves(dense.astype(float))
    before = rows.toarray()
    found = (
        sdgpu.fit(rows, Y[:, 0], sdgpu.Linear(), LAMS)
        .path(0.5, 0.2, 2)
        .predict(
            rows[:4]
            if make is not halves and make is not scipy.sparse.coo_array
            else dense[:4].astype(float)
        )
    )
    wanted = sdgpu.fit(dense.astype(float), Y[:, 0], sdgpu.Linear(), LAMS).path(0.5, 0.2, 2)
    assert_near(found, wanted.predict(dense[:4].astype(float)), rtol=1e-9)
    np.testing.assert_array_equal(rows.toarray(), before)


def test_entries_that_are_given_twice_stay_as_they_are():
    data, places = np.array([1.0, 2.0, 4.0, 3.0]), np.array([1, 0, 1, 2])
    rows = scipy.sparse.csr_array((data, places, np.array([0, 3, 4])), shape=(2, 3))
    features = sdgpu.Explicit()
    found = sdgpu.fit(rows, [1.0, 2.0], sdgpu.Linear(), LAMS, features=features).path(0.5)
    wanted = sdgpu.fit([[2.0, 5, 0], [0, 0, 3]], [1.0, 2.0], sdgpu.Linear(), LAMS).path(0.5)
    assert_near(found.predict(np.eye(3)), wanted.predict(np.eye(3)), rtol=1e-9)
    np.testing.assert_array_equal(rows.data, [1, 2, 4, 3])
    np.testing.assert_array_equal(rows.indices, [1, 0, 1, 2])


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
def test_tensors(layout, dtype):
    def pack(dense):
        return getattr(torch.tensor(dense, dtype=dtype), f"to_sparse_{layout}")()

    width = torch.float64 if dtype == torch.float64 else torch.float32
    y = torch.tensor(Y[:, 0], dtype=width)
    found = sdgpu.fit(pack(X), y, sdgpu.Linear(), LAMS).path(0.5, 0.2, 2).predict(pack(X_NEW))
    assert isinstance(found, torch.Tensor)
    assert found.dtype == width
    dense = [torch.tensor(rows, dtype=dtype).double().numpy() for rows in (X, X_NEW)]
    wanted = sdgpu.fit(dense[0], y.double().numpy(), sdgpu.Linear(), LAMS).path(0.5, 0.2, 2)
    assert_near(
        found.numpy(), wanted.predict(dense[1]), rtol=1e-9 if width == torch.float64 else 1e-5
    )


def test_weights_and_sources():
    source = sdgpu.rows.arrays(scipy.sparse.csr_array(X), Y, WEIGHTS)
    features = sdgpu.Explicit()
    found = sdgpu.fit(source, kernel=sdgpu.Linear(), lams=LAMS, features=features, intercept=True)
    wanted = sdgpu.fit(
        X, Y, sdgpu.Linear(), LAMS, features=features, intercept=True, sample_weight=WEIGHTS
    )
    assert_near(
        found.path(0.5, 0.2, 2).predict(X_NEW), wanted.path(0.5, 0.2, 2).predict(X_NEW), 1e-9
    )
    judged = sdgpu.rows.arrays(scipy.sparse.csr_array(X_NEW), Y_NEW)
    left, right = (
        fit.sweep(*on).dataset["mse"] for fit, on in ((found, (judged,)), (wanted, (X_NEW, Y_NEW)))
    )
    assert_near(left, right, rtol=1e-9)


def test_moments_of_sparse_rows(tmp_path):
    moments = sdgpu.Moments(sdgpu.Cosine(), sdgpu.Explicit(), d=D, c=C, dtype="float32")
    moments.add(scipy.sparse.csr_array(X[:50]), Y[:50]).save(tmp_path / "m.safetensors")
    again = sdgpu.open_moments(tmp_path / "m.safetensors").add(
        scipy.sparse.csr_array(X[50:]), Y[50:]
    )
    found = sdgpu.fit(again, lams=LAMS).path(0.5, 0.2, 2).predict(scipy.sparse.csr_array(X_NEW))
    wanted = sdgpu.fit(X, Y, sdgpu.Cosine(), LAMS).path(0.5, 0.2, 2).predict(X_NEW)
    assert_near(found, wanted, rtol=1e-9)


def test_a_pass_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    from sdgpu.engine import streaming

    monkeypatch.setattr(streaming, "SPARSE_ROWS", 20)
    rows, file = scipy.sparse.csr_array(X), tmp_path / "pass.safetensors"
    one = sdgpu.fit(rows, Y, sdgpu.Linear(), LAMS, checkpoint=file)
    again = sdgpu.fit(rows, Y, sdgpu.Linear(), LAMS, checkpoint=file)
    np.testing.assert_array_equal(one.path(0.5, 0.2, 2).dual, again.path(0.5, 0.2, 2).dual)
    other = rows.copy()
    other.data[3] += 1
    with pytest.raises(ValueError, match="a pass over other rows"):
        sdgpu.fit(other, Y, sdgpu.Linear(), LAMS, checkpoint=file)


def csr(change=None, dtype=float):
    rows = scipy.sparse.csr_array(X.astype(dtype))
    if change is not None:
        rows.data[change] = np.nan
    return rows


@pytest.mark.parametrize(
    ("rows", "how", "error", "words"),
    [
        (csr(7), {}, ValueError, r"X has 1 entries that are NaN or infinite, the first in row \d"),
        (csr(dtype=complex), {}, TypeError, "X has dtype complex128"),
        (csr(), {"kernel": "laplacian"}, TypeError, r"no values of sparse rows: pass X.toarray"),
        (csr(), {"kernel": "precomputed"}, TypeError, "X is sparse"),
        (
            csr(),
            {"features": sdgpu.Nystrom(5)},
            TypeError,
            "X is sparse, which Nystrom does not take",
        ),
        (csr(), {"features": sdgpu.Explicit(np.tanh)}, TypeError, "X is sparse, which Explicit"),
        (csr(), {"Y": Y[:5]}, ValueError, "Y has 5 rows, but its inputs have 120"),
        (csr(), {"Y": torch.tensor(Y)}, ValueError, "X is numpy on cpu, Y is torch on cpu"),
        (
            scipy.sparse.csr_array((0, 3)),
            {"Y": Y[:0], "features": sdgpu.Explicit()},
            ValueError,
            "X has no rows",
        ),
        (
            scipy.sparse.coo_array(X[0]),
            {"Y": Y[:1], "features": sdgpu.Explicit()},
            ValueError,
            "must be .rows, features",
        ),
    ],
)
def test_refusals(rows, how, error, words):
    how = {"Y": Y, "kernel": sdgpu.Linear(), "lams": LAMS, **how}
    with pytest.raises(error, match=words):
        sdgpu.fit(rows, **how)


def test_refusals_of_new_rows():
    path = sdgpu.fit(csr(), Y, sdgpu.Linear(), LAMS).path(0.5, 0.2, 2)
    with pytest.raises(ValueError, match="X_new has 5 features, but the fit has 6"):
        path.predict(scipy.sparse.csr_array(X_NEW[:, :5]))
    with pytest.raises(ValueError, match="X_new has 1 entries that are NaN"):
        path.predict(csr(2))
    assert path.predict(csr()[:0]).shape == (2, 0, C)
    exact = sdgpu.fit(X, Y, sdgpu.Gaussian(1.0), LAMS).path(0.5, 0.2, 2)
    with pytest.raises(TypeError, match=r"X_new is sparse .*pass X_new.toarray"):
        exact.predict(csr())
    features = sdgpu.Nystrom(5)
    nystrom = sdgpu.fit(X, Y, sdgpu.Gaussian(1.0), LAMS, features=features).path(0.5, 0.2, 2)
    with pytest.raises(TypeError, match=r"X_new is sparse .*pass X_new.toarray"):
        nystrom.predict(csr())


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (csr(3), "X at block 0 has 1 entries that are NaN"),
        (csr()[:, :4], "X at block 0 has 4 features"),
    ],
)
def test_sparse_blocks_of_a_function_are_checked(block, words):
    source = sdgpu.rows.blocks(lambda: iter([(block, Y)]), d=D, c=C)
    with pytest.raises(ValueError, match=words):
        sdgpu.fit(source, None, sdgpu.Linear(), LAMS, features=sdgpu.Explicit())
