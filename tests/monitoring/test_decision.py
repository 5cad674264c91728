"""The decision, rule by rule: nothing of it needs a server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from core.monitoring_spec import Monitoring
from monitoring.checks.drift import (
    judge_mean_score,
    judge_nulls,
    judge_psi,
    judge_unseen,
)
from monitoring.checks.guardrails import collapsed, failing
from monitoring.checks.result import CheckResult
from monitoring.checks.volume import collapse
from monitoring.decision import Inputs, decide, judge

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
BAD = Inputs(
    as_of=NOW, version="1", verdicts=("bad", "bad"), findings=("lifetime_orders: PSI 0.41",),
    harm=None, previous=None, cause="drift of version 1", answered=False, last_retraining=None,
    cooldown=timedelta(hours=24), learnable=True,
)  # fmt: skip
LATER = NOW + timedelta(seconds=1)
LIMITS = Monitoring(monitor_only=("tenure",))


@pytest.mark.parametrize(
    ("change", "action", "rule"),
    [
        ({}, "retrain", "drift"),
        ({"verdicts": ()}, "nothing", "insufficient_data"),
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
        ({"answered": True}, "nothing", "answered"),
        ({"last_retraining": NOW - timedelta(hours=23)}, "nothing", "cooldown"),
        ({"last_retraining": NOW - timedelta(hours=24)}, "retrain", "drift"),
        ({"learnable": False}, "alert", "parked"),
        ({"harm": "every score is 0.5", "previous": "7"}, "rollback", "harm"),
        ({"harm": "every score is 0.5"}, "alert", "harm"),
        (
            {"harm": "12 of 100 failed", "previous": "7", "verdicts": ("ok",)},
            "rollback",
            "harm",
        ),
        ({"last_promotion": NOW}, "retrain", "drift"),
        ({"last_promotion": LATER}, "nothing", "stale"),
        ({"last_promotion": LATER, "learnable": False}, "nothing", "stale"),
        (
            {"last_promotion": LATER, "harm": "12 failed", "previous": "7"},
            "nothing",
            "stale",
        ),
        ({"bad_windows": 3}, "nothing", "first_bad_window"),
        (
            {"verdicts": ("bad", "ok", "bad"), "windows": 2},
            "nothing",
            "first_bad_window",
        ),
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


@given(
    st.lists(st.sampled_from(["ok", "bad", "insufficient_data"]), max_size=12),
    st.booleans(),
)
def test_without_two_bad_windows_and_the_newest_bad_nothing_is_retrained(
    verdicts, learnable
):
    found = decide(replace(BAD, verdicts=tuple(verdicts), learnable=learnable))
    enough = verdicts[-5:].count("bad") >= 2 and verdicts[-1:] == ["bad"]
    assert (found.action == "retrain") is (enough and learnable)


def test_stored_inputs_replay_to_the_same_decision():
    stored = TypeAdapter(Inputs).dump_json(BAD)
    assert decide(TypeAdapter(Inputs).validate_json(stored)) == decide(BAD)


def said(*results):
    """What is bad, and what is worth a word."""
    bad = [each.remark for each in results if each.status == "bad"]
    return bad, [each.remark for each in results if each.status == "remark"]


WORSE = CheckResult("online_auc", 0.6, status="bad", remark="auc 0.60")


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ([], "ok"),
        ([WORSE], "bad"),
        ([CheckResult("entities", 199, 200, "unknown"), WORSE], "insufficient_data"),
        ([CheckResult("reference", status="unknown"), WORSE], "insufficient_data"),
        ([CheckResult("nulls_orders", status="unknown")], "insufficient_data"),
        ([CheckResult("nulls_orders", status="unknown"), WORSE], "bad"),
        (
            [CheckResult("skew", status="unknown"), CheckResult("x", status="alert")],
            "ok",
        ),
    ],
)
def test_too_small_a_window_is_insufficient_data_and_never_ok(results, verdict):
    assert judge(results) == verdict


def test_significant_drift_is_bad_moderate_a_remark_and_what_is_only_monitored_never_acts():
    assert said(judge_psi(LIMITS, "orders", 0.24, 250)) == ([], [])
    assert said(judge_psi(LIMITS, "orders", 0.3, 500)) == (["orders: PSI 0.30"], [])
    assert said(judge_psi(LIMITS, "spend", 0.12, 500)) == ([], ["spend: PSI 0.12"])
    assert said(judge_psi(LIMITS, "tenure", 8.0, 500)) == ([], ["tenure: PSI 8.00"])


def test_more_nulls_than_the_reference_has_are_bad():
    assert said(judge_nulls(LIMITS, "orders", 0.0, 0.06, 500))[0] == [
        "orders: 6% null, 0% before"
    ]
    assert (
        judge_nulls(LIMITS, "orders", 0.3, 0.38, 200).status == "ok"
    )  # 2.5 standard errors
    assert judge_nulls(LIMITS, "orders", 0.3, 0.38, 500).status == "bad"


def test_a_column_of_few_values_is_as_a_window_of_few_entities():
    def results(values):
        return (
            judge_psi(LIMITS, "orders", 0.4, values),
            judge_psi(LIMITS, "plan", 0.2, values),
            judge_unseen(LIMITS, "plan", 0.1, "new_categories", values),
            judge_unseen(LIMITS, "orders", 0.1, "out_of_range", values),
        )

    assert said(*results(199)) == (
        [],
        [
            "orders: PSI 0.40 of 199 values, too few to judge",
            "plan: 10% of categories that the reference has not",
            "orders: 10% out of the reference's range",
        ],
    )
    assert len(said(*results(200))[0]) == 3


@pytest.mark.parametrize(
    ("feature", "share", "kind", "status"),
    [
        ("plan", 0.06, "new_categories", "bad"),
        ("plan", 0.02, "new_categories", "remark"),
        ("plan", 0.005, "new_categories", "ok"),
        ("orders", 0.06, "out_of_range", "bad"),
        ("tenure", 1.0, "out_of_range", "remark"),
    ],
)
def test_values_that_the_reference_never_had_are_bad_or_worth_a_word(
    feature, share, kind, status
):
    found = judge_unseen(LIMITS, feature, share, kind, 500)
    assert found.status == status
    assert (found.remark == "") is (status == "ok")
    assert found.remark.startswith(f"{feature}: {share:.0%} o" if found.remark else "")


@pytest.mark.parametrize(
    ("means", "remark"),
    [
        ((0.6, 0.67, 0.2, 0.01), "score: mean 0.67, was 0.6 (+12%)"),
        ((0.6, 0.53, 0.2, 0.01), "score: mean 0.53, was 0.6 (-12%)"),
        ((0.6, 0.65, 0.2, 0.01), ""),
        ((0.6, 0.67, 0.2, 0.03), ""),  # too few to be sure
        ((0.01, 0.08, 5.0, 0.01), ""),  # numbers around 0
    ],
)
def test_another_mean_score_is_bad(means, remark):
    assert judge_mean_score(LIMITS, *means).remark == remark


def test_a_collapse_is_less_than_half_of_what_is_usual():
    assert collapse(LIMITS, 400, 1000)
    assert not collapse(LIMITS, 500, 1000)
    assert not collapse(LIMITS, 0, None)
    assert not collapse(LIMITS, 0, 150)


def harm(scores, threshold, reference, failed, asked):
    return failing(LIMITS, failed, asked) or collapsed(
        LIMITS, scores, threshold, reference
    )


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
    assert (
        harm([0.7] * 200, 0.5, [], 0, 0) == "every one of 200 scores is 0.7"
    )  # no reference
