"""Workers that send moments or spectra, against explicit fits of all rows and of each worker."""

import warnings

import numpy as np
import pytest

import sdgpu
from sdgpu import federated
from tests.problems import assert_near, refits

D, C, LAMS = 3, 2, np.array([0.05, 1.0, 20.0])
KERNEL, FOURIER = sdgpu.Gaussian(0.3), sdgpu.RandomFourier(24)
LANDMARKS = np.random.default_rng(9).standard_normal((15, D))
SPACES = {
    "fourier": (KERNEL, FOURIER),
    "nystrom": (sdgpu.Laplacian(0.2), sdgpu.Nystrom(landmarks=LANDMARKS)),
    "linear": (sdgpu.Linear(), sdgpu.Explicit()),
}
SIZES = (40, 1, 200, 7)


def space_of(name="fourier", **how):
    kernel, features = SPACES[name]
    return federated.FeatureSpace(kernel, features, **{"d": D, "c": C, **how})


def workers(sizes=SIZES, offset=0.0):
    """Rows of different places: what is common at one worker is rare at another."""
    rng, found = np.random.default_rng(4), []
    for number, n in enumerate(sizes):
        X = 0.3 * number + rng.standard_normal((n, D))
        noise = 0.1 * rng.standard_normal((n, C))
        found.append((X, np.sin(X[:, :C]) + X[:, 2:] ** 2 / 4 + noise + offset))
    return found


def together(data):
    return tuple(np.concatenate(parts) for parts in zip(*data, strict=True))


def new_rows(m=11):
    return np.random.default_rng(6).standard_normal((m, D))


def explicit(space, data, lam, alphas, steps, *, intercept=False):
    """Steps of the fit of all rows at new ones, (T, m, c), from n x n matrices of features."""
    X, Y = together(data)
    phi, new = (space.moments(X[:1], Y[:1]).map.transform(rows) for rows in (X, new_rows()))
    mean, offset = np.zeros(phi.shape[1]), np.zeros(C)
    if intercept:
        mean, offset = phi.mean(axis=0), Y.mean(axis=0)
    phi, new = phi - mean, new - mean
    _, dual = refits(phi @ phi.T, Y - offset, lam, alphas, steps)
    return new @ (phi.T @ dual) + offset


def send(space, data, kind, rank=None):
    if kind == "mixed":
        return [
            space.moments(X, Y) if number % 2 else space.spectrum(X, Y)
            for number, (X, Y) in enumerate(data)
        ]
    return [
        space.moments(X, Y) if kind == "moments" else space.spectrum(X, Y, rank=rank)
        for X, Y in data
    ]


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kind", ["moments", "spectra", "mixed"])
@pytest.mark.parametrize("name", SPACES)
def test_whole_messages_are_the_fit_of_all_rows(name, kind, intercept):
    """To rounding, unequal workers and one of one row among them."""
    space, data = space_of(name), workers(offset=5.0)
    fit = space.fit(send(space, data, kind), LAMS, intercept=intercept)
    assert fit.info.n == sum(SIZES)
    k = space.moments(*data[0]).map.size
    assert space.moments(*data[2]).nbytes == 8 * (k * (k + C + 1) + 3 * C)
    assert "cut off" not in fit.info.status
    for lam in LAMS:
        for alphas in (0.0, [0.3, 1.4, -0.2]):
            wanted = explicit(space, data, lam, alphas, 4, intercept=intercept)
            assert_near(fit.path(lam, alphas, steps=4).predict(new_rows()), wanted, 1e-8)
    X, Y = together(data)
    kernel, features = SPACES[name]
    pooled = sdgpu.fit(X, Y, kernel, LAMS, features=features, intercept=intercept)
    one, other = (f.gcv_sweep(steps=3).dataset for f in (fit, pooled))
    for variable in ("train_mse", "gcv", "degrees_of_freedom"):
        assert_near(one[variable].values, other[variable].values, 1e-6)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("rank", [1, 2, 5, 12])
def test_spectra_that_were_cut(name, rank, intercept):
    """They are the moments of the projected rows, and no further from all rows than is said."""
    space, data = space_of(name), workers()
    messages = send(space, data, "spectra", rank)
    fit, whole = (
        space.fit(sent, LAMS, intercept=intercept)
        for sent in (messages, send(space, data, "moments"))
    )
    k = space.moments(*data[0]).map.size
    for lam in (*LAMS, [20.0, 0.05, 1.0]):
        for alphas in (0.0, [1.6, 0.2], [-0.4, 0.9]):
            beta, all_rows = (f.path(lam, alphas, steps=3).dual for f in (fit, whole))
            bound = federated.coefficient_bound(messages, fit, lam, alphas, steps=3)
            off = np.linalg.norm(beta - all_rows, axis=1)
            assert bound.shape == off.shape == (3, C)
            scale = np.linalg.norm(all_rows, axis=1)
            assert (off <= bound + 1e-9 * scale).all()
            if rank >= k:
                assert_near(beta, all_rows, 1e-8)
    if rank < k - C:
        assert "cut off" in fit.info.status
        assert bound.max() > 0


def test_the_bound_is_near_where_one_direction_is_cut():
    """One worker, one direction more than is sent: the bound is not far above what happens."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, D)) * [3.0, 1.0, 0.5]
    y = X @ [1.0, -1.0, 1.0] + rng.standard_normal(300)
    space = federated.FeatureSpace(sdgpu.Linear(), sdgpu.Explicit(), d=D)
    message = space.spectrum(X, y, rank=1)
    fit, whole = (space.fit([sent], 10.0) for sent in (message, space.moments(X, y)))
    off = np.linalg.norm(fit.path(steps=1).dual - whole.path(steps=1).dual)
    bound = federated.coefficient_bound([message], fit, steps=1)[0, 0]
    assert off <= bound <= 50 * off


def test_messages_are_of_projected_rows():
    """The server's moments are those of the rows of the worker, each projected on what was sent."""
    space, (X, Y) = space_of(), workers((60,))[0]
    message = space.spectrum(X, Y, rank=4)
    Q = message.basis
    assert Q.shape == (24, 4 + C)
    assert_near(Q.T @ Q, np.eye(4 + C), 1e-12)
    phi = space.moments(X, Y).map.transform(X)
    mean = phi.mean(axis=0)
    projected = mean + (phi - mean) @ Q @ Q.T
    sums = message.sums()
    assert_near(sums.gram, projected.T @ projected, 1e-10)
    assert_near(sums.cross, projected.T @ (Y - sums.offset), 1e-10)
    assert_near(sums.cross, phi.T @ (Y - sums.offset), 1e-10)  # of the targets nothing is lost


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("name", SPACES)
def test_any_lam(name, scale):
    space, data = space_of(name), workers()
    whole = send(space, data, "moments")
    lam = scale * space.fit(whole, 1.0).spectrum.eigenvalues[-1]
    messages = send(space, data, "spectra", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a lam below rounding
        fits = [space.fit(sent, lam) for sent in (messages, whole)]
    beta, all_rows = (fit.path(lam, 0.4, steps=3).dual for fit in fits)
    bound = federated.coefficient_bound(messages, fits[0], lam, 0.4, steps=3)
    off = np.linalg.norm(beta - all_rows, axis=1)
    noise = 1e-12 * np.linalg.norm(all_rows, axis=1) * max(1 / scale, 1)
    assert (off <= bound + noise).all()


@pytest.mark.parametrize("shares", [None, [0.1, 0.2, 0.5, 0.2], [0.25] * 4])
@pytest.mark.parametrize("name", SPACES)
def test_the_mean_of_the_fits(name, shares):
    """Each worker's own chain, at its share of lam, by explicit refits."""
    space, data = space_of(name), workers()
    fit = space.average(send(space, data, "moments"), LAMS, shares=shares)
    parts = np.array(SIZES) / sum(SIZES)
    weights = parts if shares is None else shares
    for lam in LAMS:
        for alphas in (0.0, [0.3, 1.4, -0.2]):
            wanted = sum(
                weight * explicit(space, [own], lam * part, alphas, 4)
                for weight, part, own in zip(weights, parts, data, strict=True)
            )
            assert_near(fit.path(lam, alphas, steps=4).predict(new_rows()), wanted, 1e-7)
        limit = fit.limit(lam, 0.3).predict(new_rows())
        wanted = sum(
            weight * explicit(space, [own], lam * part / 0.3, 0.0, 1)[0]
            for weight, part, own in zip(weights, parts, data, strict=True)
        )
        assert_near(limit, wanted, 1e-7)
    lams, alphas = np.array([1.0, 20.0, 0.05]), [0.3, 1.4]  # of each step
    wanted = np.zeros((3, len(new_rows()), C))
    for weight, part, (X, Y) in zip(weights, parts, data, strict=True):
        phi, new = (space.moments(X, Y).map.transform(rows) for rows in (X, new_rows()))
        targets, K = Y, phi @ phi.T
        for step, lam in enumerate(lams):
            dual = np.linalg.solve(K + part * lam * np.eye(len(K)), targets)
            wanted[step] += weight * (new @ (phi.T @ dual))
            targets = alphas[min(step, 1)] * Y + (1 - alphas[min(step, 1)]) * (K @ dual)
    assert_near(fit.path(lams, alphas, steps=3).predict(new_rows()), wanted, 1e-7)


@pytest.mark.parametrize("kind", ["moments", "spectra"])
@pytest.mark.parametrize("name", SPACES)
def test_the_mean_with_an_intercept(name, kind):
    """Features and targets of each worker less the means of all rows."""
    space, data = space_of(name), workers(offset=50.0)
    fit = space.average(send(space, data, kind), LAMS, intercept=True)
    X, Y = together(data)
    features = space.moments(X[:1], Y[:1]).map
    mean, offset, n = features.transform(X).mean(axis=0), Y.mean(axis=0), len(X)
    new = features.transform(new_rows()) - mean
    for lam in LAMS:
        wanted = offset
        for rows, targets in data:
            phi, part = features.transform(rows) - mean, len(rows) / n
            _, dual = refits(phi @ phi.T, targets - offset, lam * part, [0.3, 1.4, -0.2], 4)
            wanted = wanted + part * (new @ (phi.T @ dual))
        assert_near(fit.path(lam, [0.3, 1.4, -0.2], steps=4).predict(new_rows()), wanted, 1e-8)
    Y_val = np.sin(new_rows()[:, :C]) + 50
    mse = fit.sweep(new_rows(), Y_val, alphas=[0.5], steps=2).dataset["mse"].values[1, 0]
    predicted = fit.path(LAMS[1], 0.5, steps=2).predict(new_rows())
    np.testing.assert_allclose(mse, np.mean((predicted - Y_val) ** 2, axis=(1, 2)), rtol=1e-8)


def test_weights_for_the_mean():
    """Sweeps and both kinds of weights on validation rows are those of the mean, not of a worker."""
    space, data = space_of(), workers()
    fit = space.average(send(space, data, "spectra"), LAMS)
    X_val = new_rows(60)
    Y_val = np.sin(X_val[:, :C]) + X_val[:, 2:] ** 2 / 4
    sweep = fit.sweep(X_val, Y_val, alphas=[0.0, 0.5, 1.3], steps=3).dataset
    for i, lam in enumerate(LAMS):
        for j, alpha in enumerate([0.0, 0.5, 1.3]):
            predicted = fit.path(lam, alpha, steps=3).predict(X_val)
            losses = np.mean((predicted - Y_val) ** 2, axis=(1, 2))
            assert_near(sweep["mse"].values[i, j], losses, 1e-9)
    assert np.isnan(sweep["train_mse"]).all()
    joint = fit.joint_alphas(X_val, Y_val, 1.0, steps=3)
    for shift in np.random.default_rng(0).standard_normal((20, 2)):
        other = fit.path(1.0, joint.alphas + 0.05 * shift, steps=3).predict(X_val)[-1]
        assert np.mean((other - Y_val) ** 2) >= joint.mse[-1] * (1 - 1e-9)
    fitted = fit.optimal_alphas(X_val, Y_val, 1.0, steps=2)
    local = space.fit([space.moments(*data[2])], 1.0).optimal_alphas(X_val, Y_val, steps=2)
    assert abs(fitted.alphas[0] - local.alphas[0]) > 1e-3


def test_what_a_mean_does_not_know():
    space, data = space_of(), workers((12, 12))  # columns as many as features, by chance
    fit = space.average(send(space, data, "moments"), LAMS)
    assert fit.spectrum.basis.shape == (24, 24)
    for ask in (
        lambda: fit.sweep(),
        lambda: fit.loo(1.0),
        lambda: fit.gcv(1.0),
        lambda: fit.gcv_sweep(),
        lambda: fit.path(1.0).interval(new_rows()),
        lambda: fit.path(1.0).fitted,
        lambda: fit.with_targets(data[0][1]),
        lambda: fit.advise(),
        lambda: fit.path(1.0).variance(new_rows()),
        lambda: sdgpu.constrain(fit, eps=0.1),
        lambda: sdgpu.synthetic_labels(fit, rounds=3, noise=1.0),
        lambda: fit.with_smoother("gradient_flow"),
    ):
        with pytest.raises(ValueError, match=r"worker|feature model|row|all .*eigen|basis"):
            ask()
    with pytest.raises(ValueError, match=r"a bound is of space\.fit.* of method='average'"):
        federated.coefficient_bound(send(space, data, "spectra", 3), fit, 1.0)
    sweep = fit.sweep(new_rows(), np.zeros((11, C)), alphas=[0.5], steps=2)
    with pytest.raises(ValueError, match="every gcv of this sweep is NaN"):
        sweep.best("gcv")


def test_messages_that_are_not_those_of_a_fit():
    space, (one, *_) = space_of(), workers()
    message = space.spectrum(*one, rank=3)
    for call in (lambda: space.fit(message, 1.0), lambda: space.average(message, 1.0)):
        with pytest.raises(TypeError, match=r"messages is a LocalSpectrum: pass a list, of one"):
            call()
    with pytest.raises(ValueError, match="message 2 is of no rows: leave it out of a mean"):
        space.average([message, space.empty], 1.0)
    fit = space.fit([message], 1.0)
    other = federated.FeatureSpace(KERNEL, sdgpu.RandomFourier(10), d=D, c=C).spectrum(*one, rank=3)
    for sent, words in (
        ([message, message], "40 rows and 24 features, its messages 80 and 24: pass those"),
        ([other], "40 rows and 24 features, its messages 40 and 10: pass those"),
    ):
        with pytest.raises(ValueError, match=words):
            federated.coefficient_bound(sent, fit, 1.0)
    with pytest.raises(ValueError, match=r"a bound is of .* method='eigh': there is none"):
        federated.coefficient_bound([message], sdgpu.fit(*one, KERNEL, 1.0), 1.0)


def test_a_student_of_the_workers():
    """The server's own rows have no labels: it learns what a mix of the workers says, fitted on a few that have."""
    space, data = space_of(), workers()
    U, X_val = new_rows(80), new_rows(50)
    Y_val = np.sin(X_val[:, :C]) + X_val[:, 2:] ** 2 / 4
    teachers = [space.fit([one], LAMS) for one in send(space, data, "spectra", 6)]
    kernel = sdgpu.Gaussian(0.5)
    made = sdgpu.student(
        teachers, kernel, [0.1], np.zeros((0, D)), np.zeros((0, C)), unlabelled=U, weights="fitted"
    )
    best = made.fit_weights(X_val, Y_val, kind="simplex", alphas=[0.0]).best()
    losses = []
    for one in teachers:
        P = one.path(best["teacher_lam"], steps=1).predict(U)[0]
        dual = np.linalg.solve(kernel(U) + 0.1 * np.eye(80), P)
        losses.append((kernel(X_val, U) @ dual - Y_val).ravel())
    mixed = np.stack(losses, axis=1)
    np.testing.assert_allclose(best["mse"], np.mean((mixed @ best["weights"]) ** 2), rtol=1e-7)
    assert best["mse"] <= np.mean(mixed**2, axis=0).min() * (1 + 1e-9)


def test_classes_that_a_worker_lacks():
    """One-hot rows of all classes: a class without rows at one worker costs nothing."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((90, D))
    labels = np.argmax(X, axis=1)
    Y, space = np.eye(3)[labels], space_of(c=3)
    data = [(X[labels != j], Y[labels != j]) for j in range(3)]
    fit = space.fit(send(space, data, "spectra"), 0.1)
    pooled = sdgpu.fit(
        np.concatenate([X] * 2), np.concatenate([Y] * 2), KERNEL, 0.1, features=FOURIER
    )
    predicted = fit.path(steps=2).predict(X)
    assert_near(predicted, pooled.path(steps=2).predict(X), 1e-8)
    with pytest.raises(ValueError, match="Y has 2 outputs, but the fit has 3"):
        space.spectrum(*(data[0][0], data[0][1][:, 1:]))


def test_weights_of_rows():
    space, data = space_of(), workers((30, 20))
    rng = np.random.default_rng(0)
    weights = [rng.integers(1, 4, len(X)) for X, _ in data]
    sent = [
        space.spectrum(X, Y, sample_weight=w.astype(float))
        for (X, Y), w in zip(data, weights, strict=True)
    ]
    repeated = [
        (np.repeat(X, w, axis=0), np.repeat(Y, w, axis=0))
        for (X, Y), w in zip(data, weights, strict=True)
    ]
    for intercept in (False, True):
        fit = space.fit(sent, 0.5, intercept=intercept)
        wanted = explicit(space, repeated, 0.5, 0.3, 3, intercept=intercept)
        assert_near(fit.path(0.5, 0.3, steps=3).predict(new_rows()), wanted, 1e-8)


@pytest.mark.parametrize("rank", [None, 3])
def test_files(tmp_path, rank):
    """Space and messages by file: the same bits."""
    space, data = space_of("nystrom"), workers()
    space.save(tmp_path / "space.safetensors")
    there = federated.open_space(tmp_path / "space.safetensors")
    assert there.fingerprint == space.fingerprint
    sent = []
    for number, (X, Y) in enumerate(data):
        path = tmp_path / f"worker-{number}.safetensors"
        message = there.spectrum(X, Y, rank=rank)
        message.save(path)
        sent.append(federated.open_spectrum(path))
        # what is sent is what is said, but for the head of the file
        assert message.nbytes <= path.stat().st_size <= message.nbytes + 2048
    wanted = space.fit(send(space, data, "spectra", rank), LAMS).path(1.0).predict(new_rows())
    assert np.array_equal(space.fit(sent, LAMS).path(1.0).predict(new_rows()), wanted)


def test_what_is_sent_does_not_grow_with_the_rows():
    space = space_of()
    small, large = (space.spectrum(*workers((n,))[0], rank=5) for n in (50, 5000))
    assert small.nbytes == large.nbytes < 8 * 24 * (5 + C + 6)
    X, _ = workers((50,))[0]
    held = [array for array in vars(small).values() if isinstance(array, np.ndarray)]
    assert all(X.shape[0] not in array.shape for array in held)


def test_refusals(tmp_path):
    space, data = space_of(), workers((20, 30))
    X, Y = data[0]
    others = {
        "another seed": space_of(seed=1),
        "another kernel": federated.FeatureSpace(sdgpu.Gaussian(0.4), FOURIER, d=D, c=C),
        "more features": federated.FeatureSpace(KERNEL, sdgpu.RandomFourier(30), d=D, c=C),
        "one output": space_of(c=1),
    }
    for name, other in others.items():
        outputs = Y[:, :1] if name == "one output" else Y
        for message in (other.moments(X, outputs), other.spectrum(X, outputs)):
            for merged in (space.fit, space.average):
                with pytest.raises(ValueError, match="message 2 is of another kernel or other"):
                    merged([space.moments(X, Y), message], LAMS)
    with pytest.raises(ValueError, match="messages: there are none"):
        space.fit([], LAMS)
    with pytest.raises(TypeError, match="message 1 is a ndarray"):
        space.fit([X], LAMS)
    with pytest.raises(ValueError, match="landmarks from the rows of one worker"):
        federated.FeatureSpace(KERNEL, sdgpu.Nystrom(10), d=D)
    with pytest.raises(TypeError, match="function"):
        federated.FeatureSpace(KERNEL, sdgpu.Explicit(lambda rows: rows), d=D)
    with pytest.raises(ValueError, match="shares has 1 entries with the sum 1 for 2 workers"):
        space.average(send(space, data, "spectra"), LAMS, shares=[1.0])
    with pytest.raises(ValueError, match=r"shares has 2 entries with the sum 1\.5"):
        space.average(send(space, data, "spectra"), LAMS, shares=[1.0, 0.5])
    with pytest.raises(ValueError, match="rank"):
        space.spectrum(X, Y, rank=0)
    with pytest.raises(ValueError, match="a spectrum of no rows"):
        space.spectrum(sdgpu.Moments(KERNEL, FOURIER, d=D, c=C))
    single = sdgpu.Moments(KERNEL, FOURIER, d=D, c=C, dtype="float32").add(X, Y)
    with pytest.raises(ValueError, match="dtype='float64', or send the moments"):
        space.spectrum(single)
    space.moments(X, Y).save(tmp_path / "moments.safetensors")
    with pytest.raises(ValueError, match=r"moments.safetensors holds moments of 20 rows"):
        federated.open_space(tmp_path / "moments.safetensors")
    with pytest.raises(ValueError, match=r"moments.safetensors holds no spectrum"):
        federated.open_spectrum(tmp_path / "moments.safetensors")


@pytest.mark.parametrize("scale", [1e-60, 1e-8, 1.0, 1e40])
def test_a_whole_spectrum_has_the_rank_of_the_rows(scale):
    """All directions above rounding and no other, in any unit."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 6))  # of rank 4
    y = X[:, 0] + rng.standard_normal(50)
    space = federated.FeatureSpace(sdgpu.Linear(), sdgpu.Explicit(), d=6)
    message = space.spectrum(scale * X, y)
    assert message.eigenvalues.shape == (4,)
    centred = X - X.mean(axis=0)
    wanted = np.linalg.svd(scale * centred, compute_uv=False)[:4] ** 2
    np.testing.assert_allclose(message.eigenvalues, wanted, rtol=1e-9)
    assert (message.rank, message.left_out, message.coupling) == (4, 0.0, 0.0)
    for rank in (1, 3, 9):
        cut = space.spectrum(scale * X, y, rank=rank)
        assert cut.rank == min(rank, 4)
        np.testing.assert_allclose(cut.eigenvalues[: cut.rank], wanted[: cut.rank], rtol=1e-9)
        left = wanted[rank] if rank < 4 else 0.0
        np.testing.assert_allclose(cut.left_out, left, rtol=1e-9)
        Q, R = cut.basis, cut.basis[:, cut.rank :]
        G = scale**2 * centred.T @ centred
        E = G - Q @ (Q.T @ G @ Q) @ Q.T
        if rank < 4:
            coupling = np.linalg.norm(G @ R - Q @ (Q.T @ G @ R), 2)
            off = {"rtol": 1e-7, "atol": 1e-12 * wanted[0]}
            np.testing.assert_allclose(cut.coupling, coupling, **off)
        for beta in rng.standard_normal((20, 6, 1)):
            assert np.linalg.norm(E @ beta) <= cut.missing(beta)[0] + 1e-12 * wanted[0]


def test_messages_of_others_are_looked_at(tmp_path):
    """What a file may say that no worker would."""
    from sdgpu.backend.sealed_tensors import read_tensors, write_tensors

    space, path = space_of(), tmp_path / "message.safetensors"
    space.spectrum(*workers()[0], rank=3).save(path)
    arrays, metadata = read_tensors(path, "spectrum")
    fewer = {"basis": np.eye(9)[:, : len(arrays["eigenvalues"])], "feature_sum": np.ones(9)}
    write_tensors(path, {**arrays, **fewer}, metadata)
    for merged in (space.fit, space.average):
        with pytest.raises(ValueError, match="message 1 has 9 features and 2 outputs in place of"):
            merged([federated.open_spectrum(path)], LAMS)
    changes = {
        "not orthonormal": ({"basis": 2 * arrays["basis"]}, {}),
        "not below 0": ({"eigenvalues": -arrays["eigenvalues"]}, {}),
        "NaN or infinity": ({"cross": np.nan * arrays["cross"]}, {}),
        "cross is float64 of shape": ({"cross": arrays["cross"][1:]}, {}),
        "basis is float32": ({"basis": arrays["basis"].astype(np.float32)}, {}),
        "rank 99": ({}, {"rank": 99}),
        "left_out": ({}, {"left_out": -1.0}),
        "weight": ({}, {"weight": 0.0}),
        "rows": ({}, {"rows": 0}),
        "version 2": ({}, {"spectrum": 2}),
        "fingerprint is no text": ({}, {"fingerprint": 5}),
        "coupling": ({}, {"coupling": "large"}),
    }
    for words, (new, said) in changes.items():
        write_tensors(path, {**arrays, **new}, {**metadata, **said})
        with pytest.raises(ValueError, match=f"message.safetensors holds no spectrum.*{words}"):
            federated.open_spectrum(path)
