"""Every block of Python in the README and in docs/ runs, in order, as one script for each page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_exists(page):
    text = page.read_text()
    for name in re.findall(r"`((?:sdgpu|tests|benchmarks)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([^):#]+)\)", text):
        assert (page.parent / name).exists(), name


def test_the_readme_is_read_in_one_go():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200
    assert len(re.findall(r"```python", text)) >= 2
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)})" in text, "the README leads to every page"
