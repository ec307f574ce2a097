"""The house: few rooms, each name once, and every public name where readers look for it."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import sdgpu

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sdgpu"
FILES = sorted(PACKAGE.rglob("*.py"))
#: Words that tell a numerical analyst nothing.
BARE = {
    "answers",
    "questions",
    "tally",
    "forms",
    "given",
    "watching",
    "machinery",
    "linearise",
    "utils",
}


def entries():
    return [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")]


def test_few_entries_and_floors():
    assert len(entries()) <= 12
    text = (ROOT / "pyproject.toml").read_text()
    layers = re.search(r'containers = \["sdgpu"\].*?layers = \[(.*?)\]', text, re.DOTALL)
    floors = [line for line in layers[1].splitlines() if line.strip()]
    assert len(floors) <= 9
    named = {word for line in floors for word in re.findall(r"\w+", line)}
    assert named == {path.stem for path in entries()} - {"__init__"}


def test_no_module_name_twice():
    folders = [path.parent.name for path in FILES if path.name == "__init__.py"][1:]
    names = Counter(folders + [path.stem for path in FILES if not path.stem.startswith("__")])
    assert not {name for name, count in names.items() if count > 1}
    assert not BARE & set(names)


def test_no_class_name_twice():
    names = Counter(
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert not {name for name, count in names.items() if count > 1}


def test_tests_mirror_the_tree():
    folders = {path.name for path in entries() if path.is_dir() and path.name != "cli"}
    assert folders <= {path.name for path in (ROOT / "tests").iterdir()}


PUBLIC = """
Gaussian Laplacian Matern Polynomial Linear Cosine ArcCosine NNGP NTK EmpiricalNTK FunctionKernel Precomputed
CubicGreen CubicSpline BrownianBridge median_distance
RationalQuadratic Periodic SpectralMixture Wendland ChiSquared AdditiveChiSquared HistogramIntersection Tanimoto On
Pinball Huber TopK reweighted_fit ReweightedFit tune Tuned
fit plan Plan refit_path open_sweep Sweep constrained_path constrain ConstrainedPath Predictor open_predictor
Predictor.save Predictor.module Predictor.predict Predictor.gradient
Fit.spectrum Fit.path Fit.limit Fit.diagonal Fit.optimal_alphas Fit.joint_alphas Fit.sweep Fit.loo Fit.gcv
Fit.gcv_sweep Fit.advise Fit.with_targets Fit.predictor
Sweep.best Sweep.save
SelfDistillationRegressor SelfDistillationRegressorCV SelfDistillationClassifier SelfDistillationClassifierCV
operators.DenseOperator operators.TiledOperator operators.KeOpsOperator operators.SparseOperator
operators.ShardedOperator
kernels.EmpiricalNTK
nn.train nn.distill_chain nn.estimate_alpha nn.resnet20 nn.resnet56 nn.resnet18 nn.resnet34 nn.resnet50
nn.Config nn.grid_chains nn.load_weights nn.load_model nn.make_data nn.loaded_samples nn.with_output
"""


@pytest.mark.parametrize("name", PUBLIC.split())
def test_public_names(name):
    """What users write stays where it is, whatever walls are moved."""
    found = sdgpu
    for part in name.split("."):
        found = getattr(found, part)
    assert found.__doc__


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
    ],
)
def test_names_on_pages_exist(page):
    """Every `sdgpu.name` and every file that the pages speak of."""
    text = (ROOT / page).read_text()
    for name in set(re.findall(r"\bsdgpu((?:\.[A-Za-z_]\w*)+)", text)):
        found = sdgpu
        for part in name.split(".")[1:]:
            if not hasattr(found, part):
                __import__(f"{found.__name__}.{part}")
            found = getattr(found, part)
    names = set(re.findall(r"`((?:\w+/)*\w+\.py)`", text))
    for start, middle in re.findall(r"`((?:\w+/)*)\{([\w,]+)\}\.py`", text):
        names |= {f"{start}{one}.py" for one in middle.split(",")}
    for name in names:
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name
