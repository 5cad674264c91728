"""What `gyre new --from` takes the columns of a source for, and the use case that it writes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tomllib
from datetime import UTC, datetime, timedelta

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService
from feast.base_feature_view import BaseFeatureView

from cli.columns import choose, describe, in_types
from cli.use_case import FILES, write_use_case
from core.errors import DataError, SettingsError
from core.settings import PROJECT
from core.spec import ModelSpec
from feature_repo.source import read
from tests.conftest import BIN

DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = {
    "order_id": range(8),
    "customer_id": [1, 1, 2, 2, 3, 3, 1, 2],
    "ordered_at": [BEGIN + n * DAY for n in (0, 20, 3, 60, 5, 100, 120, 130)],
    "pieces": [1, 2, 1, 1, 4, 1, 1, 2],
    "price": [2.5, 1.0, 3.25, 8.0, 1.5, 2.0, 9.0, 4.0],
    "city": ["Bern", "Bern", None, None, "Chur", "Bern", "Bern", "Chur"],
    "is_gift": [True, False] * 4,
}
ROLES = {"key": ["order_id"], "entity": "customer_id", "time": "ordered_at"}


def table(*without, **columns):
    kept = {name: values for name, values in ROWS.items() if name not in without}
    return pa.table(kept | columns)


def test_columns_are_what_the_options_say():
    columns = describe(in_types(table()), **ROLES)
    assert columns["amounts"] == ["pieces", "price"]
    assert columns["filled"] == [name for name in ROWS if name != "city"]
    assert columns["columns"]["is_gift"] == ("pa.bool_()", "bool")
    assert (columns["label"], columns["last"]) == ("silent_30d", BEGIN + 130 * DAY)


def test_what_cannot_be_added_up_exactly_is_left_out():
    odd_columns = {
        "huge": [1e13] * 8,
        "zero": [0] * 8,
        "gap": [float("inf"), *[1.0] * 7],
        "days": range(8),
        "Unit Price": [1.5] * 8,
    }
    columns = describe(in_types(table(**odd_columns)), **ROLES)
    assert columns["amounts"] == ["pieces", "price"]


def test_the_same_row_twice_leaves_its_key_a_key():
    rows = in_types(pa.concat_tables([table(), table()[:2]]))
    assert describe(rows, **ROLES)["key"] == ("order_id",)
    with pytest.raises(
        SettingsError, match="--key: 5 of 8 rows share customer_id with"
    ):
        describe(rows, **ROLES | {"key": ["customer_id"]})


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--time", "price", "expected a column with a day .*: ordered_at; found price"),
        ("--entity", "price", "expected a .*: order_id, customer_id, .*; found price"),
        ("--key", "order", "expected a .*: order_id, .*; found order"),
        ("--outcome", "city", "expected a .*: order_id, .* is_gift; found city"),
        ("--time", None, "--time: expected a column with a day .*: ordered_at$"),
    ],
)
def test_an_option_names_the_columns_that_it_can_mean(option, name, message):
    with pytest.raises(SettingsError, match=message):
        choose(in_types(table()), option, name)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"at": [BEGIN.replace(tzinfo=None)] * 8}, r"found at \(timestamp\[us\]\): le"),
        ({"tags": [["a"]] * 8}, r"found tags \(list<"),
        ({"ingested_at": ROWS["ordered_at"]}, r"found ingested_at \("),
    ],
)
def test_a_column_that_no_dataset_can_have_is_named(columns, message):
    with pytest.raises(SettingsError, match=f"--from: expected int64, .*; {message}"):
        in_types(table(**columns))


def test_files_and_tables_are_read_alike(tmp_path):
    csv = "id,user,at,on,amount,empty\n"
    csv += "1,a,2026-01-02T10:00:00Z,2026-01-02,1,\n"
    csv += "2,a,2026-01-03T10:00:00+01:00,2026-01-03,2.5,\n"
    (tmp_path / "csv").mkdir()
    for name in ("a", "b"):
        (tmp_path / "csv" / f"{name}.csv").write_text(csv)
    rows = read(str(tmp_path / "csv"))
    time = "timestamp[us, tz=UTC]"
    types = ["int64", "string", time, time, "double", "string"]
    assert [str(kind) for kind in rows.schema.types] == types
    assert rows.num_rows == 4
    pq.write_table(table(), tmp_path / "rows.parquet")
    with duckdb.connect(tmp_path / "rows.duckdb") as connection:
        connection.execute(f"CREATE TABLE orders AS FROM '{tmp_path}/rows.parquet'")
    expected = describe(in_types(table()), **ROLES)
    for address in ("rows.parquet", "rows.duckdb#orders"):
        scheme = "duckdb://" if "#" in address else ""
        rows = in_types(read(f"{scheme}{tmp_path}/{address}"))
        assert describe(rows, **ROLES) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.csv", "none.csv: expected parquet files or"),
        ("torn.parquet", "torn.parquet: "),
        ("empty.csv", "empty.csv: the last line has no end"),
        ("folder", "folder: .*expected parquet files or"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    for file in ("torn.parquet", "empty.csv"):
        (tmp_path / file).touch()
    with pytest.raises(DataError, match=message):
        read(str(tmp_path / name))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a use case of ROWS and imports its dataset."""
    monkeypatch.setenv("GYRE_HOME", str(tmp_path))

    def written(name, outcome=None):
        write_use_case(
            tmp_path, name, describe(in_types(table()), **ROLES, outcome=outcome)
        )
        path = tmp_path / FILES["dataset.py"].format(name)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return written


def test_features_are_those_of_brute_force_at_every_edge(write):
    module = write("sales")
    ibis.get_backend().raw_sql("SET TimeZone = 'UTC'")
    raw = table().append_column("ingested_at", table()["ordered_at"])
    view = module.DATASET.views["sales_features"](ibis.memtable(raw))
    rows = sorted(view.to_pyarrow().to_pylist(), key=lambda row: row["event_timestamp"])
    orders = table().to_pylist()
    edges = [
        days * DAY + tick for days in (0, 7, 30) for tick in (-TICK, 0 * TICK, TICK)
    ]
    for entity in (1, 2, 3):
        own_rows = [row for row in rows if row["customer_id"] == entity]
        own_orders = [order for order in orders if order["customer_id"] == entity]
        for at in [order["ordered_at"] + edge for order in orders for edge in edges]:
            past = [order for order in own_orders if order["ordered_at"] <= at]
            known = [row for row in own_rows if row["event_timestamp"] <= at]
            assert bool(past) == bool(known)
            for window, period in module.PERIODS.items():
                since = at - (period or 1000 * DAY)
                counted = [order for order in past if order["ordered_at"] > since]
                if known:
                    assert known[-1][f"events_{window}"] == len(counted)
                    total = sum(order["price"] for order in counted)
                    assert known[-1][f"price_{window}"] == total


@pytest.mark.parametrize("outcome", [None, "is_gift", "price"])
def test_what_is_written_passes_the_linter_of_the_project(write, tmp_path, outcome):
    write("sales", outcome)
    file = tmp_path / FILES["dataset.py"].format("sales")
    place = PROJECT / FILES["dataset.py"].format("sales")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [BIN / "ruff", *command, "--no-cache", "--stdin-filename", place, "-"],
            input=file.read_text(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_every_feast_object_has_an_owner_a_description_and_tags(write):
    kinds = (Entity, BaseFeatureView, FeatureService)
    values = vars(write("sales")).values()
    feast_objects = [value for value in values if isinstance(value, kinds)]
    assert len(feast_objects) == 4
    for feast_object in feast_objects:
        assert feast_object.owner
        assert feast_object.description
        assert feast_object.tags["dataset"] == "sales"


def labels(label, *tables):
    rows = label.expression(*[ibis.memtable(rows) for rows in tables]).to_pyarrow()
    return {
        (row["event_timestamp"] - BEGIN, row["customer_id"]): row["label"]
        for row in rows.to_pylist()
    }


def test_the_label_of_silence_is_of_those_active_and_looks_thirty_days_ahead(write):
    times = [BEGIN + days * DAY for days in (21, 32, 40)]
    snapshots = pa.table({"event_timestamp": times})
    label = write("sales").DATASET.labels["silent_30d"]
    at_21 = {(21 * DAY, 1): 1, (21 * DAY, 2): 1, (21 * DAY, 3): 1}
    at_32 = {(32 * DAY, 1): 1, (32 * DAY, 2): 0, (32 * DAY, 3): 1}
    assert labels(label, table(), snapshots) == at_21 | at_32 | {(40 * DAY, 1): 1}


@pytest.mark.parametrize(
    ("outcome", "expected"), [("is_gift", [0, 1, 0, 0, 0]), ("price", [0, 1, 1, 1, 0])]
)
def test_the_label_of_an_event_is_its_outcome_just_before_it(write, outcome, expected):
    module = write("gifts", outcome)
    days = (20, 120, 60, 130, 100)  # the first event of a customer has no features
    keys = zip(days, (1, 1, 2, 2, 3), strict=True)
    rows = {(day * DAY - TICK, key) for day, key in keys}
    (label,) = module.DATASET.labels.values()
    values = labels(label, table())
    assert values.keys() == rows
    assert sorted(values.values()) == sorted(expected)
    assert f"{outcome}_ever" not in {window.name for window in module.TOTALS}


def test_specs_and_rules_fit_the_columns(write, tmp_path):
    for name, outcome in (("sales", None), ("gifts", "is_gift")):
        write(name, outcome)
        text = (tmp_path / FILES["model.toml"].format(name)).read_text()
        spec = ModelSpec.model_validate(tomllib.loads(text))
        assert spec.entity_key == {"customer_id": "int64"}
        assert spec.snapshots.rows == ("label" if outcome else "members")
        file = tmp_path / FILES["expectations.json"].format(name)
        rules = json.loads(file.read_text())["expectations"]
        filled = [
            rule["kwargs"]["column"] for rule in rules if "not_be_null" in rule["type"]
        ]
        assert filled == [column for column in ROWS if column != "city"]
