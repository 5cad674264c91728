"""What serving logged becomes tables, `predictions` and `outcomes`: each row exactly once.

The table `predictions` has rows that were answered and rows that a version failed. `answered_rows`
reads the first alone, and so does who looks at scores, features or outcomes.
"""

import fcntl
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from upath import UPath

from core.files import local_copies, reached, replace_file
from core.locks import one_writer
from core.settings import Settings
from core.spec import ModelSpec
from core.tables.table import Table
from mlflow_server.roles import SHADOW, RoleAssignment

TIME = pa.timestamp("us", tz="UTC")
BYTES_AT_ONCE = 64 * 1024 * 1024
"""Size of files in memory together; a million rows in ten files took 4 GB at once."""
QUERY_MEMORY = "600MB"
"""What DuckDB may hold of the log; beyond it, it spills to a temporary folder."""
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A larger one is read as a number with a fraction, and one too large for that is malformed."""
JsonText = Annotated[
    dict[str, bool | Int64 | float | str | None], AfterValidator(json.dumps)
]
PREDICTIONS = pa.schema(
    {
        "request_id": pa.string(),
        "model": pa.string(),
        "version": pa.string(),
        "created": pa.int64(),
        "role": pa.string(),
        "received": TIME,
        "as_of": TIME,
        "entity": pa.string(),
        "request_data": pa.string(),
        "features": pa.string(),
        "features_from": pa.string(),
        "probability": pa.float64(),
        "prediction": pa.float64(),
        "probabilities": pa.list_(pa.float64()),
        "in_population": pa.bool_(),
        "error": pa.string(),
        "seconds": pa.float64(),
    }
)
"""Entity as text, request data and features as JSON: one table for models of any shape.

created: of `mlflow_server.roles.RoleAssignment`. request_id: of a row that was answered the
request's own, which feedback names; a shadow's answer has `/shadow` behind it, a failure
`/ROLE/error`. error: why the version failed the row, null if it was answered. seconds: from receipt
of the request's body to the write of its log line, null but of a request's first row.
"""
ANSWERS = [
    name
    for name in PREDICTIONS.names
    if name not in ("request_data", "features", "error", "seconds")
]
"""Columns that say what was answered, without what from: the smaller part."""
NO_FILES = pa.schema(
    [*PREDICTIONS, ("file_index", pa.int64()), ("file_row_number", pa.int64())]
).empty_table()
"""What DuckDB reads where the table has no files."""
LOGGED = """
CREATE TEMP VIEW logged AS
SELECT *, (file_index::BIGINT << 32) + file_row_number AS place
FROM (SELECT *, file_index, file_row_number FROM {source})
WHERE model = getvariable('model') AND created = getvariable('created') AND {span}"""
OUTCOMES = pa.schema(
    {
        "line": pa.string(),
        "request_id": pa.string(),
        "actual": pa.float64(),
        "actual_class": pa.string(),
        "received": TIME,
    }
)
"""Every line of feedback; `line`: its file and number; actual_class: where a name was told."""


class LogLine(BaseModel):
    """A line of a log: see serving/log/prediction_log.py."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    request_id: str
    received: AwareDatetime

    def row(self) -> dict[str, Any]:
        """Return the line as a row of its table."""
        return dict(self)


class Feedback(LogLine):
    """What came true of a request: a number, or the name of a class."""

    actual: float | str

    def row(self) -> dict[str, Any]:
        if isinstance(self.actual, str):
            return dict(self) | {"actual": None, "actual_class": self.actual}
        return dict(self)


class Prediction(LogLine):
    """A row that was answered, or that a version failed."""

    model: str
    version: str
    created: Int64
    role: str
    as_of: AwareDatetime
    entity: Annotated[str, Field(coerce_numbers_to_str=True)] | None
    request_data: JsonText = Field({}, validate_default=True)
    features: JsonText
    features_from: str
    probability: float | None
    prediction: float | None
    probabilities: list[float] | None = None
    in_population: bool
    error: str | None = None
    seconds: float | None = None

    @model_validator(mode="after")
    def _set_row_id(self) -> Self:
        """Give each row of a request an id: the one that its client was answered with keeps it."""
        if (self.prediction is None) == (self.error is None):
            raise ValueError("expected either a prediction or an error")
        if self.error is not None:
            self.request_id += f"/{self.role}/error"
        elif self.role == SHADOW:
            self.request_id += f"/{SHADOW}"
        return self


@dataclass(frozen=True)
class Collected:
    """Rows that were new; lines that were none, counted until their file is set aside."""

    predictions: int
    outcomes: int
    malformed: int


@dataclass(frozen=True)
class KnownOutcomes:
    """What came true, by request.

    Attributes:
        known: The actual of each request that has one. Of several lines for one request the first
            received stands.
        left_out: How many lines do not count, by why. A line names no model: one of an unknown
            request is every model's.

    """

    known: dict[str, float]
    left_out: dict[str, int]


def predictions(settings: Settings) -> Table:
    return Table(settings, "predictions", PREDICTIONS)


def outcomes(settings: Settings) -> Table:
    return Table(settings, "outcomes", OUTCOMES)


def answered_rows(
    settings: Settings,
    where: pc.Expression,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read rows of `predictions` that were answered.

    Args:
        settings: Say where the table is.
        where: Only these rows.
        columns: Only these columns; all by default.

    """
    is_answered = pc.field("error").is_null()
    return predictions(settings).read(columns=columns, where=where & is_answered)


@contextmanager
def query_log(
    settings: Settings, model: RoleAssignment, since: datetime, until: datetime
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open DuckDB on rows of `predictions`, answered or failed, however many there are.

    Args:
        settings: Say where the table is.
        model: Only rows of this model.
        since: Only rows received after it.
        until: Only rows received up to it.

    Yields:
        A connection with the view `logged`. Its column `place` rises as the rows came.

    """
    span = f"received > '{since}' AND received <= '{until}'"
    files = predictions(settings).files(within=span)
    with (
        TemporaryDirectory(prefix="gyre-log-") as spill_folder,
        duckdb.connect(
            config={"memory_limit": QUERY_MEMORY, "temp_directory": spill_folder}
        ) as connection,
    ):
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET VARIABLE files = $1", [files])
        connection.execute("SET VARIABLE model = $1", [model.name])
        connection.execute("SET VARIABLE created = $1", [model.created])
        connection.register("no_files", NO_FILES)
        source = "read_parquet(getvariable('files'))" if files else "no_files"
        connection.execute(LOGGED.format(source=source, span=span))
        yield connection


def request_of_row(row_id: str) -> str:
    """Return the id of the request that a row is of."""
    return re.sub(rf"(/{SHADOW}|/\w+/error)$", "", row_id)


def collect(settings: Settings) -> Collected:
    """Take every final line of the logs into the tables; taking one again changes nothing.

    A file is removed once it is closed and taken, or set aside as `.malformed` if a line of it
    could not be read.

    Raises:
        DataError: Another process held the lock of the logs or of a table for a minute, or the
            inbox does not answer.

    """
    # One at a time: two would remove one file.
    with one_writer(settings, "collect"), reached("the prediction log"):
        prediction_count, malformed_predictions = _take(
            _files(settings, "predictions"),
            Prediction,
            predictions(settings),
            key="request_id",
        )
        outcome_count, malformed_outcomes = _take(
            _files(settings, "feedback"), Feedback, outcomes(settings), key="line"
        )
    malformed = malformed_predictions + malformed_outcomes
    return Collected(prediction_count, outcome_count, malformed)


def join_outcomes(
    settings: Settings, spec: ModelSpec, until: datetime
) -> KnownOutcomes:
    """Join what was told up to `until` with what the model answered; a class by its position.

    A request that the model failed is an unknown one.
    """
    is_in_time = pc.field("received") <= until
    feedback = outcomes(settings).read(where=is_in_time).sort_by("received")
    # Of the requests that lines name alone: there may be millions of predictions.
    is_named = pc.field("request_id").isin(feedback["request_id"].unique())
    answers = answered_rows(settings, is_named, ["request_id", "model", "received"])
    lines = feedback.to_pandas().merge(
        answers.to_pandas(), "left", "request_id", suffixes=("", "_of_answer")
    )
    lines = lines[lines["model"].isna() | (lines["model"] == spec.name)]
    positions = {name: position for position, name in enumerate(spec.classes)}
    class_positions = lines["actual_class"].map(positions).astype(float)
    lines["actual"] = lines["actual"].fillna(class_positions)
    is_of_task = lines["actual"].isin(range(len(spec.classes) or 2))
    if spec.task == "regression":
        is_of_task = lines["actual"].notna()
    is_binary = spec.task == "classification"
    reasons = {
        "of an unknown request": lines["model"].isna(),
        "dated before the prediction": lines["received"] < lines["received_of_answer"],
        "neither 0 nor 1" if is_binary else "no outcome of its task": ~is_of_task,
    }
    lines["reason"] = np.select([*reasons.values()], [*reasons], "")
    usable_lines = lines[lines["reason"] == ""]
    first_lines = usable_lines.drop_duplicates("request_id")
    actuals = first_lines.set_index("request_id")["actual"].to_dict()
    later_lines = usable_lines.drop(first_lines.index)
    repeats = later_lines["actual"] == later_lines["request_id"].map(actuals)
    later_reasons = np.where(repeats, "repeated", "contradicting the first")
    lines.loc[later_lines.index, "reason"] = later_reasons
    left_out = lines["reason"].drop(first_lines.index).value_counts()
    return KnownOutcomes(actuals, left_out.to_dict())


def logged_scores(spec: ModelSpec, answers: pa.Table) -> NDArray[np.float64]:
    """Return scores of rows of `predictions`: [N], of many classes [N, K]; nan of another task."""
    if not spec.classes:
        name = "prediction" if spec.task == "regression" else "probability"
        return np.asarray(answers[name].to_numpy(), np.float64)
    no_scores = [np.nan] * len(spec.classes)
    rows = [row or no_scores for row in answers["probabilities"].to_pylist()]
    return np.array(rows, np.float64).reshape(-1, len(spec.classes))


def is_closed(file: Path) -> bool:
    """The writer holds a lock on its open file, until it closes it or dies."""
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _files(settings: Settings, kind: str) -> dict[Path, UPath]:
    """Files of a log on this disk, each with what it is a copy of: in the inbox, else itself."""
    if settings.data_url:
        logs = (settings.data / "inbox").glob(f"*/{kind}-*.jsonl")
    else:
        logs = UPath(settings.home / "serving" / "log").glob(f"{kind}-*.jsonl")
    paths = sorted(logs)
    copies = map(Path, local_copies(paths, settings.cache))
    return dict(zip(copies, paths, strict=True))


def _take(
    files: Mapping[Path, UPath],
    form: type[LogLine],
    table: Table,
    key: str,
) -> tuple[int, int]:
    """Take files into a table that holds one row of each `key`.

    Returns:
        How many rows were new, and how many lines could not be read.

    """
    # Before reading: nothing more comes.
    closed_files = {file for file in files if is_closed(file)}
    new_count = 0
    malformed = Counter[Path]()
    for group in _groups(files):
        rows: dict[str, dict[str, Any]] = {}
        for file in group:
            file_rows, malformed[file] = _rows(file, form, closed_files)
            for row in file_rows:
                rows.setdefault(row[key], row)  # the first of a request
        if rows:
            row_table = pa.Table.from_pylist([*rows.values()], schema=table.schema)
            # What has the same key was received at about the same time.
            new_count += table.insert(row_table, key, "received")
        for file in closed_files.intersection(group):
            origin = files[file]
            if malformed[file]:
                replace_file(origin.with_suffix(".malformed"), file.read_bytes())
            origin.unlink(missing_ok=True)
            file.unlink(missing_ok=True)
    return new_count, malformed.total()


def _groups(files: Iterable[Path]) -> Iterator[list[Path]]:
    """Files in their order, about as many at a time as have `BYTES_AT_ONCE` together."""
    group: list[Path] = []
    group_size = 0
    for file in files:
        group.append(file)
        group_size += file.stat().st_size
        if group_size >= BYTES_AT_ONCE:
            yield group
            group = []
            group_size = 0
    yield group


def _rows(
    file: Path, form: type[LogLine], closed_files: Collection[Path]
) -> tuple[list[dict[str, Any]], int]:
    """Return rows, a request's as often as it was written; and how many lines were none.

    A line that ends in a newline is final. In a closed file the rest is a line too.
    """
    *lines, rest = file.read_bytes().split(b"\n")
    if file in closed_files:
        lines.append(rest)
    rows: list[dict[str, Any]] = []
    malformed_count = 0
    for number, line in enumerate(filter(None, lines)):
        try:
            row = form.model_validate_json(line).row()
        except ValidationError:
            malformed_count += 1
        else:
            rows.append(row | {"line": f"{file.stem}:{number}"})
    return rows, malformed_count
