"""Offline store on Spark, for GYRE_ENGINE=spark."""

from collections.abc import Sequence
from typing import Any

import ibis
import ibis.expr.types as ir
from feast.repo_config import RepoConfig

from feature_repo.extensions.offline import (
    UTC_TIME,
    AsofOfflineStore,
    AsofOfflineStoreConfig,
    ViewRows,
    null_expired,
    source_files,
)


class SparkOfflineStoreConfig(AsofOfflineStoreConfig):
    """`offline_store` in feature_store.yaml.

    Args:
        master: Address of the cluster, as Spark has it.

    """

    type: str = "feature_repo.extensions.spark.SparkOfflineStore"
    master: str = "local[*]"


class SparkOfflineStore(AsofOfflineStore):
    """Gives what AsofOfflineStore gives; Feast's own Spark store would ask for other sources."""

    @staticmethod
    def read(config: RepoConfig, source: Any) -> ir.Table:
        """Read a Delta table, or parquet files, as they are now.

        Raises:
            DataError: See `AsofOfflineStore.read`; or PySpark or Java is missing, or Spark does
                not start.

        """
        from feature_repo.engines.spark import SparkEngine  # noqa: PLC0415  (once there is work)

        engine = SparkEngine(config.offline_store.master)
        return engine.connection.read_parquet(source_files(config, source))

    @staticmethod
    def join(entities: ir.Table, views: Sequence[ViewRows], event_time: str) -> ir.Table:
        """Join as `AsofOfflineStore.join` does.

        Spark has no ASOF join: rows of both sides are put into one order of time, and an entity
        row takes the last feature row before it.
        """
        for rows, keys, features, ttl in views:
            feature = ibis.struct({name: rows[name] for name in ["_time", *features]})
            entity = ibis.struct({name: entities[name] for name in entities.columns})
            no_entity = ibis.null(entity.type())
            feature_rows = rows.select(
                *keys,
                _at=rows["_time"],
                _created=rows["_created"],
                _feature=feature,
                _entity=no_entity,
            )
            feature_rows = feature_rows.drop_null([*keys, "_at"])  # a null is no key and no time
            entity_keys = {key: entities[column] for key, column in keys.items()}
            no_feature = ibis.null(feature.type())
            entity_rows = entities.select(
                **entity_keys,
                _at=entities[event_time],
                _created=ibis.null(UTC_TIME),
                _feature=no_feature,
                _entity=entity,
            )
            timeline = feature_rows.union(entity_rows.cast(feature_rows.schema()))
            joined = _with_last_feature(timeline, list(keys))
            feature = joined["_feature"]
            entity = joined["_entity"]
            values = null_expired(
                {name: feature[name] for name in features},
                time=feature["_time"],
                moment=entity[event_time],
                ttl=ttl,
            )
            entity_values = {name: entity[name] for name in entities.columns}
            entities = joined.select(**entity_values, **values)
        return entities


def _with_last_feature(timeline: ir.Table, keys: Sequence[str]) -> ir.Table:
    """Return each entity row with the last feature row of its key before it."""
    # Of one moment: features by created time, those without one first, then entity rows.
    time = ibis.asc(timeline["_at"], nulls_first=True)
    created = ibis.asc(timeline["_created"], nulls_first=True)
    is_entity = timeline["_entity"].notnull()
    history = ibis.cumulative_window(group_by=keys, order_by=[time, is_entity, created])
    last_feature = timeline["_feature"].last().over(history)
    timeline = timeline.select("_entity", _feature=last_feature)
    return timeline.filter(timeline["_entity"].notnull())
