"""What fits with `features=` refuse, by name and before any long work."""

import numpy as np
import pytest
import torch
from scipy import sparse

import sdgpu
from sdgpu.backend.rows import Block

X = np.random.default_rng(0).standard_normal((12, 3))
Y = np.sin(X[:, :2])
KERNEL, NYSTROM = sdgpu.Gaussian(0.4), sdgpu.Nystrom(5)
FIXED = sdgpu.Nystrom(landmarks=X[:5])


def fit(X=X, Y=Y, kernel=KERNEL, lams=1.0, features=NYSTROM, **how):
    return sdgpu.fit(X, Y, kernel, lams, features=features, **how)


def blocks(*parts, d=3, c=2, **how):
    return sdgpu.rows.blocks(lambda: iter(parts), d=d, c=c, **how)


def stream(*parts, features=FIXED, **how):
    return sdgpu.fit(blocks(*parts, **how), None, KERNEL, features=features)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fit(features="nystrom"), TypeError, r"features='nystrom': sdgpu.Nystrom\(..\), "),
        (lambda: fit(features=sdgpu.Nystrom), TypeError, r"features=<class .* is wanted"),
        (lambda: fit(features=sdgpu.Explicit), TypeError, r"features=<class .* is wanted"),
        (lambda: fit(features=KERNEL), TypeError, r"features=Gaussian.* is wanted"),
        (lambda: fit(features=100), TypeError, r"features=100: sdgpu.Nystrom"),
        (
            lambda: sdgpu.fit(sdgpu.rows.arrays(X, Y), None, KERNEL),
            ValueError,
            "features= is missing: rows of a source are fitted by",
        ),
        (lambda: fit(method="cg"), ValueError, "method: not for features=; leave that out"),
        (lambda: fit(operator="tiled"), ValueError, "operator: not for features="),
        (lambda: fit(plan=sdgpu.plan(12, 3)), ValueError, "plan: not for features="),
        (lambda: fit(method="eigh", operator="dense"), ValueError, "method, operator: not for"),
        (lambda: fit(dtype="float16"), ValueError, "dtype='float16' is not known.*mixed"),
        (lambda: fit(dtype=32), ValueError, "dtype=32 is not known"),
        (lambda: fit(device="gpu"), ValueError, "device='gpu' is not known"),
        (lambda: fit(lams=[1.0, -1.0]), ValueError, "lams must be > 0"),
        (lambda: fit(lams=[]), ValueError, "lams is empty"),
        (lambda: fit(progress=3), TypeError, "progress=3 must be callable"),
        (lambda: fit(memory="1kB"), MemoryError, "5 features needs .*take fewer features"),
        (lambda: fit(kernel="rbfs"), ValueError, "kernel='rbfs' is not known"),
        (lambda: fit(kernel="precomputed"), ValueError, "not a precomputed one"),
        (
            lambda: fit(kernel="precomputed", features=sdgpu.RandomFourier(4)),
            ValueError,
            "random Fourier features are for Gaussian",
        ),
        (lambda: fit(kernel=sdgpu.CubicSpline()), ValueError, "kernel of one feature"),
        (lambda: fit(features=sdgpu.Explicit()), ValueError, "has no finite number of features"),
        (lambda: fit(features=sdgpu.Nystrom(13)), ValueError, "size=13 landmarks of 12 rows"),
        (
            lambda: fit(features=sdgpu.Nystrom(landmarks=X[:4, :2])),
            ValueError,
            "landmarks has 2 features, but the rows have 3",
        ),
        (lambda: fit(Y=None), ValueError, "has no targets: name a target, or pass Y"),
        (lambda: fit(X=X[:, 0]), ValueError, r"X must be \(rows, features\), got shape \(12,\)"),
        (lambda: fit(X=X[:0], Y=Y[:0]), ValueError, "X has no rows"),
        (lambda: fit(X=X[:, :0]), ValueError, r"X must be \(rows, features\)"),
        (lambda: fit(Y=Y[1:]), ValueError, "Y has 11 rows, but X has 12"),
        (lambda: fit(Y=Y[:, :0]), ValueError, "Y must be"),
        (lambda: fit(Y=Y[..., None]), ValueError, "Y must be"),
        (lambda: fit(X=1j * X), TypeError, "complex"),
        (lambda: fit(X=X.astype(str)), TypeError, "X"),
        (lambda: fit(X=sparse.csr_matrix(X)), TypeError, "X"),
        (
            lambda: fit(X=np.where(X > 1, np.nan, X)),
            ValueError,
            r"X at X, row 0, row \d+ .* is NaN",
        ),
        (lambda: fit(Y=Y * np.inf), ValueError, "Y at X, row 0, row 0 of the block, is NaN or inf"),
        (
            lambda: fit(
                X=torch.where(torch.tensor(X) > 1, torch.nan, torch.tensor(X)), Y=torch.tensor(Y)
            ),
            ValueError,
            "X at X, row 0, row",
        ),
        (lambda: fit(sample_weight=np.ones(11)), ValueError, "weights has 11 rows, but X has 12"),
        (lambda: fit(sample_weight=np.ones((12, 1))), ValueError, r"weights must be \(rows,\)"),
        (lambda: fit(sample_weight=-np.ones(12)), ValueError, "weights at .* are negative"),
        (lambda: fit(sample_weight=np.full(12, np.nan)), ValueError, "weights at .* is NaN"),
        (
            lambda: fit(sample_weight=np.zeros(12)),
            ValueError,
            "12 rows of weight 0: add rows first",
        ),
        (lambda: fit(sample_weight=["a"] * 12), TypeError, "weights"),
        (lambda: fit(X=sdgpu.rows.arrays(X, Y)), TypeError, "of its own: leave Y out"),
        (
            lambda: fit(X=sdgpu.rows.arrays(X, Y), Y=None, sample_weight=np.ones(12)),
            TypeError,
            "of its own: leave weights out",
        ),
        (lambda: fit(X=sdgpu.rows.arrays(X), Y=None), ValueError, "the source has no targets"),
        (
            lambda: stream((X, Y), features=NYSTROM, rereadable=False),
            ValueError,
            "can be read once, and landmarks are picked from its rows first: pass landmarks=array",
        ),
        (lambda: stream(), ValueError, "0 rows of weight 0: add rows first"),
        (lambda: stream((X[:0], Y[:0])), ValueError, "0 rows of weight 0: add rows first"),
        (lambda: stream((X, Y), n=13), ValueError, "said 13 rows and gave 12: it changed"),
        (lambda: stream((X, Y), (X, Y), n=12), ValueError, "said 12 rows and gave 24"),
        (lambda: stream((X, Y), (X[:, :2], Y)), ValueError, r"X at block 1 has shape \(12, 2\)"),
        (lambda: stream((X, Y), (X, Y[:, :1])), ValueError, r"Y at block 1 has shape \(12, 1\)"),
        (lambda: stream((X, Y), (X, Y[1:])), ValueError, "block 1 has 12 rows of X and 11 of Y"),
        (lambda: stream((X, Y), (X,)), ValueError, "block at block 1 has no targets"),
        (lambda: stream((X, Y), (X, Y, np.ones(12))), ValueError, "block 1 is of another kind"),
        (lambda: stream((X, Y, np.ones(3))), ValueError, "12 rows of X and 3 of weights"),
        (lambda: stream((X.astype(str), Y)), TypeError, "X at block 0 holds <U32: real numbers"),
        (lambda: stream((X, Y, X, Y)), ValueError, "block 0 has 4 parts"),
        (
            lambda: fit(
                features=sdgpu.Explicit(lambda rows: rows[:, :1] / 0 * 0 if len(rows) > 1 else rows)
            ),
            ValueError,
            "features= gives",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


FITTED = fit(intercept=True)
EXACT = sdgpu.fit(X, Y, KERNEL)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda fit: fit.sweep(blocks((X, Y[:, :1]), c=1)), "1 outputs, but the fit has 3 and 2"),
        (lambda fit: fit.sweep(blocks((X[:, :2], Y), d=2)), "X_val has 2 features and 2 outputs"),
        (lambda fit: fit.sweep(blocks((X,), c=0)), "X_val has 3 features and 0 outputs"),
        (lambda fit: fit.sweep(blocks((X, Y)), Y), "Y_val: a source brings its own targets"),
        (
            lambda fit: fit.sweep(blocks((X, Y, np.zeros(12)))),
            "weights of the validation rows are all",
        ),
        (lambda fit: fit.sweep(blocks()), "X_val has no rows: at least one is needed"),
        (lambda fit: fit.sweep(blocks((X[:0], Y[:0]))), "X_val has no rows"),
        (lambda fit: fit.sweep(blocks((X,))), "the block at block 0 has no targets"),
        (lambda fit: fit.sweep(blocks((X, Y), n=13)), "said 13 rows and gave 12"),
        (lambda fit: fit.sweep(X), "Y_val"),
        (lambda fit: fit.sweep(torch.tensor(X), torch.tensor(Y)), "X_val is torch on cpu"),
        (lambda fit: fit.optimal_alphas(blocks((X, Y * np.nan))), "Y at block 0, row 0 of the bl"),
        (lambda fit: fit.sweep(blocks((X, Y)), metrics=["accuracy"]), "Y_val is not one-hot"),
        (lambda fit: fit.sweep(metrics=["accuracy"]), "Y is not one-hot"),
    ],
)
def test_rows_to_judge_on(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(FITTED)


def test_rows_of_a_source_are_for_features_alone():
    for call in (EXACT.sweep, EXACT.optimal_alphas, EXACT.joint_alphas):
        with pytest.raises(ValueError, match="rows of a source are judged by fits with features="):
            call(blocks((X, Y)))


@pytest.mark.filterwarnings("ignore:inaccurate")
def test_a_row_that_determines_itself():
    """Alone in a direction of the features, or the only one."""
    rows = np.concatenate([np.zeros((5, 1)), [[1e4]]])
    alone = sdgpu.fit(rows, np.arange(6.0), "linear", 1e-8, features=sdgpu.Explicit())
    with pytest.raises(
        ValueError, match=r"row 5 of a block determines itself.*raise lam or remove"
    ):
        alone.loo()
    single = sdgpu.fit(X[:1], Y[:1], KERNEL, features=sdgpu.Nystrom(1), intercept=True)
    assert np.array_equal(single.path().predict(X)[0], np.broadcast_to(Y[:1], (12, 2)))
    for call in (single.loo, single.sweep):
        with pytest.raises(ValueError, match="row 0 of a block determines itself"):
            call()


class Silent:
    """A source from elsewhere that says the wrong thing."""

    d, c, n, dtype, rereadable, columns, outputs = 3, 2, None, "float64", True, None, None

    def __init__(self, *parts):
        self.parts = parts

    def blocks(self, rows):
        return iter(self.parts)


def test_sources_from_elsewhere():
    fitted = fit(Silent(Block(X[:5], Y[:5]), Block(X[5:], Y[5:])), None)
    wanted = fit(X, Y).path(steps=3).predict(X)
    assert np.abs(fitted.path(steps=3).predict(X) - wanted).max() < 1e-10
    for part, words in (
        (Block(X, Y[:, 0]), r"Y at row 0 has shape \(12,\)"),
        (Block(X, None), "the block at row 0 has no targets"),
        (Block(X[:, 0], Y), r"X at row 0 has shape \(12,\)"),
        (Block(X, Y, place="the third file"), None),
    ):
        if words is None:
            with pytest.raises(ValueError, match="Y at the third file, row 0"):
                fit(Silent(Block(X, Y * np.nan, place="the third file")), None)
            continue
        with pytest.raises(ValueError, match=words):
            fit(Silent(part), None)
        with pytest.raises(ValueError, match=words):
            fitted.sweep(Silent(part))
