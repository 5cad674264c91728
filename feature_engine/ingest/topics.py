"""Records of a topic that others write, as rows of a dataset.

The consumer reads them as they come; an ingest reads those that the topic has had since a time.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from core.connectors.formats import fields_once
from core.errors import DataError, SettingsError
from core.json_types import EXACT
from core.packages import missing_client
from core.settings import Settings
from core.timestamps import BEGINNING, EARLIEST_TIME, LATEST_TIME
from core.user_code import in_one_line
from feature_engine.ingest.exact_types import UNREADABLE, YEARS, as_text
from feature_repo.definition import OWN_PREFIX, TIMESTAMP, Dataset, Topic
from feature_repo.event_schema import EventSchema, event_schema
from feature_repo.rules import DatasetRules

EventsOf = Callable[[bytes], bytes]
"""Returns the events of an entry as a JSON list.

It raises a ValueError where the entry cannot be read, and a BrokerUnavailableError where the schema
registry does not answer.
"""
RowsOf = Callable[[bytes], list[dict[str, Any]]]
"""Returns the rows of an entry. It raises as EventsOf does; a ValueError where a row does not fit."""
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds of each unit."""
BATCH_ROWS = 10_000
HALF_LETTER = r"[\ud800-\udfff]"
"""A letter of UTF-16 that is none without another, as JSON may have it: UTF-8 has no such text."""
UNAVAILABLE = "__debezium_unavailable_value"
"""What Debezium writes for a large value that a change has left as it was."""
PLACEHOLDERS = (UNAVAILABLE, b64encode(UNAVAILABLE.encode()).decode())
"""The placeholder in a text, and in a column of bytes as JSON has it."""
EVENTS = "events"
BASE64 = "base64"
"""Fields of a row of quarantine: a record as a text, and its bytes where they are no UTF-8."""
LEARNT_AT = f"{OWN_PREFIX}learnt_at"
"""Column of the time that a record of a topic carries."""
PLACES = ({"entry", EVENTS}, {"topic", "partition", "offset", EVENTS})
"""Fields of such a row, of Redis and of Kafka."""
DELETED = "__deleted"
"""Field by which Debezium's transformation marks the last row of a key that is deleted."""
OPERATION = "__op"
"""Field to which the transformation copies the operation of a change, where a team asks for it."""
DELETION = "d"
"""Debezium's letter for a deletion."""
TRUTHS = ("true", "1")


def record_reader(settings: Settings, dataset: Dataset) -> EventsOf:
    """Return the function that reads the entries of a dataset.

    A record without a value (a tombstone) has no event: a deletion at the source deletes no row.

    Raises:
        DataError: The dataset has a topic, and there is no Kafka, no schema registry or no such
            column.
        SettingsError: A setting of the schema registry is wrong.

    """
    topic = dataset.topic
    if topic is None:
        return bytes
    head = f"{dataset.name}: the topic {topic.name}"
    if not settings.events_url:
        raise DataError(f"{head} needs a Kafka: set GYRE_EVENTS_URL")
    columns = dataset.schema.names
    unknown_columns = topic.fields.keys() - {*columns}
    if unknown_columns:
        names = ", ".join(sorted(unknown_columns))
        expected = f"fields of the columns {', '.join(columns)}"
        raise DataError(f"{head}: expected {expected}, found {names}")
    paths = {name: field_path(topic, name) for name in columns}
    unit = MICROSECONDS.get(topic.time_unit or "")
    objects = {
        tuple(path[:depth]) for path in paths.values() for depth in range(len(path))
    }
    content_of = content_reader(settings, topic, head)

    def events_of(record: bytes) -> bytes:
        if not record:
            return b"[]"
        content = content_of(record)
        _refuse_deletion(content, objects)
        row = {}
        for column in dataset.schema:
            path = paths[column.name]
            try:
                value = _value_at(content, path)
                row[column.name] = json_value(value, column.type, unit)
            except ValueError as exc:
                raise ValueError(f"{_place(column.name, path)}: {exc}") from exc
        return json.dumps([row]).encode()

    return events_of


def row_reader(settings: Settings, dataset: Dataset, schema: EventSchema) -> RowsOf:
    """Return the function that reads the rows of the entries of a dataset.

    Args:
        settings: Settings of the installation.
        dataset: A dataset, with a topic or without.
        schema: The schema of its events.

    Raises:
        DataError, SettingsError: See `record_reader`.

    """
    topic = dataset.topic
    events_of = record_reader(settings, dataset)
    row_type = schema.row_type()
    row_list = TypeAdapter(list[row_type])  # type: ignore[valid-type]

    def rows_of(record: bytes) -> list[dict[str, Any]]:
        events = events_of(record)
        try:
            return row_list.validate_json(events)
        except ValidationError as exc:
            if topic is None:
                raise
            (row,) = json.loads(events)
            raise ValueError(_value_problems(exc, topic, row)) from exc

    return rows_of


def _value_problems(exc: ValidationError, topic: Topic, row: Mapping[str, Any]) -> str:
    """Return the columns that do not hold values of a row, each with field, reason and value."""
    problems = []
    for error in exc.errors():
        column = str(error["loc"][1])
        reason = error["msg"].removeprefix("Value error, ")
        if ", found " not in reason:
            reason += f", found {row[column]!r:.80}"
        problems.append(f"{_place(column, field_path(topic, column))}: {reason}")
    return "; ".join(problems)


def _place(column: str, path: list[str]) -> str:
    return f"column {column}, field {'.'.join(path)}"


def field_path(topic: Topic, column: str) -> list[str]:
    """Return the names of the field of a column, the outermost first."""
    return topic.fields[column].split(".") if column in topic.fields else [column]


def content_reader(
    settings: Settings, topic: Topic, head: str
) -> Callable[[bytes], Any]:
    """Return the function that reads a record as values of Python."""
    if topic.format == "json":
        return _from_json
    if "url" not in settings.schema_registry:
        remedy = "set GYRE_SCHEMA_REGISTRY__URL"
        raise DataError(f"{head} is {topic.format}, by a schema registry: {remedy}")
    from core.connectors.schema_registry import registry_reader  # noqa: PLC0415  (an extra)

    return registry_reader(settings, topic.format, _from_json)


def _from_json(record: bytes) -> Any:
    """Return the values of a record in JSON.

    Raises:
        ValueError: It is no JSON, or an object has a field twice: one value would be lost.

    """
    try:
        return json.loads(
            record.decode(),
            object_pairs_hook=fields_once,
            parse_constant=_refuse,
            parse_float=_number,
        )
    except RecursionError as exc:
        raise ValueError("expected JSON, found too many levels") from exc


def _number(text: str) -> float | Decimal:
    """Return a number as a double; as a decimal if the double is an integer, and the number is none."""
    number = float(text)
    is_exact_integer = number.is_integer() and abs(number) < EXACT
    has_lost_fraction = is_exact_integer and Decimal(text) != number
    return Decimal(text) if has_lost_fraction else number


def _refuse(constant: str) -> Any:
    raise ValueError(f"expected JSON, which has no {constant}")


def _value_at(content: Any, path: list[str]) -> Any:
    """Return the value of a field; null where a record, or an object in it, lacks the field."""
    for name in path:
        if content is None:
            return None
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise ValueError(f"expected an object with {name}, found {kind}")  # noqa: TRY004  (of a record)
        content = content.get(name)
    return content


def _refuse_deletion(content: Any, objects: Collection[tuple[str, ...]]) -> None:
    """Raise a ValueError where a record, or an object in it that has columns, is a deletion.

    Args:
        content: A record.
        objects: Paths of the objects.

    """
    for path in objects:
        fields = content
        for name in path:
            fields = fields.get(name) if isinstance(fields, dict) else None
        if not isinstance(fields, dict):
            continue
        # Of a deletion, Debezium's envelope has the row in `before` alone.
        reads_former_row = (*path, "before") in objects
        if str(fields.get(DELETED)).strip().lower() in TRUTHS:
            mark = DELETED
        elif fields.get(OPERATION) == DELETION:
            mark = OPERATION
        elif reads_former_row and fields.get("op") == DELETION:
            mark = "op"
        else:
            continue
        place = ".".join([*path, mark])
        raise ValueError(f"field {place}: a deletion, and Gyre deletes no row")


def json_value(value: Any, kind: pa.DataType, microseconds: int | None) -> Any:
    """Return a value as JSON has it, unchanged: `EventSchema.row_type` judges it.

    Args:
        value: Value of a field.
        kind: Type of its column.
        microseconds: Of the unit of times that are numbers.

    Raises:
        ValueError: JSON has no such value, or a number may be any time.

    """
    if value in PLACEHOLDERS or value == UNAVAILABLE.encode():
        raise ValueError(
            "Debezium left out a large value that did not change; let the database send it: "
            "REPLICA IDENTITY FULL"
        )
    if isinstance(value, str) and re.search(HALF_LETTER, value):
        raise ValueError(f"expected {kind}, found half of an emoji: {value!r:.80}")
    value = _plain(value, kind)
    if kind == TIMESTAMP and type(value) is int:
        if microseconds is None:
            text = f"{value} may be any time: name its unit: Topic(…, time_unit=…)"
            raise ValueError(text)
        value = _moment(value, microseconds)
    if kind == TIMESTAMP and isinstance(value, datetime) and value.tzinfo:
        return value.isoformat()
    if value is None or isinstance(value, str | int | float):
        return value
    shown_value = f"{type(value).__name__} {value!r:.80}"
    raise ValueError(f"expected {kind}, found {shown_value}")


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Return the text of a UUID, and the number of a decimal that the type of a column has."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        if value == value.to_integral_value():
            return int(value)
        if pa.types.is_floating(kind):
            return float(value)
    return value


def _moment(number: int, microseconds: int) -> datetime:
    """Return the time of a number of units since 1970."""
    problem = f"expected {YEARS}, found {number}"
    try:
        moment = BEGINNING + timedelta(microseconds=number * microseconds)
    except OverflowError as exc:
        raise ValueError(problem) from exc
    if not EARLIEST_TIME <= moment < LATEST_TIME:
        raise ValueError(problem)
    return moment


def text_set_aside(place: Mapping[str, Any], record: bytes) -> str:
    """Return a record that cannot be read as quarantine has it, with its place at the broker."""
    row = {**place, EVENTS: record.decode(errors="replace")}
    if row[EVENTS].encode() != record:
        row[BASE64] = b64encode(record).decode()
    return as_text(row)


def record_set_aside(row: Any) -> bytes | None:
    """Return the record of a row of quarantine; None: it is a row, and no record.

    Of bytes that are no UTF-8, rows of before 30 November 2026 have a part alone.
    """
    names = row.keys() - {BASE64} if isinstance(row, dict) else set()
    if names not in PLACES:
        return None
    if BASE64 in row:
        return b64decode(row[BASE64])
    return str(row[EVENTS]).encode()


def topic_batches(
    settings: Settings, dataset: Dataset, since: datetime | None
) -> Iterator[pa.RecordBatch]:
    """Read the records that the topic has now: the dataset's columns, LEARNT_AT and UNREADABLE.

    Args:
        settings: Settings of the installation.
        dataset: A dataset with a topic.
        since: Read only records from this time on, as the topic has their times.

    """
    topic: Any = dataset.topic
    never_null = DatasetRules(dataset, for_events=True).never_null
    rows_of = row_reader(settings, dataset, event_schema(dataset, never_null))
    try:
        from core.connectors import kafka  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise SettingsError(f"GYRE_EVENTS_URL {missing_client(exc)}") from exc
    learnt_at = pa.field(LEARNT_AT, TIMESTAMP)
    schema = dataset.schema.append(learnt_at).append(UNREADABLE)
    rows: list[dict[str, Any]] = []
    with kafka.kafka_errors():
        starts, ends = kafka.offsets_since(settings, topic.name, since)
        for message in kafka.records_between(settings, starts, ends):
            record = message.value() or b""
            try:
                time = BEGINNING + timedelta(milliseconds=kafka.sent_at(message))
                rows += [row | {LEARNT_AT: time} for row in rows_of(record)]
            except ValueError as exc:
                partition, offset = kafka.place_of(message)
                place = {
                    "topic": topic.name,
                    "partition": partition,
                    "offset": offset,
                }
                text = text_set_aside(place, record)
                mark = {"row": text, "problem": in_one_line(exc)}
                rows.append({UNREADABLE.name: mark})
            if len(rows) == BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(rows, schema)
                rows = []
    yield pa.RecordBatch.from_pylist(rows, schema)
