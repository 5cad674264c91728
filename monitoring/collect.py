"""What serving wrote becomes tables: `predictions` and `outcomes`, each row exactly once.

A request's row of a shadow has the request's id with `/shadow` behind it.

Lines of open files are taken too (every line that ends in a newline is final; in a closed file the
rest behind the last newline is a line as well, mostly a torn one). Rows are merged by
request id, so taking a file again changes nothing; a file of predictions is removed once it is
closed and taken, or set aside as `.malformed` if a line of it could not be (serving reads its
feedback files itself, those stay).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from mlflow_server.registry import SHADOW
from stack.log_files import final_lines, is_closed
from stack.storage import Table, one_writer

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from stack.settings import Settings

TIME = pa.timestamp("us", tz="UTC")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class Prediction(BaseModel):
    """A line of the prediction log (serving/prediction_log.py) and a row of `predictions`."""

    model_config = STRICT

    request_id: str
    model: str
    version: str
    role: str
    received: AwareDatetime
    as_of: AwareDatetime
    entity: int | str | None
    features: dict[str, int | float | str | None]
    features_from: str
    probability: float | None
    prediction: float
    in_population: bool


class Feedback(BaseModel):
    """A line of the feedback log and a row of `outcomes`."""

    model_config = STRICT

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
    """Rows that were new, lines that were none, and every line of feedback.

    malformed: lines that are torn or not of their log's form. Those of predictions are counted
    until their file is set aside, that time included; those of feedback stay on file, and count
    every time. told: columns of `outcomes`, a row per line, by time of receipt.
    """

    predictions: int
    outcomes: int
    malformed: int
    told: pa.Table


def predictions(settings: Settings) -> Table:
    return Table(settings.data / "predictions", PREDICTIONS)


def outcomes(settings: Settings) -> Table:
    return Table(settings.data / "outcomes", OUTCOMES)


def collect(settings: Settings) -> Collected:
    """Take every final line of the logs into the tables.

    Raises:
        DataError: another process held the lock of the logs or of a table for a minute.

    """
    with one_writer(settings.data / "collect"):  # two would remove one file
        return _collect(settings)


def _collect(settings: Settings) -> Collected:
    folder = settings.home / "serving" / "log"
    files = sorted(folder.glob("predictions-*.jsonl"))
    feedback = sorted(folder.glob("feedback-*.jsonl"))
    # Before reading: nothing more comes.
    closed = {file for file in files + feedback if is_closed(file)}
    answered, malformed = _rows(files, closed, Prediction)
    new = _merge(predictions(settings), answered)
    for file in closed.intersection(files):
        if malformed[file]:
            file.rename(file.with_suffix(".malformed"))
        else:
            file.unlink()
    told, more = _rows(feedback, closed, Feedback)
    told.sort(key=itemgetter("received"))
    lines = pa.Table.from_pylist(told, schema=OUTCOMES)
    return Collected(new, _merge(outcomes(settings), told), (malformed + more).total(), lines)


def _rows(
    files: list[Path], closed: Collection[Path], form: type[BaseModel]
) -> tuple[list[dict[str, Any]], Counter[Path]]:
    """Rows, a request's as often as it was written; and how many lines of each file were none."""
    rows: list[dict[str, Any]] = []
    malformed: Counter[Path] = Counter()
    for file in files:
        for line in final_lines(file.read_bytes(), closed=file in closed)[0]:
            try:
                rows.append(form.model_validate_json(line).model_dump())
            except ValidationError:
                malformed[file] += 1
    return rows, malformed


def _merge(table: Table, rows: list[dict[str, Any]]) -> int:
    """Add the first row of each request that `table` does not hold."""
    if not rows:
        return 0
    for row in rows:
        if row.get("role") == SHADOW:  # the same request was answered by another, and both count
            row["request_id"] += f"/{SHADOW}"
    rows = list({row["request_id"]: row for row in reversed(rows)}.values())
    for row in rows:
        if "features" in row:
            row["features"] = json.dumps(row["features"])
            row["entity"] = None if row["entity"] is None else str(row["entity"])
    return table.insert(pa.Table.from_pylist(rows, schema=table.schema), "request_id")
