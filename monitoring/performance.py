"""How well the serving version still does, on outcomes that came after it was trained.

(a) logged: its own logged predictions whose outcome is known by now. Outcomes from raw data
    outrank feedback. It takes a horizon to begin, so a version seldom sees it while it serves.
(b) replay: the version scored on the snapshots that matured after the one it was evaluated on.
Both are compared with what it scored when it was evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from feature_repo.datasets import load_dataset
from feature_repo.engines import open_engine
from feature_repo.features import labels, open_raw, raw_table
from training.evaluate import champion_scores
from training.frame import build_frame
from training.metrics import all_metrics
from training.snapshots import month_starts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import pyarrow as pa

    from stack.settings import Settings
    from stack.spec import ModelSpec

WATCHED = {"f1": 1, "auc": 1, "accuracy": 1, "log_loss": -1}
"""Metrics, and in which direction they are better."""
POINTS = 0.05
FEWEST = 200


@dataclass(frozen=True)
class Performance:
    """Metrics on `rows` rows; `kind` is logged or replay, `about` says which rows."""

    kind: str
    about: str
    rows: int
    metrics: dict[str, float]


def findings(seen: Performance, evaluated: Mapping[str, float]) -> list[str]:
    """Each watched metric that is 5 points or more worse than when the version was evaluated."""
    return [
        f"{name} {seen.metrics[name]:.3f} ({seen.kind}, {seen.about}), was {evaluated[name]:.3f}"
        for name, better in WATCHED.items()
        if better * (seen.metrics[name] - evaluated[name]) <= -POINTS
    ]


def replay(
    settings: Settings, spec: ModelSpec, version: str, evaluated_on: datetime, as_of: datetime
) -> Performance | None:
    """Score `version` on the newest snapshot matured after `evaluated_on`; None if none has."""
    dataset = load_dataset(spec.dataset)
    label = dataset.labels[spec.label]
    matured = month_starts(evaluated_on, as_of - label.horizon - label.lateness)
    if not matured:
        return None
    newest = matured[-1]
    table_version = raw_table(settings, dataset).version
    rows = build_frame(settings, spec, dataset, [newest], as_of, table_version)
    scores = champion_scores(settings, spec, version, rows)
    found = all_metrics(rows["label"].to_numpy(), scores, spec.threshold)
    return Performance("replay", f"{newest:%Y-%m-%d}", rows.num_rows, found)


def logged(
    settings: Settings,
    spec: ModelSpec,
    answered: pa.Table,
    known: Mapping[str, float],
    as_of: datetime,
) -> Performance | None:
    """Judge logged predictions of one version by what came true; None below 200 outcomes.

    answered: rows of `predictions`. known: actuals by request (feedback); raw data outranks them.
    """
    seen = _from_raw(settings, spec, answered, as_of)
    pairs = []
    for row in answered.select(["request_id", "entity", "as_of", "probability"]).to_pylist():
        actual = seen.get((row["entity"], _day(row["as_of"])), known.get(row["request_id"]))
        if actual is not None:
            pairs.append((actual, row["probability"]))
    if len(pairs) < FEWEST or len({actual for actual, _ in pairs}) == 1:
        return None
    y, p = np.array(pairs).T
    found = all_metrics(y.astype(np.int64), p, spec.threshold)
    return Performance("logged", f"{len(pairs)} outcomes", len(pairs), found)


def _from_raw(
    settings: Settings, spec: ModelSpec, answered: pa.Table, as_of: datetime
) -> dict[tuple[str, datetime], int]:
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
    return {(str(r[spec.entity_key]), r["event_timestamp"]): r["label"] for r in rows}


def _day(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)
