"""The meaning of a version's features: their values on a frozen sample of raw rows.

The sample and the values are registered with the version. Before other definitions take effect,
the values are computed anew and compared: a refactoring that computes the same is no change.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import DataError
from core.settings import Settings
from core.spec import load_specs
from core.timestamps import microseconds
from feature_repo.datasets import load_dataset
from feature_repo.definition import Dataset, table_versions
from feature_repo.engines import DuckDBEngine
from feature_repo.features import entities, open_raw, raw_table, write_views
from feature_repo.store import FeatureStore, publish_beside

if TYPE_CHECKING:
    from mlflow_server.registry import Registry, Version

ROWS_FILE, VALUES_FILE = "definition_rows_{}.parquet", "definition_values.parquet"
"""The first by dataset."""
Sample = Sequence[tuple[Dataset, pa.Table]]
ENTITIES = 300
MOST_ROWS = 20_000
MOMENTS = 24
NAMED = 5
"""Changed features that a message names."""
SERVICE_TAG = "feature_service"
"""Tag of a version: the Feast feature service that it was trained on."""


class DefinitionChangedError(DataError):
    """A version in a role would be served other values."""


def write_sample(
    settings: Settings, key: Sequence[str], tags: Mapping[str, str], folder: Path
) -> pa.Table:
    """Write rows of the datasets that a run read, and the features' values on them.

    key: the join keys of its service. tags: the run's. Returns the values: see `feature_values`.
    """
    sample, as_of = list[tuple[Dataset, pa.Table]](), datetime.fromisoformat(tags["as_of"])
    with closing(DuckDBEngine()) as engine:
        for name, version in table_versions(tags).items():
            table = raw_table(settings, dataset := load_dataset(name))
            rows = _drawn(dataset, open_raw(table, version, as_of, engine.connection))
            drawn = rows.to_pyarrow().cast(table.schema)
            sample.append((dataset, drawn.drop_columns("superseded")))  # another entity's, maybe
            pq.write_table(sample[-1][1], folder / ROWS_FILE.format(name))
    values = feature_values(settings, tags[SERVICE_TAG], key, sample)
    pq.write_table(values, folder / VALUES_FILE)
    return values


def _drawn(dataset: Dataset, raw: ir.Table) -> ir.Table:
    """Return the newest rows of 300 entities, drawn by a hash."""
    digest = raw[dataset.entity].cast("string").hexdigest("md5")
    drawn = raw.select(dataset.entity, digest=digest).distinct().order_by("digest")
    rows = raw.semi_join(drawn.limit(ENTITIES), dataset.entity)
    return rows.order_by(ibis.desc(dataset.event_time), *dataset.key).limit(MOST_ROWS)


def feature_values(
    settings: Settings, service: str, key: Sequence[str], sample: Sample, at: Sequence[Any] = ()
) -> pa.Table:
    """Compute `service` as the code defines it now, for each entity at 24 moments of the sample.

    at: the moments chosen before, as rows may have been forgotten since. Its request data is made
    up, the same at each moment. Returns the join keys, event_timestamp, and one column
    `view.feature` for each feature.

    Raises:
        DataError: the code defines no such service, or a view lacks one of its features.

    """
    columns = (rows[dataset.event_time].drop_null().to_pylist() for dataset, rows in sample)
    times = sorted({time for column in columns for time in column}, reverse=True)
    times = sorted(at, reverse=True) or times[:: max(len(times) // MOMENTS, 1)][:MOMENTS]
    moments = pd.DataFrame({"event_timestamp": times})
    moments["as_of"] = [microseconds(moment) for moment in moments["event_timestamp"]]
    with TemporaryDirectory(prefix="gyre-definition-") as name:
        home = settings.beside(Path(name), engine="duckdb")
        publish_beside(home, *(dataset for dataset, _ in sample))
        for dataset, rows in sample:
            raw = raw_table(home, dataset)
            raw.merge(rows, dataset.key, dataset.schema.names)
            write_views(home, dataset, raw)
        store = FeatureStore(home)
        views = store.feature_views(service)
        moments = moments.assign(**store.sample_request_data(service, len(moments)))
        known = entities(home, store.views(service), key)
        frame = pd.DataFrame(known, columns=[*key]).merge(moments, how="cross")
        order = [*key, "event_timestamp"]
        values = store.historical(service, frame).select([*order, *views])
    ordered = values.sort_by([(column, "ascending") for column in order])
    return ordered.rename_columns([*order, *(f"{views[name]}.{name}" for name in views)])


def check_definitions(settings: Settings, dataset: Dataset, as_of: datetime) -> None:
    """Compare every version in a role that reads `dataset` with what the code computes now.

    Raises:
        DefinitionChangedError: a version would be served other values; an alert says it too.
        RegistryError: MLflow does not say which versions are in a role.

    """
    never_started = settings.mlflow_url is None and not (settings.home / "mlflow").exists()
    if settings.change_live_features or never_started:
        return
    from mlflow_server.registry import Registry  # noqa: PLC0415  (2 s, and seldom)

    registry = Registry(settings)
    for spec in load_specs():
        for role, version in registry.in_roles(spec.name):
            if dataset.name not in (names := table_versions(version.tags)):
                continue
            if changes := _changes(settings, names, registry, version):
                others = f"; and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
                error = DefinitionChangedError(
                    f"version {version.version} of {version.model} ({role}) was trained with other "
                    f"feature values: {'; '.join(changes[:NAMED])}{others}. The values that it is "
                    "served stay as they are. Publish the change under new names (view and feature "
                    "service) and train with them, or take the version out of its role. To change "
                    f"what it is served: GYRE_CHANGE_LIVE_FEATURES=true gyre ingest {dataset.name}",
                )
                _alert(settings, dataset.name, error, as_of)
                raise error


def _changes(
    settings: Settings, datasets: Iterable[str], registry: "Registry", version: "Version"
) -> list[str]:
    """Return one line for each feature of `version` whose values are others now, or that is gone.

    Floats are the same within 1e-9 of each other.
    """
    from feature_repo.parity import same  # noqa: PLC0415  (httpx, and this is seldom called)

    with TemporaryDirectory(prefix="gyre-definition-") as name:
        folder = Path(name)
        files = {name: ROWS_FILE.format(name) for name in datasets}
        registry.download_extra(version, (*files.values(), VALUES_FILE), folder)
        rows = {name: pq.read_table(folder / file) for name, file in files.items()}
        before = pq.read_table(folder / VALUES_FILE)
    order = [name for name in before.column_names if "." not in name]
    key = [name for name in order if name != "event_timestamp"]
    try:
        service = version.tags.get(SERVICE_TAG, "")
        sample = [(load_dataset(name), drawn) for name, drawn in rows.items()]
        moments = before["event_timestamp"].unique().to_pylist()
        now = feature_values(settings, service, key, sample, moments)
    except DataError as exc:
        return [str(exc)]
    current = {tuple(row[name] for name in order): row for row in now.to_pylist()}
    old = before.to_pylist()
    pairs = [(row, current.get(tuple(row[name] for name in order), {})) for row in old]
    lines = []
    for column in before.column_names:
        changed = [(was, new) for was, new in pairs if not same(was[column], new.get(column))]
        if column not in now.column_names:
            lines.append(f"{column} is gone")
        elif changed:
            was, new = changed[0]
            where = ", ".join(f"{name} {was[name]}" for name in order)
            share = f"{len(changed)} of {len(old)} values differ"
            lines.append(f"{column}: {was[column]!r} -> {new.get(column)!r} ({where}; {share})")
    return lines


def _alert(settings: Settings, dataset: str, error: Exception, at: datetime) -> None:
    """Alert as the failed task of the DAG `ingest` does: one incident, one alert."""
    from mlflow_server.alerts import alert_failure  # noqa: PLC0415  (seldom)
    from mlflow_server.records import Records  # noqa: PLC0415

    task, why = f"ingest.ingest_{dataset}", f"{type(error).__name__}: {error}"
    with closing(Records(settings)) as records:
        alert_failure(settings, records, dataset, task, why, at)
