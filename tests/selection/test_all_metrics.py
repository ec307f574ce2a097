"""Every metric against scikit-learn's own, by validation rows, by leave-one-out, in blocks, with weights."""

import numpy as np
import pytest
import scipy.special
import torch
from numpy.testing import assert_allclose
from sklearn import metrics as theirs

import sdgpu
from sdgpu.distill.schedules import grid_tails
from sdgpu.selection.grid_scores import GridScores
from sdgpu.selection.metrics import PredictedRows, as_metrics, named_metric, standard_errors

KERNEL = sdgpu.Gaussian(0.5)
LAMS, ALPHAS, STEPS = np.array([0.1, 1.0]), np.array([-0.2, 0.4, 1.0]), 3
GRID = {"alphas": ALPHAS, "steps": STEPS}


def huber(delta):
    return lambda y, f, sample_weight=None: np.average(
        scipy.special.huber(delta, f - y).mean(axis=1), weights=sample_weight
    )


def largest(y, f, sample_weight=None):
    rows = slice(None) if sample_weight is None else sample_weight > 0
    return max(theirs.max_error(y[rows, j], f[rows, j]) for j in range(y.shape[1]))


def pinball(alpha):
    return lambda y, f, **how: theirs.mean_pinball_loss(y, f, alpha=alpha, **how)


#: name: their function of (y, f, sample_weight)
REAL = {
    "mae": theirs.mean_absolute_error,
    "rmse": theirs.root_mean_squared_error,
    "r2": theirs.r2_score,
    "explained_variance": theirs.explained_variance_score,
    "max_error": largest,
    "pinball_0.9": pinball(0.9),
    "pinball_0.25": pinball(0.25),
    "huber_0.3": huber(0.3),
    "huber_2": huber(2.0),
}


def labelled(score, **options):
    return lambda y, f, sample_weight=None: score(
        y.argmax(axis=1), f.argmax(axis=1), sample_weight=sample_weight, **options
    )


def area(y, f, sample_weight=None):
    if y.shape[1] == 2:
        scores = f[:, 1] - f[:, 0]
        return theirs.roc_auc_score(y[:, 1], scores, sample_weight=sample_weight)
    return theirs.roc_auc_score(y, f, sample_weight=sample_weight)


def clipped(f):
    p = np.clip(f, 1e-6, 1)
    return p / p.sum(axis=1, keepdims=True)


def nll(y, f, sample_weight=None):
    p = np.maximum(
        (clipped(f) * y).sum(axis=1), 1e-6
    )  # a small one over a sum > 1 is smaller still
    both = np.stack([p, 1 - p], axis=1)  # theirs wants rows that add up to one
    return theirs.log_loss(0 * p, both, labels=[0, 1], sample_weight=sample_weight)


def brier(y, f, sample_weight=None):
    return np.average(((clipped(f) - y) ** 2).sum(axis=1), weights=sample_weight)


def f1(y, f, sample_weight=None):
    average = "binary" if y.shape[1] == 2 else "macro"
    return labelled(theirs.f1_score, average=average)(y, f, sample_weight)


def top_2(y, f, sample_weight=None):
    return theirs.top_k_accuracy_score(y.argmax(axis=1), f, k=2, sample_weight=sample_weight)


CLASSES = {
    "accuracy": labelled(theirs.accuracy_score),
    "balanced_accuracy": labelled(theirs.balanced_accuracy_score),
    "f1": f1,
    "f1_macro": labelled(theirs.f1_score, average="macro"),
    "auc": area,
    "nll": nll,
    "brier": brier,
    "top_2": top_2,
}


LARGER = {"r2", "explained_variance", *CLASSES} - {"nll", "brier"}


def real(rng, n):
    X = rng.standard_normal((n, 2))
    return X, 3 + X @ rng.standard_normal((2, 2)) + 0.3 * rng.standard_normal((n, 2))


def classes(rng, n, c):
    X = rng.standard_normal((n, 2))
    labels = np.clip((X[:, 0] + 0.7 * rng.standard_normal(n)) * 1.5 + c / 2, 0, c - 1).astype(int)
    labels[:c] = range(c)
    return X, np.eye(c)[labels]


def held_to(theirs, dataset, predictions, truth, weights):
    """Every point of the grid against their function of explicit predictions (A, T, m, c) of one lam."""
    for name, score in theirs.items():
        for a, alpha in enumerate(ALPHAS):
            for step in range(STEPS):
                wanted = score(truth, predictions[a, step], sample_weight=weights)
                found = float(dataset[name].sel(alpha=alpha, step=step + 1))
                assert_allclose(found, wanted, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", ["real", 2, 3])
def test_validation_rows(rng, outputs, weighted):
    data = real if outputs == "real" else lambda rng, n: classes(rng, n, outputs)
    (X, Y), (X_val, Y_val) = data(rng, 40), data(rng, 31)
    weights = rng.integers(0, 4, 31).astype(float) if weighted else None
    wanted = {k: v for k, v in CLASSES.items() if (k, outputs) != ("top_2", 2)}
    wanted = REAL if outputs == "real" else wanted
    fitted = sdgpu.fit(X, Y, KERNEL, LAMS, intercept=True)
    sweep = fitted.sweep(X_val, Y_val, **GRID, metrics=list(wanted), sample_weight=weights)
    for lam in LAMS:
        predictions = np.stack([fitted.path(lam, alpha, STEPS).predict(X_val) for alpha in ALPHAS])
        held_to(wanted, sweep.dataset.sel(lam=lam), predictions, Y_val, weights)
    for name in wanted:
        best, values = sweep.best(name), sweep.dataset[name]
        larger = name in LARGER
        assert best.value == float(values.max() if larger else values.min())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", ["real", 2, 3])
@pytest.mark.parametrize("features", [None, sdgpu.Nystrom(8)], ids=["exact", "features"])
def test_leave_one_out(rng, outputs, weighted, features):
    """Of explicit refits without each row, with the features of the whole."""
    X, Y = real(rng, 24) if outputs == "real" else classes(rng, 24, outputs)
    weights = rng.uniform(0.5, 2.0, 24) if weighted else None
    wanted = {k: v for k, v in CLASSES.items() if (k, outputs) != ("top_2", 2)}
    wanted = REAL if outputs == "real" else wanted
    how = {"intercept": True, "features": features}
    fitted = sdgpu.fit(X, Y, KERNEL, LAMS, sample_weight=weights, **how)
    sweep = fitted.sweep(**GRID, metrics=list(wanted))
    if features is not None:  # the landmarks of the fit
        how["features"] = sdgpu.Nystrom(landmarks=fitted._model.operator.map.landmarks)
    predictions = np.empty((len(ALPHAS), STEPS, 24, Y.shape[1]))
    for i in range(24):
        rest = np.arange(24) != i
        own = None if weights is None else weights[rest]
        without = sdgpu.fit(X[rest], Y[rest], KERNEL, LAMS[1], sample_weight=own, **how)
        for a, alpha in enumerate(ALPHAS):
            predictions[a, :, i] = without.path(None, alpha, STEPS).predict(X[[i]])[:, 0]
    held_to(wanted, sweep.dataset.sel(lam=LAMS[1]), predictions, Y, weights)


@pytest.mark.parametrize("name", [*REAL, *CLASSES])
def test_one_set_of_predictions(rng, name):
    """Without axes of a grid, as a study judges test rows."""
    Y, f = np.eye(3)[rng.integers(3, size=20)], rng.standard_normal((20, 3))
    metric = named_metric(name)
    found = metric.result(metric.update(PredictedRows(f.T, Y.T)), 20)
    assert_allclose(found, (REAL | CLASSES)[name](Y, f), rtol=1e-12)


def test_defaults():
    for metric, name in (
        (sdgpu.Pinball(), "pinball_0.5"),
        (sdgpu.Huber(), "huber_1.35"),
        (sdgpu.TopK(), "top_2"),
    ):
        assert metric.name == name


@pytest.mark.parametrize("name", [*REAL, *CLASSES])
def test_blocks_merge_to_the_whole(rng, name):
    """Two workers with some rows each, many small blocks, or all at once."""
    T, c, tails = 3, 3, grid_tails(ALPHAS, 3)
    basis = rng.standard_normal((2, T, 40, c))
    truth = np.eye(c)[rng.integers(c, size=40)]
    weights = rng.uniform(0, 2, 40)
    offset = np.array([1e5, -2.0, 0.3]) if name in REAL else np.zeros(c)

    def seen(*parts):
        scores = GridScores(tails, 2, [named_metric(name)], outputs=c)
        for start, stop in parts:
            for lam in (0, 1):
                scores.add(
                    slice(lam, lam + 1),
                    basis[lam : lam + 1, :, start:stop],
                    truth[start:stop],
                    new_rows=lam == 0,
                    offset=offset,
                    weights=weights[start:stop],
                )
        return scores

    whole = seen((0, 40)).scores()[name]
    cuts = [(i, i + 1) for i in range(40)]
    tolerance = 1e-9 if name in ("r2", "explained_variance") else 1e-12
    assert_allclose(seen(*cuts).scores()[name], whole, rtol=tolerance, atol=1e-13)
    both = seen((0, 7), (7, 20)).merge(seen((20, 40))).scores()[name]
    assert_allclose(both, whole, rtol=tolerance, atol=1e-13)
    assert np.ptp(whole) > 0


@pytest.mark.parametrize("outputs", ["real", 3])
def test_libraries_agree(rng, outputs):
    (X, Y), (X_val, Y_val) = (
        real(rng, n) if outputs == "real" else classes(rng, n, 3) for n in (40, 31)
    )
    names = list(REAL if outputs == "real" else CLASSES)
    how = {**GRID, "metrics": names, "standard_errors": True}
    host = sdgpu.fit(X, Y, KERNEL, LAMS).sweep(X_val, Y_val, **how).dataset
    X, Y, X_val, Y_val = map(torch.tensor, (X, Y, X_val, Y_val))
    device = sdgpu.fit(X, Y, KERNEL, LAMS).sweep(X_val, Y_val, **how).dataset
    for name in names:
        assert_allclose(device[name], host[name], atol=1e-9)
        if f"{name}_se" in host:
            assert_allclose(device[f"{name}_se"], host[f"{name}_se"], atol=1e-9)


def test_strict_arrays(rng, backend):
    values, truth = rng.standard_normal((2, 3, 9)), np.eye(3)[rng.integers(3, size=9)].T
    values[:, :, :4] = np.round(values[:, :, :4])  # with ties
    weights = rng.uniform(0, 2, 9)
    for name in (*REAL, *CLASSES):
        metric = named_metric(name)
        wanted = metric.update(PredictedRows(values, truth, weights))
        own = PredictedRows(backend.asarray(values), backend.asarray(truth), weights)
        assert_allclose(metric.update(own), wanted, rtol=1e-12, atol=1e-12)


def test_the_first_of_equal_values_counts():
    values = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])[None]  # (1, c, b)
    truth = np.eye(3)[[1, 2, 2]].T
    rows = PredictedRows(values, truth)
    assert rows.predicted[0].argmax(axis=0).tolist() == [0, 0, 0]
    assert named_metric("top_1").update(rows)[0, 0] == 0
    assert named_metric("top_2").update(rows)[0, 0] == 2


def test_targets_far_from_zero_keep_their_variation(rng):
    X = rng.standard_normal((60, 2))
    y = 1e8 + X[:, 0] + 0.1 * rng.standard_normal(60)
    fitted = sdgpu.fit(X[:40], y[:40], KERNEL, LAMS, intercept=True)
    sweep = fitted.sweep(X[40:], y[40:], **GRID, metrics=["r2", "explained_variance"]).dataset
    for lam in LAMS:
        f = fitted.path(lam, 0.4, STEPS).predict(X[40:])
        for step in range(STEPS):
            point = sweep.sel(lam=lam, alpha=0.4, step=step + 1)
            assert_allclose(point["r2"], theirs.r2_score(y[40:], f[step]), atol=1e-6)
            wanted = theirs.explained_variance_score(y[40:], f[step])
            assert_allclose(point["explained_variance"], wanted, atol=1e-6)


def test_constant_targets_are_zero_or_one(rng):
    X, y = rng.standard_normal((20, 2)), rng.standard_normal(20)
    fitted = sdgpu.fit(X, y, KERNEL, LAMS)
    assert (fitted.sweep(X, np.full(20, 0.3), **GRID, metrics=["r2"]).dataset["r2"] == 0).all()
    flat = sdgpu.fit(X, np.full(20, 0.3), KERNEL, LAMS, intercept=True)
    sweep = flat.sweep(X, np.full(20, 0.3), **GRID, metrics=["r2"]).dataset["r2"]
    assert (sweep == 1).all()


def test_area_of_one_column_and_absent_classes(rng):
    X, y = rng.standard_normal((40, 2)), (rng.uniform(size=40) < 0.4).astype(float)
    fitted = sdgpu.fit(X, y, KERNEL, LAMS)
    found = fitted.sweep(X, y, **GRID, metrics=["auc"]).dataset["auc"]
    f = fitted.path(0.1, 0.4, STEPS).predict(X)[1]
    assert_allclose(found.sel(lam=0.1, alpha=0.4, step=2), theirs.roc_auc_score(y, f))
    Y = np.eye(3)[rng.integers(2, size=40)]  # no row of the third class
    found = sdgpu.fit(X, Y, KERNEL, LAMS).sweep(X, Y, **GRID, metrics=["auc"]).dataset["auc"]
    assert found.notnull().all()
    with pytest.raises(ValueError, match="holds no classes: 'auc' needs a column of 0 and 1"):
        fitted.sweep(X, X[:, 0], metrics=["auc"])
    with pytest.raises(ValueError, match="one class only"):
        fitted.sweep(X, np.ones(40), metrics=["auc"])
    with pytest.raises(ValueError, match="Y_val is not one-hot"):
        sdgpu.fit(X, Y, KERNEL, LAMS).sweep(X, Y + 0.5, metrics=["auc"])


def test_rows_that_must_be_kept_are_counted(rng):
    X, Y = classes(rng, 60, 3)
    fitted = sdgpu.fit(X, Y, KERNEL, np.geomspace(0.1, 1, 40), memory="3MB")
    rows, truth = np.zeros((400_000, 2)), np.eye(3)[np.arange(400_000) % 3]
    with pytest.raises(MemoryError, match="auc of 400,000 rows, which must all be kept"):
        fitted.sweep(rows, truth, alphas=[0.5], metrics=["auc"])
    scores = GridScores(grid_tails(ALPHAS, 3), 2, as_metrics(["auc"]), outputs=3, memory=1000)
    with pytest.raises(MemoryError, match="auc of 50 rows, which must all be kept"):
        scores.add(slice(0, 2), np.zeros((2, 3, 50, 3)), np.eye(3)[[0] * 50], new_rows=True)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sdgpu.Pinball(1.0), ValueError, r"quantile=1.0 must be between 0 and 1"),
        (lambda: sdgpu.Pinball(0), ValueError, r"quantile=0 must be between 0 and 1"),
        (lambda: sdgpu.Pinball("high"), TypeError, "quantile='high'"),
        (lambda: sdgpu.Huber(0), ValueError, "delta=0 must be > 0"),
        (lambda: sdgpu.TopK(0), ValueError, "k=0"),
        (lambda: named_metric("top_2.5"), ValueError, "did you mean 'top_2'"),
        (lambda: named_metric("pinball"), ValueError, "did you mean 'pinball_0.9'"),
        (lambda: named_metric("pinball_1.5"), ValueError, "quantile=1.5"),
    ],
)
def test_what_is_no_metric(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_names_and_their_objects(rng):
    for metric in (sdgpu.Pinball(0.9), sdgpu.Huber(1.35), sdgpu.Huber(2), sdgpu.TopK(3)):
        assert named_metric(metric.name) == metric
    X, Y = real(rng, 30)
    fitted = sdgpu.fit(X, Y, KERNEL, LAMS)
    sweep = fitted.sweep(**GRID, metrics=["mse", "mae", sdgpu.Pinball(0.9)])
    assert sweep.best(sdgpu.Pinball(0.9)) == sweep.best("pinball_0.9")
    assert sweep.best("mse") == sweep.best()
    with pytest.raises(ValueError, match=r"no huber_2: ask for it with metrics=\['huber_2'\]"):
        sweep.best("huber_2")
    with pytest.raises(ValueError, match="Y has 2 classes: all of them are among 2; take k < 2"):
        sdgpu.fit(X, np.eye(2)[[0, 1] * 15], KERNEL, LAMS).sweep(metrics=[sdgpu.TopK(2)])


def by_hand(terms, w):
    """Standard error of a weighted mean of independent terms."""
    mean, n = w @ terms / w.sum(), w.sum() ** 2 / (w**2).sum()
    return np.sqrt((w**2) @ (terms - mean) ** 2 / w.sum() ** 2 * n / (n - 1))


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_standard_errors(rng, left_out, weighted, tmp_path):
    (X, Y), (X_val, Y_val) = real(rng, 30), real(rng, 21)
    m = 30 if left_out else 21
    w = rng.uniform(0.2, 2, m) if weighted else np.ones(m)
    own = w if left_out and weighted else None
    fitted = sdgpu.fit(X, Y, KERNEL, LAMS, sample_weight=own)
    how = {**GRID, "metrics": ["mae", "r2"], "standard_errors": True}
    if left_out:
        sweep = fitted.sweep(**how)
        errors = fitted.loo(1.0, 0.4, STEPS) - Y
    else:
        sweep = fitted.sweep(X_val, Y_val, **how, sample_weight=w if weighted else None)
        errors = fitted.path(1.0, 0.4, STEPS).predict(X_val) - Y_val
    point = sweep.dataset.sel(lam=1.0, alpha=0.4)
    for step in range(STEPS):
        for name, terms in (("mse", errors[step] ** 2), ("mae", abs(errors[step]))):
            assert_allclose(point[name][step], np.average(terms.mean(axis=1), weights=w), rtol=1e-9)
            assert_allclose(point[f"{name}_se"][step], by_hand(terms.mean(axis=1), w), rtol=1e-7)
    if not weighted:  # the classical one
        terms = (errors[0] ** 2).mean(axis=1)
        assert_allclose(point["mse_se"][0], terms.std(ddof=1) / np.sqrt(m), rtol=1e-7)
    sweep.save(tmp_path / "own.nc")
    again = sdgpu.open_sweep(tmp_path / "own.nc")
    assert again.best(one_standard_error=True) == sweep.best(one_standard_error=True)


@pytest.mark.parametrize("order", [1, -1])
def test_the_simplest_point_within_one_standard_error(rng, order):
    X, Y = real(rng, 40)
    lams = np.geomspace(1e-3, 100, 12)[::order]
    fitted = sdgpu.fit(X, Y, KERNEL, lams, intercept=True)
    sweep = fitted.sweep(alphas=[0.0, 0.5], steps=4, metrics=["mae", "r2"], standard_errors=True)
    for over, name in (("fixed", "mse"), ("mae", "mae"), ("ridge", "mse")):
        best, simple = sweep.best(over), sweep.best(over, one_standard_error=True)
        losses, errors = (sweep.dataset[key] for key in (name, f"{name}_se"))
        if over == "ridge":
            losses, errors = losses[:, :1, :1], errors[:, :1, :1]
        at = np.unravel_index(losses.values.argmin(), losses.shape)
        limit = losses.values[at] + errors.values[at]
        near = [
            (-float(lam), int(step), float(losses.sel(lam=lam, alpha=alpha, step=step)))
            for lam in losses["lam"]
            for alpha in losses["alpha"]
            for step in losses["step"]
            if float(losses.sel(lam=lam, alpha=alpha, step=step)) <= limit
        ]
        assert (-simple.lam, simple.step, simple.value) == min(near)
        assert simple.lam > best.lam
        assert simple.value <= limit
    with pytest.raises(ValueError, match="no standard error of r2"):
        sweep.best("r2", one_standard_error=True)
    with pytest.raises(ValueError, match="no standard error of star_mse"):
        sweep.best("star", one_standard_error=True)
    with pytest.raises(ValueError, match="standard_errors=True"):
        fitted.sweep(**GRID).best(one_standard_error=True)
    one = fitted.sweep(X[:1], Y[:1], **GRID, standard_errors=True)
    with pytest.raises(ValueError, match="no finite standard error"):
        one.best(one_standard_error=True)
    assert [metric.name for metric in standard_errors(as_metrics(["mae", "r2"]))] == [
        "mse_se",
        "mae_se",
    ]


def test_larger_is_better_within_one_standard_error(rng):
    X, Y = classes(rng, 60, 3)
    fitted = sdgpu.fit(X, Y, KERNEL, np.geomspace(1e-3, 10, 8))
    sweep = fitted.sweep(**GRID, metrics=["accuracy"], standard_errors=True)
    best, simple = sweep.best("accuracy"), sweep.best("accuracy", one_standard_error=True)
    values, errors = sweep.dataset["accuracy"], sweep.dataset["accuracy_se"]
    error = float(errors.values.ravel()[values.values.argmax()])
    assert best.value - error <= simple.value <= best.value
    assert simple.lam >= best.lam
    assert not (values.sel(lam=values["lam"] > simple.lam) >= best.value - error).any()


@pytest.mark.parametrize("outputs", ["real", 3])
def test_rows_of_a_source(rng, outputs, monkeypatch):
    """Blocks of a stream, with weights: as of arrays."""
    (X, Y), (X_val, Y_val) = (
        real(rng, n) if outputs == "real" else classes(rng, n, 3) for n in (60, 50)
    )
    weights = rng.integers(0, 3, 50).astype(float)
    names = list(REAL if outputs == "real" else CLASSES)
    fitted = sdgpu.fit(X, Y, KERNEL, LAMS, features=sdgpu.Nystrom(10), intercept=True)
    how = {**GRID, "metrics": names, "standard_errors": True}
    wanted = fitted.sweep(X_val, Y_val, **how, sample_weight=weights).dataset

    def blocks():
        for part in (slice(0, 11), slice(11, 12), slice(12, 50)):
            yield X_val[part], Y_val[part], weights[part]

    source = sdgpu.rows.blocks(blocks, d=2, c=Y.shape[1])
    found = fitted.sweep(source, **how).dataset
    for name in wanted:
        if name in names or str(name).endswith("_se"):
            assert_allclose(found[name], wanted[name], rtol=1e-9, atol=1e-12, err_msg=name)
    if outputs == 3:
        monkeypatch.setattr("sdgpu.selection.grid_scores.require", refused)
        with pytest.raises(MemoryError, match="auc of 50 rows, which must all be kept"):
            fitted.sweep(source, **GRID, metrics=["auc"])


def refused(size, allowed, what, remedy):
    raise MemoryError(what)


@pytest.mark.parametrize("seed", range(30))
def test_random_problems(seed):
    """Few rows, one step, one output, lam from nothing to everything, absent rows: by hand."""
    rng = np.random.default_rng(seed)
    n, m, c = int(rng.integers(1, 9)), int(rng.integers(1, 9)), int(rng.integers(1, 4))
    steps, scale = int(rng.integers(1, 4)), 10.0 ** rng.integers(-6, 7)
    X, X_val = rng.standard_normal((n, 2)), rng.standard_normal((m, 2))
    Y, Y_val = scale * rng.standard_normal((n, c)), scale * rng.standard_normal((m, c))
    weights = rng.integers(0, 3, m).astype(float)
    weights[0] = 1
    lams = np.array([1e-12, 1.0, 1e12]) * n
    alphas = np.array([0.0, float(rng.uniform(-1, 2))])
    fitted = sdgpu.fit(X, Y, KERNEL, lams, method="eigh")
    names = [name for name in REAL if not name.startswith("huber")]
    sweep = fitted.sweep(
        X_val, Y_val, alphas=alphas, steps=steps, metrics=names, sample_weight=weights
    ).dataset
    present = weights > 0
    for lam in lams:
        for alpha in alphas:
            predicted = fitted.path(lam, alpha, steps).predict(X_val)
            for step in range(steps):
                point = sweep.sel(lam=lam, alpha=alpha, step=step + 1)
                y, f, w = (a[present] for a in (Y_val, predicted[step], weights))
                for name in names:
                    if name in ("r2", "explained_variance") and len(y) < 2:
                        continue  # theirs is NaN
                    wanted = REAL[name](y, f, sample_weight=w)
                    shares = name in ("r2", "explained_variance")
                    tolerance = 1e-12 * (1 + abs(wanted)) if shares else 1e-14 * scale
                    assert_allclose(point[name], wanted, rtol=1e-6, atol=tolerance, err_msg=name)
