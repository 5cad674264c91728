"""What is harm, what the log says of a version, and which version is gone back to."""

from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from shutil import rmtree

import numpy as np
import pytest

from core.spec.monitoring import Monitoring
from mlflow_server.alerts import Alerts
from mlflow_server.promotion.ledger import LedgerRow
from mlflow_server.roles import RoleAssignment
from monitoring.checks.serving import judge_refusals, judge_serving, log_gap
from monitoring.conclude import MonitorReport, _lock_if_free, act
from monitoring.decisions.decision import Decision
from monitoring.harm import Variant, collapse, collapsed_classes, measure_variants
from monitoring.log.collect import collect
from monitoring.run import previous_version
from monitoring.serving_status import ServingCounts
from tests.monitoring.conftest import alerts
from tests.support.monitoring.log_lines import FAILURE, NOON, answer, write

SPREAD = tuple(np.linspace(0, 1, 101).tolist())
FAST = Variant(
    rows=1000, requests=1000, seconds={"p50": 0.01, "p95": 0.02, "p99": 0.03}
)
SLOW = {"p50": 0.1, "p95": 0.2, "p99": 0.3}


def results(current, previous=FAST, gap=None):
    figures = judge_serving(Monitoring(), current, previous, 60, gap)
    return {result.name.removeprefix("serving/"): result for result in figures}


@pytest.mark.parametrize(
    ("current", "previous", "is_slow"),
    [
        ({"seconds": SLOW}, {}, True),
        # A few large requests, most as fast as ever.
        ({"seconds": SLOW | {"p50": 0.01}}, {}, False),
        # Many times as long, and a hundredth of a second more.
        ({}, {"seconds": dict.fromkeys(SLOW, 0.001)}, False),
        ({"seconds": SLOW, "requests": 99}, {}, False),
        ({"seconds": SLOW}, {"requests": 99}, False),
    ],
)
def test_a_version_is_slow_if_it_takes_many_times_as_long_as_the_previous_version(
    current, previous, is_slow
):
    variant = replace(FAST, **current)
    figures = results(variant, replace(FAST, **previous))
    assert figures["p95_ms"].status == ("harmful" if is_slow else "ok")
    assert figures["p95_ms"].value == 1000 * variant.seconds["p95"]
    assert figures["requests_per_minute"].value == variant.requests / 60


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"a": ServingCounts(3, 1)}, None),
        ({"a": ServingCounts(4, 1)}, "1 predictions could"),
        ({"a": ServingCounts(2, 1)}, "serving restarted"),
        (None, "does not answer"),
    ],
)
def test_unlogged_answers_make_failures_and_latency_unknown(counts, reason):
    gap = log_gap(counts, {"a": ServingCounts(3, 1)})
    assert (gap is None) is (reason is None)
    assert reason is None or reason in gap
    figures = results(replace(FAST, failed_rows=900, seconds=SLOW), gap=gap)
    expected = "unknown" if reason else "harmful"
    assert {figures[name].status for name in ("failures", "p95_ms")} == {expected}


@pytest.mark.parametrize(
    ("refused", "status"), [(0, "ok"), (1, "note"), (99, "note"), (100, "alert")]
)
def test_many_requests_refused_since_the_last_run_raise_an_alert(refused, status):
    counts = {"a": ServingCounts(0, 5 + refused)}
    (result,) = judge_refusals(counts, {"a": ServingCounts(0, 5)})
    assert (result.status, result.value) == (status, refused)


def test_rows_requests_seconds_and_scores_of_each_role_are_measured(settings):
    lines = [answer(f"r{n}", probability=n / 100, seconds=n / 1000) for n in range(101)]
    lines += [answer(f"outside {n}", in_population=False) for n in range(9)]
    lines += [answer(f"failed {n}", **FAILURE) for n in range(3)]
    start = NOON - timedelta(hours=1)
    lines += [
        answer("trial", role="challenger", version="2"),
        answer("other", model="n"),
        answer("deleted", created=1),
        answer("early", start),
        answer("late", NOON + timedelta(seconds=1)),
    ]
    write(settings, "predictions-1-1.jsonl", *lines)
    collect(settings)
    variants = measure_variants(settings, RoleAssignment("m", 0), start, NOON)
    assert {*variants} == {("production", "1"), ("challenger", "2")}
    production = variants["production", "1"]
    assert production == Variant(
        rows=113,
        failed_rows=3,
        requests=101,
        seconds={"p50": 0.05, "p95": 0.095, "p99": 0.099},
        scored_rows=101,
        scores=pytest.approx(SPREAD),
    )
    assert variants["challenger", "2"] == Variant(
        rows=1, scored_rows=1, scores=(0.5,) * 101
    )


@pytest.mark.parametrize(
    ("scores", "usual", "threshold", "words"),
    [
        ([0.7] * 300, SPREAD, None, "every one of 300 scores is 0.7"),
        ([0.7] * 300, [0.7] * 999 + [0.1], None, None),  # likely: 0.74
        ([0.6, 0.7] * 150, SPREAD, 0.5, "every one of 300 predictions is positive"),
        ([0.6, 0.9] * 150, [0.7, 0.8], 0.5, None),  # it always was positive
        (SPREAD, SPREAD, 0.5, None),
    ],
)
def test_scores_have_collapsed_if_chance_does_not_explain_them(
    scores, usual, threshold, words
):
    problem = collapse(scores, usual, len(scores), threshold)
    assert problem == words if words is None else words in problem


def test_a_single_predicted_class_is_a_collapse_too():
    usual = ["early", "late"] * 50
    words = "every one of 200 predictions is late"
    assert collapsed_classes(["late"] * 200, usual) == words
    assert collapsed_classes(["late"] * 199 + ["early"], usual) is None
    assert collapsed_classes(["late"] * 200, ["late"] * 100) is None


@pytest.mark.parametrize(
    ("changes", "registered", "expected"),
    [
        (["ann 1", "ann 2", "monitor 1"], "12", None),
        # Somebody puts the harmful one back, then a third comes: it is passed over.
        (["ann 1", "ann 2", "monitor 1", "ann 2", "ann 3"], "123", "1"),
        (["ann 1", "ann 2", "ann 3"], "13", "1"),  # past one that was deleted
    ],
)
def test_a_rollback_skips_versions_that_were_rolled_back_before(
    changes, registered, expected
):
    rows = []
    before = None
    for number, change in enumerate(changes, 1):
        who, version = change.split()
        action = "automatic rollback" if who == "monitor" else "promote"
        row = LedgerRow("m", number, "production", 100, before, version, who, "", None,
                        NOON, NOON, action)  # fmt: skip
        rows.append(row)
        before = version
    assert previous_version(rows, registered) == expected


def test_a_lock_that_cannot_be_taken_is_handed_to_the_block(settings):
    """So that a harmful version is rolled back without it."""
    with _lock_if_free(settings, "monitor_m") as error:
        assert error is None
    data = settings.home / "data"
    rmtree(data)
    data.write_text("")
    with _lock_if_free(settings, "monitor_m") as error:
        assert "monitor_m.lock: the lock cannot be made: " in str(error)


def test_a_failed_rollback_raises_one_alert_and_an_error_each_time(settings):
    """MLflow is down."""
    decision = Decision("rollback", "harm", "9 of 10 failed")
    report = MonitorReport(
        model="m",
        as_of=NOON,
        version="2",
        verdict="ok",
        words="ok",
        decision=decision,
        cause="harm of version 2",
    )
    with closing(Alerts(settings)) as noted:
        for hour in range(2):
            at = NOON + timedelta(hours=hour)
            problem = act(settings, noted, replace(report, as_of=at), previous="1")
            assert "does not answer" in str(problem)
            noted.deliver("m", at)
    (alert,) = alerts(settings, "m")
    assert "the rollback failed: " in alert["message"]
