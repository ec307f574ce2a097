"""Whole fits on pretended CUDA tensors: the CPU's numbers, no tensor of the host among them, few waits.

What may wait, and how often: a product of K with a block never does, but for the first pass of a kernel
with a kink, which reads its counts of near pairs once. A pass of conjugate gradients reads one small array.
A pass that grows a basis has its k x k algebra on the host by design, LAPACK being faster there than a GPU
at such sizes, and reads at most LOOKS small arrays for it. Nothing is sent for which anyone waits.
"""

import itertools

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.backend.backends import NumpyBackend, TorchBackend
from sdgpu.kernels import ArcCosine, EmpiricalNTK, FunctionKernel, Gaussian, Matern, Polynomial
from sdgpu.operators import DenseOperator, TiledOperator, device_functions, tiled
from sdgpu.solvers.cg import CG
from tests.cuda_stand_in import CudaTensor, on_host, pretend_cuda
from tests.operators.test_tiled import KERNELS, TOLERANCE, allowed_rows
from tests.problems import assert_near

LOOKS = 8
N, D, C = 90, 3, 2
RNG = np.random.default_rng(16)
X, X_NEW = RNG.standard_normal((N, D)), RNG.standard_normal((15, D))
Y, Y_NEW = (np.sin(2 * rows[:, :C]) + rows[:, 2:] for rows in (X, X_NEW))
W = RNG.uniform(0.2, 2.0, N)
LAMS, KERNEL = [0.05, 0.5], Gaussian(0.5)


def cuda(array):
    return torch.tensor(array, device="cuda")


def assert_same(found, wanted, rtol):
    """Tensors of the device where the CPU gave tensors, with its numbers."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        if isinstance(other, torch.Tensor):
            assert isinstance(one, CudaTensor), type(one)
        assert_near(np.asarray(on_host(one)), np.asarray(other), rtol)


def both(answers, rtol=1e-9):
    """answers(place) on the CPU and on the pretended device."""
    wanted = answers(torch.tensor)
    with pretend_cuda() as transfers:
        found = answers(cuda)
    assert_same(found, wanted, rtol)
    return transfers


# the stand-in itself


def test_it_refuses_what_a_gpu_refuses():
    with pretend_cuda():
        x, here = cuda(np.ones((3, 2))), torch.ones(3, 2, dtype=torch.float64)
        assert x.device == torch.device("cuda:0")
        for mix in (lambda: x + here, lambda: x @ here.T, lambda: torch.cat([x, here])):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                mix()
        with pytest.raises(RuntimeError, match="same device"):
            here[x[:, 0].long()]
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            np.asarray(x)
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            x.numpy()
        assert isinstance(x * torch.tensor(2.0), CudaTensor)  # numbers may be of the host


def test_it_counts_what_a_gpu_waits_for():
    with pretend_cuda() as transfers:
        x = cuda(np.arange(6.0))
        del transfers.all[:]
        float(x.sum()), bool((x > 1).any()), x.cpu(), x.tolist(), x[x > 2], torch.nonzero(x)
        x.unique(), torch.linalg.eigh(torch.outer(x, x))
        assert len(transfers.reads) == 8
        assert not transfers.sent
        x.to("cuda:0", torch.float32), x + 1, x[2:], torch.zeros(2, device=x.device)
        assert len(transfers.reads) == 8
        torch.zeros(3).to(x.device), torch.tensor([1.0], device="cuda"), x[[0, 1]]
        assert len(transfers.sent) == 3
        torch.zeros(3).pin_memory().to(x.device, non_blocking=True)
        assert len(transfers.sent) == 3


def test_it_differentiates_and_takes_views():
    with pretend_cuda():
        x = cuda(np.array([1.0, 2.0, 3.0])).requires_grad_()
        (x[1:] ** 2).sum().backward()
        assert x.grad.device.type == "cuda"
        assert on_host(x.grad).tolist() == [0, 4, 6]
        y = torch.zeros(2, 2, device="cuda")
        y[0] += 1
        y.T[1].mul_(3)
        assert on_host(y).tolist() == [[1, 3], [0, 0]]


# kernels and operators


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("room", [0, 2])
def test_tiles(kernel, precision, room, rng, monkeypatch):
    """One wait in the first pass, to read counts of near pairs, and none in the others."""
    monkeypatch.setattr(tiled, "PAIRS", room)
    rows, new = (rng.standard_normal((n, 5)) for n in (40, 9))
    rows[11], rows[12], rows[30] = rows[4], -rows[3], rows[4] + 1e-9
    rows, new, V = (
        allowed_rows(kernel, rows),
        allowed_rows(kernel, new),
        rng.standard_normal((40, 3)),
    )
    wanted = DenseOperator(kernel, rows)
    own = isinstance(kernel, FunctionKernel)  # each tile of the caller's function is looked at once
    with pretend_cuda() as transfers:
        K, block = TiledOperator(kernel, cuda(rows), precision, tile=7), cuda(V)
        assert K.rows.sample.device == block.device
        for most in (None if own else 1, 0, 0):
            with transfers.during() as pass_:
                found = K.matmat(block)
            assert most is None or len(pass_.all) <= most, pass_.places()
            assert_same([found], [torch.tensor(wanted.matmat(V))], TOLERANCE[precision] * 100)
        cross = K.cross(cuda(new))
        assert_same([cross.dense()], [torch.tensor(wanted.cross(new).dense())], 1e-4)
        assert isinstance(K.columns([1, 5]), CudaTensor)
        assert isinstance(K.diag(), CudaTensor)
        assert_same(
            [DenseOperator(kernel, cuda(rows)).matmat(block)],
            [torch.tensor(wanted.matmat(V))],
            1e-9,
        )


@pytest.mark.parametrize("kernel", [Gaussian(0.5), Matern(0.5), ArcCosine(0)])
def test_rows_far_from_their_centre_and_many_near_pairs(kernel, rng):
    """All rows in two points: n^2 / 2 near pairs, for which the first pass has no room."""
    rows = np.repeat(1e4 * rng.standard_normal((2, 3)), 20, axis=0) + 1e-3 * rng.standard_normal(
        (40, 3)
    )
    V = rng.standard_normal((40, 2))
    with pretend_cuda() as transfers:
        K, block = TiledOperator(kernel, cuda(rows), tile=8, keep=True), cuda(V)
        for _ in range(2):
            with transfers.during() as pass_:
                found = K.matmat(block)
            assert_same([found], [torch.tensor(DenseOperator(kernel, rows).matmat(V))], 1e-9)
        assert not pass_.all


def test_a_halved_tile_forgets_its_counts(monkeypatch):
    rows, V, calls = X[:40], RNG.standard_normal((40, 2)), []
    product = TiledOperator._product

    def too_large(self, V, tile, part):
        calls.append(tile)
        if tile > 260:
            raise RuntimeError("CUDA out of memory")
        return product(self, V, tile, part)

    monkeypatch.setattr(TiledOperator, "_product", too_large)
    monkeypatch.setattr(
        TiledOperator, "tile_rows", property(lambda self: min([600, *self._halved_sizes]))
    )
    with pretend_cuda():
        K = TiledOperator(Matern(0.5), cuda(rows))
        K.matmat(cuda(V))
        found = K.matmat(cuda(V))
    assert calls[:2] == [600, 300]
    assert_same([found], [torch.tensor(DenseOperator(Matern(0.5), rows).matmat(V))], 1e-12)


def test_the_fused_product_falls_back_to_tiles_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(device_functions, "triton", None)
    with pretend_cuda(), pytest.raises(ValueError, match="triton=True cannot be used"):
        TiledOperator(KERNEL, cuda(X), "float32", triton=True)


# fits

METHODS = {
    "eigh": {},
    "primal": {"method": "primal"},
    "subspace": {"method": "subspace", "operator": "tiled", "tol": 1e-9},
    "kept tiles": {"method": "subspace", "operator": "dense", "tol": 1e-9},
    "lanczos": {"method": "lanczos", "operator": "tiled", "tol": 1e-9},
    "cg": {"method": "cg", "operator": "tiled", "tol": 1e-9},
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of estimates that scatter
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_fits(method, weighted):
    kernel = Polynomial(2, 0.3) if method == "primal" else KERNEL

    def answers(place):
        weights = {"sample_weight": place(W), "intercept": True} if weighted else {}
        fitted = sdgpu.fit(place(X), place(Y), kernel, LAMS, steps=3, **METHODS[method], **weights)
        path, new, truth = fitted.path(0.5, alphas=[0.3, -0.2], steps=3), place(X_NEW), place(Y_NEW)
        sweep = fitted.sweep(new, truth, alphas=[0, 0.5], steps=3)
        gcv = []
        if method != "cg":  # which has no eigenvalues
            grid = fitted.gcv_sweep([0.5], [0.3], 3).dataset["gcv"].values
            gcv = [grid, np.asarray(fitted.gcv(0.5).alpha)]
        return [
            *gcv,
            path.fitted,
            path.dual,
            path.predict(new),
            path.gradient(new),
            fitted.limit(0.5, 0.3).predict(new),
            sweep.dataset["mse"].values,
            fitted.sweep(alphas=[0, 0.5], steps=3).dataset["mse"].values,
            fitted.loo(0.5, alphas=0.3, steps=3),
            fitted.optimal_alphas(new, truth, lam=0.5, steps=3).alphas,
            fitted.joint_alphas(new, truth, lam=0.5, steps=3).alphas,
            fitted.predictor(sweep.best()).predict(new),
        ]

    both(answers, 1e-6)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(
    "features",
    [sdgpu.Nystrom(20), sdgpu.RandomFourier(30), sdgpu.Explicit()],
    ids=lambda f: type(f).__name__,
)
def test_features(features, intercept):
    kernel = Polynomial(2, 0.3) if isinstance(features, sdgpu.Explicit) else KERNEL

    def answers(place):
        weights = {"sample_weight": place(W), "intercept": True} if intercept else {}
        fitted = sdgpu.fit(place(X), place(Y), kernel, LAMS, features=features, **weights)
        new = place(X_NEW)
        return [
            fitted.path(0.5, alphas=0.3, steps=3).predict(new),
            fitted.sweep(new, place(Y_NEW), alphas=[0, 0.5], steps=3).dataset["mse"].values,
            fitted.sweep(alphas=[0, 0.5], steps=3).dataset["mse"].values,
        ]

    both(answers)


def test_other_answers():
    def answers(place):
        fitted = sdgpu.fit(place(X), place(Y), KERNEL, LAMS)
        path, new = fitted.path(0.5, alphas=0.3, steps=2), place(X_NEW)
        module = path.predictor().module().to(new.device)
        interval = path.interval(new)
        metrics = fitted.sweep(new, place(Y_NEW), alphas=[0.0, 0.5], steps=2, metrics=["mae", "r2"])
        return [
            interval.lower,
            interval.upper,
            module(new),
            metrics.dataset["r2"].values,
            fitted.diagonal(0.5, 0.3, 2),
            fitted.with_targets(place(np.ascontiguousarray(Y[:, ::-1]))).path(0.5).fitted,
            sdgpu.fit(place(KERNEL(X)), place(Y), "precomputed", LAMS).path(0.5).fitted,
            sdgpu.fit(place(X), place(Y), Polynomial(2), lams=0).path(steps=1).predict(new),
        ]

    both(answers)


def further_answers(place, folder):
    """What is asked beside a fit: tolerances, weights, searches, folds, files."""
    data, new, truth = (place(X), place(Y)), place(X_NEW), place(Y_NEW)
    grown = {"method": "subspace", "operator": "tiled", "tol": 1e-9}
    nystrom = {"features": sdgpu.Nystrom(20)}
    tolerance = sdgpu.constrained_path(*data, KERNEL, eps=0.05, alpha=0.3, steps=2)
    yield from (tolerance.fitted, tolerance.predict(new))
    weighted = sdgpu.reweighted_fit(place(X), place(Y[:, 0].copy()), KERNEL, lams=[0.1, 1.0])
    yield from (weighted.predict(new), weighted.variance(new))
    yield np.asarray(sdgpu.tune(*data, Gaussian(1.0), lams=[0.1, 1.0], by=(new, truth)).lam)
    for how in (grown, nystrom):
        path = folder / f"{len(how)}.safetensors"
        for _ in range(2):  # the second goes on from the file
            fitted = sdgpu.fit(*data, KERNEL, [0.5], **how, checkpoint=path)
        yield fitted.path(0.5).predict(new)
        interval = fitted.path(0.5, 0.3, 2).interval(new, 0.8, folds=4)
        yield from (interval.lower, interval.upper)
    each = sdgpu.fit(*data, KERNEL, LAMS).sweep(
        new, truth, alphas=[0.0, 0.5], steps=2, standard_errors=True, per_output=True
    )
    yield each.dataset["mse"].values
    exact = sdgpu.fit(*data, lambda A, B: A @ B.T, [0.1])
    yield exact.path(0.1).predict(new)
    exact = sdgpu.fit(*data, KERNEL, [0.1])
    exact.path(0.1).predictor().save(folder / "predictor.safetensors")
    yield sdgpu.open_predictor(folder / "predictor.safetensors").predict(X_NEW)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a search that ends at a bound
def test_further_answers(tmp_path):
    (tmp_path / "cpu").mkdir()
    wanted = list(further_answers(torch.tensor, tmp_path / "cpu"))
    with pretend_cuda():
        found = list(further_answers(cuda, tmp_path))
    assert_same(found, wanted, 1e-7)


def test_the_empirical_tangent_kernel():
    def module():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = torch.nn.Linear(D, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
            return torch.nn.Sequential(*layers).double()

    def answers(place):
        kernel = EmpiricalNTK(module().to(place(X).device))
        exact, tiles = (
            sdgpu.fit(place(X), place(Y), kernel, [0.5], **METHODS[method])
            for method in ("eigh", "subspace")
        )
        return [
            kernel(place(X), place(X_NEW)),
            *(one.path(0.5).predict(place(X_NEW)) for one in (exact, tiles)),
        ]

    both(answers, 1e-6)


# waits


def passes(monkeypatch, lams=(0.01, 0.5), steps=3, **options):
    """What every pass over K, from its product to the next one, waited for."""
    marks, product = [], TiledOperator.matmat
    rows = RNG.standard_normal((400, 3))
    Y = np.sin(3 * rows[:, :2])
    with pretend_cuda() as transfers:

        def marked(self, V):
            marks.append(len(transfers.all))
            found = product(self, V)
            assert len(transfers.all) == marks[-1], "a product waited"
            return found

        monkeypatch.setattr(TiledOperator, "matmat", marked)
        data = cuda(rows), cuda(Y), Gaussian(2.0), lams
        fitted = sdgpu.fit(*data, steps=steps, operator="tiled", **options)
    assert fitted.info.passes >= 6
    parts = [transfers.all[a:b] for a, b in itertools.pairwise(marks)]
    return fitted, parts


def test_a_pass_of_conjugate_gradients_waits_once(monkeypatch):
    fitted, parts = passes(monkeypatch, method="cg")
    iterations = [
        part for part in parts if {one.where for one in part} == {"solvers/cg.py:iterate"}
    ]
    alone = [part for part in iterations if len(part) == 1]
    assert all(part[0].kind == "read" for part in alone)
    assert len(alone) > 0.8 * fitted.info.iterations  # what is left ends a row, or begins a solve
    assert max(map(len, iterations)) <= 2


@pytest.mark.parametrize("method", ["subspace", "lanczos"])
def test_a_pass_that_grows_a_basis_looks_at_small_arrays_a_few_times(method, monkeypatch):
    _, parts = passes(monkeypatch, method=method)
    for part in parts[1:]:
        assert len(part) <= LOOKS, part
        assert all(one.kind == "read" for one in part)
        assert max(one.size for one in part) < 400 * 64  # k x b numbers, not n x k


@pytest.mark.parametrize(("lams", "steps"), [(1, 1), (12, 8)])
def test_looks_do_not_grow_with_lams_or_steps(lams, steps, monkeypatch):
    grid, how = np.geomspace(0.01, 1, lams), {"method": "subspace", "tol": 1e-4, "dtype": "float64"}
    _, parts = passes(monkeypatch, lams=grid, steps=steps, **how)
    assert (
        max(len(part) for part in parts[1:-1]) <= LOOKS
    )  # the last product is that of the certificate


def test_a_pass_over_rows_leaves_them_on_the_device():
    """Flags and targets are read, and some rows are; of a block few small arrays beside."""
    n, d, c = 20_000, 30, 1
    rows = RNG.standard_normal((n, d))
    with pretend_cuda() as transfers:
        X, Y = cuda(rows), cuda(rows[:, :c])
        how = {"features": sdgpu.RandomFourier(40), "intercept": True}
        with transfers.during() as waits:
            sdgpu.fit(X, Y, Gaussian(0.01), [1.0], **how)
    assert sum(one.size for one in waits.reads) < n * d / 2, waits.places()
    blocks = -(-n // 8192)
    assert len(waits.all) < 16 * blocks + 40


def test_conjugate_gradients_name_an_indefinite_matrix_on_every_library():
    K = np.diag([1.0, -2.0, 3.0])
    for backend in (NumpyBackend(), TorchBackend("cpu")):
        inside = backend.asarray(K)
        with pytest.raises(ValueError, match="not positive definite"):
            CG(backend, 1e-8).solve(
                lambda V, inside=inside: V @ inside, backend.asarray(np.eye(3)), 0.5
            )
