"""Labels of a team's table: which are known, under which names, in which types."""

from datetime import UTC, datetime, timedelta

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from core.errors import DataError, SettingsError
from core.spec import LabelTable, load_spec
from feature_repo.labels import label_rows, label_source
from feature_repo.team_tables import open_table
from tests.support.feature_repo.team import MODEL, SPEC

HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
COLUMNS = {
    "Driver ID": pa.array([1, 2, 3, 4, 5], pa.int32()),
    "asked": pa.array([NOON + number * HOUR for number in range(5)]),
    "reached goal": pa.array([True, False, None, True, True]),
    "known at": pa.array([
        NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR, None, NOON + 9 * HOUR
    ]),
    "val_to_add": pa.array([1, 2, 3, 4, 5]),
}  # fmt: skip
TABLE = pa.table(COLUMNS)


@pytest.fixture
def spec(tmp_path):
    (tmp_path / f"{MODEL}.toml").write_text(SPEC)
    return load_spec(MODEL, tmp_path)


def with_table(spec, **changes):
    table = spec.label.model_copy(update=changes)
    return spec.model_copy(update={"label": table})


def known(spec, as_of):
    """The rows of the label's source that are known at a moment, as dicts."""
    source = label_source(None, spec)
    moments = [NOON - 99 * HOUR, NOON + 99 * HOUR]
    with source.opened(as_of, None) as rows:
        found = label_rows(rows, source.label, moments, own_rows=True)
        return found.to_pyarrow().to_pylist()


@pytest.fixture(params=["file", "folder", "delta", "database", "schema"])
def stored(request, spec, tmp_path):
    """The spec of a table that lies in each kind of place."""
    place = tmp_path / "labels"
    place.mkdir()
    source = str(place)
    if request.param == "delta":
        write_deltalake(source, TABLE)
    elif request.param in {"database", "schema"}:
        name = "marts.outcomes" if request.param == "schema" else "outcomes"
        source = f"duckdb://{place}/rows.db#{name}"
        with ibis.duckdb.connect(place / "rows.db").con as connection:
            connection.register("rows", TABLE)
            connection.execute("CREATE SCHEMA marts")
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM rows")
    else:
        pq.write_table(TABLE, place / "part.parquet")
        source += "/part.parquet" if request.param == "file" else ""
    return with_table(spec, source=source)


def test_a_duckdb_file_of_labels_is_only_read(spec, tmp_path):
    file = tmp_path / "rows.db"
    with duckdb.connect(file) as connection:
        connection.register("rows", TABLE)
        connection.execute("CREATE TABLE outcomes AS SELECT * FROM rows")
    spec = with_table(spec, source=f"duckdb://{file}#outcomes")
    # DuckDB opens a file twice only if both read.
    with duckdb.connect(file, read_only=True):
        assert known(spec, NOON + HOUR)


def test_a_label_counts_from_the_moment_on_at_which_it_became_known(stored):
    assert known(stored, NOON + HOUR - timedelta.resolution) == []
    assert known(stored, NOON + HOUR) == [
        {"driver_id": 1, "event_timestamp": NOON, "label": True, "val_to_add": 1}
    ]
    # Without a label, never known, and known later than the horizon says: left out.
    rows = known(stored, NOON + 99 * HOUR)
    assert [row["driver_id"] for row in rows] == [1, 2]


def test_without_a_column_for_it_every_label_of_the_table_counts(stored):
    spec = with_table(stored, known_at=None)
    rows = known(spec, NOON)
    assert [row["driver_id"] for row in rows] == [1, 2, 4, 5]
    assert "known at" in rows[0]


def test_a_time_without_a_zone_and_a_day_are_utc(spec, tmp_path):
    naive = TABLE["asked"].cast(pa.timestamp("ns"))
    days = TABLE["known at"].cast(pa.date32())
    table = TABLE.set_column(1, "asked", naive).set_column(3, "known at", days)
    pq.write_table(table, tmp_path / "labels.parquet")
    spec = with_table(
        spec, source=str(tmp_path / "labels.parquet"), lateness_days=1, horizon_days=0
    )
    rows = known(spec, NOON.replace(hour=0))
    assert [row["event_timestamp"] for row in rows[:2]] == [NOON, NOON + HOUR]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "label"}, "driver_trips.toml: label: expected the columns label of .*, found Driver"),
        ({"entity": {}}, "expected the columns driver_id of"),
        ({"event_time": "val_to_add"}, "val_to_add: expected times, found int64"),
        ({"entity": {"driver_id": "reached goal"}}, "reached goal: expected int64, found bool"),
        ({"source": "nowhere.parquet"}, "nowhere.parquet: expected parquet, CSV or JSON-lines files"),
        ({"source": "duckdb:///nowhere/rows.db#t"}, "rows.db#t: IO Error: Cannot open file"),
        ({"source": "postgresql://me:secret@127.0.0.1:1/x#t"}, "127.0.0.1:1/x#t: connection failed"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_named_without_its_password(spec, tmp_path, changes, message):
    pq.write_table(TABLE, tmp_path / "labels.parquet")
    spec = with_table(spec, **{"source": str(tmp_path / "labels.parquet")} | changes)
    with pytest.raises(DataError, match=message) as caught:
        known(spec, NOON)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "instead", "message"),
    [
        ('rows = "label"\n', "", 'snapshots.rows: expected "label", as a table'),
        ("entity = { driver_id", "entity = { driver", "label.entity: driver is not in entity_key"),
        ("horizon_days = 0.1", "", "label.LabelTable.horizon_days: Field required"),
        ("[label]\n", "[label]\nkey = 1\n", "label.LabelTable.key: unknown key"),
    ],
)  # fmt: skip
def test_a_wrong_key_of_the_table_is_named(tmp_path, part, instead, message):
    assert part in SPEC
    (tmp_path / f"{MODEL}.toml").write_text(SPEC.replace(part, instead, 1))
    with pytest.raises(SettingsError) as caught:
        load_spec(MODEL, tmp_path)
    assert message in str(caught.value)


def test_a_label_of_a_dataset_needs_one(tmp_path):
    text = SPEC.partition("[label]")
    rest = text[2].partition("[costs]")
    (tmp_path / f"{MODEL}.toml").write_text(f'{text[0]}label = "x"\n[costs]{rest[2]}')
    message = "dataset: expected the dataset of the label, or a table"
    with pytest.raises(SettingsError, match=message):
        load_spec(MODEL, tmp_path)
    assert isinstance(LabelTable(source="x", horizon_days=1), LabelTable)


def test_a_row_with_a_key_beyond_its_type_is_left_out_and_named(spec, tmp_path, caplog):
    for largest, is_fit in ((2**63 - 1, True), (2**63, False)):
        keys = pa.array([1, 2, 3, None, largest], pa.uint64())
        file = tmp_path / "labels.parquet"
        pq.write_table(TABLE.set_column(0, "Driver ID", keys), file)
        table = with_table(spec, source=str(file), known_at=None)
        found_keys = {row["driver_id"] for row in known(table, NOON)}
        assert found_keys == ({1, 2, None, largest} if is_fit else {1, 2, None})
    problem = "Driver ID: expected int64, found uint64: '9223372036854775808'"
    assert f"1 of 4 rows are left out: {problem}" in caplog.text


def test_files_of_labels_keep_values_that_differ_in_type(tmp_path):
    """DuckDB would give all files the types of the first one."""
    for name, values in (("a", [1, 2]), ("b", [0.5, None])):
        folder = tmp_path / "labels"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table({"label": values}), folder / f"{name}.parquet")
    pq.write_table(pa.table({"label": [7]}), tmp_path / "l[1].parquet")
    pq.write_table(pa.table({"label": [8]}), tmp_path / "l1.parquet")
    connection = ibis.duckdb.connect()
    for place, expected in (
        ("labels", {1.0, 2.0, 0.5, None}),
        ("l[1].parquet", {7}),
    ):
        rows = open_table(connection, str(tmp_path / place)).to_pyarrow()
        assert {*rows["label"].to_pylist()} == expected
    connection.disconnect()
