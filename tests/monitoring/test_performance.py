"""What came true of a logged prediction, and which of them count."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from core.monitoring_spec import MetricLimit
from monitoring.checks.performance import bad_from, measure
from monitoring.collect import ANSWERS, answered_rows, collect
from monitoring.outcomes import Outcomes, actuals, online_outcomes
from tests.conftest import AS_OF
from tests.feature_repo.conftest import applied, template  # noqa: F401  (fixtures)
from tests.feature_repo.test_ingest import DAY, HOUR, SPEC, order, shop  # noqa: F401  (a fixture)
from tests.monitoring.log import answer, write
from training.metrics import Scored

MIDNIGHT = AS_OF.replace(hour=0) - 120 * DAY


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


def test_raw_rows_give_the_outcome_of_a_day_and_feedback_gives_the_others(shop):
    before = MIDNIGHT - 10 * DAY
    shop.has(
        order(1, 1, before), order(2, 1, MIDNIGHT + 14 * HOUR), order(3, 2, before),
        order(4, 3, before), order(5, 3, MIDNIGHT + 40 * DAY), order(6, 4, before),
        order(7, 4, MIDNIGHT),
    )  # fmt: skip
    shop.ingest(AS_OF)
    afternoon = MIDNIGHT + 15 * HOUR
    answers = answered(
        shop.settings,
        (1, afternoon),  # its order came before it and is no outcome of it
        (1, MIDNIGHT + 13 * HOUR),
        (2, afternoon),
        (3, afternoon),
        (4, afternoon),  # a row of whole days is of the day's beginning
        (9, MIDNIGHT),
        (2, AS_OF - 30 * DAY),  # not known yet
        (None, MIDNIGHT),
    )
    outcomes = {"r0": 1.0, "r2": 0.0, "r7": 0.0}
    labels = actuals(shop.settings, SPEC, answers, outcomes, AS_OF)
    assert labels == pytest.approx([1, 0, 1, 0, 1, np.nan, np.nan, 0], nan_ok=True)


def test_the_last_answer_of_a_day_with_a_known_outcome_counts(shop):
    """Who orders is asked about again: that answer has no outcome, and must not hide the others."""
    noon = MIDNIGHT + 12 * HOUR
    customers = range(1, 251)
    shop.has(
        *(order(n, n, MIDNIGHT - 10 * DAY) for n in customers),
        *(order(500 + n, n, noon) for n in range(1, 101)),
    )
    shop.ingest(AS_OF)
    rows = answered(
        shop.settings,
        *((n, noon - 3 * HOUR) for n in customers),
        *((n, noon + HOUR) for n in customers),
    )
    outcomes = online_outcomes(shop.settings, SPEC, rows, {}, 0.5, AS_OF)
    assert outcomes.rows.num_rows == 250
    for row in outcomes.rows.to_pylist():
        has_ordered = int(row["entity"]) <= 100
        assert row["label"] == (0 if has_ordered else 1)
        assert row["as_of"] == (noon - 3 * HOUR if has_ordered else noon + HOUR)


def random_outcomes(rows, share=0.0, seed=6):
    """Outcomes of a version that is right about every chance, but for a share of the rows."""
    random = np.random.default_rng([rows, seed])
    p = random.beta(2, 1.6, rows)
    y = (random.random(rows) < p).astype(np.int64)
    scores = np.where(random.random(rows) < share, random.permutation(p), p)
    return Outcomes("online", "here", pa.table({"label": y}), Scored(scores, 0.5))


def worse(outcomes, evaluated):
    metrics = measure(SPEC, outcomes, evaluated)
    return {metric.metric for metric in metrics if metric.is_bad}


def test_more_outcomes_show_a_worse_version_in_more_metrics():
    metrics = measure(SPEC, random_outcomes(7000), {})
    evaluated = {metric.metric: metric.value for metric in metrics}
    # One that is as good as ever is not called worse by chance.
    for seed in range(4):
        assert worse(random_outcomes(200, seed=seed), evaluated) == set()
    every_metric = {"f1", "auc", "accuracy", "log_loss"}
    assert worse(random_outcomes(2000, 0.5), evaluated) == every_metric
    for seed in range(2):
        few = worse(random_outcomes(200, 0.3, seed), evaluated)
        assert few < worse(random_outcomes(1000, 0.3, seed), evaluated)


@pytest.mark.parametrize(
    ("metric", "limit", "error", "expected"),
    [
        ("auc", {"worse": 0.05}, 0.01, 0.65),
        ("auc", {"worse": 0.05}, 0.02, 0.64),
        ("log_loss", {"worse": 0.05}, 0.01, 0.75),
        ("rmse", {"worse_share": 0.1}, 0.01, 0.77),
        ("auc", {"worse": 0.05, "worse_share": 0.1}, 0.01, 0.58),
        ("auc", {}, 0.01, 0.67),
    ],
)
def test_a_metric_is_bad_beyond_its_limit_and_beyond_chance(
    metric, limit, error, expected
):
    bad_value = bad_from(metric, MetricLimit(**limit), old_value=0.7, error=error)
    assert bad_value == pytest.approx(expected)
