"""Every place that may have rows of an entity, in one table: `gyre forget` goes over it.

Every step can be repeated: what a killed process left is gone after the next call.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from sqlglot import column, exp
from upath import UPath

from core.errors import DataError
from core.files import read_file
from core.locks import INGEST_LOCK, ONLINE_LOCK, one_writer
from core.settings import Settings
from core.spec import ModelSpec, broken_specs, load_specs
from core.tables.query import query_table
from core.tables.table import Table
from core.user_code import DATASETS, in_one_line
from feature_engine.events.broker import rewrite_file, waiting
from feature_engine.ingest.pipeline import catch_up
from feature_engine.ingest.quarantine import quarantine_table
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import view_table
from feature_engine.online.refresh import REDIS_BATCH_SECONDS
from feature_engine.online.state import ends_key, loaded_ends_key
from feature_engine.online.values import LOCK_SECONDS, OnlineValues
from feature_repo.datasets import load_datasets
from feature_repo.definition import Dataset
from feature_repo.published.store import open_store
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import DATA_FOLDER, Tracking
from mlflow_server.tags import FORGOTTEN_TAG
from monitoring.log.collect import collect, is_closed
from monitoring.log.tables import outcomes, predictions, request_of_row
from operations.maintain import clean_data_docs, clean_reports
from training.artifacts import EXPECTATIONS, FRAME, fetched_artifact
from training.batch import scores

DAY = timedelta(days=1)
WAIT_SECONDS = 12
"""How long serving and the consumer may take for what they have at hand: serving ends a file after
9 seconds at the latest."""


@dataclass(frozen=True)
class Key:
    """A column and a value: the rows that have the value there are those of an entity."""

    column: str
    value: int | str

    @property
    def equals(self) -> str:
        """SQL: the column, a number or a text, has the value."""
        text = exp.cast(column(self.column, quoted=True), "varchar")
        return text.eq(str(self.value)).sql()

    @property
    def pattern(self) -> str:
        """Regular expression of Python and of Rust: the column with the value, in JSON.

        The JSON may be a text in JSON itself.
        """
        quote = r'\\*"' if isinstance(self.value, str) else ""
        value = _json_pattern(str(self.value))
        return rf'\\*"{_json_pattern(self.column)}\\*": ?{quote}{value}{quote}\s*[,}}]'

    def in_json(self, column: str) -> str:
        """SQL: the JSON in another column has the value."""
        return f"regexp_like({column}, {exp.convert(self.pattern).sql()})"


def _json_pattern(text: str) -> str:
    spellings = {json.dumps(text), json.dumps(text, ensure_ascii=False)}
    patterns = [re.escape(spelling[1:-1]) for spelling in sorted(spellings)]
    return f"({'|'.join(patterns)})".replace(r"\\", r"\\+")


@dataclass(frozen=True)
class Search:
    """A search for the rows of one entity.

    Attributes:
        settings: Of the installation.
        key: Of the entity.
        erase: Whether its rows go, or are counted alone.
        problems: Where some may be left, and why.

    """

    settings: Settings
    key: Key
    erase: bool = False
    problems: list[str] = field(default_factory=list)

    @cached_property
    def datasets(self) -> list[Dataset]:
        """Datasets that have the key's column, those that cannot be imported by their tables."""
        datasets, broken_modules = load_datasets()
        names = {dataset.name for dataset in datasets}
        for module in sorted(DATASETS.glob("*.py")):
            if module.stem not in names:
                try:
                    datasets += self._broken_dataset(module.stem, datasets)
                except DataError as exc:  # its table is damaged
                    self.problems.append(str(exc))
        datasets = [data for data in datasets if self.key.column in data.schema.names]
        if any(not dataset.key for dataset in datasets):
            self.problems.extend(broken_modules)
        self.problems.extend(broken_specs())
        return datasets

    def _broken_dataset(self, name: str, datasets: Sequence[Dataset]) -> list[Dataset]:
        """Return a dataset of the tables that a module left, without a key; none without tables.

        Its views are all that no other dataset has.
        """
        column_type = pa.int64() if isinstance(self.key.value, int) else pa.string()
        schema = pa.schema([(self.key.column, column_type)])
        dataset = Dataset(
            name=name,
            schema=schema,
            key=(),
            event_time="",
            entity=self.key.column,
            look_back=DAY,
            silence=DAY,
            views={},
            labels={},
        )
        raw = raw_table(self.settings, dataset)
        if raw.exists:
            columns = [c for c in raw.stored_schema() if c.name == self.key.column]
            dataset = replace(dataset, schema=pa.schema(columns))
        elif not quarantine_table(self.settings, dataset).exists:
            return []
        explained_views = {view for data in datasets for view in data.views}
        views = open_store(self.settings).list_feature_views()
        other_names = {view.name for view in views} - explained_views
        return [replace(dataset, views=dict.fromkeys(other_names, lambda rows: rows))]

    def key_in(self, dataset: Dataset) -> Key:
        """Return the key in the type that a dataset has it in."""
        text = str(self.key.value)
        column_type = dataset.schema.field(self.key.column).type
        is_number = pa.types.is_integer(column_type) and text.lstrip("-").isdecimal()
        return Key(self.key.column, int(text) if is_number else text)

    @cached_property
    def specs(self) -> list[ModelSpec]:
        """Models that have it."""
        return [spec for spec in load_specs() if self.key.column in spec.entity_key]


def _in_datasets(forget: Callable[[Search, Dataset], int], search: Search) -> int:
    """Count in all datasets; one that fails holds up none of the others."""
    row_count = 0
    for dataset in search.datasets:
        try:
            row_count += forget(search, dataset)
        except Exception as exc:  # noqa: BLE001  (of any tool, or a user's expression)
            search.problems.append(f"{dataset.name}: {in_one_line(exc)}")
    return row_count


def _forget_raw(search: Search, dataset: Dataset) -> int:
    """Of raw rows, and of rows that events superseded; features are computed without them.

    Raises:
        DataError: No other entity has a row.

    """
    settings = search.settings
    is_own = search.key.equals
    is_superseded = search.key_in(dataset).in_json("superseded")
    raw = raw_table(settings, dataset)
    rows = raw.matching(f"{is_own} OR {is_superseded}", search.key.column)
    is_other = f"({is_own}) IS NOT TRUE LIMIT 1"
    if rows and not raw.matching(is_other, search.key.column):
        raise DataError(f"{raw.name}: nobody else has rows: remove the installation")
    if search.erase and raw.exists:
        # In the order of ingest and consumer, of which neither writes meanwhile.
        with (
            one_writer(settings, INGEST_LOCK.format(dataset.name)),
            one_writer(settings, ONLINE_LOCK.format(dataset.name), LOCK_SECONDS),
            one_writer(settings, raw.name),
        ):
            raw.erase(is_own)
            raw.erase(is_superseded, "superseded")
            try:
                if dataset.key:  # else its expressions cannot be imported
                    with closing(
                        OnlineValues(settings, dataset, raw, REDIS_BATCH_SECONDS)
                    ) as online:
                        catch_up(online, datetime.now(UTC))
            finally:
                raw.purge()
    return len(rows)


def _forget_features(search: Search, dataset: Dataset) -> int:
    """Of views with the key; views of another entity were computed anew from raw rows."""
    row_count = 0
    for name in dataset.views:
        view = view_table(search.settings, name)
        has_key = view.exists and search.key.column in view.stored_schema().names
        is_own = search.key.equals if has_key else "FALSE"
        row_count += _forget_rows(search, view, is_own)
    return row_count


def _forget_quarantine(search: Search, dataset: Dataset) -> int:
    is_own = search.key_in(dataset).in_json('"row"')
    return _forget_rows(search, quarantine_table(search.settings, dataset), is_own)


def _forget_online(search: Search, dataset: Dataset) -> int:
    settings = search.settings
    raw = raw_table(settings, dataset)
    key = search.key_in(dataset)
    with closing(OnlineValues(settings, dataset, raw, REDIS_BATCH_SECONDS)) as online:
        names = online.hashes_of(key.column, key.value)
        if search.erase:
            project = online.store.project
            with online.lock():
                # The consumer notes anew which windows end.
                online.redis.delete(
                    *names,
                    ends_key(project, dataset.name),
                    loaded_ends_key(project, dataset.name),
                )
    return len(names)


def _forget_streams(search: Search) -> int:
    """Of requests with an event of the entity, which the consumer drops."""

    def count_waiting() -> int:
        return sum(
            waiting(search.settings, dataset.name, search.key_in(dataset).pattern)
            for dataset in search.datasets
        )

    count = count_waiting()
    if search.erase:
        _wait(lambda: not count_waiting())
        rewrite_file(search.settings)
    return count


def _forget_frames(search: Search) -> int:
    """Of the frames of all runs; a version's tag says so before its frame is changed.

    The column may be one of label rows, of a model of another entity.
    """
    registry = Registry(search.settings)
    tracking = Tracking(search.settings)
    values = pc.field(search.key.column)
    is_own = values.cast(pa.string()) == str(search.key.value)
    is_other = ~is_own | values.is_null()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    count = 0
    names = {dataset.name for dataset in search.datasets}
    for spec in load_specs():
        if spec not in search.specs and spec.dataset not in names:
            continue
        versions = {version.run_id: version for version in registry.versions(spec.name)}
        for run in tracking.runs(spec.experiment, deleted=True):
            for artifact in tracking.list_artifacts(run.run_id, DATA_FOLDER):
                with fetched_artifact(tracking, run.run_id, artifact.path) as file:
                    rows = ds.dataset(file)
                    if search.key.column not in rows.schema.names:
                        continue
                    row_count: int = rows.count_rows(filter=is_own)
                    count += row_count
                    if row_count and search.erase:
                        if file.name == FRAME and run.run_id in versions:
                            registry.tag(versions[run.run_id], FORGOTTEN_TAG, today)
                        pq.write_table(pq.read_table(file, filters=is_other), file)
                        tracking.log_artifact(run.run_id, str(file), DATA_FOLDER)
    return count


def _forget_log(search: Search) -> int:
    """Of lines of serving's log, here and sent by replicas, which become rows of tables."""
    settings = search.settings
    names = "|".join(spec.name for spec in search.specs)
    text = re.escape(json.dumps(str(search.key.value), ensure_ascii=False))
    entity = f"{text}|.*{search.key.pattern}"
    is_of_model = rf'(?=.*"model":"({names})")'
    line = re.compile(rf'^{is_of_model}.*"entity":({entity})'.encode(), re.MULTILINE)
    folder = settings.home / "serving" / "log"
    written_files = [file for file in folder.glob("*.jsonl") if file.stat().st_size]
    count = 0
    if search.erase:
        # Serving ends the files that have rows now.
        _wait(lambda: all(not f.exists() or is_closed(f) for f in written_files))
        if settings.data_url:
            # Replicas on other hosts send what they have.
            time.sleep(WAIT_SECONDS)
        collect(settings)
    sent_files = (settings.data / "inbox").glob("*/predictions-*")
    for file in (*UPath(folder).glob("predictions-*"), *sent_files):
        lines = line.findall(read_file(file))
        count += len(lines)
        # Its good lines are in the tables.
        if lines and search.erase and file.suffix == ".malformed":
            file.unlink()
    return count


def _forget_outcomes(search: Search) -> int:
    """Of the answers about the entity: before these go."""
    row_ids = predictions(search.settings).matching(_is_about(search), "request_id")
    request_ids = [request_of_row(row_id) for row_id in row_ids]
    is_own = column("request_id").isin("", *request_ids).sql()
    return _forget_rows(search, outcomes(search.settings), is_own)


def _forget_answers(table: Callable[[Settings], Table], search: Search) -> int:
    return _forget_rows(search, table(search.settings), _is_about(search))


def _is_about(search: Search) -> str:
    """SQL: an answer of one of the models is about the entity."""
    names = [spec.name for spec in search.specs]
    is_of_models = column("model").isin("", *names).sql()
    is_entity = column("entity").eq(str(search.key.value)).sql()
    return f"{is_of_models} AND ({is_entity} OR {search.key.in_json('entity')})"


def _forget_rows(search: Search, table: Table, where: str) -> int:
    """Of a table and of its older versions."""
    query = f"SELECT 1 FROM here WHERE {where}"  # noqa: S608  (ours)
    rows = query_table(search.settings, table.name, query)
    if search.erase and table.exists:
        if rows:
            table.erase(where)
        table.purge()  # again after a killed one
    return len(rows)


def _forget_quotations(
    clean: Callable[[Settings, datetime], object], search: Search
) -> int:
    """Of a place that may quote values without a key all goes; its rows are not counted."""
    if search.erase:
        clean(search.settings, datetime.max.replace(tzinfo=UTC))
    return 0


def _forget_expectations(search: Search) -> int:
    """Delete the pages of raw rows that ended a training; their rows are not counted."""
    tracking = Tracking(search.settings)
    for experiment in {spec.experiment for spec in load_specs()}:
        for run in tracking.runs(experiment, deleted=True):
            pages = tracking.list_artifacts(run.run_id, EXPECTATIONS)
            if pages and search.erase:
                tracking.delete_artifacts(run.run_id, EXPECTATIONS)
    return 0


def _wait(is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not is_done() and time.monotonic() < end:
        time.sleep(0.2)


PLACES: dict[str, Callable[[Search], int]] = {
    "raw rows": partial(_in_datasets, _forget_raw),
    "features": partial(_in_datasets, _forget_features),
    "online values": partial(_in_datasets, _forget_online),
    "rows in quarantine": partial(_in_datasets, _forget_quarantine),
    "requests of events": _forget_streams,
    "training frames": _forget_frames,
    "prediction log": _forget_log,
    "outcomes": _forget_outcomes,
    "predictions": partial(_forget_answers, predictions),
    "scores": partial(_forget_answers, scores),
    "drift reports": partial(_forget_quotations, clean_reports),
    "Data Docs": partial(_forget_quotations, clean_data_docs),
    "Data Docs of trainings": _forget_expectations,
}
"""What counts the rows of an entity there, and erases them if asked to; in the order of erasing."""
