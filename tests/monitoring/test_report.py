"""Evidently's report decides: figures, limits and statuses are read from its tests."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from evidently.core import metric_types

from core.monitoring_spec import Monitoring
from core.spec import MISSING
from monitoring.checks.performance import MeasuredMetric
from monitoring.checks.report import report_results
from monitoring.checks.report_metrics import (
    Samples,
    check_result,
    report_lines,
    run_report,
)
from training.psi import UsualSpread, usual_spread
from training.reference import Reference

LIMITS = Monitoring()
DRAW = np.random.default_rng(0)
FULL = pd.DataFrame(
    {
        "orders": DRAW.normal(size=400),
        "plan": DRAW.choice(["a", "b"], 400).astype(object),
        "score": DRAW.random(400),
    }
)
EMPTY = FULL.assign(orders=np.nan)


def reference_of(rows, spread=None):
    return Reference(
        rows=rows.assign(label=1.0),
        features={},
        snapshot=datetime(2026, 11, 1, tzinfo=UTC),
        threshold=0.5,
        task="classification",
        evaluated={"f1": 0.7},
        spread=spread or UsualSpread(),
    )


def measured(value, limit):
    return MeasuredMetric(
        name="online/f1",
        metric="f1",
        value=value,
        low=value - 0.05,
        high=value + 0.05,
        limit=limit,
        lower_is_better=False,
        rows=500,
        words=f"f1 is {value}, it was 0.7",
    )


@pytest.fixture
def results(tmp_path):
    """What a report of `window` says, by name."""

    def run(reference, window, *, metrics=(), spread=None):
        reference = reference_of(reference, spread)
        found = report_results(LIMITS, reference, window, metrics, tmp_path)
        return {result.name: result for result in found}

    return run


def of_status(results, status):
    return {name for name, result in results.items() if result.status == status}


def test_a_column_is_compared_in_each_way(results):
    found = results(FULL, FULL, metrics=[measured(0.71, 0.65), measured(0.7, None)])
    features = {"orders": "ks", "plan": "chi2", "score": "ks"}
    expected = {"online/f1", "mean/score", "unseen/orders", "unseen/plan"}
    for name, test in features.items():
        expected |= {f"psi/{name}", f"missing/{name}", f"{test}/{name}"}
    assert found.keys() == expected
    assert of_status(found, "ok") == expected
    assert found["ks/orders"].limit is None
    assert found["psi/score"].kind == found["mean/score"].kind == "prediction_drift"
    assert found["psi/orders"].words == "orders: PSI 0.00, from 0.25 it counts as drift"


def test_report_results_and_tests_show_the_same_figures(results, tmp_path):
    moved = FULL.assign(orders=FULL["orders"] + 1, score=FULL["score"] * 0.5)
    found = results(FULL, moved, metrics=[measured(0.5, 0.65)])
    report = json.loads((tmp_path / "report.json").read_text())
    shown = {}
    for metric in report["metrics"]:
        config = metric["config"]
        kind = config["type"].rpartition(":")[2]
        place = (kind, config.get("column"), config.get("method"))
        value = metric["value"]
        shown[place] = value["share"] if isinstance(value, dict) else value
    for name in ("orders", "plan", "score"):
        psi = shown["ValueDrift", name, "psi_reference_deciles"]
        assert found[f"psi/{name}"].value == psi
        assert found[f"missing/{name}"].value == shown["MissingValueCount", name, None]
    assert found["ks/orders"].value == shown["ValueDrift", "orders", "ks"]
    assert found["mean/score"].value == shown["MeanValue", "score", None]
    assert found["unseen/orders"].value == shown["OutRangeValueCount", "orders", None]
    assert found["online/f1"].value == 0.5

    failed = [test for test in report["tests"] if test["status"] == "FAIL"]
    bad = of_status(found, "bad")
    assert bad == {"psi/orders", "psi/score", "mean/score", "online/f1"}
    told = {name for name in bad for test in failed
            if f"Actual value {found[name].value:0.3f}" in test["description"]}  # fmt: skip
    assert (len(failed), told) == (len(bad), bad)


def test_the_verdict_is_that_of_the_reports_tests_and_nothing_else():
    reference = reference_of(FULL)
    lines = report_lines(LIMITS, reference, FULL, [])
    samples = Samples(reference=FULL, window=FULL, reference_rows=400, window_rows=400)
    snapshot, lines = run_report(lines, samples)
    line = next(line for line in lines if line.name == "psi/orders")
    assert check_result(line, snapshot).status == "ok"
    result = snapshot.metric_results[line.metric.metric_id]
    result.value = 0.77
    moderate, significant = result.tests
    moderate.status = metric_types.TestStatus.WARNING
    changed = check_result(line, snapshot)
    assert (changed.status, changed.value) == ("note", 0.77)
    assert "PSI 0.77" in changed.words
    significant.status = metric_types.TestStatus.FAIL
    assert check_result(line, snapshot).status == "bad"


def test_without_evidently_all_is_unknown(tmp_path):
    script = """
import sys
sys.modules["evidently"] = None
from datetime import UTC, datetime
from pathlib import Path
import pandas as pd
from core.monitoring_spec import Monitoring
from monitoring.checks.report import report_results
from training.psi import UsualSpread
from training.reference import Reference
rows = pd.DataFrame({"orders": range(400), "score": 0.5, "label": 1.0})
now = datetime.now(UTC)
reference = Reference(rows, {}, now, 0.5, "classification", {}, UsualSpread())
for result in report_results(Monitoring(), reference, rows, [], Path()):
    print(result.name, result.status, result.words)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    words = "Evidently made no report: ModuleNotFoundError"
    assert done.stdout == f"report unknown {words}\n", done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("reference", "window", "status"),
    [(FULL, EMPTY, "bad"), (EMPTY, FULL, "unknown"), (EMPTY, EMPTY, "unknown")],
)
def test_a_column_without_values_is_judged_by_what_is_missing(
    results, reference, window, status
):
    found = results(reference, window)
    assert found["missing/orders"].status == status
    assert "psi/orders" not in found
    assert of_status(found, "ok") == found.keys() - {"missing/orders"}


def test_a_text_that_is_null_counts_as_null_though_a_model_is_given_a_word_for_it(
    results,
):
    def plans(nulls):
        texts = np.where(np.arange(400) < nulls, MISSING, FULL["plan"])
        return FULL.assign(plan=texts.astype(object))

    found = results(plans(40), plans(76))
    assert found["missing/plan"].value == 0.19
    assert of_status(found, "bad") == {"missing/plan"}
    assert found["missing/plan"].words == (
        "plan: 19% missing, 10% in the reference; from 15% it counts"
    )
    assert of_status(results(plans(0), plans(400)), "bad") == {"missing/plan"}


@pytest.mark.parametrize("size", [0, 100])
def test_few_values_are_worth_a_note_and_never_bad(results, size):
    moved = FULL.assign(orders=FULL["orders"] + 9, score=FULL["score"] * 0.1)
    found = results(FULL, moved.head(size))
    assert of_status(found, "bad") == set()
    if size:
        assert "psi/orders" in of_status(found, "note")
        assert found["psi/orders"].words.endswith("of 100 values, too few to judge")


@pytest.mark.parametrize("numbers", [[0.3, 0.1 + 0.2], [1e16, 1e16 + 2]])
def test_a_metric_that_raises_is_unknown_and_the_others_stand(
    results, tmp_path, numbers
):
    """Evidently has no histogram of numbers that are so close together."""
    near = FULL.assign(orders=numbers * 200)
    found = results(near, near.assign(score=near["score"] * 0.5))
    assert of_status(found, "unknown") == {"psi/orders", "ks/orders"}
    assert of_status(found, "bad") == {"psi/score", "mean/score"}
    assert found["psi/orders"].words.endswith("cannot measure it: ValueError")
    assert "psi_reference_deciles" in (tmp_path / "report.json").read_text()


@pytest.mark.parametrize("task", ["many classes", "numbers"])
def test_other_tasks_have_their_predictions_compared(results, task):
    rows = FULL.assign(score=FULL["score"] * 1000 - 500)
    moved = rows.assign(score=rows["score"] + 400)
    changed = {"psi/score", "mean/score", "unseen/score"} - {"unseen/score"}
    if task == "many classes":
        rows = FULL.assign(predicted_class=FULL["plan"])
        moved = rows.assign(predicted_class="b")
        changed = {"psi/predicted_class"}
    found = results(rows, moved)
    assert of_status(found, "bad") == changed
    assert {found[name].kind for name in changed} == {"prediction_drift"}


def test_a_category_is_text_and_never_part_of_the_page(results, tmp_path):
    plans = np.where(FULL["plan"] == "a", "</script><script>alert(1)</script>", "<b>")
    rows = FULL.assign(plan=plans.astype(object))
    found = results(rows, rows.assign(plan="<script>"))
    assert of_status(found, "bad") == {"psi/plan", "unseen/plan"}
    page = (tmp_path / "report.html").read_text()
    assert "script>alert(1)" in page
    assert "<script>alert(1)" not in page


def test_new_categories_are_those_beyond_what_the_reference_makes_likely(results):
    drawn = np.random.default_rng(5)
    share = 1.0 / np.arange(1, 5001)

    def rows(count, more=0):
        names = drawn.choice(5000, count, p=share / share.sum()).astype(str)
        postcode = [*names, *["0000"] * more]
        return pd.DataFrame(
            {"postcode": postcode, "score": drawn.random(len(postcode))}
        )

    reference = rows(5000)
    assert of_status(results(reference, rows(2000)), "bad") == set()
    found = results(reference, rows(1800, more=200))
    assert "unseen/postcode" in of_status(found, "bad")


def test_the_whole_window_is_counted_and_a_sample_is_compared(results, tmp_path):
    many = FULL.sample(200_300, replace=True, random_state=1)
    found = results(many, many)
    report = json.loads((tmp_path / "report.json").read_text())
    values = {metric["metric_name"]: metric["value"] for metric in report["metrics"]}
    assert values["RowCount()"] == 200_000
    assert 200_300 in values.values()
    assert of_status(found, "bad") == set()


def trips(days=14, rows=500):
    """An event-time label: each trip a row, its carrier's delay one of 16 that move slowly."""
    drawn = np.random.default_rng(8)
    start = pd.Timestamp("2026-11-01", tz="UTC")
    delays = drawn.normal(20, 8, 16)
    frames = []
    for day in range(days):
        delays = delays + drawn.normal(0, 4, 16)
        delay = delays[drawn.integers(0, 16, rows)]
        minutes = drawn.integers(0, 24 * 60, rows)
        frames.append(
            pd.DataFrame(
                {
                    "trip": np.arange(rows) + day * rows,
                    "event_timestamp": start
                    + pd.to_timedelta(day * 1440 + minutes, unit="min"),
                    "distance": drawn.gamma(3, 300, rows),
                    "carrier_delay": delay,
                    "score": np.clip(
                        0.2 + delay / 200 + drawn.normal(0, 0.05, rows), 0, 1
                    ),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def test_a_second_entity_of_few_values_is_ok_on_its_own_days_and_its_shift_is_found(
    results,
):
    rows = trips()
    columns = ["distance", "carrier_delay", "score"]
    days = [day for _, day in rows.groupby(rows["event_timestamp"].dt.date)]
    spread = usual_spread(rows, rows, ["trip"])
    assert spread.basis == "windows"
    assert list(spread.wide_features(LIMITS)) == ["carrier_delay"]
    for day in days:
        replayed = results(rows[columns], day[columns], spread=spread)
        assert of_status(replayed, "bad") == set()
    alarms = [results(rows[columns], day[columns]) for day in days[2::4]]
    assert all("psi/carrier_delay" in of_status(found, "bad") for found in alarms)
    newest = days[-1][columns]
    shifted = newest.assign(carrier_delay=newest["carrier_delay"] + 20)
    found = results(rows[columns], shifted, spread=spread)
    assert "psi/carrier_delay" in of_status(found, "bad")
    assert "normal windows reach" in found["psi/carrier_delay"].words
