"""Bad input through the real ingest: the table in docs/bad-input.md, row by row."""

from __future__ import annotations

import gzip
import re
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core.errors import DataError
from core.settings import PROJECT
from core.spec import load_spec
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.ingest import ingest
from feature_repo.quarantine import quarantine_table
from feature_repo.views import view_files
from tests.conftest import AS_OF
from tests.feature_repo.conftest import ProjectCopy, online_reader

ORDERS, SPEC = load_dataset("orders"), load_spec("customer_churn_model")
LINE = re.compile(r"^\| ([^|]+) \| (stopped|set aside|accepted) \| (`[^|]+`) \|$", re.MULTILINE)
TABLE = LINE.findall((PROJECT / "docs" / "bad-input.md").read_text())
NOON = AS_OF - timedelta(days=1)
ZULU = "2099-11-19T12:00:00Z"


def orders(numbers, **changed):
    """An order of a customer each, some columns changed."""
    rows = [{"order_id": n, "customer_id": n, "order_ts": NOON, "number_of_cds": 1,
             "dollar_value": 10.0} | changed for n in numbers]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ORDERS.schema)


def one_bad(**changed):
    """A good order and a bad one."""
    return lambda new: pa.concat_tables([orders(new[:1]), orders(new[1:2], **changed)])


def retyped(column, kind):
    def rows(new):
        found = orders(new[:1])
        position = found.schema.get_field_index(column)
        return found.set_column(position, column, found[column].cast(kind))

    return rows


def csv(*times, amount="10.5"):
    def content(new):
        lines = [f"{n},{n},{time},1,{amount}\n" for n, time in zip(new, times, strict=False)]
        return "".join([",".join(ORDERS.schema.names), "\n", *lines])

    return content


def cds(value, kind):
    """Two files, the number of CDs of the second in another type."""

    def files(new):
        second = orders(new[1:2])
        position = second.schema.get_field_index("number_of_cds")
        return {
            "a.parquet": orders(new[:1]),
            "b.parquet": second.set_column(position, "number_of_cds", pa.array([value], kind)),
        }

    return files


def unlike(new):
    """Local times, texts and a column more."""
    rows = orders(new[:1])
    for name, kind in (("order_ts", pa.timestamp("us")), ("customer_id", pa.string())):
        position = rows.schema.get_field_index(name)
        rows = rows.set_column(position, name, rows[name].cast(kind))
    return rows.append_column("coupon", pa.array(["X"]))


def compatible(first, second):
    """Days, small numbers, decimals and columns in another order in one of two files."""

    def files(new):
        types = {
            "order_id": pa.int32(),
            "customer_id": pa.decimal128(20, 1),
            "order_ts": pa.date32(),
            "number_of_cds": pa.uint8(),
            "dollar_value": pa.float32(),
        }
        narrow = orders(new[:1], order_ts=NOON.replace(hour=0))
        narrow = narrow.cast(pa.schema(types)).select([*types][::-1])
        return {first: narrow, second: orders(new[1:2])}

    return files


def csv_folder(second):
    """A good CSV file, and a second."""
    return lambda new: {"a.csv": csv(ZULU)(new), "b.csv": second(new[1:])}


def cut(content, end):
    return lambda new: content(new)[:end]


def parquet_bytes(new):
    file = pa.BufferOutputStream()
    pq.write_table(orders(new), file)
    return file.getvalue().to_pybytes()


def of_one_customer(new):
    millisecond = timedelta(milliseconds=1)
    rows = [{"order_id": 10**6 + n, "customer_id": new[0], "order_ts": NOON - n * millisecond,
             "number_of_cds": 1, "dollar_value": 10.0} for n in range(100_000)]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ORDERS.schema)


CASES = {
    "a renamed column": lambda new: orders(new).rename_columns({"number_of_cds": "cds"}),
    "a missing column": lambda new: orders(new).drop_columns(["customer_id"]),
    "an extra column": lambda new: orders(new).append_column("coupon", pa.array(["X"] * len(new))),
    "amounts as text": retyped("dollar_value", pa.string()),
    "customers as text": retyped("customer_id", pa.string()),
    "every 4th amount negative": lambda new: pa.concat_tables(
        [orders(new[::4], dollar_value=-1.0), *(orders(new[n::4]) for n in (1, 2, 3))]
    ),
    "no customer on any of 100 rows": lambda new: orders(new, customer_id=None),
    "times without a zone": retyped("order_ts", pa.timestamp("us")),
    "CSV: times without an offset": csv("2099-11-19T12:00:00"),
    "CSV: days such as 03/04/2099": csv("03/04/2099"),
    "a second file of local times, text and one more column": lambda new: {
        "a.parquet": orders(new[:1]),
        "b.parquet": unlike(new[1:]),
    },
    "a second file with 1.5 CDs": cds(Decimal("1.5"), pa.decimal128(5, 1)),
    "a second file with CDs beyond int64": cds(2**63, pa.uint64()),
    "CSV folder: a second file with a time without an offset": csv_folder(
        csv("2099-11-19T12:00:00")
    ),
    "CSV folder: a second file with text for a number": csv_folder(csv(ZULU, amount="ten")),
    "CSV: 1.5 CDs": lambda new: csv(ZULU)(new).replace(",1,10.5", ",1.5,10.5"),
    "CSV: no for a boolean": lambda new: (
        csv(ZULU)(new).replace("_value\n", "_value,gift\n").replace("0.5\n", "0.5,no\n")
    ),
    "a second file of compatible types": compatible("b.parquet", "a.parquet"),
    "a first file of compatible types": compatible("a.parquet", "b.parquet"),
    "columns in another order": lambda new: orders(new[:1]).select(ORDERS.schema.names[::-1]),
    "times of another zone": retyped("order_ts", pa.timestamp("us", "America/New_York")),
    "CSV: times of other offsets": csv("2099-11-19T07:00:00-05:00", "2099-11-19 17:30:00+05:30"),
    "CSV: whole days, whole amounts": csv("2099-11-19", amount="10"),
    "an order of 1970": one_bad(order_ts=datetime(1970, 1, 1, tzinfo=UTC)),
    "an order of 2170": one_bad(order_ts=datetime(2170, 1, 1, tzinfo=UTC)),
    "an order without its key": one_bad(order_id=None),
    "an order without a customer": one_bad(customer_id=None),
    "an order without a time": one_bad(order_ts=None),
    "a negative amount": one_bad(dollar_value=-1.0),
    "an amount that is no number (NaN)": one_bad(dollar_value=float("nan")),
    "a file with columns and no rows": lambda _: orders([]),
    "CSV with a header and no rows": csv(),
    "parquet of 0 bytes": lambda _: b"",
    "parquet cut short": cut(parquet_bytes, -100),
    "CSV of 0 bytes": lambda _: "",
    "CSV cut within a line": cut(csv(ZULU, ZULU), -3),  # 10.5 has become 10
    "CSV, compressed and cut short": lambda new: gzip.compress(csv(ZULU)(new).encode())[:-20],
    "CSV cut at the end of a line": lambda new: csv(ZULU, ZULU)(new[:1]),
    "1,000 times the same order": lambda new: orders([new[0]] * 1_000),
    "the same order twice, with other content": lambda new: pa.concat_tables(
        [orders(new[:1], dollar_value=1.0), orders(new[:1])]
    ),
    "100,000 orders of one customer": of_one_customer,
}


@pytest.fixture(scope="module")
def shop(template, tmp_path_factory):
    """An installation with orders, to which case after case arrives; a stopped one leaves it so."""
    settings, folder = template.restore(), tmp_path_factory.mktemp("source")
    project = ProjectCopy(tmp_path_factory.mktemp("gifts"))
    project.edit(
        "feature_repo/datasets/orders.py",
        '"dollar_value": pa.float64()',
        '"dollar_value": pa.float64(), "gift": pa.bool_()',
    )
    arrive(settings, folder, "first", orders([1, 2, 3]))
    return settings, folder, project


@pytest.fixture(scope="module")
def set_aside(shop):
    """All cases of a bad row in one batch: the installation, and its quarantine."""
    settings, folder, _ = shop
    names = [name for name, outcome, _ in TABLE if outcome == "set aside"]
    rows = pa.concat_tables([CASES[name](new_keys(name)) for name in names])
    report = arrive(settings, folder, "bad rows", rows)
    assert (report.inserted, report.quarantined) == (len(names), len(names))
    return settings, quarantine_table(settings, ORDERS).read().to_pylist()


def new_keys(name):
    """Keys and customers that no other case delivers."""
    start = 1_000 * (1 + list(CASES).index(name))
    return range(start, start + 100)


def arrive(settings, folder, name, content, project=None):
    """Ingest what a file holds, or several of a folder, of its own."""
    source = save(folder, name, content)
    if project:  # its orders have one column more
        return project.gyre(settings, "ingest", "orders", orders=source)
    settings = settings.model_copy(update={"sources": {"orders": str(source)}})
    return ingest(settings, "orders", AS_OF, full=True)


def save(folder, name, content):
    """Rows of parquet, text of a CSV, bytes of either; or a folder of them."""
    name = name.replace("/", "-")
    if isinstance(content, dict):
        (folder / name).mkdir()
        for part, rows in content.items():
            save(folder / name, part, rows)
        return folder / name
    ending = ".csv.gz" if "compressed" in name else ".csv" if "CSV" in name else ".parquet"
    file = folder / (name if Path(name).suffix in {".csv", ".parquet"} else name + ending)
    if isinstance(content, pa.Table):
        pq.write_table(content, file)
    else:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def online(settings, *customers):
    reader = online_reader(settings, SPEC.feature_service, SPEC.features)
    try:
        return reader.read([{"customer_id": each} for each in customers], AS_OF)
    finally:
        reader.close()


def state(settings):
    """Version and rows of the tables, the view that stands, and a customer online."""
    tables = (raw_table(settings, ORDERS), quarantine_table(settings, ORDERS))
    known = [(table.version, table.read().num_rows) for table in tables]
    return *known, view_files(settings, "customer_features"), online(settings, 1)


def test_the_documented_cases_are_those_tested():
    assert [name for name, *_ in TABLE] == list(CASES)


def cases(outcome):
    """Names and words of the table's rows with an outcome."""
    found = {name: re.findall("`([^`]+)`", said) for name, other, said in TABLE if other == outcome}
    return pytest.mark.parametrize(("name", "expected"), found.items(), ids=found)


@cases("stopped")
def test_what_is_stopped_changes_nothing_and_is_named(shop, name, expected):
    settings, folder, project = shop
    content, before = CASES[name](new_keys(name)), state(settings)
    with pytest.raises((DataError, subprocess.CalledProcessError)) as stopped:
        arrive(settings, folder, name, content, project if "boolean" in name else None)
    message = getattr(stopped.value, "stderr", str(stopped.value))
    wanted = [*expected, str(folder / name.split("/")[0])]
    assert [words for words in wanted if words not in message] == [], message
    assert state(settings) == before


@cases("set aside")
def test_what_is_set_aside_is_in_quarantine_with_its_rule_and_the_others_land(
    set_aside, name, expected
):
    settings, quarantine = set_aside
    new = new_keys(name)
    assert [row["rules"] for row in quarantine if str(new[1]) in row["row"]] == expected
    good, bad = online(settings, new[0], new[1])
    assert (good["lifetime_orders"], bad) == (1, None)


@cases("accepted")
def test_what_is_accepted_lands(shop, name, expected):
    settings, folder, _ = shop
    new, before = new_keys(name), raw_table(settings, ORDERS).read().num_rows
    report = arrive(settings, folder, name, CASES[name](new))
    raw = raw_table(settings, ORDERS).read()
    landed = raw.filter(pc.is_in(raw["customer_id"], pa.array(new, pa.int64())))
    assert len(landed) == report.inserted == len(raw) - before
    assert all(words in report.summary() for words in expected)
    assert report.quarantined == 0
    if "zone" in name or "offset" in name:
        assert set(landed["order_ts"].to_pylist()) == {NOON}
    if len(landed):
        (found,) = online(settings, new[0])
        assert found["lifetime_orders"] == pc.sum(pc.equal(landed["customer_id"], new[0])).as_py()
