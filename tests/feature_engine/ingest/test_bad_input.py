"""Bad input through the real ingest: the table in docs/bad-input.md, row by row."""

import gzip
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core.errors import DataError
from core.project import PROJECT
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import view_table
from tests.conftest import AS_OF
from tests.support.feature_engine.shop import (
    DAY,
    ORDERS,
    VIEW,
    Shop,
    order,
    order_table,
)

LINE = re.compile(
    r"^\| ([^|]+) \| (stopped|set aside|accepted) \| (`[^|]+`) \|$", re.MULTILINE
)
TABLE = LINE.findall((PROJECT / "docs" / "bad-input.md").read_text())
NOON = AS_OF - DAY
ZULU = "2099-11-19T12:00:00Z"
COMPATIBLE_TYPES = pa.schema(
    {
        "dollar_value": pa.float32(),
        "number_of_cds": pa.uint8(),
        "order_ts": pa.date32(),
        "customer_id": pa.decimal128(20, 1),
        "order_id": pa.int32(),
    }
)


def orders(numbers, **columns):
    """An order of a customer each, with other values in some columns."""
    return order_table(*[order(n, n, NOON) | columns for n in numbers])


def retyped(**columns):
    """An order with some columns in another type, or with other values."""

    def content(new):
        rows = orders(new[:1])
        for name, column in columns.items():
            position = rows.schema.get_field_index(name)
            is_type = isinstance(column, pa.DataType)
            values = rows[name].cast(column) if is_type else column
            rows = rows.set_column(position, name, values)
        return rows

    return content


def narrow(new):
    """An order in types and an order of columns that fit the dataset's."""
    rows = orders(new[:1], order_ts=NOON.replace(hour=0))
    return rows.select(COMPATIBLE_TYPES.names).cast(COMPATIBLE_TYPES)


def csv(*lines):
    """A CSV of lines behind order and customer, such as `TIME,1,10.5`."""

    def content(new):
        text = ",".join(ORDERS.schema.names) + "\n"
        for number, line in zip(new, lines, strict=False):
            text += f"{number},{number},{line}\n"
        return text

    return content


def two_files(first, second):
    """A folder of two files; each is made of numbers of its own."""
    return lambda new: {"a": first(new[:1]), "b": second(new[1:2])}


def one_bad(**columns):
    """A good order and a bad one."""
    return lambda new: pa.concat_tables([orders(new[:1]), orders(new[1:2], **columns)])


def parquet_bytes(rows):
    file = pa.BufferOutputStream()
    pq.write_table(rows, file)
    return file.getvalue().to_pybytes()


def of_one_customer(new):
    times = [NOON - timedelta(seconds=n) for n in range(100_000)]
    return order_table(*[order(10**6 + n, new[0], at) for n, at in enumerate(times)])


GOOD = csv(f"{ZULU},1,10.5")
CASES = {
    "a renamed column": lambda new: orders(new).rename_columns(
        {"number_of_cds": "cds"}
    ),
    "a missing column": lambda new: orders(new).drop_columns(["customer_id"]),
    "an extra column": lambda new: orders(new).append_column(
        "coupon", pa.array(["X"] * len(new))
    ),
    "amounts as text": retyped(dollar_value=pa.string()),
    "customers as text": retyped(customer_id=pa.string()),
    "every 4th amount negative": lambda new: pa.concat_tables(
        [orders(new[:25], dollar_value=-1.0), orders(new[25:])]
    ),
    "no customer on any of 100 rows": lambda new: orders(new, customer_id=None),
    "times without a zone": retyped(order_ts=pa.timestamp("us")),
    "CSV: times without an offset": csv("2099-11-19T12:00:00,1,10.5"),
    "CSV: days such as 03/04/2099": csv("03/04/2099,1,10.5"),
    "a second file of local times and text": two_files(
        orders, retyped(order_ts=pa.timestamp("us"), customer_id=pa.string())
    ),
    "a second file with 1.5 CDs": two_files(
        orders,
        retyped(number_of_cds=pa.array([Decimal("1.5")], pa.decimal128(5, 1))),
    ),
    "a second file with CDs beyond int64": two_files(
        orders, retyped(number_of_cds=pa.array([2**63], pa.uint64()))
    ),
    "CSV folder: a second file with a time without an offset": two_files(
        GOOD, csv("2099-11-19T12:00:00,1,10.5")
    ),
    "CSV folder: a second file with text for a number": two_files(
        GOOD, csv(f"{ZULU},1,ten")
    ),
    "CSV: 1.5 CDs": csv(f"{ZULU},1.5,10.5"),
    "whole CDs as fractions (2.0)": retyped(number_of_cds=pa.float64()),
    "a second file of compatible types": two_files(orders, narrow),
    "a first file of compatible types": two_files(narrow, orders),
    "columns in another order": lambda new: orders(new[:1]).select(
        ORDERS.schema.names[::-1]
    ),
    "times of another zone": retyped(order_ts=pa.timestamp("us", "America/New_York")),
    "CSV: times of other offsets": csv(
        "2099-11-19T07:00:00-05:00,1,10.5", "2099-11-19 17:30:00+05:30,1,10.5"
    ),
    "CSV: whole days, whole amounts": csv("2099-11-19,1,10"),
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
    "parquet cut short": lambda new: parquet_bytes(orders(new))[:-100],
    "CSV of 0 bytes": lambda _: "",
    "CSV cut within a line": lambda new: GOOD(new)[:-3],  # 10.5 has become 10
    "CSV, compressed and cut short": lambda new: gzip.compress(GOOD(new).encode())[
        :-20
    ],
    "CSV cut at the end of a line": GOOD,
    "1,000 times the same order": lambda new: orders([new[0]] * 1_000),
    "the same order twice, with other content": lambda new: pa.concat_tables(
        [orders(new[:1], dollar_value=1.0), orders(new[:1])]
    ),
    "100,000 orders of one customer": of_one_customer,
}


def numbers_of(name):
    """Keys and customers that no other case delivers."""
    start = 1_000 * (1 + list(CASES).index(name))
    return range(start, start + 100)


class FolderShop(Shop):
    """An installation with orders; case after case arrives, each in a file of its own."""

    def deliver(self, name, content):
        source = self.save(name.replace("/", "-"), content)
        sources = {"orders": str(source)}
        self.settings = self.settings.model_copy(update={"sources": sources})
        return self.ingest(AS_OF, full=True)

    def save(self, name, content):
        """Write rows as parquet, text as a CSV, bytes as either; or a folder of them."""
        if isinstance(content, dict):
            (self.file / name).mkdir()
            for part, rows in content.items():
                file = self.save(f"{name}/{part}", rows)
            return file.parent
        if isinstance(content, str):
            content = content.encode()
            name += ".csv"
        else:
            name += ".csv.gz" if "CSV" in name else ".parquet"
        if isinstance(content, pa.Table):
            content = parquet_bytes(content)
        file = self.file / name
        file.write_bytes(content)
        return file

    def state(self):
        """Rows of the tables, the files of the view, and a customer online."""
        files = view_table(self.settings, VIEW).files()
        return self.raw(), self.quarantine(), files, self.online(AS_OF, 1)


@pytest.fixture(scope="module")
def shop(template, tmp_path_factory):
    shop = FolderShop(template.restore(), tmp_path_factory.mktemp("source"))
    shop.deliver("first", orders([1, 2, 3]))
    return shop


@pytest.fixture(scope="module")
def quarantine(shop):
    """What is set aside of all cases of a bad row, which arrive in one delivery."""
    names = [name for name, outcome, _ in TABLE if outcome == "set aside"]
    rows = pa.concat_tables([CASES[name](numbers_of(name)) for name in names])
    report = shop.deliver("bad rows", rows)
    assert (report.inserted, report.quarantined) == (len(names), len(names))
    return shop.quarantine()


def test_every_case_of_the_documentation_is_tested():
    assert [name for name, *_ in TABLE] == list(CASES)


def cases(outcome):
    """Names and words of the table's rows with an outcome."""
    words = {
        name: re.findall("`([^`]+)`", text)
        for name, row_outcome, text in TABLE
        if row_outcome == outcome
    }
    return pytest.mark.parametrize(("name", "expected"), words.items(), ids=words)


@cases("stopped")
def test_a_stopped_delivery_changes_nothing_and_is_named(shop, name, expected):
    content = CASES[name](numbers_of(name))
    state = shop.state()
    with pytest.raises(DataError) as error:
        shop.deliver(name, content)
    message = str(error.value)
    for words in (*expected, str(shop.file / name.partition("/")[0])):
        assert words in message
    assert shop.state() == state


@cases("set aside")
def test_bad_rows_are_in_quarantine_with_their_rule_and_the_others_land(
    shop, quarantine, name, expected
):
    good_number, bad_number, *_ = numbers_of(name)
    assert [
        row["rules"] for row in quarantine if str(bad_number) in row["row"]
    ] == expected
    good, bad = shop.online(AS_OF, good_number, bad_number)
    assert (good["lifetime_orders"], bad) == (1, None)


@pytest.mark.journey
@cases("accepted")
def test_accepted_rows_land(shop, name, expected):
    numbers = numbers_of(name)
    report = shop.deliver(name, CASES[name](numbers))
    is_of_case = pc.field("customer_id").isin(list(numbers))
    landed = raw_table(shop.settings, ORDERS).read(where=is_of_case)
    assert landed.num_rows == report.inserted
    assert all(words in report.summary() for words in expected)
    assert report.quarantined == 0
    if "zone" in name or "offset" in name:
        assert set(landed["order_ts"].to_pylist()) == {NOON}
    if landed.num_rows:
        (values,) = shop.online(AS_OF, numbers[0])
        own_rows = landed.filter(pc.field("customer_id") == numbers[0])
        assert values["lifetime_orders"] == own_rows.num_rows
