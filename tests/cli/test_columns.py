"""What `gyre new --from` takes the columns of a source for, and what it says when in doubt."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from datetime import UTC, datetime, timedelta

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService
from feast.base_feature_view import BaseFeatureView

from cli.columns import describe
from cli.use_case import FILES, write_use_case
from core.errors import DataError, SettingsError
from core.spec import ModelSpec
from feature_repo.datasets import orders
from feature_repo.source import read

DAY, TICK = timedelta(days=1), timedelta(microseconds=1)
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


def table(*without, **columns):
    kept = {name: values for name, values in ROWS.items() if name not in without}
    return pa.table(
        {name: pa.array(values) for name, values in (kept | columns).items()}
    )


def roles(found):
    return found["key"], found["entity"], found["time"]


def test_types_names_and_values_say_what_columns_are():
    found = describe(table())
    assert roles(found) == (("order_id",), "customer_id", "ordered_at")
    assert (found["amounts"], found["horizon"]) == (["pieces", "price"], 30)
    assert found["filled"] == [name for name in ROWS if name != "city"]
    assert found["columns"]["is_gift"] == ("pa.bool_()", "bool")
    assert found["columns"]["ordered_at"] == (
        'pa.timestamp("us", tz="UTC")',
        "Timestamp",
    )


def test_a_text_that_rows_share_is_the_entity_and_with_the_time_the_key():
    found = describe(
        table("order_id", "customer_id", "city", "pieces", who=list("aabbccab"))
    )
    assert roles(found) == (("who", "ordered_at"), "who", "ordered_at")
    assert found["is_number"] is False


def test_one_can_say_otherwise():
    found = describe(
        table(shop_id=[1, 2] * 4), ["order_id", "pieces"], "shop_id", "ordered_at"
    )
    assert roles(found) == (("order_id", "pieces"), "shop_id", "ordered_at")
    assert found["amounts"] == ["price"]


def test_where_events_come_often_the_label_looks_seven_days_ahead():
    times = [BEGIN + n * 5 * DAY for n in range(8)]
    assert describe(table(customer_id=[1, 2] * 4, ordered_at=times))["horizon"] == 7


def test_the_same_row_twice_leaves_its_key_a_key():
    assert describe(pa.concat_tables([table(), table()[:2]]))["key"] == ("order_id",)


def test_what_cannot_be_added_up_exactly_is_left_out():
    odd = {
        "huge": [1e13] * 8, "none": [0] * 8, "gap": [float("inf"), *[1.0] * 7], "days": range(8),
        "Unit Price": [1.5] * 8, "zip_code": [8001] * 8,
    }  # fmt: skip
    assert describe(table(**odd), entity="customer_id")["amounts"] == [
        "pieces",
        "price",
    ]


@pytest.mark.parametrize(
    ("rows", "said", "message"),
    [
        (table("ordered_at"), {}, r"--time: expected a day .*; found order_id \(int64\), customer"),
        (table(paid_at=ROWS["ordered_at"]), {},
         r"--time: .*: say --time with one of ordered_at, paid_at$"),
        (table(shop_id=[1, 2] * 4), {}, r"--entity: .*: say --entity with one of customer_id, sh"),
        (table(ref=range(8)), {}, r"--key: .*: say --key with one of order_id, ref$"),
        (table("customer_id", "city", "pieces"), {}, "--entity: expected whole numbers or text"),
        (table("order_id", customer_id=[1] * 8, ordered_at=[BEGIN] * 8), {},
         "--key: expected whole numbers or text that no two rows share"),
        (table(), {"key": ["customer_id"]}, "--key: 5 of 8 rows share customer_id with another"),
        (table(), {"key": ["order"]}, "--key: expected .*; found order: say --key with one of ord"),
        (table(), {"entity": "price"}, "--entity: expected .*; found price: say --entity with one"),
        (table(), {"time": "price"}, "--time: expected .*; found price: say --time with one of or"),
        (table(at=[BEGIN.replace(tzinfo=None)] * 8), {},
         r"--from: expected int64, .*; found at \(timestamp\[us\]\): leave it out, or"),
        (table(tags=[["a"]] * 8), {}, r"--from: .*found tags \(list<"),
        (table(ingested_at=ROWS["ordered_at"]), {}, r"--from: .*; found ingested_at \("),
        (table()[:0], {}, "--entity: expected"),
    ],
)  # fmt: skip
def test_what_is_unclear_or_impossible_names_option_and_columns(rows, said, message):
    with pytest.raises(SettingsError, match=message):
        describe(rows, **said)


def test_files_and_tables_are_read_alike(tmp_path):
    csv = "id,user,at,on,amount,empty,hour,local\n"
    csv += "1,a,2026-01-02T10:00:00Z,2026-01-02,1,,10:30,2026-01-02 10:00:00\n"
    csv += "2,a,2026-01-03T10:00:00+01:00,2026-01-03,2.5,,11:30,2026-01-03 10:00:00\n"
    (tmp_path / "csv").mkdir()
    for name in ("a", "b"):
        (tmp_path / "csv" / f"{name}.csv").write_text(csv)
    found = read(str(tmp_path / "csv"))
    expected = (
        "int64",
        "string",
        "timestamp[us, tz=UTC]",
        "timestamp[us, tz=UTC]",
        "double",
    )
    assert [str(kind) for kind in found.schema.types] == [
        *expected,
        "string",
        "string",
        "string",
    ]
    assert found.num_rows == 4
    pq.write_table(table(), tmp_path / "rows.parquet")
    with duckdb.connect(tmp_path / "rows.duckdb") as connection:
        connection.execute(f"CREATE TABLE orders AS FROM '{tmp_path}/rows.parquet'")
    for address in (
        tmp_path / "rows.parquet",
        f"duckdb://{tmp_path}/rows.duckdb#orders",
    ):
        assert roles(describe(read(str(address)))) == roles(describe(table()))


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.csv", "none.csv: expected parquet files or"), ("torn.parquet", "torn.parquet: "),
     ("empty.csv", "empty.csv: the last line has no end"),
     ("folder", "folder: .*expected parquet files or")],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    for file in ("torn.parquet", "empty.csv"):
        (tmp_path / file).touch()
    with pytest.raises(DataError, match=message):
        read(str(tmp_path / name))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The dataset that the templates write for ROWS."""
    monkeypatch.setenv("GYRE_HOME", str(tmp_path))
    write_use_case(tmp_path, "sales", describe(table()))
    path = tmp_path / FILES["dataset.py"].format("sales")
    spec = importlib.util.spec_from_file_location("sales", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_features_are_those_of_brute_force_at_every_edge(module):
    ibis.get_backend().raw_sql("SET TimeZone = 'UTC'")
    raw = table().append_column("ingested_at", table()["ordered_at"])
    rows = (
        module.DATASET.views["sales_features"](ibis.memtable(raw))
        .to_pyarrow()
        .to_pylist()
    )
    events = table().to_pylist()
    compared = 0
    edges = [
        days * DAY + tick for days in (0, 7, 30) for tick in (-TICK, 0 * TICK, TICK)
    ]
    for at in (event["ordered_at"] + edge for event in events for edge in edges):
        for entity in (1, 2, 3):
            past = [
                e
                for e in events
                if e["customer_id"] == entity and e["ordered_at"] <= at
            ]
            known = [
                r
                for r in rows
                if r["customer_id"] == entity and r["event_timestamp"] <= at
            ]
            assert bool(past) == bool(known)
            if not past:
                continue
            newest = max(known, key=lambda row: row["event_timestamp"])
            for window, period in module.PERIODS.items():
                held = [
                    e for e in past if period is None or e["ordered_at"] > at - period
                ]
                assert newest[f"events_{window}"] == len(held)
                for amount in ("pieces", "price"):
                    assert newest[f"{amount}_{window}"] == sum(e[amount] for e in held)
            compared += 1
    assert compared > 100


def test_every_feast_object_has_an_owner_a_description_and_tags(module):
    kinds = (Entity, BaseFeatureView, FeatureService)
    for each in (module, orders):
        objects = [value for value in vars(each).values() if isinstance(value, kinds)]
        assert len(objects) == 4
        for found in objects:
            assert found.owner, found.name
            assert found.description, found.name
            assert found.tags["dataset"] in {"orders", "sales"}, found.name


def test_the_label_is_of_those_active_and_looks_thirty_days_ahead(module):
    snapshots = ibis.memtable(
        pa.table({"event_timestamp": [BEGIN + days * DAY for days in (21, 32, 40)]})
    )
    found = module.DATASET.labels["silent_30d"].expression(
        ibis.memtable(table()), snapshots
    )
    labels = {((r["event_timestamp"] - BEGIN).days, r["customer_id"]): r["label"]
              for r in found.to_pyarrow().to_pylist()}  # fmt: skip
    at_32 = {(32, 1): 1, (32, 2): 0, (32, 3): 1}
    assert labels == {(21, 1): 1, (21, 2): 1, (21, 3): 1, **at_32, (40, 1): 1}


def test_spec_and_rules_fit_the_columns(module, tmp_path):
    spec = tomllib.loads((tmp_path / "models" / "sales.toml").read_text())
    assert ModelSpec.model_validate(spec).entity_key == {"customer_id": "int64"}
    assert [*spec["features"]] == [
        *(
            f"{what}_{window}"
            for window in module.PERIODS
            for what in ("events", "pieces", "price")
        ),
        "days_since_last_event",
    ]
    rules = json.loads(
        (tmp_path / FILES["expectations.json"].format("sales")).read_text()
    )
    never_null = [
        r["kwargs"]["column"]
        for r in rules["expectations"]
        if "not_be_null" in r["type"]
    ]
    assert never_null == [name for name in ROWS if name != "city"]
