"""Whose rows are meant, in columns and in JSON; and that these are kept out."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pytest
from pydantic_core import to_json

from core.storage import Table
from feature_repo.forgotten import Key, forgotten, forgotten_file, keep_out
from tests.conftest import new_settings

VALUES = (4, -4, "4", "a-b.c", 'Zoë "Z" O\'Neil', "back\\slash", "日本")
OTHERS = {4: (40, 14, "4", 4.5), "4": (4, "40", "a4"), "a-b.c": ("a-bxc", "a-b.cd")}


def written(row):
    """A row as quarantine, stream and log have it, and as JSON within JSON."""
    yield json.dumps(row, indent=2)
    for text in (json.dumps(row, sort_keys=True), to_json(row).decode()):
        yield text
        yield json.dumps({"entry": "1-1", "events": f"[{text}]"})


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_found_in_json_however_it_is_written_and_no_other_is(tmp_path, value):
    key = Key("customer_id", value)
    own = [*written({"customer_id": value, "n": 1}), *written({"a": 1, "customer_id": value})]
    others = [
        *written({"customer": value, "note": "customer_id"}),
        *(text for other in OTHERS.get(value, ()) for text in written({"customer_id": other})),
    ]
    assert [bool(re.search(key.pattern, text)) for text in own] == [True] * len(own)
    assert not [text for text in others if re.search(key.pattern, text)]
    table = Table(new_settings(tmp_path), "texts", pa.schema({"row": pa.string()}))
    table.merge(pa.table({"row": own + others}), ["row"], ["row"])
    assert sorted(table.matching(key.in_json("row"), "row")) == sorted(own)


@pytest.mark.parametrize("value", VALUES)
def test_rows_of_who_was_forgotten_are_kept_out_and_the_file_names_nobody(tmp_path, value):
    settings, key = new_settings(tmp_path), Key("customer_id", value)
    rows = pa.table({"customer_id": [value, type(value)(5), None], "n": [1, 2, 3]})
    assert forgotten(settings).without(rows) == rows
    keep_out(settings, Key("customer_id", type(value)(77)))
    keep_out(settings, key)
    known = forgotten(settings)
    assert known.without(rows)["n"].to_pylist() == [2, 3]
    assert known.without(rows.drop_columns("customer_id")).num_rows == 3
    assert (known.has({"customer_id": value}), known.has({"store_id": value})) == (True, False)
    assert not re.search(rf'"{re.escape(str(value))}"', forgotten_file(settings).read_text())
    table = Table(settings, "values", rows.schema)
    table.merge(rows, ["n"], ["customer_id"])
    assert table.matching(key.equals, "n") == [1]
