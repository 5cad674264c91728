"""The logs of serving, whose lines become rows of `predictions` and `outcomes`, each exactly once."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
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

from core.files import is_closed, local_copies, reached, replace_file
from core.locks import one_writer
from core.settings import Settings
from core.tables.table import Table
from mlflow_server.roles import SHADOW
from monitoring.log.tables import PREDICTIONS, outcomes, predictions

BYTES_AT_ONCE = 64 * 1024 * 1024
"""Size of the files that are in memory together: a million rows in ten files took 4 GB."""
LoggedInteger = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A larger integer is read as a float; one that is too large for a float is malformed."""
JsonText = Annotated[
    dict[str, bool | LoggedInteger | float | str | None], AfterValidator(json.dumps)
]


class LogLine(BaseModel):
    """A line of a log of serving: see serving/prediction_log/append_log.py."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    request_id: str
    received: AwareDatetime

    def row(self) -> dict[str, Any]:
        """Return the line as a row of its table."""
        return dict(self)


class FeedbackLine(LogLine):
    """A line of feedback: the outcome of a request, as a number or as the name of a class."""

    actual: float | str

    def row(self) -> dict[str, Any]:
        if isinstance(self.actual, str):
            return dict(self) | {"actual": None, "actual_class": self.actual}
        return dict(self)


class PredictionLine(LogLine):
    """A line of a row that a version answered or failed."""

    model: str
    version: str
    created: LoggedInteger
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
        """Make the ids of a request's rows differ. The row that the client received keeps the id."""
        if (self.prediction is None) == (self.error is None):
            raise ValueError("expected either a prediction or an error")
        if self.error is not None:
            self.request_id += f"/{self.role}/error"
        elif self.role == SHADOW:
            self.request_id += f"/{SHADOW}"
        return self


@dataclass(frozen=True)
class Collected:
    """Numbers of new rows, and of malformed lines in files that are not set aside yet."""

    predictions: int
    outcomes: int
    malformed: int


def collect(settings: Settings) -> Collected:
    """Move every final line of the logs into the tables. A line that is there already stays as is.

    A file is removed once it is closed and all of its lines are in the tables. It is set aside as
    `.malformed` if a line of it cannot be read.

    Raises:
        DataError: Another process held the lock of the logs or of a table for a minute, or the
            inbox does not answer.

    """
    # One process at a time: two would remove the same file.
    with one_writer(settings, "collect"), reached("the prediction log"):
        prediction_count, malformed_predictions = _take(
            _files(settings, "predictions"),
            PredictionLine,
            predictions(settings),
            key="request_id",
        )
        outcome_count, malformed_outcomes = _take(
            _files(settings, "feedback"), FeedbackLine, outcomes(settings), key="line"
        )
    malformed = malformed_predictions + malformed_outcomes
    return Collected(prediction_count, outcome_count, malformed)


def waiting_rows(settings: Settings, text: bytes, most: int) -> pa.Table:
    """Return rows of `predictions` that are still in the log alone; nothing is moved.

    Args:
        settings: Settings of the installation.
        text: Part of their lines, such as `"entity":"4"`.
        most: Number of lines to read of each file, the newest ones.

    Raises:
        DataError: The log cannot be read.

    """
    rows = []
    with reached("the prediction log"):
        for file in _files(settings, "predictions"):
            with suppress(FileNotFoundError):  # it was collected meanwhile
                lines = file.read_bytes().split(b"\n")
                for line in [line for line in lines if text in line][-most:]:
                    with suppress(ValidationError):
                        rows.append(PredictionLine.model_validate_json(line).row())
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def _files(settings: Settings, kind: str) -> dict[Path, UPath]:
    """Return the files of a log on this disk, each with its origin: in the inbox, else itself."""
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
    """Move files into a table that holds one row of each `key`.

    Returns:
        The number of new rows, and the number of lines that could not be read.

    """
    # Before the files are read: a closed file does not grow.
    closed_files = {file for file in files if is_closed(file)}
    new_count = 0
    malformed = Counter[Path]()
    for group in _groups(files):
        rows: dict[str, dict[str, Any]] = {}
        for file in group:
            file_rows, malformed[file] = _rows(file, form, closed_files)
            for row in file_rows:
                rows.setdefault(row[key], row)  # the first row of a key counts
        if rows:
            row_table = pa.Table.from_pylist([*rows.values()], schema=table.schema)
            # Rows of one key were received at about the same time.
            new_count += table.insert(row_table, key, "received")
        for file in closed_files.intersection(group):
            origin = files[file]
            if malformed[file]:
                replace_file(origin.with_suffix(".malformed"), file.read_bytes())
            origin.unlink(missing_ok=True)
            file.unlink(missing_ok=True)
    return new_count, malformed.total()


def _groups(files: Iterable[Path]) -> Iterator[list[Path]]:
    """Yield the files in order, in groups of about `BYTES_AT_ONCE`."""
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
    """Return the rows of a file, and the number of lines that could not be read.

    A line that ends in a newline is final. In a closed file the rest is a line, too. A row that was
    written twice is returned twice.
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
