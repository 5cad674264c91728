"""A value that a client sends is taken as it is, or refused: it never becomes another one."""

import json
from datetime import UTC, datetime

import pytest
from pydantic import TypeAdapter, ValidationError

from core.json_types import Int64
from feature_repo.event_schema import EventSchema
from serving.additions.events import checked_events
from tests.support.tools.names import NAMES

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
COLUMNS = {
    "id": "int64",
    "size": "int32",
    "amt": "double",
    "rate": "float",
    "code": "string",
    "at": "timestamp[us, tz=UTC]",
}
EVENT = {
    "id": 1,
    "size": 2,
    "amt": 1.5,
    "rate": 0.5,
    "code": "a",
    "at": "2026-11-20T12:00:00Z",
}


def schema(columns, event_time):
    event_schema = EventSchema(
        dataset="x", columns=columns, required=list(columns), event_time=event_time
    )
    return event_schema.model_dump_json().encode()


def read(**values):
    body = EVENT | {name: f"<{name}>" for name in values}
    text = json.dumps(body)
    for name, value in values.items():
        text = text.replace(f'"<{name}>"', value)
    (event,) = checked_events(schema(COLUMNS, "at"), text.encode())
    return {name: event[name] for name in values}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("id", "9007199254740993", 2**53 + 1),
        ("id", "-9223372036854775808", -(2**63)),
        ("id", "4.0", 4),
        ("id", "9007199254740991.0", 2**53 - 1),
        ("amt", "9007199254740992", 2.0**53),
        ("amt", "9007199254740993.0", 2.0**53),
        ("rate", "16777216", 2.0**24),
        ("rate", "3.4e38", 3.4e38),
        ("code", '" 007 "', " 007 "),
        ("at", '"2026-11-20T13:00:00+01:00"', NOON),
        ("at", '"2026-11-20t12:00z"', NOON),
        ("at", '"2026-11-20 12:00:00.000000000+0000"', NOON),
        ("at", '"2026-11-20T12:00:00.000001Z"', NOON.replace(microsecond=1)),
    ],
)
def test_a_value_of_an_event_is_taken_as_it_is(name, text, value):
    taken = read(**{name: text})[name]
    assert (taken, type(taken)) == (value, type(value))


TIMES = ("1764000000", "1764000000000", "20261120", "2026", "20261120100000", "-1", "1.5",
         "20261120T120000Z", "2026-11-20", "2026-W47-5T12:00Z", "2026-324T12:00Z", "12:00Z",
         "2026-11-20T12:00:00", "2026-11-20T12:00:00.1234567Z", "2026-11-20T12:00:00,5+01",
         " 2026-11-20T12:00:00Z", "2026-11-20T12:00:00Z ", "2026-13-20T12:00:00Z",
         "2026-11-20T24:00:00Z", "٢٠٢٦-11-20T12:00:00Z", "2026-11-20112:00:00Z", "")  # fmt: skip
INTEGERS = ("9007199254740992.0", "9007199254740993.0", "-9007199254740993.0", "1e300", "1.5",
            "9223372036854775808", '"7"', '"007"', "true", "null", '""')  # fmt: skip
DOUBLES = (
    "9007199254740993",
    "12345678901234567891",
    '"5"',
    "true",
    "NaN",
    "1e999",
    '" 5"',
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("at", json.dumps(text)) for text in TIMES),
        *(("at", text) for text in ("1764000000", "1764000000.5", "true", "null")),
        *((name, text) for name in ("id", "size") for text in INTEGERS),
        *((name, text) for name in ("amt", "rate") for text in DOUBLES),
        *(("rate", text) for text in ("16777217", "3.5e38", "-1e308")),
        *(("code", text) for text in ("7", "true", "null", "1.5")),
    ],
)
def test_a_value_that_would_become_another_one_is_refused_with_its_column(name, text):
    with pytest.raises(ValidationError) as raised:
        read(**{name: text})
    assert raised.value.errors()[0]["loc"][-1] == name


@pytest.mark.parametrize("text", INTEGERS)
def test_a_key_of_a_request_becomes_no_other_key(text):
    with pytest.raises(ValidationError):
        TypeAdapter(Int64).validate_json(text)


def test_an_event_has_columns_of_any_name():
    columns = dict.fromkeys(NAMES, "int64") | {"at t": COLUMNS["at"]}
    event = dict.fromkeys(NAMES, 1) | {"at t": EVENT["at"]}
    text = json.dumps([event])
    reader = schema(columns, "at t")
    assert checked_events(reader, text.encode()) == [event | {"at t": NOON}]
    for name in columns:
        without = {key: value for key, value in event.items() if key != name}
        for wrong in (without, event | {name: "x"}):
            with pytest.raises(ValidationError) as raised:
                checked_events(reader, json.dumps([wrong]).encode())
            assert raised.value.errors()[0]["loc"] == (0, name)
