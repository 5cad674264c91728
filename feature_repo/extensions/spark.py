"""Offline store on Spark, for GYRE_ENGINE=spark."""

from collections.abc import Sequence
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
from feast.repo_config import RepoConfig

from feature_repo.extensions.offline import (
    TIME,
    AsofOfflineStore,
    AsofOfflineStoreConfig,
    ViewRows,
    files_of,
    within,
)


class SparkOfflineStoreConfig(AsofOfflineStoreConfig):
    """`offline_store` in feature_store.yaml. master: as Spark has it."""

    type: str = "feature_repo.extensions.spark.SparkOfflineStore"
    master: str = "local[*]"


class SparkOfflineStore(AsofOfflineStore):
    """As AsofOfflineStore; Feast's own Spark store would ask for other sources."""

    @staticmethod
    def read(config: RepoConfig, source: Any) -> ir.Table:
        """Raise DataError if PySpark or Java is missing, or Spark does not start."""
        from feature_repo.engines.spark import SparkEngine  # noqa: PLC0415  (once there is work)

        connection = SparkEngine(config.offline_store.master).connection
        return connection.read_parquet(files_of(config, source))

    @staticmethod
    def join(entities: ir.Table, views: Sequence[ViewRows], event_time: str) -> ir.Table:
        """As `AsofOfflineStore.join`, without an ASOF join: by one order of time of both."""
        for rows, columns, features, ttl in views:
            keys = [f"_key_{n}" for n in range(len(columns))]
            values = {name: rows[name] for name in features}
            given = rows.select(
                *keys,
                _at=rows["_time"],
                _created=rows["_created"],
                _feature=ibis.struct({"_time": rows["_time"], **values}),
                _row=ibis.null(dt.Struct(dict(entities.schema()))),
            ).drop_null([*keys, "_at"])  # a null is no key and no time
            asking = entities.select(
                **{key: entities[column] for key, column in zip(keys, columns, strict=True)},
                _at=entities[event_time],
                _created=ibis.null(TIME),
                _feature=ibis.null(given["_feature"].type()),
                _row=ibis.struct({name: entities[name] for name in entities.columns}),
            ).cast(given.schema())
            both = _with_last_feature(given.union(asking), keys)
            feature, row = both["_feature"], both["_row"]
            values = {name: feature[name] for name in features}
            values = within(ttl, feature["_time"], row[event_time], values)
            entities = both.select(**{name: row[name] for name in entities.columns}, **values)
        return entities


def _with_last_feature(both: ir.Table, keys: Sequence[str]) -> ir.Table:
    """Entity rows (`_row`), each with the last feature row (`_feature`) of its key before it."""
    # Of one moment: features by created time, those without one first, then who asks.
    order = [
        ibis.asc(both["_at"], nulls_first=True),
        both["_row"].notnull(),
        ibis.asc(both["_created"], nulls_first=True),
    ]
    so_far = ibis.cumulative_window(group_by=keys, order_by=order)
    both = both.select("_row", _feature=both["_feature"].last().over(so_far))
    return both.filter(both["_row"].notnull())
