"""A use case from rows in each place of docs/how-to/sources.md, by the commands as people type them."""

import json
import os

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.files import location
from tests.conftest import new_settings
from tests.support.stores.azure import azure_server
from tests.support.stores.gcs import gcs_server
from tests.support.stores.iceberg import use_catalog
from tests.support.stores.mariadb import mariadb_server
from tests.support.stores.postgres import postgres_server
from tests.support.stores.s3 import s3_server
from tests.support.tools.clone import events, mlflow_and_redis, run, stack_environment

pytestmark = pytest.mark.nightly
COUNT = len(events())
TOOLS = ("AWS_", "GOOGLE_", "AZURE_", "PYICEBERG_", "PG")
OPTIONS = "--label silence --key 'visit no' --entity visitor --time 'seen at'"
COLUMNS = (
    "({q}visit no{q} bigint, visitor varchar(9), {q}seen at{q} {time}, minutes int)"
)


def visits():
    numbers, visitors, times, amounts = zip(*events(), strict=True)
    whole_seconds = [time.replace(microsecond=0) for time in times]
    return pa.table(
        {
            "visit no": numbers,
            "visitor": [f"v-{visitor:03}" for visitor in visitors],
            "seen at": pa.array(whole_seconds, pa.timestamp("us", "UTC")),
            "minutes": pa.array(amounts).cast(pa.int32(), safe=False),
        }
    )


@pytest.fixture
def s3_json(tmp_path, monkeypatch):
    with s3_server(tmp_path, monkeypatch):
        lines = [json.dumps(row, default=str) for row in visits().to_pylist()]
        path = location("s3://gyre/visits/2026/a.jsonl")
        path.fs.pipe_file(path.path, "\n".join(lines).encode())
        yield "s3://gyre/visits"


@pytest.fixture
def gcs_files(tmp_path, monkeypatch):
    folder = tmp_path / "buckets" / "gyre" / "visits"
    folder.mkdir(parents=True)
    pq.write_table(visits(), folder / "a.parquet")
    with gcs_server(tmp_path, tmp_path / "buckets", monkeypatch):
        yield "'gs://gyre/visits/*.parquet'"


@pytest.fixture
def azure_file(tmp_path, monkeypatch):
    with azure_server(tmp_path, monkeypatch):
        content = pa.BufferOutputStream()
        pq.write_table(visits(), content)
        path = location("az://gyre/visits.parquet")
        path.fs.pipe_file(path.path, content.getvalue().to_pybytes())
        yield "az://gyre/visits.parquet"


@pytest.fixture
def iceberg_table(tmp_path, monkeypatch):
    table = visits()
    catalog = use_catalog(monkeypatch, "lake", tmp_path)
    catalog.create_table("shop.visits", schema=table.schema).append(table)
    return "iceberg://lake#shop.visits"


@pytest.fixture
def postgres_query(tmp_path):
    with postgres_server(tmp_path / "log") as server:
        with psycopg.connect(server.address, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA web")
            columns = COLUMNS.format(q='"', time="timestamptz")
            connection.execute(f"CREATE TABLE web.visits {columns}")
            insert = "INSERT INTO web.visits VALUES (%s, %s, %s, %s)"
            rows = [[*row.values()] for row in visits().to_pylist()]
            connection.cursor().executemany(insert, rows)
        yield f"{server.address}#queries/visits.sql"


@pytest.fixture
def mariadb_table(tmp_path):
    with mariadb_server(tmp_path / "log") as server:
        columns = COLUMNS.format(q="`", time="datetime")
        values = [
            f"({row['visit no']}, '{row['visitor']}', '{row['seen at']:%F %T}', {row['minutes']})"
            for row in visits().to_pylist()
        ]
        script = f"USE gyre; CREATE TABLE visits {columns}; INSERT INTO visits VALUES"
        done = server.run(f"{script} {', '.join(values)}")
        assert done.returncode == 0, done.stderr
        yield f"{server.address}#visits --time-zone UTC"


@pytest.mark.parametrize(
    "place",
    [
        "s3_json",
        "gcs_files",
        "azure_file",
        "iceberg_table",
        "postgres_query",
        "mariadb_table",
    ],
)
def test_a_use_case_is_made_checked_and_ingested_from_each_place(
    request, tmp_path, place
):
    address = request.getfixturevalue(place)
    folder = tmp_path / "web"
    settings = new_settings(folder / ".gyre", demo_start=None)
    tools = {key: text for key, text in os.environ.items() if key.startswith(TOOLS)}
    environment = stack_environment(settings) | tools | {"GYRE_PROJECT": str(folder)}
    outer = {k: v for k, v in environment.items() if not k.startswith("GYRE_")}
    run(f"gyre init {folder.name}", tmp_path, outer)
    (folder / "queries").mkdir()
    query = "SELECT * FROM web.visits;\n"
    (folder / "queries/visits.sql").write_text(query)
    with mlflow_and_redis(settings):
        made = run(f"gyre new visits --from {address} {OPTIONS}", folder, environment)
        assert "entity: visitor" in made
        assert "secret" not in made
        run("cd feature_repo && feast apply", folder, environment)
        ingested = run("gyre ingest visits", folder, environment)
        assert f"{COUNT} new, 0 corrected, 0 quarantined" in ingested
        again = run("gyre ingest visits", folder, environment)
        assert "0 new, 0 corrected, 0 quarantined" in again
        assert "visits: ok" in run("gyre check visits", folder, environment)
