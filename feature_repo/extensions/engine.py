"""Compute engine: Feast's local engine without a Python object per value on the way to Redis.

Plain views (a batch source, no transformation, values that `encoding` knows) take the newest row of
each entity straight from the offline store to bytes. All others go the stock way.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus
from feast.infra.compute_engines.local import compute
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob

from feature_repo.extensions import encoding
from feature_repo.extensions.online import NewestOnlineStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from feast.infra.common.materialization_job import MaterializationTask

ROWS = 32_000
"""Encoded at once, while Redis takes those before."""
WRITERS = 3
"""While one packs its commands, Redis works for the others."""


class ArrowComputeEngineConfig(compute.LocalComputeEngineConfig):  # type: ignore[misc]
    """`batch_engine` in feature_store.yaml; the stock engine's other options stand."""

    type: str = "feature_repo.extensions.engine.ArrowComputeEngine"


class ArrowComputeEngine(compute.LocalComputeEngine):  # type: ignore[misc]
    """Materialises into a NewestOnlineStore; `store.materialize` and its intervals are Feast's."""

    def _materialize_one(self, registry: Any, task: MaterializationTask, **kwargs: Any) -> Any:
        view = task.feature_view
        if not (isinstance(self.online_store, NewestOnlineStore) and _is_plain(view)):
            return super()._materialize_one(registry, task, **kwargs)
        job = f"{view.name}-{task.start_time}-{task.end_time}"
        try:
            table = self._newest(registry, task)
            if _is_encodable(view, table):
                self._write(view, table)
                return LocalMaterializationJob(job, MaterializationJobStatus.SUCCEEDED)
        except Exception as exc:  # noqa: BLE001  (Feast raises it from the job)
            return LocalMaterializationJob(job, MaterializationJobStatus.ERROR, exc)
        return super()._materialize_one(registry, task, **kwargs)

    def _newest(self, registry: Any, task: MaterializationTask) -> pa.Table:
        """One row per entity with an event between the task's times, both included."""
        view = task.feature_view
        columns = LocalFeatureBuilder(registry, task, backend=None).get_column_info(view)
        job = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=view.batch_source,
            join_key_columns=columns.join_keys,
            feature_name_columns=columns.feature_cols,
            timestamp_field=columns.ts_col,
            created_timestamp_column=columns.created_ts_col,
            start_date=task.start_time,
            end_date=task.end_time,
        )
        table, mapping = job.to_arrow(), columns.field_mapping or {}
        return table.rename_columns([mapping.get(name, name) for name in table.column_names])

    def _write(self, view: FeatureView, table: pa.Table) -> None:
        config, sent = self.repo_config, deque[Future[int]]()
        names = [feature.name for feature in view.features]
        with ThreadPoolExecutor(WRITERS) as writers:
            for keys, cells in encoded(view, table, config.project):
                if len(sent) == WRITERS:
                    sent.popleft().result()
                sent.append(
                    writers.submit(self.online_store.write, config, view, names, keys, cells)
                )
            for each in sent:
                each.result()


def encoded(
    view: FeatureView, table: pa.Table, project: str
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Parts of `table` as NewestOnlineStore.write takes them: keys of n hashes, n rows of cells."""
    for start in range(0, len(table), ROWS):
        part = table.slice(start, ROWS)
        keys = encoding.keys({k.name: _array(part, k.name) for k in view.entity_columns}, project)
        columns = [encoding.times(_array(part, view.batch_source.timestamp_field))]
        columns += [
            encoding.values(_array(part, feature.name), feature.dtype.to_value_type())
            for feature in view.features
        ]
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        yield keys.to_pylist(), list(chain.from_iterable(rows))


def _array(part: pa.Table, name: str) -> pa.Array:
    return part[name].combine_chunks()


def _is_plain(view: Any) -> bool:
    """Does the stock engine only read this view's batch source and write its newest rows online?"""
    return (
        type(view) is FeatureView
        and view.data_source is not None
        and view.data_source is view.batch_source
        and view.online
        and not view.offline
        and not view.enable_validation
    )


def _is_encodable(view: FeatureView, table: pa.Table) -> bool:
    def known(fields: Any, types: dict[Any, pa.DataType]) -> bool:
        kinds = {field.name: types.get(field.dtype.to_value_type()) for field in fields}
        return kinds.items() <= found.items()

    found = {field.name: field.type for field in table.schema}
    if not (known(view.features, encoding.ENCODED) and known(view.entity_columns, encoding.KEYS)):
        return False
    return not any(table[key.name].null_count for key in view.entity_columns)
