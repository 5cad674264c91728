"""The decision, rule by rule: nothing of it needs a server."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from mlflow_server.ledger import LedgerRow
from mlflow_server.records import DecisionRow
from monitoring.decision import Inputs, decide, settled
from monitoring.drift import Drift, Means
from monitoring.harm import harm
from monitoring.past import unsolved
from monitoring.verdict import collapse, judge
from stack.spec import DriftLimits

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
BAD = Inputs(
    as_of=NOW, version="1", verdicts=("bad", "bad"), findings=("lifetime_orders: PSI 0.41",),
    harm=None, previous=None, cause="drift of version 1", answered=False, last_retraining=None,
    cooldown=timedelta(hours=24), learnable=True,
)  # fmt: skip
LATER = NOW + timedelta(seconds=1)
LIMITS = DriftLimits(informative=("tenure",))


@pytest.mark.parametrize(
    ("change", "action", "rule"),
    [
        ({}, "retrain", "drift"),
        ({"verdicts": ()}, "nothing", "insufficient_data"),
        ({"verdicts": ("bad", "bad", "insufficient_data")}, "nothing", "insufficient_data"),
        ({"verdicts": ("bad", "bad", "ok")}, "nothing", "ok"),
        ({"verdicts": ("bad",)}, "nothing", "first_bad_window"),
        ({"verdicts": ("bad", "ok", "ok", "ok", "ok", "bad")}, "nothing", "first_bad_window"),
        ({"verdicts": ("bad", "ok", "ok", "ok", "bad")}, "retrain", "drift"),
        ({"answered": True}, "nothing", "answered"),
        ({"last_retraining": NOW - timedelta(hours=23)}, "nothing", "cooldown"),
        ({"last_retraining": NOW - timedelta(hours=24)}, "retrain", "drift"),
        ({"learnable": False}, "alert", "parked"),
        ({"harm": "every score is 0.5", "previous": "7"}, "rollback", "harm"),
        ({"harm": "every score is 0.5"}, "alert", "harm"),
        ({"harm": "12 of 100 failed", "previous": "7", "verdicts": ("ok",)}, "rollback", "harm"),
        ({"tried": (LATER,)}, "retrain", "drift"),
        ({"tried": (NOW, LATER)}, "alert", "escalate"),
        ({"tried": (NOW, LATER), "answered": True}, "alert", "escalate"),
        ({"tried": (NOW, LATER), "verdicts": ("bad", "ok")}, "nothing", "ok"),
        ({"last_promotion": NOW}, "retrain", "drift"),
        ({"last_promotion": LATER}, "nothing", "stale"),
        ({"last_promotion": LATER, "learnable": False}, "nothing", "stale"),
        ({"last_promotion": LATER, "harm": "12 failed", "previous": "7"}, "nothing", "stale"),
    ],
)
def test_the_first_rule_that_fits_decides(change, action, rule):
    found = decide(replace(BAD, **change))
    assert (found.action, found.rule) == (action, rule)
    assert found.reason


def test_twenty_windows_of_one_drift_give_one_retraining():
    actions, verdicts, answered, last = [], (), False, None
    for hour in range(20):
        verdicts = (*verdicts, "bad")
        at = NOW + timedelta(hours=hour)
        found = decide(replace(BAD, as_of=at, verdicts=verdicts, answered=answered,
                               last_retraining=last))  # fmt: skip
        actions.append(found.action)
        if found.action == "retrain":
            answered, last = True, at
    assert actions == ["nothing", "retrain", *["nothing"] * 18]


@given(st.lists(st.sampled_from(["ok", "bad", "insufficient_data"]), max_size=12), st.booleans())
def test_without_two_bad_windows_and_the_newest_bad_nothing_is_retrained(verdicts, learnable):
    found = decide(replace(BAD, verdicts=tuple(verdicts), learnable=learnable))
    enough = verdicts[-5:].count("bad") >= 2 and verdicts[-1:] == ["bad"]
    assert (found.action == "retrain") is (enough and learnable)


def test_stored_inputs_replay_to_the_same_decision():
    stored = TypeAdapter(Inputs).dump_json(BAD)
    assert decide(TypeAdapter(Inputs).validate_json(stored)) == decide(BAD)


def test_inputs_of_an_older_release_replay_too():
    stored = json.loads(TypeAdapter(Inputs).dump_json(BAD))
    assert stored.pop("tried") == []
    assert decide(TypeAdapter(Inputs).validate_python(stored)) == decide(BAD)


def test_what_is_escalated_says_what_was_tried():
    reason = decide(replace(BAD, tried=(NOW - timedelta(days=31), NOW))).reason
    assert "lifetime_orders: PSI 0.41" in reason
    assert "2 retrainings in a row did not help" in reason
    assert "2026-10-20 12:00, 2026-11-20 12:00" in reason


@pytest.mark.parametrize(
    ("verdicts", "over"),
    [
        ((), False),
        (("bad", "bad", "ok"), False),  # it begins with 2 of 5, and ends with fewer
        (("bad", "bad", "ok", "ok", "ok"), False),
        (("bad", "bad", "ok", "ok", "ok", "ok"), True),
        (("bad", "ok"), True),
        (("ok", "insufficient_data"), False),
    ],
)
def test_an_alarm_ends_by_the_measure_by_which_it_began(verdicts, over):
    assert settled(verdicts) is over


def drift(nulls=0.0, **psi):
    return Drift(psi, dict.fromkeys(psi, nulls), dict.fromkeys(psi, 0.0))


def test_too_small_a_window_is_insufficient_data_and_never_ok():
    assert judge(LIMITS, 0, None, [])[0] == "insufficient_data"
    worse = ["auc 0.60 (replay), was 0.70"]
    assert judge(LIMITS, 199, None, worse) == ("insufficient_data", [], worse)
    assert judge(LIMITS, 200, drift(orders=0.0), worse) == ("bad", worse, [])


def test_significant_drift_is_bad_moderate_is_a_note_and_what_is_informative_never_acts():
    assert judge(LIMITS, 250, drift(orders=0.24), []) == ("ok", [], [])
    verdict, bad, notes = judge(LIMITS, 500, drift(orders=0.3, spend=0.12, tenure=8.0), [])
    assert (verdict, bad) == ("bad", ["orders: PSI 0.30"])
    assert notes == ["spend: PSI 0.12", "tenure: PSI 8.00"]


def test_more_nulls_than_the_reference_has_are_bad():
    verdict, bad, _ = judge(LIMITS, 500, drift(nulls=0.06, orders=0.0), [])
    assert (verdict, bad) == ("bad", ["orders: 6% null, 0% before"])
    usual = replace(drift(nulls=0.38, orders=0.0), reference_null_share={"orders": 0.3})
    assert judge(LIMITS, 200, usual, []) == ("ok", [], [])  # 8 points: 2.5 standard errors
    assert judge(LIMITS, 500, usual, [])[0] == "bad"


def test_a_column_of_few_values_is_as_a_window_of_few_entities():
    shares = {"new_categories": {"plan": 0.1}, "out_of_range": {"orders": 0.1}}
    few = replace(drift(orders=0.4, plan=0.2), filled={"orders": 199, "plan": 199}, **shares)
    verdict, bad, notes = judge(LIMITS, 5000, few, [])
    assert (verdict, bad) == ("ok", [])
    assert notes == [
        "orders: PSI 0.40 of 199 values, too few to judge",
        "plan: 10% of categories that the reference has not",
        "orders: 10% out of the reference's range",
    ]
    enough = replace(few, filled={"orders": 200, "plan": 200})
    assert len(judge(LIMITS, 5000, enough, [])[1]) == 3


@pytest.mark.parametrize(
    ("more", "bad", "notes"),
    [
        (
            {"new_categories": {"plan": 0.06}},
            "plan: 6% of categories that the reference has not",
            "",
        ),
        (
            {"new_categories": {"plan": 0.02}},
            "",
            "plan: 2% of categories that the reference has not",
        ),
        ({"new_categories": {"plan": 0.005}}, "", ""),
        ({"out_of_range": {"orders": 0.06}}, "orders: 6% out of the reference's range", ""),
        ({"out_of_range": {"tenure": 1.0}}, "", "tenure: 100% out of the reference's range"),
        ({"means": Means(0.6, 0.67, 0.2, 0.01)}, "score: mean 0.67, was 0.6 (+12%)", ""),
        ({"means": Means(0.6, 0.53, 0.2, 0.01)}, "score: mean 0.53, was 0.6 (-12%)", ""),
        ({"means": Means(0.6, 0.65, 0.2, 0.01)}, "", ""),
        ({"means": Means(0.6, 0.67, 0.2, 0.03)}, "", ""),  # too few to be sure
        ({"means": Means(0.01, 0.08, 5.0, 0.01)}, "", ""),  # numbers around 0
    ],
)
def test_what_the_reference_never_had_and_other_mean_scores_are_bad_or_worth_a_word(
    more, bad, notes
):
    found = replace(drift(orders=0.0), **more)
    assert judge(LIMITS, 500, found, [])[1:] == ([bad] if bad else [], [notes] if notes else [])


def test_a_collapse_is_less_than_half_of_what_is_usual():
    assert collapse(400, 1000) == "400 entities in 24 hours, 1000 are usual"
    assert collapse(0, 1000).drift_type == "volume"
    assert collapse(500, 1000) is None
    assert collapse(0, None) is None
    assert collapse(0, 150) is None


@pytest.mark.parametrize(
    ("scores", "failed", "asked", "says"),
    [
        ([0.7] * 200, 0, 0, "every one of 200 scores is 0.7"),
        ([0.6, 0.9] * 150, 0, 0, "every one of 300 predictions is positive"),
        ([0.1, 0.2] * 150, 0, 0, "every one of 300 predictions is negative"),
        ([0.1, 0.9] * 150, 0, 0, None),
        ([0.7] * 199, 0, 0, None),
        ([], 5, 100, "5 of 100 predictions failed"),
        ([], 4, 100, None),
        ([], 50, 99, None),
    ],
)
def test_harm_is_failures_or_a_collapse_of_the_scores(scores, failed, asked, says):
    assert harm(scores, 0.5, [0.2, 0.8], failed, asked) == says


def test_a_model_that_always_said_one_thing_is_not_harmful_for_saying_it():
    assert harm([0.6, 0.9] * 150, 0.5, [0.7, 0.8], 0, 0) is None


@pytest.mark.parametrize("share", [0.001, 0.01, 0.03])
def test_what_is_rare_in_the_reference_may_be_absent_from_a_window(share):
    often, seldom = 0.1, 0.9
    reference = [seldom] * int(10_000 * share) + [often] * int(10_000 * (1 - share))
    assert harm([0.1, 0.2] * 100, 0.5, reference, 0, 0) is None
    assert harm([0.1, 0.2] * 4000, 0.5, reference, 0, 0) == (
        "every one of 8000 predictions is negative"
    )


def test_most_of_a_model_of_numbers_may_be_zero():
    mostly = [0.0] * 990 + [5.0] * 10
    assert harm([0.0] * 200, None, mostly, 0, 0) is None
    assert harm([0.0] * 2000, None, mostly, 0, 0) == "every one of 2000 scores is 0"
    assert harm([5.0] * 200, None, mostly, 0, 0) == "every one of 200 scores is 5"


def test_numbers_have_no_sides_and_collapse_all_the_same():
    assert harm([60.0, 90.0] * 150, None, [-2.0, 8.0], 0, 0) is None
    assert harm([60.0] * 200, None, [], 0, 0) == "every one of 200 scores is 60"


def test_one_score_for_everybody_is_harm_even_where_it_always_was_so():
    assert harm([0.7] * 200, 0.5, [0.7] * 200, 0, 0) == "every one of 200 scores is 0.7"
    assert harm([0.7] * 200, 0.5, [], 0, 0) == "every one of 200 scores is 0.7"  # no reference


@pytest.mark.parametrize(
    ("ok", "who", "helped", "left"),
    [
        ((), "airflow:asset_triggered", (), 2),
        ((), "airflow:asset_triggered", ("2",), 1),
        ((), "airflow:asset_triggered", ("1",), 2),
        ((), "rollout", (), 2),
        ((), "rollout", ("2",), 1),
        ((), "monitor", (), 2),
        ((), "monitor", ("2",), 2),  # it went back to what had helped once
        ((NOW + timedelta(hours=1),), "monitor", (), 1),
        ((), "airflow:admin", (), 1),
        ((), "ada", (), 1),
    ],
)
def test_retrainings_count_since_a_window_was_ok_or_a_person_promoted_or_one_helped(
    ok, who, helped, left
):
    moments = (NOW, NOW + timedelta(hours=2))
    tried = [DecisionRow("m", "1", at, "bad", "retrain", "drift", "", "", "", {}) for at in moments]
    time = NOW + timedelta(hours=1)
    row = LedgerRow("m", 1, "production", 100, "1", "2", who, "", None, time, time)
    assert unsolved(tried, ok, [row], helped) == tried[-left:]
    waiting = replace(row, applied_at=None)
    assert unsolved(tried, (), [waiting], helped) == tried
