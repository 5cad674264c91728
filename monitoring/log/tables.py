"""The tables `predictions` and `outcomes`, and the queries on them.

The table `predictions` has rows that a version answered and rows that it failed. `answered_rows`
reads only answered rows: use it for scores, features and outcomes.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from core.settings import Settings
from core.spec import ModelSpec
from core.tables.table import Table
from mlflow_server.roles import SHADOW, RoleAssignment

TIMESTAMP = pa.timestamp("us", tz="UTC")
QUERY_MEMORY = "600MB"
"""Memory that DuckDB may use for the log; beyond it, DuckDB spills to a temporary folder."""
PREDICTIONS = pa.schema(
    {
        "request_id": pa.string(),
        "model": pa.string(),
        "version": pa.string(),
        "created": pa.int64(),
        "role": pa.string(),
        "received": TIMESTAMP,
        "as_of": TIMESTAMP,
        "entity": pa.string(),
        "request_data": pa.string(),
        "features": pa.string(),
        "features_from": pa.string(),
        "probability": pa.float64(),
        "prediction": pa.float64(),
        "probabilities": pa.list_(pa.float64()),
        "in_population": pa.bool_(),
        "error": pa.string(),
        "seconds": pa.float64(),
    }
)
"""The entity is a text, request data and features are JSON: one table for models of any shape.

created: see `mlflow_server.roles.RoleAssignment`. request_id: the id that feedback names; a row of
a shadow ends in `/shadow`, a failed row in `/ROLE/error`. error: why the version failed the row,
null if it answered. seconds: time from the receipt of the request's body to the write of its log
line, null in all rows of a request but its first.
"""
ANSWERS = [
    name
    for name in PREDICTIONS.names
    if name not in ("request_data", "features", "error", "seconds")
]
"""Columns of an answer without its inputs, which are the larger part."""
NO_FILES = pa.schema(
    [*PREDICTIONS, ("file_index", pa.int64()), ("file_row_number", pa.int64())]
).empty_table()
"""The rows that DuckDB reads where the table has no files."""
LOGGED = """
CREATE TEMP VIEW logged AS
SELECT *, (file_index::BIGINT << 32) + file_row_number AS place
FROM (SELECT *, file_index, file_row_number FROM {source})
WHERE model = getvariable('model') AND created = getvariable('created') AND {span}"""
OUTCOMES = pa.schema(
    {
        "line": pa.string(),
        "request_id": pa.string(),
        "actual": pa.float64(),
        "actual_class": pa.string(),
        "received": TIMESTAMP,
    }
)
"""Every line of feedback. line: its file and number. actual_class: set where a class was named."""


@dataclass(frozen=True)
class KnownOutcomes:
    """Outcomes that are known from feedback.

    Attributes:
        known: Actual value by request. If several lines name a request, the line that was received
            first counts.
        left_out: Number of lines that do not count, by reason. A line names no model: a line of an
            unknown request is counted for every model.

    """

    known: dict[str, float]
    left_out: dict[str, int]


def predictions(settings: Settings) -> Table:
    return Table(settings, "predictions", PREDICTIONS)


def outcomes(settings: Settings) -> Table:
    return Table(settings, "outcomes", OUTCOMES)


def is_of_model(model: RoleAssignment) -> pc.Expression:
    """Return the condition that a row of `predictions` is one of a registered model."""
    return (pc.field("model") == model.name) & (pc.field("created") == model.created)


def answered_rows(
    settings: Settings,
    where: pc.Expression,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read answered rows of `predictions`.

    Args:
        settings: Settings of the installation.
        where: Condition on the rows.
        columns: Names of columns; all by default.

    """
    is_answered = pc.field("error").is_null()
    return predictions(settings).read(columns=columns, where=where & is_answered)


@contextmanager
def query_log(
    settings: Settings, model: RoleAssignment, since: datetime, until: datetime
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open DuckDB on rows of `predictions`, answered or failed, in bounded memory.

    Args:
        settings: Settings of the installation.
        model: Model whose rows are read.
        since: Rows received after this moment are read.
        until: Rows received up to this moment are read.

    Yields:
        A connection with the view `logged`. Its column `place` rises in the order of arrival.

    """
    span = f"received > '{since}' AND received <= '{until}'"
    files = predictions(settings).files(within=span)
    with (
        TemporaryDirectory(prefix="gyre-log-") as spill_folder,
        duckdb.connect(
            config={"memory_limit": QUERY_MEMORY, "temp_directory": spill_folder}
        ) as connection,
    ):
        connection.execute("SET TimeZone = 'UTC'")
        variables = {"files": files, "model": model.name, "created": model.created}
        for name, value in variables.items():
            connection.execute(f"SET VARIABLE {name} = $1", [value])
        connection.register("no_files", NO_FILES)
        source = "read_parquet(getvariable('files'))" if files else "no_files"
        connection.execute(LOGGED.format(source=source, span=span))
        yield connection


def request_of_row(row_id: str) -> str:
    """Return the id of the request that a row belongs to."""
    return re.sub(rf"(/{SHADOW}|/\w+/error)$", "", row_id)


def join_outcomes(
    settings: Settings, spec: ModelSpec, until: datetime
) -> KnownOutcomes:
    """Join feedback received up to `until` with the model's answers. A class becomes its position.

    A request that the model failed counts as unknown.
    """
    is_in_time = pc.field("received") <= until
    feedback = outcomes(settings).read(where=is_in_time).sort_by("received")
    # Answers to requests with feedback alone: there may be millions of predictions.
    is_named = pc.field("request_id").isin(feedback["request_id"].unique())
    answers = answered_rows(settings, is_named, ["request_id", "model", "received"])
    lines = feedback.to_pandas().merge(
        answers.to_pandas(), "left", "request_id", suffixes=("", "_of_answer")
    )
    lines = lines[lines["model"].isna() | (lines["model"] == spec.name)]
    positions = {name: position for position, name in enumerate(spec.classes)}
    class_positions = lines["actual_class"].map(positions).astype(float)
    lines["actual"] = lines["actual"].fillna(class_positions)
    is_of_task = lines["actual"].isin(range(len(spec.classes) or 2))
    if spec.task == "regression":
        is_of_task = lines["actual"].notna()
    is_binary = spec.task == "classification"
    reasons = {
        "of an unknown request": lines["model"].isna(),
        "dated before the prediction": lines["received"] < lines["received_of_answer"],
        "neither 0 nor 1" if is_binary else "no outcome of its task": ~is_of_task,
    }
    lines["reason"] = np.select([*reasons.values()], [*reasons], "")
    usable_lines = lines[lines["reason"] == ""]
    first_lines = usable_lines.drop_duplicates("request_id")
    actuals = first_lines.set_index("request_id")["actual"].to_dict()
    later_lines = usable_lines.drop(first_lines.index)
    repeats = later_lines["actual"] == later_lines["request_id"].map(actuals)
    later_reasons = np.where(repeats, "repeated", "contradicting the first")
    lines.loc[later_lines.index, "reason"] = later_reasons
    left_out = lines["reason"].drop(first_lines.index).value_counts()
    return KnownOutcomes(actuals, left_out.to_dict())


def logged_scores(spec: ModelSpec, answers: pa.Table) -> NDArray[np.float64]:
    """Return the scores of rows of `predictions`.

    Their shape is [N], or [N, K] with K classes. The score of a row of another task is nan.
    """
    if not spec.classes:
        name = "prediction" if spec.task == "regression" else "probability"
        return np.asarray(answers[name].to_numpy(), np.float64)
    no_scores = [np.nan] * len(spec.classes)
    rows = [row or no_scores for row in answers["probabilities"].to_pylist()]
    return np.array(rows, np.float64).reshape(-1, len(spec.classes))
