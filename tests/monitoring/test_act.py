"""What is done where there is no going back."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from core.errors import RegistryError
from mlflow_server.records import Records
from monitoring.checks.result import MonitorReport
from monitoring.decision import Inputs, decide
from monitoring.monitor import act
from tests.conftest import new_settings

MODEL, NOW = "customer_churn_model", datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_that_there_was_no_going_back_is_alerted_of_once_and_an_error_each_time(
    tmp_path,
):
    settings = new_settings(tmp_path)  # whose MLflow is down
    inputs = Inputs(NOW, "2", ("ok",), (), "9 of 10 failed", "1", "harm of version 2",
                    answered=False, last_retraining=None, cooldown=timedelta(1),
                    learnable=True)  # fmt: skip
    decision = decide(inputs)
    assert decision.action == "rollback"
    for hour in range(2):
        at = NOW + timedelta(hours=hour)
        report = MonitorReport(MODEL, at, "2", "ok", decision, inputs.cause)
        with pytest.raises(RegistryError, match="does not answer"):
            act(settings, report, [], inputs)
    (line,) = (settings.home / "logs" / "alerts.log").read_text().splitlines()
    assert "which failed: " in json.loads(line)["message"]
    with closing(Records(settings)) as records:
        (row,) = records.alerts(MODEL)
    assert (row["count"], row["delivered"]) == (4, True)
