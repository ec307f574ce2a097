"""Parameters of kernels that are learned, and derivatives of sums over K by them."""

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.kernels import FunctionKernel
from sdgpu.kernels.tunable import Tunable

RNG = np.random.default_rng(0)
MIXTURE = sdgpu.SpectralMixture(
    [1.0, 0.5], [[0.5, 0.2, 0.1], [1.0, 0.3, 0.2]], [[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]]
)
CASES = [
    (sdgpu.Gaussian(2.0), ("lengthscale", "gamma")),
    (sdgpu.Gaussian(2.0, 0.7), ("width",)),
    (sdgpu.Laplacian(0.7), ("lengthscale", "gamma")),
    (sdgpu.Matern(1.5, (1.0, 2.0, 0.7)), ("width",)),
    (sdgpu.Matern(0.5), ("lengthscale",)),
    (sdgpu.Matern(3.5), ("lengthscale",)),
    (sdgpu.RationalQuadratic(1.5), ("lengthscale", "power")),
    (sdgpu.Periodic(1.3, 0.8), ("lengthscale", "period")),
    (sdgpu.Periodic((1.3, 1.0, 2.0), 0.8), ("width", "period")),
    (sdgpu.Polynomial(2), ("gamma", "coef0", "lengthscale")),
    (sdgpu.Linear(), ("lengthscale",)),
    (sdgpu.kernels.Cosine(), ("lengthscale",)),
    (sdgpu.NTK(2, bias_var=0.1), ("weight_var", "bias_var", "lengthscale")),
    (sdgpu.kernels.ArcCosine(1), ("lengthscale",)),
    (sdgpu.Wendland(0, 3.0, 3), ("lengthscale",)),
    (sdgpu.Wendland(1, 3.0, 3), ("lengthscale",)),
    (sdgpu.Wendland(3, 3.0, 3), ("width",)),
    (sdgpu.Tanimoto(), ("lengthscale",)),
    (sdgpu.ChiSquared(1.2), ("gamma",)),
    (MIXTURE, ("weights", "means", "variances")),
    (2.0 * sdgpu.Gaussian(1.0) + 0.5 * sdgpu.Matern(2.5), ("scale", "lengthscale")),
    (3.0 * (2.0 * sdgpu.Gaussian(1.0) * sdgpu.Laplacian(0.2)), ("scale", "gamma")),
    (
        sdgpu.On([0, 2], sdgpu.Gaussian(1.0)) * sdgpu.On(1, sdgpu.Periodic(1.1))
        + 0.3 * sdgpu.Linear(),
        ("scale", "lengthscale", "period"),
    ),
]


def slope_by_differences(tunable, logs, A, B, G, h=1e-4):
    """sum G d kappa / d log theta, by differences of the whole kernel."""

    def total(x):
        return float((G * tunable.at(x)(A, B)).sum())

    steps = h * np.eye(len(logs))
    return np.array(
        [
            (8 * (total(logs + e) - total(logs - e)) - total(logs + 2 * e) + total(logs - 2 * e))
            / (12 * h)
            for e in steps
        ]
    )


@pytest.mark.parametrize(("kernel", "over"), CASES, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("same", [True, False])
def test_slopes(kernel, over, same, monkeypatch):
    monkeypatch.setattr("sdgpu.kernels.tunable.ENTRIES", 100)  # several blocks
    B = RNG.uniform(0.1, 1, (23, 3))
    B[7] = B[3]
    A = B if same else RNG.uniform(0.1, 1, (11, 3))
    G = RNG.standard_normal((len(A), len(B)))
    G = G + G.T if same else G
    tunable = Tunable(kernel, 3, over)
    logs = tunable.start + 0.1 * RNG.standard_normal(len(tunable.start))
    rows = torch.tensor(A), torch.tensor(B)
    factor = torch.tensor(G)
    found = tunable.slopes(logs, rows, lambda part: factor[part], same=same)
    wanted = slope_by_differences(tunable, logs, A, B, G)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-8 * max(np.abs(wanted).max(), 1))
    assert len(tunable.labels) == len(logs)


@pytest.mark.parametrize(("kernel", "over"), CASES, ids=lambda x: type(x).__name__)
def test_the_start_is_the_kernel_itself(kernel, over):
    X = RNG.uniform(0.1, 1, (9, 3))
    tunable = Tunable(kernel, 3, over)
    np.testing.assert_allclose(tunable.at(tunable.start)(X), kernel(X), rtol=1e-13)


def test_rows_far_from_the_origin_keep_their_digits():
    A = RNG.standard_normal((15, 2)) + 1e6
    G = torch.ones(15, 15, dtype=torch.float64)
    tunable = Tunable(sdgpu.Gaussian(0.5), 2, ("lengthscale",))
    rows, near = torch.tensor(A), torch.tensor(A - 1e6)
    found, wanted = (
        tunable.slopes(tunable.start, (x, x), lambda part: G[part], same=True) for x in (rows, near)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-8)


def test_names_and_numbers():
    tunable = Tunable(2.0 * sdgpu.Gaussian(1.0), 2, ("scale", "lengthscale"))
    assert tunable.labels == ["scale", "lengthscale of part 1[0]", "lengthscale of part 1[1]"]
    with pytest.raises(
        ValueError, match=r"has no sigma to learn; it has gamma, lengthscale, width"
    ):
        Tunable(sdgpu.Gaussian(), 2, ("sigma",))
    with pytest.raises(ValueError, match=r"nu to learn; it has lengthscale, width"):
        Tunable(sdgpu.Matern(1.5), 2, ("nu",))
    with pytest.raises(ValueError, match="has no name to learn"):
        Tunable(sdgpu.Gaussian(), 2, ())
    with pytest.raises(ValueError, match=r"coef0=0.0 of Polynomial is learned by its logarithm"):
        Tunable(sdgpu.Polynomial(2, coef0=0.0), 2, ("coef0",))
    with pytest.raises(ValueError, match="it has nothing"):
        Tunable(FunctionKernel(lambda A, B: A @ B.T), 2, ("lengthscale",))
