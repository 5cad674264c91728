"""What serving wrote becomes tables: `predictions` and `outcomes`, each row exactly once.

A request's row of a shadow has the request's id with `/shadow` behind it.

Lines of open files are taken too (every line that ends in a newline is final; in a closed file the
rest behind the last newline is a line as well, mostly a torn one). Rows are merged by
request id, so taking a file again changes nothing; a file of predictions is removed once it is
closed, taken and safe from a power cut in the table, or set aside as `.malformed` if a line of it
could not be. They are taken 64 MB at a time: a million rows in ten files took 1 GB of memory, and
4 GB at once. Files of feedback stay until there are enough newer lines (`closed_feedback`): the
table has one line of each request, and lines that contradict it are counted from the files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mlflow_server.registry import SHADOW
from stack.log_files import began, final_lines, first_began, is_closed
from stack.storage import Table, make_durable, one_writer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from stack.settings import Settings

TIME = pa.timestamp("us", tz="UTC")
COMPACT = (",", ":")
REMEMBERED = 100_000
"""Lines of feedback that stay on file, the newest: contradictions among them are counted."""
AT_ONCE = 64 * 1024 * 1024
"""Bytes of files that are in memory together; serving ends a file at as many."""
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


def collect(settings: Settings, at_once: int = AT_ONCE) -> Collected:
    """Take every final line of the logs into the tables.

    at_once: bytes of files of predictions that are taken together; a longer file alone.

    Raises:
        DataError: another process held the lock of the logs or of a table for a minute.

    """
    with one_writer(settings.data / "collect"):  # two would remove one file
        return _collect(settings, at_once)


def closed_feedback(settings: Settings, past: datetime | None = None) -> list[Path]:
    """Files of feedback that nobody needs: newer lines are on file, and all of these are stored.

    A line that is malformed keeps its file. What only such a file says, as that an outcome was
    told again, is counted no more once it is gone. past: what was received before is not asked
    for, the table need not hold it any more. What is stored is safe from a power cut on return.
    """
    files = sorted(_folder(settings).glob("feedback-*.jsonl"), key=began, reverse=True)
    stored: set[str] | None = None
    gone: list[Path] = []
    remembered = 0
    for file in files:
        closed = is_closed(file)  # before reading: nothing more comes
        rows, malformed = _rows(file, Feedback, closed=closed)
        if closed and (remembered >= REMEMBERED or not rows) and not malformed:
            if stored is None:
                stored = set(outcomes(settings).read(columns=["request_id"])[0].to_pylist())
            due = {row["request_id"] for row in rows if past is None or row["received"] >= past}
            gone += [file] if due <= stored else []
        remembered += len(rows)
    if gone:
        make_durable(outcomes(settings).path, first_began(gone))
    return gone


def _folder(settings: Settings) -> Path:
    return settings.home / "serving" / "log"


def _collect(settings: Settings, at_once: int) -> Collected:
    folder, table = _folder(settings), predictions(settings)
    files = sorted(folder.glob("predictions-*.jsonl"))
    feedback = sorted(folder.glob("feedback-*.jsonl"))
    # Before reading: nothing more comes.
    closed = {file for file in files + feedback if is_closed(file)}
    new = malformed = 0
    for some in _together(files, at_once):
        taken = {file: _rows(file, Prediction, closed=file in closed) for file in some}
        new += _merge(table, [row for rows, _ in taken.values() for row in rows])
        malformed += sum(bad for _, bad in taken.values())
        done = [file for file in some if file in closed]
        if done:
            make_durable(table.path, first_began(done))
        for file in done:
            if taken[file][1]:
                file.rename(file.with_suffix(".malformed"))
            else:
                file.unlink()
    told = [OUTCOMES.empty_table()]
    for file in feedback:
        rows, bad = _rows(file, Feedback, closed=file in closed)
        told.append(pa.Table.from_pylist(rows, schema=OUTCOMES))
        malformed += bad
    lines = pa.concat_tables(told).sort_by("received")  # stable
    return Collected(new, _add_outcomes(settings, lines), malformed, lines)


def _together(files: Iterable[Path], size: int) -> Iterator[list[Path]]:
    """Files in their order, as many at a time as have `size` bytes together, or one."""
    some: list[Path] = []
    taken = 0
    for file in files:
        more = file.stat().st_size
        if some and taken + more > size:
            yield some
            some, taken = [], 0
        some.append(file)
        taken += more
    if some:
        yield some


def _rows(file: Path, form: type[BaseModel], *, closed: bool) -> tuple[list[dict[str, Any]], int]:
    """Rows, a request's as often as it was written; and how many lines were none."""
    rows: list[dict[str, Any]] = []
    malformed = 0
    for line in final_lines(file.read_bytes(), closed=closed)[0]:
        try:
            rows.append(form.model_validate_json(line).model_dump())
        except ValidationError:
            malformed += 1
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
    """Add the first row of each request that `table` does not hold.

    An id is drawn once and its line says once when the request was received: a row that the table
    holds already was received when this one was.
    """
    if not rows:
        return 0
    for row in rows:
        if row["role"] == SHADOW:  # the same request was answered by another, and both count
            row["request_id"] += f"/{SHADOW}"
    rows = list({row["request_id"]: row for row in reversed(rows)}.values())
    for row in rows:
        row.update(spread_out(row["features"]), features=json.dumps(row["features"]))
        row["entity"] = None if row["entity"] is None else str(row["entity"])
    found = pa.Table.from_pylist(rows, schema=table.schema)
    return table.insert(found, "request_id", beside="received")


def _add_outcomes(settings: Settings, lines: pa.Table) -> int:
    """Add the first line of each request that `outcomes` does not hold and that it is to keep.

    What is past its retention by the newest line is not taken again: `gyre maintain` deleted it,
    or will. It stays on file, and counts, as long as its file stays.
    """
    if not lines.num_rows:
        return 0
    oldest = lines["received"][-1].as_py() - timedelta(days=settings.keep_days["outcomes"])
    kept = lines.filter(pc.field("received") >= oldest)
    numbered = kept.append_column("nth", pa.array(range(kept.num_rows)))
    first = numbered.group_by("request_id").aggregate([("nth", "min")])["nth_min"]
    return outcomes(settings).insert(kept.take(first), "request_id")
