"""How well the serving version still does, on outcomes that came after it was trained.

(a) logged: its own logged predictions whose outcome is known by now. Outcomes from raw data
    outrank feedback. It takes a horizon to begin, so a version seldom sees it while it serves.
(b) replay: the version scored on the snapshots that matured after the one it was evaluated on.
Both are compared with what it scored when it was evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.datasets import load_dataset
from feature_repo.engines import open_engine
from feature_repo.features import labels, open_raw, raw_table
from monitoring.verdict import worse
from stack.spec import entity_text
from training.evaluate import champion_scores
from training.frame import build_frame
from training.metrics import Scored, all_metrics, interval, resampled
from training.snapshots import month_starts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from monitoring.verdict import Finding
    from stack.settings import Settings
    from stack.spec import ModelSpec
    from training.metrics import Labels

FEWEST = 200


@dataclass(frozen=True)
class Performance:
    """Metrics on `rows` rows; `kind` is logged or replay, `about` says which rows.

    surely: the better end of a metric's 95 % interval, where it is judged by that: errors of
    numbers have heavy tails.
    """

    kind: str
    about: str
    rows: int
    metrics: dict[str, float]
    surely: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """How good what a version says of `rows` is: a frame, or rows of `predictions` with `label`."""

    performance: Performance
    rows: pa.Table
    scored: Scored


def findings(seen: Performance, evaluated: Mapping[str, float]) -> list[Finding]:
    """Each watched metric that is too much worse than when the version was evaluated."""
    return worse(seen.kind, seen.about, seen.metrics, evaluated, seen.surely)


def replay(
    settings: Settings, spec: ModelSpec, version: str, evaluated_on: datetime, as_of: datetime
) -> Performance | None:
    """As `replayed`, the metrics alone."""
    found = replayed(settings, spec, version, evaluated_on, as_of)
    return found.performance if found else None


def replayed(
    settings: Settings, spec: ModelSpec, version: str, evaluated_on: datetime, as_of: datetime
) -> Judged | None:
    """Score `version` on the newest snapshot matured after `evaluated_on`.

    None if none has, or if it says nothing: below 200 rows, or all of one label.
    """
    dataset = load_dataset(spec.dataset)
    label = dataset.labels[spec.label]
    matured = month_starts(evaluated_on, as_of - label.horizon - label.lateness)
    if not matured:
        return None
    newest = matured[-1]
    table_version = raw_table(settings, dataset).version
    rows = build_frame(settings, spec, dataset, [newest], as_of, table_version)
    if rows.num_rows < FEWEST or pc.count_distinct(rows["label"]).as_py() == 1:
        return None
    scored = champion_scores(settings, spec, version, rows)
    found = measured("replay", f"{newest:%Y-%m-%d}", rows["label"].to_numpy(), scored, spec)
    return Judged(found, rows, scored)


def logged(
    settings: Settings,
    spec: ModelSpec,
    answered: pa.Table,
    known: Mapping[str, float],
    threshold: float | None,
    as_of: datetime,
) -> Judged | None:
    """Judge logged predictions of one version by what came true; None below 200 outcomes.

    answered: rows of `predictions`. known: actuals by request (feedback); raw data outranks them.
    threshold: from which the version says 1; None if it predicts a number.
    """
    score = "prediction" if threshold is None else "probability"
    true = pa.array(actuals(settings, spec, answered, known, as_of), pa.float64())
    rows = answered.append_column("label", true).filter(pc.is_valid(true))
    if rows.num_rows < FEWEST or pc.count_distinct(rows["label"]).as_py() == 1:
        return None
    scored = Scored(rows[score].to_numpy(), threshold)
    about = f"{rows.num_rows} outcomes"
    return Judged(measured("logged", about, rows["label"].to_numpy(), scored, spec), rows, scored)


def actuals(
    settings: Settings,
    spec: ModelSpec,
    answered: pa.Table,
    known: Mapping[str, float],
    as_of: datetime,
) -> list[float | None]:
    """What came true of each row of `answered`, None where nothing is known yet; as `logged`."""
    seen = _from_raw(settings, spec, answered, as_of)
    rows = answered.select(["request_id", "entity", "as_of"]).to_pylist()
    return [
        seen.get((row["entity"], _day(row["as_of"])), known.get(row["request_id"])) for row in rows
    ]


def measured(kind: str, about: str, y: Labels, model: Scored, spec: ModelSpec) -> Performance:
    found, surely = all_metrics(y, model, spec.costs), {}
    if model.threshold is None:
        drawn = resampled(y, {kind: model}, None, spec.seed)[kind]["rmse"]
        surely = {"rmse": interval(found["rmse"], drawn).low}
    return Performance(kind, about, len(y), found, surely)


def _from_raw(
    settings: Settings, spec: ModelSpec, answered: pa.Table, as_of: datetime
) -> dict[tuple[str, datetime], float]:
    """Labels by entity and day of prediction, for the days whose labels have matured."""
    dataset = load_dataset(spec.dataset)
    label = dataset.labels[spec.label]
    latest = as_of - label.horizon - label.lateness
    days = sorted({_day(at) for at in answered["as_of"].to_pylist() if at <= latest})
    if not days:
        return {}
    connection = open_engine(settings).connection
    raw = open_raw(raw_table(settings, dataset), as_of=as_of, connection=connection)
    rows = labels(raw, label, days).to_pylist()
    return {
        (entity_text({name: row[name] for name in spec.entity_key}), row["event_timestamp"]): row[
            "label"
        ]
        for row in rows
    }


def _day(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)
