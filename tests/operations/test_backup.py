"""Backups of a home, and homes restored from them."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count

import psycopg
import pyarrow as pa
import pytest
from redis import Redis
from redis.exceptions import ResponseError

from core.errors import DataError, StackError
from core.locks import one_writer
from core.project import ENV_FILE
from core.settings import LAYOUT
from core.tables.table import Table
from feature_engine.ingest.forgotten import forgotten, keep_out
from mlflow_server.alerts import Alerts
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from monitoring.log.collect import collect
from operations.backup import SUMS, backup, restore, verify_backup
from stack.machine import prepare
from tests.conftest import (
    at_most,
    new_settings,
    redis_server,
    unused_port,
    wait_until,
)
from tests.support.stores.postgres import postgres_server, programs

MODEL = "customer_churn_model"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ROW = LedgerRow(
    MODEL, 1, "production", 100, None, "1", "shell:ann", "try", None, NOW, NOW
)
SCHEMA = pa.schema({"n": pa.int64()})
FEEDBACK = {"request_id": "a", "actual": 1, "received": NOW.isoformat()}
SETTINGS = """GYRE_REDIS_PORT=7000
export GYRE_DATA_URL = s3://b
REDIS_URL=redis://r
GYRE_ONLINE_STORE__TYPE=dynamodb
GYRE_SOURCES__ORDERS=/shop.csv
"""


def fill(settings):
    """Write what the parts of a stack leave in its home."""
    prepare(settings)
    home = settings.home
    (home / ENV_FILE).write_text(SETTINGS)
    for name in ("mlflow/artifacts/1/uv.lock", "logs/serving.log"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(os.urandom(5000))
    Table(settings, "raw/orders", SCHEMA).merge(
        pa.table({"n": [0]}, SCHEMA), ["n"], ["n"]
    )
    (home / "serving" / "log").mkdir()
    line = json.dumps(FEEDBACK) + "\n"
    (home / "serving" / "log" / "feedback-1.jsonl").write_text(line + line[:20])
    with closing(Ledger(settings)) as ledger, closing(Alerts(settings)) as alerts:
        ledger.insert(ROW)
        alerts.note(MODEL, "drift", "drifted", NOW)
    keep_out(settings, "customer_id", 7)


def assert_kept_out(settings):
    entities = forgotten(settings)
    numbers = [n for n in range(9) if entities.has({"customer_id": n})]
    assert numbers == [7]


@pytest.fixture
def settings(tmp_path):
    settings = new_settings(tmp_path / "home")
    fill(settings)
    return settings


@pytest.fixture
def elsewhere(tmp_path):
    return new_settings(tmp_path / "elsewhere" / "home")


@pytest.fixture
def folder(settings, tmp_path):
    """A backup."""
    folder = tmp_path / "backup"
    backup(settings, folder)
    return folder


def refused(settings, folder, match):
    with pytest.raises((StackError, DataError), match=match) as caught:
        restore(settings, folder)
    assert "\n" not in str(caught.value)
    assert not settings.home.parent.exists() or not [*settings.home.parent.iterdir()]


@contextmanager
def repeated(work):
    """Do some work again and again, in a thread, while the block runs."""
    stop = threading.Event()

    def repeat():
        while not stop.is_set():
            work()

    with ThreadPoolExecutor() as threads:
        job = threads.submit(repeat)
        try:
            yield
        finally:
            stop.set()
        job.result()


def test_a_backup_is_readable_by_its_owner_only_and_a_restored_home_has_all_of_it(
    settings, folder, elsewhere
):
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("airflow/secrets.json", ENV_FILE):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    restore(elsewhere, folder)
    home = elsewhere.home
    with closing(Ledger(elsewhere)) as ledger, closing(Alerts(elsewhere)) as alerts:
        assert ledger.rows(MODEL) == [ROW]
        assert [row["message"] for row in alerts.rows(MODEL)] == ["drifted"]
    assert_kept_out(elsewhere)
    table = Table(elsewhere, "raw/orders", SCHEMA)
    assert table.read()["n"].to_pylist() == [0]
    for name in ("mlflow/artifacts/1/uv.lock", "airflow/secrets.json", "layout"):
        assert (home / name).read_bytes() == (settings.home / name).read_bytes()
    assert not [*home.glob("logs/*")]
    assert [path.name for path in home.parent.iterdir()] == ["home"]
    # Settings of the one stack alone and what is not whole stay behind.
    assert (home / ENV_FILE).read_text() == "GYRE_SOURCES__ORDERS=/shop.csv\n"
    log = home / "serving" / "log" / "feedback-1.jsonl"
    assert log.read_text() == json.dumps(FEEDBACK) + "\n"


def test_a_backup_with_an_altered_or_missing_file_is_refused(folder, elsewhere):
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 8
    reason = f"it has no {SUMS}|cut short or altered|layout"
    for file in files:
        content = file.read_bytes()
        file.unlink()
        refused(elsewhere, folder, reason)
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b"x")
        refused(elsewhere, folder, reason)
        file.write_bytes(content)
    added_file = folder / "data" / "added"
    added_file.write_text("no sum")
    refused(elsewhere, folder, "1 of its files have no sum")
    added_file.unlink()
    restore(elsewhere, folder)


def test_a_backup_of_another_layout_is_refused_within_five_seconds(folder, elsewhere):
    (folder / "layout").write_text("4")
    start = time.monotonic()
    needed = f"has layout 4, this release needs layout {LAYOUT}: restore it with"
    refused(elsewhere, folder, needed)
    assert time.monotonic() - start < at_most(5)


def test_a_home_and_a_backup_are_never_overwritten(settings, folder, elsewhere):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(StackError, match="is not empty"):
        restore(settings, folder)
    with pytest.raises(StackError, match="is there already"):
        backup(settings, folder)
    with pytest.raises(StackError, match="holds no stack yet"):
        backup(elsewhere, folder.with_name("other"))
    assert sorted(folder.parent.rglob("*")) == before
    elsewhere.home.mkdir(parents=True)
    restore(elsewhere, folder)


def test_a_failed_backup_leaves_no_file(settings, tmp_path):
    (settings.home / "mlflow" / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(StackError, match=r"mlflow\.db: file is not a database"):
        backup(settings, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert not [*settings.home.glob("run/.*")]


@pytest.mark.parametrize("name", ["maintain", "ingest/orders", "collect"])
def test_a_backup_waits_for_a_writer(name, settings, tmp_path):
    thread = threading.Thread(target=backup, args=(settings, tmp_path / "backup"))
    with one_writer(settings, name):
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join()
    verify_backup(settings, tmp_path / "backup")


def test_a_backup_during_writes_has_the_state_of_one_moment(settings, tmp_path):
    """Table, ledger and log are written in turn; no backup has a later one without the earlier."""
    table = Table(settings, "raw/orders", SCHEMA)
    log = settings.home / "serving" / "log" / "feedback-2.jsonl"
    numbers = count(2)

    def write_row():
        n = next(numbers)
        table.merge(pa.table({"n": [n]}, SCHEMA), ["n"], ["n"])
        with closing(Ledger(settings)) as ledger, ledger.exclusive(MODEL):
            ledger.insert(replace(ROW, sequence=n))
        with log.open("a") as file:
            file.write(json.dumps(FEEDBACK | {"request_id": str(n)}) + "\n")

    with repeated(write_row):
        wait_until("the first rows", log.exists)
        for number in range(3):
            backup(settings, tmp_path / f"{number}")
            home = new_settings(tmp_path / f"home-{number}")
            restore(home, tmp_path / f"{number}")
            copy = Table(home, "raw/orders", SCHEMA)
            rows = max(copy.read()["n"].to_pylist())
            with closing(Ledger(home)) as ledger:
                assert len(ledger.rows(MODEL)) in {rows, rows - 1}
            collected = collect(home)
            assert collected.malformed == 0
            assert collected.outcomes <= rows


def test_a_backup_is_complete_while_redis_rewrites_its_log(settings, tmp_path):
    """Redis 7 replaces several files of a folder; the environment's own Redis one file."""
    port = unused_port()
    redis = Redis(port=port)

    def rewrite():
        with suppress(ResponseError):  # one is under way
            redis.bgrewriteaof()
        time.sleep(0.02)

    with redis_server(port, settings.home / "redis"):
        redis.mset({f"key-{number}": "x" * 100 for number in range(20_000)})
        for number in range(3):
            with repeated(rewrite):
                backup(settings, tmp_path / f"{number}")
            copy_port = unused_port()
            with redis_server(copy_port, tmp_path / f"{number}" / "redis"):
                assert Redis(port=copy_port).dbsize() == 20_000


@pytest.mark.nightly
def test_databases_of_postgresql_are_in_a_backup_as_dumps(
    tmp_path, elsewhere, monkeypatch
):
    monkeypatch.setenv("PATH", f"{programs()}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "backup"
    with postgres_server(tmp_path / "postgres.log") as server:
        address = server.address
        settings = new_settings(tmp_path / "home", database_url=address)
        fill(settings)
        backup(settings, folder)
        assert not [*folder.glob("**/*.db")]
        reason = "its databases are of PostgreSQL: set GYRE_DATABASE_URL"
        refused(elsewhere, folder, reason)
        used_database = elsewhere.model_copy(update={"database_url": address})
        refused(used_database, folder, "pg_restore: .* already exists")
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE DATABASE other")
        other_address = f"{address.rpartition('/')[0]}/other"
        other = elsewhere.model_copy(update={"database_url": other_address})
        restore(other, folder)
        with closing(Ledger(other)) as ledger:
            assert ledger.rows(MODEL) == [ROW]
        assert_kept_out(other)
    assert not [*other.home.glob("*.dump")]
