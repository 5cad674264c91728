"""How well the serving version still does, on outcomes that came after it was trained.

(a) logged: its own logged predictions whose outcome is known by now. Outcomes from raw data
    outrank feedback. It takes a horizon to begin, so a version seldom sees it while it serves.
(b) replay: the version scored on the snapshots that matured after the one it was evaluated on.
Both are compared with what it scored when it was evaluated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.datasets import load_dataset
from feature_repo.engines import open_engine
from feature_repo.features import labels, open_raw, raw_table
from monitoring.verdict import FEWEST, WATCHED_ERRORS
from stack.spec import LOWER_IS_BETTER, entity_of, entity_text
from training.evaluate import champion_scores
from training.frame import TIME, build_frame, typed
from training.metrics import Scored, all_metrics, interval, losses, resampled
from training.snapshots import month_starts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from numpy.typing import NDArray

    from stack.settings import Settings
    from stack.spec import ModelSpec
    from training.metrics import Labels

DAY = "event_timestamp"
"""What a label is of: a snapshot, here the beginning of a day."""


@dataclass(frozen=True)
class Performance:
    """Metrics on `rows` rows; `kind` is logged or replay, `about` says which rows.

    surely: what a metric is at best. Of numbers the better end of its 95 % interval, as their
    errors have heavy tails; of classes three standard errors better.
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


def judgeable(
    spec: ModelSpec, version: str, known: Mapping[str, float], as_of: datetime
) -> pc.Expression:
    """Rows of `predictions` that `logged` can judge: `version` answered and time enough went by,
    or somebody told what came true.
    """
    own = (pc.field("model") == spec.name) & (pc.field("version") == version)
    matured = pc.field("as_of") <= _latest(spec, as_of)
    if not known:  # then files that are too young need not be opened
        return own & matured
    return own & (matured | pc.field("request_id").isin(pa.array([*known], pa.string())))


def logged(
    settings: Settings,
    spec: ModelSpec,
    answered: pa.Table,
    known: Mapping[str, float],
    threshold: float | None,
    as_of: datetime,
) -> Judged | None:
    """Judge logged predictions of one version by what came true; None below 200 outcomes.

    Of an entity the last of a day whose outcome is known counts, and nothing that was answered from
    defaults or outside the population.

    answered: rows of `predictions`, of one version, that are `judgeable`. known: actuals by
    request (feedback); raw data outranks them. threshold: from which the version says 1; None if
    it predicts a number.
    """
    score = "prediction" if threshold is None else "probability"
    usual = pc.field("in_population") & (pc.field("features_from") != "defaults")
    answered = answered.filter(usual)
    true = pa.array(actuals(settings, spec, answered, known, as_of), from_pandas=True)
    rows = _counting(answered.append_column("label", true).filter(pc.is_valid(true)))
    if rows.num_rows < FEWEST or pc.count_distinct(rows["label"]).as_py() == 1:
        return None
    scored = Scored(rows[score].to_numpy(), threshold)
    about = f"{rows.num_rows} outcomes"
    return Judged(measured("logged", about, rows["label"].to_numpy(), scored, spec), rows, scored)


def _counting(answered: pa.Table) -> pa.Table:
    """The last of each entity and day; who has no name counts with each answer."""
    rows = answered.sort_by("received")
    day, place = pc.floor_temporal(rows["as_of"], unit="day"), np.arange(rows.num_rows)
    # Who has no name is alone under its place.
    name = pc.coalesce(rows["entity"], pa.array(place).cast(pa.string()))
    each = pa.table({"named": rows["entity"].is_valid(), "name": name, "day": day, "place": place})
    last = each.group_by(["named", "name", "day"]).aggregate([("place", "max")])["place_max"]
    return rows.take(np.sort(last.to_numpy()))


def actuals(
    settings: Settings,
    spec: ModelSpec,
    answered: pa.Table,
    known: Mapping[str, float],
    as_of: datetime,
) -> NDArray[np.float64]:
    """What came true of each row of `answered`, nan where nothing is known yet; as `logged`."""
    seen = _from_raw(settings, spec, answered, as_of)
    which = pc.index_in(answered["request_id"], pa.array([*known], pa.string()))
    told = pa.array([*known.values()], pa.float64()).take(which.combine_chunks())
    return np.where(np.isnan(seen), told.to_numpy(zero_copy_only=False), seen)


def measured(kind: str, about: str, y: Labels, model: Scored, spec: ModelSpec) -> Performance:
    found = all_metrics(y, model, spec.costs)
    if model.threshold is None:
        drawn = resampled(y, {kind: model}, None, spec.seed)[kind]["rmse"]
        surely = {"rmse": interval(found["rmse"], drawn).low}
    else:
        surely = {
            name: found[name] + WATCHED_ERRORS * (-error if name in LOWER_IS_BETTER else error)
            for name, error in _errors(y, model, found).items()
        }
    return Performance(kind, about, len(y), found, surely)


def _errors(y: Labels, model: Scored, found: Mapping[str, float]) -> dict[str, float]:
    """Standard errors of the watched metrics of classes; by formula, as there may be millions.

    AUC: Hanley and McNeil (Radiology 143, 1982). F1: the delta method, over its confusion matrix
    with one hit more, as without any it would be sure to be 0.
    """
    ones, wrong, hits = found["tp"] + found["fn"], found["fp"] + found["fn"], found["tp"] + 1
    zeros, auc, f1 = len(y) - ones, found["auc"], 2 * hits / (2 * hits + wrong)
    both = auc * (1 - auc), auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    of_auc = (both[0] + (ones - 1) * both[1] + (zeros - 1) * both[2]) / (ones * zeros)
    of_f1 = (4 * hits * (1 - f1) ** 2 + wrong * f1**2) / (2 * hits + wrong) ** 2
    of_accuracy = found["accuracy"] * (1 - found["accuracy"]) / len(y)
    of_loss = float(np.var(losses(y, model))) / len(y)
    squares = {"auc": of_auc, "f1": of_f1, "accuracy": of_accuracy, "log_loss": of_loss}
    return {name: math.sqrt(max(0.0, square)) for name, square in squares.items()}


def _from_raw(
    settings: Settings, spec: ModelSpec, answered: pa.Table, as_of: datetime
) -> NDArray[np.float64]:
    """Label of each row, by its entity and the day (UTC) it is about; nan before it has matured.

    It is the day's beginning that has labels. A row of an entity of which something happened in
    that day before it was asked about (often the reason to ask) has none: its own would be another.
    """
    dataset, found = load_dataset(spec.dataset), np.full(answered.num_rows, np.nan)
    asked = pa.table({
        "place": pa.array(range(answered.num_rows)), "entity": answered["entity"],
        "owner": _owners(spec, dataset.entity, answered["entity"]),
        DAY: pc.floor_temporal(answered["as_of"], unit="day"), "at": answered["as_of"],
    }).filter(pc.less_equal(answered["as_of"], _latest(spec, as_of)))  # fmt: skip
    days = asked[DAY].unique().to_pylist()
    if not days:
        return found
    connection = open_engine(settings).connection
    raw = open_raw(raw_table(settings, dataset), as_of=as_of, connection=connection)
    known = _named(spec, typed(spec, labels(raw, dataset.labels[spec.label], sorted(days))))
    when = raw[dataset.event_time]
    within = raw.filter(when.between(min(days), pc.max(asked["at"]).as_py()))
    events = within.select(owner=within[dataset.entity].cast("string"), time=when).to_pyarrow()
    events = events.append_column(DAY, pc.floor_temporal(events["time"].cast(TIME), unit="day"))
    events = events.filter(pc.field("time") > pc.field(DAY))
    first = events.group_by(["owner", DAY]).aggregate([("time", "min")])
    rows = asked.join(known.select(["entity", DAY, "label"]), ["entity", DAY], join_type="inner")
    rows = rows.join(first, ["owner", DAY])
    rows = rows.filter(pc.field("time_min").is_null() | (pc.field("time_min") > pc.field("at")))
    found[rows["place"].to_numpy()] = rows["label"].to_numpy()
    return found


def _latest(spec: ModelSpec, as_of: datetime) -> pa.Scalar:
    """The last moment whose label is known at `as_of`."""
    label = load_dataset(spec.dataset).labels[spec.label]
    return pa.scalar(as_of - label.horizon - label.lateness, TIME)


def _owners(spec: ModelSpec, column: str, entities: pa.ChunkedArray) -> pa.Array:
    """Value, as text, of the key's column that says whose a raw row is; null where it has none."""
    if len(spec.entity_key) == 1:
        return entities.combine_chunks()
    found: list[str | None] = []
    for text in entities.to_pylist():
        try:
            found.append(str(entity_of(spec.entity_key, text)[column]))
        except (TypeError, ValueError):
            found.append(None)
    return pa.array(found, pa.string())


def _named(spec: ModelSpec, rows: pa.Table) -> pa.Table:
    """Rows with `entity` as `predictions` has it, of their key columns."""
    keys = [*spec.entity_key]
    if len(keys) == 1:
        return rows.append_column("entity", rows[keys[0]].cast(pa.string()))
    texts = map(entity_text, rows.select(keys).to_pylist())
    return rows.append_column("entity", pa.array(texts, pa.string()))
