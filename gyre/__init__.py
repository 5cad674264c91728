"""Names for the files of a team (definitions, model modules, checks of their own), and for notebooks.

`from gyre import Dataset` imports the module of `Dataset` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.project import PROJECT
    from feature_engine.windows import DECIMAL, Window, Windows, feature_view
    from feature_repo.definition import Dataset, Label, Topic
    from gyre.notebook import (
        Comparison,
        checks,
        decisions,
        evaluate,
        evaluation,
        features,
        frame,
        ledger,
        predict,
        predictions,
    )
    from monitoring.check import CheckResult
    from training.model.estimators import columns

__all__ = [
    "DECIMAL",
    "PROJECT",
    "CheckResult",
    "Comparison",
    "Dataset",
    "Label",
    "Topic",
    "Window",
    "Windows",
    "checks",
    "columns",
    "decisions",
    "evaluate",
    "evaluation",
    "feature_view",
    "features",
    "frame",
    "ledger",
    "predict",
    "predictions",
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
NOTEBOOK = "gyre.notebook"
"""The module of all names that MODULES does not have."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        names = ", ".join(__all__)
        raise AttributeError(f"gyre has no name {name!r}: it has {names}")
    return getattr(import_module(MODULES.get(name, NOTEBOOK)), name)
