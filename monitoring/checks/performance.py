"""Performance on outcomes of today, against what the version reached when it was evaluated.

online: its logged predictions whose outcome is known by now. backfilled: the version scored on the
newest snapshots that matured after those it was evaluated on, as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from core.monitoring_spec import Monitoring
from core.settings import Settings
from core.spec import ModelSpec, entity_of
from core.training_spec import LOWER_IS_BETTER
from feature_repo.datasets import load_dataset
from feature_repo.engines import engine_connection
from feature_repo.features import labels, open_raw, raw_table
from feature_repo.service import ARROW
from monitoring.checks.result import CheckResult, Status
from monitoring.collect import logged_scores
from training.evaluate import version_scores
from training.frame import TIME, build_frame, typed
from training.metrics import Scored, all_metrics, interval, losses, resampled
from training.snapshots import dates, matured

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from monitoring.run import MonitoringRun, Reference
    from training.metrics import Labels

DAY = "event_timestamp"
"""What a label is of: a snapshot, here the beginning of a day."""
NORMAL = 1.96
"""Standard errors of a 95 % interval."""
UNMEASURED = "no snapshot matured since, too few outcomes are known"


@dataclass(frozen=True)
class Performance:
    """Metrics on `rows` rows; `kind` is online or backfilled, `about` says which rows.

    surely: the metric at the better end of its uncertainty; if this is worse, it is surely worse.
    Of numbers the end of its 95 % interval, as their errors have heavy tails; of classes three
    standard errors, of many by the bootstrap.
    intervals: 95 %, of the metrics that have one.
    """

    kind: str
    about: str
    rows: int
    metrics: dict[str, float]
    surely: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """How good what a version says of `rows` is: a frame, or rows of `predictions` with `label`."""

    performance: Performance
    rows: pa.Table
    scored: Scored


def performance(run: MonitoringRun, reference: Reference) -> Iterator[CheckResult]:
    reasons = run.unmeasured if run.unmeasured or run.judged else (UNMEASURED,)
    for reason in reasons:
        text = f"performance was not measured: {reason}"
        yield CheckResult(
            "performance", status="unknown", remark=text, kind="performance"
        )
    for judged in run.judged:
        yield from judge_performance(
            run.spec.monitoring, judged.performance, reference.evaluated
        )


def judge_performance(
    limits: Monitoring, measured: Performance, evaluated: Mapping[str, float]
) -> Iterator[CheckResult]:
    """Judge each metric that has a limit. evaluated: what it was then."""
    for metric, limit in limits.metrics.items():
        if metric not in measured.metrics:
            continue
        now, was = measured.metrics[metric], evaluated[metric]
        sign = 1 if metric in LOWER_IS_BETTER else -1
        share = (limit.worse_share or 0.0) * was
        worse = (limit.worse or 0.0) + share
        surely = sign * (measured.surely.get(metric, now) - was)
        relative = limit.worse is not None or limit.worse_share is not None
        bad = relative and sign * (now - was) >= worse and surely >= share
        expected = f"was {was:.3f}"
        if limit.at_least is not None and now < limit.at_least:
            bad, expected = True, f"at least {limit.at_least:g} is expected"
        if limit.at_most is not None and now > limit.at_most:
            bad, expected = True, f"at most {limit.at_most:g} is expected"
        text = f"{metric} {now:.3f} ({measured.kind}, {measured.about}), {expected}"
        name, most = f"{measured.kind}_{metric}", was + sign * worse
        status: Status = "bad" if bad else "ok"
        yield CheckResult(name, now, most, status, text, "performance", metric)


def measure_backfilled(
    settings: Settings,
    spec: ModelSpec,
    version: str,
    evaluated_on: datetime,
    as_of: datetime,
) -> Judged | None:
    """None if no snapshot has matured after `evaluated_on`, or if it says nothing."""
    dataset = load_dataset(spec.dataset)
    label = dataset.labels[spec.label]
    since = matured(
        spec.snapshots, evaluated_on, as_of - label.horizon - label.lateness
    )
    newest = since[-spec.snapshots.test :]
    if not newest:
        return None
    table_version = raw_table(settings, dataset).version
    rows = build_frame(settings, spec, dataset, newest, as_of, table_version)
    score = partial(version_scores, settings, spec, version, rows)
    return _judge(spec, "backfilled", dates(newest), rows, score)


def measure_online(
    settings: Settings,
    spec: ModelSpec,
    answered: pa.Table,
    known: Mapping[str, float],
    threshold: float | None,
    as_of: datetime,
) -> Judged | None:
    """Judge answers that are `judgeable`; None of too few outcomes.

    known: actuals by request (feedback); raw data outranks them. Of an entity the last of a day
    whose outcome is known counts (without an entity each), and nothing that was answered from
    defaults or outside the population.
    """
    usual = pc.field("in_population") & (pc.field("features_from") != "defaults")
    answered = answered.filter(usual).sort_by("received")
    label = pa.array(actuals(settings, spec, answered, known, as_of), from_pandas=True)
    rows = answered.append_column("label", label).filter(pc.is_valid(label))
    day = pc.floor_temporal(rows["as_of"], unit="day")
    keys = pd.DataFrame({"entity": rows["entity"].to_pandas(), "day": day.to_pandas()})
    last = keys["entity"].isna() | ~keys.duplicated(keep="last")
    rows = rows.filter(pa.array(last, pa.bool_()))
    scored, about = (
        Scored(logged_scores(spec, rows), threshold),
        f"{rows.num_rows} outcomes",
    )
    return _judge(spec, "online", about, rows, lambda: scored)


def judgeable(
    spec: ModelSpec, version: str, known: Mapping[str, float], as_of: datetime
) -> pc.Expression:
    """Rows of `predictions` by `version` whose label has matured or that feedback names."""
    own = (pc.field("model") == spec.name) & (pc.field("version") == version)
    matured = pc.field("as_of") <= _latest(spec, as_of)
    if not known:  # then files that are too young need not be opened
        return own & matured
    return own & (
        matured | pc.field("request_id").isin(pa.array([*known], pa.string()))
    )


def actuals(
    settings: Settings,
    spec: ModelSpec,
    answered: pa.Table,
    known: Mapping[str, float],
    as_of: datetime,
) -> NDArray[np.float64]:
    """What came true of each row of `answered`, as in `measure_online`; nan: not known yet."""
    told = (
        pd.Series(known, dtype=float)
        .reindex(answered["request_id"].to_pandas())
        .to_numpy()
    )
    matured = _matured_labels(settings, spec, answered, as_of)
    return np.where(np.isnan(matured), told, matured)


def measured(
    kind: str, about: str, y: Labels, model: Scored, spec: ModelSpec
) -> Performance:
    metrics = all_metrics(y, model, spec.costs)
    if model.task == "classification":
        errors = _standard_errors(y, model, metrics)
        ends = {name: NORMAL * error for name, error in errors.items()}
        intervals = {
            name: (metrics[name] - end, metrics[name] + end)
            for name, end in ends.items()
        }
    else:
        drawn = resampled(y, {kind: model}, None, spec.seed)[kind]
        errors = {name: float(np.std(values)) for name, values in drawn.items()}
        found = {
            name: interval(metrics[name], values) for name, values in drawn.items()
        }
        intervals = {name: (each.low, each.high) for name, each in found.items()}
    surely = {
        name: metrics[name]
        + spec.monitoring.metric_errors * (-error if name in LOWER_IS_BETTER else error)
        for name, error in errors.items()
    }
    if model.task == "regression":
        surely = {"rmse": intervals["rmse"][0]}
    return Performance(kind, about, len(y), metrics, surely, intervals)


def _standard_errors(
    y: Labels, model: Scored, found: Mapping[str, float]
) -> dict[str, float]:
    """By formula, as there may be millions of rows.

    AUC: Hanley and McNeil (Radiology 143, 1982). F1: the delta method, over its confusion matrix
    with one hit more, as without any it would be sure to be 0.
    """
    ones, wrong, hits = (
        found["tp"] + found["fn"],
        found["fp"] + found["fn"],
        found["tp"] + 1,
    )
    zeros, auc, f1 = len(y) - ones, found["auc"], 2 * hits / (2 * hits + wrong)
    both = auc * (1 - auc), auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    of_auc = (both[0] + (ones - 1) * both[1] + (zeros - 1) * both[2]) / (ones * zeros)
    of_f1 = (4 * hits * (1 - f1) ** 2 + wrong * f1**2) / (2 * hits + wrong) ** 2
    of_accuracy = found["accuracy"] * (1 - found["accuracy"]) / len(y)
    of_loss = float(np.var(losses(y, model))) / len(y)
    squares = {"auc": of_auc, "f1": of_f1, "accuracy": of_accuracy, "log_loss": of_loss}
    return {name: math.sqrt(max(0.0, square)) for name, square in squares.items()}


def _judge(
    spec: ModelSpec, kind: str, about: str, rows: pa.Table, score: Callable[[], Scored]
) -> Judged | None:
    different = pc.count_distinct(rows["label"]).as_py()
    if rows.num_rows < spec.monitoring.fewest or different == 1:
        return None
    scored = score()
    return Judged(
        measured(kind, about, rows["label"].to_numpy(), scored, spec), rows, scored
    )


def _matured_labels(
    settings: Settings, spec: ModelSpec, answered: pa.Table, as_of: datetime
) -> NDArray[np.float64]:
    """Label of each row, by its entity and the day (UTC) it is about; nan before it has matured.

    It is the day's beginning that has labels. A row of an entity of which something happened in
    that day before it was asked about (often the reason to ask) has none: its own would be another.
    Which of a label's own rows an answer was about nobody knows: feedback says what came true.
    """
    dataset, found = load_dataset(spec.dataset), np.full(answered.num_rows, np.nan)
    columns = {
        "place": pa.array(range(answered.num_rows), pa.int64()),
        "entity": answered["entity"],
        DAY: pc.floor_temporal(answered["as_of"], unit="day"),
        "at": answered["as_of"],
    }
    asked = pa.table(columns).filter(
        pc.less_equal(answered["as_of"], _latest(spec, as_of))
    )
    asked = asked.join(_keys(spec, asked["entity"]), "entity", join_type="inner")
    days = asked[DAY].unique().to_pylist()
    if not days or spec.snapshots.rows == "label":
        return found
    owner = dataset.entity
    with engine_connection(settings) as connection:
        raw = open_raw(raw_table(settings, dataset), as_of=as_of, connection=connection)
        label_rows = labels(raw, dataset.labels[spec.label], sorted(days))
        known = typed(spec, label_rows.to_pyarrow())
        when = raw[dataset.event_time]
        within = raw.filter(when.between(min(days), pc.max(asked["at"]).as_py()))
        key = within[owner].cast(spec.entity_key[owner])
        events = within.select(**{owner: key}, time=when).to_pyarrow()
    events = events.append_column(
        DAY, pc.floor_temporal(events["time"].cast(TIME), unit="day")
    )
    events = events.filter(pc.field("time") > pc.field(DAY))
    first = events.group_by([owner, DAY]).aggregate([("time", "min")])
    rows = asked.join(known, [*spec.entity_key, DAY], join_type="inner").join(
        first, [owner, DAY]
    )
    rows = rows.filter(
        pc.field("time_min").is_null() | (pc.field("time_min") > pc.field("at"))
    )
    found[rows["place"].to_numpy()] = rows["label"].to_numpy()
    return found


def _latest(spec: ModelSpec, as_of: datetime) -> pa.Scalar:
    """The last moment whose label is known at `as_of`."""
    label = load_dataset(spec.dataset).labels[spec.label]
    return pa.scalar(as_of - label.horizon - label.lateness, TIME)


def _keys(spec: ModelSpec, entities: pa.ChunkedArray) -> pa.Table:
    """The key columns of each `entity` that is one of the spec's."""
    rows = []
    for text in entities.unique().drop_null().to_pylist():
        with suppress(TypeError, ValueError):
            rows.append({"entity": text, **entity_of(spec.entity_key, text)})
    kinds = {name: ARROW[kind] for name, kind in spec.entity_key.items()}
    return pa.Table.from_pylist(rows, pa.schema(kinds | {"entity": pa.string()}))
