"""Names that the files of a team import: definitions, model modules and checks of their own.

`from gyre import Dataset` imports the module of `Dataset` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.settings import PROJECT
    from feature_repo.definition import Dataset, Label
    from feature_repo.windows import DECIMAL, Window, Windows, feature_view
    from monitoring.check import CheckResult
    from training.estimators import columns

__all__ = [
    "DECIMAL",
    "PROJECT",
    "CheckResult",
    "Dataset",
    "Label",
    "Window",
    "Windows",
    "columns",
    "feature_view",
]
MODULES = {
    "DECIMAL": "feature_repo.windows",
    "PROJECT": "core.settings",
    "CheckResult": "monitoring.check",
    "Dataset": "feature_repo.definition",
    "Label": "feature_repo.definition",
    "Window": "feature_repo.windows",
    "Windows": "feature_repo.windows",
    "columns": "training.estimators",
    "feature_view": "feature_repo.windows",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        names = ", ".join(__all__)
        raise AttributeError(f"gyre has no name {name!r}: it has {names}")
    return getattr(import_module(MODULES[name]), name)
