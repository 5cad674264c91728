"""Commands that people wait for: REST and SQL only, without what trains and monitors."""

import json
import sys

import pytest

from core.project import PROJECT
from mlflow_server.promotion.ledger import Ledger
from stack.environment import process_environment
from tests.conftest import mlflow_server, new_settings
from tests.mlflow_server.conftest import new_model
from tests.support.tools.clone import finished

pytestmark = pytest.mark.journey

MODEL = "customer_churn_model"
HEAVY = {"mlflow", "pandas", "scipy", "feast", "pyarrow", "duckdb", "evidently"}
COMMANDS = (
    ("--help", "config"),
    (
        f"promote {MODEL} 1 --reason better",
        f"promote {MODEL} 2 --reason better",
        f"rollback {MODEL} --reason better",
        f"promote {MODEL} 2 --rollout --reason better",
        f"ledger {MODEL}",
    ),
    ("models",),
)
"""Commands of one process: what one of them imports is there for the others, too."""
RUN = """
import json, os, sys
from cli.main import app
for commands in json.loads(sys.argv[1]):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, commands
        continue
    for command in commands:
        sys.argv[1:] = command.split()
        try:
            app()
        except SystemExit as end:
            assert not end.code, command
        print(json.dumps([command, [*sys.modules]]), file=sys.stderr)
    sys.exit()
"""


def test_promotions_and_help_import_no_heavy_package(tmp_path):
    settings = new_settings(tmp_path / "home")
    environment = process_environment(settings)
    environment |= {"RUN": RUN, "COMMANDS": json.dumps(COMMANDS)}
    with mlflow_server(settings):
        new_model(settings, 2, tmp_path, MODEL)
        command = f'{sys.executable} -c "$RUN" "$COMMANDS"'
        done = finished(command, PROJECT, environment)
        outputs = [line for line in done.stderr.splitlines() if line.startswith("[")]
        run = dict(map(json.loads, outputs))
        assert [*run] == [command for group in COMMANDS for command in group]
        for command, modules in run.items():
            assert HEAVY.isdisjoint(modules), command
            assert len(modules) < 1_000, command
        with Ledger(settings) as ledger:
            newest = ledger.rows(MODEL)[-1]
        assert (newest.role, newest.action) == ("shadow", "rollout")
