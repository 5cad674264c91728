"""The loop closes by itself on the real history: `gyre demo`, and what it leaves behind."""

import os
import re
import subprocess
from contextlib import closing

import pytest

from core.settings import Settings
from mlflow_server.alerts import Alerts
from mlflow_server.ledger import Ledger
from monitoring.decision_log import newest_decisions
from stack.processes import members
from tests.cli.clone import outer_environment
from tests.conftest import BIN, wait_until

MODEL = "customer_churn_model"


def run_demo(home):
    return subprocess.run(
        [BIN / "gyre", "demo", "--home", home],
        env=outer_environment() | {"PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


@pytest.mark.nightly
def test_one_retraining_after_drift_brings_a_better_version_into_production(tmp_path):
    settings = Settings(home=tmp_path / "home")
    demo = run_demo(settings.home)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "version 1 at first, version 2 now: ok" in demo.stdout
    assert '"model_version": "2"' in demo.stdout
    assert "training ended: version 2 is in production, in place of 1" in demo.stdout
    seconds = re.search(r"verdict to new version serving: ([\d.]+) s", demo.stdout)
    assert float(seconds[1]) < 300

    with closing(Ledger(settings)) as ledger:
        first, second = ledger.rows(MODEL)
    assert (first.to_version, second.from_version, second.to_version) == ("1", "1", "2")
    assert second.who == "airflow:asset_triggered"
    why = r"drift of version 1, labels up to [\d-]+: .*\w+: PSI \d"
    assert re.match(why, second.why)
    (decision,) = newest_decisions(settings, MODEL, action="retrain")
    with closing(Alerts(settings)) as alerts:
        (alert,) = alerts.rows(MODEL)
    assert (alert["cause"], alert["delivered"]) == (decision.cause, True)
    wait_until("the end of all", lambda: not members(settings.home))

    again = run_demo(settings.home)
    assert again.returncode != 0
    assert "holds a stack already" in again.stderr
