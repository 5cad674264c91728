"""A window: the last prediction of each entity in 24 hours."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from core.settings import Settings
from mlflow_server.roles import RoleAssignment
from monitoring.log.tables import query_log
from training.evaluation.psi import SCORE
from training.evaluation.reference import PREDICTED_CLASS

WINDOW_LENGTH = timedelta(hours=24)
TEXTS = {"string", "timestamp"}
"""Types of features whose values are texts in the log."""
BATCH_ROWS = 100_000
REASONS = """
CREATE TEMP VIEW answers AS
SELECT *, CASE
    WHEN version <> getvariable('version') THEN 'of another version'
    WHEN NOT in_population THEN 'outside the population'
    WHEN entity IS NULL THEN 'without an entity'
    WHEN features_from = 'defaults' THEN 'answered from defaults' END AS reason
FROM logged WHERE error IS NULL"""
LAST_ANSWERS = """
SELECT given.*, score, TRY_CAST(prediction AS INTEGER) AS position, given IS NOT NULL AS fits
FROM (
  SELECT *, coalesce(probability, prediction) AS score,
    TRY(json_transform_strict(features, getvariable('types'))) AS given
  FROM answers WHERE place IN (
    SELECT place FROM answers WHERE reason IS NULL
    QUALIFY row_number() OVER (PARTITION BY entity ORDER BY received DESC, place DESC) = 1))"""
"""If an entity has several answers of one moment, the later row is its last. `given` is null where
the JSON lacks a feature, or has a text in place of a number."""
REASON_COUNTS = "SELECT reason, count(*) FROM answers GROUP BY reason"


@dataclass(frozen=True)
class Window:
    """The last answer of a version to each entity.

    Attributes:
        rows: Features and `score`, a row for each entity of the population. The score is the
            predicted probability or number. With more than two classes it is the probability of
            the column `predicted_class`. A number is a float (null: nan), a text an object (null:
            None).
        left_out: Number of predictions that do not count, by reason.

    """

    rows: pd.DataFrame
    left_out: dict[str, int]


def feature_types(features: Mapping[str, str]) -> str:
    """Return the types of features in the log's JSON, as DuckDB's `json_transform` takes them."""
    types = {
        name: "VARCHAR" if kind in TEXTS else "DOUBLE"
        for name, kind in features.items()
    }
    return json.dumps(types)


def read_window(
    settings: Settings,
    model: RoleAssignment,
    version: str,
    features: Mapping[str, str],
    until: datetime,
    classes: Sequence[str] = (),
) -> Window:
    """Read the last answer of a version to each entity in 24 hours.

    Args:
        settings: Settings of the installation.
        model: The model.
        version: The version.
        features: Types of the version's features, by name.
        until: End of the window.
        classes: Names of the classes, where there are more than two.

    """
    with query_log(settings, model, until - WINDOW_LENGTH, until) as connection:
        connection.execute("SET VARIABLE version = $1", [version])
        connection.execute("SET VARIABLE types = $1", [feature_types(features)])
        connection.execute(REASONS)
        rows, misfit_count = _last_answers(connection)
        left_out = dict(connection.execute(REASON_COUNTS).fetchall())
    last_count = len(rows) + misfit_count
    left_out["replaced by a later prediction"] = left_out.pop(None, 0) - last_count
    left_out["with other features"] = misfit_count
    left_out = {reason: count for reason, count in left_out.items() if count}
    # Under the same name: a column is freed as it is converted only if nothing else refers to it.
    rows = rows.rename_columns([*features, SCORE, PREDICTED_CLASS])
    frame: pd.DataFrame = rows.to_pandas(split_blocks=True, self_destruct=True)
    positions = frame.pop(PREDICTED_CLASS)
    if classes:
        frame[PREDICTED_CLASS] = np.array(classes, object)[positions]
    return Window(frame, left_out)


def _last_answers(connection: duckdb.DuckDBPyConnection) -> tuple[pa.Table, int]:
    """Return the last answer to each entity, and the number of answers with other features."""
    reader = connection.execute(LAST_ANSWERS).to_arrow_reader(BATCH_ROWS)
    misfit_count = 0
    batches: list[pa.RecordBatch] = []
    for batch in reader:
        # A copy: a column of a batch from DuckDB keeps all other columns in memory.
        fitting = batch.filter(batch["fits"]).drop_columns("fits")
        misfit_count += len(batch) - len(fitting)
        batches.append(fitting)
    schema = reader.schema.remove(reader.schema.get_field_index("fits"))
    return pa.Table.from_batches(batches, schema), misfit_count
