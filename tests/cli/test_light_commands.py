"""Commands that people wait for: REST and SQL only, without what trains and monitors."""

import json
import sys

from core.project import PROJECT
from mlflow_server.promotion.ledger import Ledger
from stack.environment import process_environment
from tests.conftest import mlflow_server, new_settings
from tests.mlflow_server.conftest import new_model
from tests.support.tools.clone import finished

MODEL = "customer_churn_model"
HEAVY = {"mlflow", "pandas", "scipy", "feast", "pyarrow", "duckdb", "evidently"}
RUN = """
import atexit, json, sys
from cli.main import app
atexit.register(lambda: print(json.dumps([*sys.modules]), file=sys.stderr))
app()
"""


def test_promotions_and_help_import_no_heavy_package(tmp_path):
    settings = new_settings(tmp_path / "home")
    environment = process_environment(settings) | {"RUN": RUN}
    with mlflow_server(settings):
        new_model(settings, 2, tmp_path, MODEL)
        for arguments in (
            "--help",
            f"promote {MODEL} 1 --reason better",
            f"promote {MODEL} 2 --reason better",
            f"rollback {MODEL} --reason better",
            f"promote {MODEL} 2 --rollout --reason better",
            f"ledger {MODEL}",
            "models",
            "config",
        ):
            command = f'{sys.executable} -c "$RUN" {arguments}'
            done = finished(command, PROJECT, environment)
            modules = json.loads(done.stderr.splitlines()[-1])
            assert HEAVY.isdisjoint(modules), arguments
            assert len(modules) < 1_000, arguments
        with Ledger(settings) as ledger:
            newest = ledger.rows(MODEL)[-1]
        assert (newest.role, newest.action) == ("shadow", "rollout")
