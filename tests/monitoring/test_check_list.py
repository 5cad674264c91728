"""Which checks a run makes: none keeps another from it, a team's own stand in the spec."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from core.errors import DataError
from core.monitoring_spec import Monitoring
from monitoring.check_list import run_checks
from monitoring.checks.concept import label_rate, positive_rate
from monitoring.checks.result import CheckResult

BAD = CheckResult("days", 9.0, 7.0, "bad", "9 days", "delivery", "days")


def late_deliveries(run, reference):
    """As a team writes it."""
    yield (
        BAD
        if len(run.window.rows) > len(reference.rows)
        else CheckResult("days", 1.0, 7.0)
    )


def broken(_run, _reference):
    yield CheckResult("said", 1.0)
    raise ZeroDivisionError("no deliveries")


def run(rows=3, **limits):
    return SimpleNamespace(
        spec=SimpleNamespace(
            monitoring=Monitoring(**limits), segment="plan", classes=()
        ),
        window=SimpleNamespace(
            rows=pd.DataFrame({"plan": ["a"] * rows, "score": [0.9] * rows})
        ),
        judged=(),
    )


REFERENCE = SimpleNamespace(
    rows=pd.DataFrame({"plan": ["a"], "score": [0.1]}),
    population=pd.DataFrame({"plan": ["a", "a", "b"], "score": [0.1, 0.7, 0.2]}),
    said=SimpleNamespace(threshold=0.5),
    y=[0, 1],
)


def test_a_check_of_the_spec_is_one_of_the_run():
    own = f"{__name__}:late_deliveries"
    assert run_checks(run(checks=(own,)), REFERENCE, (), ()) == [BAD]
    assert (
        run_checks(run(checks=(own,)), "its run was deleted", (), ())[0].name
        == "reference"
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (f"{__name__}:broken", "no deliveries"),
        (f"{__name__}:missing", "missing"),
        ("not_there.checks:any", "not_there"),
    ],
)
def test_a_check_that_cannot_be_made_says_why_and_keeps_no_other_from_it(path, said):
    after = f"{__name__}:late_deliveries"
    first, second = run_checks(run(checks=(path, after)), REFERENCE, (), ())
    assert (first.status, second) == ("unknown", BAD)
    assert first.remark.startswith(f"{path} was not measured: ")
    assert said in first.remark


def test_one_of_ours_that_a_store_refuses_is_unknown():
    def freshness(_run, _reference):
        raise DataError("no ingest of orders has ended yet")

    (found,) = run_checks(run(), REFERENCE, (freshness,), ())
    assert (found.status, found.kind) == ("unknown", "freshness")
    assert (
        found.remark == "freshness was not measured: no ingest of orders has ended yet"
    )


def test_what_is_only_monitored_is_a_remark():
    def calibration(_run, _reference):
        yield CheckResult(
            "ece", 0.2, 0.1, "bad", "calibration error 0.2", "calibration", "score"
        )

    for only, status in (((), "bad"), (("calibration",), "remark")):
        found = run_checks(run(monitor_only=only), REFERENCE, (), (calibration,))
        assert [each.status for each in found] == [status]


def test_rates_are_shown_and_judged_where_the_spec_has_a_limit():
    (shown,) = positive_rate(run(200), REFERENCE)
    assert (shown.name, shown.value, shown.status) == ("positive_rate_a", 1.0, "ok")
    (bad,) = positive_rate(run(200, positive_rate=0.2), REFERENCE)
    assert (bad.status, bad.remark) == ("bad", "positive rate of a: 1.000, was 0.500")
    assert list(positive_rate(run(99, positive_rate=0.2), REFERENCE)) == []
    assert list(label_rate(run(), REFERENCE)) == []
