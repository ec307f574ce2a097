"""Random problems on ranks: every size, share, weight, lam, precision and library, held to what is promised."""

import warnings

import numpy as np
import pytest
import torch

import sdgpu
from tests.ranks import cuts, on_ranks

KERNELS = [
    sdgpu.Gaussian(0.3),
    sdgpu.Laplacian(0.4),
    sdgpu.Polynomial(2, 0.5, 1.0),
    sdgpu.Linear(),
    sdgpu.NTK(1, bias_var=0.1),
    1e-9 * sdgpu.Gaussian(0.3),
]
METHODS = ["lanczos", "subspace", "cg", "eigh", "nystrom"]


def drawn(seed):
    """One problem: rows, targets, weights or None, options, shares of the rows."""
    rng = np.random.default_rng(seed)
    n, d, c = (
        int(rng.choice([1, 2, 3, 9, 24, 41])),
        int(rng.integers(1, 5)),
        int(rng.integers(1, 4)),
    )
    X, Y = rng.standard_normal((n, d)), rng.standard_normal((n, c))
    if rng.random() < 0.3 and n > 2:
        X[1] = X[0]  # equal rows, on two ranks perhaps
    if rng.random() < 0.2:
        Y[:, 0] = 0.0
    Y = (Y + rng.choice([0.0, 100.0])) * rng.choice([1.0, 1e-8, 1e8])
    weights = None
    if rng.random() < 0.6:
        weights = rng.uniform(0.1, 3, n) * (rng.random(n) < 0.8)
        weights[int(rng.integers(n))] = 1.0
    dtype = str(rng.choice(["float64", "float64", "float32"]))
    kernel = KERNELS[rng.integers(len(KERNELS))]
    X, Y = X.astype(dtype), Y.astype(dtype)
    top = max(float(np.linalg.eigvalsh(np.asarray(kernel(X, X), dtype=float))[-1]), 1e-300)
    lams = top * np.sort(10.0 ** rng.uniform(-12, 12, 2))
    intercept = bool(rng.random() < 0.5) and (weights is None or (weights > 0).sum() > 1) and n > 1
    how = {"kernel": kernel, "lams": lams, "intercept": intercept, "memory": "1GiB"}
    return rng, X, Y, weights, how


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(12))
def test_what_is_promised_holds(seed, method):
    rng, X, Y, weights, how = drawn([seed, METHODS.index(method)])
    n, library = len(X), np.asarray if rng.random() < 0.6 else torch.from_numpy
    if method == "nystrom":
        options = {"features": sdgpu.Nystrom(min(n, 7)), "dtype": "float64"}
    else:
        options = {"method": method, "tol": 1e-8}
        if method != "eigh":
            options["operator"] = "tiled"
    lam, alphas = float(rng.choice(how["lams"])), rng.uniform(-0.2, 1.2, 2)
    parts = cuts(n, int(rng.integers(1, 5)), rng)
    new = rng.standard_normal((5, X.shape[1])).astype(X.dtype)
    new_parts = cuts(5, len(parts), rng)

    def host(values):
        return np.asarray(values, dtype=np.float64)

    def work(ranks, rows):
        own = None if weights is None else weights[rows]
        fit = sdgpu.fit(
            library(X[rows]),
            library(Y[rows]),
            sample_weight=own,
            distributed=ranks,
            **how,
            **options,
        )
        path, mine = fit.path(lam, alphas, 3), library(new[new_parts[ranks.rank]])
        there, alone = path.predict(mine), path.predictor().predict(library(new))
        assert type(there) is type(mine)
        return host(there), host(alone), fit.info

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of hopeless lam: the status says it too
        found = on_ranks(parts, work)
        truth = {"features": options["features"]} if method == "nystrom" else {"method": "eigh"}
        X64, Y64 = X.astype(np.float64), Y.astype(np.float64)
        one = sdgpu.fit(X64, Y64, sample_weight=weights, **how, **truth)
    wanted, size = one.path(lam, alphas, 3).predict(new.astype(np.float64)), np.abs(Y64).max()
    info, noise = found[0][2], 1e-11 if X.dtype == np.float64 else 1e-6
    errors = info.error_estimate + one.info.error_estimate
    if not errors < 1e-3:  # nothing is promised of new rows then
        return
    room = 10 * (errors + noise) * max(np.abs(wanted).max(), 1e-6 * size)
    there = np.concatenate([rank[0] for rank in found], axis=1)
    np.testing.assert_allclose(there, wanted, rtol=0, atol=room)
    for rank in found:
        np.testing.assert_allclose(rank[1], wanted[-1], rtol=0, atol=room)
        np.testing.assert_array_equal(rank[1], found[0][1])
        assert rank[2].n == n
