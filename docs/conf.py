"""How the documentation is built: `make docs` writes build/docs/index.html."""

from __future__ import annotations

import os
import re
from importlib.metadata import version as installed

from sphinx_gallery.sorting import ExplicitOrder, FileNameSortKey

os.environ.setdefault("OMP_NUM_THREADS", "2")

project, author, copyright = "sdgpu", "the sdgpu developers", "2026, the sdgpu developers"  # noqa: A001
version = release = installed("sdgpu")
templates_path = ["_templates"]
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["examples/*.rst", "examples/*.md"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# links that lead out of docs/, to files of the repository, and paths in text
suppress_warnings = ["myst.xref_missing", "config.cache"]

html_theme = "furo"
html_title = f"sdgpu {version}"
html_static_path, html_css_files = ["_static"], ["wide.css"]
html_theme_options = {"source_directory": "docs/", "navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "monokai"

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections say them
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": FileNameSortKey,
    "subsection_order": ExplicitOrder(["*"]),
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "reference_url": {"sdgpu": None},
    "min_reported_time": 1e9,
    "write_computation_times": False,
}


def escape(text: str) -> str:
    """What docstrings write as formulas and names, and what reStructuredText would take for markup."""
    parts = re.split(r"(``.*?``|:\w+:`[^`]*`|`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!\\)\|", r"\\|", parts[i])
        parts[i] = re.sub(r"(?<=[A-Za-z0-9])_(?![A-Za-z0-9_])", r"\\_", parts[i])
    return "".join(parts)


def escape_docstring(app, what, name, obj, options, lines) -> None:
    """Every line but those of examples and tables."""
    example = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example and not set(line.strip()) <= set("=- "):
            lines[i] = escape(line)


def setup(app) -> None:
    """Before numpydoc reads the docstrings."""
    app.connect("autodoc-process-docstring", escape_docstring, priority=100)
