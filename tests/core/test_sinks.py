"""Tables of a team that Gyre writes: in every kind of store, whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from itertools import count
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.connectors.sink import replace_days
from core.errors import DataError
from stack.environment import child_environment
from tests.conftest import new_settings
from tests.support.stores import sinks
from tests.support.stores.iceberg import use_catalog
from tests.support.stores.mariadb import mariadb  # noqa: F401  (a fixture)
from tests.support.stores.postgres import postgres  # noqa: F401  (a fixture)
from tests.support.stores.s3 import BUCKET, s3_server
from tests.support.stores.sinks import AS_OF, TODAY, score_rows
from tests.support.tools.preloaded import commands_folder

TOMORROW = date(2026, 11, 21)
WRITER = """
import os, sys
from datetime import date
import pyarrow.parquet as pq
from core.settings import load_settings
from core.connectors.sink import replace_days
file, address = sys.argv[1:]
rows = pq.read_table(file)
print(os.getpid(), flush=True)
replace_days(load_settings(), address, rows, "churn", [rows["day"][0].as_py()])
"""
WITHOUT = """
import sys
modules, addresses = sys.argv[1].split(), sys.argv[2].split()
sys.modules |= dict.fromkeys(modules)
from core.errors import DataError
from core.settings import load_settings
from core.connectors.sink import replace_days
import pyarrow as pa
from datetime import date
day = date(2026, 11, 20)
rows = pa.table({"model": ["churn"], "day": [day]})
for address in addresses:
    try:
        replace_days(load_settings(), address, rows, "churn", [day])
    except DataError as exc:
        print(exc)
"""
NUMBERS = count()


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path / "home")


@pytest.fixture(scope="module")
def observed_mariadb(mariadb):
    """A server whose user sees what a transaction has done."""
    grant = "GRANT PROCESS ON *.* TO gyre@'127.0.0.1'"
    assert mariadb.run(grant).returncode == 0
    return mariadb


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        s3_server(folder, monkeypatch),
    ):
        yield f"s3://{BUCKET}/team"


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    """The folder of a catalog of Iceberg, and the catalog."""
    folder = tmp_path_factory.mktemp("iceberg")
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield folder, use_catalog(monkeypatch, "team", folder)


def postgres_place(request, name):
    return sinks.postgres(request.getfixturevalue("postgres").address, name)


def mariadb_place(request, name):
    return sinks.mariadb(request.getfixturevalue("observed_mariadb").address, name)


def delta_place(request, name):
    return sinks.delta(str(request.getfixturevalue("tmp_path") / "team" / name))


def delta_place_on_s3(request, name):
    return sinks.delta(f"{request.getfixturevalue('bucket')}/{name}")


def iceberg_place(request, name):
    folder, catalog = request.getfixturevalue("warehouse")
    return sinks.iceberg(catalog, f"ml.{name}", folder)


def folder_place(request, name):
    return sinks.files(str(request.getfixturevalue("tmp_path") / "team" / name))


def s3_place(request, name):
    return sinks.files(f"{request.getfixturevalue('bucket')}/{name}")


PLACES = {
    "postgres": postgres_place,
    "mariadb": mariadb_place,
    "delta": delta_place,
    "delta on s3": delta_place_on_s3,
    "iceberg": iceberg_place,
    "files": folder_place,
    "s3": s3_place,
}


OF_JOURNEYS = {"postgres", "mariadb"}
"""Servers that are no Python package."""


def with_mark(name):
    marks = [pytest.mark.journey] if name in OF_JOURNEYS else []
    return pytest.param(name, marks=marks)


@pytest.fixture(params=map(with_mark, PLACES))
def place(request):
    """A place for a table that is not there yet, in a store that other tests use, too."""
    return PLACES[request.param](request, f"scores_{next(NUMBERS)}")


def summary(place):
    """Number of rows, and their probabilities, by model and day."""
    parts = {}
    for (model, day, probability), number in place.counts().items():
        total, probabilities = parts.get((model, day), (0, set()))
        parts[model, day] = (total + number, probabilities | {probability})
    return parts


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


@pytest.mark.journey
def test_a_writer_that_is_killed_leaves_the_earlier_rows(settings, place, tmp_path):
    replace_days(settings, place.address, score_rows(3), "churn", [TODAY])
    before = {("churn", TODAY): (3, {0.5})}
    progress = place.progress()
    environment = os.environ | child_environment(settings)
    file = tmp_path / "rows.parquet"
    pq.write_table(score_rows(place.many, probability=0.75), file)
    command = [commands_folder() / "python", "-c", WRITER, file, place.address]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as writer:
        number = int(writer.stdout.readline())
        while place.progress() == progress and writer.poll() is None:
            time.sleep(0.001)
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    whole = {("churn", TODAY): (place.many, {0.75})}
    assert summary(place) in (before, whole), "a day half replaced"
    if "#scores" in place.address and "://" in place.address:
        assert summary(place) == before, "the writer was at its end already"
    subprocess.run(command, env=environment, check=True)
    assert summary(place) == whole


@pytest.mark.journey
def test_a_table_in_a_schema_with_odd_names_and_other_texts_is_taken(
    settings, postgres
):
    def days():
        with psycopg.connect(postgres.address) as connection:
            return connection.execute('SELECT day FROM "Team"."Scores"').fetchall()

    with psycopg.connect(postgres.address) as connection:
        connection.execute('CREATE SCHEMA "Team"')
        connection.execute(
            'CREATE TABLE "Team"."Scores" (model varchar(80), day date, customer_id integer, '
            "shop varchar, as_of timestamptz, probability float8, prediction float8, "
            "probabilities text)"
        )
    address = f"{postgres.address}#Team.Scores"
    replace_days(settings, address, score_rows(2), "churn", [TODAY])
    assert days() == [(TODAY,), (TODAY,)]
    huge = score_rows(1).set_column(2, "customer_id", pa.array([2**40]))
    with pytest.raises(DataError, match=r"nothing was changed: .*integer"):
        replace_days(settings, address, huge, "churn", [TODAY])
    assert days() == [(TODAY,), (TODAY,)]


KEYS = [
    "Version",
    "Day",
    "Model",
    "select",
    "order",
    "Größe",
    'a "b"',
    "a%b",
    "a.b",
    ":c",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_any_name_is_written_or_refused_by_a_sentence(settings, place, key):
    rows = score_rows(3).rename_columns({"shop": key})
    rows = rows.append_column("version", pa.array(["1"] * 3))
    takes_case = not place.address.startswith("mysql:")
    takes_case = takes_case and not place.address.endswith("#delta")
    if key in {"Version", "Day", "Model"} and not takes_case:
        with pytest.raises(DataError, match=f"differ by more than capitals, .*{key}"):
            replace_days(settings, place.address, rows, "churn", [TODAY])
        assert place.read() == []
        return
    for _ in range(2):
        replace_days(settings, place.address, rows, "churn", [TODAY])
    found = sorted(place.read(), key=lambda row: row["customer_id"])
    for row, expected in zip(found, rows.to_pylist(), strict=True):
        assert (row[key], row["version"], row["day"]) == (expected[key], "1", TODAY)


def columns_of(**others):
    """Return SQL for the columns of scores, some of them in other types."""
    types = {"model": "varchar(80)", "day": "date", "customer_id": "bigint"}
    types |= {"shop": "text", "as_of": "timestamptz", "probability": "double precision"}
    types |= {"prediction": "double precision", "probabilities": "text"}
    return ", ".join(f"{name} {kind}" for name, kind in (types | others).items())


@pytest.mark.journey
@pytest.mark.parametrize(
    ("column", "kind", "found"),
    [
        ("as_of", "timestamptz(0)", "DateTime of 0 decimals"),
        ("as_of", "timestamptz(3)", "DateTime of 3 decimals"),
        ("as_of", "timestamp", "DateTime without a zone"),
        ("as_of", "timestamp(0)", "DateTime without a zone"),
        ("as_of", "date", "Date"),
        ("as_of", "text", "Text"),
        ("shop", "char(300)", "which adds blanks"),
        ("probability", "real", "Float"),
        ("probability", "numeric(9, 4)", "Numeric"),
        ("customer_id", "smallint", "SmallInteger"),
        ("day", "timestamptz", "DateTime"),
    ],
)
def test_a_type_of_postgresql_that_changes_values_is_refused(
    settings, postgres, column, kind, found
):
    name = f"scores_{next(NUMBERS)}"
    with psycopg.connect(postgres.address) as connection:
        connection.execute(f"CREATE TABLE {name} ({columns_of(**{column: kind})})")
    message = f"nothing was changed: .*{column} .*found .*{column} .*{found}"
    address = f"{postgres.address}#{name}"
    with pytest.raises(DataError, match=message):
        replace_days(settings, address, score_rows(1), "churn", [TODAY])


@pytest.mark.journey
@pytest.mark.parametrize(
    ("column", "kind", "found"),
    [
        ("as_of", "datetime", "DateTime of 0 decimals"),
        ("as_of", "timestamp(3) null", "DateTime of 3 decimals"),
        ("shop", "char(200)", "which adds blanks"),
        ("shop", "varchar(3)", "Data too long for column 'shop'"),
        ("probability", "double(9,1)", "Double of 1 decimals"),
        ("probability", "float", "Float"),
        ("customer_id", "tinyint", "Out of range value for column 'customer_id'"),
    ],
)
def test_a_type_of_mariadb_that_changes_values_is_refused(
    settings, mariadb, column, kind, found
):
    name = f"scores_{next(NUMBERS)}"
    others = {"as_of": "datetime(6)"} | {column: kind}
    made = mariadb.run(
        f"SET GLOBAL sql_mode = ''; USE gyre; CREATE TABLE {name} ({columns_of(**others)})"
    )
    assert made.returncode == 0, made.stderr
    rows = score_rows(200)  # a number beyond TINYINT
    with pytest.raises(DataError, match=f"nothing was changed: .*{found}"):
        replace_days(settings, f"{mariadb.address}#{name}", rows, "churn", [TODAY])
    assert mariadb.run(f"SELECT count(*) FROM gyre.{name}").stdout == "0\n"


@pytest.mark.journey
def test_passwords_come_from_the_environment_and_no_message_has_one(
    settings, postgres, mariadb, tmp_path, monkeypatch
):
    def write(address):
        replace_days(settings, address, score_rows(1), "churn", [TODAY])

    def refusal(address):
        with pytest.raises(DataError) as error:
            write(address)
        return str(error.value)

    with_password(postgres, "gyre_scores", "pa/ss@word")
    rest = postgres.address.partition("@")[2]
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
    text = refusal(mariadb.address.replace("secret", "hidden") + "#scores")
    assert "Access denied" in text
    assert "hidden" not in text
    options = tmp_path / "my.cnf"
    options.write_text("[client]\npassword = secret\n")
    bare = mariadb.address.replace(":secret@", "@")
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


DRIVERS = {
    "pymysql": ("mysql://gyre@127.0.0.1/gyre#scores", "mysql"),
    "pyiceberg": ("iceberg://team#ml.scores", "iceberg"),
    "psycopg": ("postgresql://gyre@127.0.0.1/gyre#scores", "postgres"),
}


def test_a_missing_driver_is_named_with_its_extra(settings):
    addresses = [address for address, _ in DRIVERS.values()]
    output = subprocess.check_output(
        [sys.executable, "-c", WITHOUT, " ".join(DRIVERS), " ".join(addresses)],
        env=os.environ | child_environment(settings),
        text=True,
    )
    lines = output.splitlines()
    assert len(lines) == len(DRIVERS)
    for line, (module, (_, extra)) in zip(lines, DRIVERS.items(), strict=True):
        message = f"needs the package {module}: install gyre-loop[{extra}]"
        assert message in line
