"""What serving wrote becomes tables: `predictions` and `outcomes`, each row exactly once.

Lines of open files are taken too (every line that ends in a newline is final). Rows are merged by
request id, so taking a file again changes nothing; a file of predictions is removed once it is
closed and taken, or set aside as `.malformed` if a line of it could not be (serving reads its
feedback files itself, those stay).
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from stack.storage import Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stack.settings import Settings

TIME = pa.timestamp("us", tz="UTC")


class Prediction(BaseModel):
    """A line of the prediction log (serving/prediction_log.py) and a row of `predictions`."""

    model_config = ConfigDict(extra="forbid")

    request_id: str
    model: str
    version: str
    role: str
    received: AwareDatetime
    as_of: AwareDatetime
    entity: int | str | None
    features: dict[str, int | float | str | None]
    features_from: str
    probability: float
    prediction: float
    in_population: bool


class Feedback(BaseModel):
    """A line of the feedback log and a row of `outcomes`."""

    model_config = ConfigDict(extra="forbid")

    request_id: str
    actual: float
    received: AwareDatetime


PREDICTIONS = pa.schema(
    {
        "request_id": pa.string(), "model": pa.string(), "version": pa.string(),
        "role": pa.string(), "received": TIME, "as_of": TIME, "entity": pa.string(),
        "features": pa.string(), "features_from": pa.string(), "probability": pa.float64(),
        "prediction": pa.float64(), "in_population": pa.bool_(),
    }
)  # fmt: skip
"""Entity as text and features as JSON: one table for models of any shape."""
OUTCOMES = pa.schema({"request_id": pa.string(), "actual": pa.float64(), "received": TIME})


@dataclass(frozen=True)
class Collected:
    """Rows that were new, and lines that were none: torn, or not of the log's form."""

    predictions: int
    outcomes: int
    malformed: int


def predictions(settings: Settings) -> Table:
    return Table(settings.data / "predictions", PREDICTIONS)


def outcomes(settings: Settings) -> Table:
    return Table(settings.data / "outcomes", OUTCOMES)


def collect(settings: Settings) -> Collected:
    """Take every final line of the logs into the tables.

    Raises:
        DataError: another process held a table's lock for a minute.

    """
    folder = settings.home / "serving" / "log"
    files = sorted(folder.glob("predictions-*.jsonl"))
    closed = [file for file in files if _is_closed(file)]  # before reading: nothing more comes
    answered, malformed = _rows(files, Prediction)
    new = _merge(predictions(settings), answered)
    for file in closed:
        if malformed[file]:
            file.rename(file.with_suffix(".malformed"))
        else:
            file.unlink()
    told, more = _rows(sorted(folder.glob("feedback-*.jsonl")), Feedback)
    strange = sum((malformed + more).values())
    return Collected(new, _merge(outcomes(settings), told), strange)


def _is_closed(file: Path) -> bool:
    """The writer holds a lock on its open file, until it closes it or dies."""
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _rows(files: list[Path], form: type[BaseModel]) -> tuple[list[dict[str, Any]], Counter[Path]]:
    """Rows by request id, the first of each; and how many lines of each file were none."""
    rows: dict[str, dict[str, Any]] = {}
    malformed: Counter[Path] = Counter()
    for file, line in ((each, line) for each in files for line in _final_lines(each)):
        try:
            row = form.model_validate_json(line).model_dump()
        except ValidationError:
            malformed[file] += 1
        else:
            rows.setdefault(row["request_id"], row)
    return list(rows.values()), malformed


def _final_lines(file: Path) -> Iterator[bytes]:
    *lines, _unfinished = file.read_bytes().split(b"\n")
    return (line for line in lines if line)


def _merge(table: Table, rows: list[dict[str, Any]]) -> int:
    if not rows:
        return 0
    for row in rows:
        if "features" in row:
            row["features"] = json.dumps(row["features"])
            row["entity"] = None if row["entity"] is None else str(row["entity"])
    return table.insert(pa.Table.from_pylist(rows, schema=table.schema), "request_id")
