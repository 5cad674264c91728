"""Tables of a team that Gyre writes: in every kind of store, whole or not at all."""

import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from core.connectors.sink import replace_days
from core.errors import DataError
from stack.environment import child_environment
from tests.conftest import new_settings
from tests.support.stores.mariadb import mariadb_server
from tests.support.stores.postgres import postgres_server
from tests.support.tools.sinks import AS_OF, KINDS, TODAY, score_rows, sink

TOMORROW = date(2026, 11, 21)
WRITER = """
import json, sys
from core.settings import load_settings
from core.connectors.sink import replace_days
from tests.support.tools.sinks import TODAY, score_rows
row_count, address = json.loads(sys.argv[1])
rows = score_rows(row_count, probability=0.75)
print(flush=True)
replace_days(load_settings(), address, rows, "churn", [TODAY])
"""
WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from core.settings import load_settings
from core.connectors.sink import replace_days
import pyarrow as pa
from datetime import date
day = date(2026, 11, 20)
rows = pa.table({"model": ["churn"], "day": [day]})
replace_days(load_settings(), sys.argv[2], rows, "churn", [day])
"""
MANY = 200_000


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path / "home")


@pytest.fixture(params=KINDS)
def place(request, tmp_path, monkeypatch):
    with sink(request.param, tmp_path, monkeypatch) as opened:
        yield opened


def summary(place):
    """Number of rows, and their probabilities, by model and day."""
    parts = {}
    for row in place.read():
        part = parts.setdefault((row["model"], row["day"]), [])
        part.append(row["probability"])
    return {key: (len(values), {*values}) for key, values in parts.items()}


def test_a_day_of_a_model_is_replaced_and_no_other_row(settings, place):
    def write(rows, model="churn", day=TODAY):
        replace_days(settings, place.address, rows, model, [day])
        return summary(place)

    first = {("churn", TODAY): (3, {0.5})}
    assert write(score_rows(3)) == first
    (row,) = [row for row in place.read() if row["customer_id"] == 2]
    assert row["shop"] == "ä\t\"\\N'2"
    assert "" in {row["shop"] for row in place.read()}
    assert row["as_of"].replace(tzinfo=AS_OF.tzinfo) == AS_OF
    assert row["prediction"] is row["probabilities"] is None
    assert write(score_rows(3)) == first
    both = first | {("churn", TOMORROW): (4, {0.5})}
    assert write(score_rows(4, TOMORROW), day=TOMORROW) == both
    others = both | {("rain", TODAY): (1, {0.5})}
    assert write(score_rows(1, model="rain"), model="rain") == others
    replaced = others | {("churn", TODAY): (2, {0.25})}
    assert write(score_rows(2, probability=0.25)) == replaced


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.drop_columns("shop"),
        lambda rows: rows.append_column("region", rows["shop"]),
        lambda rows: rows.set_column(2, "customer_id", rows["shop"]),
    ],
    ids=["a column more", "a column less", "another type"],
)
def test_a_table_of_other_columns_is_refused_and_stays_as_it_is(
    settings, place, change
):
    replace_days(settings, place.address, score_rows(3), "churn", [TODAY])
    message = r"nothing was changed: expected a table with the columns .*customer_id"
    with pytest.raises(DataError, match=message):
        replace_days(settings, place.address, change(score_rows(1)), "churn", [TODAY])
    assert summary(place) == {("churn", TODAY): (3, {0.5})}


def test_a_writer_that_is_killed_leaves_the_earlier_rows(settings, place):
    replace_days(settings, place.address, score_rows(3), "churn", [TODAY])
    before = {("churn", TODAY): (3, {0.5})}
    progress = place.progress()
    environment = os.environ | child_environment(settings)
    arguments = json.dumps([MANY, place.address])
    command = [sys.executable, "-c", WRITER, arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        while place.progress() == progress and writer.poll() is None:
            time.sleep(0.001)
        writer.kill()
    whole = {("churn", TODAY): (MANY, {0.75})}
    assert summary(place) in (before, whole), "a day half replaced"
    if "#scores" in place.address and "://" in place.address:
        assert summary(place) == before, "the writer was at its end already"
    subprocess.run(command, env=environment, check=True)
    assert summary(place) == whole


def test_a_table_in_a_schema_with_odd_names_and_other_texts_is_taken(
    settings, tmp_path
):
    with postgres_server(tmp_path / "log") as server:
        with psycopg.connect(server.address) as connection:
            connection.execute('CREATE SCHEMA "Team"')
            connection.execute(
                'CREATE TABLE "Team"."Scores" (model varchar(80), day date, customer_id integer, '
                "shop varchar, as_of timestamptz, probability float8, prediction float8, "
                "probabilities text)"
            )
        address = f"{server.address}#Team.Scores"
        replace_days(settings, address, score_rows(2), "churn", [TODAY])
        with psycopg.connect(server.address) as connection:
            rows = connection.execute('SELECT day FROM "Team"."Scores"').fetchall()
        assert rows == [(TODAY,), (TODAY,)]
        huge = score_rows(1).set_column(2, "customer_id", pa.array([2**40]))
        with pytest.raises(DataError, match=r"nothing was changed: .*integer"):
            replace_days(settings, address, huge, "churn", [TODAY])
        with psycopg.connect(server.address) as connection:
            assert (
                rows == connection.execute('SELECT day FROM "Team"."Scores"').fetchall()
            )


def test_passwords_come_from_the_environment_and_no_message_has_one(
    settings, tmp_path, monkeypatch
):
    def write(address):
        replace_days(settings, address, score_rows(1), "churn", [TODAY])

    def refusal(address):
        with pytest.raises(DataError) as error:
            write(address)
        return str(error.value)

    with postgres_server(tmp_path / "log") as server:
        with_password(server, "gyre_scores", "pa/ss@word")
        rest = server.address.partition("@")[2]
        for address in (
            f"postgresql://gyre_scores:hidden1@{rest}#scores",
            f"postgresql://gyre_scores:$TEAM_PASSWORD@{rest}#scores",
            f"postgresql://gyre_scores@{rest}?password=hidden3#scores",
        ):
            monkeypatch.setenv("TEAM_PASSWORD", "hidden2")
            text = refusal(address)
            assert "password authentication failed" in text
            assert "hidden" not in text
            assert text.startswith("127.0.0.1:") or "gyre_scores@" not in text
        monkeypatch.setenv("TEAM_PASSWORD", "pa%2Fss%40word")
        write(f"postgresql://gyre_scores:$TEAM_PASSWORD@{rest}#scores")
        monkeypatch.setenv("PGPASSWORD", "pa/ss@word")
        write(f"postgresql://gyre_scores@{rest}#scores")
    with mariadb_server(tmp_path / "log") as server:
        text = refusal(server.address.replace("secret", "hidden") + "#scores")
        assert "Access denied" in text
        assert "hidden" not in text
        options = tmp_path / "my.cnf"
        options.write_text("[client]\npassword = secret\n")
        bare = server.address.replace(":secret@", "@")
        write(f"{bare}?read_default_file={options}#scores")
    text = refusal("postgresql://gyre:$NOT_THERE@127.0.0.1:1/gyre#scores")
    assert text == "127.0.0.1:1/gyre#scores: expected the variable NOT_THERE to be set"
    text = refusal("postgresql://gyre:hidden@127.0.0.1:1/gyre#scores")
    assert "refused" in text
    assert "hidden" not in text
    text = refusal("oracle://gyre:hidden@127.0.0.1/gyre#scores")
    assert text.startswith("127.0.0.1/gyre#scores: nothing was changed: expected post")


def with_password(server, user, password):
    """A user whom PostgreSQL asks for a password."""
    with psycopg.connect(server.address, autocommit=True) as connection:
        connection.execute(f"CREATE USER {user} PASSWORD '{password}'")
        connection.execute(f"GRANT ALL ON SCHEMA public TO {user}")
        (file,) = connection.execute("SHOW hba_file").fetchone()
        rule = f"host all {user} 127.0.0.1/32 scram-sha-256\n"
        Path(file).write_text(rule + Path(file).read_text())
        connection.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("module", "address", "extra"),
    [
        ("pymysql", "mysql://gyre@127.0.0.1/gyre#scores", "mysql"),
        ("pyiceberg", "iceberg://team#ml.scores", "iceberg"),
        ("psycopg", "postgresql://gyre@127.0.0.1/gyre#scores", "postgres"),
    ],
)
def test_a_missing_driver_is_named_with_its_extra(settings, module, address, extra):
    environment = os.environ | child_environment(settings)
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT, module, address],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    message = f"needs the package {module}: install gyre-loop[{extra}]"
    assert message in process.stderr.splitlines()[-1]
