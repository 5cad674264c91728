"""`gyre monitor` and `gyre decide`, as a shell starts them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cli.watch import report_lines, start_retraining
from monitoring.check import CheckResult
from monitoring.decision import INPUTS, Decision, Inputs, decide
from monitoring.decision_log import DecisionRow, store_decision
from monitoring.monitor import MonitorReport
from stack.environment import child_environment
from tests.conftest import mlflow_server, new_settings
from tests.preloaded import commands_folder

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
SEEN = Inputs(
    as_of=NOW, version="1", verdicts=("bad", "bad"), findings=("total_spend_30d: PSI 0.31",),
    harm=None, previous=None, last_retraining=None, last_promotion=NOW - timedelta(days=2),
    cooldown=timedelta(hours=24), windows=5, bad_windows=2,
)  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


def gyre(settings, *arguments: str, code: int = 0) -> str:
    own = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")}
    done = subprocess.run(
        [commands_folder() / "gyre", *arguments], env=own | child_environment(settings),
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def keep(settings, decision: Decision) -> None:
    store_decision(
        settings,
        DecisionRow(
            MODEL, SEEN.version, NOW, "bad", decision.action, decision.rule, decision.reason,
            CAUSE, WORDS, INPUTS.dump_json(SEEN).decode(), 900,
        )
    )  # fmt: skip


def report(**more) -> MonitorReport:
    values = {
        "model": MODEL, "as_of": NOW, "version": "1", "verdict": "bad", "decision": decide(SEEN),
        "words": WORDS, "cause": CAUSE, "entities": 900, "results": (PSI,),
        "left_out": {"outside the population": 7}, "malformed": 2,
        "outcomes_left_out": {"told again": 3},
    }  # fmt: skip
    return MonitorReport(**(values | more))


def test_the_last_decision_is_explained_by_its_inputs_and_taken_again(settings):
    keep(settings, decide(SEEN))
    text = gyre(settings, "decide", MODEL, "--explain")
    for part in (
        "version 1: retrain",
        "rule: drift",
        "total_spend_30d: PSI 0.31",
        "the same",
    ):
        assert part in text
    assert "  verdicts: bad, bad\n" in text
    assert "  last promotion: 2026-11-18 12:00:00 UTC\n" in text
    assert "limits:\n  cooldown: 1 day, 0:00:00\n  windows: 5" in text
    assert "windows" not in gyre(settings, "decide", MODEL)
    found = json.loads(gyre(settings, "decide", MODEL, "--explain", "--json"))
    assert (found["rule"], found["agrees"], found["cause"]) == ("drift", True, CAUSE)
    assert found["inputs"]["verdicts"] == ["bad", "bad"]
    assert found["words"] == WORDS


def test_a_decision_that_todays_rules_would_not_take_is_said_to_differ(settings):
    keep(settings, Decision("nothing", "cooldown", "another rule, once"))
    text = gyre(settings, "decide", MODEL, "--explain")
    assert (
        "decided again by today's rules: retrain by drift: total_spend_30d: PSI 0.31"
        in text
    )
    assert json.loads(gyre(settings, "decide", MODEL, "--json"))["agrees"] is False


def test_without_a_decision_there_is_a_word_on_what_to_do(settings):
    error = gyre(settings, "decide", MODEL, code=1)
    assert f"{MODEL}: nothing was decided yet; run: gyre monitor {MODEL}" in error


def test_the_report_counts_what_was_left_out_and_says_its_notes():
    psi = replace(PSI, name="psi/tenure", status="bad", words="tenure: PSI 8.00",
                  acts=False, reason="grows")  # fmt: skip
    assert [*report_lines(report(results=(PSI, psi)))] == [
        f"{MODEL} version 1: {WORDS}; retrain (drift)",
        "  note: score: PSI 0.12",
        "  bad: tenure: PSI 8.00 (monitor only: grows)",
        "  left out: 7 outside the population",
        "  left out: 3 outcomes told again",
        "  left out: 2 malformed lines",
    ]


def test_a_retraining_decided_without_airflow_names_the_command_instead(settings):
    line = start_retraining(settings, report())
    assert "no retraining was started" in line
    assert f"gyre train {MODEL} --reason '{CAUSE}: total_spend_30d: PSI 0.31'" in line


def test_monitoring_with_nothing_in_production_is_insufficient_data_and_no_error(
    settings,
):
    with mlflow_server(settings, commands_folder() / "python"):
        text = gyre(settings, "monitor", MODEL)
        found = json.loads(gyre(settings, "monitor", MODEL, "--json"))
    assert "nothing is in production; nothing (insufficient_data)" in text
    assert found["decision"]["action"] == "nothing"


def test_roles_say_what_to_do_where_there_is_nothing_yet(settings):
    error = gyre(settings, "compare", MODEL, code=1)
    assert (
        f"gyre promote {MODEL} VERSION --role challenger --percent 10 --reason" in error
    )
    beside = ["--role", "challenger", "--reason", "try"]
    assert "--percent 10" in gyre(settings, "promote", MODEL, "2", *beside, code=2)
