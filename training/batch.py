"""Batch scores: predictions of the version in production for the whole population, by day.

They are a Delta table, partitioned by model and day (UTC) of `as_of`. A day is replaced in one
commit, so that a run that is killed and repeated leaves each entity once.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
from pydantic_core import to_json

from core.errors import NoChampionError
from core.settings import Settings
from core.spec import ModelSpec, entity_text
from core.tables.table import Table
from mlflow_server.api.registry import Registry
from mlflow_server.model.pyfunc import read_version
from training.data.frame import TIME_TYPE, population
from training.model.scoring import as_trained, version_scores

SCORES = pa.schema(
    {
        "model": pa.string(),
        "day": pa.string(),
        "entity": pa.string(),
        "version": pa.string(),
        "created": pa.int64(),
        "as_of": TIME_TYPE,
        "probability": pa.float64(),
        "prediction": pa.float64(),
        "probabilities": pa.list_(pa.float64()),
        "features": pa.string(),
    }
)
"""Columns of a score. `day` is the day of `as_of`, like 2026-11-20; `entity` is text, `features` is
JSON; a prediction has the columns of table `predictions`; `created` comes from
`mlflow_server.roles.RoleAssignment`."""
PARTITION = ("model", "day")


@dataclass(frozen=True)
class BatchReport:
    """The scores that were written."""

    model: str
    as_of: datetime
    version: str
    rows: int

    def summary(self) -> str:
        return (
            f"{self.model} version {self.version}: {self.rows} entities scored as of "
            f"{self.as_of:%Y-%m-%d %H:%M} UTC"
        )


def scores(settings: Settings) -> Table:
    return Table(settings, "scores", SCORES)


def score_population(
    settings: Settings, spec: ModelSpec, as_of: datetime
) -> BatchReport:
    """Score every member of the population at `as_of`, with features as they were then.

    Features and threshold come from the version, not from today's spec.

    Raises:
        NoChampionError: Nothing is in production.

    """
    registry = Registry(settings)
    version = registry.production(spec.name)
    if version is None:
        raise NoChampionError(
            f"{spec.name}: nothing is in production to score with; run: {spec.command}"
        )
    manifest, _ = read_version(registry, registry.version(spec.name, version))
    version_spec = as_trained(spec, manifest)
    frame = population(settings, version_spec, as_of)
    scored = version_scores(settings, version_spec, version, frame)
    row_count = frame.num_rows
    rounded = scored.rounded()
    keys = frame.select([*version_spec.entity_key]).to_pylist()
    features = frame.select([*version_spec.features]).to_pylist()
    no_values = [None] * row_count
    columns: dict[str, Any] = {
        "model": [spec.name] * row_count,
        "day": [f"{as_of:%Y-%m-%d}"] * row_count,
        "entity": [entity_text(key) for key in keys],
        "version": [version] * row_count,
        "created": [registry.assignment(spec.name).created] * row_count,
        "as_of": [as_of] * row_count,
        "probability": no_values,
        "prediction": scored.predictions.astype(float),
        "probabilities": no_values,
        # As serving logs them: JSON has no nan.
        "features": [to_json(row, inf_nan_mode="null").decode() for row in features],
    }
    if scored.task != "regression":
        columns["probability"] = rounded.top
    if scored.task == "multiclass":
        columns["probabilities"] = rounded.scores.tolist()
    scores(settings).replace(pa.table(columns, schema=SCORES), PARTITION)
    return BatchReport(spec.name, as_of, version, row_count)
