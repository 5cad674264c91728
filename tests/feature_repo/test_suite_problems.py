"""A rule that cannot be built or evaluated stops the batch and is named, all of a suite at once."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.quarantine import quarantine_table
from feature_repo.validation import suite_problems
from tests.feature_repo.conftest import ProjectCopy

ORDERS = load_dataset("orders")
SUITE = "feature_repo/expectations/orders.json"
IN_SET = "expect_column_values_to_be_in_set"
NEWEST = "expect_column_max_to_be_between"
CDS = {"column": "number_of_cds", "value_set": [1]}
FINE = {"type": IN_SET, "kwargs": CDS}
SINCE = {"column": "order_ts", "min_value": {"$PARAMETER": "fresh_form"}}
WRONG = [
    (FINE | {"type": f"{IN_SET}t"}, f"{IN_SET}t not found"),
    (FINE | {"severity": "warn"}, "severity 'warn'. Must be one of: critical, warning, info"),
    (FINE | {"kwargs": CDS | {"mosty": 0.9}}, "mosty extra fields not permitted"),
    (FINE | {"kwargs": CDS | {"mostly": 2}}, "mostly ensure this value is less than or equal to 1"),
    (
        {"type": NEWEST, "kwargs": SINCE},
        "expected a parameter of ['as_of', 'fresh_from'], found {'fresh_form'}",
    ),
    (FINE | {"severitty": "warning"}, "unexpected keyword argument 'severitty'"),
    ({"type": IN_SET}, "missing 1 required positional argument: 'kwargs'"),
    ("a text", 'found "a text"'),
]


@pytest.fixture
def project(tmp_path):
    return ProjectCopy(tmp_path)


def orders(folder, **changed):
    row = {"order_id": 1, "customer_id": 1, "order_ts": datetime(2026, 1, 2, tzinfo=UTC),
           "number_of_cds": 2, "dollar_value": 1.0} | changed  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row], ORDERS.schema), folder / "orders.parquet")
    return folder / "orders.parquet"


def add(project, *rules):
    """Put rules first in the suite of the orders."""
    text = ", ".join(map(json.dumps, rules))
    project.edit(SUITE, '"expectations": [', f'"expectations": [{text}, ')


def refused(project, settings, source):
    """What a stopped ingest says; tables and quarantine are as before."""
    tables = (raw_table(settings, ORDERS), quarantine_table(settings, ORDERS))
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        project.gyre(settings, "ingest", "orders", orders=source)
    assert [table.version for table in tables] == [-1, -1]
    assert "Traceback" not in stopped.value.stderr
    return stopped.value.stderr


def test_a_shipped_suite_has_no_problems():
    assert suite_problems(ORDERS) == []


def test_every_rule_that_cannot_be_built_is_named_and_nothing_lands(applied, project, tmp_path):
    add(project, *(rule for rule, _ in WRONG))
    said = refused(project, applied, orders(tmp_path))
    for position, (_, expected) in enumerate(WRONG, 1):
        line = said.partition(f"expectations/orders.json: rule {position}: ")[2].splitlines()[0]
        assert expected in line.partition("; expectations/")[0]
    assert f"rule {len(WRONG) + 1}:" not in said


@pytest.mark.parametrize(("old", "new"), [
    ('"expectations": [', '"expectations": '),
    ('"expectations"', '"expect"'),
])  # fmt: skip
def test_a_suite_that_is_no_json_or_has_no_list_is_named(applied, project, tmp_path, old, new):
    project.edit(SUITE, old, new)
    message = refused(project, applied, orders(tmp_path))
    assert "expectations/orders.json: expected Great Expectations' JSON with a list" in message


def test_a_warning_that_cannot_be_evaluated_stops_too(applied, project, tmp_path):
    kwargs = {"column": "order_tss", "min_value": {"$PARAMETER": "fresh_from"}}
    add(project, {"type": NEWEST, "kwargs": kwargs, "severity": "warning"})
    message = refused(project, applied, orders(tmp_path))
    assert "expectations/orders.json: expect_column_max_to_be_between(order_tss)" in message
    assert 'The column "order_tss" in BatchData does not exist' in message


def test_a_type_of_a_database_that_no_rule_knows_is_named(applied, project, tmp_path):
    project.edit(
        "feature_repo/datasets/orders.py",
        '"dollar_value": pa.float64()',
        '"dollar_value": pa.float64(), "gift": pa.bool_()',
    )
    project.edit(SUITE, '"dollar_value"]', '"dollar_value", "gift"]')
    with duckdb.connect(str(tmp_path / "shop.db")) as shop:
        shop.execute(f"CREATE TABLE orders AS SELECT *, 'no' AS gift FROM '{orders(tmp_path)}'")
    said = refused(project, applied, f"duckdb://{tmp_path}/shop.db#orders")
    assert "orders: " in said
    assert "column gift: expected bool, found string" in said
