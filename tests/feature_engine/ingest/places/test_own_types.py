"""Drawn tables with every type of a database: each value is right, set aside, or refused by name."""

import json
import os

import pytest

from core.connectors.exact_values import judge_column
from core.connectors.reading import read
from core.errors import DataError
from feature_engine.ingest.landing import land
from feature_engine.ingest.quarantine import quarantine_table
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from feature_repo import rules
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.odd.own_clients import (
    DuckDB,
    MariaDB,
    PostgreSQL,
    SQLite,
)
from tests.support.feature_engine.odd.own_tables import OwnTable
from tests.support.feature_engine.odd.own_types import KINDS, MISFIT, held
from tests.support.feature_engine.odd.source import TYPES
from tests.support.stores.mariadb import mariadb  # noqa: F401  (a fixture)
from tests.support.stores.postgres import postgres  # noqa: F401  (a fixture)

pytestmark = pytest.mark.journey

FIRST = int(os.environ["ODD_SEED"])
NIGHT = [
    pytest.param(number, marks=pytest.mark.nightly)
    for number in range(FIRST, FIRST + 10)
]
DUE = "'2026-11-01 10:00:00+00'"


class Door:
    """A drawn table as a source, and an installation that ingests it."""

    def __init__(self, folder, monkeypatch, table):
        self.folder = folder
        self.table = table
        suite = json.dumps({"name": "own_table", "expectations": []})
        (folder / "own_table.json").write_text(suite)
        monkeypatch.setattr(rules, "EXPECTATIONS", folder)
        self.settings = self._settings(table.table)

    def _settings(self, table):
        return new_settings(
            self.folder / "home",
            sources={"own_table": self.table.client.address(table)},
            time_zones={"own_table": self.table.zone},
        )

    def ingest(self):
        """Ingest the table; return its rows, and the entries of quarantine."""
        dataset = self.table.dataset()
        unreadable = {}
        rows = pull(self.settings, dataset, AS_OF, unreadable=unreadable)
        land(self.settings, dataset, rows, AS_OF, unreadable)
        stored = raw_table(self.settings, dataset).read(columns=dataset.schema.names)
        return stored.to_pylist(), quarantine_table(self.settings, dataset).read()

    def refusal(self, name, kind):
        """Return the message that a column cannot be of a kind."""
        own_type = self.table.columns[name]
        keys = (self.table.key, self.table.time)
        columns = {key: self.table.columns[key] for key in keys} | {name: own_type}
        kinds = {key: self.table.kinds[key] for key in keys} | {name: kind}
        place = f"{kind} {[*self.table.columns].index(name)}"
        row = {name: own_type.values[0] if own_type.values else None}
        row |= {self.table.key: "1", self.table.time: self.table.moment}
        self.table.client.write(place, columns, [row])
        settings = self._settings(place)
        with pytest.raises(DataError) as caught:
            pull(settings, self.table.dataset(kinds), AS_OF).read_all()
        return str(caught.value)


def check(folder, monkeypatch, table):
    shown = table.write()
    door = Door(folder, monkeypatch, table)
    rows, entries = door.ingest()
    landed, refused = table.expected(shown)
    found = {row[table.key]: row for row in rows}
    assert found.keys() == landed.keys()
    assert [*differences(table, found, landed)] == []
    entries = {
        json.loads(entry["row"])[table.key]: entry for entry in entries.to_pylist()
    }
    assert entries.keys() == refused.keys()
    assert [*entry_differences(table, entries, refused)] == []
    check_refusals(door)
    if not isinstance(table.client, SQLite):
        check_judged_columns(table, shown)


def check_judged_columns(table, shown):
    """Check values that no dataset reads: labels, rows to score, predictions of others."""
    rows = read(table.client.address(table.table))
    expected_rows = {held(row[table.key], "int", "UTC"): row for row in shown}
    keys = rows[table.key].to_pylist()
    for name, kind in table.kinds.items():
        if not kind or table.columns[name].kind == "any":
            continue
        judged = judge_column(rows[name].combine_chunks(), TYPES[kind])
        assert judged is not None, table.columns[name]
        values = judged.values.to_pylist()
        for key, value, is_lost in zip(keys, values, judged.is_lost, strict=True):
            shown_value = expected_rows[key][name]
            expected = held(shown_value, kind, "UTC")
            is_misfit = expected is MISFIT
            place = (table.columns[name], shown_value)
            assert repr_of(value) == repr_of(None if is_misfit else expected), place
            is_nan = kind == "float" and str(shown_value).lower() == "nan"
            assert is_lost.as_py() == (is_misfit and not is_nan), place


def differences(table, found, expected):
    """Yield each value that is not the expected one."""
    for key, row in expected.items():
        for name, value in row.items():
            if repr_of(found[key][name]) != repr_of(value):
                yield key, table.columns[name], found[key][name], value


def repr_of(value):
    """Return a value's text, which tells -0.0 from 0.0; times are of one zone."""
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def entry_differences(table, entries, refused):
    """Yield each column at fault that an entry does not name, and each good value that it lacks."""
    for key, (faults, values) in refused.items():
        row = json.loads(entries[key]["row"])
        reasons = entries[key]["rules"]
        for name, value in values.items():
            if name in faults:
                is_named = f"column {name}: expected " in reasons
                is_right = is_named and isinstance(row[name], str)
            else:
                is_time = table.kinds[name] == "time"
                is_right = is_time or repr_of(row[name]) == repr_of(value)
            if not is_right:
                yield key, table.columns[name], row[name], value


def check_refusals(door):
    """Check that a column of another kind, and one that no column can be, is refused by name."""
    table = door.table
    for name in table.kinds:
        if table.columns[name].kind == "any" or name in {table.key, table.time}:
            continue
        own_kind = KINDS.get(table.columns[name].kind)
        others = {"int", "float", "text", "bool", "time"} - {own_kind}
        if own_kind in {"int", "float"}:
            others -= {"int", "float"}
        other = table.chance.choice(sorted(others))
        message = door.refusal(name, other)
        assert f"column {name}: " in message


@pytest.mark.parametrize("seed", [1, *NIGHT])
def test_values_of_sqlite_are_right_or_set_aside(tmp_path, monkeypatch, seed):
    table = OwnTable(SQLite(tmp_path), seed, (DUE, "TIMESTAMPTZ"))
    check(tmp_path, monkeypatch, table)
    # A table in which a text is no UTF-8 is refused there.
    (tmp_path / "texts").mkdir()
    client = SQLite(tmp_path / "texts")
    for number, own_type in enumerate(client.types):
        values = [value for value in own_type.values if "x'" not in value]
        client.types[number] = own_type._replace(values=tuple(values))
    texts = OwnTable(client, seed, (DUE, "TIMESTAMPTZ"))
    check_judged_columns(texts, texts.write())


@pytest.mark.parametrize("seed", [1, *NIGHT])
def test_values_of_duckdb_are_right_or_set_aside(tmp_path, monkeypatch, seed):
    table = OwnTable(DuckDB(tmp_path), seed, (DUE, "TIMESTAMPTZ"))
    check(tmp_path, monkeypatch, table)


@pytest.mark.parametrize("seed", [1, *NIGHT])
def test_values_of_postgresql_are_right_or_set_aside(
    tmp_path, monkeypatch, postgres, seed
):
    table = OwnTable(PostgreSQL(postgres), seed, (DUE, "timestamptz"))
    check(tmp_path, monkeypatch, table)


@pytest.mark.parametrize("seed", [1, *NIGHT])
def test_values_of_mariadb_are_right_or_set_aside(tmp_path, monkeypatch, mariadb, seed):
    mariadb.run("DROP DATABASE gyre; CREATE DATABASE gyre CHARACTER SET utf8mb4")
    table = OwnTable(MariaDB(mariadb), seed, ("'2026-11-01 10:00:00'", "timestamp"))
    check(tmp_path, monkeypatch, table)
