"""Sources in buckets: what the same files on this disk give, and no more requests than needed."""

import gzip
import json
from contextlib import contextmanager

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyarrow import csv

from core.connectors.reading import read
from core.errors import DataError
from core.files import location
from feature_engine.ingest.pipeline import ingest
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, order, order_table
from tests.support.stores.azure import azure_server
from tests.support.stores.gcs import gcs_server
from tests.support.stores.s3 import s3_server

BUCKET = "gyre"


def rows_of(*days):
    """An order for each number, as many days old."""
    return order_table(*[order(day, day % 3 + 1, AS_OF - day * DAY) for day in days])


def write(file, table):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    elif file.name.endswith(".csv.gz"):
        with gzip.open(file, "wb") as packed:
            csv.write_csv(table, packed)
    else:
        lines = [json.dumps(row, default=str) for row in table.to_pylist()]
        file.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder `gyre` with files of every format, among others that do not count."""
    folder = tmp_path_factory.mktemp("buckets")
    base = folder / BUCKET
    write(base / "shop/1.parquet", rows_of(1))
    write(base / "shop/we[ird] %/who=9/2.parquet", rows_of(2, 40))
    write(base / "shop/more/3.csv.gz", rows_of(3))
    write(base / "shop/more/4.jsonl", rows_of(4, 41))
    write(base / "shop/.hidden/5.parquet", rows_of(5))
    write(base / "shop/_temporary/0/6.parquet", rows_of(6))
    (base / "shop/README.txt").write_text("no rows")
    write(base / "shopping/7.parquet", rows_of(7))
    write_deltalake(base / "lake/orders", rows_of(1, 2, 3))
    write_deltalake(base / "lake/orders", rows_of(30), mode="append")
    write(base / "lake/8.parquet", rows_of(8))
    write(base / "old/orders/data/9.parquet", rows_of(9))
    write(base / "old/orders/metadata/v1.metadata.json", rows_of())
    return folder


@contextmanager
def bucket(scheme, folder, files, monkeypatch):
    """Have a server with the files; give the beginning of their addresses."""
    if scheme == "disk":
        yield f"{files}/{BUCKET}"
        return
    if scheme == "gs":
        with gcs_server(folder, files, monkeypatch):
            yield f"gs://{BUCKET}"
        return
    server = s3_server if scheme == "s3" else azure_server
    with server(folder, monkeypatch):
        base = f"{scheme}://{BUCKET}"
        for file in (files / BUCKET).rglob("*"):
            if file.is_file():
                path = location(f"{base}/{file.relative_to(files / BUCKET)}")
                path.fs.pipe_file(path.path, file.read_bytes())
        yield base


BUCKETS = ["s3", "gs", pytest.param("az", marks=pytest.mark.nightly)]
in_buckets = pytest.mark.parametrize("base", BUCKETS, indirect=True, scope="module")
everywhere = pytest.mark.parametrize(
    "base", ["disk", *BUCKETS], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def base(request, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        bucket(request.param, folder, files, monkeypatch) as address,
    ):
        yield address


def numbers(folder, address, **more):
    settings = new_settings(folder / "home", sources={"orders": address})
    rows = pull(settings, ORDERS, AS_OF, **more).read_all()
    return sorted(rows["order_id"].to_pylist())


@pytest.mark.journey
@everywhere
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("shop", [1, 2, 3, 4, 40, 41]),
        ("shop/", [1, 2, 3, 4, 40, 41]),
        ("shop/1.parquet", [1]),
        ("shop/we[ird] %", [2, 40]),
        ("shop/more/*.gz", [3]),
        ("shop/**/*.parquet", [1, 2, 40]),
        ("shop*/7.parquet", [7]),
        ("shop/more/4.jsonl", [4, 41]),
        ("lake/orders", [1, 2, 3, 30]),
        ("lake", [1, 2, 3, 8, 30]),
        ("la*/ord*", [1, 2, 3, 30]),
    ],
)
def test_files_of_a_bucket_are_read_as_those_on_this_disk(
    base, tmp_path, address, expected
):
    place = f"{base}/{address}"
    assert numbers(tmp_path, place) == expected
    newer = [number for number in expected if number < 20]
    assert numbers(tmp_path, place, since=AS_OF - 20 * DAY) == newer
    rows = read(place)
    assert rows.schema.field("order_ts").type == pa.timestamp("us", "UTC")
    assert sorted(rows["order_id"].to_pylist()) == expected


@everywhere
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("none", "expected parquet, CSV or JSON-lines files, found none"),
        ("none/*.csv", "expected parquet, CSV or JSON-lines files, found none"),
        ("lake/orders/*.parquet", "a table of Delta: name the table"),
        ("lake/**/*.parquet", "a table of Delta: name the table"),
        ("*/orders/*.parquet", "a table of Delta: name the table"),
        ("old/orders", "name it by its catalog: iceberg://"),
        ("old", "name it by its catalog: iceberg://"),
        ("old/orders/data/9.parquet", "a table of Iceberg: name the table"),
    ],
)
def test_what_no_bucket_has_is_said_as_of_this_disk(base, tmp_path, address, message):
    with pytest.raises(DataError, match="nothing was changed") as error:
        numbers(tmp_path, f"{base}/{address}")
    assert message in str(error.value)


@pytest.mark.journey
@in_buckets
def test_an_ingest_reads_of_a_bucket_what_is_new(base, applied):
    settings = applied.model_copy(update={"sources": {"orders": f"{base}/lake/orders"}})
    assert ingest(settings, "orders", AS_OF).inserted == 4
    assert ingest(settings, "orders", AS_OF + HOUR).inserted == 0
    assert raw_table(settings, ORDERS).read().num_rows == 4


def test_a_file_whose_rows_are_older_is_not_read_but_for_its_end(tmp_path, monkeypatch):
    """What S3 sent, by moto's own log of requests."""
    with s3_server(tmp_path, monkeypatch):
        client = boto3.client("s3")
        new = order_table(*[order(n, n, AS_OF - DAY) for n in range(20_000)])
        old = order_table(*[order(n, n, AS_OF - 90 * DAY) for n in range(20_000)])
        for name, table in (("old", old), ("new", new)):
            write(tmp_path / f"{name}.parquet", table)
            client.upload_file(
                str(tmp_path / f"{name}.parquet"), BUCKET, f"in/{name}.parquet"
            )
        found = numbers(tmp_path, f"s3://{BUCKET}/in", since=AS_OF - 7 * DAY)
        assert len(found) == 20_000
    requests = (tmp_path / "s3.log").read_text().splitlines()
    reads = {
        name: sum(f'"GET /{BUCKET}/in/{name}.parquet' in line for line in requests)
        for name in ("old", "new")
    }
    assert reads["old"] < reads["new"]
