"""The loop closes by itself on the real history: `gyre demo`, and what it leaves behind."""

import os
import re
from contextlib import closing

import pytest

from core.project import PROJECT
from core.settings import Settings
from mlflow_server.alerts import Alerts
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.roles import CHALLENGER, PRODUCTION, SHADOW
from monitoring.decisions.store import newest_decisions
from monitoring.trials.rollout import AUTHOR
from stack.supervisor import members
from tests.conftest import BIN, wait_until
from tests.support.tools.clone import outer_environment, run

MODEL = "customer_churn_model"
STEPS = ["as shadow", "at 5 %", "at 25 %", "at 50 %", "at 100 %"]


def shell():
    """The environment of a shell whose `gyre` is that of a user."""
    return outer_environment() | {"PATH": os.environ["PATH"]}


@pytest.mark.nightly
def test_one_retraining_after_drift_brings_a_better_version_into_production(tmp_path):
    settings = Settings(home=tmp_path / "home")
    command = f"{BIN}/gyre demo --home {settings.home}"
    demo = run(command, PROJECT, shell())
    assert "version 1 at first, version 2 now: ok" in demo
    assert '"model_version": "2"' in demo
    assert "training ended: version 2 is in production, in place of 1" in demo
    seconds = re.search(r"verdict to new version serving: ([\d.]+) s", demo)
    assert float(seconds[1]) < 300

    with closing(Ledger(settings)) as ledger:
        first, second = ledger.rows(MODEL)
    assert (first.to_version, second.from_version, second.to_version) == ("1", "1", "2")
    assert second.who == "airflow:asset_triggered"
    assert re.match(r"drift of version 1: .*\w+: PSI \d", second.why)
    (decision,) = newest_decisions(settings, MODEL, action="retrain")
    with closing(Alerts(settings)) as alerts:
        rows = {row["cause"]: row for row in alerts.rows(MODEL)}
    assert all(row["delivered"] for row in rows.values())
    del rows[decision.cause]
    (cause_of_labels,) = rows  # fewer customers leave than at the evaluation
    assert cause_of_labels.endswith("/label_change of version 1: alert")
    wait_until("the end of all", lambda: not members(settings.home))

    assert "holds a stack already" in run(command, PROJECT, shell(), 1)


@pytest.mark.nightly
def test_a_canary_shows_each_step_from_shadow_to_production(tmp_path):
    settings = Settings(home=tmp_path / "home")
    command = f"{BIN}/gyre demo --canary --home {settings.home}"
    demo = run(command, PROJECT, shell())
    assert "training ended: version 2 is the shadow" in demo
    for step in STEPS:
        assert re.search(rf"version 2 {step}: 3000 answers, \d+ by version", demo)
        assert f"{step}: 0 of " in demo
    assert "version 1 at first, version 2 now: ok" in demo

    with closing(Ledger(settings)) as ledger:
        rows = ledger.rows(MODEL)
    assert [(row.role, row.percent) for row in rows if row.to_version == "2"] == [
        (SHADOW, 100),
        *[(CHALLENGER, percent) for percent in (5, 25, 50, 100)],
        (PRODUCTION, 100),
    ]
    by_rollout = [row.why for row in rows if row.to_version and row.who == AUTHOR]
    assert [why.partition(":")[0] for why in by_rollout] == STEPS
    wait_until("the end of all", lambda: not members(settings.home))
