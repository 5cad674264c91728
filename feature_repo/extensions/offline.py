"""Offline store: Feast's DuckDB store, with an ASOF join for feature views that are Delta tables.

With `spark_master`, Spark's executors join instead of DuckDB. Feast's own join, which is quadratic
in rows per entity, still joins views with an alias, a join key map or a field mapping, frames cut
by created time, and all views of a service without a Delta table. The list of a table's files is
read at every call.
"""

import copy
import logging
from collections import UserDict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from feast import FileSource
from feast.data_format import DeltaFormat, ParquetFormat
from feast.infra.offline_stores import duckdb
from feast.infra.offline_stores import ibis as stock
from feast.infra.offline_stores.duckdb import _write_data_source as write_data_source
from feast.infra.offline_stores.offline_utils import (
    infer_event_timestamp_from_entity_df,
)
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.transformation.python_transformation import PythonTransformation
from ibis.common.exceptions import IbisTypeError

from core.connectors.addresses import is_bucket, is_url
from core.errors import DataError
from core.files import location
from core.tables.addresses import files_at, names_at
from feature_repo.engine import feature_engine
from feature_repo.extensions.asof_join import (
    LATEST,
    ORDER,
    TIME,
    UTC_TIME,
    asof_join,
    dated_rows,
    living,
)
from feature_repo.extensions.parquet_files import read_parquet_files
from feature_repo.on_demand import input_columns
from feature_repo.team_tables import require_distinct

log = logging.getLogger(__name__)
NUMBER = ibis.util.gen_name("number")
ROW = ibis.util.gen_name("row")
"""Columns of the join; no column of a team has a name of 26 random letters."""
JOIN_NAMES = frozenset(["rn", "entity_row_id", "event_expire_timestamp"])
LATEST_NAMES = frozenset(["rn", "__log_date"])
ALL_NAMES = frozenset(["__log_date"])
"""Names of columns that Feast's functions add to rows, or drop: its join, and the two that pull."""
ROWS_PER_ENTITY_ROW = 10
"""Rows for each row of the frame, from which on a view is first cut to the entities of the frame."""


class AsofOfflineStoreConfig(duckdb.DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """`offline_store` in feature_store.yaml: the options of Feast's DuckDB store, and three more.

    Args:
        cache: Folder for copies of files on S3.
        spark_master: Address of Spark's master; DuckDB joins if it is empty.
        scratch: Folder that Spark's executors see.

    """

    type: str = "feature_repo.extensions.offline.AsofOfflineStore"
    cache: str = ""
    spark_master: str = ""
    scratch: str = ""


class AsofOfflineStore(duckdb.DuckDBOfflineStore):  # type: ignore[misc]
    """Gives the rows that Feast's own store gives; ties of event and created time are arbitrary."""

    @classmethod
    def get_historical_features(
        cls,
        *,
        config: RepoConfig,
        feature_views: Sequence[Any],
        **options: Any,
    ) -> Any:
        """Join features to each row of an entity frame as they were at its event time.

        A column of the frame with the name of a feature is left out, and said: the feature counts.
        """
        options["entity_df"] = _without_features(feature_views, options)
        stock_features = super().get_historical_features
        if not all(_is_read_here(view.batch_source) for view in feature_views):
            return stock_features(config=config, feature_views=feature_views, **options)
        if not _is_plain(feature_views, options):
            columns_by_source = _columns_by_source(feature_views, options)
            entity_rows = ibis.memtable(options["entity_df"])
            for view in feature_views:
                source = view.batch_source
                columns = columns_by_source[source.name]
                _require_free_names(columns, source, JOIN_NAMES, suffix="_y")
                rows = _read(config, source, columns)
                _require_same_keys(entity_rows, rows, view)
            access = _access(config, columns_by_source, JOIN_NAMES)
            return stock.get_historical_features_ibis(
                feature_views=feature_views, **access, **options
            )
        # Feast's job for the entity rows alone resolves on-demand views, and computes them later.
        job = stock_features(config=config, feature_views=[], **options)
        # Over an Arrow table DuckDB has no row estimate and takes nested loops: 26 s, not 0.3.
        ibis.get_backend().raw_sql("SET asof_loop_join_threshold = 0")
        column_types = dict(options["entity_df"].dtypes)
        event_time = infer_event_timestamp_from_entity_df(column_types)
        are_tables = all(_is_table(view.batch_source) for view in feature_views)
        uses_spark = bool(config.offline_store.spark_master) and are_tables
        read = _read_on_spark if uses_spark else _read
        join = _join_on_spark if uses_spark else asof_join
        # The job's table lacks a column `entity_row_id`; it has made the frame's times UTC.
        entity_rows = ibis.memtable(options["entity_df"])
        job.table = entity_rows
        entity_count = len(options["entity_df"])
        columns_by_source = _columns_by_source(feature_views, options)
        for view in feature_views:
            source = view.batch_source
            rows = read(config, source, columns_by_source[source.name])
            _require_same_keys(entity_rows, rows, view)
            names = _feature_names(view, options["feature_refs"])
            prefix = f"{view.name}__" if options.get("full_feature_names") else ""
            view_rows = dated_rows(rows, view, names, prefix)
            keys = view.join_keys
            if keys and not uses_spark and _is_large(rows, entity_count):
                view_rows = view_rows.semi_join(entity_rows, keys)
            job.table = join(job.table, event_time, view_rows, view)
        on_demand_views = job.on_demand_feature_views
        on_demand_views[:] = [_lazy(view) for view in on_demand_views]
        return job

    def validate_data_source(self, config: RepoConfig, data_source: Any) -> None:
        """Validate a source of `feast apply`; print the changes that the next ingest will refuse.

        Raises:
            DataError: Two datasets have an entity of one name, and of two types.

        """
        from feature_repo.datasets import entity_problems, load_datasets  # noqa: PLC0415
        from feature_repo.published.definition_check import announce_changes  # noqa: PLC0415  (seldom)

        problems = entity_problems(load_datasets()[0])
        if problems:
            raise DataError("; ".join(problems.values()))

        # Feast asks a bucket by another client, whose login may be missing, and only warns.
        if not is_bucket(getattr(data_source, "path", "")):
            super().validate_data_source(config, data_source)
        announce_changes()

    @classmethod
    def pull_latest_from_table_or_query(
        cls, *, config: RepoConfig, **options: Any
    ) -> Any:
        """Return the newest row of each entity between two times, both included."""
        source = options["data_source"]
        if not _is_read_here(source):
            return super().pull_latest_from_table_or_query(config=config, **options)
        columns_by_source = {source.name: _pulled_columns(options)}
        access = _access(config, columns_by_source, LATEST_NAMES)
        return stock.pull_latest_from_table_or_query_ibis(**access, **options)

    @classmethod
    def pull_all_from_table_or_query(cls, *, config: RepoConfig, **options: Any) -> Any:
        """Return all rows between two times, both included."""
        source = options["data_source"]
        if not _is_read_here(source):
            return super().pull_all_from_table_or_query(config=config, **options)
        columns_by_source = {source.name: _pulled_columns(options)}
        access = _access(config, columns_by_source, ALL_NAMES)
        return stock.pull_all_from_table_or_query_ibis(**access, **options)


def _without_features(feature_views: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Leave out columns of the entity frame that would take the place of a feature, and say so.

    Raises:
        DataError: A feature has the name of a key, or of the event time, or names of the frame and
            its features differ in case alone.

    """
    entities = options["entity_df"]
    if isinstance(entities, str):  # a query, which Feast refuses
        return entities
    names = _feature_columns(feature_views, options)
    join_columns = _join_columns(feature_views, entities)
    if names & join_columns:
        ambiguous_names = ", ".join(sorted(names & join_columns))
        raise DataError(
            f"{ambiguous_names}: expected a key or the time of the entity frame alone, found a "
            "feature of that name, too: give the feature another name"
        )
    # DuckDB does not tell names apart that differ in case alone.
    folded_names = {name.casefold() for name in names}
    replacing_columns = [
        name
        for name in entities.columns
        if str(name).casefold() in folded_names and name not in join_columns
    ]
    if replacing_columns:
        log.warning(
            "columns of the entity frame with the name of a feature are left out, as the feature "
            "counts: %s",
            ", ".join(map(str, replacing_columns)),
        )
    entities = entities.drop(columns=replacing_columns)
    columns = {*map(str, entities.columns)}
    require_distinct(names | columns, "entity frame with its features")
    return entities


def _feature_columns(
    feature_views: Sequence[Any], options: Mapping[str, Any]
) -> set[str]:
    """Return the names of features in the result, and those by which on-demand views read them."""
    on_demand_views = OnDemandFeatureView.get_requested_odfvs(
        options["feature_refs"], options["project"], options["registry"]
    )
    names: set[str] = set()
    for view in (*feature_views, *on_demand_views):
        view_name = view.projection.name_to_use()
        prefix = f"{view_name}__" if options.get("full_feature_names") else ""
        features = _feature_names(view, options["feature_refs"])
        names |= {prefix + feature for feature in features}
    return names | input_columns(on_demand_views)


def _join_columns(feature_views: Sequence[Any], entities: Any) -> set[str]:
    """Return the names of the join keys and of the event time in the entity frame."""
    columns = {infer_event_timestamp_from_entity_df(dict(entities.dtypes))}
    for view in feature_views:
        names_in_frame = view.projection.join_key_map
        columns |= {names_in_frame.get(key, key) for key in view.join_keys}
    return columns


def _access(
    config: RepoConfig,
    columns_by_source: Mapping[str, set[str]],
    feast_names: Container[str],
) -> dict[str, Any]:
    """Return the arguments by which Feast's functions read and write sources.

    Args:
        config: Feast's configuration.
        columns_by_source: Columns that are needed of each source, by its name.
        feast_names: Names that Feast's function gives columns of its own.

    """

    def read(source: FileSource, _repository: str) -> ir.Table:
        columns = columns_by_source[source.name]
        _require_free_names(columns, source, feast_names)
        return _read(config, source, columns)

    return {
        "config": config,
        "data_source_reader": read,
        "data_source_writer": write_data_source,
    }


def _columns_by_source(
    feature_views: Sequence[Any], options: Mapping[str, Any]
) -> dict[str, set[str]]:
    """Return the columns that the requested features of views need, by name of the source."""
    columns: dict[str, set[str]] = {}
    for view in feature_views:
        source = view.batch_source
        names = {
            *view.join_keys,
            *_feature_names(view, options["feature_refs"]),
            source.timestamp_field,
            source.created_timestamp_column,
        }
        # As for Feast, a column may still have the name that it had before its renaming.
        old_names = {old for old, new in source.field_mapping.items() if new in names}
        source_columns = columns.setdefault(source.name, set())
        source_columns |= (names | old_names) - {""}
    return columns


def _pulled_columns(options: Mapping[str, Any]) -> set[str]:
    """Return the columns of a source that Feast pulls."""
    names = {*options["join_key_columns"], *options["feature_name_columns"]}
    names |= {options["timestamp_field"], options.get("created_timestamp_column")}
    return names - {"", None}


def _is_table(source: Any) -> bool:
    return isinstance(source, FileSource) and isinstance(
        source.file_format, DeltaFormat
    )


def _is_read_here(source: Any) -> bool:
    """Whether a source is a Delta table, or a parquet file on this disk."""
    if _is_table(source):
        return True
    if not isinstance(source, FileSource) or is_url(source.path):
        return False
    return source.file_format is None or isinstance(source.file_format, ParquetFormat)


def _is_large(rows: ir.Table, entity_count: int) -> bool:
    """Whether rows of other entities are left out: the join holds all rows in memory."""
    row_count = int(rows.count().execute())
    return row_count > ROWS_PER_ENTITY_ROW * entity_count


def _is_plain(feature_views: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Whether the views' columns have the frame's names, and no created time cuts them."""
    if options.get("filter_by_created_timestamp"):
        return False
    for view in feature_views:
        projection = view.projection
        if projection.name_alias or projection.join_key_map:
            return False
        if view.batch_source.field_mapping:
            return False
    return True


def _read(config: RepoConfig, source: FileSource, columns: set[str]) -> ir.Table:
    """Return the current rows of a Delta table, or columns of parquet files.

    Raises:
        DataError: The table has no rows yet, the table or a file cannot be read, a column is in no
            file, or a column of times has none.

    """
    if not _is_table(source):
        path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
        rows = read_parquet_files(path, columns)
        _require_columns(rows, source, columns)
        _require_times(rows, source)
        return rows
    files = files_at(source.path, Path(config.offline_store.cache))
    if not files:
        raise DataError(f"{source.name}: no rows yet; run: gyre ingest")
    return ibis.read_parquet(files)


def _require_columns(rows: ir.Table, source: FileSource, columns: set[str]) -> None:
    """Require the columns that are needed, by the names before or after their renaming.

    Raises:
        DataError: No file has a column.

    """
    new_names = source.field_mapping
    names = {new_names.get(name, name) for name in rows.columns}
    for name in sorted(columns):
        if new_names.get(name, name) not in names:
            raise DataError(
                f"{source.path}: {name}: expected a column of the view, found "
                f"{', '.join(rows.columns)} of those that it needs: write it, or define the view "
                "without it"
            )


def _require_times(rows: ir.Table, source: FileSource) -> None:
    """Require columns of times: DuckDB takes a number for seconds, whatever it counts.

    Raises:
        DataError: One has something else.

    """
    for name in (source.timestamp_field, source.created_timestamp_column):
        if name not in rows.columns:
            continue
        kind = rows[name].type()
        if not (kind.is_timestamp() or kind.is_date() or kind.is_string()):
            raise DataError(
                f"{source.path}: {name}: expected times, found {kind}: write the column again as "
                "times"
            )


def _require_same_keys(entity_rows: ir.Table, rows: ir.Table, view: Any) -> None:
    """Require join keys by which rows of a frame and of a view can be joined.

    Raises:
        DataError: A key has a type in the frame that cannot be compared with that in the view.

    """
    for key in view.join_keys:
        frame_key = view.projection.join_key_map.get(key, key)
        if frame_key not in entity_rows.columns or key not in rows.columns:
            continue
        try:
            _ = entity_rows[frame_key] == rows[key]
        except IbisTypeError as exc:
            raise DataError(
                f"{view.name}: {key}: expected keys of one type, found "
                f"{entity_rows[frame_key].type()} in the entity frame and {rows[key].type()} in "
                f"{view.batch_source.path}: write the files with the type of the entity"
            ) from exc


def _require_free_names(
    columns: set[str],
    source: FileSource,
    feast_names: Container[str],
    suffix: str = "",
) -> None:
    """Require names of columns that Feast's function gives no column of its own.

    Args:
        columns: Columns that are needed.
        source: Their source.
        feast_names: Names that the function gives.
        suffix: Ending of the names of columns that it drops; empty if it drops none.

    Raises:
        DataError: A column has such a name.

    """
    for name in sorted(columns):
        is_dropped = bool(suffix) and name.endswith(suffix)
        if is_dropped or name.lower() in feast_names:
            raise DataError(
                f"{source.path}: {name}: expected a name that Feast does not give a column of its "
                "own: rename the column"
            )


def _read_on_spark(
    config: RepoConfig, source: FileSource, _columns: set[str]
) -> ir.Table:
    """Return the current rows of a Delta table, which executors read: see `_read`."""
    names, columns = names_at(source.path)
    if not names:
        raise DataError(f"{source.name}: no rows yet; run: gyre ingest")
    options = config.offline_store
    scratch = location(options.scratch)
    connection = feature_engine().spark_connection(options.spark_master, scratch)
    rows: ir.Table = connection.read_table(source.path, names, columns)
    return rows


def _feature_names(view: Any, feature_refs: Sequence[str]) -> list[str]:
    """Return the requested features of a view."""
    view_prefix = f"{view.projection.name_to_use()}:"
    return [
        feature_ref.removeprefix(view_prefix)
        for feature_ref in feature_refs
        if feature_ref.startswith(view_prefix)
    ]


def _join_on_spark(
    entities: ir.Table,
    event_time: str,
    rows: ir.Table,
    view: Any,
) -> ir.Table:
    """Join as `asof_join` does, on Spark's executors.

    The entity rows stay in this process. Their keys and times go to Spark with a number, by which
    the features come back.
    """
    keys = view.join_keys
    entity_rows = entities.to_pyarrow()
    numbers = pa.arange(0, entity_rows.num_rows)
    key_rows = entity_rows.select([*keys, event_time])
    numbered_rows = key_rows.append_column(NUMBER, numbers)
    with rows.get_backend().opened(numbered_rows) as questions:
        answers = _last_features(questions, event_time, rows, view).to_pyarrow()
    features = answers.sort_by(NUMBER).drop_columns(NUMBER)
    for name in features.column_names:
        entity_rows = entity_rows.append_column(name, features[name])
    return ibis.memtable(entity_rows)


def _last_features(
    questions: ir.Table,
    event_time: str,
    rows: ir.Table,
    view: Any,
) -> ir.Table:
    """Return the features that `asof_join` returns, with the NUMBER of each question.

    Spark has no ASOF join: questions and rows of the view are put into one order of time.
    """
    keys = view.join_keys
    names = rows.drop(*keys, TIME, ORDER).columns
    # Spark puts a null time before all others.
    feature_rows = rows.drop_null([*keys, TIME]).select(
        *keys,
        ORDER,
        **{
            NUMBER: ibis.null("int64"),
            ROW: ibis.struct({name: rows[name] for name in (TIME, *names)}),
        },
    )
    moment = questions[event_time].cast(UTC_TIME)
    question_rows = questions.select(
        *keys,
        **{
            ORDER: ibis.struct({"time": moment, "created": LATEST}),
            NUMBER: questions[NUMBER],
            ROW: ibis.null(feature_rows[ROW].type()),
        },
    )
    ordered_rows = feature_rows.union(question_rows.cast(feature_rows.schema()))
    earlier = ibis.cumulative_window(group_by=keys, order_by=ORDER)
    last_row = ordered_rows[ROW].last().over(earlier)
    answers = ordered_rows.select(NUMBER, ORDER, **{ROW: last_row})
    answers = answers.filter(answers[NUMBER].notnull())
    values = {name: answers[ROW][name] for name in names}
    values = living(values, answers[ROW][TIME], answers[ORDER]["time"], view)
    return answers.select({NUMBER: answers[NUMBER], **values})


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

    def transform_arrow(
        self,
        pa_table: pa.Table,
        features: list[Any],  # noqa: ARG002
    ) -> pa.Table:
        columns = _Columns(zip(pa_table.column_names, pa_table.columns, strict=True))
        features_by_name = self.udf(columns)
        return pa.Table.from_pydict(features_by_name)


def _lazy(view: Any) -> Any:
    if view.mode != "python":
        return view
    lazy_view = copy.copy(view)
    transformation = view.feature_transformation
    lazy_view.feature_transformation = _LazyTransformation(
        udf=transformation.udf,
        udf_string=transformation.udf_string,
    )
    return lazy_view
