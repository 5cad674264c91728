"""`gyre forget`: every row of one entity goes, from every place that holds some.

The key is kept out first (feature_repo/forgotten.py). Every step can be repeated, and each call
repeats all: what a killed one left is gone after the next.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from sqlglot import column, exp
from upath import UPath

from core.errors import DataError, SettingsError
from core.files import reached, read_file
from core.locks import one_writer
from core.settings import Settings
from core.spec import ModelSpec, broken_specs, load_specs
from core.storage import Table
from feature_repo.broker import rewrite_file, waiting
from feature_repo.datasets import load_datasets
from feature_repo.definition import Dataset
from feature_repo.features import raw_table
from feature_repo.forgotten import forgotten, keep_out
from feature_repo.ingest import catch_up
from feature_repo.online_state import ends_key, loaded_ends_key
from feature_repo.online_values import LOCK_SECONDS, OnlineValues
from feature_repo.quarantine import quarantine_table
from feature_repo.refresh import REDIS_SECONDS
from feature_repo.views import view_files, view_table
from mlflow_server.registry import Registry
from mlflow_server.tracking import DATA_FOLDER, Tracking
from monitoring.collect import collect, is_closed, outcomes, predictions
from serving.prediction_log import ROTATE
from training.artifacts import FRAME
from training.batch import scores

SECONDS = 10
"""How long serving and the consumer may take for what they have at hand."""
FILES = {
    "training frames": f"{DATA_FOLDER}/*.parquet",
}
OUT_OF_REACH = """out of reach:
  backups, and copies on other hosts (there for a week): forget again after a restore
  the source: what it delivers of the key is kept out from now on
  versions: what they learnt stays, with up to 20 rows of features without a key; train again
  answers to requests that gave features and no key
  texts that may quote a value: logs of the programs and of Airflow, alerts, how runs ended, why
    the last rows of a dataset were stopped
  memory of serving: features of the last 300 s, for when Redis fails
  online values in another store than Redis (GYRE_ONLINE_STORE__TYPE): delete them by its means"""


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
        value = str(self.value)
        texts = {json.dumps(value), json.dumps(value, ensure_ascii=False)}
        patterns = [re.escape(text[1:-1]) for text in sorted(texts)]
        any_text = "|".join(patterns).replace(r"\\", r"\\+")
        quote = r'\\*"' if isinstance(self.value, str) else ""
        return rf'\\*"{self.column}\\*": ?{quote}({any_text}){quote}\s*[,}}]'

    def in_json(self, column: str) -> str:
        """SQL: the JSON in another column has the value."""
        return f"regexp_like({column}, {exp.convert(self.pattern).sql()})"


def named_key(name: str, column: str, text: str) -> Key:
    """Return the key of a model or a dataset; SettingsError: there is none, or no such value."""
    datasets, specs = _all()
    keys = {
        (each.name, each.entity): str(each.schema.field(each.entity).type)
        for each in datasets
    }
    keys |= {
        (spec.name, key): kind
        for spec in specs
        for key, kind in spec.entity_key.items()
    }
    if (name, column) not in keys:
        expected = " or ".join(f"{known} --{key} VALUE" for known, key in keys)
        raise SettingsError(
            f"expected {expected}, found {name} --{column}".removesuffix(" --")
        )
    try:
        return Key(column, int(text) if keys[name, column] == "int64" else text)
    except ValueError as exc:
        raise SettingsError(
            f"--{column}: expected a whole number, found {text!r}"
        ) from exc


def forget(settings: Settings, key: Key, *, dry_run: bool = False) -> dict[str, int]:
    """Take every row of the key out, wherever it is; return how many by place.

    dry_run: count alone. Empty: all were forgotten before.

    Raises:
        DataError: nothing ever had the key, or something has it still: another try may do; or
            maintenance or a backup goes on.
        RegistryError: MLflow does not answer.

    """
    rows = Search(settings, key).counts()
    if not rows and not forgotten(settings).has({key.column: key.value}):
        raise DataError(f"nothing has {key.column} {key.value}: nothing was changed")
    if dry_run:
        return rows
    with one_writer(settings, "backup"), one_writer(settings, "maintain"):
        keep_out(settings, key.column, key.value)
        # Of a killed one.
        shutil.rmtree(settings.home / "run" / ".backup.part", ignore_errors=True)
        rows |= Search(settings, key, delete=True).counts()
    if left := Search(settings, key).counts():
        remedy = "are serving and gyre consume well? Again, at the latest in 10 minutes"
        raise DataError(f"not forgotten yet: {left}: {remedy}")
    return rows


def _all() -> tuple[list[Dataset], list[ModelSpec]]:
    datasets, broken = load_datasets()
    if problems := [*broken, *broken_specs()]:
        raise SettingsError(f"whose rows they have is not known: {'; '.join(problems)}")
    return datasets, [*load_specs()]


@dataclass(frozen=True)
class Search:
    """One way through all places. delete: what is found is taken out, else counted alone."""

    settings: Settings
    key: Key
    delete: bool = False

    def counts(self) -> dict[str, int]:
        """Rows by place, of places that have some."""
        datasets, specs = _all()
        datasets = [each for each in datasets if self.key.column in each.schema.names]
        models = [spec for spec in specs if self.key.column in spec.entity_key]
        rows, trainings = map(self._rows, datasets), map(self._trainings, models)
        answers = self._answers([spec.name for spec in models])
        if self.delete:
            # Made anew with the next batch.
            for page in self.settings.data_docs.glob("**/*.html"):
                page.unlink()
        places = chain(*rows, *trainings, answers, *map(self._stream, datasets))
        return {place: count for place, count in places if count}

    def _rows(self, dataset: Dataset) -> Iterator[tuple[str, int]]:
        """Raw rows and those that events superseded, features, online values, quarantine."""
        raw, moved = raw_table(self.settings, dataset), self.key.in_json("superseded")
        rows = len(raw.matching(f"{self.key.equals} OR {moved}", dataset.key[0]))
        if rows and not raw.matching(f"NOT {self.key.equals} LIMIT 1", dataset.key[0]):
            raise DataError(
                f"{raw.name}: nobody else has rows: remove the installation"
            )
        yield raw.name, rows
        files = (
            file for view in dataset.views for file in view_files(self.settings, view)
        )
        yield f"features of {dataset.name}", sum(map(self._count, files))
        if self.delete and raw.exists:
            self._take_rows(dataset, raw, moved)
        with closing(
            OnlineValues(self.settings, dataset, raw, REDIS_SECONDS)
        ) as online:
            names = online.hashes_of(self.key.column, self.key.value)
            yield f"online values of {dataset.name}", len(names)
            if self.delete:
                project = online.store.project
                ends = (
                    ends_key(project, dataset.name),
                    loaded_ends_key(project, dataset.name),
                )
                with online.lock():  # the consumer notes anew which windows end
                    online.redis.delete(*names, *ends)
        aside = quarantine_table(self.settings, dataset)
        yield self._table(aside, self.key.in_json("row"), "rules")

    def _take_rows(self, dataset: Dataset, raw: Table, moved: str) -> None:
        turn = one_writer(self.settings, f"features/{dataset.name}", LOCK_SECONDS)
        # In the order of ingest and consumer, of which neither writes meanwhile.
        with (
            one_writer(self.settings, dataset.name),
            turn,
            one_writer(self.settings, raw.name),
        ):
            raw.erase(self.key.equals)
            raw.erase(moved, "superseded")
            catch_up(self.settings, dataset, raw, datetime.now(UTC))
            for view in dataset.views:
                view_table(self.settings, view).purge()
            raw.purge()

    def _table(self, table: Table, where: str, column: str) -> tuple[str, int]:
        rows = len(table.matching(where, column))
        if self.delete and table.exists:
            table.erase(where)
            table.purge()
        return table.name, rows

    def _count(self, file: str | Path) -> int:
        rows, same = ds.dataset(file), pc.field(self.key.column) == self.key.value
        return (
            rows.count_rows(filter=same) if self.key.column in rows.schema.names else 0
        )

    def _stream(self, dataset: Dataset) -> Iterator[tuple[str, int]]:
        """Requests of events: the consumer drops what is of who was forgotten."""
        pattern = self.key.pattern
        yield f"stream of {dataset.name}", waiting(self.settings, dataset.name, pattern)
        if self.delete:
            _wait(lambda: not waiting(self.settings, dataset.name, pattern))
            rewrite_file(self.settings)

    def _trainings(self, spec: ModelSpec) -> Iterator[tuple[str, int]]:
        """Frames, of which versions are marked first."""
        registry, tracking = Registry(self.settings), Tracking(self.settings)
        versions = {version.run_id: version for version in registry.versions(spec.name)}

        def change(run_id: str, file: Path) -> int:
            rows = self._take_from(file)
            if rows and self.delete and file.name == FRAME and run_id in versions:
                registry.mark_forgotten(
                    versions[run_id], f"{datetime.now(UTC):%Y-%m-%d}"
                )
            return rows

        for what, pattern in FILES.items():
            rows = tracking.rewrite(spec.experiment, pattern, change, store=self.delete)
            yield f"{what} of {spec.name}", rows

    def _take_from(self, file: Path) -> int:
        """Take rows out of a parquet file."""
        if rows := self._count(file):
            field = pc.field(self.key.column)
            others = (field != self.key.value) | field.is_null()
            pq.write_table(pq.read_table(file, filters=others), file)
        return rows

    def _answers(self, models: list[str]) -> Iterator[tuple[str, int]]:
        """Answers, what came true of them, and batch scores."""
        text, answered = str(self.key.value), predictions(self.settings)
        same = f"{column('entity').eq(text).sql()} OR {self.key.in_json('entity')}"
        where = f"model IN ({_list(models)}) AND ({same})"
        entity = (
            f"{re.escape(json.dumps(text, ensure_ascii=False))}|.*{self.key.pattern}"
        )
        line = rf'"model":"({"|".join(models)})".*"entity":({entity})'.encode()
        with one_writer(self.settings, "collect"), reached("the prediction log"):
            yield "prediction log", sum(count for _, count in self._lines(line))
            if self.delete:
                self._end_log()
                collect(self.settings)
            told = f"request_id IN ({_list(answered.matching(where, 'request_id'))})"
            yield self._table(outcomes(self.settings), told, "line")
            yield self._table(answered, where, "request_id")
            yield self._table(scores(self.settings), where, "day")
            for file, count in self._lines(line) if self.delete else ():
                # Its good lines are in the tables.
                if count and file.suffix == ".malformed":
                    file.unlink()

    def _lines(self, line: bytes) -> list[tuple[UPath, int]]:
        """Files of the log, here and sent by replicas, and how many lines of each match."""
        files = [*UPath(self.settings.home / "serving" / "log").glob("predictions-*")]
        if self.settings.data_url:
            files += (self.settings.data / "inbox").glob("*/predictions-*")
        return [(file, len(re.findall(line, read_file(file)))) for file in files]

    def _end_log(self) -> None:
        """Have serving end the files that it writes."""
        folder = self.settings.home / "serving" / "log"
        written = [file for file in folder.glob("*.jsonl") if file.stat().st_size]

        def ended() -> bool:
            (folder / ROTATE).touch()
            return all(not file.exists() or is_closed(file) for file in written)

        if written:
            _wait(ended)
        if self.settings.data_url:
            time.sleep(SECONDS)  # in which replicas on other hosts send what they have


def _wait(is_done: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not is_done() and time.monotonic() < until:
        time.sleep(0.2)


def _list(texts: Iterable[str]) -> str:
    """SQL of a list, which may be empty."""
    return ", ".join(exp.convert(text).sql() for text in ("", *texts))
