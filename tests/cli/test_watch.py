"""`gyre monitor` and `gyre decide`, as a shell starts them."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from monitoring.decision import INPUTS, Inputs, decide
from monitoring.decision_log import DecisionRow, store_decision
from tests.cli.clone import gyre
from tests.conftest import mlflow_server, new_settings

MODEL = "customer_churn_model"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
INPUT = Inputs(
    as_of=NOW, version="1", verdicts=("bad", "bad"), findings=("total_spend_30d: PSI 0.31",),
    harm=None, previous=None, last_retraining=None, last_promotion=NOW - timedelta(days=2),
    cooldown=timedelta(hours=24), windows=5, bad_windows=2,
)  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


def test_decide_explains_the_last_decision_by_its_inputs_and_repeats_it(settings):
    decision = decide(INPUT)
    row = DecisionRow(
        MODEL, "1", NOW, "bad", decision.action, decision.rule, decision.reason,
        "drift of version 1", "bad: total_spend_30d: PSI 0.31",
        INPUTS.dump_json(INPUT).decode(), 900,
    )  # fmt: skip
    store_decision(settings, row)
    text = gyre(settings, f"decide {MODEL} --explain").stdout
    for part in (
        "version 1: retrain",
        "rule: drift",
        "total_spend_30d: PSI 0.31",
        "the same",
        '"last_promotion": "2026-11-18T12:00:00Z"',
        '"cooldown": "P1D"',
    ):
        assert part in text
    document = json.loads(gyre(settings, f"decide {MODEL} --explain --json").stdout)
    assert (document["rule"], document["agrees"]) == ("drift", True)
    assert document["inputs"]["verdicts"] == ["bad", "bad"]


def test_monitoring_without_a_production_version_reports_insufficient_data(
    settings,
):
    with mlflow_server(settings):
        text = gyre(settings, f"monitor {MODEL}").stdout
    assert "nothing is in production; nothing (insufficient_data)" in text
