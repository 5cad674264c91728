"""Erasing the rows of one entity, a function for each place.

Each function returns how many rows the place has, and erases them if the search says so. Each can
be repeated: the next call erases what a killed process left.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from sqlglot import column
from upath import UPath

from core.errors import DataError
from core.files import is_closed, read_file
from core.locks import INGEST_LOCK, ONLINE_LOCK, one_writer
from core.settings import Settings
from core.spec import load_specs
from core.tables.query import query_table
from core.tables.table import Table
from core.user_code import in_one_line
from feature_engine.events.broker import rewrite_file, waiting
from feature_engine.ingest.history import without_rows
from feature_engine.ingest.key_values import KeyReader, json_text_pattern
from feature_engine.ingest.pipeline import catch_up
from feature_engine.ingest.quarantine import leave_quarantine, quarantine_table
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import view_table
from feature_engine.online.state import ends_key, loaded_ends_key
from feature_engine.online.values import LOCK_SECONDS, OnlineValues
from feature_repo.definition import Dataset
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import DATA_FOLDER, Tracking
from mlflow_server.tags import FORGOTTEN_TAG
from monitoring.log.collect import collect
from monitoring.log.tables import outcomes, predictions, request_of_row
from operations.clean import clean_data_docs, clean_reports
from operations.search import EntityKey, EntitySearch
from stack.redis_file import remove_copies
from training.artifacts import EXPECTATION_PAGES, FRAME, fetched_artifact
from training.batch import scores

logger = logging.getLogger(__name__)
WAIT_SECONDS = 12
"""Time for the consumer to drop requests, and for serving to end a file of its log, which it does
after 9 seconds at the latest."""


def in_every_dataset(
    erase: Callable[[EntitySearch, Dataset], int],
) -> Callable[[EntitySearch], int]:
    """Return a function that erases in every dataset of a search, in others where one fails."""

    def erase_everywhere(search: EntitySearch) -> int:
        row_count = 0
        for dataset in search.datasets:
            try:
                row_count += erase(search, dataset)
            except Exception as exc:  # noqa: BLE001  (of any tool, or a user's expression)
                search.problems.append(f"{dataset.name}: {in_one_line(exc)}")
        return row_count

    return erase_everywhere


@in_every_dataset
def erase_raw_rows(search: EntitySearch, dataset: Dataset) -> int:
    """Erase raw rows, and rows that events superseded; compute features without them.

    Raises:
        DataError: No other entity has a row in the table.

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
        # Ingest and the consumer take these locks in the same order, and cannot write meanwhile.
        with (
            one_writer(settings, INGEST_LOCK.format(dataset.name)),
            one_writer(settings, ONLINE_LOCK.format(dataset.name), LOCK_SECONDS),
            one_writer(settings, raw.name),
        ):
            raw.erase(is_own)
            _erase_superseded_rows(raw, dataset, search.key_in(dataset))
            try:
                if dataset.key:  # without one its expressions cannot be imported
                    with closing(OnlineValues(settings, dataset, raw)) as online:
                        catch_up(online, datetime.now(UTC))
            finally:
                raw.purge()
    return len(rows)


def _erase_superseded_rows(raw: Table, dataset: Dataset, key: EntityKey) -> None:
    """Erase the rows of an entity that rows of others have superseded; what is known else stays."""
    is_superseded = key.in_json("superseded")
    if not dataset.key:  # it cannot be imported
        raw.erase(is_superseded, "superseded")
        return
    texts = raw.matching(is_superseded, "superseded")
    if not texts:
        return
    rows = raw.read(where=pc.field("superseded").isin(pa.array(texts, pa.string())))
    pattern = re.compile(key.pattern)
    kept_texts = [
        without_rows(text, lambda row: pattern.search(row) is not None)
        for text in rows["superseded"].to_pylist()
    ]
    place = rows.column_names.index("superseded")
    kept_column = pa.array(kept_texts, pa.string())
    rows = rows.set_column(place, "superseded", kept_column)
    raw.merge(rows, dataset.key, ["superseded"])


@in_every_dataset
def erase_features(search: EntitySearch, dataset: Dataset) -> int:
    """Erase rows of views that have the key; those of other entities follow from raw rows."""
    row_count = 0
    for name in dataset.views:
        view = view_table(search.settings, name)
        has_key = view.exists and search.key.column in view.stored_schema().names
        is_own = search.key.equals if has_key else "FALSE"
        row_count += _erase_rows(search, view, is_own)
    return row_count


@in_every_dataset
def erase_quarantined_rows(search: EntitySearch, dataset: Dataset) -> int:
    """Erase rows of quarantine, and records that could not be read, if their key may be this one.

    Records that an older release has cut are not counted, as nobody can tell their key.
    """
    table = quarantine_table(search.settings, dataset)
    if not table.exists:
        return 0
    key = search.key_in(dataset)
    reader = KeyReader(search.settings, dataset, key.column)
    texts = table.read(columns=["row"])["row"].to_pylist()
    own_texts = []
    cut_texts = []
    unread_count = 0
    for text in texts:
        keys = reader.of_row(text)
        unread_count += not keys.is_read
        if keys.are_of(key.value):
            own_texts.append(text)
        elif keys.is_cut:
            cut_texts.append(text)
    if search.erase:
        leave_quarantine(table, own_texts + cut_texts)
        table.purge()  # again after a killed one
        if unread_count:
            logger.warning(
                "%d records in quarantine of %s whose key could not be read were searched by text; "
                "%d of them, which an older release has cut, were removed",
                unread_count,
                dataset.name,
                len(cut_texts),
            )
    return len(own_texts)


@in_every_dataset
def erase_online_values(search: EntitySearch, dataset: Dataset) -> int:
    settings = search.settings
    raw = raw_table(settings, dataset)
    key = search.key_in(dataset)
    with closing(OnlineValues(settings, dataset, raw)) as online:
        names = online.hashes_of(key.column, key.value)
        if search.erase:
            project = online.store.project
            with online.lock():
                # The consumer writes again which windows end when.
                online.redis.delete(
                    *names,
                    ends_key(project, dataset.name),
                    loaded_ends_key(project, dataset.name),
                )
    return len(names)


def erase_requests_of_events(search: EntitySearch) -> int:
    """Wait until the consumer has dropped the requests with an event of the entity."""

    def count_waiting() -> int:
        row_count = 0
        for dataset in search.datasets:
            key = search.key_in(dataset)
            reader = KeyReader(search.settings, dataset, key.column)
            for record in waiting(search.settings, dataset.name):
                row_count += reader.of_record(record).are_of(key.value)
        return row_count

    count = count_waiting()
    if search.erase:
        _wait(lambda: not count_waiting())
        rewrite_file(search.settings)
        remove_copies(search.settings.home / "redis")
    return count


def erase_rows_of_frames(search: EntitySearch) -> int:
    """Erase rows of the training frames of all runs; a version is tagged before its frame changes.

    A model of another entity may have the key's column among its label rows.
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


def erase_log_lines(search: EntitySearch) -> int:
    """Make rows of all log lines, here and of replicas, and delete files with unreadable ones."""
    settings = search.settings
    line = line_pattern(search.key, [spec.name for spec in search.specs])
    folder = settings.home / "serving" / "log"
    written_files = [file for file in folder.glob("*.jsonl") if file.stat().st_size]
    count = 0
    if search.erase:
        # Serving ends the files that have rows now.
        _wait(lambda: all(not f.exists() or is_closed(f) for f in written_files))
        if settings.data_url:
            # Replicas on other hosts send their lines.
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


def line_pattern(key: EntityKey, models: Sequence[str]) -> re.Pattern[bytes]:
    """Return a regular expression of a line of serving's log about the entity, for some models.

    The fields of a line may have any order; the key counts in the field `entity` alone.
    """
    names = "|".join(map(re.escape, models))
    model = rf'"model": ?"({names})"'
    # An entity of one column is its value, of several columns an object as a text in JSON.
    entity = rf'"({json_text_pattern(str(key.value))}"|(?:[^"\\]|\\.)*{key.pattern})'
    line = rf'^(?=.*{model}).*"entity": ?{entity}'
    return re.compile(line.encode(), re.MULTILINE)


def erase_outcomes(search: EntitySearch) -> int:
    """Erase outcomes of requests about the entity; its predictions, which name them, go later."""
    row_ids = predictions(search.settings).matching(_is_about(search), "request_id")
    request_ids = [request_of_row(row_id) for row_id in row_ids]
    is_own = column("request_id").isin("", *request_ids).sql()
    return _erase_rows(search, outcomes(search.settings), is_own)


def erase_answers(table: Callable[[Settings], Table], search: EntitySearch) -> int:
    return _erase_rows(search, table(search.settings), _is_about(search))


def _is_about(search: EntitySearch) -> str:
    """SQL condition: an answer of one of the models is about the entity."""
    names = [spec.name for spec in search.specs]
    is_of_models = column("model").isin("", *names).sql()
    is_entity = column("entity").eq(str(search.key.value)).sql()
    return f"{is_of_models} AND ({is_entity} OR {search.key.in_json('entity')})"


def _erase_rows(search: EntitySearch, table: Table, where: str) -> int:
    """Erase rows of a table and of its older versions."""
    query = f"SELECT 1 FROM here WHERE {where}"  # noqa: S608  (ours)
    rows = query_table(search.settings, table.name, query)
    if search.erase and table.exists:
        if rows:
            table.erase(where)
        table.purge()  # again after a killed one
    return len(rows)


def erase_all(
    clean: Callable[[Settings, datetime], object], search: EntitySearch
) -> int:
    """Erase all of a place that may quote values without a key; rows are not counted."""
    if search.erase:
        clean(search.settings, datetime.max.replace(tzinfo=UTC))
    return 0


def erase_data_docs_of_trainings(search: EntitySearch) -> int:
    """Delete the Data Docs of trainings, which quote raw rows; rows are not counted."""
    tracking = Tracking(search.settings)
    for experiment in {spec.experiment for spec in load_specs()}:
        for run in tracking.runs(experiment, deleted=True):
            pages = tracking.list_artifacts(run.run_id, EXPECTATION_PAGES)
            if pages and search.erase:
                tracking.delete_artifacts(run.run_id, EXPECTATION_PAGES)
    return 0


def _wait(is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not is_done() and time.monotonic() < end:
        time.sleep(0.2)


ENTITY_PLACES: dict[str, Callable[[EntitySearch], int]] = {
    "raw rows": erase_raw_rows,
    "features": erase_features,
    "online values": erase_online_values,
    "requests of events": erase_requests_of_events,
    "rows in quarantine": erase_quarantined_rows,
    "training frames": erase_rows_of_frames,
    "prediction log": erase_log_lines,
    "outcomes": erase_outcomes,
    "predictions": partial(erase_answers, predictions),
    "scores": partial(erase_answers, scores),
    "drift reports": partial(erase_all, clean_reports),
    "Data Docs": partial(erase_all, clean_data_docs),
    "Data Docs of trainings": erase_data_docs_of_trainings,
}
"""Place → the function that counts an entity's rows there and erases them, in the order of erasing."""
