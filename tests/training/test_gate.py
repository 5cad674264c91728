"""The gates of a spec, as decisions over measured numbers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss

from stack.spec import Gate, load_spec
from training.evaluate import compare
from training.gate import Evaluation, decide
from training.metrics import Difference, all_metrics, log_loss, paired_difference, predict

TRIVIAL = Gate(metric="log_loss", rule="better_than_trivial")
CHAMPION = Gate(metric="log_loss", rule="not_worse_than_champion", margin_percent=0.5)


def evaluation(ours=0.6, trivial=0.67, champion=0.62, difference=(-0.02, -0.03, -0.01), **more):
    known = {"champion_version": "1", "champion": {"log_loss": champion}} | more
    return Evaluation(
        rows=100, challenger={"log_loss": ours}, trivial={"log_loss": trivial},
        differences={"log_loss": Difference(*difference)}, **known,
    )  # fmt: skip


def test_better_than_the_best_constant_passes_and_equal_does_not():
    assert decide([TRIVIAL], evaluation())[0].passed
    assert not decide([TRIVIAL], evaluation(ours=0.67))[0].passed


@pytest.mark.parametrize(
    ("difference", "passed"),
    [
        ((-0.02, -0.03, -0.01), True),
        ((0.0, -0.003, 0.003), True),  # 0.5 % of 0.62 is 0.0031
        ((-0.001, -0.006, 0.004), False),  # might be 0.6 % worse
        ((0.0001, -0.002, 0.002), False),  # is worse
    ],
)
def test_no_worse_than_the_champion_with_confidence(difference, passed):
    outcome = decide([CHAMPION], evaluation(difference=difference))[0]
    assert outcome.passed is passed
    assert "version 1" in outcome.text


def test_where_more_is_better_the_lower_end_counts():
    gate = Gate(metric="auc", rule="not_worse_than_champion", margin_percent=1)
    for low, passed in ((-0.005, True), (-0.02, False)):
        found = Evaluation(100, {"auc": 0.71}, {"auc": 0.5}, "1", {"auc": 0.7},
                           {"auc": Difference(0.01, low, 0.03)})  # fmt: skip
        assert decide([gate], found)[0].passed is passed


def test_without_a_champion_there_is_nothing_to_be_worse_than():
    assert decide([CHAMPION], evaluation(champion_version=None))[0].passed


def test_a_champion_that_cannot_be_compared_blocks():
    outcome = decide([CHAMPION], evaluation(unavailable="digest is wrong"))[0]
    assert not outcome.passed
    assert "digest is wrong" in outcome.text


def test_metrics_stand_beside_the_best_constant():
    spec, random = load_spec("customer_churn_model"), np.random.default_rng(1)
    y = (random.random(2000) < 0.6).astype(np.int64)
    p = np.clip(0.4 * y + 0.5 * random.random(2000), 0.01, 0.99)
    found = compare(spec, y, p, None, None)
    share = y.mean()
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert found.trivial["log_loss"] == pytest.approx(entropy)
    assert found.trivial["auc"] == 0.5
    assert found.trivial["recall"] == 1.0  # always churn
    assert found.challenger["log_loss"] == pytest.approx(sklearn_log_loss(y, p))
    assert sum(found.challenger[cell] for cell in ("tn", "fp", "fn", "tp")) == 2000
    assert found.differences == {}


def test_a_tie_at_the_threshold_falls_the_same_way_as_in_serving():
    assert predict(np.array([0.4999999, 0.5, 0.4999994]), 0.5).tolist() == [1, 1, 0]


def test_log_loss_of_certainty_gone_wrong_is_finite():
    assert np.isfinite(log_loss(np.array([1, 0]), np.array([0.0, 1.0])))
    assert set(all_metrics(np.array([1, 0]), np.array([0.2, 0.3]), 0.5)) >= {"f1", "tp", "auc"}


def test_the_interval_of_a_difference_covers_it_and_is_the_same_for_a_seed():
    random = np.random.default_rng(3)
    y = (random.random(500) < 0.6).astype(np.int64)
    good, bad = np.where(y == 1, 0.7, 0.3), np.full(500, 0.6)
    first = paired_difference("log_loss", y, good, bad, 0.5, 7)
    assert first.low < first.value < first.high < 0
    assert first == paired_difference("log_loss", y, good, bad, 0.5, 7)
