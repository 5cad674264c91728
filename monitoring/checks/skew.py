"""Check of skew: features that a version received online against offline values of that moment.

The check measures a share of a sample of logged vectors. `gyre parity` compares value by value.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic_core import to_jsonable_python
from scipy.stats import binomtest

from core.schedule import periods
from core.settings import Settings
from core.spec import MISSING, Entity, entity_of
from core.timestamps import microseconds
from feature_repo.datasets import dataset_of
from feature_repo.definition import KNOWN_AT
from feature_repo.engine import feature_engine
from feature_repo.published.service import PublishedService, is_same_value
from feature_repo.views import require_built
from mlflow_server.api.registry import Registry
from mlflow_server.manifest import ModelManifest
from mlflow_server.model.pyfunc import read_version
from mlflow_server.roles import RoleAssignment
from monitoring.check import CheckResult
from monitoring.log.tables import query_log
from monitoring.log.window import WINDOW_LENGTH
from monitoring.run import MonitoringRun
from training.evaluation.reference import Reference

SAMPLE_VECTORS = 1_000
WINDOW_END_DELAY = timedelta(seconds=2)
"""Delay that the online value of a window may have after its end (docs/monitoring.md)."""
LARGEST_SHARE = 0.01
"""Share of vectors with another value: the rows of an ingest may come in several steps."""
SKEW_SIGNIFICANCE = 0.001
"""The largest p at which a share counts as beyond the limit."""
SAMPLE_QUERY = f"""
SELECT entity, request_data, as_of, features FROM logged
WHERE error IS NULL AND version = $1 AND features_from IN ('online', 'partly')
ORDER BY hash(request_id) LIMIT {SAMPLE_VECTORS}"""  # noqa: S608  (ours)
"""Sample of vectors that were looked up. `partly`: a row may be absent online and there offline."""


@dataclass(frozen=True)
class Vector:
    """Logged inputs of one request."""

    key: Entity
    moment: datetime
    features: Mapping[str, Any]
    request_data: Mapping[str, Any]


def skew(run: MonitoringRun, _reference: Reference | None) -> Iterator[CheckResult]:
    """Compare a sample of the vectors that the version received in the 24 hours of the window."""
    rows = sample_rows(run.settings, run.model, run.version, run.as_of)
    if not rows:
        yield CheckResult(
            name="skew/vectors",
            kind="skew",
            status="note",
            value=0.0,
            words="no answer of the last 24 hours was from stored features",
        )
        return
    registry = Registry(run.settings)
    contract, _ = read_version(registry, registry.version(run.spec.name, run.version))
    vectors = read_vectors(rows, contract)
    service = PublishedService(run.settings, contract.feature_service)
    differing_features = compare_offline(
        service, vectors, [*contract.features], online_delays(run.settings)
    )
    yield from judge_skew(run.spec.name, run.version, differing_features)


def sample_rows(
    settings: Settings, model: RoleAssignment, version: str, until: datetime
) -> list[dict[str, Any]]:
    """Return up to SAMPLE_VECTORS rows of 24 hours whose features were looked up."""
    with query_log(settings, model, until - WINDOW_LENGTH, until) as connection:
        sample = connection.execute(SAMPLE_QUERY, [version]).to_arrow_table()
    return list(sample.to_pylist())


def read_vectors(
    rows: Sequence[Mapping[str, Any]], contract: ModelManifest
) -> list[Vector]:
    """Return the vectors of all rows that have the keys and features of a version."""
    fields = contract.lookup.request_data
    vectors: list[Vector] = []
    for row in rows:
        features = json.loads(row["features"])
        request_data = json.loads(row["request_data"])
        if not contract.features.keys() <= features.keys():
            continue
        with suppress(KeyError, TypeError, ValueError):
            vector = Vector(
                key=entity_of(contract.entity_key, row["entity"]),
                moment=row["as_of"],
                features=features,
                request_data={name: request_data[name] for name in fields},
            )
            vectors.append(vector)
    return vectors


def online_delays(settings: Settings) -> list[timedelta]:
    """Return delays that online values may have after a row has arrived or a window has ended.

    Until an ingest has ended, online values come from the previous ingest: they are one period
    late, or two if an ingest takes longer than its period.
    """
    period = min(periods(settings.ingest_schedule))
    return [timedelta(0), period, 2 * period, WINDOW_END_DELAY]


def compare_offline(
    service: PublishedService,
    vectors: Sequence[Vector],
    names: Sequence[str],
    delays: Sequence[timedelta],
) -> list[set[str]]:
    """Return the features of each vector that equal no offline value of the moment less a delay.

    A logged value is compared with the value of all rows that are known today. If it differs, it is
    compared with the value of the rows that had arrived by its moment.

    Raises:
        DataError: The offline values cannot be read.

    """
    differing_features = [set(names) for _ in vectors]
    if not vectors:
        return differing_features
    require_built(service)
    keys = pd.DataFrame([{**vector.key, **vector.request_data} for vector in vectors])
    for name, kind in service.request_data.items():
        if kind == "timestamp":
            keys[name] = pd.to_datetime(keys[name], utc=True)
    keys["as_of"] = [microseconds(vector.moment) for vector in vectors]
    keys["position"] = range(len(vectors))
    moments = pd.Series([vector.moment for vector in vectors])
    earlier_moments = [moments - delay for delay in delays]
    earlier_moments += materialised_moments(service, moments)
    for times in earlier_moments:
        frame = keys.assign(event_timestamp=times)
        offline = service.historical(frame)
        _remove_equal(differing_features, vectors, offline)
    is_open = pd.Series([bool(features) for features in differing_features])
    has_foreign_view = None in map(dataset_of, service.join_keys)
    if has_foreign_view or not is_open.any():
        return differing_features
    frames = [
        keys.assign(event_timestamp=moments - delay, **{KNOWN_AT: moments - arrival})[
            is_open
        ]
        for arrival in delays
        for delay in delays
    ]
    requested_rows = pa.Table.from_pandas(pd.concat(frames), preserve_index=False)
    offline = feature_engine().arrived_features(service, requested_rows)
    _remove_equal(differing_features, vectors, offline)
    return differing_features


def materialised_moments(
    service: PublishedService, moments: pd.Series
) -> list[pd.Series]:
    """Return up to when a team's views were materialised at each moment.

    Values come online while Feast materialises: for each view the last two ends count.
    """
    earlier_moments = []
    for view in service.stored:
        if dataset_of(view.name) is None:
            published = service.store.get_feature_view(view.name)
            intervals = published.materialization_intervals
            ends = pd.Series([end for _, end in intervals]).sort_values()
            for back in (1, 2) if len(ends) else ():
                positions = ends.searchsorted(moments, side="right") - back
                times = ends.to_numpy()[positions.clip(min=0)]
                times = pd.Series(pd.to_datetime(times, utc=True))
                earlier_moments.append(times.where(positions >= 0, moments))
    return earlier_moments


def _remove_equal(
    differing_features: Sequence[set[str]],
    vectors: Sequence[Vector],
    offline: pa.Table,
) -> None:
    """Remove the features whose offline value was logged. `position` names the vector."""
    names = sorted(set().union(*differing_features))
    # In the form in which serving logs them.
    rows = to_jsonable_python(
        offline.select(["position", *names]).to_pylist(), inf_nan_mode="null"
    )
    for row in rows:
        differing = differing_features[row["position"]]
        for name in list(differing):
            logged = vectors[row["position"]].features[name]
            if is_same_value(row[name], None if logged == MISSING else logged):
                differing.remove(name)


def judge_skew(
    model: str, version: str, differing_features: Sequence[set[str]]
) -> Iterator[CheckResult]:
    """Judge the share of vectors that differ, and name each feature beyond the limit.

    Args:
        model: Name of the model.
        version: The version in production.
        differing_features: Differing features of each vector.

    """
    vector_count = len(differing_features)
    yield CheckResult(name="skew/vectors", kind="skew", value=float(vector_count))
    if not vector_count:
        return
    share = sum(map(bool, differing_features)) / vector_count
    yield CheckResult(
        name="skew/share",
        kind="skew",
        status="note" if share > LARGEST_SHARE else "ok",
        value=share,
        limit=LARGEST_SHARE,
        words=f"{share:.1%} of {vector_count} vectors had another value online than offline",
    )
    counts = Counter(name for names in differing_features for name in names)
    for name, count in sorted(counts.items()):
        test = binomtest(count, vector_count, LARGEST_SHARE, alternative="greater")
        if test.pvalue >= SKEW_SIGNIFICANCE:
            continue
        feature_share = count / vector_count
        yield CheckResult(
            name=f"skew/{name}",
            kind="skew",
            status="alert",
            value=feature_share,
            limit=LARGEST_SHARE,
            words=(
                f"{name}: {feature_share:.1%} of {vector_count} vectors had another value online "
                "than offline"
            ),
            remedy=f"gyre parity {model}",
            feature=name,
            incident=f"skew of version {version}: {name}",
        )
