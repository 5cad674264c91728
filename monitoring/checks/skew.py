"""Skew: the features that a version was given online, against the offline values of that moment.

Each value of a logged vector whose features were looked up is equal, stale (late as promised) or
mismatched (docs/monitoring.md says when).
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from core.monitoring_spec import Monitoring
from core.settings import Settings
from core.spec import MISSING, Entity, entity_of
from core.timestamps import microseconds
from feature_repo.arrivals import arrivals
from feature_repo.definition import Dataset
from feature_repo.parity import same
from feature_repo.service import PublishedService
from mlflow_server.registry import Registry
from mlflow_server.served_model import ServedModel
from monitoring.checks.result import CheckResult, Status
from monitoring.collect import predictions
from monitoring.run import MonitoringRun, Reference
from monitoring.window import LENGTH

STORED = ("online", "partly")
"""Origins of vectors that are compared: a row that is absent online may be there offline."""
VECTOR = ["entity", "request_data", "as_of", "received", "features"]
NEWEST_FIRST = [("received", "descending")]
WINDOW_END_DELAY = timedelta(seconds=2)
"""How long after its end a window may be online as it was before (docs/monitoring.md)."""


@dataclass
class Vector:
    """What was logged of one request. differs: offline value by feature, as far as unexplained."""

    key: Entity
    at: datetime
    received: datetime
    logged: Mapping[str, Any]
    request_data: Mapping[str, Any]
    differs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """The offline side of what a version was given."""

    settings: Settings
    datasets: Sequence[Dataset]
    served: ServedModel
    limits: Monitoring

    @property
    def stale(self) -> timedelta:
        return timedelta(hours=self.limits.stale_hours)

    @property
    def ahead(self) -> timedelta:
        return timedelta(seconds=self.limits.ahead_seconds)

    def unlike(
        self, vectors: Sequence[Vector], delay: timedelta
    ) -> Iterator[dict[str, Any]]:
        """By feature, the offline values of `delay` earlier that each vector was not given."""
        names = list(self.served.features)
        if not vectors:
            return
        frame = pd.DataFrame(
            [{**vector.key, **vector.request_data} for vector in vectors]
        )
        moments = [vector.at - delay for vector in vectors]
        frame["event_timestamp"] = pd.to_datetime(moments, utc=True)
        frame["as_of"] = [microseconds(vector.at) for vector in vectors]
        frame["position"] = range(len(vectors))
        service = PublishedService(self.settings, self.served.feature_service)
        rows = service.historical(frame).sort_by("position").select(names)
        for vector, row in zip(vectors, rows.to_pylist(), strict=True):
            yield {
                name: value
                for name, value in zip(row, map(_finite, row.values()), strict=True)
                if not same(value, _unless_missing(vector.logged[name]))
            }


def skew(run: MonitoringRun, _reference: Reference | None) -> Iterator[CheckResult]:
    """Compare what the version was given in the 24 hours of the window."""
    spec, predicted = run.spec, predictions(run.settings)
    logged = (
        (pc.field("model") == spec.name)
        & (pc.field("version") == run.version)
        & (pc.field("received") > run.as_of - LENGTH)
        & (pc.field("received") <= run.as_of)
    )
    # By name first: vectors of all would take more memory than all else of a run.
    requests = predicted.read(
        columns=["request_id", "received", "features_from"], where=logged
    )
    origins = requests["features_from"].value_counts().to_pylist()
    excluded = Counter[str]({origin["values"]: origin["counts"] for origin in origins})
    looked_up = sum(excluded.pop(origin, 0) for origin in STORED)
    online = requests.filter(pc.field("features_from").isin(STORED))
    chosen = sample(online, spec.monitoring.skew_vectors)["request_id"].combine_chunks()
    rows = predicted.read(
        columns=VECTOR, where=logged & pc.field("request_id").isin(chosen)
    )
    vectors = list[Vector]()
    if len(rows):
        registry = Registry(run.settings)
        served, _ = registry.served(registry.version(spec.name, run.version))
        service = PublishedService(run.settings, served.feature_service)
        datasets = list(service.datasets().values())
        audit = Audit(run.settings, datasets, served, spec.monitoring)
        vectors = read(rows, served)
        excluded["other_features"] = len(rows) - len(vectors)
        for outcome, count in classify(audit, vectors).items():
            yield CheckResult(f"skew_{outcome}", count)
    status: Status = "ok" if vectors else "unknown"
    yield CheckResult("skew_vectors", len(vectors), status=status, kind="skew")
    for name, count in (+excluded).items():
        yield CheckResult(f"skew_excluded_{name}", count)
    if len(rows) < looked_up:
        text = f"skew: {len(rows)} of {looked_up} vectors were looked at"
        yield CheckResult("skew_sample", status="remark", remark=text)
    yield from mismatches(run.version, vectors)


def mismatches(version: str, vectors: Sequence[Vector]) -> Iterator[CheckResult]:
    """One alert of each feature, by an incident that is the same as long as it lasts."""
    for name in sorted({name for vector in vectors for name in vector.differs}):
        newest, *others = (vector for vector in vectors if name in vector.differs)
        entity = ", ".join(f"{column} {value}" for column, value in newest.key.items())
        values = f"online {newest.logged[name]!r}, offline {newest.differs[name]!r}"
        remark = (
            f"skew of {name}: {entity} at {newest.at:%Y-%m-%d %H:%M:%S} UTC: {values}"
        )
        remark += f"; and {len(others)} more" if others else ""
        incident = f"skew of version {version}: {name}"
        yield CheckResult(
            f"skew_of_{name}",
            len(others) + 1,
            0,
            "alert",
            remark,
            "skew",
            name,
            incident,
        )


def sample(rows: pa.Table, most: int) -> pa.Table:
    """At most so many: the newest half, newest first, and as many others by fixed seed."""
    order, half = pc.sort_indices(rows, NEWEST_FIRST).to_numpy(), most // 2
    if len(order) > most:
        others = np.random.default_rng(0).choice(order[half:], half, replace=False)
        order = np.concatenate([order[:half], others])
    return rows.take(order)


def read(rows: pa.Table, served: ServedModel) -> list[Vector]:
    """Vectors of the version's own keys and features, newest first."""
    vectors = list[Vector]()
    for row in rows.sort_by(NEWEST_FIRST).to_pylist():
        logged, given = json.loads(row["features"]), json.loads(row["request_data"])
        with suppress(KeyError, TypeError, ValueError):
            key = entity_of(served.entity_key, row["entity"])
            data = {
                n: _read(kind, given[n])
                for n, kind in served.lookup.request_data.items()
            }
            if logged.keys() == served.features.keys():
                logged = {
                    n: _read(kind, logged[n]) for n, kind in served.features.items()
                }
                vectors.append(Vector(key, row["as_of"], row["received"], logged, data))
    return vectors


def classify(audit: Audit, vectors: list[Vector]) -> dict[str, int]:
    """Count values by outcome; what is left in `differs` of each vector is mismatched.

    Raises:
        DataError: the offline values, or the raw rows, cannot be read.

    """
    offline = audit.unlike(vectors, timedelta(0))
    for vector, values in zip(vectors, offline, strict=True):
        vector.differs = values
    differing = sum(len(vector.differs) for vector in vectors)
    different = [vector for vector in vectors if vector.differs]
    if different:
        explain_by_arrivals(audit, different)
    unexplained = [vector for vector in different if vector.differs]
    explain_by_window_ends(audit, unexplained)
    mismatched = sum(len(vector.differs) for vector in unexplained)
    return {
        "equal": len(vectors) * len(audit.served.features) - differing,
        "stale": differing - mismatched,
        "mismatched": mismatched,
    }


def explain_by_arrivals(audit: Audit, vectors: list[Vector]) -> None:
    """Clear vectors of entities with a row that the online store could not, or need not, have."""
    moments = [vector.at + audit.ahead for vector in vectors]
    service = PublishedService(audit.settings, audit.served.feature_service)
    for dataset in audit.datasets:
        others = service.join_keys.keys() - dataset.views.keys()
        entities = [vector.key[dataset.entity] for vector in vectors]
        spans = arrivals(audit.settings, dataset, entities, moments)
        for vector, span in zip(vectors, spans, strict=True):
            if span is None:
                continue
            first, last = span
            due = vector.received - audit.stale
            # Before its first rows came an entity had no values, so late ones explain none.
            if last > vector.received or first <= due < last:
                differs = vector.differs.items()
                vector.differs = {
                    name: value
                    for name, value in differs
                    if service.feature_views[name] in others
                }


def explain_by_window_ends(audit: Audit, vectors: list[Vector]) -> None:
    """Clear values that the entity had until a window ended just before the vector was read."""
    earlier_values = audit.unlike(vectors, WINDOW_END_DELAY)
    for vector, unlike in zip(vectors, earlier_values, strict=True):
        vector.differs = {
            n: value for n, value in vector.differs.items() if n in unlike
        }


def _read(kind: str, logged: Any) -> Any:
    """Return a value of a type as it was before it was logged."""
    is_time = kind == "timestamp" and logged is not None
    return datetime.fromisoformat(logged) if is_time else logged


def _unless_missing(logged: Any) -> Any:
    return None if logged == MISSING else logged


def _finite(value: Any) -> Any:
    """As the log has it: a number that is none, or infinite, is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
