"""The reference of a version: the rows that it was evaluated on, with its predictions.

Windows of its predictions are compared with these. The evaluation stores them; a monitoring run
reads them and scores nothing.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa

from core.errors import RegistryError
from core.settings import Settings
from core.spec import FeatureType, ModelSpec
from mlflow_server.api.registry import Registry, Version
from mlflow_server.api.tracking import Tracking
from training.artifacts import PLAN, REFERENCE, SPEC, artifact_bytes, load_table
from training.data.frame import feature_columns
from training.data.snapshots import PLANS
from training.evaluation.metrics import Scored
from training.evaluation.psi import (
    SCORE,
    TIME_COLUMN,
    UsualSpread,
    usual_spread,
    with_nulls,
)
from training.evaluation.results import load_evaluation

PREDICTED_CLASS = "predicted_class"
LABEL = "label"


@dataclass(frozen=True)
class Reference:
    """The rows and figures that windows of a version are compared with.

    Attributes:
        rows: Members of the evaluated snapshots, with or without a label: the compared features,
            `score`, for many classes `predicted_class`, and `label` (nan: none).
        features: Types of all features of the version; the spec's may be others by now.
        snapshot: Beginning of the newest evaluated snapshot.
        threshold: Threshold of the version; None for a regression and for many classes.
        evaluated: Metrics of the version on the rows with a label.
        spread: How far a normal window lies from the rows.

    """

    rows: pd.DataFrame
    features: dict[str, FeatureType]
    snapshot: datetime
    threshold: float | None
    evaluated: dict[str, float]
    spread: UsualSpread


def evaluated_members(
    spec: ModelSpec, rows: pa.Table, unlabelled: pa.Table
) -> pa.Table:
    """Return keys, time, features and label of the frame `rows`, then of the `unlabelled`."""
    columns = [*spec.entity_key, TIME_COLUMN, *spec.features]
    no_labels = pa.nulls(unlabelled.num_rows, rows.schema.field(LABEL).type)
    others = unlabelled.select(columns).append_column(LABEL, no_labels)
    return pa.concat_tables([rows.select([*columns, LABEL]), others])


def with_scores(spec: ModelSpec, members: pa.Table, scored: Scored) -> pa.Table:
    """Add the columns of a window: `score`, and for many classes `predicted_class`."""
    table = members.append_column(SCORE, pa.array(scored.rounded().top))
    if spec.classes:
        names = np.array(spec.classes, object)[scored.predictions]
        table = table.append_column(PREDICTED_CLASS, pa.array(names, pa.string()))
    return table


def measure_spread(
    spec: ModelSpec, reference: pa.Table, snapshots: pa.Table
) -> UsualSpread:
    """Return the usual spread. snapshots: rows of the newest snapshots of the training frame."""
    keys = [*spec.entity_key]
    columns = [SCORE, PREDICTED_CLASS, TIME_COLUMN, *keys]
    reference_rows = _compared_columns(spec, reference, columns)
    frame_rows = _compared_columns(spec, snapshots, columns)
    return usual_spread(reference_rows, frame_rows, keys)


def load_reference(settings: Settings, version: Version) -> Reference:
    """Read the reference that the training run of `version` stored.

    Raises:
        RegistryError: MLflow does not answer, or the run stored no reference.

    """
    tracking = Tracking(settings)
    run_id = version.run_id
    table = load_table(tracking, run_id, REFERENCE)
    spec = ModelSpec.model_validate_json(artifact_bytes(tracking, run_id, SPEC))
    plan = PLANS.validate_json(artifact_bytes(tracking, run_id, PLAN))
    evaluation = load_evaluation(tracking, run_id)
    return Reference(
        rows=_compared_columns(spec, table, [SCORE, PREDICTED_CLASS, LABEL]),
        features=spec.features,
        snapshot=plan.test[-1].start,
        threshold=evaluation.threshold,
        evaluated=evaluation.challenger,
        spread=evaluation.spread,
    )


def spec_of_version(settings: Settings, spec: ModelSpec, version: str) -> ModelSpec:
    """Return the spec that a version was trained by, with today's monitoring, rollout and serving.

    It is today's spec if the training run cannot be read.
    """
    try:
        run_id = Registry(settings).version(spec.name, version).run_id
        text = artifact_bytes(Tracking(settings), run_id, SPEC)
    except RegistryError:
        return spec
    trained = ModelSpec.model_validate_json(text)
    operation = ("monitoring", "rollout", "serving")
    return trained.model_copy(update={key: getattr(spec, key) for key in operation})


def _compared_columns(
    spec: ModelSpec, table: pa.Table, other_columns: list[str]
) -> pd.DataFrame:
    """Return the features, and the columns of `other_columns` that the table has.

    Timestamps are left out, as they always move on.
    """
    kinds = {name: kind for name, kind in spec.features.items() if kind != "timestamp"}
    rows = with_nulls(
        feature_columns(spec.model_copy(update={"features": kinds}), table)
    )
    for name in other_columns:
        if name in table.column_names:
            rows[name] = table[name].to_pandas()
    return rows
