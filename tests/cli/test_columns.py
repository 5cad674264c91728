"""What `gyre new --from` takes the columns of a source for, and the use case that it writes."""

import json
import math
import re
import runpy
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import ibis
import pyarrow as pa
import pytest
from feast import Entity, ValueType

from cli.new.columns import choose, describe, in_types
from cli.use_case import FILES, write_use_case
from core.connectors.reading import read
from core.errors import SettingsError
from core.spec import ModelSpec
from feature_repo.datasets import load_dataset
from gyre import PROJECT, Window, Windows, feature_view
from tests.support.tools.clone import outer_environment, run

ORDERS = load_dataset("orders")
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
DATASET = FILES["dataset.py"].format("sales")
ROLES = {"key": ["order_id"], "entity": "customer_id", "time": "ordered_at"}


def table(**columns):
    return pa.table(ROWS | columns)


def test_identical_rows_may_share_a_key_and_different_rows_may_not():
    rows = in_types(pa.concat_tables([table(), table()[:2]]))
    assert describe(rows, **ROLES)["key"] == ("order_id",)
    message = "--key: 5 of 8 rows share customer_id with"
    with pytest.raises(SettingsError, match=message):
        describe(rows, **ROLES | {"key": ["customer_id"]})


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--time", "price", "expected a column with a day .*: ordered_at; found price"),
        ("--key", "price", "expected a .* no double: order_id, .*; found price"),
        ("--entity", "price", "expected a .*: order_id, customer_id, .*; found price"),
        ("--outcome", "city", "expected a .*: order_id, .* is_gift; found city"),
    ],
)
def test_an_option_with_a_wrong_column_is_refused_with_the_possible_columns(
    option, name, message
):
    with pytest.raises(SettingsError, match=message):
        choose(in_types(table()), option, name)


def test_a_column_of_a_type_that_no_dataset_can_have_is_refused_by_name():
    message = r"--from: expected int64, .*; found at \(timestamp\[us\]\): le"
    with pytest.raises(SettingsError, match=message):
        in_types(table(at=[BEGIN.replace(tzinfo=None)] * 8))


REFUSED = {
    "ingested_at": "tables do not tell it from Gyre's own ingested_at",
    "Superseded": "tables do not tell it from Gyre's own superseded",
    "PRICE": "tables do not tell it from 'price'",
    "_Gyre_position": "names that begin with _gyre_ are Gyre's own",
    "": "it has no name",
    " ": "it has no name",
    "a\tb": "its name has control characters",
}


@pytest.mark.parametrize(("name", "problem"), REFUSED.items())
def test_a_name_that_no_column_can_have_is_refused_before_anything_is_written(
    name, problem
):
    line = re.escape(f"column {name!r}: {problem}: rename it or leave it out")
    with pytest.raises(SettingsError, match=f"--from: {line}"):
        in_types(table(**{name: ROWS["pieces"]}))
    schema = ORDERS.schema.append(pa.field("price", pa.float64()))
    with pytest.raises(ValueError, match=f"Dataset orders: {line}"):
        replace(ORDERS, schema=schema.append(pa.field(name, pa.int64())))


@pytest.mark.parametrize("name", ["created", "Period", "event_timestamp"])
def test_an_entity_or_a_feature_that_views_have_a_column_of_is_refused(name):
    with pytest.raises(ValueError, match=f"column '{name}': tables do not tell it"):
        replace(ORDERS, entity=name)
    windows = [Window("dollar_value", "sum", name=name.upper())]
    view = Windows("customer_id", "order_ts", windows)
    dataset = replace(ORDERS, views={"view": view})
    entity = Entity(name="x", join_keys=["customer_id"], value_type=ValueType.INT64)
    with pytest.raises(ValueError, match=f"view view: column '{name.upper()}': tabl"):
        feature_view(dataset, "view", [entity])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (pa.array([2**63] * 8, pa.uint64()), "uint64.* holds 9223372036854775808"),
        (
            pa.array([Decimal(10**20)] * 8, pa.decimal128(38, 0)),
            "decimal.* holds 100000",
        ),
    ],
)
def test_a_value_that_its_column_would_change_is_refused(values, problem):
    with pytest.raises(SettingsError, match=f"column no .{problem}.*: convert it to"):
        in_types(table(no=values))


def test_rows_that_ingest_sets_aside_are_not_looked_at():
    times = [253402300800, -62167219200, *range(6)]
    times = pa.array(times, pa.timestamp("s", "UTC"))
    prices = [1.0, 1.0, math.nan, -math.inf, 1.0, 1.0, None, 1.0]
    rows = in_types(table(ordered_at=times, price=prices))
    assert sorted(rows["order_id"].to_pylist()) == [4, 5, 6, 7]
    assert describe(rows, **ROLES)["last"].year == 1970


TEXTS = {
    "int64": ["1", "-20", "0", ""],
    "double": ["1.50", "-2", "1e300", "", "nan"],
    "bool": ["true", "false", ""],
    "timestamp[us, tz=UTC]": ["2026-01-02", "2026-01-02T00:00:00+01:00", ""],
    "timestamp[us]": ["2026-01-02T00:00:00", "2026-01-02"],
    "string": [
        *("7 007", "0007 1.5", "1 +49170", "12345678901234567891 1", "1 0x1F", "1 A1"),
        *("9007199254740993 1.5", "10:30 1", "-007 1"),
    ],
}


def test_a_csv_gives_text_where_a_number_would_be_another(tmp_path):
    columns = {
        kind: (texts * 9)[:9] for kind, texts in TEXTS.items() if kind != "string"
    }
    for number, texts in enumerate(TEXTS["string"]):
        columns[f"string {number}"] = (texts.split() * 9)[:9]
    rows = list(zip(*columns.values(), strict=True))
    for number, part in enumerate((rows[:4], rows[4:])):  # types are those of all files
        lines = [",".join(row) for row in [tuple(columns), *part]]
        lines = [
            line.replace("timestamp[us, tz=UTC]", '"timestamp[us, tz=UTC]"')
            for line in lines
        ]
        text = "\ufeff" + "\n".join(lines) + "\n"
        (tmp_path / f"{number}.csv").write_text(text, "utf-8")
    types = {field.name: str(field.type) for field in read(str(tmp_path)).schema}
    assert types == {
        name: name.partition(" 0")[0] if "[" in name else name.split()[0]
        for name in columns
    }
    codes = in_types(
        table(customer_id=["7", "007"] * 4, city=["12345678901234567891"] * 8)
    )
    assert describe(codes, **ROLES)["codes"] == ["customer_id", "city"]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a use case of ROWS; it returns the names of its dataset."""
    monkeypatch.setenv("GYRE_HOME", str(tmp_path))

    def write(outcome=None):
        columns = describe(in_types(table()), **ROLES, outcome=outcome)
        write_use_case(tmp_path, "sales", columns)
        return runpy.run_path(tmp_path / DATASET)

    return write


@pytest.mark.parametrize("outcome", [None, "is_gift"])
def test_generated_files_fit_the_columns_and_pass_the_linter(write, tmp_path, outcome):
    write(outcome)
    text = (tmp_path / FILES["model.toml"].format("sales")).read_text()
    spec = ModelSpec.model_validate(tomllib.loads(text))
    assert spec.entity_key == {"customer_id": "int64"}
    assert spec.snapshots.rows == ("label" if outcome else "members")
    suite = (tmp_path / FILES["expectations.json"].format("sales")).read_text()
    rules = json.loads(suite)["expectations"]
    filled = [
        rule["kwargs"]["column"] for rule in rules if "not_be_null" in rule["type"]
    ]
    assert filled == [column for column in ROWS if column != "city"]
    for command in ("check", "format --check"):
        options = f"--no-cache --stdin-filename {PROJECT / DATASET} -"
        run(f"ruff {command} {options} < {DATASET}", tmp_path, outer_environment())


def labels(label, *tables):
    rows = label.expression(*map(ibis.memtable, tables)).to_pyarrow()
    return {
        (row["event_timestamp"] - BEGIN, row["customer_id"]): row["label"]
        for row in rows.to_pylist()
    }


def test_the_silence_label_covers_active_entities_and_the_next_thirty_days(write):
    times = [BEGIN + days * DAY for days in (21, 32, 40)]
    snapshots = pa.table({"event_timestamp": times})
    label = write()["DATASET"].labels["silent_30d"]
    at_21 = {(21 * DAY, 1): 1, (21 * DAY, 2): 1, (21 * DAY, 3): 1}
    at_32 = {(32 * DAY, 1): 1, (32 * DAY, 2): 0, (32 * DAY, 3): 1}
    assert labels(label, table(), snapshots) == at_21 | at_32 | {(40 * DAY, 1): 1}


def test_the_label_of_an_event_is_its_outcome_dated_just_before_the_event(write):
    names = write("price")
    (label,) = names["DATASET"].labels.values()
    # The first event of a customer has no features.
    expected = {(20, 1): 0, (120, 1): 1, (60, 2): 1, (130, 2): 1, (100, 3): 0}
    assert labels(label, table()) == {
        (days * DAY - TICK, customer): value
        for (days, customer), value in expected.items()
    }
    assert "price_ever" not in {window.name for window in names["TOTALS"]}
