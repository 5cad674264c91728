"""What is harm, what the log says of a version, and which version is gone back to."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from core.monitoring_spec import Monitoring, Rollout
from mlflow_server.ledger import LedgerRow
from monitoring.checks.serving import (
    judge_refusals,
    judge_serving,
    log_gap,
    surely_better,
)
from monitoring.collect import collect, predictions
from monitoring.harm import (
    Variant,
    collapse,
    collapsed_classes,
    harm,
    measure_variants,
    rollout_limits,
)
from monitoring.past import previous_version
from monitoring.serving_status import ServingCounts, serving_counts
from tests.conftest import new_settings
from tests.monitoring.log import FAILURE, NOON, answer, write
from training.metrics import Scored

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SPREAD = tuple(np.linspace(0, 1, 101).tolist())
FAST = Variant(
    rows=1000,
    requests=1000,
    seconds={"p50": 0.01, "p95": 0.02, "p99": 0.03},
    scored_rows=1000,
    scores=SPREAD,
)
SLOW = {"p50": 0.1, "p95": 0.2, "p99": 0.3}


def results(current, previous=FAST, gap=None):
    figures = judge_serving(Monitoring(), current, previous, 60, gap)
    return {result.name.removeprefix("serving/"): result for result in figures}


@pytest.mark.parametrize(
    ("current", "previous", "is_slow"),
    [
        (replace(FAST, seconds=SLOW), FAST, True),
        (FAST, FAST, False),
        # a few large requests, most as fast as ever
        (replace(FAST, seconds=SLOW | {"p50": 0.01}), FAST, False),
        # many times as long, and a hundredth of a second more
        (
            replace(FAST, seconds=FAST.seconds),
            replace(FAST, seconds=dict.fromkeys(SLOW, 0.001)),
            False,
        ),
        (replace(FAST, seconds=SLOW, requests=99), FAST, False),
        (replace(FAST, seconds=SLOW), replace(FAST, requests=99), False),
        (replace(FAST, seconds=SLOW), Variant(), False),
        (replace(FAST, seconds=SLOW), replace(FAST, seconds=SLOW), False),
    ],
)
def test_slow_is_many_times_as_long_as_the_version_before(current, previous, is_slow):
    figures = results(current, previous)
    assert figures["p95_ms"].status == ("harmful" if is_slow else "ok")
    assert figures["p95_ms"].value == 1000 * current.seconds["p95"]
    assert figures["failures"].status == "ok"
    assert figures["requests_per_minute"].value == current.requests / 60


@pytest.mark.parametrize(
    ("current", "previous", "is_harm"),
    [
        (replace(FAST, failed_rows=51), Variant(), True),
        (replace(FAST, failed_rows=50), Variant(), False),
        (Variant(rows=6, failed_rows=6), Variant(), True),  # of 100 rows too many
        (Variant(rows=5, failed_rows=5), Variant(), False),
        (replace(FAST, failed_rows=100), replace(FAST, failed_rows=100), False),
        # One failure of 23 requests of 1,000 rows is one of 23,000 rows.
        (
            Variant(rows=2000, requests=2, failed_rows=120),
            Variant(rows=23_000, requests=23, failed_rows=1),
            True,
        ),
    ],
)
def test_failures_are_of_rows_whatever_the_size_of_requests(current, previous, is_harm):
    failures = results(current, previous)["failures"]
    assert failures.status == ("harmful" if is_harm else "ok")
    assert failures.value == current.failed_rows / current.rows
    assert ("predictions failed" in failures.words) is is_harm


def test_nothing_that_was_asked_is_no_figure():
    figures = results(Variant())
    assert {*figures} == {"failures", "requests_per_minute"}
    assert (figures["failures"].status, figures["failures"].value) == ("ok", None)


@pytest.mark.parametrize(
    ("now", "then", "reason"),
    [
        ({"a": ServingCounts(3, 1)}, {"a": ServingCounts(3, 1)}, None),
        ({"a": ServingCounts(0, 9)}, None, None),
        ({"a": ServingCounts(4, 1)}, {"a": ServingCounts(3, 1)}, "1 predictions could"),
        ({"a": ServingCounts(2, 0)}, None, "2 predictions could not be logged"),
        ({"a": ServingCounts(2, 1)}, {"a": ServingCounts(3, 1)}, "started again"),
        ({"a": ServingCounts(3, 0)}, {"a": ServingCounts(3, 1)}, "started again"),
        ({"b": ServingCounts(0, 0)}, {"a": ServingCounts(3, 1)}, "started again"),
        (None, {}, "does not answer"),
    ],
)
def test_answers_that_were_not_logged_make_failures_and_latency_unknown(
    now, then, reason
):
    gap = log_gap(now, then)
    assert (gap is None) is (reason is None)
    assert reason is None or reason in gap
    figures = results(replace(FAST, failed_rows=900, seconds=SLOW), gap=gap)
    expected = "unknown" if reason else "harmful"
    assert {figures[name].status for name in ("failures", "p95_ms")} == {expected}
    assert len({figures[name].incident for name in ("failures", "p95_ms")}) == 1


@pytest.mark.parametrize(
    ("refused", "status"), [(5, "ok"), (6, "note"), (104, "note"), (105, "alert")]
)
def test_requests_that_serving_refused_since_the_last_run_are_alerted_of(
    refused, status
):
    counts = {"a": ServingCounts(0, refused)}
    (result,) = judge_refusals(counts, {"a": ServingCounts(0, 5)})
    assert (result.status, result.value) == (status, refused - 5)
    assert [*judge_refusals(None, None)] == []


def test_counts_are_read_from_the_status_of_each_replica():
    counts = {
        "log_failures": {"predictions": 2.0, "feedback": 7.0},
        "requests_refused": {"429": 3.0, "503": 4.0},
    }
    assert serving_counts({"a": {"counts": counts}}) == {"a": ServingCounts(2, 7)}


def test_the_log_says_rows_requests_seconds_and_scores_of_each_role(tmp_path):
    settings = new_settings(tmp_path)
    lines = [answer(f"r{n}", probability=n / 100) for n in range(101)]
    lines += [answer(f"outside {n}", in_population=False) for n in range(9)]
    lines += [answer(f"failed {n}", **FAILURE) for n in range(3)]
    for n, line in enumerate(lines[:100]):
        line["seconds"] = n / 1000
    lines += [answer("trial", role="challenger", version="2")]
    lines += [answer("late", NOON + timedelta(seconds=1)), answer("other", model="n")]
    lines += [answer("early", NOON - timedelta(hours=1))]
    write(settings, "predictions-1-1.jsonl", *lines)
    collect(settings)
    start = NOON - timedelta(hours=1)
    variants = measure_variants(predictions(settings), "m", start, NOON)
    assert {*variants} == {("production", "1"), ("challenger", "2")}
    production = variants["production", "1"]
    assert (production.rows, production.failed_rows) == (113, 3)
    assert (production.requests, production.scored_rows) == (100, 101)
    assert production.seconds == {"p50": 0.049, "p95": 0.094, "p99": 0.098}
    percentiles = np.percentile(np.arange(101) / 100, range(101), method="inverted_cdf")
    assert production.scores == pytest.approx(percentiles.tolist())
    assert variants["challenger", "2"] == Variant(
        rows=1, scored_rows=1, scores=(0.5,) * 101
    )
    assert measure_variants(predictions(settings), "x", start, NOON) == {}


@pytest.mark.parametrize(
    ("scores", "usual", "threshold", "words"),
    [
        ([0.7] * 300, SPREAD, None, "every one of 300 scores is 0.7"),
        ([0.7] * 300, [0.7] * 97 + [0.1] * 3, None, "every one"),
        ([0.7] * 300, [0.7] * 999 + [0.1], None, None),  # likely: 0.74
        ([0.7] * 300, [0.7] * 9, None, "every one"),  # it never had another
        ([0.7] * 300, [], None, "every one"),
        ([0.6, 0.7] * 150, SPREAD, 0.5, "every one of 300 predictions is positive"),
        ([0.3, 0.4] * 150, SPREAD, 0.5, "every one of 300 predictions is negative"),
        ([0.3, 0.4] * 150, [0.2] * 999 + [0.6], 0.5, None),
        ([0.3, 0.4] * 150, [], 0.5, None),
        ([0.6, 0.9] * 150, [0.7, 0.8], 0.5, None),  # it always was positive
        (SPREAD, SPREAD, 0.5, None),
    ],
)
def test_scores_have_collapsed_where_chance_does_not_explain_it(
    scores, usual, threshold, words
):
    problem = collapse(scores, usual, len(scores), threshold)
    assert problem == words if words is None else words in problem


def test_one_class_alone_is_a_collapse_too():
    usual = ["early", "late"] * 50
    words = "every one of 200 predictions is late"
    assert collapsed_classes(["late"] * 200, usual) == words
    assert collapsed_classes(["late"] * 199 + ["early"], usual) is None
    assert collapsed_classes(["late"] * 200, ["late"] * 100) is None


def test_harm_of_a_rollout_names_its_first_reason():
    limits = rollout_limits(Rollout())
    assert harm(FAST, FAST, limits) is None
    worst = replace(FAST, failed_rows=900, seconds=SLOW, scores=(0.7,) * 101)
    assert "failed" in harm(worst, FAST, limits)
    assert "slow" in harm(replace(worst, failed_rows=0), FAST, limits)
    assert "every one" in harm(replace(FAST, scores=(0.7,) * 101), FAST, limits)


def test_the_version_before_is_better_if_it_is_by_every_metric_and_surely_by_its_loss():
    random = np.random.default_rng(5)
    y = random.integers(0, 2, 500)
    good = Scored(
        np.clip(0.5 + (y - 0.5) * 0.6 + random.normal(0, 0.1, 500), 0, 1), 0.5
    )
    poor = Scored(random.random(500), 0.5)
    better = surely_better(y, good, poor, ["f1", "log_loss"], None)
    assert better.startswith("f1 0.9")
    assert ", log_loss 0." in better
    assert surely_better(y, poor, good, ["f1"], None) is None
    assert surely_better(y, good, good, ["f1"], None) is None
    # Of one metric it is not better.
    assert surely_better(y, good, poor, ["f1", "tp"], None)
    assert surely_better(y, good, poor, ["f1", "fp"], None) is None


def ledger(*changes):
    """Rows of (from, to, who)."""
    rows = []
    for before, version, who in changes:
        action = "automatic rollback" if who == "monitor" else "promote"
        change = ("production", 100, before, version, who, "", None, NOW, NOW, action)
        rows.append(LedgerRow("m", len(rows) + 1, *change))
    return rows


FIRST_TWO = [(None, "1", "ann"), ("1", "2", "ann")]


@pytest.mark.parametrize(
    ("changes", "registered", "expected"),
    [
        (FIRST_TWO[:1], "12", None),
        (FIRST_TWO, "12", "1"),
        ([*FIRST_TWO, ("2", "1", "monitor")], "12", None),
        # A hand puts the harmful one back, then a third comes: it is passed over.
        (
            [
                *FIRST_TWO,
                ("2", "1", "monitor"),
                ("1", "2", "ann"),
                ("2", "3", "ann"),
            ],
            "123",
            "1",
        ),
        # Who went back by hand may have had any reason.
        (
            [*FIRST_TWO, ("2", "1", "ann"), ("1", "2", "ann"), ("2", "3", "ann")],
            "123",
            "2",
        ),
        ([*FIRST_TWO, ("2", "3", "ann")], "13", "1"),  # past one that was deleted
        ([*FIRST_TWO, ("2", "3", "ann")], "3", None),
    ],
)
def test_the_monitor_goes_back_to_none_that_it_has_gone_back_from(
    changes, registered, expected
):
    assert previous_version(ledger(*changes), registered) == expected
