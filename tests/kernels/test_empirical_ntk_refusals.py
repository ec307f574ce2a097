"""Whatever a module does wrong ends in a ValueError that says so, and old hooks work."""

import numpy as np
import pytest
import torch
from torch import nn

from sdgpu.kernels import EmpiricalNTK

X = np.random.default_rng(0).standard_normal((6, 4))


class Module(nn.Module):
    def __init__(self, run, **parts):
        super().__init__()
        self.line, self.run = line(), run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def line(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(4, 3)


def fails(error):
    def run(module, x):
        raise error

    return run


def in_place(module, x):
    y = torch.exp(module.line(x))
    return y.mul_(2)


def grows(module, x):
    with torch.no_grad():
        module.line.weight.mul_(2)
    return module.line(x)


def counts(module, x):
    module.count.add_(1)
    return module.line(x) * module.count


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no way back")


def counter(dtype):
    return torch.nn.parameter.Buffer(torch.zeros((), dtype=dtype))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (lambda error=error: Module(fails(error)), r"fails on one row.*boo")
            for error in (
                AttributeError("boo"),
                AssertionError("boo"),
                KeyError("boo"),
                NotImplementedError("boo"),
                RuntimeError("boo"),
            )
        ),
        (lambda: Module(in_place), "cannot be differentiated: .*modified by an inplace operation"),
        (lambda: Module(lambda m, x: BadBackward.apply(m.line(x))), "differentiated: no way back"),
        (lambda: Module(grows), r"changes line.weight of module.*call module.eval\(\)"),
        (lambda: Module(counts, count=counter(torch.float32)), "changes count of module"),
        (
            lambda: nn.utils.parametrizations.spectral_norm(line()),
            r"changes parametrizations.weight.0._u of module, as spectral norm",
        ),
        (
            lambda: Module(
                lambda m, x: m.line(x) + m.table(x.abs().long() % 3)[:, 0],
                table=nn.Embedding(3, 3, sparse=True),
            ),
            "gradient of table.weight is sparse",
        ),
        (lambda: line().to("meta"), "weight of module is on the meta device"),
    ],
)
def test_what_a_module_does_wrong_is_a_value_error(make, message):
    with pytest.raises(ValueError, match=message):
        EmpiricalNTK(make())(X)


def test_a_module_that_counts_its_calls_is_well():
    module = Module(
        lambda m, x: (m.count.add_(1), m.line(x))[1],
        count=counter(torch.int64),
        mask=nn.parameter.Buffer(torch.full((2,), torch.nan)),
    )
    np.testing.assert_array_equal(EmpiricalNTK(module)(X), EmpiricalNTK(line())(X))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch: the old hooks
@pytest.mark.parametrize("old", [False, True])
def test_spectral_norm_in_evaluation_mode(old):
    """W / sigma with sigma = u' W v of fixed u and v: its gradient is that of the quotient."""
    make = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    module = make(line())
    module(torch.zeros(1, 4))
    module = module.eval().double()
    if old:
        with pytest.raises(ValueError, match=r"changes weight_u of module.*module\.eval"):
            EmpiricalNTK(make(line()))(X)
        W, u, v = module.weight_orig, module.weight_u, module.weight_v
    else:
        part = module.parametrizations.weight
        W, u, v = part.original, part[0]._u, part[0]._v
    W, u, v = (t.detach() for t in (W, u, v))

    def f(W, b, x):
        return (W / (u @ W @ v)) @ x + b

    rows = torch.from_numpy(X)
    jacobians = [torch.func.jacrev(f, argnums=(0, 1))(W, module.bias.detach(), x) for x in rows]
    J = torch.stack([torch.cat([part.flatten(1) for part in pair], dim=1) for pair in jacobians])
    truth = torch.einsum("ajp,bjp->ab", J, J).numpy() / 3
    found = EmpiricalNTK(module)(X)
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-13 * np.abs(truth).max())
