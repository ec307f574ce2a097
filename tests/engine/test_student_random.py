"""Random students: any sizes, lam over many magnitudes, every kind of fit, NumPy and torch, both precisions."""

import numpy as np
import pytest
import torch

import sdgpu
from tests.engine.test_student import KERNEL, TEACHER, refits
from tests.engine.test_student_left_out import without_rows

KERNELS = (sdgpu.Gaussian(0.2), sdgpu.Laplacian(0.3), sdgpu.Linear(), sdgpu.Polynomial(2))
METHODS = ("eigh", "lanczos", "subspace", "cg", "features")
EPS = np.finfo(float).eps


def drawn(seed):
    """A problem, often of few rows, equal rows or none with labels."""
    rng = np.random.default_rng(seed)
    n, u, c = int(rng.integers(0, 12)), int(rng.integers(0, 8)), int(rng.integers(1, 4))
    n = n if n + u else 1
    X, U, X_val = (rng.standard_normal((m, 2)) for m in (n, u, 5))
    if n > 3 and rng.random() < 0.3:
        X[1:] = X[0]
    Y = rng.standard_normal((n, c)) * 10.0 ** rng.integers(-3, 4)
    return rng, X, Y, U, X_val


@pytest.mark.filterwarnings("ignore:limited by rounding", "ignore:inaccurate")
@pytest.mark.parametrize("seed", range(60))
def test_every_kind_of_student(seed):
    rng, X, Y, U, X_val = drawn(seed)
    n, c = Y.shape
    every = np.concatenate([X, U])
    kernel = KERNELS[int(rng.integers(len(KERNELS)))]
    method = METHODS[seed % len(METHODS)]
    K = kernel(every)
    lam = float(np.linalg.eigvalsh(K)[-1]) * 10.0 ** rng.integers(-6, 13)
    P = rng.standard_normal((len(every), c)) * max(np.abs(Y).max(initial=0.0), 1e-3)
    single = seed % 3 == 2 and method != "features"
    how = {"features": sdgpu.Nystrom(landmarks=np.unique(every, axis=0))}
    if method != "features":
        how = {"method": method, "tol": 1e-9}
    given = [x.astype(np.float32) if single else x for x in (X, U)]
    if seed % 2:
        given = [torch.tensor(x) for x in given]
    made = sdgpu.student(
        P, kernel, lam, given[0], Y, unlabelled=given[1] if len(U) else None, **how
    )
    alphas = rng.choice([-0.5, 0.0, 0.3, 1.0, 1.7], 3)
    found = made.predict(X_val, None, lam, alphas, steps=3)
    G = np.concatenate([Y, P[n:]])
    wanted = kernel(X_val, every) @ np.stack(refits(K, G, P, lam, alphas))
    # rounding of K, and of a Nystrom basis, over lam
    condition = np.linalg.norm(K, 2) / lam
    noise = {"features": 1e-9}.get(method, 1e-8) + 1e3 * EPS * condition
    noise = max(noise, 5e-6 * min(1 + condition, 1e3)) if single else noise
    scale = np.abs(wanted).max(initial=0.0) + np.abs(G).max() * min(condition, 1.0) * 1e-3
    np.testing.assert_allclose(found, wanted, rtol=0, atol=noise * scale)
    Y_val = rng.standard_normal((5, c)) * np.abs(G).max()
    sweep = made.sweep(X_val, Y_val, alphas=[float(alphas[0])], steps=2).dataset["mse"].values
    predicted = made.predict(X_val, None, lam, float(alphas[0]), steps=2)
    np.testing.assert_allclose(
        sweep[0, 0, 0], np.mean((predicted - Y_val) ** 2, axis=(1, 2)), rtol=1e-6
    )


@pytest.mark.parametrize("seed", range(30))
def test_leave_one_out_at_any_lam(seed):
    """Of both kinds, for teachers and students that differ by many magnitudes of lam."""
    rng = np.random.default_rng(seed)
    n, u = int(rng.integers(2, 9)), int(rng.integers(0, 5))
    X, U = rng.standard_normal((n, 3)), rng.standard_normal((u, 3))
    Y = rng.standard_normal((n, 2))
    sizes = [np.linalg.eigvalsh(kernel(X))[-1] for kernel in (TEACHER, KERNEL)]
    lam1, lam2 = (float(size * 10.0 ** rng.integers(-8, 13)) for size in sizes)
    teacher = sdgpu.fit(X, Y, TEACHER, lam1)
    made = sdgpu.student(teacher, KERNEL, lam2, X, Y, unlabelled=U if u else None)

    def told(X, Y, rows):
        return TEACHER(rows, X) @ np.linalg.solve(TEACHER(X) + lam1 * np.eye(len(X)), Y)

    alphas = rng.choice([-0.5, 0.0, 0.3, 1.0, 1.7], 3)
    for left_out_of in ("student", "both"):
        wanted = without_rows((X, Y, U), [(1.0, told)], lam2, alphas, both=left_out_of == "both")
        found = made.loo(None, lam2, alphas, 3, left_out_of=left_out_of)
        condition = max(size / lam for size, lam in zip(sizes, (lam1, lam2), strict=True))
        atol = (1e-10 + 1e4 * EPS * condition) * np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)
