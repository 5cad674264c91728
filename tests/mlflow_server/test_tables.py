"""The tables of ledger, decisions and alerts: made once, refused if another release made them."""

import time

import pytest
import sqlalchemy as sql

from core.errors import RegistryError
from core.settings import LAYOUT
from mlflow_server.database import open_database
from tests.conftest import at_most, new_settings
from tests.support.stores.postgres import postgres_server


def contents(engine):
    with engine.connect() as connection:
        tables = sorted(sql.inspect(connection).get_table_names())
        layout = connection.scalar(sql.text("SELECT version_num FROM alembic_version"))
    return tables, layout


def test_a_database_of_another_layout_is_refused_untouched_within_five_seconds(
    empty_database,
):
    engine = open_database(empty_database)
    tables, layout = contents(engine)
    assert {"ledger", "alerts"} <= {*tables}
    assert layout == LAYOUT
    with engine.begin() as connection:
        connection.execute(sql.text("UPDATE alembic_version SET version_num = '0001'"))
        connection.execute(sql.text("DROP TABLE alerts"))
    before = contents(engine)
    began = time.monotonic()
    needed = f"has layout 0001, this release needs layout {LAYOUT}: name a new database"
    with pytest.raises(RegistryError, match=needed):
        open_database(empty_database)
    assert time.monotonic() - began < at_most(5)
    assert contents(engine) == before
    engine.dispose()


@pytest.mark.nightly
def test_the_ledger_can_be_on_a_server_without_the_other_stores(tmp_path):
    with postgres_server(tmp_path / "log") as server:
        settings = new_settings(tmp_path, ledger_url=server.address)
        engine = open_database(settings)
        assert "ledger" in sql.inspect(engine).get_table_names("gyre")
        engine.dispose()
    assert not (settings.home / "ledger.db").exists()
