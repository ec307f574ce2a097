"""The empirical tangent kernel against full Jacobians, stacked row by row in float64."""

import copy
import math
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.func import functional_call, jacrev

import sdgpu
from sdgpu.backend.backends import to_numpy
from sdgpu.kernels import NTK, EmpiricalNTK, Gaussian
from sdgpu.kernels.kernel_matrices import gram
from tests.problems import assert_near

EPS = np.finfo(np.float64).eps


def jacobians(module, X, shape):
    """(n, c, P) by reverse mode for each row by itself."""
    cast = {name: value.detach().double() for name, value in module.named_parameters()}
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    trained = {name: value for name, value in cast.items() if name not in frozen}
    fixed = {name: cast[name] for name in frozen}

    def apply(trained, x):
        buffers = {
            name: value.double() if value.is_floating_point() else value.clone()
            for name, value in module.named_buffers()
        }
        return functional_call(module, (trained, fixed | buffers), (x.reshape(1, *shape),))[0]

    rows = [jacrev(apply)(trained, torch.as_tensor(x)) for x in X]
    return torch.stack([torch.cat([part.flatten(1) for part in row.values()], 1) for row in rows])


def truth(module, A, B, shape, output=None):
    left, right = (jacobians(module, rows, shape) for rows in (A, B))
    if output is not None:
        return (left[:, output] @ right[:, output].T).numpy()
    return torch.einsum("acp,bcp->ab", left, right).numpy() / left.shape[1]


class Residual(nn.Module):
    """One convolution and one batch norm, used three times."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        for _ in range(3):
            x = x + torch.relu_(self.norm(self.conv(x)))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """A weight that two layers share, also by hand, and that counts its calls."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight
        self.unused, self.empty = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        y = torch.tanh(self.b(torch.tanh(self.a(x.to(self.empty.device)))))
        return y @ self.a.weight.t()


class Stacked(nn.Module):
    """A layer made of two weights, by keyword, and one of them used as a layer too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        weight = torch.cat([self.a.weight, self.b.weight])
        return nn.functional.linear(input=torch.tanh(x), weight=weight) * self.a(x).sum(1, True)


class Own(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight):
        return x @ weight.t()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


class OwnFunction(nn.Module):
    """A weight used by a layer and by a function of one's own."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 5)

    def forward(self, x):
        return Own.apply(torch.tanh(self.a(x)), self.a.weight)


def mlp(activation=nn.Tanh):
    return nn.Sequential(
        nn.Linear(5, 30), activation(), nn.Linear(30, 20), activation(), nn.Linear(20, 3)
    )


def cnn():
    """Three convolutions with batch norms that have seen data."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Softplus(),
        nn.Conv2d(6, 8, 3, padding=(1, 0), stride=2, dilation=(1, 2)),
        nn.BatchNorm2d(8),
        nn.Softplus(),
        nn.Conv2d(8, 8, 2),
        nn.BatchNorm2d(8),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(24, 4),
    )
    net(torch.randn(40, 1, 8, 8))
    return net.eval()


def frozen():
    net = mlp()
    net[0].weight.requires_grad_(False)
    net[4].bias.requires_grad_(False)
    return net


CASES = {
    "mlp": (mlp, (5,)),
    "cnn": (cnn, (1, 8, 8)),
    "residual": (lambda: Residual().eval(), (2, 4, 4)),
    "tied": (Tied, (5,)),
    "stacked": (Stacked, (5,)),
    "own function": (OwnFunction, (5,)),
    "frozen": (frozen, (5,)),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, padding="same"),
            nn.Flatten(),
            nn.Linear(16, 2),
        ),
        (2, 4, 4),
    ),
    "reflect": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, 2, 1, padding_mode="reflect"), nn.Flatten(), nn.Linear(16, 1)
        ),
        (2, 4, 4),
    ),
    "tokens": (
        lambda: nn.Sequential(
            nn.Linear(4, 9),
            nn.LayerNorm(9),
            nn.Tanh(),
            nn.Linear(9, 9),
            nn.Flatten(),
            nn.Linear(27, 2),
        ),
        (3, 4),
    ),
    "other layers": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 3, 2),
            nn.GroupNorm(1, 3),
            nn.Flatten(2),
            nn.Conv1d(3, 2, 3),
            nn.Flatten(),
            nn.Linear(46, 2),
        ),
        (2, 4, 4),
    ),
}


def case(name, n=9):
    make, shape = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = make()
    X = np.random.default_rng(5).standard_normal((n, math.prod(shape)))
    return module, X, shape


@pytest.mark.parametrize("name", CASES)
def test_values(name):
    module, X, shape = case(name)
    kernel = EmpiricalNTK(module, shape=shape)
    wanted = truth(module, X, X, shape)
    size = np.abs(wanted).max()
    K = kernel(X)
    assert (K == K.T).all()
    assert_allclose(K, wanted, rtol=0, atol=1e-12 * size)
    assert_allclose(kernel(X[:4], X[2:]), wanted[:4, 2:], rtol=0, atol=1e-12 * size)
    assert_allclose(kernel.diagonal(kernel.rows(X, None)), wanted.diagonal(), rtol=1e-12)
    single = kernel(X.astype(np.float32))
    assert single.dtype == np.float32
    assert np.linalg.norm(single - wanted) < 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("output", [0, 2])
def test_kernel_of_one_output(output):
    module, X, shape = case("cnn")
    kernel = EmpiricalNTK(module, shape=shape, form="output", output=output)
    wanted = truth(module, X, X, shape, output)
    assert_allclose(kernel(X), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_the_trace_is_the_mean_of_the_outputs():
    module, X, shape = case("residual")
    each = [EmpiricalNTK(module, shape=shape, form="output", output=j)(X) for j in range(3)]
    assert_near(EmpiricalNTK(module, shape=shape)(X), np.mean(each, axis=0), rtol=1e-12)
    one, X, shape = case("reflect")  # c = 1
    alone = EmpiricalNTK(one, shape=shape, form="output", output=0)
    assert_near(EmpiricalNTK(one, shape=shape)(X), alone(X), rtol=1e-13)


@pytest.mark.parametrize("memory", ["200kB", "600kB", "3MB"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "tied"])
def test_any_memory_gives_the_same(name, memory):
    """Held, a chunk of rows at a time, and an output at a time; on either side."""
    module, X, shape = case(name, n=30)
    free, tight = (
        EmpiricalNTK(module, shape=shape),
        EmpiricalNTK(module, shape=shape, memory=memory),
    )
    wanted = free(X)
    size = 1e-12 * np.abs(wanted).max()
    K = tight(X)
    assert (K == K.T).all()
    assert_allclose(K, wanted, rtol=0, atol=size)
    few, many = tight.rows(X[:2], None), tight.rows(X, None)
    assert_allclose(tight.tile(few, many), wanted[:2], rtol=0, atol=size)
    assert_allclose(tight.tile(many, few), wanted[:, :2], rtol=0, atol=size)
    assert_allclose(tight.diagonal(many), wanted.diagonal(), rtol=1e-12)
    # gradients that are kept are those of rows that fit
    kept = sum(part.left.nbytes for part in many.parts[1:])
    assert kept <= sdgpu.backend.memory.parse_bytes(memory) / 2


def test_what_does_not_fit_says_so():
    module, X, shape = case("cnn")
    with pytest.raises(MemoryError, match=r"one output at two rows .* raise memory="):
        EmpiricalNTK(module, shape=shape, memory="10kB")(X)


def test_libraries(backend):
    module, X, shape = case("cnn")
    kernel = EmpiricalNTK(module, shape=shape)
    K = kernel(backend.asarray(X), backend.asarray(X[:3]))
    assert type(K) is type(backend.asarray(X))
    assert_near(to_numpy(K), kernel(X)[:, :3], rtol=1e-11)


def test_odd_arrays():
    """Read-only, strided and empty rows, and rows made under torch.inference_mode."""
    module, X, _ = case("mlp")
    kernel, wide = EmpiricalNTK(module), np.repeat(X, 2, axis=1)
    wanted = kernel(X)
    wide.flags.writeable = False
    assert_near(kernel(wide[:, ::2]), wanted, rtol=1e-12)
    assert_near(kernel(X[::-1]), wanted[::-1, ::-1], rtol=1e-11)
    assert kernel(X[:0]).shape == (0, 0)
    assert kernel(X[:0], X).shape == (0, len(X))
    with torch.inference_mode():
        fresh = EmpiricalNTK(module)
        assert_near(fresh(torch.tensor(X)), wanted, rtol=1e-12)


def test_arithmetic_on_kernels():
    module, X, shape = case("cnn", n=30)
    wanted = EmpiricalNTK(module, shape=shape)(X)
    for memory in ("500kB", "100MB"):
        kernel = EmpiricalNTK(module, shape=shape, memory=memory)
        assert_near((0.5 * kernel)(X), wanted / 2, rtol=1e-11)
        both = 2.0 * kernel + kernel * Gaussian(0.1)
        K = gram(both, both.rows(X, X[0]), tile=7)
        assert_near(K, wanted * (2 + Gaussian(0.1)(X)), rtol=1e-10)


def wide(width, depth, d, c, seed):
    """A ReLU network in the NTK parameterisation as a plain module."""

    class Scaled(nn.Linear):
        def forward(self, x):
            return math.sqrt(2 / self.in_features) * super().forward(x)

    generator, layers = torch.Generator().manual_seed(seed), []
    for i, o in [(d, width)] + [(width, width)] * (depth - 1) + [(width, c)]:
        layer = Scaled(i, o, bias=False)
        with torch.no_grad():
            layer.weight.normal_(generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_wide_networks_approach_the_closed_form():
    """The error falls like 1 / sqrt(width): a fourth from 256 to 4,096."""
    X = np.random.default_rng(1).standard_normal((12, 6))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    wanted = NTK(depth=2)(X)
    errors = {}
    for width in (256, 4096):
        draws = [EmpiricalNTK(wide(width, 2, 6, 4, seed))(X) - wanted for seed in range(4)]
        errors[width] = np.sqrt(np.mean(np.square(draws))) / np.abs(wanted).max()
    assert errors[4096] < 0.02
    assert 2.5 < errors[256] / errors[4096] < 6.5
    # 34 million parameters whose gradients are never made
    kernel = EmpiricalNTK(wide(4096, 3, 6, 4, 0), memory="40MB")
    assert len(kernel.rows(X, None).parts) > 1


@pytest.mark.parametrize("name", ["mlp", "cnn", "tokens", "tied"])
def test_projection_is_unbiased_with_the_error_it_states(name):
    module, X, shape = case(name, n=6)
    K = EmpiricalNTK(module, shape=shape)(X)
    length = np.sqrt(np.outer(K.diagonal(), K.diagonal()))
    q, seeds = 256, 200
    draws = np.array(
        [EmpiricalNTK(module, shape=shape, projection=q, seed=seed)(X) for seed in range(seeds)]
    )
    errors = (draws - K) / length
    assert np.abs(errors.mean(axis=0)).max() < 5 * math.sqrt(6 / q / seeds)
    spread = errors.std(axis=0)
    assert spread.max() < 1.2 * math.sqrt(6 / q)
    assert spread.diagonal().min() > 0.7 * math.sqrt(2 / q)


def test_projection_serves_new_rows_and_is_seeded():
    module, X, shape = case("cnn", n=20)
    kernel = EmpiricalNTK(module, shape=shape, projection=128, seed=4)
    K = kernel(X)
    tight = EmpiricalNTK(module, shape=shape, projection=128, seed=4, memory="500kB")
    assert_near(tight(X[:5], X), K[:5], rtol=1e-10)
    assert_allclose(kernel.diagonal(kernel.rows(X, None)), K.diagonal(), rtol=1e-12)
    assert np.linalg.matrix_rank(kernel.rows(X, None).left) == 20
    assert np.abs(EmpiricalNTK(module, shape=shape, projection=128, seed=5)(X) - K).max() > 0.01


def test_projection_only_where_it_is_needed():
    module, X, shape = case("cnn")
    exact = EmpiricalNTK(module, shape=shape, projection="auto")
    assert_near(exact(X), EmpiricalNTK(module, shape=shape)(X), rtol=1e-13)
    # 512 x 512 x 3 convolutions: 10 x 786,432 gradients a row
    large = nn.Sequential(
        nn.Conv1d(1, 512, 1), nn.Conv1d(512, 512, 3), nn.Flatten(), nn.Linear(512, 10)
    )
    kernel = EmpiricalNTK(large, shape=(1, 3), projection="auto")
    assert kernel.rows(np.ones((2, 3), dtype=np.float32), None).left.shape == (2, 4096)


@pytest.mark.parametrize(
    ("method", "operator", "options"),
    [
        ("eigh", "dense", {}),
        ("lanczos", "tiled", {}),
        ("subspace", "dense", {}),
        ("cg", "tiled", {}),
        ("eigh", "dense", {"memory": "1MB"}),
        ("lanczos", "dense", {"memory": "1MB"}),
        ("eigh", "dense", {"projection": 64}),
        ("lanczos", "tiled", {"projection": 64}),
    ],
)
def test_fit_equals_a_fit_to_the_matrix(method, operator, options, rng):
    module, X, shape = case("cnn", n=60)
    Y, X_new = rng.standard_normal((60, 2)), X[:7] + 0.1
    kernel = EmpiricalNTK(module, shape=shape, **options)
    assert (len(kernel.rows(X, None).parts) == 1) == ("memory" in options)  # not held
    asked = {"alphas": 0.3, "steps": 3}
    fitted = sdgpu.fit(X, Y, kernel, lams=[2.0], method=method, operator=operator, tol=1e-9)
    known = sdgpu.fit(kernel(X), Y, "precomputed", lams=[2.0], method="eigh")
    path, wanted = fitted.path(**asked), known.path(**asked)
    assert_allclose(path.fitted, wanted.fitted, atol=1e-8)
    assert_allclose(path.predict(X_new), wanted.predict(kernel(X_new, X)), atol=1e-7)


def test_the_module_stays_as_it_is():
    for name in ("cnn", "tied"):
        module, X, shape = case(name)
        module.train(False)
        module[0].train(True) if name == "cnn" else None  # a convolution has no mode
        before = copy.deepcopy(module.state_dict())
        flags = [layer.training for layer in module.modules()]
        kernel = EmpiricalNTK(module, shape=shape)
        K = kernel(X)
        after = module.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert flags == [layer.training for layer in module.modules()]
        assert all(value.grad is None and value.requires_grad for value in module.parameters())
        # and later training does not reach the kernel
        text = repr(kernel)
        with torch.no_grad():
            for value in module.parameters():
                value.add_(1.0)
        module.train()
        assert (kernel(X) == K).all()
        assert repr(kernel) == text
        assert repr(EmpiricalNTK(module.eval(), shape=shape)) != text


class Broken(nn.Module):
    """Two layers with something between them and the output."""

    def __init__(self, between, after=lambda y: y):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 3)
        self.between, self.after = between, after

    def forward(self, x):
        return self.after(self.second(self.between(self.first(x))))


def training(layer):
    net = nn.Sequential(nn.Linear(5, 5), layer, nn.Linear(5, 2)).eval()
    layer.train()
    return net


def uncopied():
    module = nn.Linear(2, 1)
    module.lock = threading.Lock()
    return module


class Weights(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)


def no_gradients():
    return mlp().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: EmpiricalNTK(lambda x: x), TypeError, "must be a torch.nn.Module"),
        (lambda: EmpiricalNTK(Tied), TypeError, "make one, Tied"),
        (lambda: EmpiricalNTK(nn.ReLU()), ValueError, "no trainable parameters"),
        (lambda: EmpiricalNTK(no_gradients()), ValueError, "no trainable parameters"),
        (lambda: EmpiricalNTK(nn.LazyLinear(2)), ValueError, "weight of module has no values yet"),
        (lambda: EmpiricalNTK(Weights(torch.ones(3, dtype=torch.complex64))), TypeError, "complex"),
        (lambda: EmpiricalNTK(uncopied()), TypeError, "cannot be copied"),
        (
            lambda: EmpiricalNTK(training(nn.BatchNorm1d(5))),
            ValueError,
            r"1 \(BatchNorm1d\) .* module.eval",
        ),
        (
            lambda: EmpiricalNTK(training(nn.Dropout(0.2))),
            ValueError,
            r"1 \(Dropout, p=0.2\) .* module.eval",
        ),
        (
            lambda: EmpiricalNTK(nn.BatchNorm1d(5, track_running_stats=False).eval()),
            ValueError,
            "no running statistics",
        ),
        (lambda: EmpiricalNTK(mlp(), form="full"), ValueError, "form='full'"),
        (lambda: EmpiricalNTK(mlp(), form="output"), ValueError, "give output=j"),
        (lambda: EmpiricalNTK(mlp(), output=1), ValueError, "give output=j"),
        (lambda: EmpiricalNTK(mlp(), form="output", output=1.5), TypeError, "output=1.5"),
        (lambda: EmpiricalNTK(mlp(), form="output", output=-1), ValueError, "output=-1"),
        (lambda: EmpiricalNTK(mlp(), projection=1), ValueError, "projection=1"),
        (lambda: EmpiricalNTK(mlp(), projection="some"), ValueError, "projection='some'"),
        (lambda: EmpiricalNTK(mlp(), seed=-1), ValueError, "seed=-1"),
        (lambda: EmpiricalNTK(mlp(), memory="much"), ValueError, "memory='much'"),
        (lambda: EmpiricalNTK(mlp(), shape=5), TypeError, "shape=5"),
        (lambda: EmpiricalNTK(mlp(), shape=(0, 5)), ValueError, "shape=0"),
    ],
)
def test_bad_kernels(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("module", "options", "error", "words"),
    [
        (mlp(), {"shape": (2, 2)}, ValueError, r"takes 4 numbers, but the data have 5 features"),
        (
            mlp(),
            {"shape": (1, 5, 1)},
            ValueError,
            r"fails on one row, an input of shape \(1, 1, 5, 1\)",
        ),
        (
            nn.Sequential(mlp(), nn.Flatten(0)),
            {},
            ValueError,
            r"must return \(rows, c\), got shape \(3,\)",
        ),
        (nn.Linear(5, 3), {"shape": (1, 5)}, ValueError, r"got shape \(1, 1, 3\)"),
        (nn.LSTM(5, 3), {}, TypeError, "must return a tensor .* tuple"),
        (Broken(torch.tanh, lambda y: y.argmax(1, True)), {}, TypeError, "torch.int64"),
        (mlp(), {"form": "output", "output": 3}, ValueError, "output=3, but module has 3 outputs"),
        (
            Broken(torch.round),
            {},
            ValueError,
            r"first.weight, first.bias is 0 everywhere, as round\(\)",
        ),
        (Broken(torch.Tensor.sign), {}, ValueError, r"first.weight, first.bias is 0 .* sign\(\)"),
        (Broken(torch.Tensor.detach), {}, ValueError, "first.weight, first.bias is missing"),
        (Broken(lambda y: (y > 0).to(y)), {}, ValueError, "first.weight, first.bias is missing"),
        (
            Broken(torch.tanh, torch.Tensor.detach),
            {},
            ValueError,
            "second.weight, second.bias is missing",
        ),
        (Broken(torch.tanh, lambda y: y.argmax(1, True) * 1.0), {}, ValueError, "is missing"),
        (Broken(torch.tanh, lambda y: y / 0), {}, ValueError, "NaN or infinity"),
        (Broken(lambda y: y if y.sum() > 0 else -y), {}, ValueError, "torch.func.vmap"),
        (Broken(lambda y: nn.functional.dropout(y, 0.5)), {}, ValueError, "torch.func.vmap"),
        (
            Broken(lambda y: torch.zeros_like(y), lambda y: torch.ones_like(y)),
            {},
            ValueError,
            "is missing",
        ),
    ],
)
def test_bad_modules(module, options, error, words):
    X = np.random.default_rng(0).standard_normal((6, 5))
    with pytest.raises(error, match=words):
        EmpiricalNTK(module, **options)(X)


def test_frozen_parameters_need_no_gradient():
    """The remedy of the errors above."""
    module, X = Broken(torch.round), np.random.default_rng(0).standard_normal((6, 5))
    module.first.requires_grad_(False)
    assert_near(EmpiricalNTK(module)(X), truth(module, X, X, (5,)), rtol=1e-12)


def test_gradients_through_steps_that_pass_them_on():
    """A straight-through estimator uses round() and has a gradient."""
    X = np.random.default_rng(0).standard_normal((6, 5))
    module = Broken(lambda y: y + (torch.round(y) - y).detach())
    assert_allclose(EmpiricalNTK(module)(X), truth(module, X, X, (5,)), rtol=1e-12, atol=1e-13)
    still = Broken(torch.tanh)
    nn.init.zeros_(still.second.weight)  # the first layer has gradient 0 here, and may
    assert_near(EmpiricalNTK(still)(X), truth(still, X, X, (5,)), rtol=1e-12)


def test_a_number_as_parameter():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.7))

        def forward(self, x):
            return self.scale * self.layer(x)

    module, X = Scaled(), torch.tensor([[1.0, 2.0, 0.5], [0.3, -1.0, 2.0]], dtype=torch.float64)
    inner = module.layer.double()(X).detach()
    scale = module.scale.item()
    wanted = scale**2 * (X @ X.T + 1) + inner @ inner.T / 2
    assert_near(EmpiricalNTK(module)(X), wanted, rtol=1e-13)
