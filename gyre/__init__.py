"""Names that the files of a team import: definitions, model modules and checks of their own.

`from gyre import Dataset` imports the module of `Dataset` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.project import PROJECT
    from feature_engine.windows import DECIMAL, Window, Windows, feature_view
    from feature_repo.definition import Dataset, Label, Topic
    from monitoring.check import CheckResult
    from training.model.estimators import columns

__all__ = [
    "DECIMAL",
    "PROJECT",
    "CheckResult",
    "Dataset",
    "Label",
    "Topic",
    "Window",
    "Windows",
    "columns",
    "feature_view",
]
MODULES = {
    "DECIMAL": "feature_engine.windows",
    "PROJECT": "core.project",
    "CheckResult": "monitoring.check",
    "Dataset": "feature_repo.definition",
    "Label": "feature_repo.definition",
    "Topic": "feature_repo.definition",
    "Window": "feature_engine.windows",
    "Windows": "feature_engine.windows",
    "columns": "training.model.estimators",
    "feature_view": "feature_engine.windows",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        names = ", ".join(__all__)
        raise AttributeError(f"gyre has no name {name!r}: it has {names}")
    return getattr(import_module(MODULES[name]), name)
