"""The house rules that a machine can check."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "sdgpu").rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 450, "split the file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                assert body[-1].end_lineno - body[0].lineno < 60, f"split {node.name}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_that_executes_a_file(path):
    assert not re.search(
        r"import pickle|(?<!\.)\beval\(|\bexec\(|allow_pickle=True", path.read_text()
    )


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("cupy", "cupy_backend.py"),
        ("pickle", "cifar.py"),  # an unpickler that knows no function: CIFAR is published so
        ("triton", "device_functions.py"),
    ],
)
def test_packages_have_one_home(package, home):
    pattern = re.compile(rf"^\s*(import {package}\b|from {package}\b)", re.MULTILINE)
    homes = {path.name for path in FILES if pattern.search(path.read_text())}
    assert homes == {home}


def test_matplotlib_has_one_home():
    users = {path.parent.name for path in FILES if "matplotlib" in imports(path)}
    assert users == {"pictures"}


def imports(path):
    """Packages that a file imports."""
    return set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("call", "homes"),
    [
        # what writes goes through backend/storage.py: whole or not at all, nothing left, modes by the umask
        (r"os\.replace|os\.rename|mkstemp", {"storage.py"}),
        (r"(?m)^\s*(import|from) tempfile", {"keops.py"}),  # a folder of its own to compile in
        (r"\.rename\(|\.write_text\(|shutil\.move", {"storage.py"}),
        (r"\.write_bytes\(", {"storage.py", "datafiles.py"}),
        (r"open\([^)\n]*\"[wax]b?\"", {"datafiles.py", "storage.py"}),
        (r"\.to_netcdf\(|\.to_zarr\(|open_dataset\(|open_zarr\(|h5py\.File\(", {"datafiles.py"}),
        # what reads files of others looks at sizes and types first, and has a line in test_planted.py
        (r"np\.load\(|joblib\.load|fromfile|memmap\(|loadtxt\(", set()),
        (r"torch\.load\(", {"pretrained.py", "training_files.py"}),
        (r"load_file\(|safe_open\(", {"pretrained.py", "sealed_tensors.py"}),
        (r"tarfile\.open\(", {"cifar.py"}),
        (r"ZipFile\(", {"untrusted_files.py", "pretrained.py", "training_files.py", "globe.py"}),
        (r"read_csv\(", {"datasets.py", "large_data.py", "qm9.py"}),
    ],
)
def test_files_are_opened_in_few_places(call, homes):
    found = {path.name for path in FILES if re.search(call, path.read_text())}
    assert found <= homes


def test_the_algebra_knows_no_device():
    """Of the backend it uses what checks numbers; the rest is the array API standard."""
    paths = [*(ROOT / "sdgpu/distill").glob("*.py"), ROOT / "sdgpu/solvers/spectrum.py"]
    used = {name for path in paths for name in re.findall(r"from (sdgpu[.\w]*) ", path.read_text())}
    assert {name for name in used if not name.startswith("sdgpu.distill")} <= {
        "sdgpu.backend.checks"
    }


def test_equations_can_be_found_by_their_number():
    text = "\n".join(path.read_text() for path in FILES)
    for number in range(1, 18):
        assert re.search(rf"\({number}\)|\({number}\)-|-\({number}\)", text), f"equation ({number})"


#: Loops of Triton, functions of autograd and commands: their callers decide.
FREE = {"_inner_products", "product_kernel", "_normalised"}


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name != "cli"], ids=str)
def test_signatures(path):
    """At most five positional parameters, and no boolean one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef) or node.name in FREE:
            continue
        positional = [
            a for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")
        ]
        assert len(positional) <= 5, node.name
        defaults = zip(reversed(positional), reversed(node.args.defaults), strict=False)
        flags = {a.arg for a, value in defaults if isinstance(getattr(value, "value", None), bool)}
        flags |= {a.arg for a in positional if getattr(a.annotation, "id", None) == "bool"}
        assert not flags, node.name


def test_few_lines_escape_the_formatter():
    """Tables of data alone, tests and benchmarks included."""
    every = [
        path
        for folder in ("sdgpu", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert sum(path.read_text().count("fmt: " + "skip") for path in every) <= 10


def test_clocks_decide_in_one_place():
    """Others show time, or predict it: what a fit does must not depend on what else runs."""
    readers = {
        path.name for path in FILES if re.search(r"perf_counter|monotonic\(", path.read_text())
    }
    assert readers == {
        "progress.py",  # SavePace decides
        "calibration.py",  # the seconds that a plan shows
        "environment.py",  # doctor
        "rank_watch.py",  # how long ranks wait for each other
        "shared_end.py",  # the same
        "rendezvous.py",
        "torch_ranks.py",
        "trainer.py",  # seconds of a training
        "network_runs.py",
        "compare.py",
        "cell_fit.py",  # seconds of a study: of its parts, of its cells, left
        "cell_judging.py",
        "federated_cells.py",
        "workers.py",
        "running.py",
    }
