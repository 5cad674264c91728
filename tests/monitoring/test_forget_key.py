"""Whose rows are meant, in columns and in JSON."""

import json
import re

import pyarrow as pa
import pytest
from pydantic_core import to_json

from core.storage import Table
from monitoring.places import Key


def json_texts(row):
    """A row as quarantine, stream and log have it, and as JSON within JSON."""
    yield json.dumps(row, indent=2)
    for text in (json.dumps(row, sort_keys=True), to_json(row).decode()):
        yield text
        yield json.dumps({"entry": "1-1", "events": f"[{text}]"})


@pytest.mark.parametrize(
    ("value", "other_values"),
    [
        (4, (40, 14, "4", 4.5)),
        ("4", (4, "40", "a4")),
        ("a-b.c", ("a-bxc", "a-b.cd")),
        ('Zoë "Z" O\'Neil', ()),
        ("back\\slash", ()),
    ],
)
def test_only_the_given_value_of_a_key_is_found_in_columns_and_in_json(
    settings, value, other_values
):
    key = Key("customer_id", value)
    texts = [
        *json_texts({"customer_id": value, "n": 1}),
        *json_texts({"a": 1, "customer_id": value}),
    ]
    other_texts = list(json_texts({"customer": value, "note": "customer_id"}))
    for other_value in other_values:
        other_texts += json_texts({"customer_id": other_value})
    assert all(re.search(key.pattern, text) for text in texts)
    assert not any(re.search(key.pattern, text) for text in other_texts)
    table = Table(settings, "texts", pa.schema({"row": pa.string()}))
    table.merge(pa.table({"row": texts + other_texts}), ["row"], ["row"])
    assert sorted(table.matching(key.in_json("row"), "row")) == sorted(texts)
    rows = pa.table({"customer_id": [value, type(value)(5), None], "n": [1, 2, 3]})
    column = Table(settings, "values", rows.schema)
    column.merge(rows, ["n"], ["customer_id"])
    assert column.matching(key.equals, "n") == [1]
