"""Tangent kernels: wide networks at random, digits at small angles, odd input."""

import itertools
import math

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from numpy.testing import assert_allclose
from torch.func import jacrev

from sdgpu.kernels import NNGP, NTK, as_kernel


def wide(depth, width, w, b, d, generator):
    """A ReLU network in the NTK parameterisation, as a function of its parameters."""
    sizes = [d, *[width] * depth, 1]
    parameters = [
        (torch.randn(m, n, generator=generator), torch.randn(m, generator=generator))
        for n, m in itertools.pairwise(sizes)
    ]

    def apply(parameters, x):
        for i, (weight, bias) in enumerate(parameters):
            x = torch.relu(x) if i else x
            x = math.sqrt(w / weight.shape[1]) * weight @ x + math.sqrt(b) * bias
        return x[0]

    return apply, parameters


@pytest.mark.parametrize(("depth", "w", "b"), [(1, 2.0, 0.0), (2, 1.5, 0.2)])
def test_wide_networks_agree(depth, w, b):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(4, 3, generator=generator)
    tangent, draws = torch.zeros(4, 4), 6
    values = []
    for _ in range(draws):
        apply, parameters = wide(depth, 1024, w, b, 3, generator)
        rows = []
        for x in X:
            gradient = jacrev(apply)(parameters, x)
            rows.append(torch.cat([part.flatten() for pair in gradient for part in pair]))
        J = torch.stack(rows)
        tangent += J @ J.T / draws
    # the printed recursion counts the bias of every layer once, as the gradient does
    assert_allclose(tangent.numpy(), NTK(depth, w, b)(X.numpy().astype(float)), rtol=0.12, atol=0.1)
    for _ in range(3000):
        apply, parameters = wide(depth, 64, w, b, 3, generator)
        values.append(torch.stack([apply(parameters, x) for x in X[:2]]))
    sample = torch.stack(values)
    measured = (sample.T @ sample / len(values)).numpy()
    assert_allclose(measured, NNGP(depth, w, b)(X[:2].numpy().astype(float)), rtol=0.15, atol=0.1)


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-4, 0.5, 3.0])
def test_small_angles_keep_their_digits(angle):
    """Against fifty digits: an arccos in float64 would be off by 1e-8 here."""
    mp.dps = 50
    X = np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    x, y = ([mpf(float(v)) for v in row] for row in X)
    S, s, t = (sum(a * b for a, b in zip(u, v, strict=True)) for u, v in ((x, y), (x, x), (y, y)))
    tangent = S
    for _ in range(3):
        u = S / mp.sqrt(s * t)
        theta = mp.acos(u)
        S = mp.sqrt(s * t) * (mp.sin(theta) + (mp.pi - theta) * u) / mp.pi
        tangent = S + (mp.pi - theta) / mp.pi * tangent
    assert_allclose(NTK(3)(X)[0, 1], float(tangent), rtol=3e-14)
    assert_allclose(NNGP(3)(X)[0, 1], float(S), rtol=1e-14)


def test_he_scaling_keeps_the_length(rng):
    X = rng.standard_normal((5, 4))
    length = 2 * (X**2).mean(axis=1)
    assert_allclose(NNGP(7)(X).diagonal(), length)
    assert_allclose(NTK(7)(X).diagonal(), 8 * length)


def test_rows_of_zeros():
    X = np.array([[0.0, 0.0], [1.0, 2.0]])
    assert_allclose(NTK(2)(X)[0], 0)
    assert np.isfinite(NTK(2, 2.0, 0.5)(X)).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"depth": 0}, ValueError, "depth=0"),
        ({"depth": 1.5}, TypeError, "depth=1.5"),
        ({"weight_var": 0.0}, ValueError, "weight_var"),
        ({"bias_var": -1.0}, ValueError, "bias_var"),
    ],
)
@pytest.mark.parametrize("kernel", [NNGP, NTK])
def test_bad_input(kernel, change, error, words):
    with pytest.raises(error, match=words):
        kernel(**change)
    assert isinstance(as_kernel(kernel.__name__.lower()), kernel)
