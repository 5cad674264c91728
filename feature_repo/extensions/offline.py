"""Offline store: Feast's DuckDB store, with an ASOF join for feature views that are Delta tables.

Feast's own join pairs every earlier feature row with every entity row and keeps the newest pair,
which is quadratic in rows per entity. The list of a table's files is read at every call. Where no
view is a Delta table, Feast does it all; beside one, views of parquet files are joined alike.
"""

import copy
from collections import UserDict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from feast import FileSource
from feast.data_format import DeltaFormat
from feast.infra.offline_stores import duckdb
from feast.infra.offline_stores import ibis as stock
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.repo_config import RepoConfig
from feast.transformation.python_transformation import PythonTransformation

from core.errors import DataError
from core.storage import files_at

UTC_TIME = "timestamp('UTC')"
EARLIEST = ibis.literal(datetime.min.replace(tzinfo=UTC))
LATEST = ibis.literal(datetime.max.replace(tzinfo=UTC))


class AsofOfflineStoreConfig(duckdb.DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """`offline_store` in feature_store.yaml; the stock store's other options stand.

    Args:
        cache: Folder for copies of files on S3.

    """

    type: str = "feature_repo.extensions.offline.AsofOfflineStore"
    cache: str = ""


class ViewRows(NamedTuple):
    """Rows of a view.

    Args:
        rows: Columns `_time`, `_created`, keys and features.
        keys: Column of the entity rows for each key column of `rows`.
        features: Names of the features, as the frame has them.
        ttl: How long a row holds; none or zero is for ever.

    """

    rows: ir.Table
    keys: Mapping[str, str]
    features: Sequence[str]
    ttl: timedelta | None


class AsofOfflineStore(duckdb.DuckDBOfflineStore):  # type: ignore[misc]
    """Gives what the stock store gives; ties of event and created time are arbitrary in both."""

    @classmethod
    def get_historical_features(
        cls,
        *,
        config: RepoConfig,
        feature_views: Sequence[Any],
        **options: Any,
    ) -> Any:
        """Join features to each row of an entity frame as they were at its event time."""
        stock_features = super().get_historical_features
        if not any(_is_table(view.batch_source) for view in feature_views):
            return stock_features(config=config, feature_views=feature_views, **options)
        if options.get("filter_by_created_timestamp"):  # no condition of an ASOF join
            reader = cls._source_reader(config)
            return stock.get_historical_features_ibis(
                feature_views=feature_views, **reader, **options
            )
        # Feast's job for the entity rows alone resolves on-demand views, and computes them later.
        job = stock_features(config=config, feature_views=[], **options)
        views = []
        for view in feature_views:
            rows = cls.read(config, view.batch_source)
            views.append(_view_rows(rows, view, options))
        event_time = infer_event_timestamp_from_entity_df(dict(options["entity_df"].dtypes))
        job.table = cls.join(job.table, views, event_time)
        job.on_demand_feature_views[:] = [_lazy(view) for view in job.on_demand_feature_views]
        return job

    def validate_data_source(self, config: RepoConfig, data_source: Any) -> None:
        """Validate a source of `feast apply`; say what the next ingest will refuse."""
        from feature_repo.definition_check import announce_changes  # noqa: PLC0415  (seldom)

        super().validate_data_source(config, data_source)
        announce_changes()

    @classmethod
    def pull_latest_from_table_or_query(cls, *, config: RepoConfig, **options: Any) -> Any:
        """Return the newest row of each entity between two times, both included."""
        if not _is_table(options["data_source"]):
            return super().pull_latest_from_table_or_query(config=config, **options)
        reader = cls._source_reader(config)
        return stock.pull_latest_from_table_or_query_ibis(**reader, **options)

    @staticmethod
    def read(config: RepoConfig, source: FileSource) -> ir.Table:
        """Read a Delta table, or parquet files, as they are now.

        Raises:
            DataError: The table has no rows yet, or cannot be reached.

        """
        return ibis.read_parquet(source_files(config, source))

    @staticmethod
    def join(entities: ir.Table, views: Sequence[ViewRows], event_time: str) -> ir.Table:
        """Give each entity row the newest row of each view at or before it.

        Args:
            entities: Entity rows.
            views: Rows of each view. Of rows of the same event time, the one that was created
                last counts.
            event_time: Column of the entity rows.

        Returns:
            Entity rows with features: nulls where a view has no row, or one older than its ttl.

        """
        # Over an Arrow table DuckDB has no row estimate and takes nested loops: 26 s, not 0.3.
        ibis.get_backend().raw_sql("SET asof_loop_join_threshold = 0")
        for rows, keys, features, ttl in views:
            # Equal event times are told apart inside the join: doing it before costs a sort.
            row_order = ibis.struct(
                {
                    "time": rows["_time"],
                    "created": ibis.coalesce(rows["_created"], EARLIEST),
                }
            )
            last_order = ibis.struct(
                {
                    "time": entities[event_time].cast(UTC_TIME),
                    "created": LATEST,
                }
            )
            right = rows.mutate(_order=row_order)
            left = entities.mutate(_order=last_order)
            key_pairs = [left[column] == right[key] for key, column in keys.items()]
            joined = left.asof_join(right, left["_order"] >= right["_order"], key_pairs)
            values = null_expired(
                {name: joined[name] for name in features},
                time=joined["_time"],
                moment=joined[event_time],
                ttl=ttl,
            )
            entities = joined.select(*entities.columns, **values)
        return entities

    @classmethod
    def _source_reader(cls, config: RepoConfig) -> dict[str, Any]:
        """Return the arguments that make a function of Feast's read sources by `read`."""

        def read_source(source: FileSource, _repository: str) -> ir.Table:
            return cls.read(config, source)

        return {"config": config, "data_source_reader": read_source, "data_source_writer": None}


def null_expired(
    values: dict[str, ir.Value],
    time: ir.Value,
    moment: ir.Value,
    ttl: timedelta | None,
) -> dict[str, ir.Value]:
    """Null the values of rows that are older than their time to live.

    Args:
        values: Features by name.
        time: Event time of the feature row.
        moment: Event time of the entity row.
        ttl: Time to live; none or zero is for ever.

    """
    if not ttl:
        return values
    lifetime = ibis.interval(microseconds=ttl // timedelta(microseconds=1))
    is_alive = time + lifetime >= moment
    return {name: is_alive.ifelse(value, None) for name, value in values.items()}


def source_files(config: RepoConfig, source: FileSource) -> list[str]:
    """Return the parquet files of a source; those of a Delta table are on this disk.

    Raises:
        DataError: The table has no rows yet, or cannot be reached.

    """
    if not _is_table(source):
        return [source.path]
    files = files_at(source.path, Path(config.offline_store.cache))
    if not files:
        raise DataError(f"{source.name}: no rows yet; run: gyre ingest")
    return files


def _is_table(source: Any) -> bool:
    return isinstance(source, FileSource) and isinstance(source.file_format, DeltaFormat)


def _view_rows(rows: ir.Table, view: Any, options: Mapping[str, Any]) -> ViewRows:
    """Name the columns of a view's rows as Feast does: mapped, aliased, with full names."""
    source = view.batch_source
    projection = view.projection
    rows = rows.rename({new: old for old, new in source.field_mapping.items()})
    reference = f"{projection.name_to_use()}:"
    prefix = ""
    if options.get("full_feature_names"):
        prefix = f"{projection.name_alias or view.name}__"
    features = {}
    for feature_ref in options["feature_refs"]:
        if feature_ref.startswith(reference):
            name = feature_ref.removeprefix(reference)
            features[prefix + name] = _whole_seconds(rows[name])
    join_keys = projection.join_key_map or {key.name: key.name for key in view.entity_columns}
    keys = {f"_key_{name}": rows[name] for name in join_keys}
    time = rows[source.timestamp_field].cast(UTC_TIME)
    created = ibis.null(UTC_TIME)
    if source.created_timestamp_column:
        created = rows[source.created_timestamp_column].cast(UTC_TIME)
    entity_columns = dict(zip(keys, join_keys.values(), strict=True))
    return ViewRows(
        rows=rows.select(_time=time, _created=created, **keys, **features),
        keys=entity_columns,
        features=list(features),
        ttl=view.ttl,
    )


def _whole_seconds(value: ir.Value) -> ir.Value:
    """Cut off the part of a second of a timestamp, which Feast does not store online."""
    return value.truncate("s").cast(value.type()) if value.type().is_timestamp() else value


class _Columns(UserDict[str, Any]):
    """Columns of an Arrow table as lists; each is converted when it is first read."""

    def __getitem__(self, name: str) -> Any:
        if isinstance(self.data[name], pa.ChunkedArray):
            self.data[name] = self.data[name].to_pylist()
        return self.data[name]


class _LazyTransformation(PythonTransformation):  # type: ignore[misc]
    """Converts the columns that a function reads.

    Feast converts every column of a frame; a time costs 70 times as much as a whole number.
    """

    def transform_arrow(self, pa_table: pa.Table, features: list[Any]) -> pa.Table:  # noqa: ARG002
        columns = _Columns(zip(pa_table.column_names, pa_table.columns, strict=True))
        return pa.Table.from_pydict(self.udf(columns))


def _lazy(view: Any) -> Any:
    if view.mode != "python":
        return view
    lazy_view = copy.copy(view)
    transformation = view.feature_transformation
    lazy_view.feature_transformation = _LazyTransformation(
        transformation.udf, transformation.udf_string
    )
    return lazy_view
