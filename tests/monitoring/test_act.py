"""When an alert is over: what a look does not see, could not see, or sees of another version."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_server.alerts import DriftAlert
from mlflow_server.records import Records
from monitoring.act import act
from monitoring.decision import Decision, Inputs, decide
from monitoring.report import MonitorReport
from stack.errors import RegistryError
from tests.conftest import new_settings

MODEL, NOW = "customer_churn_model", datetime(2026, 11, 20, 12, tzinfo=UTC)
SEEN = DriftAlert("score", "data_drift", "critical", None, NOW, "a person must look")


def seen(kind, cause):
    return {cause: DriftAlert("orders", kind, "significant", None, NOW, f"{kind} was seen")}


@pytest.fixture
def look(tmp_path):
    settings = new_settings(tmp_path)

    def at(hours, conditions, *, version="1", unmeasured=(), tried=0, rule="insufficient_data",
           verdicts=("bad",)):  # fmt: skip
        as_of, cause = NOW + timedelta(hours=hours), f"drift of version {version}"
        inputs = Inputs(as_of, version, verdicts, (), None, None, cause, answered=False,
                        last_retraining=None, cooldown=timedelta(1), learnable=True,
                        tried=(NOW,) * tried)  # fmt: skip
        decision = Decision("alert" if rule in {"escalate", "harm"} else "nothing", rule, "why")
        report = MonitorReport(MODEL, as_of, version, verdicts[-1], decision, cause, 0, (), (), {},
                               {}, {}, 0)  # fmt: skip
        act(settings, report, SEEN, conditions, inputs=inputs, unmeasured=unmeasured)
        with closing(Records(settings)) as records:
            (row,) = records.alerts(MODEL)
        told = (settings.home / "logs" / "alerts.log").read_text().splitlines()
        return row["over"] is None, json.loads(told[-1])["message"], len(told)

    return at


SKEW = seen("skew", "skew of version 1: orders")


def test_skew_that_could_not_be_measured_goes_on_until_a_look_does_not_see_it(look):
    assert look(0, SKEW) == (True, "skew was seen", 1)
    assert look(1, {}, unmeasured=("skew",)) == (True, "skew was seen", 1)
    goes_on, said, told = look(2, {})
    assert (goes_on, told) == (False, 2)
    assert said.startswith("over: it is not so any more")


def test_skew_of_a_version_is_over_when_another_answers_though_that_was_not_measured(look):
    look(0, SKEW)
    goes_on, said, _ = look(1, {}, version="11", unmeasured=("skew",))
    assert not goes_on
    assert said.startswith("over: version 11 answers now")


@pytest.mark.parametrize("kind", ["freshness", "volume"])
def test_what_is_always_measured_is_over_once_it_is_not_seen(look, kind):
    look(0, seen(kind, f"{kind} since 2026-11-20 10:00 UTC"))
    goes_on, said, _ = look(1, {}, unmeasured=("skew",))
    assert not goes_on
    assert said.startswith("over: it is not so any more")


def test_an_escalation_is_one_alert_through_all_versions_until_a_person_or_an_ok_window(look):
    assert look(0, {}, tried=2, rule="escalate") == (True, "a person must look", 1)
    assert look(1, {}, tried=2, rule="first_bad_window", version="2")[::2] == (True, 1)
    assert look(2, {}, tried=3, rule="escalate", version="2")[::2] == (True, 1)
    goes_on, said, told = look(3, {}, rule="first_bad_window", version="3")
    assert (goes_on, told) == (False, 2)
    assert said.startswith("over: a window was ok, or a person promoted; it was a person must look")


def test_that_there_was_no_going_back_is_alerted_of_once_and_an_error_each_time(tmp_path):
    settings = new_settings(tmp_path)  # whose MLflow is down
    inputs = Inputs(NOW, "2", ("ok",), (), "9 of 10 failed", "1", "harm of version 2",
                    answered=False, last_retraining=None, cooldown=timedelta(1),
                    learnable=True)  # fmt: skip
    decision = decide(inputs)
    assert decision.action == "rollback"
    for hour in range(2):
        report = MonitorReport(MODEL, NOW + timedelta(hours=hour), "2", "ok", decision,
                               inputs.cause, 0, (), (), {}, {}, {}, 0)  # fmt: skip
        with pytest.raises(RegistryError, match="does not answer"):
            act(settings, report, SEEN, {}, inputs=inputs, unmeasured=())
    (line,) = (settings.home / "logs" / "alerts.log").read_text().splitlines()
    assert "which failed: " in json.loads(line)["message"]
    with closing(Records(settings)) as records:
        (row,) = records.alerts(MODEL)
    assert (row["over"], row["delivered"]) == (None, True)


def test_harm_without_a_way_back_goes_on_though_the_windows_are_ok(look):
    for hour in range(3):
        goes_on, _, told = look(hour, {}, rule="harm", verdicts=("ok",) * 5)
        assert (goes_on, told) == (True, 1)
    goes_on, said, told = look(4, {}, rule="ok", verdicts=("ok",) * 5)
    assert (goes_on, told) == (False, 2)
    assert said.startswith("over: its window is ok again")
