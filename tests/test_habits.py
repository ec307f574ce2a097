"""What the project says of itself outside of its code: versions, workflows, templates."""

import re
from pathlib import Path

import pytest
import yaml

import sdgpu

ROOT = Path(__file__).parent.parent
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)
PYTHONS = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    "path",
    [
        ".pre-commit-config.yaml",
        "CITATION.cff",
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.yml")),
    ],
)
def test_files_can_be_read(path):
    assert yaml.safe_load((ROOT / path).read_text())


def test_hosted_integration_calls_the_same_command_on_every_python():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["ci"]["strategy"]["matrix"]["python"] == PYTHONS
    assert {"run": ".ci/run"} in jobs["ci"]["steps"]


def test_hooks_have_the_versions_of_the_constraints():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = [repo["rev"] for repo in repos if "ruff" in repo["repo"]]
    assert ruff == f"v{PINNED['ruff']}"


def test_the_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sdgpu.__version__
    assert citation["preferred-citation"]["year"] == 2021


def test_the_changelog_has_an_upgrade_note_and_the_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0].startswith(sdgpu.__version__)
    assert re.search(r"^### Upgrading from \d", text, re.MULTILINE)


@pytest.mark.parametrize("folder", ["docs", "benchmarks", "tests"])
def test_no_cluster_asks_for_the_one_port_of_the_machine(folder):
    """Two that run side by side would both want the dashboard's port: the second fails."""
    for path in sorted((ROOT / folder).rglob("*")):
        if path.suffix in {".py", ".md"} and path != Path(__file__):
            clusters = re.findall(r"LocalCluster\((.*?)\)", path.read_text(), re.DOTALL)
            for arguments in filter(None, clusters):
                assert re.search(r'"127\.0\.0\.1:0"|\*\*how', arguments), path
