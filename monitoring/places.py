"""Everything that Gyre keeps, in one table: `gyre forget` and `gyre maintain` go over it.

Every step can be repeated: what a killed process left is gone after the next call.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from sqlglot import column, exp
from upath import UPath

from core.errors import DataError, SettingsError, StackError
from core.files import read_file
from core.locks import INGEST_LOCK, ONLINE_LOCK, one_writer
from core.settings import Settings
from core.spec import ModelSpec, broken_specs, load_specs
from core.storage import Table
from core.table_query import query_table
from feature_repo.broker import rewrite_file, waiting
from feature_repo.datasets import load_dataset, load_datasets
from feature_repo.definition import Dataset
from feature_repo.features import raw_table
from feature_repo.ingest import catch_up
from feature_repo.online_state import ends_key, loaded_ends_key
from feature_repo.online_values import LOCK_SECONDS, OnlineValues
from feature_repo.quarantine import quarantine_table
from feature_repo.refresh import REDIS_SECONDS
from feature_repo.views import view_table
from mlflow_server.alerts import Alerts
from mlflow_server.registry import FORGOTTEN_TAG, Registry
from mlflow_server.tracking import DATA_FOLDER, Tracking
from monitoring.collect import collect, is_closed, outcomes, predictions, request_of_row
from stack.environment import airflow_environment, process_environment
from training.artifacts import FRAME, fetched
from training.batch import scores

DAY = timedelta(days=1)
YEAR = 400 * DAY
"""Of what a person may look up a year later."""
JUDGED = 30 * DAY
"""How long a prediction stays, at least, once its outcome can be known."""
WAIT_SECONDS = 12
"""How long serving and the consumer may take for what they have at hand: serving ends a file after
9 seconds at the latest."""
CLEAN_AIRFLOW = (
    "db clean --skip-archive --yes --error-on-cleanup-failure --batch-size 1000 "
    "--clean-before-timestamp"
)
"""In batches, as its SQLite has one writer. The file does not shrink; free pages are used again."""


@dataclass(frozen=True)
class Key:
    """A column and a value: the rows that have the value there are those of an entity."""

    column: str
    value: int | str

    @property
    def equals(self) -> str:
        """SQL: the column has the value."""
        return column(self.column, quoted=True).eq(self.value).sql()

    @property
    def pattern(self) -> str:
        """Regular expression of Python and of Rust: the column with the value, in JSON.

        The JSON may be a text in JSON itself.
        """
        text = str(self.value)
        spellings = {json.dumps(text), json.dumps(text, ensure_ascii=False)}
        patterns = [re.escape(spelling[1:-1]) for spelling in sorted(spellings)]
        any_spelling = "|".join(patterns).replace(r"\\", r"\\+")
        quote = r'\\*"' if isinstance(self.value, str) else ""
        return rf'\\*"{self.column}\\*": ?{quote}({any_spelling}){quote}\s*[,}}]'

    def in_json(self, column: str) -> str:
        """SQL: the JSON in another column has the value."""
        return f"regexp_like({column}, {exp.convert(self.pattern).sql()})"


@dataclass(frozen=True)
class Search:
    """A search for the rows of one entity: erase: whether these go, or are counted alone."""

    settings: Settings
    key: Key
    erase: bool = False

    @cached_property
    def datasets(self) -> list[Dataset]:
        """Datasets that have the key's column."""
        datasets, _ = load_datasets()
        return [data for data in datasets if self.key.column in data.schema.names]

    @cached_property
    def specs(self) -> list[ModelSpec]:
        """Models that have it."""
        return [spec for spec in load_specs() if self.key.column in spec.entity_key]


@dataclass(frozen=True)
class Place:
    """Something that Gyre keeps.

    Attributes:
        name: What people read; of a table its name.
        forget: Counts the rows of an entity, and erases them if asked to; None: it has no key.
        clean: Frees what is older than a time, and returns how many rows and files went; None:
            nothing of it grows.
        age: How long rows and files stay.
        quotes: Whether it quotes values without a key: then all of it goes with an entity.

    """

    name: str
    forget: Callable[[Search], int] | None = None
    clean: Callable[[Settings, datetime], tuple[int, int]] | None = None
    age: timedelta = YEAR
    quotes: bool = False


def table_place(
    name: str,
    time_column: str | None = None,
    forget: Callable[[Search], int] | None = None,
) -> Place:
    """Return the place of a table; without a time of its rows they stay whatever their age."""
    return Place(name, forget, partial(_clean_table, name, time_column))


def file_place(
    name: str, pattern: str, age: timedelta, *, quotes: bool = False
) -> Place:
    """Return the place of files below the home or below the data."""
    return Place(name, None, partial(_clean_files, pattern), age, quotes)


def judged_age(specs: Iterable[ModelSpec]) -> timedelta:
    """Return how long predictions have to stay until each can be judged.

    Raises:
        SettingsError: A spec is broken, or its dataset lacks its label.

    """
    problems = broken_specs()
    waits = [timedelta()]
    for spec in specs:
        labels = load_dataset(spec.dataset).labels
        if spec.label in labels:
            label = labels[spec.label]
            waits.append(label.horizon + label.lateness)
        else:
            problems.append(f"{spec.name}: {spec.dataset} has no label {spec.label}")
    if problems:
        raise SettingsError(f"left as it is: labels are unknown: {'; '.join(problems)}")
    return max(waits) + JUDGED


def _forget_raw(search: Search) -> int:
    """Of raw rows, and of rows that events superseded; features are computed without them.

    Raises:
        DataError: No other entity has a row.

    """
    settings = search.settings
    is_own = search.key.equals
    is_superseded = search.key.in_json("superseded")
    count = 0
    for dataset in search.datasets:
        raw = raw_table(settings, dataset)
        rows = raw.matching(f"{is_own} OR {is_superseded}", dataset.entity)
        count += len(rows)
        if rows and not raw.matching(f"NOT {is_own} LIMIT 1", dataset.entity):
            raise DataError(
                f"{raw.name}: nobody else has rows: remove the installation"
            )
        if search.erase and raw.exists:
            # In the order of ingest and consumer, of which neither writes meanwhile.
            with (
                one_writer(settings, INGEST_LOCK.format(dataset.name)),
                one_writer(settings, ONLINE_LOCK.format(dataset.name), LOCK_SECONDS),
                one_writer(settings, raw.name),
            ):
                raw.erase(is_own)
                raw.erase(is_superseded, "superseded")
                catch_up(settings, dataset, raw, datetime.now(UTC))
                raw.purge()
    return count


def _forget_features(search: Search) -> int:
    names = [name for dataset in search.datasets for name in dataset.views]
    views = [view_table(search.settings, name) for name in names]
    return sum(_forget_rows(search, view, search.key.equals) for view in views)


def _forget_quarantine(search: Search) -> int:
    is_own = search.key.in_json('"row"')
    tables = [quarantine_table(search.settings, dataset) for dataset in search.datasets]
    return sum(_forget_rows(search, table, is_own) for table in tables)


def _forget_online(search: Search) -> int:
    settings = search.settings
    count = 0
    for dataset in search.datasets:
        raw = raw_table(settings, dataset)
        with closing(OnlineValues(settings, dataset, raw, REDIS_SECONDS)) as online:
            names = online.hashes_of(search.key.column, search.key.value)
            count += len(names)
            if search.erase:
                # The consumer notes anew which windows end.
                end_keys = (
                    ends_key(online.store.project, dataset.name),
                    loaded_ends_key(online.store.project, dataset.name),
                )
                with online.lock():
                    online.redis.delete(*names, *end_keys)
    return count


def _forget_streams(search: Search) -> int:
    """Of requests with an event of the entity, which the consumer drops."""

    def count_waiting() -> int:
        return sum(
            waiting(search.settings, dataset.name, search.key.pattern)
            for dataset in search.datasets
        )

    count = count_waiting()
    if search.erase:
        _wait(lambda: not count_waiting())
        rewrite_file(search.settings)
    return count


def _forget_frames(search: Search) -> int:
    """Of the frames of all runs; a version's tag says so before its frame is changed."""
    registry = Registry(search.settings)
    tracking = Tracking(search.settings)
    field = pc.field(search.key.column)
    is_own = field == search.key.value
    is_other = ~is_own | field.is_null()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    count = 0
    for spec in search.specs:
        versions = {version.run_id: version for version in registry.versions(spec.name)}
        for run in tracking.runs(spec.experiment, deleted=True):
            for artifact in tracking.list_artifacts(run.run_id, DATA_FOLDER):
                with fetched(tracking, run.run_id, artifact.path) as file:
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
    line = re.compile(rf'"model":"({names})".*"entity":({entity})'.encode())
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
    files = [*UPath(folder).glob("predictions-*")]
    if settings.data_url:
        files += (settings.data / "inbox").glob("*/predictions-*")
    for file in files:
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


def _forget_predictions(search: Search) -> int:
    return _forget_rows(search, predictions(search.settings), _is_about(search))


def _forget_scores(search: Search) -> int:
    return _forget_rows(search, scores(search.settings), _is_about(search))


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


def _clean_table(
    name: str, time_column: str | None, settings: Settings, before: datetime
) -> tuple[int, int]:
    table = Table(settings, name, pa.schema([]))
    return table.clean_up(time_column, before) if table.exists else (0, 0)


def _clean_files(pattern: str, settings: Settings, before: datetime) -> tuple[int, int]:
    """Delete files, and empty folders of a disk, that were last changed before a time."""
    file_count = 0
    for folder in (UPath(settings.home), settings.data):
        # The innermost first.
        paths = sorted(folder.glob(pattern), reverse=True)
        for path in [p for p in paths if p.stat().st_mtime < before.timestamp()]:
            if path.is_file():
                path.unlink(missing_ok=True)
                file_count += 1
            elif isinstance(path, Path):
                with suppress(OSError):  # not empty
                    path.rmdir()
    return 0, file_count


def _clean_reports(settings: Settings, before: datetime) -> tuple[int, int]:
    """Delete Evidently's reports on windows before a time; the figures of a run stay."""
    tracking = Tracking(settings)
    file_count = 0
    for experiment in sorted(
        {f"{spec.experiment}_monitoring" for spec in load_specs()}
    ):
        for run in tracking.runs(experiment, deleted=True):
            for folder in tracking.list_artifacts(run.run_id, "reports"):
                if Path(folder.path).name < f"{before:%Y-%m-%dT%H%M%S}":
                    file_count += len(tracking.list_artifacts(run.run_id, folder.path))
                    tracking.delete_artifacts(run.run_id, folder.path)
    return 0, file_count


def _clean_alerts(settings: Settings, before: datetime) -> tuple[int, int]:
    """Delete alerts last seen before a time."""
    with closing(Alerts(settings)) as alerts:
        return alerts.forget(before), 0


def _clean_airflow(settings: Settings, before: datetime) -> tuple[int, int]:
    """Have Airflow delete its rows of before a time."""
    database = settings.home / "airflow" / "airflow.db"
    if settings.database_url or database.exists():
        airflow = str(Path(sys.executable).with_name("airflow"))
        ended = subprocess.run(
            [airflow, *CLEAN_AIRFLOW.split(), before.isoformat()],
            env=process_environment(settings) | airflow_environment(settings),
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            output = ended.stderr or ended.stdout
            raise StackError(" ".join(output.split())[-300:])
    return 0, 0


def _wait(is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not is_done() and time.monotonic() < end:
        time.sleep(0.2)


PLACES = (
    Place("raw rows", _forget_raw),
    Place("features", _forget_features),
    Place("online values", _forget_online),
    Place("rows in quarantine", _forget_quarantine),
    Place("requests of events", _forget_streams),
    Place("training frames", _forget_frames),
    Place("prediction log", _forget_log),
    table_place("outcomes", "received", _forget_outcomes),
    table_place("predictions", "received", _forget_predictions),
    table_place("scores", "as_of", _forget_scores),
    table_place("decisions", "as_of"),
    table_place("checks", "as_of"),
    Place("drift reports", clean=_clean_reports, age=90 * DAY, quotes=True),
    file_place("Data Docs", "reports/data_docs/**/*.html", 90 * DAY, quotes=True),
    file_place("malformed lines set aside", "serving/**/*.malformed", YEAR),
    file_place("malformed lines of replicas", "inbox/*/*.malformed", YEAR),
    file_place("Airflow's task logs", "airflow/logs/**/*", 30 * DAY),
    file_place("copies of files on S3", "cache/**/*", 7 * DAY),
    file_place("rows that Spark left", "scratch/**/*", DAY),
    Place("alerts", clean=_clean_alerts),
    Place("Airflow's rows", clean=_clean_airflow, age=30 * DAY),
)
"""In the order of erasing."""
