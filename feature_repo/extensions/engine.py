"""Compute engine: Feast's local engine without a Python object per value on the way to Redis.

Plain views of numbers and strings take the newest row of each entity straight from the offline
store to bytes, a column at a time: serialised protobuf `Value`s, as Feast's Redis store writes
them (https://protobuf.dev/programming-guides/encoding). All other views go the stock way.
"""

import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, ValueType
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local import compute
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.types import Bool, Float32, Float64, Int32, UnixTimestamp, from_feast_to_pyarrow_type

from feature_repo.extensions.online import NewestOnlineStore, tag

ROWS = 32_000
"""Encoded at once, while Redis takes those before."""
WRITERS = 3
"""While one packs its commands, Redis works for the others."""
KEYS = {ValueType.INT64: pa.int64(), ValueType.STRING: pa.string()}
"""Feast types of join keys that are encoded here, and the Arrow type that each must have."""
PLAIN = (Bool, Float32, Float64, Int32, UnixTimestamp)
ENCODED = KEYS | {each.to_value_type(): from_feast_to_pyarrow_type(each) for each in PLAIN}
"""The same of features."""
TAGS = {arrow: tag(kind) for kind, arrow in ENCODED.items()}
"""Of the fields of feast.types.Value."""
NO_TIME = -(2**63)
"""What Feast stores of a timestamp that is null."""
SECONDS, NANOS = 0x08, 0x10
"""Tags of the fields of google.protobuf.Timestamp."""


class ArrowComputeEngineConfig(compute.LocalComputeEngineConfig):  # type: ignore[misc]
    """`batch_engine` in feature_store.yaml; the stock engine's other options stand."""

    type: str = "feature_repo.extensions.engine.ArrowComputeEngine"


class ArrowComputeEngine(compute.LocalComputeEngine):  # type: ignore[misc]
    """Materialises into a NewestOnlineStore; `store.materialize` and its intervals are Feast's."""

    def materialize(self, registry: Any, tasks: Any, **options: Any) -> list[Any]:
        tasks = [tasks] if isinstance(tasks, MaterializationTask) else tasks
        jobs = list[Any]()
        for task in tasks:
            written = self._materialised(registry, task)
            jobs += [written] if written else super().materialize(registry, task, **options)
        return jobs

    def _materialised(self, registry: Any, task: MaterializationTask) -> Any:
        """Feast's finished job, or None if the view is one for the stock engine."""
        view = task.feature_view
        if not (isinstance(self.online_store, NewestOnlineStore) and _is_plain(view)):
            return None
        job = f"{view.name}-{task.start_time}-{task.end_time}"
        try:
            table = self._newest(registry, task)
            if not is_encodable(view, table):
                return None
            self._write(view, table)
        except Exception as exc:  # noqa: BLE001  (Feast raises it from the job)
            return LocalMaterializationJob(job, MaterializationJobStatus.ERROR, exc)
        return LocalMaterializationJob(job, MaterializationJobStatus.SUCCEEDED)

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
        config, sent = self.repo_config, deque[Future[None]]()
        names = [feature.name for feature in view.features]
        with ThreadPoolExecutor(WRITERS) as writers:
            for keys, cells in encoded(view, table, config.project):
                if len(sent) == WRITERS:
                    sent.popleft().result()
                write = self.online_store.write
                sent.append(writers.submit(write, config, view, names, keys, cells))
            for each in sent:
                each.result()


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


def is_encodable(view: FeatureView, table: pa.Table) -> bool:
    """Whether `encoded` knows the types of all keys and features of `table`."""
    found = {field.name: field.type for field in table.schema}
    for fields, types in ((view.features, ENCODED), (view.entity_columns, KEYS)):
        wanted = {field.name: types.get(field.dtype.to_value_type()) for field in fields}
        if not wanted.items() <= found.items():
            return False
    return not any(table[key.name].null_count for key in view.entity_columns)


def encoded(
    view: FeatureView, table: pa.Table, project: str
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Parts of `table` as NewestOnlineStore.write takes them: keys of n hashes, n rows of cells."""
    keys = sorted(key.name for key in view.entity_columns)
    for start in range(0, len(table), ROWS):
        part = table.slice(start, ROWS)
        arrays = {name: part[name].combine_chunks() for name in part.column_names}
        hashes = _hash_names({name: arrays[name] for name in keys}, project)
        columns = [_times(arrays[view.batch_source.timestamp_field])]
        columns += [_values(arrays[feature.name]) for feature in view.features]
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        yield hashes.to_pylist(), list(chain.from_iterable(rows))


def _hash_names(keys: dict[str, pa.Array], project: str) -> pa.Array:
    """Names of the entities' hashes: join keys, their values and the project."""
    parts: list[Any] = [serialize_entity_key_prefix([*keys])]
    for column in keys.values():
        if column.type == pa.int64():
            parts += [struct.pack("<II", ValueType.INT64.value, 8), _raw(column)]
        else:
            sizes = pc.binary_length(column).cast(pa.int32())
            parts += [struct.pack("<I", ValueType.STRING.value), _raw(sizes)]
            parts.append(column.cast(pa.binary()))
    return _join(*parts, project.encode())


def _times(column: pa.Array) -> pa.Array:
    """Serialise timestamps without nulls; zero parts are left out."""
    instants = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    seconds, rest = np.divmod(instants, 1_000_000)
    parts = [
        pc.if_else(pa.array(part != 0), _varints(tag, part), b"")
        for tag, part in ((SECONDS, seconds), (NANOS, rest * 1000))
    ]
    return _join(*parts)


def _values(column: pa.Array) -> pa.Array:
    """Serialise a column of a type in ENCODED; null and NaN as in Feast."""
    kind, field = column.type, TAGS[column.type]
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), None, column)
        found = _join(bytes([field]), _raw(pc.fill_null(column, 0.0)))
    elif pa.types.is_string(kind):
        texts = pc.fill_null(column.cast(pa.binary()), b"")
        sizes = pc.binary_length(texts).cast(pa.int64()).to_numpy()
        found = _join(_varints(field, sizes), texts)
    elif pa.types.is_timestamp(kind):
        seconds = pc.floor_temporal(column, unit="second").cast(pa.timestamp("s", "UTC"))
        return _varints(field, pc.fill_null(seconds.cast(pa.int64()), NO_TIME).to_numpy())
    else:
        found = _varints(field, pc.fill_null(column.cast(pa.int64()), 0).to_numpy())
    return pc.if_else(column.is_valid(), found, b"") if column.null_count else found


def _join(*parts: Any) -> pa.Array:
    return pc.binary_join_element_wise(*parts, b"")


def _raw(column: pa.Array) -> pa.Array:
    """Bytes of each number, the lowest first."""
    numbers = column.to_numpy()
    matrix = numbers.view(np.uint8).reshape(len(numbers), -1)
    return _rows(matrix, np.full(len(numbers), matrix.shape[1]))


def _varints(tag: int, numbers: npt.NDArray[np.int64]) -> pa.Array:
    """Seven bits a byte, the lowest first, all but the last with the high bit set."""
    left = numbers.view(np.uint64)
    columns = [np.full(len(left), tag, np.uint8)]
    sizes = np.full(len(left), 2)
    while (more := left >= 128).any():  # noqa: PLR2004
        columns.append((left & 127 | more * np.uint64(128)).astype(np.uint8))
        sizes += more
        left = left >> np.uint64(7)
        # A row that has ended goes on with zeros, which its size leaves out.
    columns.append(left.astype(np.uint8))
    matrix = np.stack(columns, axis=1)
    return _rows(matrix[np.arange(len(columns)) < sizes[:, None]], sizes)


def _rows(content: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int64]) -> pa.Array:
    """Binary array of rows of `sizes` bytes each."""
    ends = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=ends[1:])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(content.tobytes())]
    return pa.BinaryArray.from_buffers(pa.binary(), len(sizes), buffers)
