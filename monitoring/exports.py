"""Predictions and decisions in tables of a team: `to` of `[predictions]` and `[decisions]`."""

from contextlib import suppress
from dataclasses import asdict
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from core.connectors.sink import replace_days
from core.connectors.texts import TIME
from core.spec import Entity, entity_of
from feature_repo.labels import label_source
from feature_repo.published.service import ARROW
from monitoring.decisions.store import newest_decisions
from monitoring.log.actuals import newest_known, read_actuals
from monitoring.log.tables import ANSWERS, answered_rows, is_of_model, outcomes
from monitoring.run import MonitoringRun
from training.batch import as_texts, probabilities_text

SPAN = timedelta(days=2)
"""A run writes the days of rows that are younger, or whose outcome came to be known since."""
MOST_DECISIONS = 1_000
"""Largest number of decisions that a run writes: of 40 days, if it runs every hour."""
ANSWER_COLUMNS = (
    "request_id",
    "received",
    "version",
    "role",
    "probability",
    "prediction",
)
DECISIONS = pa.schema(
    {
        "model": pa.string(),
        "day": pa.date32(),
        "as_of": TIME,
        "version": pa.string(),
        "verdict": pa.string(),
        "action": pa.string(),
        "rule": pa.string(),
        "reason": pa.string(),
        "words": pa.string(),
        "entities": pa.int64(),
    }
)
"""Columns of a decision: see `DecisionRow`."""


def export(run: MonitoringRun) -> None:
    """Replace the days whose predictions, outcomes or decisions are new.

    Raises:
        DataError: A table cannot be read or written.

    """
    spec = run.newest_spec
    if spec.decisions.to:
        _export_decisions(run, spec.decisions.to)
    if spec.predictions.to:
        _export_predictions(run, spec.predictions.to)


def _export_decisions(run: MonitoringRun, to: str) -> None:
    name = run.spec.name
    decisions = newest_decisions(run.settings, name, MOST_DECISIONS)
    rows = [asdict(row) | {"day": row.as_of.date()} for row in decisions]
    table = pa.Table.from_pylist(rows, DECISIONS)
    days = table["day"].unique()
    if len(rows) == MOST_DECISIONS:
        days = days[1:]  # others of the oldest day may lie beyond
    table = table.filter(pc.is_in(table["day"], days))
    replace_days(run.settings, to, table, name, days.to_pylist())


def _export_predictions(run: MonitoringRun, to: str) -> None:
    """Write the answers of whole days, each with its outcome if that is known."""
    days = _changed_days(run)
    if not days:
        return
    is_of_days = pc.field("received").cast(pa.date32()).isin(days)
    where = is_of_model(run.model) & is_of_days
    answers = answered_rows(run.settings, where, [*ANSWERS, "request_data"])
    source = label_source(run.settings, run.spec)
    actuals, _ = read_actuals(run.spec, source, answers, run.outcomes.known, run.as_of)
    table = {
        "model": answers["model"],
        "day": answers["received"].cast(pa.date32()),
        **_keys(run, answers),
    }
    for name in ANSWER_COLUMNS:
        table[name] = answers[name]
    table["probabilities"] = as_texts(
        answers.select(["probabilities"]), probabilities_text
    )
    table["in_population"] = answers["in_population"].cast(pa.int64())
    table["actual"] = pa.array(actuals, from_pandas=True)
    replace_days(run.settings, to, pa.table(table), run.spec.name, days)


def _changed_days(run: MonitoringRun) -> list[date]:
    """Return the days (UTC) of young answers, and of answers whose outcome became known."""
    since = run.as_of - SPAN
    is_young = pc.field("received") > since
    feedback = outcomes(run.settings).read(columns=["request_id"], where=is_young)
    has_feedback = pc.field("request_id").isin(feedback["request_id"].unique())
    known_until = newest_known(label_source(run.settings, run.spec), run.as_of)
    moment = pc.field("as_of")
    has_matured = (moment > known_until - SPAN) & (moment <= known_until)
    is_changed = is_young | has_feedback | has_matured
    where = is_of_model(run.model) & is_changed
    answers = answered_rows(run.settings, where, ["received"])
    days: list[date] = answers["received"].cast(pa.date32()).unique().to_pylist()
    return days


def _keys(run: MonitoringRun, answers: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return a column for each key; an answer without an entity of the spec has none."""
    key = run.spec.entity_key
    rows: list[Entity] = []
    for text in answers["entity"].to_pylist():
        entity: Entity = {}
        with suppress(TypeError, ValueError):
            entity = entity_of(key, text)
        rows.append(entity)
    schema = pa.schema({name: ARROW[kind] for name, kind in key.items()})
    table = pa.Table.from_pylist(rows, schema)
    return {name: table[name] for name in key}
