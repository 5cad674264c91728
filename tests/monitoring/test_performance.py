"""What came true of a logged prediction, and which of them count."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from core.monitoring_spec import MetricLimit
from core.spec import load_spec
from monitoring.checks.performance import bad_from, measure
from monitoring.collect import ANSWERS, PREDICTIONS
from monitoring.outcomes import (
    Outcomes,
    actuals,
    online_outcomes,
)
from tests.conftest import AS_OF
from tests.feature_repo.conftest import applied, template  # noqa: F401  (fixtures)
from tests.feature_repo.test_ingest import DAY, order, shop  # noqa: F401  (a fixture)
from training.metrics import Scored

SPEC = load_spec("customer_churn_model")
ASKED, HOUR = AS_OF - 120 * DAY, timedelta(hours=1)
MIDNIGHT = ASKED.replace(hour=0, minute=0, second=0, microsecond=0)


def answered(*rows):
    """Rows (entity, as_of, changes)."""
    usual = {"model": SPEC.name, "version": "1", "role": "production", "in_population": True,
             "features_from": "online", "probability": 0.9, "prediction": 1.0}  # fmt: skip
    answers = []
    for number, (entity, at, changes) in enumerate(rows):
        row = dict.fromkeys(ANSWERS) | usual
        row |= {"request_id": f"r{number}", "received": at, "as_of": at}
        row["entity"] = None if entity is None else str(entity)
        answers.append(row | changes)
    schema = pa.schema([PREDICTIONS.field(name) for name in ANSWERS])
    return pa.Table.from_pylist(answers, schema)


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
        (1, afternoon, {}),  # its order came before it and is no outcome of it
        (1, MIDNIGHT + 13 * HOUR, {}),
        (2, afternoon, {}),
        (3, afternoon, {}),
        (4, afternoon, {}),  # a row of whole days is of the day's beginning
        (9, MIDNIGHT, {}),
        (2, AS_OF - 30 * DAY, {}),  # not known yet
        (None, MIDNIGHT, {}),
    )
    outcomes = {"r0": 1.0, "r2": 0.0, "r7": 0.0}
    labels = actuals(shop.settings, SPEC, answers, outcomes, AS_OF)
    assert labels == pytest.approx([1, 0, 1, 0, 1, np.nan, np.nan, 0], nan_ok=True)


def test_of_a_day_the_last_answer_whose_outcome_is_known_counts(shop):
    """Who orders is asked about again: that answer has no outcome, and must not hide the others."""
    noon = MIDNIGHT + 12 * HOUR
    customers = range(1, 251)
    shop.has(
        *(order(n, n, MIDNIGHT - 10 * DAY) for n in customers),
        *(order(500 + n, n, noon) for n in range(1, 101)),
    )
    shop.ingest(AS_OF)
    rows = answered(
        *((n, noon - 3 * HOUR, {}) for n in customers),
        *((n, noon + HOUR, {}) for n in customers),
    )
    outcomes = online_outcomes(shop.settings, SPEC, rows, {}, 0.5, AS_OF)
    assert outcomes.rows.num_rows == 250
    for row in outcomes.rows.to_pylist():
        has_ordered = int(row["entity"]) <= 100
        assert row["label"] == (0 if has_ordered else 1)
        assert row["as_of"] == (noon - 3 * HOUR if has_ordered else noon + HOUR)


def drawn(rows, share=0.0, seed=6):
    """Outcomes of a version that is right about every chance, but for a share of the rows."""
    random = np.random.default_rng([rows, seed])
    p = random.beta(2, 1.6, rows)
    y = (random.random(rows) < p).astype(np.int64)
    scores = np.where(random.random(rows) < share, random.permutation(p), p)
    return Outcomes("online", "here", pa.table({"label": y}), Scored(scores, 0.5))


def worse(outcomes, evaluated):
    metrics = measure(SPEC, outcomes, evaluated)
    return {metric.metric for metric in metrics if metric.is_bad}


@pytest.fixture(scope="module")
def evaluated():
    return {metric.metric: metric.value for metric in measure(SPEC, drawn(7000), {})}


def test_a_version_that_is_as_good_as_ever_is_not_called_worse_by_chance(evaluated):
    draws = [drawn(200, seed=seed) for seed in range(4)]
    assert not any(worse(outcomes, evaluated) for outcomes in draws)


def test_a_worse_version_is_seen_the_sooner_the_more_outcomes_there_are(evaluated):
    metrics = {"f1", "auc", "accuracy", "log_loss"}
    assert worse(drawn(2000, 0.5), evaluated) == metrics
    for seed in range(2):
        few = worse(drawn(200, 0.3, seed), evaluated)
        assert few < worse(drawn(1000, 0.3, seed), evaluated)


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
