"""Batch scores: predictions of the version in production for the population or other rows, by day.

They are a Delta table, partitioned by model and day (UTC) of `as_of`. A day is replaced in one
commit, so that a run that is killed and repeated leaves each entity once. After it, a table of the
team gets the scores, if `[scores]` names one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
from pydantic_core import to_json

from core.connectors.addresses import shown_address
from core.connectors.sink import replace_days
from core.errors import NoChampionError, NoRequestError
from core.settings import Settings
from core.spec import ModelSpec, entity_text
from core.spec.tables import LabelTable
from core.tables.table import Table
from feature_repo.published.service import ARROW
from mlflow_server.api.registry import Registry
from mlflow_server.model.pyfunc import read_version
from training.data.frame import TIME_TYPE, population
from training.data.requests import request_frame, table_rows, unlabelled_rows
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
JSON_ROWS = 10_000
"""Rows that become Python's objects at a time."""


@dataclass(frozen=True)
class BatchReport:
    """The scores that were written."""

    model: str
    as_of: datetime
    version: str
    rows: int
    to: str | None = None

    def summary(self) -> str:
        place = f", also in {self.to}" if self.to else ""
        return (
            f"{self.model} version {self.version}: {self.rows} entities scored as of "
            f"{self.as_of:%Y-%m-%d %H:%M} UTC{place}"
        )


def scores(settings: Settings) -> Table:
    return Table(settings, "scores", SCORES)


def score_population(
    settings: Settings, spec: ModelSpec, as_of: datetime, source: str | None = None
) -> BatchReport:
    """Score every member of the population at `as_of`, with features as they were then.

    Features and threshold come from the version, not from today's spec. Without a list of members,
    rows with request data are scored.

    Args:
        settings: Settings of the installation.
        spec: The model.
        as_of: Aware UTC.
        source: A table with the rows to score; None: that of `[scores]`, if it names one.

    Raises:
        NoChampionError: Nothing is in production.
        NoRequestError: No rows can be scored.
        DataError: A table cannot be read or written.

    """
    registry = Registry(settings)
    version = registry.production(spec.name)
    if version is None:
        raise NoChampionError(
            f"{spec.name}: nothing is in production to score with; run: {spec.command}"
        )
    manifest, _ = read_version(registry, registry.version(spec.name, version))
    version_spec = as_trained(spec, manifest)
    frame = _scored_rows(settings, version_spec, as_of, source)
    scored = version_scores(settings, version_spec, version, frame)
    row_count = frame.num_rows
    rounded = scored.rounded()
    keys = frame.select([*version_spec.entity_key])
    # Features, and data of requests.
    inputs = frame.drop_columns([*keys.column_names, "event_timestamp"])
    columns: dict[str, Any] = {
        "model": pa.repeat(spec.name, row_count),
        "day": pa.repeat(f"{as_of:%Y-%m-%d}", row_count),
        "entity": as_texts(keys, entity_text),
        "version": pa.repeat(version, row_count),
        "created": pa.repeat(registry.assignment(spec.name).created, row_count),
        "as_of": pa.repeat(pa.scalar(as_of, TIME_TYPE), row_count),
        "probability": pa.nulls(row_count),
        "prediction": scored.predictions.astype(float),
        "probabilities": pa.nulls(row_count),
        "features": as_texts(inputs, _json),
    }
    if scored.task != "regression":
        columns["probability"] = pa.array(rounded.top)
    if scored.task == "multiclass":
        columns["probabilities"] = pa.array(rounded.scores.tolist())
    rows = pa.table(columns).cast(SCORES)
    scores(settings).replace(rows, PARTITION)
    to = version_spec.scores.to
    if to:
        team_rows = rows_for_team(version_spec, frame, rows)
        replace_days(settings, to, team_rows, spec.name, [as_of.date()])
        to = shown_address(to)
    return BatchReport(spec.name, as_of, version, row_count, to)


def _scored_rows(
    settings: Settings, spec: ModelSpec, as_of: datetime, source: str | None
) -> pa.Table:
    """Return the frame of a table's rows, of the population, or of rows without a known label."""
    source = source or spec.scores.from_
    if source:
        rows = table_rows(source)
        return request_frame(settings, spec, rows, as_of, shown_address(source))
    hours = spec.scores.only_active_hours
    since = as_of - timedelta(hours=hours) if hours else None
    try:
        return population(settings, spec, as_of, since=since)
    except NoRequestError:
        has_own_rows = spec.snapshots.rows == "label"
        if since or not has_own_rows or isinstance(spec.label, LabelTable):
            raise
    rows = unlabelled_rows(settings, spec, as_of)
    return request_frame(settings, spec, rows, as_of, f"label {spec.label_name}")


def rows_for_team(spec: ModelSpec, frame: pa.Table, rows: pa.Table) -> pa.Table:
    """Return scores with a column for each key, as people query them.

    Args:
        spec: The model.
        frame: The rows that were scored.
        rows: Their rows of SCORES, in the same order.

    """
    columns = {"model": rows["model"], "day": rows["day"].cast(pa.date32())}
    for name in spec.entity_key:
        columns[name] = frame[name]
    columns["event_timestamp"] = frame["event_timestamp"]
    for name, kind in (spec.outcome_key or {}).items():
        no_values = pa.nulls(frame.num_rows, ARROW[kind])
        is_there = name in frame.column_names
        columns[name] = frame[name] if is_there else no_values
    for name in ("version", "as_of", "probability", "prediction"):
        columns[name] = rows[name]
    columns["probabilities"] = as_texts(
        rows.select(["probabilities"]), probabilities_text
    )
    return pa.table(columns)


def as_texts(rows: pa.Table, text_of: Callable[[Any], str | None]) -> pa.ChunkedArray:
    """Return a text for each row, in bounded memory."""
    parts = []
    for batch in rows.to_batches(max_chunksize=JSON_ROWS):
        texts = [text_of(row) for row in batch.to_pylist()]
        parts.append(pa.array(texts, pa.string()))
    return pa.chunked_array(parts, pa.string())


def _json(row: object) -> str:
    """Return JSON as serving logs it: it has no nan."""
    return to_json(row, inf_nan_mode="null").decode()


def probabilities_text(row: dict[str, Any]) -> str | None:
    """Return the probabilities of classes as JSON, as databases of every kind have texts."""
    values = row["probabilities"]
    return None if values is None else _json(values)
