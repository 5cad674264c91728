"""Which checks a run makes: none keeps another from it, a team's own stand in the spec."""

from dataclasses import replace
from math import nan
from types import SimpleNamespace

import pandas as pd
import pytest

from core.spec.monitoring import Monitoring
from monitoring.check import CheckResult, farthest_from_limit
from monitoring.checks.check_list import name_performance, run_checks
from training.evaluation.reference import Reference, UsualSpread

BAD = CheckResult(
    name="delivery/days",
    kind="delivery",
    status="bad",
    feature="days",
    link="/status/churn?tab=checks",
)
REFERENCE = Reference(
    rows=pd.DataFrame({"plan": ["a"]}), features={}, snapshot=None, threshold=0.5,
    evaluated={}, spread=UsualSpread(),
)  # fmt: skip
LATE = f"{__name__}:late_deliveries"


def late_deliveries(run, reference):
    """As a team writes it."""
    if len(run.window.rows) > len(reference.rows):
        yield replace(BAD, link="")


def two_alerts(_run, _reference):
    for name in ("delivery/first", "delivery/last"):
        yield replace(BAD, name=name, status="alert")


def broken(_run, _reference):
    yield replace(BAD, name="delivery/first")
    raise ZeroDivisionError("no deliveries")


def results(*checks, **limits):
    """What a spec's own checks find, by their paths."""
    monitoring = Monitoring(checks=checks, **limits)
    spec = SimpleNamespace(name="churn", monitoring=monitoring)
    window = SimpleNamespace(rows=pd.DataFrame({"plan": ["a"] * 3}))
    run = SimpleNamespace(version="3", spec=spec, window=window)
    return run_checks(run, REFERENCE, (), ())


def test_a_check_of_the_spec_is_part_of_the_run():
    assert results(LATE) == [BAD]


def test_each_alert_of_a_teams_check_is_an_incident_of_its_own():
    alerts = results(f"{__name__}:two_alerts")
    assert [alert.incident for alert in alerts] == [
        "delivery/first of version 3: alert",
        "delivery/last of version 3: alert",
    ]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (f"{__name__}:broken", "ZeroDivisionError"),
        ("not_there.checks:any", "not_there"),
    ],
)
def test_a_failed_check_is_unknown_and_the_others_still_run(path, why):
    first, second = results(path, LATE)
    assert (first.status, second) == ("unknown", BAD)
    assert first.words.startswith(f"{path} was not measured: ")
    assert why in first.words


@pytest.mark.parametrize("name", ["days", "delivery"])
def test_a_monitor_only_result_keeps_its_status_and_does_not_act(name):
    (result,) = results(LATE, monitor_only={name: "a strike"})
    assert result == replace(BAD, acts=False, reason="a strike")


def test_a_figure_that_is_no_number_is_not_the_farthest_from_its_limit():
    far = replace(BAD, value=9.0, limit=1.0)
    near = replace(BAD, value=2.0, limit=1.0)
    unknown = replace(BAD, value=nan, limit=1.0)
    assert farthest_from_limit([unknown, near, far]) == far
    assert farthest_from_limit([unknown]) == unknown


def test_performance_that_falls_without_drift_is_concept_drift():
    worse = replace(BAD, name="online/f1", kind="performance_drift")
    drift = replace(BAD, name="psi/days", kind="data_drift")
    concept_drift = replace(worse, kind="concept_drift")
    assert name_performance([worse], {}) == [concept_drift]
    assert name_performance([worse, drift], {}) == [worse, drift]
    passive = {"days": "grows by a day each day"}
    assert name_performance([worse, drift], passive) == [concept_drift, drift]
