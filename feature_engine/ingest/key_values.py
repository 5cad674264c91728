"""Of which entity a row of quarantine, or a record of a broker, is.

A record has the key in the field that the dataset's topic names, and in the type of the ingest:
`"customer": 7` is customer_id 7. Of a change of Debezium, what was `before` counts like what is
`after`. A record that an ingest refuses is read here all the same, if its key can be. If not, its
text may mention the key.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import TypeAdapter

from core.connectors.exact_values import exact_values
from core.settings import Settings
from feature_engine.ingest.forgotten import Forgotten
from feature_engine.ingest.topics import (
    content_reader,
    field_path,
    json_value,
    record_set_aside,
)
from feature_repo.definition import Dataset
from feature_repo.event_schema import ARROW_TYPES

JSON_VALUE = r'\s*:\s*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|null)'
"""Regular expression of a field's value in a text that is no JSON as a whole."""
AVRO_START = b"\0"
AVRO_HEADER = 5
"""Bytes of a record before Avro's: AVRO_START, and the id of its schema."""
AVRO_BASE = 0x80
"""Each byte of an integer but the last has AVRO_BASE on top."""
WHOLE_NUMBER_TEXT = r"[+-]?(0|[1-9]\d{0,18})(\.0*)?"
"""A whole number, also with a sign or zeros behind the point; 007 may be another key than 7."""
LOST = "\ufffd"
"""Stands for bytes that are no UTF-8 where quarantine has a record's text alone."""


class Fields(list[tuple[str, Any]]):
    """The fields of a JSON object; one may be there twice."""


class RecordKeys(NamedTuple):
    """What a record has in the column of a key.

    Attributes:
        values: Texts of the values.
        is_read: Whether the record has the column's field, and it could be read.
        content: The record.

    """

    values: frozenset[str]
    is_read: bool
    content: bytes

    @property
    def is_cut(self) -> bool:
        """Whether nobody can tell the key: parts of the record are lost."""
        return not self.is_read and LOST in self.content.decode(errors="ignore")

    def are_of(self, value: int | str) -> bool:
        """Whether the record is of an entity; in doubt, whether it mentions the value."""
        return str(value) in self.values if self.is_read else self._mentions(value)

    def _mentions(self, value: int | str) -> bool:
        spelling = json_text_pattern(str(value))
        is_number = isinstance(value, int)
        before = r"[\w.-]" if is_number else r"\w"
        behind = r"\w|\.\d" if is_number else r"\w"
        text = self.content.decode(errors="replace")
        if re.search(rf"(?<!{before}){spelling}(?!{behind})", text):
            return True
        # In Avro a text stands between any bytes, which may be letters.
        avro = avro_bytes(value) if isinstance(value, int) else value.encode()
        is_avro = self.content.startswith(AVRO_START)
        return is_avro and avro in self.content[AVRO_HEADER:]


def json_text_pattern(text: str) -> str:
    """Return a regular expression of a text as JSON spells it, without its quotation marks."""
    spellings = {json.dumps(text), json.dumps(text, ensure_ascii=False)}
    patterns = [re.escape(spelling[1:-1]) for spelling in sorted(spellings)]
    return f"({'|'.join(patterns)})".replace(r"\\", r"\\+")


def avro_bytes(number: int) -> bytes:
    """Return an integer as Avro writes it: zigzag, seven bits a byte, the lowest first."""
    rest = 2 * number if number >= 0 else -2 * number - 1
    content = bytearray()
    while rest >= AVRO_BASE:
        content.append(rest % AVRO_BASE + AVRO_BASE)
        rest //= AVRO_BASE
    content.append(rest)
    return bytes(content)


class KeyReader:
    """Reads the values that rows and records of a dataset have in a column of a key."""

    def __init__(self, settings: Settings, dataset: Dataset, column: str) -> None:
        self._settings = settings
        self._dataset = dataset
        self._column = column
        self._type = dataset.schema.field(column).type
        value_type = ARROW_TYPES.get(str(self._type), Any)
        self._judge = TypeAdapter[Any](value_type)
        path = [column]
        if dataset.topic:
            path = field_path(dataset.topic, column)
        before = ["before" if name == "after" else name for name in path]
        self._paths = [path] if before == path else [path, before]

    def of_row(self, text: str) -> RecordKeys:
        """Read a row of quarantine, which may be a record that could not be read."""
        row = json.loads(text)
        record = record_set_aside(row)
        if record is not None:
            return self.of_record(record)
        return self._keys([*_values_at(row, [self._column])], text.encode())

    def of_record(self, record: bytes) -> RecordKeys:
        """Read a record of a topic, or the events of a request.

        Raises:
            BrokerUnavailableError: The schema registry does not answer.
            DataError, SettingsError: The topic needs a schema registry, which no setting names.

        """
        values: list[Any] = []
        try:
            content = self._content_of(record)
        except ValueError:
            values = [*self._values_in_text(record)]
        else:
            for path in self._paths:
                values += _values_at(content, path)
        return self._keys(values, record)

    @cached_property
    def _content_of(self) -> Any:
        topic = self._dataset.topic
        if topic is None or topic.format == "json":
            return _from_lenient_json
        head = f"{self._dataset.name}: the topic {topic.name}"
        return content_reader(self._settings, topic, head)

    def _values_in_text(self, record: bytes) -> Iterator[Any]:
        text = record.decode(errors="replace")
        for name in {path[-1] for path in self._paths}:
            field = rf'"{json_text_pattern(name)}"{JSON_VALUE}'
            for match in re.finditer(field, text):
                try:
                    yield json.loads(match[2])
                except ValueError:
                    yield match[2]

    def _keys(self, values: list[Any], content: bytes) -> RecordKeys:
        scalars = [value for value in values if not isinstance(value, dict | list)]
        texts = {self._text(value) for value in scalars if value is not None}
        return RecordKeys(frozenset(texts), bool(scalars), content)

    def _text(self, value: Any) -> str:
        """Return a value in the column's type; as it is where an ingest would refuse it."""
        if isinstance(value, str):
            value = value.encode(errors="replace").decode()  # half an emoji
        with suppress(ValueError, OverflowError):
            value = json_value(value, self._type, None)
            text = json.dumps(value)
            return str(self._judge.validate_json(text, strict=True))
        if isinstance(value, str):
            if pa.types.is_integer(self._type):
                value = _number_text(value)
            array = pa.array([value])
            (typed,) = exact_values(array, self._type, is_identity=True).to_pylist()
            if typed is not None:
                return str(typed)
        return str(value)


def _number_text(text: str) -> str:
    """Return the usual text of a whole number in another spelling; any other text as it is.

    pandas writes 7.0 where a column has gaps. An ingest sets such a key aside, and nobody else's
    key reads like it.
    """
    match = re.fullmatch(WHOLE_NUMBER_TEXT, text.strip(), re.ASCII)
    return f"{int(match[0].partition('.')[0])}" if match else text


def _from_lenient_json(record: bytes) -> Any:
    try:
        return json.loads(record.decode(), object_pairs_hook=Fields)
    except RecursionError as exc:
        raise ValueError("too many levels") from exc


def _values_at(content: Any, path: list[str]) -> Iterator[Any]:
    """Yield the values of a field, in each object of a list."""
    if isinstance(content, list) and not isinstance(content, Fields):
        for part in content:
            yield from _values_at(part, path)
        return
    if not path:
        yield content
        return
    fields = content.items() if isinstance(content, dict) else content
    if isinstance(content, dict | Fields):
        name, *inner_path = path
        for field_name, value in fields:
            if field_name == name:
                yield from _values_at(value, inner_path)


class ForgottenRecords:
    """Tells which rows and records of a dataset are of a forgotten entity, as far as can be read."""

    def __init__(
        self, settings: Settings, dataset: Dataset, entities: Forgotten
    ) -> None:
        self._entities = entities
        columns = entities.content.hashes.keys() & set(dataset.schema.names)
        self._readers = {
            column: KeyReader(settings, dataset, column) for column in columns
        }

    def have_row(self, text: str) -> bool:
        """Whether a row of quarantine is of one."""
        return any(
            self._has_any(column, reader.of_row(text))
            for column, reader in self._readers.items()
        )

    def have_record(self, record: bytes) -> bool:
        """Whether a record of a broker is of one."""
        return any(
            self._has_any(column, reader.of_record(record))
            for column, reader in self._readers.items()
        )

    def _has_any(self, column: str, keys: RecordKeys) -> bool:
        return any(self._entities.has({column: value}) for value in keys.values)
