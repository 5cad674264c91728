"""Rows of an entity that was forgotten are kept out, and the file names nobody."""

from __future__ import annotations

import pyarrow as pa
import pytest

from feature_repo.forgotten import forgotten, forgotten_file, keep_out
from tests.conftest import new_settings


@pytest.mark.parametrize("value", [-4, "4", 'Zoë "Z" O\'Neil'])
def test_rows_of_who_was_forgotten_are_kept_out_and_the_file_names_nobody(
    tmp_path, value
):
    settings = new_settings(tmp_path)
    other_value = type(value)(5)
    rows = pa.table({"customer_id": [value, other_value, None], "n": [1, 2, 3]})
    assert forgotten(settings).without(rows) == rows
    keep_out(settings, "customer_id", type(value)(77))
    keep_out(settings, "customer_id", value)
    entities = forgotten(settings)
    assert entities.without(rows)["n"].to_pylist() == [2, 3]
    assert entities.without(rows.drop_columns("customer_id")).num_rows == 3
    assert entities.has({"customer_id": value})
    assert not entities.has({"store_id": value})
    assert f'"{value}"' not in forgotten_file(settings).read_text()
