"""What serving wrote becomes tables: `predictions` and `outcomes`, each row exactly once.

A request's row of a shadow has the request's id with `/shadow` behind it.

Lines of open files are taken too (every line that ends in a newline is final; in a closed file the
rest behind the last newline is a line as well, mostly a torn one). Rows are merged by
request id, so taking a file again changes nothing; a file of predictions is removed once it is
closed and taken, or set aside as `.malformed` if a line of it could not be. Serving reads its
feedback files itself: those stay until it remembers enough newer lines (`closed_feedback`).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mlflow_server.registry import SHADOW
from stack.log_files import REMEMBERED, began, final_lines, is_closed
from stack.storage import Table, one_writer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from stack.settings import Settings

TIME = pa.timestamp("us", tz="UTC")
COMPACT = (",", ":")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A larger one is read as a number with a fraction, and one too large for that is malformed."""


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
    features: dict[str, Int64 | float | str | None]
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
        "prediction": pa.float64(), "in_population": pa.bool_(), "names": pa.string(),
        "numbers": pa.list_(pa.float64()), "texts": pa.list_(pa.string()),
    }
)  # fmt: skip
"""Entity as text and features as JSON: one table for models of any shape.

names, numbers, texts: the features once more, for who reads millions (JSON takes three times as
long): their names in order, as a JSON list, and at each one's place its number or its text; null
in rows of before there were these columns.
"""
FEATURES = ("features", "names", "numbers", "texts")
ANSWERS = [name for name in PREDICTIONS.names if name not in FEATURES]
"""Columns that say what was answered, without what from: the smaller part."""
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


def closed_feedback(settings: Settings) -> list[Path]:
    """Files of feedback that nobody needs: serving remembers newer lines, and all are stored.

    A line that is malformed keeps its file. What only such a file says, as that an outcome was
    told again, is counted no more once it is gone.
    """
    files = sorted(_folder(settings).glob("feedback-*.jsonl"), key=began, reverse=True)
    stored: set[str] | None = None
    remembered, gone = 0, []
    for file in files:
        closed = is_closed(file)  # before reading: nothing more comes
        rows, malformed = _rows([file], {file} if closed else (), Feedback)
        if closed and (remembered >= REMEMBERED or not rows) and not malformed:
            if stored is None:
                stored = set(outcomes(settings).read(columns=["request_id"])[0].to_pylist())
            gone += [file] if {row["request_id"] for row in rows} <= stored else []
        remembered += len(rows)
    return gone


def _folder(settings: Settings) -> Path:
    return settings.home / "serving" / "log"


def _collect(settings: Settings) -> Collected:
    folder = _folder(settings)
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


def spread_out(features: Mapping[str, int | float | str | None]) -> dict[str, Any]:
    """The columns `names`, `numbers` (float64: of an integer the nearest) and `texts` of a row."""
    names = sorted(features)
    values = [features[name] for name in names]
    return {
        "names": json.dumps(names, separators=COMPACT),
        "numbers": [float(v) if isinstance(v, int | float) else None for v in values],
        "texts": [value if isinstance(value, str) else None for value in values],
    }


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
            row.update(spread_out(row["features"]), features=json.dumps(row["features"]))
            row["entity"] = None if row["entity"] is None else str(row["entity"])
    return table.insert(pa.Table.from_pylist(rows, schema=table.schema), "request_id")
