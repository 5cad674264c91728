"""What pictures show of a run, of each task: figures that add up, none where they mean nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from core.monitoring_spec import Monitoring
from core.spec import load_spec
from mlflow_server.window_details import DETAILS, QUANTILES
from monitoring.checks.performance import Judged, measured
from monitoring.details import window_details
from training.metrics import Scored, interval, resampled

SPEC = load_spec("customer_churn_model").model_copy(update={"monitoring": Monitoring()})
ROWS, CLASSES = 2000, ("early", "on_time", "late")
TRUE = np.random.default_rng(4)


def outcomes(task):
    """Labels, and what is said of them."""
    if task == "regression":
        y = TRUE.lognormal(3, 1, ROWS)
        return y, Scored(y * TRUE.lognormal(0, 0.3, ROWS), None)
    if task == "multiclass":
        p = TRUE.dirichlet((2, 3, 1), ROWS)
        return np.array([TRUE.choice(3, p=each) for each in p]), Scored(p, None)
    p = TRUE.beta(2, 2, ROWS)
    return (TRUE.random(ROWS) < p).astype(np.int64), Scored(p, 0.5)


def run(task, rows=ROWS, shift=0.0):
    """A window of `rows`, a little richer than the reference; outcomes known of it, backfilled."""
    (y, said), (true, now) = outcomes(task), outcomes(task)
    costs = SPEC.costs if task == "classification" else None
    spec = SPEC.model_copy(update={"costs": costs, "segment": "plan"})
    before = pd.DataFrame({"spend": np.linspace(0, 100, ROWS), "is_new": [True, False] * 1000,
                           "plan": ["a", "b"] * 1000, "score": said.rounded().top})  # fmt: skip
    window = before.assign(spend=before["spend"] + 10, is_new=1.0, entity="x",
                           score=np.clip(now.rounded().top + shift, 0, None))  # fmt: skip
    window.loc[:9, "spend"] = np.nan
    performance = measured("backfilled", "of yesterday", true, now, spec)
    judged = Judged(performance, pa.table({"label": true}), now)
    made = SimpleNamespace(
        spec=spec, window=SimpleNamespace(rows=window.iloc[:rows]), judged=(judged,)
    )
    evaluated = measured("evaluated", "", y, said, spec).metrics
    return made, SimpleNamespace(
        rows=before, population=before, y=y, said=said, evaluated=evaluated
    )  # fmt: skip


@pytest.mark.parametrize("task", ["classification", "multiclass", "regression"])
def test_shares_are_whole_and_quantiles_are_of_numbers_alone(task):
    found = window_details(*run(task))
    assert sum(each.was for each in found.scores) == pytest.approx(1, abs=1e-3)
    assert sum(each.now for each in found.scores) == pytest.approx(1, abs=1e-3)
    assert all(
        one.high == two.low
        for one, two in zip(found.scores, found.scores[1:], strict=False)
    )
    assert (
        set(found.quantiles)
        == set(found.reference_quantiles)
        == {"spend", "is_new", "score"}
    )
    median = QUANTILES.index(0.5)
    assert found.reference_quantiles["spend"][median] == pytest.approx(50, abs=0.1)
    assert found.quantiles["spend"][median] == pytest.approx(60, abs=0.5)
    assert DETAILS.validate_json(DETAILS.dump_json(found)) == found


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("classification", {"auc", "f1", "accuracy", "log_loss"}),
        ("multiclass", {"f1", "accuracy", "log_loss", "brier"}),
        ("regression", {"rmse", "mae", "r2"}),
    ],
)
def test_a_metric_stands_in_its_interval_beside_what_it_was_and_the_best_constant(
    task, metrics
):
    made, reference = run(task)
    (found,) = window_details(made, reference).performance.values()
    assert not {"tp", "fp", "tn", "fn"} & set(found)
    for name in metrics:
        value = found[name]
        assert value.low < value.now < value.high, name
        assert value.was == pytest.approx(reference.evaluated[name], rel=1e-4)
    loss = found["rmse" if task == "regression" else "log_loss"]
    assert loss.high < loss.baseline
    if task == "classification":
        assert found["auc"].baseline == 0.5
        assert found["precision"].low is None


def test_the_interval_of_a_formula_is_about_as_wide_as_that_of_the_bootstrap():
    y, said = outcomes("classification")
    found = measured("online", "", y, said, SPEC).intervals
    drawn = resampled(y, {"all": said}, None, 1)["all"]
    for name, (low, high) in found.items():
        bootstrap = interval((low + high) / 2, drawn[name])
        assert high - low == pytest.approx(bootstrap.high - bootstrap.low, rel=0.15), (
            name
        )


def test_calibration_counts_every_row_and_numbers_have_none():
    for task in ("classification", "multiclass"):
        found = window_details(*run(task)).calibration
        assert set(found) == {"reference", "backfilled"}
        for bins in found.values():
            assert sum(each.rows for each in bins) == ROWS
            assert max(abs(each.said - each.true) for each in bins) < 0.15
    assert window_details(*run("regression")).calibration == {}


def test_segments_are_of_what_answers_yes_or_no():
    found = window_details(*run("classification")).segments
    assert {name: rate.rows for name, rate in found.items()} == {"a": 1000, "b": 1000}
    assert all(
        abs(rate.was - 0.5) < 0.1 and abs(rate.now - 0.5) < 0.1
        for rate in found.values()
    )
    assert window_details(*run("multiclass")).segments == {}


def test_of_a_window_too_small_to_be_judged_only_the_reference_is_shown():
    found = window_details(*run("classification", rows=SPEC.monitoring.fewest - 1))
    assert (found.scores, found.quantiles) == ((), {})
    assert set(found.reference_quantiles) == {"spend", "is_new", "score"}
    assert set(found.performance) == {"backfilled"}


def test_numbers_far_beyond_all_others_are_in_the_last_bin():
    found = window_details(*run("regression", shift=100_000)).scores
    assert found[-1].now > 0.9
    assert found[0].was > 0.9
