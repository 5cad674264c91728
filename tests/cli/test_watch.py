"""`gyre monitor` and `gyre decide`, as a shell starts them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cli.watch import report_lines
from core.settings import PROJECT
from monitoring.check import CheckResult
from monitoring.decision import INPUTS, Decision, Inputs, decide
from monitoring.decision_log import DecisionRow, store_decision
from monitoring.monitor import MonitorReport
from stack.environment import child_environment
from tests.cli.clone import finished, outer_environment
from tests.conftest import mlflow_server, new_settings

MODEL = "customer_churn_model"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CAUSE = "drift of version 1"
WORDS = "bad: total_spend_30d: PSI 0.31"
PSI = CheckResult(
    name="psi/score",
    kind="prediction_drift",
    status="note",
    value=0.12,
    words="score: PSI 0.12",
)
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


def report(*results) -> MonitorReport:
    return MonitorReport(
        model=MODEL, as_of=NOW, version="1", verdict="bad", decision=decide(INPUT), words=WORDS,
        cause=CAUSE, entities=900, results=results, left_out={"outside the population": 7},
        malformed=2, outcomes_left_out={"told again": 3},
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


def test_a_decision_that_the_rules_of_today_would_not_take_is_named(settings):
    store(settings, Decision("nothing", "cooldown", "another rule, once"))
    text = gyre(settings, f"decide {MODEL} --explain")
    words = "retrain by drift: total_spend_30d: PSI 0.31"
    assert f"decided again by today's rules: {words}" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("decide {}", 1, f"{MODEL}: nothing was decided yet; run: gyre monitor {MODEL}"),
        ("compare {}", 1, f"promote {MODEL} VERSION --role challenger --percent 10 --reason"),
        ("promote {} 2 --role challenger --reason try", 2, "--percent 10"),
    ],
)  # fmt: skip
def test_an_error_has_the_command_that_comes_next(settings, arguments, code, message):
    assert message in gyre(settings, arguments.format(MODEL), code)


def test_the_report_counts_what_was_left_out_and_has_its_notes():
    tenure = replace(
        PSI, name="psi/tenure", status="bad", words="tenure: PSI 8.00", acts=False, reason="grows"
    )  # fmt: skip
    assert [*report_lines(report(PSI, tenure))] == [
        f"{MODEL} version 1: {WORDS}; retrain (drift)",
        "  note: score: PSI 0.12",
        "  bad: tenure: PSI 8.00 (monitor only: grows)",
        "  left out: 7 outside the population",
        "  left out: 3 outcomes told again",
        "  left out: 2 malformed lines",
    ]


def test_monitoring_with_nothing_in_production_is_insufficient_data_and_no_error(
    settings,
):
    with mlflow_server(settings):
        text = gyre(settings, f"monitor {MODEL}")
    assert "nothing is in production; nothing (insufficient_data)" in text
