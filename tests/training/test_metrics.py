"""Metrics against scikit-learn's on rows, by their definitions, and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from core.training_spec import LOWER_IS_BETTER, Costs
from mlflow_server.served_model import rounded_one
from training.metrics import (
    CELLS,
    RESAMPLES,
    Interval,
    Scored,
    all_metrics,
    best_constant,
    by_segment,
    calibration,
    fairness,
    interval,
    log_loss,
    predict,
    resampled,
    rounded,
    top_class,
)
from training.train import cheapest_threshold

COSTS = Costs(action=1, loss=10, averted=0.2)


def some_rows(count: int, seed: int = 1, digits: int = 2):
    """Labels and scores that tell something of them, with many ties."""
    random = np.random.default_rng(seed)
    p = np.round(random.beta(2, 1.5, count), digits)
    y = (random.random(count) < p).astype(np.int64)
    return y, p


def rows_of_classes(count: int, classes: int, seed: int):
    """Labels of many classes, some of which may be absent, and probabilities with ties."""
    random = np.random.default_rng(seed)
    p = np.round(random.dirichlet(np.full(classes, 0.7), count) * 20 + 0.5)
    p /= p.sum(axis=1, keepdims=True)
    present = max(1, classes - seed % 3)
    y = [random.choice(present, p=row[:present] / row[:present].sum()) for row in p]
    return np.array(y), p


def rows_of_numbers(count: int, seed: int = 3):
    random = np.random.default_rng(seed)
    y = random.lognormal(3, 1, count) * (random.random(count) < 0.3)
    return y, y * 0.5 + random.normal(size=count)


def test_numbers_keep_six_digits_in_any_unit_and_one_is_rounded_as_many_are():
    random = np.random.default_rng(2)
    units = 10 ** random.uniform(-12, 12, 5000)
    scores = (random.normal(size=5000) * units).astype(np.float32).astype(float)
    assert np.abs(predict(scores, None) / scores - 1).max() <= 5e-6
    numbers = predict(np.array([1.23456789e-7, -2345678.9]), None)
    assert numbers.tolist() == [1.23457e-7, -2345680]
    for threshold in (None, 0.5):
        alone = [rounded_one(score, threshold) for score in scores]
        assert alone == rounded(scores, threshold).tolist()
    assert rounded([0.49999951, 1e-7], 0.5).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("threshold", [0.01, 0.37, 0.5, 0.99])
@pytest.mark.parametrize("digits", [1, 6])
def test_every_metric_of_two_classes_is_scikit_learns(threshold, digits):
    y, p = some_rows(400, digits=digits)
    answers = predict(p, threshold)
    tn, fp, fn, tp = sk.confusion_matrix(y, answers).ravel()
    # Acting on tp + fp; of the losses, one in five of those acted on is averted.
    cost = (tp + fp + 10 * (fn + 0.8 * tp)) / 400
    expected = {
        "log_loss": sk.log_loss(y, np.clip(p, 1e-7, 1 - 1e-7)),
        "brier": sk.brier_score_loss(y, p),
        "auc": sk.roc_auc_score(y, p),
        "average_precision": sk.average_precision_score(y, p),
        "accuracy": sk.accuracy_score(y, answers),
        "precision": sk.precision_score(y, answers, zero_division=0),
        "recall": sk.recall_score(y, answers, zero_division=0),
        "f1": sk.f1_score(y, answers, zero_division=0),
        "cost": cost,
    }
    expected |= {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    metrics = all_metrics(y, Scored(p, threshold), COSTS)
    assert metrics == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_every_metric_of_many_classes_is_scikit_learns(seed):
    classes = 3 + seed % 4
    y, p = rows_of_classes((4, 40, 400)[seed % 3], classes, seed)
    answers = p.argmax(axis=1)
    macro = {"average": "macro", "zero_division": 0}
    expected = {
        "log_loss": sk.log_loss(y, p, labels=[*range(classes)]),
        "brier": sk.brier_score_loss(y, p, labels=[*range(classes)]),
        "accuracy": sk.accuracy_score(y, answers),
        "precision": sk.precision_score(y, answers, **macro),
        "recall": sk.recall_score(y, answers, **macro),
        "f1": sk.f1_score(y, answers, **macro),
    }
    metrics = all_metrics(y, Scored(p, None), None)
    assert metrics == pytest.approx(expected)
    right, top = top_class(y, Scored(p, None))
    assert right.mean() == pytest.approx(metrics["accuracy"])
    assert top.tolist() == p.max(axis=1).tolist()


numbers = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=2, max_size=60))
def test_of_numbers_no_constant_is_better_than_the_best(pairs):
    y, p = np.array(pairs).T
    metrics = all_metrics(y, Scored(p, None), None)
    assert metrics["rmse"] == pytest.approx(sk.root_mean_squared_error(y, p))
    assert metrics["mae"] == pytest.approx(sk.mean_absolute_error(y, p))
    best = best_constant(y, Scored(y, None), None)
    for constant in (*y, y.mean(), np.median(y)):
        other = all_metrics(y, Scored(np.full(len(y), constant), None), None)
        assert best["rmse"] <= other["rmse"] * (1 + 1e-9)
        assert best["mae"] <= other["mae"] * (1 + 1e-9)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.8])
def test_of_two_classes_no_constant_is_better_than_the_best(share):
    y = (np.arange(1000) < share * 1000).astype(np.int64)
    best = best_constant(y, Scored(np.zeros(1000), 0.3), COSTS)
    assert best["recall"] == 1
    assert best["f1"] == pytest.approx(2 * share / (1 + share))
    assert best["precision"] == pytest.approx(share)
    assert best["accuracy"] == pytest.approx(max(share, 1 - share))
    assert best["cost"] == pytest.approx(min(10 * share, 1 + 8 * share))
    for constant in np.arange(0, 1.01, 0.05):
        other = all_metrics(y, Scored(np.full(1000, constant), 0.5), COSTS)
        for metric in other.keys() - {*CELLS}:
            sign = 1 if metric in LOWER_IS_BETTER else -1
            assert sign * best[metric] <= sign * other[metric] + 1e-9


def test_of_many_classes_the_best_constant_is_the_shares_or_one_class():
    y, p = rows_of_classes(400, 4, 3)
    shares = np.bincount(y, minlength=4) / 400
    best = best_constant(y, Scored(p, None), None)
    assert best["log_loss"] == pytest.approx(-np.sum(shares * np.log(shares)))
    assert best["accuracy"] == pytest.approx(shares.max())


@pytest.mark.parametrize(
    ("y", "scored", "costs"),
    [
        (some_rows(300)[0], Scored(some_rows(300)[1], 0.4), COSTS),
        (
            rows_of_classes(60, 4, 2)[0],
            Scored(rows_of_classes(60, 4, 2)[1], None),
            None,
        ),
        (rows_of_numbers(200)[0], Scored(rows_of_numbers(200)[1], None), None),
    ],
    ids=["two classes", "many classes", "numbers"],
)
def test_the_bootstrap_is_that_of_rows_drawn_one_by_one(y, scored, costs):
    models = {"a": scored, "b": Scored(scored.scores * 0.5, scored.threshold)}
    samples = resampled(y, models, costs, seed=7)
    random = np.random.default_rng(7)
    for resample in range(30):
        rows = random.integers(0, len(y), len(y))
        for name, model in models.items():
            drawn = all_metrics(y[rows], model.of(rows), costs)
            values = {metric: samples[name][metric][resample] for metric in drawn}
            assert values == pytest.approx(drawn)
    assert {len(values) for values in samples["a"].values()} == {RESAMPLES}


def test_the_interval_of_a_mean_is_that_of_the_normal_and_the_same_for_a_seed():
    y, p = some_rows(2000)
    first = resampled(y, {"a": Scored(p, 0.5)}, COSTS, 7)["a"]["accuracy"]
    again = resampled(y, {"a": Scored(p, 0.5)}, COSTS, 7)["a"]["accuracy"]
    bounds = interval(0.7, first)
    mean = np.mean(y == predict(p, 0.5))
    half = 1.96 * np.sqrt(mean * (1 - mean) / 2000)
    expected = (mean - half, mean + half)
    assert (bounds.low, bounds.high) == pytest.approx(expected, abs=0.25 * half)
    assert interval(0.7, again) == bounds
    assert interval(0.7, np.array([np.nan, 1.0, 1.0])) == Interval(0.7, 1.0, 1.0)


def test_what_is_undefined_is_no_number():
    same = all_metrics(np.full(7, 0.1), Scored(np.arange(7.0), None), None)
    assert np.isnan(same["r2"])
    assert np.isfinite(same["rmse"])
    for label, recall in ((1, 0.5), (0, 0)):
        scored = Scored(np.array([0.2, 0.9]), 0.5)
        metrics = all_metrics(np.array([label, label]), scored, COSTS)
        assert np.isnan([metrics["auc"], metrics["average_precision"]]).all()
        assert metrics["recall"] == recall
        assert metrics["precision"] == label


def test_a_tie_at_the_threshold_falls_the_same_way_as_in_serving():
    assert predict(np.array([0.4999999, 0.5, 0.4999994]), 0.5).tolist() == [1, 1, 0]
    assert predict(np.array([-31.4999999, 7e9]), None).tolist() == [-31.5, 7e9]


def test_log_loss_of_certainty_gone_wrong_is_finite():
    assert np.isfinite(log_loss(np.array([1, 0]), np.array([0.0, 1.0])))


@pytest.mark.parametrize(
    ("costs", "pays_from"),
    [
        (COSTS, 0.5),
        (Costs(action=1, loss=10), 0.1),
        (Costs(action=3, loss=10, averted=0.5), 0.6),
    ],
)
def test_acting_pays_from_where_what_it_averts_is_what_it_costs(costs, pays_from):
    y, p = some_rows(200_000, digits=4)  # calibrated by construction
    assert cheapest_threshold(y, p, costs, 0.5) == pytest.approx(pays_from, abs=0.03)


def test_of_equally_cheap_thresholds_it_is_the_one_nearest_to_the_specs():
    y = np.array([0, 0, 1, 1])
    p = np.array([0.2, 0.3, 0.7, 0.8])
    for default, chosen in ((0.5, 0.5), (0.9, 0.7), (0.1, 0.31)):
        assert cheapest_threshold(y, p, COSTS, default) == chosen


def test_calibration_by_hand():
    # Ten bins of two rows: predicted 0.4 or 0.6, true 0.5, in every one.
    for score in (0.4, 0.6):
        y = np.array([0, 1] * 10)
        assert calibration(y, np.full(20, score))["ece"] == pytest.approx(0.1)
    y = np.repeat([0, 1], 10)
    assert calibration(y, y.astype(float))["ece"] == 0
    # Of numbers: bin k predicts 10 k, true are 10 k + 3 and 10 k - 1.
    p = np.repeat(np.arange(10) * 10.0, 2)
    assert calibration(p + np.tile([3.0, -1.0], 10), p)["ece"] == pytest.approx(1)


def test_equal_scores_lie_in_one_bin_whatever_the_order_of_the_rows():
    y = np.repeat([0, 1], [60, 40])  # in the order of a key that goes with the label
    assert calibration(y, np.full(100, 0.4))["ece"] == pytest.approx(0)


def test_segments_and_the_gaps_between_them_by_hand():
    column = pd.Series(["b"] * 4 + ["a"] * 4 + ["c"])
    y = np.array([1, 1, 0, 0, 1, 1, 1, 0, 0])
    p = np.array([0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.6])
    a, b, c = by_segment(column, y, Scored(p, 0.5), COSTS)
    assert (a.value, a.rows, a.prevalence, a.selected) == ("a", 4, 0.75, 1.0)
    assert (b.value, b.rows, b.prevalence, b.selected) == ("b", 4, 0.5, 0.25)
    assert (c.value, c.rows, c.metrics["fp"]) == ("c", 1, 1)
    expected = all_metrics(y[:4], Scored(p[:4], 0.5), COSTS)
    assert b.metrics == pytest.approx(expected, nan_ok=True)
    # Predicted 1: a 4/4, b 1/4, c 1/1. Of true 1s: a 3/3, b 1/2, c none. Of true 0s: 1/1, 0/2, 1/1.
    assert fairness((a, b, c)) == {
        "demographic_parity_difference": 0.75,
        "equal_opportunity_difference": 0.5,
        "largest_gap": 1.0,
    }
    assert set(fairness((a,)).values()) == {0.0}
    assert fairness(()) == {}
