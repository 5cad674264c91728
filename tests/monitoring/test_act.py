"""What is done where there is no going back."""

import json
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from core.errors import DataError, RegistryError
from mlflow_server.alerts import Alerts
from mlflow_server.ledger import Ledger
from mlflow_server.registry import Registry
from monitoring.check import CheckResult
from monitoring.collect import KnownOutcomes
from monitoring.decision import Decision
from monitoring.decision_log import newest_decisions
from monitoring.monitor import MonitorReport, act, conclude
from monitoring.past import load_past
from monitoring.run import MonitoringRun
from monitoring.window import Window
from tests.conftest import mlflow_server, new_settings
from tests.monitoring.log import NOON
from tests.s3 import s3_server
from tests.serving.conftest import SPEC, Rig


def test_a_failed_rollback_raises_one_alert_and_an_error_each_time(settings):
    """MLflow is down."""
    decision = Decision("rollback", "harm", "9 of 10 failed")
    report = MonitorReport(
        model="m", as_of=NOON, version="2", verdict="ok", words="ok", decision=decision,
        cause="harm of version 2",
    )  # fmt: skip
    with closing(Alerts(settings)) as alerts:
        for hour in range(2):
            at = NOON + timedelta(hours=hour)
            problem = act(settings, alerts, replace(report, as_of=at), previous="1")
            assert isinstance(problem, RegistryError)
            assert "does not answer" in str(problem)
            alerts.deliver("m", at)
        (row,) = alerts.rows("m")
    (line,) = (settings.home / "logs" / "alerts.log").read_text().splitlines()
    assert "the rollback failed: " in json.loads(line)["message"]
    assert (row["count"], row["delivered"]) == (4, True)


def test_a_harmful_version_is_rolled_back_even_without_the_bucket(
    tmp_path, monkeypatch
):
    settings = new_settings(tmp_path / "home", data_url="s3://gyre/data")
    harm = CheckResult(
        name="serving/failures", kind="harm", status="harmful", words="9 of 10 failed"
    )
    with (
        s3_server(tmp_path, monkeypatch) as bucket,
        mlflow_server(settings),
        closing(Ledger(settings)) as ledger,
        closing(Alerts(settings)) as alerts,
    ):
        rig = Rig(settings, tmp_path, ExitStack())
        for bias in (-1.0, 0.5):
            rig.promote(rig.register(bias).version)
        at = datetime.now(UTC)
        run = MonitoringRun(
            settings, SPEC, "2", at, load_past(settings, SPEC, "2", at),
            Window(pd.DataFrame(), {}), KnownOutcomes({}, {}), None, tmp_path,
        )  # fmt: skip
        assert conclude(run, [], 0).decision.rule == "ok"
        assert [row.as_of for row in newest_decisions(settings, SPEC.name)] == [at]
        bucket.kill()
        bucket.wait()
        with pytest.raises(DataError, match="table decisions: "):
            conclude(run, [harm], 0)
        assert Registry(settings).production(SPEC.name) == "1"
        assert ledger.rows(SPEC.name)[-1].who == "monitor"
        causes = {row["cause"] for row in alerts.rows(SPEC.name)}
    incident = "harm of version 2 (ledger row 2)"
    assert {incident, "decisions cannot be stored"} <= causes
