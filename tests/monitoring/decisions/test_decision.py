"""The decision, rule by rule: nothing of it needs a server."""

from dataclasses import replace
from datetime import timedelta

import pytest

from mlflow_server.api.tracking import Run
from monitoring.check import CheckResult
from monitoring.checks.volume import usual_entities
from monitoring.decisions.causes import last_retraining
from monitoring.decisions.decision import Inputs, decide, describe, judge
from tests.support.monitoring.log_lines import NOON
from tests.support.monitoring.year import decision_row

HOUR = timedelta(hours=1)
BAD = Inputs(
    as_of=NOON, version="1", verdicts=("bad", "bad"), findings=("lifetime_orders: PSI 0.41",),
    harm=None, previous=None, last_retraining=None, last_promotion=None,
    cooldown=24 * HOUR, windows=5, bad_windows=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "action", "rule"),
    [
        ({}, "retrain", "drift"),
        ({"verdicts": ("bad", "bad", "unknown")}, "nothing", "unknown"),
        (
            {"verdicts": ("bad", "bad", "insufficient_data")},
            "nothing",
            "insufficient_data",
        ),
        ({"verdicts": ("bad", "bad", "ok")}, "nothing", "ok"),
        ({"verdicts": ("bad",)}, "nothing", "first_bad_window"),
        (
            {"verdicts": ("bad", "ok", "ok", "ok", "ok", "bad")},
            "nothing",
            "first_bad_window",
        ),
        ({"verdicts": ("bad", "ok", "ok", "ok", "bad")}, "retrain", "drift"),
        ({"last_retraining": NOON - 23 * HOUR}, "nothing", "cooldown"),
        ({"last_retraining": NOON - 24 * HOUR}, "retrain", "drift"),
        ({"nothing_new": "the next rows mature at noon"}, "nothing", "nothing_new"),
        ({"harm": "every score is 0.5", "previous": "7"}, "rollback", "harm"),
        ({"harm": "every score is 0.5"}, "alert", "harm"),
        ({"last_promotion": NOON + timedelta(seconds=1)}, "nothing", "stale"),
        ({"bad_windows": 3}, "nothing", "first_bad_window"),
    ],
)
def test_the_first_matching_rule_decides(change, action, rule):
    decision = decide(replace(BAD, **change))
    assert (decision.action, decision.rule) == (action, rule)
    assert decision.reason


def test_twenty_windows_of_one_drift_give_one_retraining():
    actions = []
    inputs = replace(BAD, verdicts=())
    for hour in range(20):
        at = NOON + hour * HOUR
        inputs = replace(inputs, as_of=at, verdicts=(*inputs.verdicts, "bad"))
        actions.append(decide(inputs).action)
        if actions[-1] == "retrain":
            inputs = replace(inputs, last_retraining=at)
    assert actions == ["nothing", "retrain", *["nothing"] * 18]


@pytest.mark.parametrize(
    ("status", "run_ids", "counts"),
    [
        ("FINISHED", {"a"}, True),
        ("FINISHED", {"b"}, False),  # refused by a gate
        ("FAILED", (), True),
        ("RUNNING", (), True),
        (None, (), True),  # not begun
    ],
)
def test_a_retraining_that_made_no_version_uses_up_no_cooldown(status, run_ids, counts):
    decisions = [
        decision_row(
            model="m", version="1", as_of=NOON - hours * HOUR, action="retrain"
        )
        for hours in (30, 3)
    ]
    trainings = []
    for name, moment in (("first", NOON - 29 * HOUR), ("a", NOON - 2 * HOUR)):
        tags = {"as_of": moment.isoformat()}
        trainings.append(Run(name, None, "FINISHED", moment, {}, {}, tags))
    if status is None:
        trainings.pop()
    else:
        trainings[1] = replace(trainings[1], status=status)
    last = last_retraining(decisions, trainings, {"first", *run_ids})
    assert last == NOON - (3 if counts else 30) * HOUR


def result(name="psi/orders", kind="data_drift", **more):
    return CheckResult(name=name, kind=kind, **more)


WORSE = result("online/auc", "concept_drift", status="bad", words="auc 0.60")
FEW = result("volume/entities", "volume", status="note", value=199, limit=200)
UNKNOWN = result("report", "report", status="unknown", words="Evidently is missing")


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ([], "ok"),
        ([WORSE], "bad"),
        ([replace(WORSE, acts=False)], "ok"),
        ([FEW, WORSE], "insufficient_data"),
        ([replace(FEW, value=200)], "ok"),
        ([result("reference", "reference", status="unknown")], "insufficient_data"),
        ([UNKNOWN], "unknown"),
        ([UNKNOWN, WORSE], "bad"),
        ([result("skew/share", "skew", status="unknown")], "ok"),
        ([result("serving/failures", "serving", status="alert")], "ok"),
    ],
)
def test_only_acting_results_decide_the_verdict(results, verdict):
    assert judge(results) == verdict


def test_a_verdict_is_described_in_one_sentence():
    psi = result(value=0.12, feature="orders")
    passive = result("psi/tenure", status="bad", value=8.0, acts=False)
    performance = result(
        "online/f1", "performance_drift", limit=0.6, words="f1 0.70, was 0.71"
    )
    assert describe("ok", [psi, passive, performance]) == (
        "ok: no feature drifts (largest PSI 0.12, orders); "
        "performance holds: f1 0.70, was 0.71; monitor-only findings: 1"
    )
    assert describe("ok", [psi]).endswith("performance is not known yet")
    few = replace(FEW, words="199 entities, a verdict needs 200")
    assert describe("insufficient_data", [few]).startswith("insufficient data: 199 ")


def test_the_causes_of_a_bad_verdict_are_the_worst_first():
    near = result("psi/near", status="bad", value=0.3, limit=0.25, words="near")
    far = result("psi/far", status="bad", value=0.9, limit=0.25, words="far")
    below = result("online/f1", status="bad", value=0.3, limit=0.6, words="below")
    results = [near, WORSE, far, below]
    assert describe("bad", results) == "bad: far; below; near; auc 0.60"


def test_the_usual_number_of_entities_ignores_a_collapse():
    assert usual_entities([1000, 1000]) is None
    assert usual_entities([1000, 900, 1100]) == 1000
    assert usual_entities([1000, 1000, 1000, 10, 20]) == 1000
