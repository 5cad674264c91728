"""Offline store: Feast's DuckDB store with its point-in-time join replaced by an ASOF join.

Feast joins every earlier feature row to every entity row and keeps the newest: quadratic in rows
per entity. Everything around that join is still Feast's: reading, names, field mappings, aliases.
"""

from __future__ import annotations

import copy
import os
from collections import UserDict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import ibis
import pyarrow as pa
from feast.data_format import ParquetFormat
from feast.infra.offline_stores import duckdb
from feast.infra.offline_stores import ibis as feast_ibis
from feast.infra.offline_stores.file_source import FileSource
from feast.transformation.python_transformation import PythonTransformation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import ibis.expr.types as ir

    Reader = Callable[[Any, str], ir.Table]
    """Source of a view, folder of the repository → its rows."""
    FeatureTable = tuple[ir.Table, str, str | None, dict[str, str], list[str], timedelta | None]
    """Rows, event time, created time, join key → entity column, features, time to live."""

FIRST = ibis.literal(datetime.min.replace(tzinfo=UTC))
LAST = ibis.literal(datetime.max.replace(tzinfo=UTC))


class AsofOfflineStoreConfig(duckdb.DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """`offline_store` in feature_store.yaml; the stock store's other options stand."""

    type: str = "feature_repo.extensions.offline.AsofOfflineStore"


class AsofOfflineStore(duckdb.DuckDBOfflineStore):  # type: ignore[misc]
    """Same frames as the stock store; ties of event and created time are arbitrary in both.

    A source that is a link is followed once: what it points to when asked is what is read, however
    long that takes and wherever the link points by then.
    """

    @staticmethod
    def get_historical_features(*, filter_by_created_timestamp: bool = False, **asked: Any) -> Any:
        """Join features to each row of an entity frame as they were at its event time.

        A cut by created time is no ASOF condition: that join is left to Feast.
        """
        if filter_by_created_timestamp:
            stock = duckdb.DuckDBOfflineStore.get_historical_features
            stock = with_names(stock, _read_data_source=_read)
            return stock(filter_by_created_timestamp=True, **asked)
        # Over an Arrow table DuckDB has no row estimate and takes nested loops: 26 s, not 0.3.
        ibis.get_backend().raw_sql("SET asof_loop_join_threshold = 0")
        return joined_by(asof_join, _read, asked)

    @staticmethod
    def pull_latest_from_table_or_query(**asked: Any) -> Any:
        """Return the newest row of each entity between two times, both included."""
        return newest_of(_read, asked)

    @staticmethod
    def pull_all_from_table_or_query(**asked: Any) -> Any:
        stock = duckdb.DuckDBOfflineStore.pull_all_from_table_or_query
        return with_names(stock, _read_data_source=_read)(**asked)


def joined_by(join: Any, read: Reader, asked: dict[str, Any]) -> Any:
    """Feast's job for what is asked, made by its own functions, with another join and reader."""
    helper = with_names(feast_ibis.get_historical_features_ibis, point_in_time_join=join)
    stock = duckdb.DuckDBOfflineStore.get_historical_features
    stock = with_names(stock, get_historical_features_ibis=helper, _read_data_source=read)
    job = stock(**asked)
    job._on_demand_feature_views = [*map(_lazy, job.on_demand_feature_views)]  # noqa: SLF001
    return job


def newest_of(read: Reader, asked: dict[str, Any]) -> Any:
    """Feast's job for the newest rows between two times, with another reader.

    Feast compares times that it cast, which skips no file and asks DuckDB's calendar for each row:
    6 s of 30 million. So rows are cut by their own times first.
    """
    start, end = (asked[name].astimezone(UTC) for name in ("start_date", "end_date"))

    def between(source: Any, folder: str) -> ir.Table:
        rows = read(source, folder)
        time = rows[asked["timestamp_field"]]
        return rows.filter(time.between(start, end)) if time.type().timezone else rows

    stock = duckdb.DuckDBOfflineStore.pull_latest_from_table_or_query
    return with_names(stock, _read_data_source=between)(**asked)


def asof_join(
    entity_table: ir.Table,
    feature_tables: Sequence[FeatureTable],
    event_timestamp_col: str,
    **_: Any,
) -> ir.Table:
    """Stand in for Feast's `point_in_time_join`: same arguments, same columns.

    Each entity row gets the newest feature row at or before it, by event time, then created time;
    nulls if there is none, or if it is older than its time to live.
    """
    asked = [name for name in entity_table.columns if name != "entity_row_id"]
    found, features = entity_table.select(asked), list[str]()
    for rows, time, created, join_keys, names, ttl in feature_tables:
        # Equal event times are told apart inside the join: doing it before costs another sort.
        second = ibis.coalesce(rows[created], FIRST) if created else FIRST
        right = rows.select(
            *names,
            _time=rows[time],
            _at=ibis.struct({"time": rows[time], "created": second}),
            **{f"_key_{n}": rows[key] for n, key in enumerate(join_keys)},
        )
        asked_at = found[event_timestamp_col].cast("timestamp('UTC')")
        left = found.mutate(_asof=ibis.struct({"time": asked_at, "created": LAST}))
        keys = [left[column] == right[f"_key_{n}"] for n, column in enumerate(join_keys.values())]
        joined = left.asof_join(right, left["_asof"] >= right["_at"], keys)
        if ttl:
            lifetime = ibis.interval(microseconds=ttl // timedelta(microseconds=1))
            fresh = joined["_time"] + lifetime >= joined[event_timestamp_col]
            joined = joined.mutate(**{name: fresh.ifelse(joined[name], None) for name in names})
        features += names
        found = joined.select(*asked, *features)
    return found


def _read(source: Any, repo_path: str) -> ir.Table:
    """Feast's reader, on the folder or file itself: DuckDB lists a folder and then opens its files.

    Through a link that is pointed elsewhere in between, it would miss those it had listed.
    """
    if isinstance(source, FileSource) and Path(source.path).is_symlink():
        place = os.path.realpath(source.path)
        source = FileSource(path=place, file_format=source.file_format or ParquetFormat())
    return duckdb._read_data_source(source, repo_path)  # noqa: SLF001


def with_names(function: Any, **replaced: Any) -> Any:
    """`function` calling others by the given names; the original stays as it is for everybody."""
    own = FunctionType(
        function.__code__, function.__globals__ | replaced, argdefs=function.__defaults__
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own


class _Columns(UserDict[str, Any]):
    """Columns of an Arrow table as lists, each converted when it is first asked for."""

    def __getitem__(self, name: str) -> Any:
        if isinstance(self.data[name], pa.ChunkedArray):
            self.data[name] = self.data[name].to_pylist()
        return self.data[name]


class _LazyTransformation(PythonTransformation):  # type: ignore[misc]
    """Feast turns all columns of a frame into lists, times among them: 70 times an int's cost."""

    def transform_arrow(self, pa_table: pa.Table, features: list[Any]) -> pa.Table:  # noqa: ARG002
        columns = _Columns(zip(pa_table.column_names, pa_table.columns, strict=True))
        return pa.Table.from_pydict(self.udf(columns))


def _lazy(view: Any) -> Any:
    if view.mode != "python":
        return view
    view, stock = copy.copy(view), view.feature_transformation
    view.feature_transformation = _LazyTransformation(stock.udf, stock.udf_string)
    return view
