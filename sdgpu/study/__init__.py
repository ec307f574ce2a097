"""Studies: TOML files run cell by cell, real data, the paper's experiments, theory beside them, pictures.

>>> import sdgpu.study
>>> tables = {"name": "two widths", "data": {"source": "diabetes", "rows": 60}}
>>> tables["kernel"] = {"name": "gaussian", "width_over_median": [1.0, 2.0]}
>>> sdgpu.study.plan_study(sdgpu.study.read_study(tables)).fits
2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdgpu.study.grid_study.configuration import StudyConfig, read_study
    from sdgpu.study.grid_study.running import run
    from sdgpu.study.grid_study.study_cost import StudyPlan, plan_study
    from sdgpu.study.grid_study.study_results import StudyResults, open_study

__all__ = [
    "StudyConfig",
    "StudyPlan",
    "StudyResults",
    "open_study",
    "plan_study",
    "read_study",
    "run",
]

_PLACES = {
    "StudyConfig": "configuration",
    "StudyPlan": "study_cost",
    "StudyResults": "study_results",
    "open_study": "study_results",
    "plan_study": "study_cost",
    "read_study": "configuration",
    "run": "running",
}


def __getattr__(name: str) -> Any:
    """Import a study's parts when they are asked for: pydantic takes half a second."""
    if name in _PLACES:
        import importlib

        try:
            module = importlib.import_module(f"sdgpu.study.grid_study.{_PLACES[name]}")
        except ModuleNotFoundError as error:
            if error.name in ("pydantic", "pydantic_core", "pebble", "jinja2"):
                raise ImportError(
                    f"studies need {error.name}, which is not installed: pip install 'sdgpu[study]'"
                ) from error
            raise
        return getattr(module, name)
    raise AttributeError(f"module 'sdgpu.study' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
