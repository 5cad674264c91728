"""The tables of ledger, decisions and alerts: made once, refused if another release made them."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sql

from core.errors import RegistryError
from core.settings import LAYOUT
from mlflow_server.ledger import database
from tests.conftest import at_most, new_settings
from tests.postgres import postgres_server


@pytest.fixture(
    params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.nightly)]
)
def settings(request, tmp_path):
    if request.param == "SQLite":
        yield new_settings(tmp_path)
    else:
        with postgres_server(tmp_path / "log") as server:
            yield new_settings(tmp_path, database_url=server.address)


def contents(address):
    engine = sql.create_engine(address)
    with engine.connect() as connection:
        tables = sorted(sql.inspect(connection).get_table_names())
        layout = connection.scalar(sql.text("SELECT version_num FROM alembic_version"))
    engine.dispose()
    return tables, layout


def test_a_database_of_another_layout_is_refused_untouched_within_five_seconds(
    settings,
):
    database(settings).dispose()
    tables, layout = contents(settings.ledger_address)
    assert {"ledger", "alerts"} <= {*tables}
    assert layout == LAYOUT
    engine = database(settings)
    with engine.begin() as connection:
        connection.execute(sql.text("UPDATE alembic_version SET version_num = '0001'"))
        connection.execute(sql.text("DROP TABLE alerts"))
    engine.dispose()
    before = contents(settings.ledger_address)
    began = time.monotonic()
    needed = f"has layout 0001, this release needs layout {LAYOUT}: name a new database"
    with pytest.raises(RegistryError, match=needed):
        database(settings)
    assert time.monotonic() - began < at_most(5)
    assert contents(settings.ledger_address) == before
