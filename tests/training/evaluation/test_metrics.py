"""Metrics compared with scikit-learn's, with their definitions, and with figures by hand."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from core.spec.training import LOWER_IS_BETTER, METRICS_OF_OTHER_TASKS, Costs, Metric
from mlflow_server.manifest import rounded_one
from tests.support.training.scored_rows import some_rows
from training.evaluation.metrics import (
    CELLS,
    Interval,
    Scored,
    all_metrics,
    best_constant,
    by_segment,
    calibration,
    fairness,
    interval,
    predict,
    resampled,
    rounded,
)
from training.stages.train import cheapest_threshold

COSTS = Costs(action=1, loss=10, averted=0.2)


def rows_of_classes(count, classes, seed):
    """Labels of many classes, some of which may be absent, and probabilities with ties."""
    random = np.random.default_rng(seed)
    p = np.round(random.dirichlet(np.full(classes, 0.7), count) * 20 + 0.5)
    p /= p.sum(axis=1, keepdims=True)
    present = max(1, classes - seed % 3)
    y = [random.choice(present, p=row[:present] / row[:present].sum()) for row in p]
    return np.array(y), p


def rows_of_numbers(count):
    random = np.random.default_rng(3)
    y = random.lognormal(3, 1, count) * (random.random(count) < 0.3)
    return y, y * 0.5 + random.normal(size=count)


def test_numbers_keep_six_digits_in_any_unit_alone_and_in_a_batch():
    random = np.random.default_rng(2)
    units = 10 ** random.uniform(-12, 12, 1000)
    scores = (random.normal(size=1000) * units).astype(np.float32).astype(float)
    assert np.abs(predict(scores, None) / scores - 1).max() <= 5e-6
    for threshold in (None, 0.5):
        single = [rounded_one(score, threshold) for score in scores]
        assert single == rounded(scores, threshold).tolist()
    assert rounded([0.49999951, 1e-7], 0.5).tolist() == [0.5, 0.0]


def metrics_of_answers(y, answers, average):
    options = {"average": average, "zero_division": 0}
    return {
        "accuracy": sk.accuracy_score(y, answers),
        "precision": sk.precision_score(y, answers, **options),
        "recall": sk.recall_score(y, answers, **options),
        "f1": sk.f1_score(y, answers, **options),
    }


@pytest.mark.parametrize("threshold", [0.01, 0.37, 0.99])
@pytest.mark.parametrize("digits", [1, 6])
def test_every_metric_of_two_classes_equals_that_of_scikit_learn(threshold, digits):
    y, p = some_rows(400, digits)
    answers = predict(p, threshold)
    tn, fp, fn, tp = sk.confusion_matrix(y, answers).ravel()
    expected = {
        "log_loss": sk.log_loss(y, np.clip(p, 1e-7, 1 - 1e-7)),
        "brier": sk.brier_score_loss(y, p),
        "auc": sk.roc_auc_score(y, p),
        "average_precision": sk.average_precision_score(y, p),
        # Acting on tp + fp; of the losses, one in five of those acted on is averted.
        "cost": (tp + fp + 10 * (fn + 0.8 * tp)) / 400,
    }
    expected |= {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    expected |= metrics_of_answers(y, answers, "binary")
    metrics = all_metrics(y, Scored(p, threshold), COSTS)
    assert metrics == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_every_metric_of_many_classes_equals_that_of_scikit_learn(seed):
    classes = 3 + seed % 4
    y, p = rows_of_classes((4, 40, 400)[seed % 3], classes, seed)
    expected = metrics_of_answers(y, p.argmax(axis=1), "macro")
    expected["log_loss"] = sk.log_loss(y, p, labels=[*range(classes)])
    expected["brier"] = sk.brier_score_loss(y, p, labels=[*range(classes)])
    assert all_metrics(y, Scored(p, None), None) == pytest.approx(expected)


def test_metrics_of_numbers_equal_those_of_scikit_learn():
    y, p = rows_of_numbers(200)
    expected = {
        "rmse": sk.root_mean_squared_error(y, p),
        "mae": sk.mean_absolute_error(y, p),
        "r2": sk.r2_score(y, p),
    }
    assert all_metrics(y, Scored(p, None), None) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.8])
def test_no_constant_probability_is_better_than_the_best_constant(share):
    y = (np.arange(1000) < share * 1000).astype(np.int64)
    best = best_constant(y, Scored(np.zeros(1000), 0.3), COSTS)
    assert best["cost"] == pytest.approx(min(10 * share, 1 + 8 * share))
    for constant in np.arange(0, 1.01, 0.05):
        other = all_metrics(y, Scored(np.full(1000, constant), 0.5), COSTS)
        for metric in other.keys() - {*CELLS}:
            sign = 1 if metric in LOWER_IS_BETTER else -1
            assert sign * best[metric] <= sign * other[metric] + 1e-9


def test_the_best_constant_of_numbers_is_their_mean_or_median_and_of_classes_their_shares():
    y = np.array([0.0, 0.0, 0.0, 10.0])
    best = best_constant(y, Scored(y, None), None)
    assert best["rmse"] == pytest.approx(np.std(y))
    assert best["mae"] == 2.5  # around the mean it is 3.75
    y, p = rows_of_classes(400, 4, 3)
    shares = np.bincount(y, minlength=4) / 400
    best = best_constant(y, Scored(p, None), None)
    assert best["log_loss"] == pytest.approx(-np.sum(shares * np.log(shares)))
    assert best["accuracy"] == pytest.approx(shares.max())


@pytest.mark.parametrize(
    ("rows", "threshold", "costs"),
    [
        (some_rows(100), 0.4, COSTS),
        (rows_of_classes(60, 4, 2), None, None),
        (rows_of_numbers(100), None, None),
    ],
    ids=["two classes", "many classes", "numbers"],
)
def test_the_bootstrap_of_each_metric_of_a_spec_equals_that_of_rows_drawn_one_by_one(
    rows, threshold, costs
):
    y, scores = rows
    models = {"a": Scored(scores, threshold), "b": Scored(scores * 0.5, threshold)}
    names = {*get_args(Metric)} - {*METRICS_OF_OTHER_TASKS[models["a"].task]}
    assert all_metrics(y, models["a"], costs).keys() - {*CELLS} == names
    samples = resampled(y, models, costs, seed=7, count=5)
    random = np.random.default_rng(7)
    for resample in range(5):
        positions = random.integers(0, len(y), len(y))
        for name, model in models.items():
            expected = all_metrics(y[positions], model.of(positions), costs)
            values = {metric: samples[name][metric][resample] for metric in expected}
            assert values == pytest.approx(expected)
    assert interval(0.7, np.array([np.nan, 1.0, 1.0])) == Interval(0.7, 1.0, 1.0)


def test_an_undefined_metric_is_nan_and_a_certain_error_has_a_finite_loss():
    same = all_metrics(np.full(7, 0.1), Scored(np.arange(7.0), None), None)
    assert np.isnan(same["r2"])
    metrics = all_metrics(np.array([1, 1]), Scored(np.array([0.2, 0.9]), 0.5), COSTS)
    assert np.isnan([metrics["auc"], metrics["average_precision"]]).all()
    assert metrics["recall"] == 0.5
    certain = all_metrics(np.array([1, 0]), Scored(np.array([0.0, 1.0]), 0.5), None)
    assert np.isfinite(certain["log_loss"])


@pytest.mark.parametrize(
    ("costs", "pays_from"),
    [
        (COSTS, 0.5),
        (Costs(action=1, loss=10), 0.1),
    ],
)
def test_the_cheapest_threshold_is_where_averted_losses_equal_the_cost_of_acting(
    costs, pays_from
):
    y, p = some_rows(200_000, digits=4)  # calibrated by construction
    assert cheapest_threshold(y, p, costs, 0.5) == pytest.approx(pays_from, abs=0.03)
    # Of equally cheap ones the nearest to that of the spec is chosen.
    y = np.array([0, 0, 1, 1])
    p = np.array([0.2, 0.3, 0.7, 0.8])
    for default, chosen in ((0.5, 0.5), (0.9, 0.7), (0.1, 0.31)):
        assert cheapest_threshold(y, p, COSTS, default) == chosen


def test_calibration_equals_a_hand_computed_value():
    # Ten bins of two rows: predicted 0.4, true 0.5, in every one.
    y = np.array([0, 1] * 10)
    assert calibration(y, np.full(20, 0.4)) == pytest.approx(0.1)
    # Of numbers: bin k predicts 10 k, true are 10 k + 3 and 10 k - 1.
    p = np.repeat(np.arange(10) * 10.0, 2)
    assert calibration(p + np.tile([3.0, -1.0], 10), p) == pytest.approx(1)
    # Equal scores are one bin whatever the order of the rows.
    y = np.repeat([0, 1], [60, 40])
    assert calibration(y, np.full(100, 0.4)) == pytest.approx(0)


def test_segments_and_fairness_gaps_equal_hand_computed_values():
    column = pd.Series(["b"] * 4 + ["a"] * 4 + ["c"])
    y = np.array([1, 1, 0, 0, 1, 1, 1, 0, 0])
    p = np.array([0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.6])
    segments = by_segment(column, y, Scored(p, 0.5), COSTS)
    assert [(s.value, s.rows, s.prevalence, s.selected) for s in segments] == [
        ("a", 4, 0.75, 1.0),
        ("b", 4, 0.5, 0.25),
        ("c", 1, 0.0, 1.0),
    ]
    # Predicted 1: a 4/4, b 1/4, c 1/1. Of true 1s: a 3/3, b 1/2, c none. Of true 0s: 1/1, 0/2, 1/1.
    assert fairness(segments) == {
        "demographic_parity_difference": 0.75,
        "equal_opportunity_difference": 0.5,
        "largest_gap": 1.0,
    }
    # Of several columns the largest gap counts; a null is a value.
    halves = pd.Series(["x", None] * 4 + ["x"]).rename("half")
    more = by_segment(halves, y, Scored(p, 0.5), COSTS)
    assert {segment.value for segment in more} == {"x", "__missing__"}
    assert fairness([*segments, *more]) == fairness(segments)
    assert fairness(more)["demographic_parity_difference"] < 0.75
