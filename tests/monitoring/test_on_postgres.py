"""Two monitoring runs at once where the databases are those of a PostgreSQL, so of all hosts."""

from __future__ import annotations

from contextlib import closing

import pytest

from mlflow_server.ledger import Ledger
from monitoring.monitor import monitor
from tests.conftest import AS_OF, feast_apply
from tests.monitoring.test_monitor import (
    HOUR,
    SPEC,
    log_answers,
    one_of_two_runs_at_once_retrains,
    settings,  # noqa: F401  (fixture)
    today,
)
from tests.postgres import postgres_server


@pytest.mark.nightly
def test_of_two_runs_at_once_one_retrains(settings, tmp_path):
    """18: the first bad window alerts nobody, the second starts one retraining."""
    log_answers(settings, today(settings), "1", AS_OF - HOUR, "today")
    assert monitor(settings, SPEC, AS_OF).verdict == "bad"
    with postgres_server(tmp_path / "log") as server:
        address = server.address.replace("postgres://", "postgresql+psycopg://")
        shared = settings.model_copy(update={"database_url": address})
        with closing(Ledger(settings)) as local, closing(Ledger(shared)) as ledger:
            for row in local.rows(SPEC.name):
                ledger.insert(row)
        feast_apply(shared)
        one_of_two_runs_at_once_retrains(shared)
