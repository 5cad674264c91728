"""What came true of a logged prediction, and which of them count."""

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest

from core.spec.monitoring import MetricLimit, Monitoring
from feature_repo.labels import label_source
from mlflow_server.roles import RoleAssignment
from monitoring.log.actuals import read_actuals
from monitoring.log.collect import collect
from monitoring.log.outcomes import online_outcomes
from monitoring.log.tables import ANSWERS, answered_rows
from monitoring.measurements.performance import bad_from
from tests.conftest import AS_OF
from tests.support.feature_engine.installation import land_orders
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, SPEC, order
from tests.support.monitoring.log_lines import answer, write

MIDNIGHT = AS_OF.replace(hour=0) - 120 * DAY
NOON = MIDNIGHT + 12 * HOUR


def answered(settings, *rows):
    """Rows (entity, as_of), in the order of their ids."""
    lines = [
        answer(f"r{number}", at, model=SPEC.name, entity=entity)
        for number, (entity, at) in enumerate(rows)
    ]
    write(settings, "predictions-1-1.jsonl", *lines)
    collect(settings)
    answers = answered_rows(settings, pc.field("model") == SPEC.name, ANSWERS)
    return answers.sort_by("request_id")


def test_raw_rows_give_the_outcome_of_a_day_and_feedback_gives_the_others(settings):
    """Who orders is asked about again: that answer has no outcome, and must not hide the others."""
    before = MIDNIGHT - 10 * DAY
    orders = [
        order(1, 1, before), order(2, 1, NOON), order(3, 2, before), order(4, 3, before),
        order(5, 3, MIDNIGHT + 40 * DAY), order(6, 4, before), order(7, 4, MIDNIGHT),
    ]  # fmt: skip
    land_orders(settings, ORDERS, orders, AS_OF)
    answers = answered(
        settings,
        (1, NOON - HOUR),
        (1, NOON + HOUR),  # its order came before it and is no outcome of it
        (2, NOON - HOUR),
        (2, NOON),
        (3, NOON),
        (4, NOON),  # a row of whole days is of the day's beginning
        (9, MIDNIGHT),
        (2, AS_OF - 30 * DAY),  # not known yet
        (None, MIDNIGHT),
    )
    feedback = {"r3": 0.0, "r8": 0.0}
    labels, _ = read_actuals(
        SPEC, label_source(settings, SPEC), answers, feedback, AS_OF
    )
    expected = [0, np.nan, 1, 1, 0, 1, np.nan, np.nan, 0]
    assert labels == pytest.approx(expected, nan_ok=True)
    few = SPEC.monitoring.model_copy(update={"fewest": 1})
    spec = SPEC.model_copy(update={"monitoring": few})
    model = RoleAssignment(SPEC.name, 0)
    outcomes = online_outcomes(settings, spec, model, "1", feedback, 0.5, AS_OF)
    last = {"r0", "r3", "r4", "r5", "r8"}
    assert {*outcomes.rows["request_id"].to_pylist()} == last
    deleted = replace(model, created=1)
    assert online_outcomes(settings, spec, deleted, "1", feedback, 0.5, AS_OF) is None
    assert (
        online_outcomes(settings, SPEC, model, "1", feedback, 0.5, AS_OF) is None
    )  # few


@pytest.mark.parametrize(
    ("metric", "limit", "error", "expected"),
    [
        ("auc", {"worse": 0.05}, 0.02, 0.64),
        ("log_loss", {"worse": 0.05}, 0.01, 0.75),
        ("rmse", {"worse_share": 0.1}, 0.01, 0.77),
        ("auc", {"worse": 0.05, "worse_share": 0.1}, 0.01, 0.58),
        ("auc", {"worse": 0.05, "at_least": 0.68}, 0.01, 0.68),
        ("auc", {"worse": 0.05, "at_least": 0.6}, 0.01, 0.65),
        ("log_loss", {"worse": 0.05, "at_most": 0.72}, 0.01, 0.72),
        ("mae", {"at_most": 0.9}, 0.01, 0.9),
        ("f1", {"at_least": 0.9}, 0.01, 0.9),
    ],
)
def test_a_metric_is_bad_beyond_its_limit_and_beyond_chance(
    metric, limit, error, expected
):
    bad_value = bad_from(metric, MetricLimit(**limit), old_value=0.7, error=error)
    assert bad_value == pytest.approx(expected)


def test_a_floor_holds_whatever_the_version_was_and_keeps_the_default_beside_it():
    floor = MetricLimit(at_least=0.7)
    assert bad_from("f1", floor, old_value=np.nan, error=0.01) == 0.7
    assert bad_from("f1", MetricLimit(), old_value=np.nan, error=0.01) is None
    limits = Monitoring(metrics={"f1": {"at_least": 0.7}, "auc": {"worse_share": 0.1}})
    assert limits.metrics["f1"] == MetricLimit(worse=0.05, at_least=0.7)
    assert limits.metrics["auc"] == MetricLimit(worse_share=0.1)
    assert limits.metrics["rmse"] == MetricLimit(worse_share=0.05)
    with pytest.raises(ValueError, match=r"metrics.log_loss: expected at_most"):
        Monitoring(metrics={"log_loss": {"at_least": 0.7}})
