"""Metrics against scikit-learn's, by their definitions, and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from core.training_spec import Costs
from mlflow_server.served_model import rounded, rounded_one
from training.metrics import (
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
    rmse,
    top_class,
)
from training.train import cheapest_threshold

COSTS = Costs(action=1, loss=10, averted=0.2)


def some(rows: int, seed: int = 1, digits: int = 2):
    """Labels and scores that tell something of them, with many ties."""
    random = np.random.default_rng(seed)
    p = np.round(random.beta(2, 1.5, rows), digits)
    return (random.random(rows) < p).astype(np.int64), p


def by_sklearn(y, p, threshold):
    said = predict(p, threshold)
    return {
        "log_loss": sk.log_loss(y, np.clip(p, 1e-7, 1 - 1e-7)),
        "brier": sk.brier_score_loss(y, p),
        "auc": sk.roc_auc_score(y, p),
        "average_precision": sk.average_precision_score(y, p),
        "accuracy": sk.accuracy_score(y, said),
        "precision": sk.precision_score(y, said, zero_division=0),
        "recall": sk.recall_score(y, said, zero_division=0),
        "f1": sk.f1_score(y, said, zero_division=0),
    }


def test_numbers_keep_six_digits_in_any_unit_and_one_is_rounded_as_many_are():
    random = np.random.default_rng(2)
    scores = (random.normal(size=5000) * 10 ** random.uniform(-12, 12, 5000)).astype(
        np.float32
    )
    scores = scores.astype(float)
    assert np.abs(predict(scores, None) / scores - 1).max() <= 5e-6
    assert predict(np.array([1.23456789e-7, -2345678.9]), None).tolist() == [
        1.23457e-7,
        -2345680,
    ]
    for threshold in (None, 0.5):
        alone = [rounded([score], threshold).item() for score in scores]
        assert [rounded_one(score, threshold) for score in scores] == alone
        assert alone == rounded(scores, threshold).tolist()
    assert rounded([0.49999951, 1e-7], 0.5).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("threshold", [0.01, 0.37, 0.5, 0.99])
@pytest.mark.parametrize("digits", [1, 6])
def test_every_metric_is_scikit_learns(threshold, digits):
    y, p = some(400, digits=digits)
    ours = all_metrics(y, Scored(p, threshold), COSTS)
    expected = by_sklearn(y, p, threshold)
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    tn, fp, fn, tp = sk.confusion_matrix(y, predict(p, threshold)).ravel()
    assert [ours[cell] for cell in ("tn", "fp", "fn", "tp")] == [tn, fp, fn, tp]
    # Acting on tp + fp; of the losses, one in five of those acted on is averted.
    assert ours["cost"] == pytest.approx((tp + fp + 10 * (fn + 0.8 * tp)) / 400)


def test_the_bootstrap_is_that_of_rows_drawn_one_by_one():
    y, p = some(300)
    champion = Scored(np.full(300, 0.5), 0.6)
    found = resampled(y, {"a": Scored(p, 0.4), "b": champion}, COSTS, seed=7)
    random = np.random.default_rng(7)
    for resample in range(60):
        rows = random.integers(0, 300, 300)
        expected = by_sklearn(y[rows], p[rows], 0.4)
        ours = {name: found["a"][name][resample] for name in expected}
        assert ours == pytest.approx(expected, abs=1e-6)
        assert found["b"]["recall"][resample] == 0
    assert len(found["a"]["auc"]) == RESAMPLES


def test_the_interval_of_a_mean_is_that_of_the_normal_and_the_same_for_a_seed():
    y, p = some(2000)
    samples = resampled(y, {"a": Scored(p, 0.5)}, COSTS, 7)["a"]["accuracy"]
    found = interval(0.7, samples)
    mean = np.mean(y == predict(p, 0.5))
    half = 1.96 * np.sqrt(mean * (1 - mean) / 2000)
    assert (found.low, found.high) == pytest.approx(
        (mean - half, mean + half), abs=0.1 * half
    )
    again = resampled(y, {"a": Scored(p, 0.5)}, COSTS, 7)["a"]["accuracy"]
    assert interval(0.7, again) == found
    assert interval(0.7, np.array([np.nan, 1.0, 1.0])) == Interval(0.7, 1.0, 1.0)


numbers = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=200, deadline=None)
@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=2, max_size=60))
def test_every_metric_of_numbers_is_scikit_learns(pairs):
    y, p = np.array(pairs).T
    ours = all_metrics(y, Scored(p, None), None)
    expected = {
        "rmse": sk.root_mean_squared_error(y, p),
        "mae": sk.mean_absolute_error(y, p),
        "r2": sk.r2_score(y, p) if np.ptp(y) > 1e-3 * np.abs(y).max() else ours["r2"],
    }
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)
    assert rmse(y, p) == pytest.approx(ours["rmse"])
    # No constant is better at a metric than the one that is said to be the best.
    best = best_constant(y, Scored(y, None), None)
    for constant in (*y, y.mean(), np.median(y)):
        other = all_metrics(y, Scored(np.full(len(y), constant), None), None)
        assert best["rmse"] <= other["rmse"] * (1 + 1e-9)
        assert best["mae"] <= other["mae"] * (1 + 1e-9)


def many(rows, classes, seed):
    """Labels of many classes, some of which may be absent, and probabilities with ties."""
    random = np.random.default_rng(seed)
    p = np.round(random.dirichlet(np.full(classes, 0.7), rows) * 20 + 0.5)
    p /= p.sum(axis=1, keepdims=True)
    kept = max(1, classes - seed % 3)
    return np.array(
        [random.choice(kept, p=row[:kept] / row[:kept].sum()) for row in p]
    ), p


@pytest.mark.parametrize("seed", range(12))
def test_every_metric_of_many_classes_is_scikit_learns(seed):
    rows, classes = (4, 40, 400)[seed % 3], 3 + seed % 4
    y, p = many(rows, classes, seed)
    said, macro = p.argmax(axis=1), {"average": "macro", "zero_division": 0}
    labels, ours = [*range(classes)], all_metrics(y, Scored(p, None), None)
    expected = {
        "log_loss": sk.log_loss(y, p, labels=labels),
        "brier": sk.brier_score_loss(y, p, labels=labels),
        "accuracy": sk.accuracy_score(y, said),
        "precision": sk.precision_score(y, said, **macro),
        "recall": sk.recall_score(y, said, **macro),
        "f1": sk.f1_score(y, said, **macro),
    }
    assert ours == pytest.approx(expected)
    best = best_constant(y, Scored(p, None), None)
    shares = np.bincount(y, minlength=classes) / rows
    entropy = -np.sum(shares[shares > 0] * np.log(shares[shares > 0]))
    assert best["log_loss"] == pytest.approx(entropy, abs=1e-6)
    right, top = top_class(y, Scored(p, None))
    assert (right.mean(), top.tolist()) == (ours["accuracy"], p.max(axis=1).tolist())


def test_the_bootstrap_of_many_classes_is_that_of_rows_drawn_one_by_one():
    y, p = many(60, 4, 2)
    found = resampled(y, {"a": Scored(p, None)}, None, seed=7)["a"]
    random = np.random.default_rng(7)
    for resample in range(50):
        rows = random.integers(0, 60, 60)
        drawn = all_metrics(y[rows], Scored(p[rows], None), None)
        assert {name: found[name][resample] for name in drawn} == pytest.approx(drawn)
    (north, south) = by_segment(pd.Series(["n", "s"] * 30), y, Scored(p, None), None)
    own = all_metrics(y[::2], Scored(p[::2], None), None)
    assert (north.rows, south.rows, north.metrics) == (30, 30, pytest.approx(own))


def test_the_bootstrap_of_numbers_is_that_of_rows_drawn_one_by_one():
    random = np.random.default_rng(3)
    y = random.lognormal(3, 1, 200) * (random.random(200) < 0.3)
    p = y * 0.5 + random.normal(size=200)
    found = resampled(y, {"a": Scored(p, None), "b": Scored(p + 1, None)}, None, seed=7)
    random = np.random.default_rng(7)
    for resample in range(60):
        rows = random.integers(0, 200, 200)
        for name, scores in (("a", p), ("b", p + 1)):
            drawn = all_metrics(y[rows], Scored(scores[rows], None), None)
            assert {m: found[name][m][resample] for m in drawn} == pytest.approx(drawn)
    assert len(found["a"]["r2"]) == RESAMPLES


def test_what_is_undefined_is_no_number():
    same = all_metrics(np.full(7, 0.1), Scored(np.arange(7.0), None), None)
    assert np.isnan(same["r2"])
    assert np.isfinite(same["rmse"])
    ones = all_metrics(np.array([1, 1]), Scored(np.array([0.2, 0.9]), 0.5), COSTS)
    assert np.isnan(ones["auc"])
    assert (ones["recall"], ones["precision"], ones["average_precision"]) == (
        0.5,
        1.0,
        1.0,
    )
    zeros = all_metrics(np.array([0, 0]), Scored(np.array([0.2, 0.3]), 0.5), COSTS)
    assert np.isnan(zeros["auc"])
    assert np.isnan(zeros["average_precision"])
    assert (zeros["recall"], zeros["precision"], zeros["f1"]) == (0, 0, 0)


def test_a_tie_at_the_threshold_falls_the_same_way_as_in_serving():
    assert predict(np.array([0.4999999, 0.5, 0.4999994]), 0.5).tolist() == [1, 1, 0]
    assert predict(np.array([-31.4999999, 7e9]), None).tolist() == [
        -31.5,
        7e9,
    ]  # a number stays


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
    y, p = some(200_000, digits=4)  # calibrated by construction
    assert cheapest_threshold(y, p, costs, 0.5) == pytest.approx(pays_from, abs=0.03)


def test_of_equally_cheap_thresholds_it_is_the_one_nearest_to_the_specs():
    y, p = np.array([0, 0, 1, 1]), np.array([0.2, 0.3, 0.7, 0.8])
    for otherwise, chosen in ((0.5, 0.5), (0.9, 0.7), (0.1, 0.31)):
        assert cheapest_threshold(y, p, COSTS, otherwise) == chosen


def test_calibration_by_hand():
    # Ten bins of two rows: said 0.4 or 0.6, seen 0.5, in every one.
    expected = {"ece": 0.1, "reliability": 0.01, "resolution": 0, "uncertainty": 0.25}
    for said in (0.4, 0.6):
        parts = calibration(np.array([0, 1] * 10), np.full(20, said))
        assert parts == pytest.approx(expected)
    # Perfect: every bin says what is seen, and is sure of it.
    y, p = np.repeat([0, 1], 10), np.repeat([0.0, 1.0], 10)
    expected = {"ece": 0, "reliability": 0, "resolution": 0.25, "uncertainty": 0.25}
    assert calibration(y, p) == pytest.approx(expected)


def test_the_parts_of_the_brier_score_are_the_whole_where_bins_are_of_one_score():
    p = np.repeat(np.arange(10) / 10 + 0.03, 50)
    y = (np.random.default_rng(2).random(500) < p).astype(np.int64)
    parts = calibration(y, p)
    brier = all_metrics(y, Scored(p, 0.5), COSTS)["brier"]
    assert parts["reliability"] - parts["resolution"] + parts[
        "uncertainty"
    ] == pytest.approx(brier)


def test_equal_scores_lie_in_one_bin_whatever_the_order_of_the_rows():
    y = np.repeat([0, 1], [60, 40])  # in the order of a key that goes with the label
    assert calibration(y, np.full(100, 0.4))["ece"] == pytest.approx(0)
    p = np.where(np.arange(100) < 50, 0.1, 0.7)
    y = np.concatenate([np.repeat([0, 1], [45, 5]), np.repeat([1, 0], [35, 15])])
    parts = calibration(y, p)
    assert [parts["ece"], parts["reliability"]] == pytest.approx([0, 0])
    assert parts["resolution"] == pytest.approx(0.09)


def test_calibration_and_segments_of_numbers_by_hand():
    # Ten bins of two rows: bin k says 10 k, seen are 10 k + 3 and 10 k - 1.
    p = np.repeat(np.arange(10) * 10.0, 2)
    y = p + np.tile([3.0, -1.0], 10)
    parts = calibration(y, p)
    assert parts == pytest.approx(
        {"ece": 1, "reliability": 1, "resolution": 825, "uncertainty": y.var()}
    )
    error = (
        all_metrics(y, Scored(p, None), None)["rmse"] ** 2
    )  # 4 of it vary within a bin
    whole = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    assert whole == pytest.approx(error)
    column = pd.Series(["low"] * 10 + ["up"] * 10)
    low, up = by_segment(column, y, Scored(p, None), None)
    assert (low.prevalence, low.selected, up.selected) == (21, 20, 70)
    assert up.metrics == all_metrics(y[10:], Scored(p[10:], None), None)


def test_segments_and_the_gaps_between_them_by_hand():
    column = pd.Series(["b"] * 4 + ["a"] * 4 + ["c"])
    y = np.array([1, 1, 0, 0, 1, 1, 1, 0, 0])
    p = np.array([0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.6])
    a, b, c = by_segment(column, y, Scored(p, 0.5), COSTS)
    assert (a.value, a.rows, a.prevalence, a.selected) == ("a", 4, 0.75, 1.0)
    assert (b.value, b.rows, b.prevalence, b.selected) == ("b", 4, 0.5, 0.25)
    assert (c.value, c.rows, c.metrics["fp"]) == ("c", 1, 1)
    assert b.metrics == all_metrics(y[:4], Scored(p[:4], 0.5), COSTS)
    # Predicted 1: a 4/4, b 1/4, c 1/1. Of true 1s: a 3/3, b 1/2, c none. Of true 0s: 1/1, 0/2, 1/1.
    assert fairness((a, b, c)) == {
        "demographic_parity_difference": 0.75,
        "equal_opportunity_difference": 0.5,
        "largest_gap": 1.0,
    }
    assert set(fairness((a,)).values()) == {0.0}
    assert fairness(()) == {}
