"""The loop closes by itself on the real history: `gyre demo`, and what it leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import closing

import psutil
import pytest

from core.settings import Settings
from mlflow_server.alerts import Alerts
from mlflow_server.ledger import Ledger
from monitoring.decision_log import newest_decisions
from stack.processes import members
from tests.conftest import BIN

MODEL = "customer_churn_model"
LIMIT = 900
pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Settings of the demo's home once it is over, and what it said."""
    home = tmp_path_factory.mktemp("demo") / "home"
    own = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("GYRE_", "PROMETHEUS_"))
    }
    done = subprocess.run(
        [str(BIN / "gyre"), "demo", "--home", str(home)],
        env=own, capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Settings(home=home), done.stdout


def test_drift_in_a_better_version_answering_out(told):
    _, text = told
    assert "version 1 at first, version 2 now: ok" in text
    assert '"model_version": "2"' in text
    assert re.search(r"gate passed: log_loss minus that of version 1 is -0\.\d+", text)


def test_it_is_told_how_long_the_loop_took(told):
    started = re.search(r"verdict to training started: ([\d.]+) s", told[1])
    served = re.search(r"verdict to new version serving: ([\d.]+) s", told[1])
    assert started is not None
    assert served is not None
    assert float(started[1]) < float(served[1]) < 300


def test_the_ledger_says_that_drift_brought_the_new_version_and_of_which_features(told):
    settings, text = told
    with closing(Ledger(settings)) as ledger:
        first, second = ledger.rows(MODEL)
    assert (first.to_version, second.from_version, second.to_version) == ("1", "1", "2")
    assert second.who == "airflow:asset_triggered"
    assert re.match(
        r"drift of version 1, labels up to [\d-]+: .*\w+: PSI \d", second.why
    )
    assert second.why in text


def test_one_retraining_was_decided_and_one_alert_went_out(told):
    settings, _ = told
    decided = newest_decisions(settings, MODEL, action="retrain")
    with closing(Alerts(settings)) as alerts:
        (alert,) = alerts.rows(MODEL)
    assert len(decided) == 1
    assert (alert["cause"], alert["delivered"]) == (decided[0].cause, True)
    lines = (settings.home / "logs" / "alerts.log").read_text().splitlines()
    assert len(lines) == 1


def test_a_folder_that_holds_a_stack_is_not_told_over(told):
    before = (told[0].home / "gyre.env").read_bytes()
    again = subprocess.run(
        [str(BIN / "gyre"), "demo", "--home", str(told[0].home)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (again.returncode != 0, "holds a stack already" in again.stderr) == (
        True,
        True,
    )
    assert (told[0].home / "gyre.env").read_bytes() == before


def test_nothing_of_it_is_left_running(told):
    assert [
        process for process in members(told[0].home) if psutil.pid_exists(process.pid)
    ] == []
