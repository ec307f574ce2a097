"""The empirical tangent kernel against full Jacobians, its limit, and what it refuses."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch.func import functional_call, jacrev, vmap

import sdgpu
from sdgpu.kernels import NTK, EmpiricalNTK


def jacobians(module, X):
    """(n, c, P) from jacrev of every row."""
    parameters = {k: v.detach().to(X.dtype) for k, v in module.named_parameters()}
    buffers = {k: v.to(X.dtype) if v.is_floating_point() else v for k, v in module.named_buffers()}

    def one(values, x):
        return functional_call(module, (values, buffers), (x[None],))[0]

    each = vmap(jacrev(one), in_dims=(None, 0))(parameters, X)
    return torch.cat([j.reshape(*j.shape[:2], -1) for j in each.values()], dim=-1)


def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))


def cnn():
    torch.manual_seed(1)
    layers = [
        torch.nn.Unflatten(1, (1, 4, 4)), torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(5, 3),
    ]  # fmt: skip
    module = torch.nn.Sequential(*layers)
    module[2].running_mean.uniform_(-0.1, 0.1)
    return module.eval()


class Shared(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layer = torch.nn.Linear(16, 16)
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return (x + self.scale * self.layer(torch.tanh(self.layer(x))))[:, :3]


@pytest.mark.parametrize("make", [mlp, cnn, Shared])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_against_full_jacobians(make, dtype, tolerance):
    module = make()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    X = torch.randn(9, 16, dtype=dtype, generator=torch.Generator().manual_seed(3))
    J = jacobians(module, X)
    wanted = torch.einsum("acp,bcp->ab", J, J) / 3
    found = EmpiricalNTK(module)(X)
    scale = float(wanted.abs().max())
    assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)
    one = EmpiricalNTK(module, form="output", output=1)(X, X[:4])
    assert_allclose(one, J[:, 1] @ J[:4, 1].T, rtol=0, atol=tolerance * scale)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_little_memory_gives_the_same():
    module, X = cnn(), torch.randn(40, 16, dtype=torch.float64)
    wanted = EmpiricalNTK(module)(X)
    assert_allclose(EmpiricalNTK(module, memory=200_000)(X), wanted, rtol=1e-11)


def test_a_fit_with_it_is_that_of_its_matrix(rng):
    X, y, new = rng.standard_normal((40, 16)), rng.standard_normal(40), rng.standard_normal((5, 16))
    kernel = EmpiricalNTK(mlp())
    wanted = sdgpu.fit(kernel(X), y, "precomputed", lams=0.5, method="eigh").path(steps=3)
    found = sdgpu.fit(X, y, kernel, lams=0.5, method="eigh").path(steps=3)
    assert_allclose(found.predict(new), wanted.predict(kernel(new, X)), rtol=1e-8, atol=1e-10)


def test_wide_networks_tend_to_the_kernel():
    class Wide(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first = torch.nn.Parameter(torch.randn(width, 6))
            self.last = torch.nn.Parameter(torch.randn(1, width))

        def forward(self, x):
            hidden = torch.relu(x @ self.first.T * (2 / 6) ** 0.5)
            return hidden @ self.last.T * (2 / self.last.shape[1]) ** 0.5

    torch.manual_seed(5)
    X = torch.randn(7, 6, dtype=torch.float64)
    wanted = NTK(depth=1)(X)
    errors = []
    for width in (256, 16384):
        # the last layer of NTK has variance weight_var / 2 a unit: both layers carry sqrt(2 / fan-in)
        found = sum(EmpiricalNTK(Wide(width).eval())(X) for _ in range(4)) / 4
        errors.append(float((found / found.mean() - wanted / wanted.mean()).abs().max()))
    assert errors[1] < 0.1
    assert errors[1] < errors[0]


def test_projections_are_unbiased():
    module, X = mlp(), torch.randn(6, 16, dtype=torch.float64)
    wanted = EmpiricalNTK(module)(X)
    size = wanted.diagonal().sqrt()
    errors = [
        (EmpiricalNTK(module, projection=256, seed=seed)(X) - wanted)
        / size[:, None]
        / size[None, :]
        for seed in range(20)
    ]
    stacked = torch.stack(errors)
    assert float(stacked.std()) < 1.5 * (6 / 256) ** 0.5
    assert float(stacked.mean(dim=0).abs().max()) < 4 * (6 / 256 / 20) ** 0.5


def test_what_it_refuses():
    X = torch.randn(4, 16)
    with pytest.raises(TypeError, match="module"):
        EmpiricalNTK(lambda x: x)
    with pytest.raises(ValueError, match="parameters"):
        EmpiricalNTK(torch.nn.Flatten())
    with pytest.raises(ValueError, match="eval"):
        EmpiricalNTK(cnn().train())
    with pytest.raises(ValueError, match="shape"):
        EmpiricalNTK(mlp(), shape=(3, 5))(X)
    with pytest.raises(ValueError, match="output"):
        EmpiricalNTK(mlp(), form="output", output=3)(X)
    with pytest.raises(ValueError, match="output"):
        EmpiricalNTK(mlp(), form="output")

    class Rounded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(16, 2)

        def forward(self, x):
            return torch.round(self.layer(x))

    with pytest.raises(ValueError, match="gradient"):
        EmpiricalNTK(Rounded())(X)
