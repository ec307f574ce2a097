"""Kernels as plain values and back: every formula of the package, and nothing else."""

import json
import re
from dataclasses import dataclass, fields

import numpy as np
import pytest
from torch import nn

import sdgpu
from sdgpu.kernels.description import DEEPEST, describe_kernel, described_kernel
from sdgpu.kernels.kernel import Product, Scaled, Sum

PLAIN = [
    sdgpu.AdditiveChiSquared(),
    sdgpu.AdditiveChiSquared([1.0, 0.5]),
    sdgpu.ChiSquared(0.7),
    sdgpu.ChiSquared(0.7, 2.0),
    sdgpu.HistogramIntersection(0.3),
    sdgpu.Periodic(),
    sdgpu.Periodic([1.0, 24.0], [0.1, 3.0]),
    sdgpu.RationalQuadratic(0.3, 2.0),
    sdgpu.RationalQuadratic(lengthscale=[0.3, 2.0]),
    sdgpu.SpectralMixture([1.0, 0.5], [0.0, 0.3], [0.1, 2.0]),
    sdgpu.SpectralMixture([2.0], [[0.0, 0.1]], [[0.5, 1e-3]]),
    sdgpu.Tanimoto(),
    sdgpu.Tanimoto(7.0),
    sdgpu.Wendland(),
    sdgpu.Wendland(2, [1.0, 3.0], dimension=8),
    sdgpu.On(0, sdgpu.Gaussian()),
    sdgpu.On([3, 1], sdgpu.Gaussian(0.5, [1.0, 2.0])),
    sdgpu.ArcCosine(0),
    sdgpu.ArcCosine(2, [1.0, 0.5]),
    sdgpu.BrownianBridge(),
    sdgpu.Cosine(),
    sdgpu.Cosine(0.3),
    sdgpu.CubicGreen(),
    sdgpu.CubicSpline(4.0),
    sdgpu.Gaussian(0.1),
    sdgpu.Gaussian(0.5, [0.1, 2.0, 1e-3]),
    sdgpu.Laplacian(1 / 3, 7.0),
    sdgpu.Linear(),
    sdgpu.Linear([1.0, 2.0]),
    sdgpu.Matern(0.5, 0.7),
    sdgpu.Matern(2.5, (1.0, 0.1)),
    sdgpu.NNGP(3, 1.5, 0.25, 2.0),
    sdgpu.NTK(2, bias_var=0.1),
    sdgpu.Polynomial(4, 0.7, 0.0, 1.1),
]
NESTED = [
    2.0 * sdgpu.Gaussian(0.5),
    0.0 * sdgpu.Linear(),
    3 * (0.1 * sdgpu.NTK()),
    sdgpu.Gaussian() + sdgpu.Linear() * sdgpu.Cosine(),
    (sdgpu.Gaussian() + sdgpu.Linear()) * (sdgpu.Cosine() + 0.2 * sdgpu.Matern(1.5, [1.0, 3.0])),
    sdgpu.Gaussian() + (sdgpu.Gaussian() + (sdgpu.Gaussian() + sdgpu.Gaussian())),
    sdgpu.On([0, 2], sdgpu.Matern(3.5)) * sdgpu.On([1], 2.0 * sdgpu.Periodic(24.0)),
    sdgpu.On([0, 1, 2], sdgpu.On([2, 1], sdgpu.Gaussian() + sdgpu.On(0, sdgpu.Linear()))),
    Product((sdgpu.Linear(), sdgpu.Linear(), sdgpu.Cosine())),
]
#: Those that files may not name.
OTHERS = {"EmpiricalNTK", "FunctionKernel", "Precomputed", "Kernel"}


@pytest.mark.parametrize("kernel", PLAIN + NESTED, ids=repr)
def test_there_and_back(kernel):
    text = json.dumps(describe_kernel(kernel), allow_nan=False)
    again = described_kernel(json.loads(text))
    assert again == kernel
    assert type(again) is type(kernel)
    assert repr(again) == repr(kernel)
    assert hash(again) == hash(kernel)
    assert json.dumps(describe_kernel(again)) == text
    for field in fields(kernel):
        assert type(getattr(again, field.name)) is type(getattr(kernel, field.name))


def test_every_formula_has_a_case():
    known = {
        name for name in sdgpu.kernels.__all__ if isinstance(getattr(sdgpu.kernels, name), type)
    }
    assert {type(kernel).__name__ for kernel in PLAIN} == known - OTHERS - {
        "Sum",
        "Product",
        "Scaled",
    }


def test_values_are_those_of_the_kernel(rng):
    X = rng.uniform(0.1, 0.9, (5, 1))
    wider = re.compile(r"lengthscale=\(|columns=\([^)]*[1-9]|means=\(\([^)]*, \d")  # than a feature
    several = [kernel for kernel in PLAIN + NESTED if not wider.search(repr(kernel))]
    assert len(several) > 15
    for kernel in several:
        again = described_kernel(json.loads(json.dumps(describe_kernel(kernel))))
        assert np.array_equal(again(X), kernel(X))


def test_as_deep_as_files_may_be():
    kernel = sdgpu.Gaussian()
    for _ in range(DEEPEST):
        kernel = 2.0 * kernel
    assert described_kernel(describe_kernel(kernel)) == kernel
    with pytest.raises(ValueError, match="more than 50 kernels inside each other"):
        described_kernel(describe_kernel(2.0 * kernel))


@pytest.mark.parametrize("depth", [60, 900, 20_000])
@pytest.mark.parametrize("wrap", ["scaled", "sum"])
def test_what_is_deeper_is_refused_in_few_words(wrap, depth):
    inside = describe_kernel(sdgpu.Linear())
    for _ in range(depth):
        if wrap == "scaled":
            inside = {"kind": "Scaled", "scale": 1.0, "kernel": inside}
        else:
            inside = {"kind": "Sum", "kernels": [inside]}
    with pytest.raises(ValueError, match="more than 50 kernels inside each other") as caught:
        described_kernel(inside)
    assert len(str(caught.value)) < 200
    while inside.get("kernel") or inside.get("kernels"):  # freed one by one, not by recursion
        inside = inside.get("kernel") or inside["kernels"][0]


@dataclass(frozen=True)
class Own(sdgpu.Gaussian):
    """A kernel from outside that derives from one of the package."""

    extra: float = 1.0


class Gaussian(sdgpu.Gaussian):
    """The same, and of the same name."""


@pytest.mark.parametrize(
    "kernel",
    [
        sdgpu.FunctionKernel(lambda A, B: A @ B.T),
        sdgpu.Precomputed(),
        sdgpu.EmpiricalNTK(nn.Linear(2, 1)),
        Own(0.5),
        Gaussian(0.5),
        sdgpu.Linear() + sdgpu.Precomputed(),
        2.0 * Own(0.5),
        sdgpu.Linear() * (sdgpu.Linear() + Gaussian()),
    ],
    ids=lambda kernel: type(kernel).__name__,
)
def test_code_and_matrices_do_not_go_into_files(kernel):
    with pytest.raises(TypeError, match="cannot go into a file: it is no formula of this package"):
        describe_kernel(kernel)


LINEAR = {"kind": "Linear", "lengthscale": None}


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (None, "a NoneType describes no kernel"),
        ("Gaussian", "a str describes no kernel"),
        ([LINEAR], "a list describes no kernel"),
        ({}, "the kind of a kernel is a str, not NoneType"),
        ({"kind": "Gauss"}, "'Gauss' is no kernel"),
        ({"kind": "FunctionKernel", "function": "print"}, "'FunctionKernel' is no kernel"),
        ({"kind": "EmpiricalNTK"}, "'EmpiricalNTK' is no kernel"),
        ({"kind": "Precomputed"}, "'Precomputed' is no kernel"),
        ({"kind": "Kernel"}, "'Kernel' is no kernel"),
        ({"kind": "__import__"}, "'__import__' is no kernel"),
        ({"kind": 3}, "the kind of a kernel is a str, not int"),
        ({"kind": ["Linear"]}, "the kind of a kernel is a str, not list"),
        ({"kind": {}}, "the kind of a kernel is a str, not dict"),
        ({"kind": "Gaussian", "gama": 1.0}, "Gaussian of a file has other parameters: .*gama"),
        ({"kind": "Gaussian", "gamma": 1.0, "extra": 0}, "other parameters: .*extra"),
        ({"kind": "Gaussian", "gamma": "1"}, "gamma='1' must be a real number"),
        ({"kind": "Gaussian", "gamma": [1.0]}, "gamma=.* must be a real number"),
        ({"kind": "Gaussian", "gamma": True}, "gamma=True must be a real number"),
        ({"kind": "Gaussian", "gamma": -1.0}, "gamma=-1.0 must be > 0"),
        ({"kind": "Gaussian", "gamma": float("nan")}, "gamma=nan must be finite"),
        ({"kind": "Gaussian", "gamma": 1.0, "lengthscale": []}, "lengthscale must be"),
        (
            {"kind": "Gaussian", "gamma": 1.0, "lengthscale": ["1"]},
            "lengthscale='1' must be a real",
        ),
        ({"kind": "Gaussian", "gamma": 1.0, "lengthscale": {"a": 1}}, "lengthscale=.* must be a r"),
        ({"kind": "Polynomial", "degree": 2.5}, "degree=2.5 must be a whole number"),
        ({"kind": "Polynomial", "degree": 0}, "degree=0 must be at least 1"),
        ({"kind": "Matern", "nu": 1.0, "lengthscale": 1.0}, "nu=1.0 has no closed form"),
        ({"kind": "ArcCosine", "degree": 3}, "degree=3 has no closed form"),
        ({"kind": "NTK", "depth": 0}, "depth=0 must be at least 1"),
        ({"kind": "CubicSpline", "line": 0.0}, "line=0.0 must be > 0"),
        ({"kind": "BrownianBridge", "line": 1.0}, "BrownianBridge of a file has other parameters"),
        ({"kind": "Scaled", "scale": 2.0}, "'Scaled' is no kernel"),
        ({"kind": "Scaled", "scale": 2.0, "kernel": LINEAR, "more": 1}, "'Scaled' is no kernel"),
        ({"kind": "Scaled", "scale": -2.0, "kernel": LINEAR}, "scale=-2.0 must be >= 0"),
        ({"kind": "Scaled", "scale": "2", "kernel": LINEAR}, "scale='2' must be a real number"),
        ({"kind": "Scaled", "scale": None, "kernel": LINEAR}, "scale=None must be a real number"),
        ({"kind": "Scaled", "scale": LINEAR, "kernel": LINEAR}, "scale=.* must be a real number"),
        ({"kind": "Scaled", "scale": 1.0, "kernel": "Linear"}, "a str describes no kernel"),
        ({"kind": "On", "columns": [0]}, "'On' is no kernel"),
        ({"kind": "On", "columns": [0], "kernel": LINEAR, "more": 1}, "'On' is no kernel"),
        ({"kind": "On", "columns": [0], "kernel": "Linear"}, "a str describes no kernel"),
        ({"kind": "On", "columns": [], "kernel": LINEAR}, "columns=.* must be a column or several"),
        ({"kind": "On", "columns": [0, 0], "kernel": LINEAR}, "names column 0 twice"),
        ({"kind": "On", "columns": ["0"], "kernel": LINEAR}, "columns='0' must be a whole number"),
        ({"kind": "On", "columns": [-1], "kernel": LINEAR}, "columns=-1 must be at least 0"),
        ({"kind": "On", "columns": {"a": 0}, "kernel": LINEAR}, "columns=.* must be a whole"),
        ({"kind": "Wendland", "order": 4}, "order=4 has no formula"),
        ({"kind": "Periodic", "period": [0.0]}, "period=0.0 must be > 0"),
        (
            {"kind": "SpectralMixture", "weights": [1.0]},
            "SpectralMixture of a file has other param",
        ),
        (
            {
                "kind": "SpectralMixture",
                "weights": [1.0],
                "means": [[1.0], [2.0]],
                "variances": [1.0],
            },
            "means has 2 components, but weights has 1",
        ),
        (
            {"kind": "SpectralMixture", "weights": [1.0], "means": [["1"]], "variances": [1.0]},
            "means='1' must be a real number",
        ),
        ({"kind": "Sum"}, "'Sum' is no kernel"),
        ({"kind": "Sum", "kernels": []}, "a Sum of no kernels"),
        ({"kind": "Product", "kernels": []}, "a Product of no kernels"),
        ({"kind": "Sum", "kernels": 3}, "Sum of a file has other parameters"),
        ({"kind": "Sum", "kernels": None}, "Sum of a file has other parameters"),
        ({"kind": "Sum", "kernels": "Linear"}, "a str describes no kernel"),
        ({"kind": "Sum", "kernels": LINEAR}, "a str describes no kernel"),
        ({"kind": "Sum", "kernels": [LINEAR, None]}, "a NoneType describes no kernel"),
        ({"kind": "Product", "kernels": [LINEAR, {"kind": "Sum"}]}, "'Sum' is no kernel"),
    ],
)
def test_junk_is_no_kernel(description, words):
    with pytest.raises(ValueError, match=words) as caught:
        described_kernel(description)
    assert type(caught.value) is ValueError


def test_lists_in_lists_are_no_parameter():
    nested = [1.0]
    for _ in range(3000):
        nested = [nested]
    with pytest.raises(ValueError, match="Gaussian of a file has other parameters"):
        described_kernel({"kind": "Gaussian", "gamma": nested})


def test_descriptions_are_not_changed():
    description = describe_kernel(2.0 * (sdgpu.Gaussian() + sdgpu.Linear([1.0, 2.0])))
    before = json.dumps(description)
    described_kernel(description)
    assert json.dumps(description) == before
    assert isinstance(described_kernel(description), Scaled)
    assert isinstance(described_kernel(description).kernel, Sum)
