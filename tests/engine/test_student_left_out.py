"""Leave-one-out of students against n refits: of the student alone, and of its teachers too."""

import numpy as np
import pytest
import torch

import sdgpu
from tests.engine.test_student import KERNEL, LAMS, TEACHER, TEACHER_LAMS, problem, refits, solved
from tests.problems import assert_near

ALPHAS = np.array([-0.3, 0.0, 0.4, 1.0])


def told(X, Y, rows, lam, kernel=TEACHER):
    return kernel(rows, X) @ solved(kernel(X), lam, Y)


def without_rows(data, words, lam, alphas, *, both):
    """Predictions (T, n, c) at each row with a label by students that are made anew without it.

    `words` are pairs of a share and what makes predictions of X, Y at rows.
    """
    X, Y, U = data
    n, found = len(X), []
    every = np.concatenate([X, U])
    P = sum(share * word(X, Y, every) for share, word in words)
    for i in range(n):
        keep = np.delete(np.arange(n), i)
        rows = np.delete(every, i, axis=0)
        said = np.delete(P, i, axis=0)
        if both:
            said = sum(share * word(X[keep], Y[keep], rows) for share, word in words)
        G = np.concatenate([Y[keep], said[n - 1 :]])
        duals = refits(KERNEL(rows), G, said, lam, alphas)
        found.append(KERNEL(X[i : i + 1], rows) @ np.stack(duals))
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("left_out_of", ["student", "both"])
@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("n", [1, 2, 12])
def test_every_row(n, unlabelled, left_out_of):
    X, Y, _, _, U = problem(n=n)
    if n == 1 and (left_out_of == "both" or not unlabelled):
        return  # nothing is left to refit
    U = U if unlabelled else U[:0]
    teacher = sdgpu.fit(X, Y, TEACHER, TEACHER_LAMS)
    made = sdgpu.student(teacher, KERNEL, LAMS, X, Y, unlabelled=U if unlabelled else None)
    schedule, both = np.array([0.3, -0.2, 1.3]), left_out_of == "both"
    sweep = made.sweep(alphas=ALPHAS, steps=3, left_out_of=left_out_of).dataset
    for a, teacher_lam in enumerate(TEACHER_LAMS):
        words = [(1.0, lambda *data, lam=teacher_lam: told(*data, lam))]
        for b, lam in enumerate(LAMS):
            how = {"left_out_of": left_out_of}
            wanted = without_rows((X, Y, U), words, lam, schedule, both=both)
            assert_near(made.loo(teacher_lam, lam, schedule, 3, **how), wanted, 1e-8)
            for k, alpha in enumerate(ALPHAS):
                wanted = without_rows((X, Y, U), words, lam, np.full(3, alpha), both=both)
                losses = np.mean((wanted - Y) ** 2, axis=(1, 2))
                assert_near(sweep["mse"].values[a, b, k], losses, 1e-8)


@pytest.mark.parametrize("left_out_of", ["student", "both"])
@pytest.mark.parametrize("apart", [False, True])
def test_several_teachers(apart, left_out_of):
    X, Y, _, _, U = problem(n=10)
    kernels = (TEACHER, sdgpu.Polynomial(2))
    teachers = [sdgpu.fit(X, Y, kernel, [0.5, 2.0]) for kernel in kernels]
    how = {"unlabelled": U, "weights": "fitted" if apart else [0.7, 0.3]}
    made = sdgpu.student(teachers, KERNEL, LAMS, X, Y, **how)
    if apart:
        made = made.with_weights([0.7, 0.3])
    words = [
        (share, lambda *data, kernel=kernel: told(*data, 2.0, kernel))
        for share, kernel in zip((0.7, 0.3), kernels, strict=True)
    ]
    alphas, both = np.array([0.2, 0.5]), left_out_of == "both"
    wanted = without_rows((X, Y, U), words, 1.0, alphas, both=both)
    assert_near(made.loo(2.0, 1.0, alphas, 2, left_out_of=left_out_of), wanted, 1e-8)
    losses = np.mean((without_rows((X, Y, U), words, 1.0, [0.5, 0.5], both=both) - Y) ** 2, (1, 2))
    point = {"teacher_lams": [2.0], "lams": [1.0], "alphas": [0.5], "steps": 2}
    found = made.sweep(**point, left_out_of=left_out_of).dataset["mse"].values
    assert_near(found.ravel(), losses, 1e-8)


@pytest.mark.parametrize("lam", [1e-9, 1e9])
def test_extreme_lam(lam):
    """A teacher and a student that hardly smooth, or hardly say a thing."""
    X, Y, _, _, U = problem(n=9)
    teacher = sdgpu.fit(X, Y, TEACHER, lam)
    made = sdgpu.student(teacher, KERNEL, lam, X, Y, unlabelled=U)
    words = [(1.0, lambda *data: told(*data, lam))]
    for left_out_of in ("student", "both"):
        wanted = without_rows((X, Y, U), words, lam, [0.4] * 2, both=left_out_of == "both")
        assert_near(made.loo(None, lam, 0.4, 2, left_out_of=left_out_of), wanted, 1e-5)


@pytest.mark.parametrize(
    "how", [{"intercept": True}, {"features": sdgpu.RandomFourier(8)}, {"method": "subspace"}]
)
def test_students_that_leave_rows_out_alone(how):
    """With an intercept, by features: what the fit of the same targets says."""
    X, Y, _, _, _ = problem(n=30)
    P = np.random.default_rng(0).standard_normal(Y.shape)
    made = sdgpu.student(P, KERNEL, LAMS, X, Y, **how)
    direct = sdgpu.fit(X, 0.2 * Y + 0.8 * P, KERNEL, LAMS, **how)
    for lam in LAMS:
        assert_near(
            made.loo(None, lam, 0.2)[0],
            direct.loo(lam, 0.0, 1)[0],
            2e-2 if "method" in how else 1e-9,
        )
    with pytest.raises(ValueError, match="left_out_of='both'"):
        made.loo(None, LAMS[0], 0.2, left_out_of="both")


def test_tensors_of_the_teacher():
    X, Y, _, _, U = problem(n=9)
    plain = sdgpu.student(sdgpu.fit(X, Y, TEACHER, 1.0), KERNEL, LAMS, X, Y, unlabelled=U)
    tensors = sdgpu.fit(torch.tensor(X), torch.tensor(Y), TEACHER, 1.0)
    made = sdgpu.student(tensors, KERNEL, LAMS, X, Y, unlabelled=U)
    one, other = (s.loo(None, 1.0, 0.3, 2, left_out_of="both") for s in (made, plain))
    assert_near(one, other, 1e-10)


def test_flat_targets():
    X, Y, _, _, _ = problem(n=8, c=1)
    made = sdgpu.student(sdgpu.fit(X, Y[:, 0], TEACHER, 1.0), KERNEL, LAMS, X, Y[:, 0])
    assert made.loo(None, 1.0, 0.3, 2, left_out_of="both").shape == (2, 8)


def test_refusals():
    X, Y, X_val, _, U = problem(n=9)
    other = sdgpu.fit(X[::-1], Y[::-1], TEACHER, 1.0)
    words = {
        "teacher 1 is no fit": np.zeros_like(Y),
        "teacher 1 has learned from other rows": other,
        "teacher 1 has learned other labels": sdgpu.fit(X, Y + 1, TEACHER, 1.0),
        "teacher 1 must be ridge of method='eigh'": sdgpu.fit(X, Y, TEACHER, 1.0, intercept=True),
    }
    for text, teacher in words.items():
        with pytest.raises(ValueError, match=text):
            sdgpu.student(teacher, KERNEL, LAMS, X, Y).loo(None, 1.0, left_out_of="both")
    made = sdgpu.student(sdgpu.fit(X, Y, TEACHER, 1.0), KERNEL, LAMS, X, Y)
    with pytest.raises(ValueError, match="left_out_of='teacher'"):
        made.loo(None, 1.0, left_out_of="teacher")
    with pytest.raises(ValueError, match="X_val and Y_val belong together"):
        made.sweep(X_val)
    none = sdgpu.student(other, KERNEL, LAMS, X[:0], Y[:0], unlabelled=U)
    with pytest.raises(ValueError, match="rows with labels, and there are none"):
        none.loo(None, 1.0)


def test_unlabelled_rows_alone():
    """A student that has the word of its teacher and nothing else."""
    X, Y, X_val, Y_val, U = problem()
    teacher = sdgpu.fit(X, Y, TEACHER, TEACHER_LAMS)
    made = sdgpu.student(teacher, KERNEL, LAMS, X[:0], Y[:0], unlabelled=U)
    found = made.sweep(X_val, Y_val, alphas=[0.0, 0.5], steps=2).dataset["mse"].values
    for i, teacher_lam in enumerate(TEACHER_LAMS):
        P = told(X, Y, U, teacher_lam)
        for j, lam in enumerate(LAMS):
            for k, alpha in enumerate((0.0, 0.5)):
                duals = refits(KERNEL(U), P, P, lam, [alpha] * 2)
                losses = [np.mean((KERNEL(X_val, U) @ dual - Y_val) ** 2) for dual in duals]
                assert_near(found[i, j, k], losses, 1e-8)
