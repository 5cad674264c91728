"""What a version is compared with: its own newest evaluated snapshot, and what it scored there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_server.served_model import SCORE_DIGITS
from mlflow_server.tracking import Tracking
from monitoring.drift import SCORE
from training.dataset import load_frame
from training.evaluate import champion_scores
from training.frame import at, features
from training.gate import load_evaluation

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd

    from mlflow_server.registry import Version
    from stack.settings import Settings
    from stack.spec import ModelSpec


@dataclass(frozen=True)
class Reference:
    """rows: features and `score` of the evaluated snapshot; evaluated: metrics on it."""

    rows: pd.DataFrame
    snapshot: datetime
    evaluated: dict[str, float]


def load_reference(settings: Settings, spec: ModelSpec, version: Version) -> Reference:
    """Read what the version's own training run stored.

    Raises:
        RegistryError: the run, its frame or the version's files are not there (any more).

    """
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, version.run_id)
    rows = at(frame, [plan.test])
    scores = champion_scores(settings, spec, version.version, rows)
    evaluated = load_evaluation(tracking, version.run_id).challenger
    return Reference(
        features(spec, rows).assign(**{SCORE: scores.round(SCORE_DIGITS)}), plan.test, evaluated
    )
