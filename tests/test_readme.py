"""Every block of Python in the README runs, in order, as one script."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_code_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    scope: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), scope)


def test_every_path_of_the_readme_exists():
    for name in re.findall(r"`((?:sdgpu|tests|benchmarks)/[\w/.]*)`", README.read_text()):
        assert (README.parent / name).exists(), name
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text()):
        assert (README.parent / name).exists(), name


def test_figures_of_the_readme_are_those_of_the_last_run():
    measured = (README.parent / "benchmarks" / "results.md").read_text().strip()
    assert measured in README.read_text(), "copy benchmarks/results.md into the README"
