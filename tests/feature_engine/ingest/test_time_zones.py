"""Times without a zone: refused, unless the source names its zone."""

from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import DataError, SettingsError
from core.settings import load_settings
from feature_engine.ingest.pipeline import ingest
from feature_engine.ingest.quarantine import quarantined
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.shop import ORDERS, order, order_table

BERLIN = {"orders": "Europe/Berlin"}
ROWS = {
    1: ("2025-07-01T12:00:00", "2025-07-01T10:00:00+00:00"),  # summer
    2: ("2025-01-01T12:00:00", "2025-01-01T11:00:00+00:00"),  # winter
    3: ("2025-10-26T01:30:00", "2025-10-25T23:30:00+00:00"),
}
NO_MOMENT = {
    4: "2025-10-26T02:30:00",  # twice: clocks go back from 3 to 2
    5: "2025-03-30T02:30:00",  # never: they go on from 2 to 3
    6: "2038-07-01T12:00:00",  # nobody knows the rules of then
}


def parquet(folder, rows, unit):
    count = len(rows)
    texts = pa.array([*rows.values()])
    table = pa.table(
        {
            "order_id": pa.array([*rows], pa.int64()),
            "customer_id": pa.array([1] * count, pa.int64()),
            "order_ts": texts.cast(pa.timestamp(unit)),
            "number_of_cds": pa.array([1] * count, pa.int64()),
            "dollar_value": pa.array([9.5] * count),
        }
    )
    file = folder / f"{unit}.parquet"
    pq.write_table(table, file)
    return file


def text_file(folder, rows, ending):
    file = folder / f"in.{ending}"
    lines = [",".join(ORDERS.schema.names)]
    for number, text in rows.items():
        lines.append(f"{number},1,{text},1,9.5")
    if ending == "jsonl":
        pattern = (
            '{{"order_id": {}, "customer_id": 1, "order_ts": "{}",'
            ' "number_of_cds": 1, "dollar_value": 9.5}}'
        )
        lines = [pattern.format(number, text) for number, text in rows.items()]
    file.write_text("\n".join([*lines, ""]))
    return file


@pytest.mark.parametrize("ending", ["s", "us", "ns", "csv", "jsonl"])
def test_local_times_become_moments_and_those_that_are_none_are_set_aside(
    applied, tmp_path, ending
):
    rows = {number: local for number, (local, _) in ROWS.items()} | NO_MOMENT
    write = text_file if ending in ("csv", "jsonl") else parquet
    sources = {"orders": str(write(tmp_path, rows, ending))}
    settings = applied.model_copy(update={"sources": sources, "time_zones": BERLIN})
    report = ingest(settings, "orders", AS_OF)
    assert (report.inserted, report.quarantined) == (len(ROWS), len(NO_MOMENT))
    stored = raw_table(settings, ORDERS).read()
    moments = [time.isoformat() for time in stored["order_ts"].to_pylist()]
    expected = dict(zip(stored["order_id"].to_pylist(), moments, strict=True))
    assert expected == {number: moment for number, (_, moment) in ROWS.items()}
    entries = quarantined(settings, ORDERS)
    assert {entry["row"]["order_id"] for entry in entries} == {*NO_MOMENT}
    for entry in entries:
        assert "column order_ts: expected a day" in entry["rules"]
    for year, month, count in ((2024, 1, 3), (2025, 3, 2), (2025, 8, 1), (2026, 1, 0)):
        since = datetime(year, month, 1, tzinfo=UTC)
        later_rows = pull(settings, ORDERS, AS_OF, since, {}).read_all()
        assert later_rows.num_rows == count


def test_without_a_zone_they_are_refused_by_column_with_the_setting(tmp_path):
    file = parquet(tmp_path, {1: "2025-07-01T12:00:00"}, "us")
    settings = new_settings(tmp_path / "home", sources={"orders": str(file)})
    with pytest.raises(DataError) as error:
        pull(settings, ORDERS, AS_OF).read_all()
    assert "column order_ts" in str(error.value)
    assert "GYRE_TIME_ZONES__ORDERS=Europe/Berlin" in str(error.value)


def test_a_zone_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("GYRE_TIME_ZONES__ORDERS", "Berlin")
    with pytest.raises(SettingsError, match="such as Europe/Berlin, found Berlin"):
        load_settings()


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_day_and_its_midnight_are_one_moment(tmp_path, ending):
    """pandas writes a column of midnights as days."""
    rows = {1: "2025-07-01", 2: "2025-07-01 00:00:00", 3: "2025-07-01T00:00:00+02:00"}
    sources = {"orders": str(text_file(tmp_path, rows, ending))}
    settings = new_settings(tmp_path / "home", sources=sources, time_zones=BERLIN)
    times = pull(settings, ORDERS, AS_OF).read_all()["order_ts"].to_pylist()
    assert {time.isoformat() for time in times} == {"2025-06-30T22:00:00+00:00"}


def test_a_day_of_a_column_of_days_is_of_the_zone_too(tmp_path):
    rows = order_table(order(1, 1, AS_OF))
    days = pa.array([date(2025, 7, 1)])
    position = rows.schema.get_field_index("order_ts")
    pq.write_table(rows.set_column(position, "order_ts", days), tmp_path / "in.parquet")
    sources = {"orders": str(tmp_path / "in.parquet")}
    settings = new_settings(tmp_path / "home", sources=sources, time_zones=BERLIN)
    (time,) = pull(settings, ORDERS, AS_OF).read_all()["order_ts"].to_pylist()
    assert time.isoformat() == "2025-06-30T22:00:00+00:00"
