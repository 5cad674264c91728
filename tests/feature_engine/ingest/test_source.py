"""Where rows come from: the demo, other sources, and the errors of a missing one."""

import json
import subprocess
import uuid
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from itertools import product

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyarrow import csv

from core.connectors.reading import open_part, read
from core.errors import BatchRejectedError, DataError
from feature_engine.ingest.forgotten import keep_out
from feature_engine.ingest.landing import land
from feature_engine.ingest.quarantine import quarantined
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.shop import DAY, ORDERS, order, order_table
from tests.support.tools.preloaded import commands_folder


def test_the_demo_delivers_due_orders_by_the_dates_of_its_first_start(tmp_path):
    settings = new_settings(tmp_path)
    first_rows = pull(settings, ORDERS, AS_OF).read_all()
    next_rows = pull(settings, ORDERS, AS_OF + DAY).read_all()
    all_rows = pull(settings, ORDERS, AS_OF + 200 * DAY).read_all()
    assert 60_000 < first_rows.num_rows < next_rows.num_rows < all_rows.num_rows
    assert all_rows.num_rows == 69_659
    restarted = settings.model_copy(update={"demo_start": date(2027, 5, 5)})
    assert pull(restarted, ORDERS, AS_OF).read_all().equals(first_rows)


def with_source(folder, address):
    return new_settings(folder / "home", sources={"orders": str(address)})


def save(file, days):
    """Write a file with one order, as old as its number says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = order_table(order(days, 1, AS_OF - days * DAY))
    if file.suffix.lower() == ".csv":
        csv.write_csv(table, file)
    else:
        pq.write_table(table, file)


@pytest.mark.parametrize("address", ["", "**/*.*"])
def test_a_folder_or_a_glob_is_a_source_of_parquet_and_csv_files(tmp_path, address):
    folder = tmp_path / "shop"
    for days in (1, 20):
        save(folder / f"{days}.csv", days)
        save(folder / f"{days + 1}.parquet", days + 1)
    save(folder / ".3.parquet", 3)  # a hidden file is not read
    settings = with_source(tmp_path, folder / address)
    for since, numbers in ((None, [1, 2, 20, 21]), (AS_OF - 7 * DAY, [1, 2])):
        rows = pull(settings, ORDERS, AS_OF, since=since).read_all()
        assert sorted(rows["order_id"].to_pylist()) == numbers


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{}", "{}: expected parquet, CSV or JSON-lines files, found none"),
        (
            "{}/none.parquet",
            "{}/none.parquet: expected parquet, CSV or JSON-lines files",
        ),
        ("postgres://reader:secret@127.0.0.1:1/shop#orders", "127.0.0.1:1/shop#orders"),
    ],
)
def test_a_source_that_cannot_be_read_is_named_without_its_password(
    tmp_path, address, message
):
    settings = with_source(tmp_path, address.format(tmp_path))
    with pytest.raises(DataError, match=message.format(tmp_path)) as error:
        pull(settings, ORDERS, AS_OF).read_all()
    assert "secret" not in str(error.value)


def numbers_from(folder, address, **more):
    """Numbers of the orders that a source delivers."""
    rows = pull(with_source(folder, address), ORDERS, AS_OF, **more).read_all()
    return sorted(rows["order_id"].to_pylist())


NAMES = [
    *("a[1]", "a*", "a?", "a#1", "a%20b", "a b ", " a", "a@b", "ä 雪", "${HOME}"),
    *("a//b", "customer_id=99/a", "dir /a", "[ab]/a", "x#y/a", "?/a", "batch=7/a"),
    *("http://a.b/c", "*/a"),
]


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        *product(NAMES, ["parquet", "csv"]),
        *product(["a[1]", "batch=7/a"], ["PARQUET", "Csv"]),
    ],
)
def test_a_file_is_read_as_what_it_is_called(tmp_path, name, ending):
    folder = tmp_path / "in"
    decoys = ("a1", "aa", "a", "ab/a", "b/a", "a b/a")
    for number, other_name in enumerate((name, *decoys), 1):
        save(folder / f"{other_name}.{ending}", number)
    file = folder / f"{name}.{ending}"
    assert numbers_from(tmp_path, file) == [1]
    assert numbers_from(tmp_path, file, since=AS_OF - 2 * DAY) == [1]
    for address in (folder, folder / f"**/*.{ending}"):
        assert numbers_from(tmp_path, address) == [1, 2, 3, 4, 5, 6, 7]
    rows = read(str(file))
    assert rows.column_names == ORDERS.schema.names
    assert rows["customer_id"].to_pylist() == [1]


def test_what_exists_is_no_pattern_and_what_does_not_is_one(tmp_path):
    for number, name in enumerate(("a[1]", "a1", "a2", "we[ird]/b", "w/b"), 1):
        save(tmp_path / f"{name}.parquet", number)
    assert numbers_from(tmp_path, tmp_path / "a[1].parquet") == [1]
    assert numbers_from(tmp_path, tmp_path / "a[2].parquet") == [3]
    assert numbers_from(tmp_path, tmp_path / "a[12].parquet") == [2, 3]
    assert numbers_from(tmp_path, tmp_path / "we[ird]") == [4]
    assert numbers_from(tmp_path, tmp_path / "we[ird]/*.parquet") == [4]


def test_links_are_followed_once_and_what_a_tool_still_writes_is_left_out(tmp_path):
    folder = tmp_path / "in"
    save(tmp_path / "elsewhere" / "1.parquet", 1)
    save(folder / "shop.parquet" / "2.parquet", 2)  # a folder, as Spark writes it
    for name in ("_temporary/0/3", ".hidden/4", ".5", "shop.parquet/_temporary/6"):
        save(folder / f"{name}.parquet", 9)
    save(folder / "_7.parquet", 7)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "up").symlink_to(folder)
    (folder / "_SUCCESS").touch()
    assert numbers_from(tmp_path, folder) == [1, 2, 7]
    assert numbers_from(tmp_path, folder / "*.parquet") == [2, 7]


def save_delta(folder, **more):
    """Write a Delta table of the orders 1 to 3, whose 3 was deleted and whose 2 was changed."""
    rows = order_table(*[order(n, n, AS_OF - n * DAY, n) for n in (1, 2, 3)])
    plain = folder.parents[1] / "plain"
    write_deltalake(str(plain), rows, **more)
    table = DeltaTable(str(plain))
    table.delete("order_id = 3")
    table.update({"dollar_value": "20"}, predicate="order_id = 2")
    table.create_checkpoint()
    folder.parent.mkdir()
    plain.rename(folder)  # deltalake cannot write there


@pytest.mark.parametrize("columns", [[], ["customer_id"]])
def test_a_delta_table_is_read_by_its_log(tmp_path, columns):
    folder = tmp_path / "lake [1]" / "orders"
    save_delta(folder, partition_by=columns)
    save(tmp_path / "lake [1]" / "9.csv", 9)
    for address in (folder, f"{folder}/", folder.parent / "ord*"):
        rows = pull(with_source(tmp_path, address), ORDERS, AS_OF).read_all()
        amounts = {row["order_id"]: row["dollar_value"] for row in rows.to_pylist()}
        assert amounts == {1: 1, 2: 20}
        assert numbers_from(tmp_path, address, since=AS_OF - 1.5 * DAY) == [1]
    assert numbers_from(tmp_path, folder.parent) == [1, 2, 9]
    parts = {*folder.rglob("*.parquet"), folder / "_delta_log"}
    for address in (*parts, folder / "**/*.parquet"):
        with pytest.raises(
            DataError, match=r"orders, a table of Delta: name the table"
        ):
            numbers_from(tmp_path, address)
    assert read(str(folder))["order_id"].to_pylist() in ([1, 2], [2, 1])


VECTOR = "^Bg9^0rr910000000000iXQKl0rr91000005c8Xg0rr91"
"""Delta's deletion vector of the second row of a file."""


def write_log(folder, actions):
    log = folder / "_delta_log"
    log.mkdir()
    (log / f"{0:020}.json").write_text("\n".join(map(json.dumps, actions)))


def test_deleted_rows_and_renamed_columns_of_other_writers_are_respected(tmp_path):
    folder = tmp_path / "orders"
    rows = order_table(*[order(n, n, AS_OF - DAY) for n in (1, 2, 3)])
    names = [f"col-{number}" for number in range(len(rows.column_names))]
    folder.mkdir()
    pq.write_table(rows.rename_columns(names), folder / "f.parquet")
    types = ("long", "long", "timestamp", "long", "double")
    fields = [
        {
            "name": field.name,
            "type": kind,
            "nullable": True,
            "metadata": {
                "delta.columnMapping.id": number,
                "delta.columnMapping.physicalName": name,
            },
        }
        for number, (field, kind, name) in enumerate(
            zip(rows.schema, types, names, strict=True)
        )
    ]
    features = ["columnMapping", "deletionVectors"]
    deleted = {
        "storageType": "i",
        "sizeInBytes": 34,
        "cardinality": 1,
        "pathOrInlineDv": VECTOR,
    }
    write_log(
        folder,
        [
            {
                "protocol": {
                    "minReaderVersion": 3,
                    "minWriterVersion": 7,
                    "readerFeatures": features,
                    "writerFeatures": features,
                }
            },
            {
                "metaData": {
                    "id": "x",
                    "format": {"provider": "parquet", "options": {}},
                    "schemaString": json.dumps({"type": "struct", "fields": fields}),
                    "partitionColumns": [],
                    "createdTime": 0,
                    "configuration": {"delta.columnMapping.mode": "name"},
                }
            },
            {
                "add": {
                    "path": "f.parquet",
                    "partitionValues": {},
                    "modificationTime": 0,
                    "size": (folder / "f.parquet").stat().st_size,
                    "dataChange": True,
                    "deletionVector": deleted,
                }
            },
        ],
    )
    assert numbers_from(tmp_path, folder) == [1, 3]


@pytest.mark.parametrize(
    ("mark", "table_format"),
    [
        ("metadata/v1.metadata.json", "Iceberg"),
        ("metadata/00001-a.gz.metadata.json", "Iceberg"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("_spark_metadata/0", "Spark streaming"),
    ],
)
def test_a_table_of_another_format_is_refused_by_name(tmp_path, mark, table_format):
    lake = tmp_path / "lake"
    table = lake / "orders"
    save(table / "data" / "1.parquet", 1)
    (table / mark).parent.mkdir(parents=True)
    (table / mark).touch()
    for address in (table, lake, lake / "*", table / "data", table / "data/*.parquet"):
        with pytest.raises(DataError, match=f"table of {table_format}"):
            numbers_from(tmp_path, address)
        with pytest.raises(DataError, match=f"table of {table_format}"):
            read(str(address))


def second(number):
    return pa.array([number], pa.timestamp("s", "UTC"))


UNREADABLE = [
    ("customer_id", ["007", "+7", "-0", "7.0", "9223372036854775808", "1e3", "0x1F"]),
    ("order_id", ["007", "12345678901234567891"]),
    ("number_of_cds", ["1.5", "ten", "99999999999999999999", "0x1F", "-0XA"]),
    ("dollar_value", ["NaN", "inf", "-Infinity", "1e400", "ten", "1,5"]),
    (
        "dollar_value",
        ["9007199254740993", "-12345678901234567891", "9007199254740993."],
    ),
    ("dollar_value", pa.array([Decimal(2**53 + 1)], pa.decimal128(38, 0))),
    (
        "order_ts",
        ["0000-01-01T00:00:00Z", "0001-06-01", "9999-01-01", "10001-01-01T00:00Z"],
    ),
    ("order_ts", ["2099-02-30", "2099-01-01T00:00:00", "2099-01-01T00:00:00.1234567Z"]),
    ("customer_id", pa.array([2.0**53, -9007199254740994.0, 1.5, float("nan"), 1e300])),
    ("customer_id", pa.array([2.0**24], pa.float32())),
    ("order_id", pa.array([2**63], pa.uint64())),
    ("order_id", pa.array([Decimal(2**63)], pa.decimal128(20, 0))),
    ("dollar_value", pa.array([2**53 + 1, -(2**62)])),
    ("dollar_value", pa.array([float("nan"), float("inf"), -float("inf")])),
    ("dollar_value", pa.array([float("nan")], pa.float32())),
    ("order_ts", second(253_402_300_800)),  # 10000-01-01
    ("order_ts", second(-62_135_596_801)),  # the year 0
    ("order_ts", second(2**50)),
    ("order_ts", second(2**50).cast(pa.timestamp("ms", "UTC"))),
    ("order_ts", pa.array([2**62, -(2**62)], pa.timestamp("us", "UTC"))),
    ("order_ts", pa.array([1001], pa.timestamp("ns", "UTC"))),
    ("order_ts", pa.array([2**31 - 1, 3_000_000], pa.date32())),
]


EXACT_DECIMALS = ["0.60", "-99.99", "90383.48", "2.93", "100000000000000000.00"]


def test_decimals_become_the_doubles_that_python_takes_them_for(tmp_path):
    column = pa.array([*map(Decimal, EXACT_DECIMALS)], pa.decimal128(38, 2))
    write_rows(tmp_path / "shop", "dollar_value", column, good=0)
    found = pull(with_source(tmp_path, tmp_path / "shop"), ORDERS, AS_OF).read_all()
    assert found["dollar_value"].to_pylist() == [*map(float, EXACT_DECIMALS)]


def write_rows(folder, name, values, good=1, start=0):
    """Write a file of `good` orders, and one with each of the column's values.

    Args:
        folder: Folder of the file.
        name: Name of the column.
        values: Texts for a CSV, or a column for a parquet file.
        good: Number of the good orders.
        start: Number of the first order, and of the customer of the others (9 if it is 0).

    """
    orders = [
        order(start + n, n + 1, datetime(2099, 11, 19, tzinfo=AS_OF.tzinfo))
        for n in range(good)
    ]
    customer = start or 9
    more = [order(start + good + n, customer, AS_OF - DAY) for n in range(len(values))]
    good_rows = order_table(*orders)
    bad_rows = order_table(*more)
    folder.mkdir(exist_ok=True)
    position = ORDERS.schema.get_field_index(name)
    file = folder / f"in{start or ''}"
    if isinstance(values, list):
        texts = [[str(value) for value in row.values()] for row in [*orders, *more]]
        for row, value in zip(texts[good:], values, strict=True):
            row[position] = f'"{value}"'
        lines = [",".join(row) for row in [ORDERS.schema.names, *texts]]
        file = file.with_suffix(".csv")
        file.write_text("\n".join(lines) + "\n")
    else:
        column = pa.concat_arrays(
            [good_rows[name].combine_chunks().cast(values.type), values]
        )
        rows = pa.concat_tables([good_rows, bad_rows]).set_column(
            position, name, column
        )
        file = file.with_suffix(".parquet")
        pq.write_table(rows, file)
    return file


def deliver(home, name, values, good=1):
    """Return settings with a source of `good` orders, and one with each of the column's values."""
    file = write_rows(home, name, values, good)
    return new_settings(home, sources={"orders": str(file)})


def landed(settings, **more):
    unreadable = {}
    rows = pull(settings, ORDERS, AS_OF, unreadable=unreadable, **more)
    return land(settings, ORDERS, rows, AS_OF, unreadable)


def test_a_row_that_its_columns_do_not_hold_is_set_aside_as_it_was(suite, tmp_path):
    """A folder has a file for each type of a column."""
    suite()
    folder = tmp_path / "in"
    cases = {1_000 * number: case for number, case in enumerate(UNREADABLE, 1)}
    for start, (name, values) in cases.items():
        write_rows(folder, name, values, start=start)
    # So many that those few stop nothing.
    write_rows(folder, "order_id", [], good=6_000, start=10**6)
    settings = with_source(tmp_path, folder)
    bad_count = sum(len(values) for _, values in UNREADABLE)
    for count in (bad_count, 0):  # once
        report = landed(settings)
        assert report.quarantined == count
    numbers = raw_table(settings, ORDERS).read()["order_id"].to_pylist()
    assert sorted(numbers) == [*cases, *range(10**6, 10**6 + 6_000)]
    kept = {start: [] for start in cases}
    for entry in quarantined(settings, ORDERS):
        number = entry["row"]["order_id"]
        is_of_number = number in range(1_000 * (len(UNREADABLE) + 1))
        start = number // 1_000 * 1_000 if is_of_number else entry["row"]["customer_id"]
        kept[start].append(entry)
    for start, (name, values) in cases.items():
        assert_kept(kept[start], name, values)


def assert_kept(entries, name, values):
    """Entries of quarantine have the values of a column as they were."""
    if isinstance(values, pa.Array):
        values = values.to_numpy(zero_copy_only=False)
    texts = sorted(str(value) for value in values)
    kept_texts = sorted(entry["row"][name] for entry in entries)
    for text, kept_text in zip(texts, kept_texts, strict=True):
        assert kept_text.startswith(
            text
        )  # parquet has milliseconds where we gave seconds
    for entry in entries:
        assert entry["row"]["number_of_cds"] in (1, entry["row"][name])
        assert f"column {name}: expected " in entry["rules"]
        assert entry["row"][name] in entry["rules"]


def test_many_unreadable_rows_stop_a_delivery_and_single_ones_do_not(suite, tmp_path):
    suite()
    for count, good in ((19, 30), (20, 2_500)):
        settings = deliver(tmp_path, "dollar_value", ["ten"] * count, good)
        landed(settings)
    settings = deliver(tmp_path / "b", "dollar_value", ["ten", "nan"] * 10, 1_500)
    with pytest.raises(
        BatchRejectedError, match=r"20 of 1520 rows .*dollar_value.*'ten'; .*nan"
    ):
        landed(settings)
    assert not raw_table(settings, ORDERS).exists
    assert quarantined(settings, ORDERS) == []
    settings = deliver(tmp_path / "c", "number_of_cds", ["ten"], good=0)
    with pytest.raises(
        DataError, match=r"in.csv: column number_of_cds: expected int64, found"
    ):
        landed(settings)


def test_an_unreadable_row_of_somebody_forgotten_is_not_kept(suite, tmp_path):
    suite()
    settings = deliver(tmp_path, "dollar_value", ["NaN", "ten"])
    keep_out(settings, "customer_id", 9)
    assert landed(settings).quarantined == 0
    assert quarantined(settings, ORDERS) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,a\n1,2,3\n", "two columns are called a: rename one"),
        (b"a,b,\n1,2,\n", "column 3 of 3 has no name: name it, or remove the comma"),
        ("a,b\n1,2\n".encode("utf-16"), "expected a CSV in UTF-8, found UTF-16"),
        ("a,b\n1,2\n".encode("utf-16-be"), "expected a CSV in UTF-8, found UTF-16"),
    ],
)
def test_a_csv_that_cannot_be_read_is_named_with_what_to_do(tmp_path, content, message):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    for reader in (numbers_from, lambda _, address: read(str(address))):
        with pytest.raises(DataError, match=f"a.csv: {message}"):
            reader(tmp_path, file)


def test_a_utf8_bom_is_no_part_of_the_first_column(tmp_path):
    save(tmp_path / "in" / "1.csv", 1)
    file = tmp_path / "in" / "1.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert numbers_from(tmp_path, file) == [1]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1], pa.time64("us")),
        pa.array([[1]], pa.list_(pa.int64())),
        pa.array([{"a": 1}]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([b"a"]),
        pa.array([1], pa.duration("s")),
        pa.array([b"0123456789abcdef"], pa.uuid()),
    ],
)
def test_a_type_that_no_dataset_has_is_named_with_its_column(tmp_path, values):
    rows = order_table(order(1, 1, AS_OF)).set_column(4, "dollar_value", values)
    file = tmp_path / "a.parquet"
    pq.write_table(rows, file)
    with pytest.raises(
        DataError, match=r"a.parquet: column dollar_value: expected double, found"
    ):
        numbers_from(tmp_path, file)


@pytest.mark.parametrize(
    "kind",
    [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
)
def test_texts_of_any_type_are_read_from_a_moment_on(tmp_path, kind):
    dataset = replace(
        ORDERS, schema=ORDERS.schema.append(pa.field("note", pa.string()))
    )
    orders = order_table(order(1, 1, AS_OF - DAY), order(2, 1, AS_OF))
    notes = pa.array(["a", None]).cast(kind)
    pq.write_table(orders.append_column("note", notes), tmp_path / "a.parquet")
    settings = with_source(tmp_path, tmp_path / "a.parquet")
    for since, expected in ((None, ["a", None]), (AS_OF - DAY / 2, [None])):
        rows = pull(settings, dataset, AS_OF, since).read_all()
        assert rows["note"].to_pylist() == expected


HOLD = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("name", "table"),
    [("shop.ddb", "orders"), ("a#b%20?c.ddb", "orders"), ("shop.ddb", "marts.orders")],
)
def test_a_duckdb_file_is_only_read_and_gives_its_unreadable_rows(
    suite, tmp_path, name, table
):
    suite()
    file = tmp_path / name
    with duckdb.connect(str(file)) as connection:
        connection.execute("CREATE SCHEMA marts")
        first = order_table(*[order(n, 1, AS_OF - DAY) for n in range(3)])
        connection.from_arrow(first).create(table)
        for at in ("infinity", "10001-01-01T00:00:00Z"):
            connection.execute(f"INSERT INTO {table} VALUES (9, 9, '{at}', 1, 'nan')")
    settings = with_source(tmp_path, f"duckdb://{file}#{table}")
    arguments = [commands_folder() / "python", "-c", HOLD, str(file)]
    for mode in ("read", "write"):
        with subprocess.Popen(
            [*arguments, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout.readline() == b"open\n"
            if mode == "read":
                report = landed(settings)
                assert (report.inserted, report.quarantined) == (3, 2)
            else:
                with pytest.raises(
                    DataError, match="close the program that writes to it"
                ):
                    landed(settings)
            other.stdin.close()


def test_a_message_holds_no_password(tmp_path):
    for address in (
        "nope://me:se%40cret@h/d#t",
        "postgres://me@127.0.0.1:1/d?password=secret#t",
        "postgres://me:p@secret@127.0.0.1:1/d#t",
        "postgres://me:secret/s@127.0.0.1:1/d#t",
    ):
        with pytest.raises(DataError) as error:
            numbers_from(tmp_path, address)
        assert "ecret" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"order_id": 2, "order_id": 3}',
            "line 2: expected JSON: a field is there twice",
        ),
        ('{"order_id": [2]}', "line 2: order_id: expected a text, a number"),
        ('{"order_id": {"a": 2}}', "line 2: order_id: expected a text, a number"),
        ('{"order": 2}', "expected the fields .*, found .*order,"),
        ("[1, 2]", "line 2: expected a JSON object"),
        ('{"order_id": ', "line 2: expected JSON"),
    ],
)
def test_a_line_that_json_lines_cannot_have_is_named(tmp_path, line, message):
    good = json.dumps(order(1, 1, AS_OF - DAY), default=str)
    file = tmp_path / "in.jsonl"
    file.write_text(f"\ufeff{good}\n{line}\n\n", "utf-8")
    with pytest.raises(DataError, match=message):
        numbers_from(tmp_path, file)


def test_a_field_that_a_line_lacks_is_null(tmp_path):
    good = json.dumps(order(1, 1, AS_OF - DAY), default=str)
    file = tmp_path / "in.jsonl"
    file.write_text(f'{good}\n{{"order_id": 2}}\n')
    rows = pull(with_source(tmp_path, file), ORDERS, AS_OF).read_all()
    assert rows["order_id"].to_pylist() == [1, 2]
    assert rows["dollar_value"].is_valid().to_pylist() == [True, False]


def test_json_lines_without_a_column_are_refused_and_numbers_are_exact(tmp_path):
    row = order(2**53 + 1, 1, AS_OF - DAY)
    file = tmp_path / "in.ndjson"
    file.write_text(json.dumps(row, default=str))  # its last line has no end
    assert numbers_from(tmp_path, file) == [2**53 + 1]
    del row["dollar_value"]
    file.write_text(json.dumps(row, default=str))
    with pytest.raises(DataError, match="expected the fields"):
        numbers_from(tmp_path, file)


ODD_LINES = {
    "NaN": ('"dollar_value": NaN', "dollar_value"),
    "Infinity": ('"dollar_value": -Infinity', "dollar_value"),
    "half an emoji": ('"customer_id": "\\ud83d"', "customer_id"),
}


@pytest.mark.parametrize(("field", "column"), ODD_LINES.values(), ids=[*ODD_LINES])
def test_a_line_with_an_odd_value_is_set_aside_alone(suite, tmp_path, field, column):
    suite()
    good = json.dumps(order(1, 1, AS_OF - DAY), default=str)
    name = field.partition(":")[0]
    odd = {k: v for k, v in order(2, 1, AS_OF - DAY).items() if f'"{k}"' != name}
    text = json.dumps(odd, default=str)
    file = tmp_path / "in.jsonl"
    file.write_text(f"{good}\n{text[:-1]}, {field}}}\n")
    settings = with_source(tmp_path, file)
    assert landed(settings).quarantined == 1
    (entry,) = quarantined(settings, ORDERS)
    assert f"column {column}: expected" in entry["rules"]
    assert entry["row"]["order_id"] == 2


@pytest.mark.parametrize(
    "odd", [b"\xe9", b"\xed\xa0\xbd", b"\xff\xfe", b"\\ud83d \xe9"]
)
def test_a_byte_in_json_lines_that_is_no_text_sets_its_row_aside(suite, tmp_path, odd):
    suite()
    rows = [order(number, 1, AS_OF - DAY) for number in (1, 2, 3)]
    lines = [json.dumps(row, default=str).encode() for row in rows]
    lines[1] = lines[1].replace(b'"customer_id": 1', b'"customer_id": "' + odd + b'"')
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"\n".join([*lines, b""]))
    settings = with_source(tmp_path, file)
    report = landed(settings)
    assert (report.inserted, report.quarantined) == (2, 1)
    (entry,) = quarantined(settings, ORDERS)
    assert "column customer_id: expected int64, found" in entry["rules"]
    assert entry["row"]["order_id"] == 2


def test_letters_of_every_kind_in_json_lines_are_read_as_they_are(tmp_path):
    text = "\u00e9\u2028\x85\U0001f600\ufeff"
    file = tmp_path / "in.jsonl"
    line = json.dumps({"a": text}, ensure_ascii=False).encode()
    file.write_bytes(line + b"\r\n" + b'{"a": "\xe9"}\r\n' + line)
    with open_part(str(file), ["a"]) as rows:
        values = rows.batches.read_all()["a"].to_pylist()
    assert values == [text.encode(), b"\xe9", text.encode()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"order_id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too many levels"),
        (b'{"order_id": ' + b'{"a":' * 100_000, "too many levels"),
        (b'{"order_id": 1\xe9}', "expected JSON"),
        (b'{"order_\xe9": 1}', "name of a field in UTF-8, found 'order_.udce9'"),
        (b'{"\\ud83d": 1}', "name of a field in UTF-8, found '.ud83d'"),
    ],
)
@pytest.mark.parametrize("names", [None, ORDERS.schema.names])
def test_a_line_of_json_that_cannot_be_read_is_named(tmp_path, content, message, names):
    good = json.dumps(order(1, 1, AS_OF - DAY), default=str).encode()
    file = tmp_path / "in.jsonl"
    file.write_bytes(good + b"\n" + content + b"\n")
    with (
        pytest.raises(DataError, match=f"line 2: .*{message}"),
        open_part(str(file), names) as rows,
    ):
        rows.batches.read_all()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_json_lines_in_utf_16_are_refused(tmp_path, encoding):
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(order(1, 1, AS_OF - DAY), default=str), encoding)
    with pytest.raises(DataError, match="expected JSON lines in UTF-8, found UTF-16"):
        numbers_from(tmp_path, file)


def test_bytes_that_are_no_text_are_set_aside_with_their_row(suite, tmp_path):
    suite()
    rows = [order(number, 1, AS_OF - DAY) for number in (1, 2)]
    header = ",".join(rows[0]).encode()
    lines = [",".join(map(str, row.values())).encode() for row in rows]
    lines[1] = lines[1].replace(b",1,", b",\xfc,", 1)
    file = tmp_path / "in.csv"
    file.write_bytes(b"\n".join([header, *lines, b""]))
    settings = with_source(tmp_path, file)
    assert landed(settings).quarantined == 1
    (entry,) = quarantined(settings, ORDERS)
    assert "'\\\\xfc'" in entry["rules"]


def test_a_part_of_a_source_without_a_value_in_a_column_has_nulls(tmp_path):
    folder = tmp_path / "in"
    save(folder / "1.parquet", 1)
    rows = order_table(order(2, 1, AS_OF - DAY))
    empty = rows.set_column(4, "dollar_value", pa.nulls(1))
    pq.write_table(empty, folder / "2.parquet")
    rows = pull(with_source(tmp_path, folder), ORDERS, AS_OF).read_all()
    assert rows["order_id"].to_pylist() == [1, 2]
    assert rows["dollar_value"].null_count == 1


def test_whole_numbers_that_pandas_wrote_beside_a_gap_are_whole(suite, tmp_path):
    suite()
    rows = [order(number, 1, AS_OF - DAY) for number in (1, 2, 3, 4)]
    counts = ["2.0", "", "9007199254740993.0", "1.5"]
    lines = [
        ",".join(map(str, (row | {"number_of_cds": count}).values()))
        for row, count in zip(rows, counts, strict=True)
    ]
    file = tmp_path / "in.csv"
    file.write_text("\n".join([",".join(rows[0]), *lines, ""]))
    settings = with_source(tmp_path, file)
    assert landed(settings).quarantined == 2
    stored = raw_table(settings, ORDERS).read().sort_by("order_id")
    assert stored["number_of_cds"].to_pylist() == [2, None]


def test_a_uuid_is_its_text(tmp_path):
    schema = ORDERS.schema.append(pa.field("name", pa.string()))
    identifiers = pa.array([uuid.UUID(int=1).bytes, None], pa.binary(16))
    rows = order_table(order(1, 1, AS_OF - DAY), order(2, 1, AS_OF - DAY))
    rows = rows.append_column("name", identifiers.cast(pa.uuid()))
    pq.write_table(rows, tmp_path / "in.parquet")
    settings = with_source(tmp_path, tmp_path / "in.parquet")
    rows = pull(settings, replace(ORDERS, schema=schema), AS_OF).read_all()
    assert rows["name"].to_pylist() == [str(uuid.UUID(int=1)), None]
