"""The ledger alone in PostgreSQL, as a workflow that promotes into a team's MLflow has it."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest

from mlflow_server.ledger import Ledger
from tests.conftest import new_settings
from tests.postgres import postgres_server


@pytest.mark.nightly
def test_the_ledger_alone_can_be_on_a_server(tmp_path):
    with postgres_server(tmp_path / "postgres.log") as server:
        settings = new_settings(tmp_path / "home", ledger_url=server.address)
        with closing(Ledger(settings)) as ledger:
            assert ledger.rows("customer_churn_model") == []
        with psycopg.connect(server.address) as connection:
            tables = connection.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = 'gyre'"
            ).fetchall()
    assert ("ledger",) in tables
    assert not (settings.home / "ledger.db").exists()
