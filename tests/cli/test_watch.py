"""`gyre monitor` and `gyre decide`, as a shell starts them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from core.settings import PROJECT
from monitoring.decision import INPUTS, Decision, Inputs, decide
from monitoring.decision_log import DecisionRow, store_decision
from stack.environment import child_environment
from tests.cli.clone import finished, outer_environment
from tests.conftest import mlflow_server, new_settings

MODEL = "customer_churn_model"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CAUSE = "drift of version 1"
WORDS = "bad: total_spend_30d: PSI 0.31"
INPUT = Inputs(
    as_of=NOW, version="1", verdicts=("bad", "bad"), findings=("total_spend_30d: PSI 0.31",),
    harm=None, previous=None, last_retraining=None, last_promotion=NOW - timedelta(days=2),
    cooldown=timedelta(hours=24), windows=5, bad_windows=2,
)  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


def gyre(settings, arguments: str, code: int = 0) -> str:
    outer = outer_environment()
    environment = outer | child_environment(settings) | {"PATH": outer["PATH"]}
    done = finished(f"gyre {arguments}", PROJECT, environment, code)
    return done.stderr if code else done.stdout


def store(settings, decision: Decision) -> None:
    store_decision(
        settings,
        DecisionRow(
            MODEL, INPUT.version, NOW, "bad", decision.action, decision.rule, decision.reason,
            CAUSE, WORDS, INPUTS.dump_json(INPUT).decode(), 900,
        )
    )  # fmt: skip


def test_the_last_decision_is_explained_by_its_inputs_and_taken_again(settings):
    store(settings, decide(INPUT))
    text = gyre(settings, f"decide {MODEL} --explain")
    for part in (
        "version 1: retrain",
        "rule: drift",
        "total_spend_30d: PSI 0.31",
        "the same",
        '"last_promotion": "2026-11-18T12:00:00Z"',
        '"cooldown": "P1D"',
    ):
        assert part in text
    document = json.loads(gyre(settings, f"decide {MODEL} --explain --json"))
    assert (document["rule"], document["agrees"]) == ("drift", True)
    assert document["inputs"]["verdicts"] == ["bad", "bad"]


def test_monitoring_with_nothing_in_production_is_insufficient_data_and_no_error(
    settings,
):
    with mlflow_server(settings):
        text = gyre(settings, f"monitor {MODEL}")
    assert "nothing is in production; nothing (insufficient_data)" in text
