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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_function_of_a_file_is_in_it(page):
    """`name` in `path`, as the map from the paper to the code writes it."""
    for name, path in re.findall(r"`(\w+)` in\s+`(sdgpu/[\w/]+\.py)`", page.read_text()):
        assert re.search(rf"^(def|class) {name}\b", (ROOT / path).read_text(), re.MULTILINE), name


def test_the_map_has_every_equation():
    text = (ROOT / "docs" / "paper.md").read_text()
    numbers = set()
    for first, last in re.findall(r"\((\d+)\)(?:-\((\d+)\))?", text):
        numbers |= set(range(int(first), int(last or first) + 1))
    assert numbers >= {*range(1, 18), *range(20, 27)}
    for words in ("Theorem 4.1", "Lemma 4.2", "Theorem 4.3", "Theorem 4.5", "Theorem D.2"):
        assert words in text
    for words in ("Algorithm 1", "Figures 2-4", "Figure 5", "Appendix C", "Appendix D"):
        assert words in text


def test_the_readme_is_read_in_one_go():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200
    assert len(re.findall(r"```python", text)) >= 2
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        found = f"]({page.relative_to(ROOT)})" in text
        assert found or f"\n{page.stem}\n" in index, f"nothing leads to {page}"
    assert "](docs/index.md)" in text
