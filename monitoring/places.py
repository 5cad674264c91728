"""Everything that Gyre keeps, in one table: `gyre forget` and `gyre maintain` go over it.

Every step can be repeated: what a killed process left is gone after the next call.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
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
from core.user_code import DATASETS, in_one_line
from feature_repo.broker import rewrite_file, waiting
from feature_repo.datasets import load_dataset, load_datasets
from feature_repo.definition import Dataset
from feature_repo.features import raw_table
from feature_repo.ingest import catch_up
from feature_repo.online_state import ends_key, loaded_ends_key
from feature_repo.online_values import LOCK_SECONDS, OnlineValues
from feature_repo.quarantine import quarantine_table
from feature_repo.refresh import REDIS_SECONDS
from feature_repo.store import open_store
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
                    catch_up(settings, dataset, raw, datetime.now(UTC))
            finally:
                raw.purge()
    return len(rows)


def _forget_features(search: Search, dataset: Dataset) -> int:
    """Of views with the key; views of another entity were computed anew from raw rows."""
    row_count = 0
    for name in dataset.views:
        view = view_table(search.settings, name)
        if view.exists and search.key.column in view.stored_schema().names:
            row_count += _forget_rows(search, view, search.key.equals)
        elif view.exists and search.erase:
            view.purge()
    return row_count


def _forget_quarantine(search: Search, dataset: Dataset) -> int:
    is_own = search.key_in(dataset).in_json('"row"')
    return _forget_rows(search, quarantine_table(search.settings, dataset), is_own)


def _forget_online(search: Search, dataset: Dataset) -> int:
    settings = search.settings
    raw = raw_table(settings, dataset)
    key = search.key_in(dataset)
    with closing(OnlineValues(settings, dataset, raw, REDIS_SECONDS)) as online:
        names = online.hashes_of(key.column, key.value)
        if search.erase:
            # The consumer notes anew which windows end.
            end_keys = (
                ends_key(online.store.project, dataset.name),
                loaded_ends_key(online.store.project, dataset.name),
            )
            with online.lock():
                online.redis.delete(*names, *end_keys)
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
    other_specs = [spec for spec in load_specs() if spec.dataset in names]
    for spec in {spec.name: spec for spec in (*search.specs, *other_specs)}.values():
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
    Place("raw rows", partial(_in_datasets, _forget_raw)),
    Place("features", partial(_in_datasets, _forget_features)),
    Place("online values", partial(_in_datasets, _forget_online)),
    Place("rows in quarantine", partial(_in_datasets, _forget_quarantine)),
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
