"""The tables of ledger, decisions and alerts, from one release to the next."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.runtime.migration import MigrationContext
from sqlalchemy import MetaData

from core.errors import RegistryError
from core.settings import PROJECT
from mlflow_server.ledger import Ledger, database
from mlflow_server.migrations import HEAD
from mlflow_server.records import Records
from mlflow_server.window_details import WindowDetails
from tests.conftest import new_settings
from tests.preloaded import commands_folder

KEPT = Path(__file__).parents[1] / "data" / "ledger-519f761.sql"
"""Made by the code of that commit, before there were revisions and the table `windows`."""
MODEL = "customer_churn_model"
OPEN = """
import sys
from pathlib import Path
from core.settings import Settings
from mlflow_server.ledger import Ledger
settings = Settings(home=Path(sys.argv[1]))
print(len(Ledger(settings).rows("customer_churn_model")))
"""


@pytest.fixture
def kept(tmp_path):
    """Settings of a home as the commit left it."""
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.executescript(KEPT.read_text())
    return new_settings(tmp_path)


def revision(home):
    with closing(sqlite3.connect(home / "ledger.db")) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchall()


def test_a_kept_home_is_brought_to_this_release_with_every_row(kept):
    with closing(Ledger(kept)) as ledger, closing(Records(kept)) as records:
        rows = ledger.rows(MODEL)
        decisions = records.decisions(MODEL)
        alerts = [
            row for subject in (MODEL, "orders") for row in records.alerts(subject)
        ]
        records.keep_details(MODEL, decisions[0].as_of, WindowDetails())
        assert len(records.details(MODEL, decisions[0].as_of)) == 1
    assert [(row.to_version, row.why, bool(row.applied_at)) for row in rows] == [
        ("1", "reason 1", True), ("2", "reason 2", True), ("3", "reason 3", False),
    ]  # fmt: skip
    assert [(row.action, row.figures["psi"], row.counted) for row in decisions] == [
        ("nothing", 0.0, None), ("retrain", 0.1, "{}"), ("nothing", 0.2, "{}"),
        ("retrain", 0.3, "{}"),
    ]  # fmt: skip
    assert [(row["message"], row["count"], row["delivered"]) for row in alerts] == [
        ("it's drifted: 31 % more", 2, True), ("silent", 1, False),
    ]  # fmt: skip
    assert revision(kept.home) == [(HEAD,)]


def test_of_processes_that_open_a_kept_home_at_once_one_migrates(kept):
    command = [commands_folder() / "python", "-c", OPEN, str(kept.home)]
    together = [
        subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for process in together:
        out, err = process.communicate(timeout=600)
        assert (process.returncode, out) == (0, b"3\n"), err.decode()
    assert revision(kept.home) == [(HEAD,)]


def test_a_kept_home_has_the_tables_of_a_new_one(kept, tmp_path):
    new = new_settings(tmp_path / "new")
    found = []
    for settings in (new, kept):
        engine = database(settings)
        with engine.connect() as connection:
            found.append(
                produce_migrations(MigrationContext.configure(connection), MetaData())
            )
        engine.dispose()
    assert "ix_decisions_model" in render_python_code(found[0].downgrade_ops)
    assert render_python_code(found[1].downgrade_ops) == render_python_code(
        found[0].downgrade_ops
    )


def test_tables_of_a_newer_release_are_refused_and_stay_as_they_are(kept):
    Ledger(kept).close()
    with closing(sqlite3.connect(kept.home / "ledger.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RegistryError, match="of a newer release"):
        Ledger(kept)
    assert revision(kept.home) == [("9999",)]
