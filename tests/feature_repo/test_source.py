"""Where rows come from: the demo, other sources, and the errors of a missing one."""

from datetime import date

import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from core.errors import DataError
from feature_repo.source import pull
from tests.conftest import AS_OF, new_settings
from tests.feature_repo.test_ingest import DAY, ORDERS, order, order_table


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
    file.parent.mkdir(exist_ok=True)
    table = order_table(order(days, 1, AS_OF - days * DAY))
    if file.suffix == ".csv":
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
        ("{}", "{}: expected parquet files or CSV files, found none"),
        ("{}/none.parquet", "{}/none.parquet: expected parquet files or CSV files"),
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
