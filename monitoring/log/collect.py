"""What serving logged becomes tables, `predictions` and `outcomes`: each row exactly once."""

import fcntl
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import pyarrow as pa
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
from core.tables.table import Table
from mlflow_server.roles import SHADOW
from monitoring.log.tables import outcomes, predictions

BYTES_AT_ONCE = 64 * 1024 * 1024
"""Size of files in memory together; a million rows in ten files took 4 GB at once."""
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A larger one is read as a number with a fraction, and one too large for that is malformed."""
JsonText = Annotated[
    dict[str, bool | Int64 | float | str | None], AfterValidator(json.dumps)
]


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
