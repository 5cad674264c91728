"""Parquet files of a team: our store gives what Feast's own client of files (dask) gives."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import feast
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64

from core.errors import DataError
from feature_repo.published.store import open_store as open_published
from tests.conftest import new_settings
from tests.support.feature_repo.parquet_files import pull, stores_of
from tests.support.feature_repo.team import VIEW, rows_of
from tests.support.feature_repo.team import feast as run_feast

pytestmark = [
    pytest.mark.filterwarnings("ignore:Merging dataframes with merge column"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
END = BEGIN + timedelta(days=9)
key = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)


def rows(first_key, values=None, **columns):
    """Two rows, of two keys, on two days."""
    keys = [first_key, first_key + 1]
    times = [BEGIN + timedelta(days=number) for number in keys]
    table = pa.table(
        {"key": keys, "at": pa.array(times, pa.timestamp("us", "UTC")), **columns}
    )
    return table if values is None else table.append_column("value", values)


def pair(first, second, first_type=None, second_type=None):
    """A folder with a file of each of two columns."""
    return {
        "x/a.parquet": rows(1, pa.array(first, first_type)),
        "x/b.parquet": rows(3, pa.array(second, second_type)),
    }


def moments(unit, zone=None, begin=BEGIN):
    times = pa.array([begin, begin + timedelta(seconds=1)])
    return times.cast(pa.timestamp(unit, zone))


def named(name):
    """A file whose name is a pattern, beside files that fit it."""
    return {
        name: rows(1, pa.array([1, 2])),
        "n1.parquet": rows(3, pa.array([3, 4])),
        "na.parquet": rows(3, pa.array([3, 4])),
    }


WHOLE = pa.array([1, 2])
BROKEN = pa.array([1.5, 2.5])
TEXTS = pa.array(["a", None])
DECIMALS = pa.array([Decimal("1.125"), None], pa.decimal128(12, 3))
TYPES = {
    "int, double": pair(WHOLE, BROKEN),
    "double, int": pair(BROKEN, WHOLE),
    "int beyond a double's digits, double": pair([2**53 + 1, 2], BROKEN),
    "int32, int64": pair([1, 2], [2**40, 2], first_type=pa.int32()),
    "int32, float": pair(
        [2**24 + 1, 2], [0.5, 2], first_type=pa.int32(), second_type=pa.float32()
    ),
    "int8, uint64": pair(
        [-1, 2], [2**63, 2], first_type=pa.int8(), second_type=pa.uint64()
    ),
    "float, double": pair([0.1, 2], [0.1, 2], first_type=pa.float32()),
    "bool, int": pair([True, False], [3, 4]),
    "null, int": pair([None, None], WHOLE),
    "int, null": pair(WHOLE, [None, None]),
    "null, text": pair([None, None], TEXTS),
    "null, null": pair([None, None], [None, None]),
    "text, large text": pair(TEXTS, ["c", "d"], second_type=pa.large_string()),
    "text, dictionary": pair(TEXTS, pa.array(["c", "d"]).dictionary_encode()),
    "dictionary, text": pair(pa.array(["c", "d"]).dictionary_encode(), TEXTS),
    "decimals": pair([Decimal("1.5"), None], DECIMALS, first_type=pa.decimal128(10, 2)),
    "int, decimal": pair(WHOLE, DECIMALS),
    "days": pair(
        [1, 2], [86_400_000, 0], first_type=pa.date32(), second_type=pa.date64()
    ),
    "us, ns": pair(moments("us"), moments("ns")),
    "ns, ms": pair(moments("ns"), moments("ms")),
    "without a zone, UTC": pair(moments("us"), moments("us", "UTC")),
    "two zones": pair(moments("us", "UTC"), moments("us", "Europe/Berlin")),
    "lists": pair([[1], [2]], [[1.5], None]),
}
ROW_TIMES = {
    f"times in {first} and {second}": {
        "x/a.parquet": rows(1, WHOLE).set_column(1, "at", moments(first, "UTC")),
        "x/b.parquet": rows(3, BROKEN).set_column(1, "at", moments(second, "UTC", END)),
    }
    for first, second in (("ms", "ns"), ("ns", "us"))
}
COLUMNS = {
    "another order": {
        "x/a.parquet": rows(1, WHOLE, other=[8, 9]),
        "x/b.parquet": rows(3, BROKEN, other=[8, 9]).select(
            ["value", "other", "at", "key"]
        ),
    },
    "one that is not needed": {
        "x/a.parquet": rows(1, WHOLE),
        "x/b.parquet": rows(3, BROKEN, other=["a", "b"]),
    },
    "names that differ in case alone": {
        "x/a.parquet": rows(1, WHOLE, VALUE=[8, 9]),
        "x/b.parquet": rows(3, BROKEN, VALUE=[8, 9]).select(
            ["VALUE", "value", "at", "key"]
        ),
    },
}
FOLDERS = {
    "keys": {
        "x/key=1/a.parquet": rows(1, WHOLE).drop_columns("key"),
        "x/key=7/a.parquet": rows(3, WHOLE).drop_columns("key"),
    },
    "numbers": {"x/value=-1/a.parquet": rows(1), "x/value=7/a.parquet": rows(3)},
    "texts": {"x/value=a/a.parquet": rows(1), "x/value=7/a.parquet": rows(3)},
    "days as texts": {"x/value=2026-01-01/a.parquet": rows(1)},
    "fractions as texts": {"x/value=1.5/a.parquet": rows(1)},
    "large numbers as texts": {"x/value=9999999999/a.parquet": rows(1)},
    "signs": {"x/value=a%20=[b]/a.parquet": rows(1), "x/value=ü/a.parquet": rows(3)},
    "two levels": {"x/y=1/value=1/a.parquet": rows(1), "x/y=2/value=7/b.pq": rows(3)},
    "a column of the file": {
        "x/value=7/a.parquet": rows(1, pa.array([5, 6], pa.int32())),
    },
}
PATHS = {
    "a name without an ending": {"x": rows(1, WHOLE)},
    "a folder in a folder": {
        "x/a.parquet": rows(1, WHOLE),
        "x/y/b.parquet": rows(3, BROKEN),
    },
    "other endings": {
        "x/a.parq": rows(1, WHOLE),
        "x/b.pq": rows(3, BROKEN),
        "x/c": rows(5, WHOLE),
        "x/d.PARQUET": rows(5, WHOLE),
    },
    "hidden files": {
        "x/.a.parquet": rows(1, WHOLE),
        "x/_b.parquet": rows(3, BROKEN),
        "x/_temporary/c.parquet": rows(5, WHOLE),
    },
    "files of Spark": {
        "x/_SUCCESS": b"",
        "x/.a.parquet.crc": b"crc",
        "x/a.parquet": rows(1, WHOLE),
    },
    "no rows in the first file": {
        "x/a.parquet": rows(1, WHOLE).slice(0, 0),
        "x/b.parquet": rows(3, BROKEN),
    },
    "no rows in the second file": {
        "x/a.parquet": rows(1, WHOLE),
        "x/b.parquet": rows(3, BROKEN).slice(0, 0),
    },
}
NAMES = ["n[1]", "n?", "n 1", "n%201", "nü", "n{1,a}", "n#1", "n'\"1", "n\\1", "n=1"]
IN_X = {
    **TYPES,
    **ROW_TIMES,
    **COLUMNS,
    **FOLDERS,
    **PATHS,
    "a name in a folder": named("x/n[1].parquet"),
    "a pattern in a folder": named("x/n*.parquet"),
}
CASES = {
    **{name: ("x", files) for name, files in IN_X.items()},
    **{f"file {name}": (f"{name}.parquet", named(f"{name}.parquet")) for name in NAMES},
    **{f"folder {name}": (name, named(f"{name}/a.parquet")) for name in NAMES[:3]},
    "folder above the path": ("value=7/x", {"value=7/x/a.parquet": rows(1)}),
    "pattern of files": ("x/*.parquet", pair(WHOLE, BROKEN)),
    "pattern of folders": ("*/*/*.parquet", {"x/y/a.parquet": rows(1, WHOLE)}),
    "pattern that is a name": ("n*", named("n*")),
}
"""The path of each source, and the files that are there."""


def source_of(folder, path, files):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            pq.write_table(content, file)
    return FileSource(
        name=folder.name,
        path=f"{folder}/{path}",
        timestamp_field="at",
        file_format=ParquetFormat() if len(files) > 1 else None,
    )


def view_of(source, entity=key, features=("value",)):
    schema = [Field(name=entity.join_key, dtype=Int64)]
    schema += [Field(name=name, dtype=Float64) for name in features]
    return FeatureView(
        name=f"view_{source.name}",
        entities=[entity],
        schema=schema,
        source=source,
        ttl=timedelta(0),
    )


def stores_with(folder, sources):
    """Feast's own store and ours, with a view on each source."""
    return stores_of(folder, [key, *map(view_of, sources)])


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    sources = []
    for number, (path, files) in enumerate(CASES.values()):
        case_folder = folder / f"case_{number}"
        sources.append(source_of(case_folder, path, files))
    return stores_with(folder, sources)


ENTITIES = pd.DataFrame({"key": range(1, 9), "event_timestamp": END})


def values(store, source_name):
    """The known value of each key."""
    features = [f"view_{source_name}:value"]
    job = store.get_historical_features(ENTITIES.copy(), features)
    return dict(known_values(job.to_arrow()))


def known_values(table):
    """Keys and values that are not null; a time without a zone is UTC."""
    if pa.types.is_timestamp(table["value"].type):
        times = table["value"].cast(pa.timestamp("us", "UTC"))
        table = table.set_column(table.column_names.index("value"), "value", times)
    pairs = zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True)
    return [pair for pair in pairs if None not in pair]


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_feasts_own_client(stores, case):
    source_name = f"case_{[*CASES].index(case)}"
    stock, ours = stores
    expected = values(stock, source_name)
    assert expected or case == "null, null"
    assert values(ours, source_name) == expected


@pytest.mark.parametrize("case", ["int, double", "numbers", "a column of the file"])
@pytest.mark.parametrize("rows_of_a_key", ["latest", "all"])
def test_rows_to_materialise_are_those_of_feasts_own_client(
    stores, case, rows_of_a_key
):
    view_name = f"view_case_{[*CASES].index(case)}"
    pulled_rows = []
    for store in stores:
        table = pull(store, view_name, rows_of_a_key, BEGIN, END)
        pulled_rows.append(sorted(known_values(table)))
    stock_rows, our_rows = pulled_rows
    assert our_rows == stock_rows
    assert len(our_rows) >= 2


BEYOND_FEAST = {
    "numbers of several types below folders": (
        {"x/y=1/a.parquet": rows(1, WHOLE), "x/y=2/a.parquet": rows(3, BROKEN)},
        {1: 1, 2: 2, 3: 1.5, 4: 2.5},
    ),
    "a column of folders and files, of several types": (
        {"x/value=7/a.parquet": rows(1, BROKEN)},
        {1: 1.5, 2: 2.5},
    ),
    "a folder without a value": (
        {
            "x/value=__HIVE_DEFAULT_PARTITION__/a.parquet": rows(1),
            "x/value=7/b.parquet": rows(3),
        },
        {3: 7, 4: 7},
    ),
    "a column that is not needed, of one file": (
        {"x/a.parquet": rows(1, WHOLE, other=WHOLE), "x/b.parquet": rows(3, BROKEN)},
        {1: 1, 2: 2, 3: 1.5, 4: 2.5},
    ),
    "row times without a zone": (
        {
            "x/a.parquet": rows(1, WHOLE),
            "x/b.parquet": rows(3, WHOLE).set_column(1, "at", moments("us")),
        },
        {1: 1, 2: 2, 3: 1, 4: 2},
    ),
    "no rows at all": (
        {"x/a.parquet": rows(1, WHOLE).slice(0, 0), "x/b.parquet": rows(1, WHOLE)[:0]},
        {},
    ),
}
"""Files that make Feast's own client fail for reasons of its own, and their values."""


@pytest.mark.parametrize("case", BEYOND_FEAST)
def test_values_of_files_that_feasts_own_client_does_not_read(tmp_path, case):
    files, expected = BEYOND_FEAST[case]
    stock, ours = stores_with(tmp_path, [source_of(tmp_path / "case", "x", files)])
    with pytest.raises(Exception):  # noqa: B017, PT011  (dask fails in many ways)
        values(stock, "case")
    assert values(ours, "case") == expected


ONE_TYPE = r"value: expected a type that holds .* found {} in .*a.parquet and {} in .*b"
REFUSED = {
    "int, text": (pair(WHOLE, TEXTS), ONE_TYPE.format("int64", "string")),
    "text, int": (pair(TEXTS, WHOLE), ONE_TYPE.format("string", "int64")),
    "decimal, double": (
        pair(DECIMALS, BROKEN),
        ONE_TYPE.format(r"decimal128.12, 3.", "double"),
    ),
    "no column in a file": (
        {"x/a.parquet": rows(1, WHOLE), "x/b.parquet": rows(3)},
        r"b.parquet: value: expected a column as in the other files, found none",
    ),
    "another case in a file": (
        {"x/a.parquet": rows(1, WHOLE), "x/b.parquet": rows(3, VALUE=WHOLE)},
        r"b.parquet: value: expected a column as in the other files, found none",
    ),
    "a folder without the column": (
        {"x/value=1/a.parquet": rows(1), "x/y=1/b.parquet": rows(3)},
        r"b.parquet: value: expected a column as in the other files, found none",
    ),
    "an empty file": (
        {"x/a.parquet": rows(1, WHOLE), "x/b.parquet": b""},
        r"b.parquet.*file size is 0 bytes",
    ),
    "no parquet file": ({"x/a.txt": b""}, r"x: expected a file, or a folder of .*none"),
    "no file": ({"y": b""}, r"x: expected a file, or a folder of files .* found none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_feasts_own_client_refuses_are_refused_by_name(tmp_path, case):
    files, message = REFUSED[case]
    stock, ours = stores_with(tmp_path, [source_of(tmp_path / "case", "x", files)])
    with pytest.raises(Exception):  # noqa: B017, PT011  (dask fails in many ways)
        values(stock, "case")
    with pytest.raises(DataError, match=message):
        values(ours, "case")


MISREAD = {
    "more digits than DuckDB's decimals": (
        {"x/a.parquet": rows(1, pa.array([Decimal(10) ** 40] * 2))},
        r"value: expected a decimal of at most 38 digits .* found decimal256",
    ),
    "text, bytes": (pair(TEXTS, [b"a", b"b"]), ONE_TYPE.format("string", "binary")),
    "numbers as times": (
        {"x/a.parquet": rows(1, WHOLE).set_column(1, "at", pa.array([1, 2]))},
        r"x: at: expected times, found int64",
    ),
    "texts as keys": (
        {"x/a.parquet": rows(1, WHOLE).set_column(0, "key", pa.array(["1", "2"]))},
        r"view_case: key: expected keys .* int64 in the entity frame and string in .*x",
    ),
    "a column in no file": (
        {"x/a.parquet": rows(1, VALUE=WHOLE)},
        r"x: value: expected a column of the view, found key, at",
    ),
    "a backslash beside a sign of patterns": (
        {"x/n[1]/n\\1.parquet": rows(1, WHOLE)},
        r"n\\1.parquet: expected a path without a backslash",
    ),
}
"""Files of which DuckDB would give other values, or fail without a name."""


@pytest.mark.parametrize("case", MISREAD)
def test_files_that_duckdb_misreads_are_refused_by_name(tmp_path, case):
    files, message = MISREAD[case]
    _, ours = stores_with(tmp_path, [source_of(tmp_path / "case", "x", files)])
    with pytest.raises(DataError, match=message):
        values(ours, "case")


def test_whole_numbers_beyond_a_doubles_digits_stay_what_they_are(tmp_path):
    files = pair([2**53 + 1, -1], [2**64 - 1, 2], second_type=pa.uint64())
    _, ours = stores_with(tmp_path, [source_of(tmp_path / "case", "x", files)])
    assert values(ours, "case") == {1: 2**53 + 1, 2: -1, 3: 2**64 - 1, 4: 2}


def test_features_that_differ_in_case_alone_are_refused_by_name(tmp_path):
    """DuckDB would give the one the values of the other."""
    files = {"x/a.parquet": rows(1, WHOLE, VALUE=[8, 9])}
    view = view_of(
        source_of(tmp_path / "case", "x", files), features=("value", "VALUE")
    )
    _, ours = stores_of(tmp_path, [key, view])
    message = "VALUE and value: expected names of columns that differ in more than case"
    with pytest.raises(DataError, match=message):
        ours.get_historical_features(
            ENTITIES.copy(), ["view_case:value", "view_case:VALUE"]
        )
    with pytest.raises(DataError, match=message):
        pull(ours, "view_case", "latest", BEGIN, END)


def test_a_feature_may_have_the_name_of_a_column_of_feasts_own_join(tmp_path):
    """Feast's own functions would lose its values: those that use the name refuse it."""
    files = {"x/a.parquet": rows(1, rn=[8, 9])}
    view = view_of(source_of(tmp_path / "case", "x", files), features=("rn",))
    _, ours = stores_of(tmp_path, [key, view])
    job = ours.get_historical_features(ENTITIES.copy(), ["view_case:rn"])
    assert {8, 9} <= {*job.to_df()["rn"]}
    with pytest.raises(DataError, match="x: rn: expected a name that Feast does not"):
        pull(ours, "view_case", "latest", BEGIN, END)
    assert pull(ours, "view_case", "all", BEGIN, END)["rn"].to_pylist() == [8, 9]


@pytest.mark.parametrize("name", ["filename", "file_row_number", "key_right"])
def test_a_key_may_have_the_name_of_a_column_of_duckdb(tmp_path, name):
    """With many rows for each of the frame, the join is preceded by a search for its keys."""
    files = {f"x/{number}.parquet": rows(number, WHOLE) for number in range(1, 8)}
    files = {
        file: table.rename_columns([name, "at", "value"])
        for file, table in files.items()
    }
    entity = Entity(name="entity", join_keys=[name], value_type=ValueType.INT64)
    source = source_of(tmp_path / "case", "x", files)
    stores = stores_of(tmp_path, [entity, view_of(source, entity)])
    frame = pd.DataFrame({name: [8], "event_timestamp": [END]})
    for store in stores:
        job = store.get_historical_features(frame.copy(), ["view_case:value"])
        assert job.to_df()["value"].tolist() == [2]


def test_days_and_times_in_one_column_are_refused_by_name(tmp_path):
    """Feast's own client fails, or cuts the times, by which file it meets first."""
    files = pair([1, 2], moments("us"), first_type=pa.date32())
    _, ours = stores_with(tmp_path, [source_of(tmp_path / "case", "x", files)])
    message = r"value: expected a type .* found date32.* in .* and timestamp.* in .*"
    with pytest.raises(DataError, match=message):
        values(ours, "case")


@pytest.mark.parametrize(
    "path", ["x", "./x", "y/../x", "x/value=1/n[1].parquet", "link", "x//", "x/*/*"]
)
def test_values_of_folders_are_found_by_any_way_to_write_a_path(
    tmp_path, monkeypatch, path
):
    monkeypatch.chdir(tmp_path)
    files = {"x/value=1/n[1].parquet": rows(1), "y/a.parquet": rows(1)}
    source_of(tmp_path, "x", files)
    (tmp_path / "link").symlink_to(tmp_path / "x")
    source = FileSource(name="case", path=path, timestamp_field="at")
    stock, ours = stores_with(tmp_path, [source])
    for store in (stock, ours):
        store.config.repo_path = Path()
    assert values(ours, "case") == values(stock, "case") == {1: 1, 2: 1}


def test_a_list_of_files_in_the_folder_counts(tmp_path):
    source = source_of(tmp_path / "case", "x", pair(WHOLE, BROKEN))
    folder = tmp_path / "case" / "x"
    metadata = pq.read_metadata(folder / "a.parquet")
    metadata.set_file_path("a.parquet")
    metadata.write_metadata_file(folder / "_metadata")
    stock, ours = stores_with(tmp_path, [source])
    assert values(ours, "case") == values(stock, "case") == {1: 1, 2: 2}


def test_a_view_as_feast_init_writes_it_may_have_a_folder_of_files(tmp_path):
    run_feast(tmp_path, "init", "team")
    repository = tmp_path / "team" / "feature_repo"
    run_feast(repository, "apply")
    path = repository / "data" / "driver_stats.parquet"
    rows_by_file = rows_of(repository)
    path.unlink()
    trips = rows_by_file["avg_daily_trips"]
    parts = {
        "[1].parquet": rows_by_file[trips % 2 == 0],
        "more/1.parquet": rows_by_file[trips % 2 == 1].assign(avg_daily_trips=1.5),
    }
    for name, part in parts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        part.to_parquet(path / name, index=False)
    features = [f"{VIEW}:avg_daily_trips", f"{VIEW}:conv_rate"]
    newest = rows_by_file["event_timestamp"].max()
    drivers = sorted(rows_by_file["driver_id"].dropna().unique())
    entities = pd.DataFrame({"driver_id": drivers, "event_timestamp": newest})
    settings = new_settings(tmp_path / "home", feast_repo=repository)
    frames = []
    for store in (
        feast.FeatureStore(repo_path=str(repository)),
        open_published(settings),
    ):
        job = store.get_historical_features(entities.copy(), features)
        frames.append(job.to_df().sort_values("driver_id", ignore_index=True))
    stock_frame, our_frame = frames
    assert (stock_frame["avg_daily_trips"] == 1.5).any()
    assert (stock_frame["avg_daily_trips"] != 1.5).any()
    pd.testing.assert_frame_equal(
        our_frame[stock_frame.columns], stock_frame, check_dtype=False
    )
