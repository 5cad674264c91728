"""What is done where there is no going back."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from core.errors import DataError, RegistryError
from core.spec import load_spec
from mlflow_server.alerts import Alerts
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.pyfunc import ModelFile
from mlflow_server.registration import register
from mlflow_server.registry import Registry
from mlflow_server.served_model import CONTRACT_FILE
from mlflow_server.tracking import Tracking
from monitoring.check import CheckResult
from monitoring.collect import KnownOutcomes
from monitoring.decision import Decision
from monitoring.decision_log import newest_decisions
from monitoring.monitor import MonitorReport, act, conclude
from monitoring.past import load_past
from monitoring.run import MonitoringRun
from monitoring.window import Window
from tests.conftest import mlflow_server, new_settings
from tests.s3 import s3_server
from tests.serving.conftest import tiny_onnx

MODEL, NOW = "customer_churn_model", datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_a_rollback_that_fails_is_one_alert_and_an_error_each_time(
    tmp_path,
):
    settings = new_settings(tmp_path)  # whose MLflow is down
    decision = Decision("rollback", "harm", "9 of 10 failed")
    report = MonitorReport(
        model=MODEL, as_of=NOW, version="2", verdict="ok", words="ok", decision=decision,
        cause="harm of version 2",
    )  # fmt: skip
    with closing(Alerts(settings)) as alerts:
        for hour in range(2):
            at = NOW + timedelta(hours=hour)
            problem = act(settings, alerts, replace(report, as_of=at), previous="1")
            assert isinstance(problem, RegistryError)
            assert "does not answer" in str(problem)
            alerts.deliver(MODEL, at)
        (row,) = alerts.rows(MODEL)
    (line,) = (settings.home / "logs" / "alerts.log").read_text().splitlines()
    assert "the rollback failed: " in json.loads(line)["message"]
    assert (row["count"], row["delivered"]) == (4, True)


def registered(settings, key):
    """Register a version whose files nobody reads; return its number."""
    run_id = Tracking(settings).start_or_find_run("0", key, key, {})
    files = settings.home / "extra"
    files.mkdir(exist_ok=True)
    (files / CONTRACT_FILE).write_text("{}")
    return register(
        settings, model=MODEL, run_id=run_id, files=files,
        exported=ModelFile(tiny_onnx(0.5).SerializeToString()),
        input_example=pd.DataFrame({"days": [1.0]}), tags={}, description="tiny",
        requirements=["onnxruntime"],
    ).version  # fmt: skip


def test_a_version_that_harms_is_rolled_back_though_the_bucket_is_gone(
    tmp_path, monkeypatch
):
    settings = new_settings(tmp_path / "home", data_url="s3://gyre/data")
    harm = CheckResult(
        name="serving/failures", kind="harm", status="harmful", words="9 of 10 failed"
    )
    registry = Registry(settings)
    spec = load_spec(MODEL)
    with (
        s3_server(tmp_path, monkeypatch) as bucket,
        mlflow_server(settings),
        closing(Ledger(settings)) as ledger,
        closing(Alerts(settings)) as alerts,
    ):
        for key in ("first", "second"):
            version = registered(settings, key)
            promote(registry, ledger, MODEL, version, who="ann", why="by hand")
        at = datetime.now(UTC)
        run = MonitoringRun(
            settings, spec, "2", at, load_past(settings, spec, "2", at),
            Window(pd.DataFrame(), {}), KnownOutcomes({}, {}), None, tmp_path,
        )  # fmt: skip
        assert conclude(run, [], 0).decision.rule == "ok"
        assert [row.as_of for row in newest_decisions(settings, MODEL)] == [at]
        bucket.kill()
        bucket.wait()
        with pytest.raises(DataError, match="table decisions: "):
            conclude(run, [harm], 0)
        assert registry.production(MODEL) == "1"
        assert ledger.rows(MODEL)[-1].who == "monitor"
        causes = {row["cause"] for row in alerts.rows(MODEL)}
        assert {
            "harm of version 2 (ledger row 2)",
            "decisions cannot be stored",
        } <= causes
