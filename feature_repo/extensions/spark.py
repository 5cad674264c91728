"""Offline store on Spark: Feast's DuckDB store reading through Spark, with a join of its own.

The helpers of that store are Ibis expressions, so they run wherever what they read is. Feast's own
Spark store would ask for other sources in the definitions, and joins as the DuckDB store does.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.datatypes as dt
from feast import FileSource
from feast.infra.offline_stores import duckdb
from feast.infra.offline_stores import ibis as feast_ibis

from feature_repo.extensions.offline import joined_by, newest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import ibis.expr.types as ir
    from feast.repo_config import RepoConfig

    from feature_repo.extensions.offline import FeatureTable, Reader

UTC = "timestamp('UTC')"


class SparkOfflineStoreConfig(duckdb.DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """`offline_store` in feature_store.yaml. master: as Spark has it."""

    type: str = "feature_repo.extensions.spark.SparkOfflineStore"
    master: str = "local[*]"


class SparkOfflineStore(duckdb.DuckDBOfflineStore):  # type: ignore[misc]
    """Same frames as AsofOfflineStore, and the newest rows for the online store."""

    @staticmethod
    def get_historical_features(*, config: RepoConfig, **asked: Any) -> Any:
        """Join features to each row of an entity frame as they were at its event time.

        Raises:
            DataError: PySpark or Java is missing, or Spark does not start.

        """
        stock = asked.get("filter_by_created_timestamp")
        join = feast_ibis.point_in_time_join if stock else latest_join
        return joined_by(join, _reader(config), {"config": config} | asked)

    @staticmethod
    def pull_latest_from_table_or_query(config: RepoConfig, **asked: Any) -> Any:
        return newest_of(_reader(config), {"config": config} | asked)


def latest_join(
    entity_table: ir.Table,
    feature_tables: Sequence[FeatureTable],
    event_timestamp_col: str,
    **_: Any,
) -> ir.Table:
    """Stand in for Feast's `point_in_time_join`: what `asof_join` gives, without an ASOF join.

    Feature and entity rows of a key are put in one order of time; an entity row takes the last
    feature row before it. One sort of both, where joining all pairs is quadratic.
    """
    found = entity_table.drop("entity_row_id")
    for rows, time, created, join_keys, names, ttl in feature_tables:
        keys = [f"_key_{n}" for n in range(len(join_keys))]
        features = rows.select(
            **{key: rows[name] for key, name in zip(keys, join_keys, strict=True)},
            _at=rows[time],
            _created=rows[created] if created else ibis.null(UTC),
            _feature=ibis.struct({"_time": rows[time], **{name: rows[name] for name in names}}),
            _row=ibis.null(dt.Struct(dict(found.schema()))),
        ).drop_null([*keys, "_at"])  # a null is no key and no time
        entities = found.select(
            **{key: found[name] for key, name in zip(keys, join_keys.values(), strict=True)},
            _at=found[event_timestamp_col],
            _created=ibis.null(UTC),
            _feature=ibis.null(features["_feature"].type()),
            _row=ibis.struct({name: found[name] for name in found.columns}),
        ).cast(features.schema())
        both = features.union(entities)
        # Of one moment: features by created time, those without one first, then who asks.
        order = [
            ibis.asc(both["_at"], nulls_first=True),
            both["_row"].notnull(),
            ibis.asc(both["_created"], nulls_first=True),
        ]
        so_far = ibis.cumulative_window(group_by=keys, order_by=order)
        both = both.select("_row", _feature=both["_feature"].last().over(so_far))
        both = both.filter(both["_row"].notnull())
        feature, row = both["_feature"], both["_row"]
        values = {name: feature[name] for name in names}
        if ttl:
            lifetime = ibis.interval(microseconds=ttl // timedelta(microseconds=1))
            fresh = feature["_time"] + lifetime >= row[event_timestamp_col]
            values = {name: fresh.ifelse(value, None) for name, value in values.items()}
        found = both.select(**{name: row[name] for name in found.columns}, **values)
    return found


def _reader(config: RepoConfig) -> Reader:
    from feature_repo.engines.spark import SparkEngine  # noqa: PLC0415  (once there is work)

    connection = SparkEngine(config.offline_store.master).connection

    def read(source: Any, repo_path: str) -> ir.Table:  # noqa: ARG001
        if not isinstance(source, FileSource):
            raise NotImplementedError(f"{source.name}: with Spark, sources are parquet files")
        return connection.read_parquet(os.path.realpath(source.path))

    return read
