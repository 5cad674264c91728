"""The meaning of a version's features: their values on a frozen sample of raw rows.

The sample and the values are registered with the version. Before other definitions take effect,
the values are computed anew and compared: a refactoring that computes the same is no change.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import ibis
import pandas as pd
import pyarrow.parquet as pq
from click import ClickException

from feature_repo.datasets import load_dataset
from feature_repo.features import entities, raw_table, write_views
from feature_repo.store import FeatureStore, publish_beside
from stack.errors import DataError
from stack.moment import microseconds
from stack.spec import load_specs

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    import ibis.expr.types as ir
    import pyarrow as pa

    from feature_repo.definition import Dataset
    from mlflow_server.registry import Registry, Version
    from stack.settings import Settings

ROWS_FILE, VALUES_FILE = "definition_rows.parquet", "definition_values.parquet"
ENTITIES = 300
MOST_ROWS = 20_000
MOMENTS = 24
NAMED = 5
"""Changed features that a message names."""
SERVICE_TAG = "feature_service"
"""Tag of a version: the Feast feature service that it was trained on."""
ALLOW = "GYRE_CHANGE_LIVE_FEATURES=true"


class DefinitionChangedError(DataError, ClickException):
    """A version in a role would be served other values. Feast's command prints it as it is."""


def write_sample(
    settings: Settings,
    dataset: Dataset,
    service: str,
    key: Sequence[str],
    raw: ir.Table,
    folder: Path,
) -> pa.Table:
    """Write the rows of 300 entities of `raw`, drawn by a hash, and the features' values on them.

    key: the join keys of `service`. Returns the values: see `feature_values`.
    """
    digest = raw[dataset.entity].cast("string").hexdigest("md5")
    drawn = raw.select(dataset.entity, digest=digest).distinct().order_by("digest")
    rows = raw.semi_join(drawn.limit(ENTITIES), dataset.entity)
    newest = rows.order_by(ibis.desc(dataset.event_time), *dataset.key).limit(MOST_ROWS)
    sample = newest.to_pyarrow().cast(raw_table(settings, dataset).schema)
    values = feature_values(settings, dataset, service, key, sample)
    pq.write_table(sample, folder / ROWS_FILE)
    pq.write_table(values, folder / VALUES_FILE)
    return values


def feature_values(
    settings: Settings, dataset: Dataset, service: str, key: Sequence[str], sample: pa.Table
) -> pa.Table:
    """Compute `service` as the code defines it now, for each entity at 24 moments of the sample.

    Returns the join keys, event_timestamp, and one column `view.feature` for each feature.

    Raises:
        DataError: the code defines no such service, or a view lacks one of its features.

    """
    with TemporaryDirectory(prefix="gyre-definition-") as name:
        home = settings.model_copy(update={"home": Path(name), "engine": "duckdb"})
        raw = raw_table(home, dataset)
        raw.merge(sample, dataset.key, dataset.schema.names)
        publish_beside(home, dataset)
        write_views(home, dataset, raw)
        store = FeatureStore(home)
        views = store.feature_views(service)
        moments = pd.DataFrame({"event_timestamp": _moments(sample[dataset.event_time])})
        moments["as_of"] = [microseconds(moment) for moment in moments["event_timestamp"]]
        frame = pd.DataFrame(entities(home, dataset.views, key)).merge(moments, how="cross")
        order = [*key, "event_timestamp"]
        values = store.historical(service, frame).select([*order, *views])
    ordered = values.sort_by([(column, "ascending") for column in order])
    return ordered.rename_columns([*order, *(f"{views[name]}.{name}" for name in views)])


def check_definitions(
    settings: Settings,
    command: str,
    *,
    dataset: str | None = None,
    services: Collection[str] | None = None,
) -> None:
    """Compare every version in a role with what the code computes now.

    command: what to repeat with the explicit word. dataset, services: only versions that read
    this dataset, or one of these feature services.

    Raises:
        DefinitionChangedError: a version would be served other values.
        RegistryError: MLflow does not say which versions are in a role.

    """
    never_started = settings.mlflow_url is None and not (settings.home / "mlflow").exists()
    if settings.change_live_features or never_started:
        return
    from mlflow_server.registry import Registry  # noqa: PLC0415  (2 s, and seldom)

    registry = Registry(settings)
    for spec in load_specs():
        if dataset not in {None, spec.dataset}:
            continue
        for role, version in registry.in_roles(spec.name):
            service = version.tags.get(SERVICE_TAG, "")
            if services is not None and service not in services:
                continue
            changes = _changes(settings, load_dataset(spec.dataset), registry, version, service)
            if changes:
                others = f"; and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
                raise DefinitionChangedError(
                    f"version {version.version} of {version.model} ({role}) was trained with other "
                    f"feature values: {'; '.join(changes[:NAMED])}{others}. The values that it is "
                    "served stay as they are. Publish the change under new names (view and feature "
                    "service) and train with them, or take the version out of its role. To change "
                    f"what it is served: {ALLOW} {command}",
                )


def _changes(
    settings: Settings, dataset: Dataset, registry: Registry, version: Version, service: str
) -> list[str]:
    """Return one line for each feature of `version` whose values are others now."""
    with TemporaryDirectory(prefix="gyre-definition-") as name:
        folder = Path(name)
        registry.download_extra(version, (ROWS_FILE, VALUES_FILE), folder)
        sample = pq.read_table(folder / ROWS_FILE)
        before = pq.read_table(folder / VALUES_FILE)
    order = [name for name in before.column_names if "." not in name]
    key = [name for name in order if name != "event_timestamp"]
    try:
        now = feature_values(settings, dataset, service, key, sample)
    except DataError as exc:
        return [str(exc)]
    return differences(before, now, order)


def differences(before: pa.Table, now: pa.Table, order: Sequence[str]) -> list[str]:
    """Return one line for each column of `before` that has other values in `now`, or is gone.

    Rows are found by the columns `order`; floats are the same within 1e-9 of each other.
    """
    from feature_repo.parity import same  # noqa: PLC0415  (httpx, and this is seldom called)

    current = {tuple(row[name] for name in order): row for row in now.to_pylist()}
    rows = [
        (row, current.get(tuple(row[name] for name in order), {})) for row in before.to_pylist()
    ]
    lines = []
    for column in before.column_names:
        if column not in now.column_names:
            lines.append(f"{column} is gone")
            continue
        changed = [(was, new) for was, new in rows if not same(was[column], new.get(column))]
        if changed:
            was, new = changed[0]
            where = ", ".join(f"{name} {was[name]}" for name in order)
            share = f"{len(changed)} of {len(rows)} values differ"
            lines.append(f"{column}: {was[column]!r} -> {new.get(column)!r} ({where}; {share})")
    return lines


def alert_changed(
    settings: Settings, dataset: str, error: DefinitionChangedError, at: datetime
) -> None:
    """Alert as the failed task of the DAG `ingest` does: one incident, one alert."""
    from mlflow_server.alerts import alert_failure  # noqa: PLC0415  (seldom)
    from mlflow_server.records import Records  # noqa: PLC0415

    task, why = f"ingest.ingest_{dataset}", f"{type(error).__name__}: {error}"
    with closing(Records(settings)) as records:
        alert_failure(settings, records, dataset, task, why, at)


def _moments(times: pa.ChunkedArray) -> list[datetime]:
    """Return at most 24 of the event times, evenly chosen; the newest is one of them."""
    ordered = sorted(set(times.drop_null().to_pylist()), reverse=True)
    step = max(len(ordered) // MOMENTS, 1)
    return ordered[::step][:MOMENTS]
