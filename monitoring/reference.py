"""What a version is compared with: its own newest evaluated snapshot, and what it scored there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from mlflow_server.registry import Registry
from mlflow_server.served_model import rounded
from mlflow_server.tracking import Tracking
from monitoring.drift import SCORE
from training.dataset import load_frame, load_unlabelled
from training.evaluate import as_trained, champion_scores
from training.frame import at, features
from training.gate import load_evaluation

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd

    from mlflow_server.registry import Version
    from stack.settings import Settings
    from stack.spec import FeatureType, ModelSpec
    from training.metrics import Labels


@dataclass(frozen=True)
class Reference:
    """rows: the version's features and `score` of the evaluated snapshot; evaluated: metrics on it;
    y: what came true of each row; population: `rows`, then those of members without a label, which
    windows are compared with.

    features: the types of the version's features; the spec's may be others by now.

    threshold: from which the version says 1, there and as it serves; None if it predicts a number.
    """

    rows: pd.DataFrame
    features: dict[str, FeatureType]
    snapshot: datetime
    evaluated: dict[str, float]
    threshold: float | None
    y: Labels
    population: pd.DataFrame


def load_reference(settings: Settings, spec: ModelSpec, version: Version) -> Reference:
    """Read what the version's own training run stored.

    Raises:
        RegistryError: the run, its frame or the version's files are not there (any more).

    """
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, version.run_id)
    rows = at(frame, [plan.test])
    unlabelled = load_unlabelled(tracking, version.run_id)
    own = as_trained(spec, Registry(settings).served(version)[0])
    members = pa.concat_tables([rows.drop_columns("label"), unlabelled])
    scored = champion_scores(settings, own, version.version, members)
    evaluated = load_evaluation(tracking, version.run_id).challenger
    scores = rounded(scored.scores, scored.threshold)
    population = features(own, members).assign(**{SCORE: scores})
    y = rows["label"].to_numpy()
    return Reference(
        population[: len(y)], own.features, plan.test, evaluated, scored.threshold, y, population
    )
