"""What came true of a logged prediction, and which of them count."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from core.monitoring_spec import MetricLimit, Monitoring
from core.spec import load_spec
from monitoring.checks.performance import bad_from, measure
from monitoring.collect import ANSWERS, PREDICTIONS
from monitoring.outcomes import (
    Outcomes,
    actuals,
    is_judgeable,
    online_outcomes,
)
from tests.conftest import AS_OF
from tests.feature_repo.conftest import applied, template  # noqa: F401  (fixtures)
from tests.feature_repo.test_ingest import DAY, order, shop  # noqa: F401  (a fixture)
from training.metrics import Scored

SPEC = load_spec("customer_churn_model")
TRUE = np.random.default_rng(6)
ASKED, HOUR = AS_OF - 120 * DAY, timedelta(hours=1)
MIDNIGHT = ASKED.replace(hour=0, minute=0, second=0, microsecond=0)


def answered(*rows):
    """Rows (entity, as_of, changes)."""
    usual = {"model": SPEC.name, "version": "1", "role": "production", "in_population": True,
             "features_from": "online", "probability": 0.9, "prediction": 1.0}  # fmt: skip
    made = [
        dict.fromkeys(ANSWERS) | usual | {"request_id": f"r{n}", "received": at, "as_of": at,
                                          "entity": None if who is None else str(who)} | more
        for n, (who, at, more) in enumerate(rows)
    ]  # fmt: skip
    return pa.Table.from_pylist(
        made, pa.schema([PREDICTIONS.field(name) for name in ANSWERS])
    )


def test_what_the_raw_rows_say_of_the_day_and_nothing_where_its_own_moment_would_say_another(
    shop,
):
    before = MIDNIGHT - 10 * DAY
    shop.has(
        order(1, 1, before), order(2, 1, MIDNIGHT + 14 * HOUR), order(3, 2, before),
        order(4, 3, before), order(5, 3, MIDNIGHT + 40 * DAY), order(6, 4, before),
        order(7, 4, MIDNIGHT),
    )  # fmt: skip
    shop.ingest(AS_OF)
    asked = answered(
        (
            1,
            MIDNIGHT + 15 * HOUR,
            {},
        ),  # the order is why it was asked, and does not answer it
        (1, MIDNIGHT + 13 * HOUR, {}),
        (2, MIDNIGHT + 15 * HOUR, {}),
        (3, MIDNIGHT + 15 * HOUR, {}),
        (4, MIDNIGHT + 15 * HOUR, {}),  # a row of whole days is of the day's beginning
        (9, MIDNIGHT, {}),
        (2, AS_OF - 30 * DAY, {}),  # not known yet
        (None, MIDNIGHT, {}),
    )
    told = {"r0": 1.0, "r2": 0.0, "r7": 0.0}
    found = actuals(shop.settings, SPEC, asked, told, AS_OF)
    assert found == pytest.approx([1, 0, 1, 0, 1, np.nan, np.nan, 0], nan_ok=True)


def test_one_answer_of_an_entity_and_day_counts_and_none_that_says_nothing(shop):
    shop.has(order(1, 1, MIDNIGHT - 200 * DAY))
    shop.ingest(AS_OF)
    many = [(1, ASKED + n * timedelta(seconds=1), {}) for n in range(500)]
    more = [
        *((who, ASKED, {}) for who in range(100, 250)),
        *((None, ASKED, {}) for _ in range(60)),
        *((who, ASKED, {"features_from": "defaults"}) for who in range(300, 400)),
        *((who, ASKED, {"in_population": False}) for who in range(400, 500)),
    ]
    rows = answered(*many, *more)
    told = {f"r{n}": float(n % 3 > 0) for n in range(rows.num_rows)}
    told["r499"] = 1.0  # the last of the first customer
    found = online_outcomes(shop.settings, SPEC, rows, told, 0.5, AS_OF)
    assert found is not None
    assert found.rows.num_rows == 1 + 150 + 60
    by_id = {row["request_id"]: row["label"] for row in found.rows.to_pylist()}
    assert by_id["r499"] == 1.0
    assert "r0" not in by_id
    assert (
        online_outcomes(shop.settings, SPEC, rows.slice(0, 600), told, 0.5, AS_OF)
        is None
    )


def test_of_a_day_the_last_answer_whose_outcome_is_known_counts(shop):
    """Who orders is asked about again: that answer has no outcome, and must not hide the others."""
    before, noon = MIDNIGHT - 10 * DAY, MIDNIGHT + 12 * HOUR
    who = range(1, 251)
    shop.has(
        *(order(n, n, before) for n in who),
        *(order(500 + n, n, noon) for n in who[:100]),
    )
    shop.ingest(AS_OF)
    rows = answered(
        *((n, noon - 3 * HOUR, {}) for n in who), *((n, noon + HOUR, {}) for n in who)
    )
    found = online_outcomes(shop.settings, SPEC, rows, {}, 0.5, AS_OF)
    assert found is not None
    assert found.rows.num_rows == 250
    assert found.rows["label"].to_pylist().count(0) == 100
    last = {row["entity"]: row["as_of"] for row in found.rows.to_pylist()}
    assert {last[f"{n}"] for n in who[:100]} == {noon - 3 * HOUR}
    assert {last[f"{n}"] for n in who[100:]} == {noon + HOUR}


def drawn(rows, share=0.0, random=TRUE):
    """Outcomes of a version that is right about every chance, but for a share of the rows."""
    p = random.beta(2, 1.6, rows)
    y = (random.random(rows) < p).astype(np.int64)
    scores = np.where(random.random(rows) < share, random.permutation(p), p)
    return Outcomes("online", "here", pa.table({"label": y}), Scored(scores, 0.5))


def worse(outcomes, evaluated, limits=SPEC.monitoring):
    spec = SPEC.model_copy(update={"monitoring": limits})
    bad = []
    for metric in measure(spec, outcomes, evaluated):
        if metric.limit is not None:
            sign = 1 if metric.lower_is_better else -1
            if sign * (metric.value - metric.limit) > 0:
                bad.append(metric.metric)
    return bad


@pytest.fixture(scope="module")
def evaluated():
    return {each.metric: each.value for each in measure(SPEC, drawn(7000), {})}


@pytest.mark.parametrize("rows", [200, pytest.param(500, marks=pytest.mark.nightly)])
def test_a_version_that_is_as_good_as_ever_is_not_called_worse_by_chance(
    rows, evaluated
):
    random = np.random.default_rng(rows)
    draws = [drawn(rows, random=random) for _ in range(20)]
    assert not any(worse(outcomes, evaluated) for outcomes in draws)


def test_one_that_is_worse_is_found_the_sooner_the_more_outcomes_there_are(evaluated):
    bad = worse(drawn(2000, 0.5), evaluated)
    assert {*bad} == {"f1", "auc", "accuracy", "log_loss"}
    shares = []
    for rows in (200, 1000):
        count = sum(bool(worse(drawn(rows, 0.3), evaluated)) for _ in range(10))
        shares.append(count / 10)
    assert shares[0] < 0.5
    assert shares[1] > 0.8


def test_a_metric_can_have_a_limit_whatever_it_was(evaluated):
    limits = Monitoring(
        metrics={"f1": {"at_least": 0.99}, "precision": {"worse": 0.05}}
    )
    assert worse(drawn(2000), evaluated, limits) == ["f1"]
    assert {*worse(drawn(2000, 0.9), evaluated, limits)} >= {"f1", "precision"}


@pytest.mark.parametrize(
    ("metric", "limit", "error", "expected"),
    [
        ("auc", {"worse": 0.05}, 0.01, 0.65),
        ("auc", {"worse": 0.05}, 0.02, 0.64),
        ("log_loss", {"worse": 0.05}, 0.01, 0.75),
        ("rmse", {"worse_share": 0.1}, 0.01, 0.77),
        ("auc", {"at_least": 0.66, "worse": 0.05}, 0.01, 0.66),
        ("rmse", {"at_most": 0.9}, 0.01, 0.9),
        ("auc", {}, 0.01, None),
    ],
)
def test_a_metric_is_bad_beyond_its_limit_and_beyond_chance(
    metric, limit, error, expected
):
    found = bad_from(metric, MetricLimit(**limit), old_value=0.7, error=error)
    assert found == (expected and pytest.approx(expected))


def test_calibration_and_rates_are_shown_without_a_limit():
    figures = {each.name: each for each in measure(SPEC, drawn(2000), {})}
    rows = drawn(2000)
    assert figures["online/ece"].value < 0.05
    assert figures["online/label_rate"].value == pytest.approx(
        rows.labels.mean(), abs=0.05
    )
    assert all(figures[f"online/{name}"].limit is None for name in ("ece", "auc"))


def test_of_millions_of_predictions_those_are_read_that_can_be_judged():
    late = {"as_of": ASKED, "received": AS_OF}
    rows = answered(
        (1, ASKED, {}), (2, AS_OF - 30 * DAY, {}), (3, AS_OF - 30 * DAY, {}), (4, AS_OF, late),
        (5, ASKED, {"version": "2"}), (6, ASKED, {"model": "other"}),
    )  # fmt: skip
    found = rows.filter(is_judgeable(SPEC, "1", {"r2": 1.0, "r5": 0.0}, AS_OF))
    assert found["request_id"].to_pylist() == ["r0", "r2", "r3"]
    untold = rows.filter(is_judgeable(SPEC, "1", {}, AS_OF))
    assert untold["request_id"].to_pylist() == ["r0", "r3"]
