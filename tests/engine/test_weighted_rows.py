"""Weights and an intercept against the equations themselves, solved in float64 for one row more: the mean."""

import pickle
import warnings

import mpmath
import numpy as np
import pytest

import sdgpu
from sdgpu.kernels import as_kernel

N, D, C, M, T = 40, 3, 2, 7, 4
RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Y = np.sin(X[:, :1] * [1.0, 2.0]) + [3.0, -50.0] + 0.1 * RNG.normal(size=(N, C))
WEIGHTS = {
    "none": None,
    "real": RNG.uniform(0.2, 3.0, N),
    "some 0": np.where(np.arange(N) % 5 == 2, 0.0, RNG.uniform(0.2, 3.0, N)),
    "whole": RNG.integers(0, 4, N).astype(float),
}
KERNEL = sdgpu.Gaussian(0.2)
LAMS = [0.05, 1.0]
ALPHAS = np.array([0.3, 0.9, 0.5])


def ridge(K, targets, weights, lam, intercept):
    """Coefficients and constant of min sum w (K a + b - u)^2 + lam a'K a, by its own equations."""
    n, present = len(K), weights > 0
    a, b = np.zeros((n, targets.shape[1])), np.zeros(targets.shape[1])
    k = int(present.sum())
    system = np.zeros((k + 1, k + 1))
    system[:k, :k] = K[np.ix_(present, present)] + np.diag(lam / weights[present])
    system[:k, k] = system[k, :k] = 1.0 if intercept else 0.0
    system[k, k] = 0.0 if intercept else 1.0
    solved = np.linalg.solve(system, np.vstack([targets[present], np.zeros(targets.shape[1])]))
    a[present], b[:] = solved[:k], solved[k]
    return a, b


def steps(kernel, x, y, weights, lam, alphas, intercept, new):
    """Predictions of every step at new rows and at the rows, (T, m, c) and (T, n, c)."""
    K, cross, u, there, here = kernel(x, x), kernel(new, x), y, [], []
    for alpha in [1.0, *alphas]:
        targets = alpha * y + (1 - alpha) * u if here else y
        a, b = ridge(K, targets, weights, lam, intercept)
        u = K @ a + b
        here.append(u)
        there.append(cross @ a + b)
    return np.stack(there), np.stack(here)


def close(found, wanted, tol=1e-9):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tol * np.abs(wanted).max())


def kernel_of(name):
    kernel = as_kernel(name)
    return lambda a, b: np.asarray(sdgpu.operators.DenseOperator(kernel, b).cross(a).dense())


CASES = [
    (name, intercept)
    for name in WEIGHTS
    for intercept in (False, True)
    if name != "none" or intercept
]
HOWS = {
    "eigh": {"method": "eigh"},
    "primal": {"kernel": sdgpu.Polynomial(2, 0.3, 1.0), "method": "primal"},
    "lanczos": {"method": "lanczos", "tol": 1e-11},
    "subspace": {"method": "subspace", "operator": "tiled", "tol": 1e-11},
    "cg": {"method": "cg", "operator": "tiled", "tol": 1e-11},
    "keops": {"method": "subspace", "operator": "keops", "tol": 1e-11},
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("name", "intercept"), CASES)
def test_all_steps(name, intercept, how):
    options = {"kernel": KERNEL, **HOWS[how]}
    w = WEIGHTS[name]
    fit = sdgpu.fit(X, Y, lams=LAMS, sample_weight=w, intercept=intercept, **options)
    w = np.ones(N) if w is None else w
    kappa = kernel_of(options["kernel"])
    for lam in LAMS:
        there, here = steps(kappa, X, Y, w, lam, ALPHAS, intercept, NEW)
        path = fit.path(lam, ALPHAS, T)
        close(path.predict(NEW), there)
        close(path.fitted, here)
        close(path.predictor(2).predict(NEW), there[1])
        dual = path.dual
        expected = kappa(NEW, X) @ dual
        if intercept:
            mean = (w @ kappa(X, X)) / w.sum() @ dual
            expected = expected - mean[:, None, :] + (w @ Y / w.sum())
        close(expected, there)
        limit = fit.limit(lam, 0.5)
        close(limit.predict(NEW), steps(kappa, X, Y, w, lam / 0.5, [], intercept, NEW)[0][0])
        close(limit.fitted, steps(kappa, X, Y, w, lam / 0.5, [], intercept, NEW)[1][0])


@pytest.mark.parametrize("method", ["eigh", "subspace"])
@pytest.mark.parametrize("intercept", [False, True])
def test_whole_weights_are_repeated_rows(intercept, method):
    w = WEIGHTS["whole"]
    rows = np.repeat(np.arange(N), w.astype(int))
    how = {"intercept": intercept, "method": method, "tol": 1e-11}
    one = sdgpu.fit(X, Y, KERNEL, LAMS, sample_weight=w, **how)
    many = sdgpu.fit(X[rows], Y[rows], KERNEL, LAMS, **how)
    close(one.path(1.0, ALPHAS, T).predict(NEW), many.path(1.0, ALPHAS, T).predict(NEW))
    close(one.path(1.0, ALPHAS, T).fitted[:, rows], many.path(1.0, ALPHAS, T).fitted)
    truth = RNG.normal(size=(M, C)) + Y.mean(axis=0)
    found, wanted = (
        fit.sweep(NEW, truth, alphas=[0.0, 0.5, 1.0], steps=3).dataset for fit in (one, many)
    )
    for variable in ("mse", "limit_mse", "star_mse", "joint_mse", "train_mse"):
        close(found[variable].values, wanted[variable].values, 1e-7)
    if method == "eigh":
        close(found["degrees_of_freedom"].values, wanted["degrees_of_freedom"].values)


@pytest.mark.parametrize(("name", "intercept"), CASES)
@pytest.mark.parametrize("how", ["eigh", "primal", "lanczos", "cg"])
def test_rows_left_out(name, intercept, how):
    options = {"kernel": KERNEL, **HOWS[how]}
    w = WEIGHTS[name]
    fit = sdgpu.fit(X, Y, lams=LAMS, sample_weight=w, intercept=intercept, probes=64, **options)
    w, lam, kappa = np.ones(N) if w is None else w, 1.0, kernel_of(options["kernel"])
    wanted = np.empty((T, N, C))
    for i in range(N):
        rest = np.where(np.arange(N) == i, 0.0, w)
        wanted[:, i] = steps(kappa, X, Y, rest, lam, ALPHAS, intercept, X[i : i + 1])[0][:, 0]
    exact = how in ("eigh", "primal")
    found, error = fit.loo(lam, ALPHAS, T, return_std=True)
    if exact:
        close(found, wanted)
    else:
        assert (np.abs(found - wanted) <= 6 * error + 1e-6 * np.abs(wanted).max()).mean() > 0.97
    sweep = fit.sweep(lams=[lam], alphas=[0.3], steps=T).dataset
    constant = np.stack(
        [
            steps(
                kappa,
                X,
                Y,
                np.where(np.arange(N) == i, 0.0, w),
                lam,
                [0.3] * 3,
                intercept,
                X[i : i + 1],
            )[0][:, 0]
            for i in range(N)
        ],
        axis=1,
    )
    losses = np.einsum("n,tnc->t", w, (constant - Y) ** 2) / (w.sum() * C)
    np.testing.assert_allclose(sweep["mse"].values[0, 0], losses, rtol=1e-8 if exact else 0.3)


@pytest.mark.parametrize(("name", "intercept"), CASES)
def test_degrees_of_freedom_and_gcv(name, intercept):
    w = WEIGHTS[name]
    fit = sdgpu.fit(X, Y, KERNEL, LAMS, sample_weight=w, intercept=intercept, method="eigh")
    w = np.ones(N) if w is None else w
    kappa, lam = kernel_of(KERNEL), 1.0
    present = np.flatnonzero(w > 0)
    H = np.stack(
        [
            steps(kappa, X, np.eye(N)[:, [i]], w, lam, [0.5], intercept, X)[1][:, :, 0]
            for i in present
        ],
        axis=-1,
    )[:, present]  # (T, n, n): y -> y(tau)
    n = len(present)
    trace = np.trace(H, axis1=1, axis2=2)
    residual = np.einsum("tij,jc->tic", np.eye(n) - H, Y[present])
    train = np.einsum("i,tic->t", w[present], residual**2) / (w.sum() * C)
    found = fit.gcv_sweep([lam], [0.5], 2).dataset
    close(found["degrees_of_freedom"].values[0, 0], trace)
    close(found["train_mse"].values[0, 0], train)
    close(found["gcv"].values[0, 0], train / (1 - trace / n) ** 2)
    one = fit.gcv(lam)
    first = steps(kappa, X, Y, w, lam, [0.0], intercept, X)[1][0][present]
    traces = np.trace(
        np.stack(
            [
                steps(kappa, X, np.eye(N)[:, [i]], w, lam, [], intercept, X)[1][0, :, 0]
                for i in present
            ],
            axis=-1,
        )[present]
    )
    ridge_mse = np.einsum("i,ic->", w[present], (Y[present] - first) ** 2) / (w.sum() * C)
    close(one.ridge_score, ridge_mse / (1 - traces / n) ** 2)


def left_out_losses(w, intercept, alphas, lam, kappa, measure):
    """Weighted mean over the rows of a loss of the prediction of each step without the row."""
    total = np.zeros(len(alphas) + 1)
    for i in np.flatnonzero(w):
        rest = np.where(np.arange(N) == i, 0.0, w)
        found = steps(kappa, X, Y, rest, lam, alphas, intercept, X[i : i + 1])[0][:, 0]
        total += w[i] * measure(found - Y[i]).mean(axis=-1)
    return total / w.sum()


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize(("name", "intercept"), CASES)
def test_metrics_and_limits_of_left_out_rows(name, intercept, features):
    """Of the kernel matrix, and of features, a block at a time."""
    w, kernel = WEIGHTS[name], sdgpu.Polynomial(2, 0.3, 1.0)
    how = {"features": sdgpu.Explicit()} if features else {"method": "eigh"}
    fit = sdgpu.fit(X, Y, kernel, [1.0], sample_weight=w, intercept=intercept, **how)
    w, kappa = np.ones(N) if w is None else w, kernel_of(kernel)
    sweep = fit.sweep(alphas=[0.0, 0.5], steps=3, metrics=["mae"]).dataset
    for number, alpha in enumerate([0.0, 0.5]):
        for variable, measure in (("mse", np.square), ("mae", np.abs)):
            wanted = left_out_losses(w, intercept, [alpha] * 2, 1.0, kappa, measure)
            close(sweep[variable].values[0, number], wanted, 1e-7)
    ridge_limit = left_out_losses(w, intercept, [], 1.0 / 0.5, kappa, np.square)[0]
    np.testing.assert_allclose(sweep["limit_mse"].values[0, 1], ridge_limit, rtol=1e-6)
    collapse = left_out_losses(w, intercept, [], 1e14, kappa, np.square)[0]
    np.testing.assert_allclose(sweep["limit_mse"].values[0, 0], collapse, rtol=1e-6)
    wanted = np.empty((3, N, C))
    for i in range(N):
        rest = np.where(np.arange(N) == i, 0.0, w)
        wanted[:, i] = steps(kappa, X, Y, rest, 1.0, [0.3, 0.9], intercept, X[i : i + 1])[0][:, 0]
    close(fit.loo(1.0, [0.3, 0.9], 3), wanted, 1e-7)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_validation_rows_with_whole_weights_are_repeated_rows(intercept, features):
    labels = RNG.integers(0, 3, N + 30)
    rows, truth = RNG.normal(size=(30, D)), np.eye(3)[labels[N:]]
    times = RNG.integers(0, 4, 30)
    again = np.repeat(np.arange(30), times)
    how = {"features": sdgpu.Explicit()} if features else {}
    kernel = sdgpu.Polynomial(2, 0.3, 1.0)
    fit = sdgpu.fit(X, np.eye(3)[labels[:N]], kernel, LAMS, intercept=intercept, **how)
    options = {"alphas": [0.0, 0.4, 1.0], "steps": 3, "metrics": ["mae"], "classes": True}
    found = fit.sweep(rows, truth, sample_weight=times, **options).dataset
    wanted = fit.sweep(rows[again], truth[again], **options).dataset
    for name, variable in wanted.data_vars.items():
        np.testing.assert_allclose(found[name].values, variable.values, rtol=1e-7, atol=1e-9)
    found, wanted = (
        fit.optimal_alphas(x, y, 1.0, 3, sample_weight=times if x is rows else None)
        for x, y in ((rows, truth), (rows[again], truth[again]))
    )
    close(found.alphas, wanted.alphas, 1e-6)
    found = fit.joint_alphas(rows, truth, 1.0, 2, sample_weight=times, folds=1)
    close(found.alphas, fit.joint_alphas(rows[again], truth[again], 1.0, 2, folds=1).alphas, 1e-6)


def test_a_kernel_matrix_torch_and_float32():
    w, kappa = WEIGHTS["real"], kernel_of(KERNEL)
    wanted = steps(kappa, X, Y, w, 1.0, ALPHAS, True, NEW)[0]
    how = {"sample_weight": w, "intercept": True}
    fit = sdgpu.fit(kappa(X, X), Y, "precomputed", 1.0, **how)
    close(fit.path(1.0, ALPHAS, T).predict(kappa(NEW, X)), wanted)
    torch = pytest.importorskip("torch")
    tensors = [torch.asarray(x) for x in (X, Y, w)]
    for method in ("eigh", "subspace"):
        fit = sdgpu.fit(
            *tensors[:2],
            KERNEL,
            1.0,
            sample_weight=tensors[2],
            intercept=True,
            method=method,
            tol=1e-10,
        )
        found = fit.path(1.0, ALPHAS, T).predict(torch.asarray(NEW))
        assert isinstance(found, torch.Tensor)
        close(found.numpy(), wanted, 1e-8)
    fit = sdgpu.fit(X.astype("float32"), Y.astype("float32"), KERNEL, 1.0, **how)
    close(fit.path(1.0, ALPHAS, T).predict(NEW.astype("float32")), wanted, 1e-5)


def test_what_follows_a_fit():
    """Other targets, a predictor in a file, variances, a tolerance in place of lam, the spectrum."""
    w = WEIGHTS["some 0"]
    fit = sdgpu.fit(X, Y, KERNEL, [1.0], sample_weight=w, intercept=True, method="eigh")
    kappa = kernel_of(KERNEL)
    other = fit.with_targets(Y[:, 0] ** 2 + 7)
    wanted = steps(kappa, X, Y[:, :1] ** 2 + 7, w, 1.0, ALPHAS, True, NEW)[0][:, :, 0]
    close(other.path(1.0, ALPHAS, T).predict(NEW), wanted)
    again = pickle.loads(pickle.dumps(fit.path(1.0, ALPHAS, T).predictor()))
    close(again.predict(NEW), steps(kappa, X, Y, w, 1.0, ALPHAS, True, NEW)[0][-1])
    present = w > 0
    a, _ = ridge(kappa(X, X), np.eye(N), w, 1.0, True)  # coefficients of every target
    variance = fit.path(1.0, 0.0, 1).variance(NEW).posterior[0]
    # f(x) less its weighted mean, given the targets: by the joint distribution
    share = w / w.sum()
    inner = kappa(NEW, X) - share @ kappa(X, X)
    prior = 1 - 2 * kappa(NEW, X) @ share + share @ kappa(X, X) @ share
    close(
        variance,
        prior
        - np.einsum("mi,ij,mj->m", inner[:, present], a[present][:, present], inner[:, present]),
        1e-7,
    )
    path = sdgpu.constrained_path(X, Y, KERNEL, eps=0.5, sample_weight=w, intercept=True)
    fitted = path.fitted[0]
    loss = np.einsum("n,nc->", w, (fitted - Y) ** 2) / w.sum()
    np.testing.assert_allclose(loss, 0.5, rtol=1e-6)
    close(fitted, steps(kappa, X, Y, w, float(path.lams[0]), [], True, X)[0][0], 1e-7)
    assert fit.spectrum.eigenvalues.shape == (N,)


def test_targets_far_from_0_lose_no_digit():
    y = 1e6 + Y[:, 0]
    near = sdgpu.fit(X, Y[:, 0], KERNEL, [1.0], intercept=True).path(1.0, 0.3, 3)
    far = sdgpu.fit(X, y, KERNEL, [1.0], intercept=True).path(1.0, 0.3, 3)
    np.testing.assert_allclose(far.predict(NEW) - 1e6, near.predict(NEW), atol=1e-8)


@pytest.mark.parametrize("method", ["eigh", "subspace"])
@pytest.mark.parametrize("gamma", [1e-3, 1e-6, 1e-9])
def test_a_wide_kernel_is_a_difference_and_the_fit_says_what_that_costs(gamma, method):
    """All entries are near 1: what is left without the mean has lost digits, more the wider it is."""
    kernel, lam = sdgpu.Gaussian(gamma), 1e-3 * gamma
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = sdgpu.fit(X, Y, kernel, [lam], intercept=True, method=method, tol=1e-8)
    with mpmath.workdps(50):  # the values of the kernel too: a double has lost what is left
        exact = np.frompyfunc(mpmath.mpf, 1, 1)(X)
        squares = ((exact[:, None] - exact[None]) ** 2).sum(axis=-1)
        K = np.frompyfunc(lambda s: mpmath.exp(-mpmath.mpf(gamma) * s), 1, 1)(squares)
        centre = np.eye(N) - np.full((N, N), mpmath.mpf(1) / N)
        A = centre.dot(K).dot(centre)
        targets = centre.dot(np.frompyfunc(mpmath.mpf, 1, 1)(Y[:, :1]))
        solved = mpmath.lu_solve(
            mpmath.matrix((A + np.eye(N) * mpmath.mpf(lam)).tolist()),
            mpmath.matrix(targets.tolist()),
        )
        wanted = A.dot(np.array(solved.tolist()))[:, 0].astype(float)
    error = np.linalg.norm(fit.path(lam, 0.0, 1).fitted[0, :, 0] - Y[:, 0].mean() - wanted)
    assert error <= max(fit.info.error_estimate, 1e-12) * np.linalg.norm(wanted)


def test_a_constant_kernel_leaves_the_mean():
    fit = sdgpu.fit(np.zeros((N, 1)), Y, KERNEL, [1.0], intercept=True)
    close(
        fit.path(1.0, 0.3, 3).predict(np.ones((2, 1)) * 0),
        np.broadcast_to(Y.mean(axis=0), (3, 2, C)),
    )
    one = sdgpu.fit(X[:1], Y[:1], KERNEL, [1.0], intercept=True)
    close(one.path(1.0, 0.3, 2).predict(NEW), np.broadcast_to(Y[0], (2, M, C)))
    with pytest.raises(ValueError, match="row 0 determines itself"):
        one.loo(1.0)


def test_a_basis_goes_on_from_its_checkpoint_with_the_same_weights_alone(tmp_path):
    how = {"method": "subspace", "operator": "tiled", "checkpoint": tmp_path / "a.safetensors"}
    w = WEIGHTS["real"]
    one = sdgpu.fit(X, Y, KERNEL, [1.0], sample_weight=w, **how).path(1.0).predict(NEW)
    close(sdgpu.fit(X, Y, KERNEL, [1.0], sample_weight=w, **how).path(1.0).predict(NEW), one)
    for other in ({"sample_weight": 2 * w}, {"sample_weight": w, "intercept": True}, {}):
        with pytest.raises(ValueError, match="another"):
            sdgpu.fit(X, Y, KERNEL, [1.0], **other, **how)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (-np.ones(N), "sample_weight has -1 at row 0: weights must be >= 0"),
        (np.zeros(N), "sample_weight is 0 for all rows"),
        (np.ones(N - 1), "sample_weight has 39 rows, but its inputs have 40"),
        (np.ones((N, 2)), "sample_weight has 2 outputs"),
        (np.full(N, np.nan), "sample_weight"),
        (np.full(N, 1e200), "sample_weight up to 1e\\+200: divide the weights"),
    ],
)
def test_refusals(weights, words):
    with pytest.raises(ValueError, match=words):
        sdgpu.fit(X, Y, KERNEL, [1.0], sample_weight=weights)
    if weights.ndim == 1 and len(weights) == N:
        fit = sdgpu.fit(X, Y, KERNEL, [1.0])
        with pytest.raises(ValueError, match=words):
            fit.sweep(X, Y, sample_weight=weights)


def test_weights_of_no_rows_and_metrics_that_know_none():
    fit = sdgpu.fit(X, Y, KERNEL, [1.0], sample_weight=WEIGHTS["real"])
    with pytest.raises(ValueError, match="sample_weight is that of X_val"):
        fit.sweep(sample_weight=np.ones(N))

    class Own:
        name, description, larger_is_better, size = "own", "mine", False, 1

        def check(self, name, Y):
            pass

        def update(self, rows):
            return np.zeros((*rows.values.shape[:-2], 1))

        def result(self, sums, count):
            return sums[..., 0]

    with pytest.raises(ValueError, match="'own' knows no weights of rows"):
        fit.sweep(metrics=[Own()])
    with pytest.raises(ValueError, match="'own' knows no weights of rows"):
        fit.sweep(X, Y, metrics=[Own()], sample_weight=np.ones(N))
    fit.sweep(X, Y, metrics=[Own()])


@pytest.mark.parametrize("precision", ["float64", "mixed"])
def test_the_mean_of_a_kernel_keeps_no_matrix(monkeypatch, precision):
    """Tiles are for what does not fit: n^2 numbers beside them were 3.2 GB for 20,000 rows."""

    def refuse(self):
        raise AssertionError("n^2 numbers are kept")

    monkeypatch.setattr(sdgpu.operators.DenseOperator, "matrix", property(refuse))
    how = {"method": "subspace", "operator": "tiled", "dtype": precision, "tol": 1e-5}
    for method in (how, {"method": "eigh"}):
        fit = sdgpu.fit(X, Y, KERNEL, [1.0], intercept=True, **method)
        assert fit.path(1.0).predict(NEW).shape == (2, M, C)
