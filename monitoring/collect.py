"""What serving logged becomes tables, `predictions` and `outcomes`: each row exactly once."""

import fcntl
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from upath import UPath

from core.files import local_copies, reached, replace_file
from core.locks import one_writer
from core.settings import Settings
from core.spec import ModelSpec
from core.storage import Table
from mlflow_server.roles import SHADOW

TIME = pa.timestamp("us", tz="UTC")
COMPACT = (",", ":")
AT_ONCE = 64 * 1024 * 1024
"""Bytes of files in memory together; a million rows in ten files took 4 GB at once."""
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A larger one is read as a number with a fraction, and one too large for that is malformed."""
PREDICTIONS = pa.schema(
    {
        "request_id": pa.string(),
        "model": pa.string(),
        "version": pa.string(),
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
        "names": pa.string(),
        "numbers": pa.list_(pa.float64()),
        "texts": pa.list_(pa.string()),
    }
)
"""Entity as text, request data and features as JSON: one table for models of any shape. A shadow's
row has the request's id with `/shadow` behind it.

names, numbers, texts: the features once more, for who reads millions (JSON takes three times as
long): their names in order, as a JSON list, and at each one's place its number or its text.
"""
SPREAD = ("names", "numbers", "texts")
ANSWERS = [
    name
    for name in PREDICTIONS.names
    if name not in ("request_data", "features", *SPREAD)
]
"""Columns that say what was answered, without what from: the smaller part."""
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
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    request_id: str
    received: AwareDatetime

    def row(self) -> dict[str, Any]:
        return self.model_dump()


class Feedback(LogLine):
    actual: float | str

    def row(self) -> dict[str, Any]:
        name = isinstance(self.actual, str)
        own = (
            {"actual": None, "actual_class": self.actual}
            if name
            else {"actual_class": None}
        )
        return self.model_dump() | own


class Prediction(LogLine):
    """The fields are explained in serving/prediction_log.py."""

    model: str
    version: str
    role: str
    as_of: AwareDatetime
    entity: int | str | None
    request_data: dict[str, bool | Int64 | float | str] = {}
    features: dict[str, bool | Int64 | float | str | None]
    features_from: str
    probability: float | None
    prediction: float
    probabilities: list[float] | None = None
    in_population: bool

    def row(self) -> dict[str, Any]:
        shadow = f"/{SHADOW}" if self.role == SHADOW else ""
        return self.model_dump() | {
            "request_id": f"{self.request_id}{shadow}",
            "entity": None if self.entity is None else str(self.entity),
            "request_data": json.dumps(self.request_data),
            "features": json.dumps(self.features),
            **spread_out(self.features),
        }


@dataclass(frozen=True)
class Collected:
    """Rows that were new; lines that were none, counted until their file is set aside."""

    predictions: int
    outcomes: int
    malformed: int


@dataclass(frozen=True)
class KnownOutcomes:
    """known: the actual of each request that has one. left_out: lines that do not count, by why.

    Of several lines for one request the first received stands; the others are "told again" or
    "contradicting the first". A line names no model: one of an unknown request is every model's.
    """

    known: dict[str, float]
    left_out: dict[str, int]


def predictions(settings: Settings) -> Table:
    return Table(settings, "predictions", PREDICTIONS)


def outcomes(settings: Settings) -> Table:
    return Table(settings, "outcomes", OUTCOMES)


def collect(settings: Settings, at_once: int = AT_ONCE) -> Collected:
    """Take every final line of the logs into the tables; taking one again changes nothing.

    A file is removed once it is closed and taken, or set aside as `.malformed` if a line of it
    could not be read. at_once: bytes of files that are taken together, about.

    Raises:
        DataError: another process held the lock of the logs or of a table for a minute, or the
            inbox does not answer.

    """
    # One at a time: two would remove one file.
    with one_writer(settings, "collect"), reached("the prediction log"):
        files = _files(settings, "predictions")
        answered, torn = _take(
            files, Prediction, predictions(settings), "request_id", at_once
        )
        files = _files(settings, "feedback")
        told, malformed = _take(files, Feedback, outcomes(settings), "line", at_once)
    return Collected(answered, told, torn + malformed)


def join_outcomes(
    settings: Settings, spec: ModelSpec, until: datetime
) -> KnownOutcomes:
    """Join what was told up to `until` with what the model answered; a class by its position."""
    told = (
        outcomes(settings).read(where=pc.field("received") <= until).sort_by("received")
    )
    # Of the requests that lines name alone: there may be millions of predictions.
    named = pc.field("request_id").isin(told["request_id"].unique())
    asked = predictions(settings).read(
        columns=["request_id", "model", "received"], where=named
    )
    asked = asked.rename_columns(["request_id", "model", "asked"])
    lines = told.to_pandas().merge(asked.to_pandas(), how="left", on="request_id")
    lines = lines[lines["model"].isna() | (lines["model"] == spec.name)]
    names = {name: float(position) for position, name in enumerate(spec.classes)}
    lines["actual"] = lines["actual"].fillna(
        lines["actual_class"].map(names).astype(float)
    )
    actual = lines["actual"]
    fits = (
        actual.notna()
        if spec.task == "regression"
        else actual.isin(range(len(names) or 2))
    )
    unknown, early = lines["model"].isna(), lines["received"] < lines["asked"]
    odd = ~unknown & ~early & ~fits
    fitting = lines[~unknown & ~early & ~odd]
    first = fitting.drop_duplicates("request_id")
    known = dict(zip(first["request_id"], first["actual"], strict=True))
    later = fitting.drop(first.index)
    against = later["actual"] != later["request_id"].map(known)
    counts = {
        "of an unknown request": unknown.sum(),
        "dated before the prediction": early.sum(),
        "neither 0 nor 1"
        if spec.task == "classification"
        else "no outcome of its task": odd.sum(),
        "told again": (~against).sum(),
        "contradicting the first": against.sum(),
    }
    return KnownOutcomes(
        known, {why: int(count) for why, count in counts.items() if count}
    )


def logged_scores(spec: ModelSpec, answered: pa.Table) -> NDArray[np.float64]:
    """Scores of rows of `predictions`: [N], of many classes [N, K]; nan of another task."""
    if not spec.classes:
        name = "prediction" if spec.task == "regression" else "probability"
        return np.asarray(answered[name].to_numpy(), np.float64)
    unknown = [np.nan] * len(spec.classes)
    rows = [row or unknown for row in answered["probabilities"].to_pylist()]
    return np.array(rows, np.float64).reshape(-1, len(unknown))


def spread_out(features: Mapping[str, int | float | str | None]) -> dict[str, Any]:
    """The columns `names`, `numbers` (float64: of an integer the nearest) and `texts` of a row."""
    names = sorted(features)
    values = [features[name] for name in names]
    return {
        "names": json.dumps(names, separators=COMPACT),
        "numbers": [float(v) if isinstance(v, int | float) else None for v in values],
        "texts": [value if isinstance(value, str) else None for value in values],
    }


def is_closed(file: Path) -> bool:
    """The writer holds a lock on its open file, until it closes it or dies."""
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def final_lines(content: bytes, *, closed: bool) -> list[bytes]:
    """Lines that will not change any more: all that end in a newline; in a closed file the rest."""
    *lines, unfinished = content.split(b"\n")
    return [line for line in (*lines, unfinished if closed else b"") if line]


def _files(settings: Settings, kind: str) -> dict[Path, Path | UPath]:
    """Files of a log on this disk, each with what it is a copy of: in the inbox, else itself."""
    if not settings.data_url:
        found = sorted((settings.home / "serving" / "log").glob(f"{kind}-*.jsonl"))
        return {file: file for file in found}
    sent = sorted((settings.data / "inbox").glob(f"*/{kind}-*.jsonl"))
    return dict(zip(map(Path, local_copies(sent, settings.cache)), sent, strict=True))


def _take(
    files: Mapping[Path, Path | UPath],
    form: type[LogLine],
    table: Table,
    key: str,
    at_once: int,
) -> tuple[int, int]:
    """Take files into a table that holds one row of each `key`; count new rows and bad lines."""
    # Before reading: nothing more comes.
    closed = {file for file in files if is_closed(file)}
    new = malformed = 0
    for some in _together([*files], at_once):
        inserted, bad = _insert(some, closed, form, table, key)
        new += inserted
        malformed += sum(bad.values())
        for file in closed.intersection(some):
            if bad[file]:
                replace_file(files[file].with_suffix(".malformed"), file.read_bytes())
            files[file].unlink(missing_ok=True)
            file.unlink(missing_ok=True)
    return new, malformed


def _insert(
    files: Sequence[Path],
    closed: Collection[Path],
    form: type[LogLine],
    table: Table,
    key: str,
) -> tuple[int, dict[Path, int]]:
    """Insert the rows of files; return how many were new, and how many lines of each were none."""
    rows: dict[str, dict[str, Any]] = {}
    malformed: dict[Path, int] = {}
    for file in files:
        lines, bad = _rows(file, form, closed=file in closed)
        malformed[file] = bad
        for row in lines:
            rows.setdefault(row[key], row)  # the first of a request
    if not rows:
        return 0, malformed
    found = pa.Table.from_pylist([*rows.values()], schema=table.schema)
    # What has the same key was received at about the same time.
    return table.insert(found, key, beside="received"), malformed


def _together(files: Sequence[Path], size: int) -> Iterator[list[Path]]:
    """Files in their order, about as many at a time as have `size` bytes together."""
    sizes = accumulate(file.stat().st_size for file in files)
    for _, some in groupby(
        zip(files, sizes, strict=True), lambda pair: pair[1] // size
    ):
        yield [file for file, _ in some]


def _rows(
    file: Path, form: type[LogLine], *, closed: bool
) -> tuple[list[dict[str, Any]], int]:
    """Rows, a request's as often as it was written; and how many lines were none."""
    rows: list[dict[str, Any]] = []
    malformed = 0
    for number, line in enumerate(final_lines(file.read_bytes(), closed=closed)):
        try:
            rows.append(
                form.model_validate_json(line).row() | {"line": f"{file.stem}:{number}"}
            )
        except ValidationError:
            malformed += 1
    return rows, malformed
