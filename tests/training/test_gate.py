"""The gates of a spec, as decisions over measured numbers."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter
from sklearn.metrics import log_loss as sklearn_log_loss

from core.spec import load_spec
from core.training_spec import AgainstChampion, BetterThanBaseline, Gate, Limit
from training.evaluate import compare
from training.gate import Evaluation, decide
from training.metrics import Interval, Scored

SPEC = load_spec("customer_churn_model")
BETTER_THAN_BASELINE = BetterThanBaseline(
    metric="log_loss", rule="better_than_baseline"
)
CHAMPION = AgainstChampion(
    metric="log_loss", rule="not_worse_than_champion", margin_percent=0.5
)
BETTER = AgainstChampion(
    metric="log_loss", rule="better_than_champion", margin_percent=2
)


def evaluation(
    ours=0.6, baseline=0.67, champion=0.62, difference=(-0.02, -0.03, -0.01),
    metric="log_loss", **more,
):  # fmt: skip
    known = {"champion_version": "1", "champion": {metric: champion}} | more
    return Evaluation(
        rows=100, challenger={metric: ours}, baseline={metric: baseline},
        differences={metric: Interval(*difference)}, **known,
    )  # fmt: skip


def test_better_than_the_best_constant_passes_and_equal_does_not():
    assert decide([BETTER_THAN_BASELINE], evaluation())[0].passed
    assert not decide([BETTER_THAN_BASELINE], evaluation(ours=0.67))[0].passed


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
    gate = AgainstChampion(
        metric="auc", rule="not_worse_than_champion", margin_percent=1
    )
    for low, passed in ((-0.005, True), (-0.02, False)):
        found = evaluation(0.71, 0.5, 0.7, (0.01, low, 0.03), metric="auc")
        assert decide([gate], found)[0].passed is passed


@pytest.mark.parametrize(
    ("metric", "difference", "passed"),
    [
        ("log_loss", -0.0125, True),  # 2 % of 0.625, to the bit
        ("log_loss", -0.0124, False),
        ("log_loss", 0.0125, False),
        ("auc", 0.0125, True),
        ("auc", 0.0124, False),
        ("auc", -0.0125, False),
    ],
)
def test_better_than_the_champion_by_two_percent(metric, difference, passed):
    gate = BETTER.model_copy(update={"metric": metric})
    found = evaluation(champion=0.625, difference=(difference, -1, 1), metric=metric)
    assert decide([gate], found)[0].passed is passed


def test_better_than_the_champion_by_nothing_is_not_better():
    gate = BETTER.model_copy(update={"margin_percent": 0})
    for difference, passed in ((-1e-9, True), (0, False)):
        found = evaluation(difference=(difference, -1, 1))
        assert decide([gate], found)[0].passed is passed


@pytest.mark.parametrize(
    ("rule", "value", "passed"),
    [
        ("at_least", 0.3, True),
        ("at_least", 0.3001, False),
        ("at_most", 0.3, True),
        ("at_most", 0.2999, False),
    ],
)
@pytest.mark.parametrize(
    "metric", ["recall", "largest_gap", "model_mb", "latency_p99_ms"]
)
def test_a_limit_holds_for_metrics_fairness_size_and_latency(
    metric, rule, value, passed
):
    more = {} if metric == "recall" else {"figures": {metric: 0.3}}
    found = evaluation(ours=0.3 if metric == "recall" else 9.0, **more)
    found.challenger.update({"recall": 0.3} if metric == "recall" else {})
    outcome = decide([Limit(metric=metric, rule=rule, value=value)], found)[0]
    assert outcome.passed is passed
    assert f"{metric} is 0.3, allowed is {rule}" in outcome.text


def test_what_is_no_number_passes_no_gate():
    gates = [BETTER_THAN_BASELINE, CHAMPION, BETTER] + [
        Limit(metric="log_loss", rule=rule, value=0) for rule in ("at_least", "at_most")
    ]
    nan = float("nan")
    outcomes = decide(gates, evaluation(ours=nan, difference=(nan, nan, nan)))
    assert [outcome.passed for outcome in outcomes] == [False] * 5 + [True]


def test_onnx_that_scores_otherwise_is_refused_whatever_the_spec_asks():
    assert [o.rule for o in decide([], evaluation()) if o.passed] == ["onnx_proof"]
    refused = decide(
        [BETTER_THAN_BASELINE], evaluation(unproved="real: largest difference 0.3")
    )[-1]
    assert not refused.passed
    assert "largest difference 0.3" in refused.text


def test_a_gate_on_cost_asks_for_less_than_the_cheaper_of_nobody_and_everybody():
    y = np.array([1] * 6 + [0] * 4)
    gate = BetterThanBaseline(metric="cost", rule="better_than_baseline")
    for p, cost, passed in ((y * 0.9, 5.4, True), (np.full(10, 0.9), 5.8, False)):
        found = compare(SPEC, y, Scored(p, 0.5), None, None)
        # Acting costs 1, a loss 10, one in five is averted: (6 + 10 * 6 * 0.8) / 10 and so on.
        assert found.challenger["cost"] == pytest.approx(cost)
        assert found.figures["cost_nobody"] == pytest.approx(6.0)
        assert found.figures["cost_everybody"] == pytest.approx(5.8)
        assert found.baseline["cost"] == pytest.approx(5.8)
        assert decide([gate], found)[0].passed is passed


def test_the_best_constant_of_numbers_is_their_mean_and_for_mae_their_median():
    spec = SPEC.model_copy(
        update={"task": "regression", "threshold": None, "costs": None}
    )
    y = np.array([0.0, 0.0, 0.0, 10.0])
    found = compare(spec, y, Scored(np.array([0.0, 1.0, 0.0, 8.0]), None), None, None)
    assert found.baseline["rmse"] == pytest.approx(np.std(y))
    assert (found.baseline["mae"], found.baseline["r2"]) == (
        2.5,
        0,
    )  # around the mean it is 3.75
    assert "cost_nobody" not in found.figures
    ours = {"rmse": (5 / 4) ** 0.5, "mae": 0.75, "r2": 1 - 5 / 75}
    assert found.challenger == pytest.approx(ours)
    for metric in ours:
        gate = BetterThanBaseline(metric=metric, rule="better_than_baseline")
        assert decide([gate], found)[0].passed


def test_each_rule_of_a_file_becomes_its_own_gate():
    read = TypeAdapter(list[Gate]).validate_python
    assert read([gate.model_dump() for gate in (BETTER_THAN_BASELINE, CHAMPION, BETTER)]) == [
        BETTER_THAN_BASELINE, CHAMPION, BETTER,
    ]  # fmt: skip
    assert read([{"metric": "model_mb", "rule": "at_most", "value": 5}])[0].value == 5


def test_without_a_champion_there_is_nothing_to_be_worse_than():
    outcomes = decide([CHAMPION, BETTER], evaluation(champion_version=None))
    assert [outcome.passed for outcome in outcomes] == [True] * 3


def test_a_champion_that_cannot_be_compared_blocks():
    for outcome in decide(
        [CHAMPION, BETTER], evaluation(unavailable="digest is wrong")
    )[:2]:
        assert not outcome.passed
        assert "digest is wrong" in outcome.text


def test_metrics_stand_beside_the_best_constant_and_the_champion():
    random = np.random.default_rng(1)
    y = (random.random(2000) < 0.6).astype(np.int64)
    p = np.clip(0.4 * y + 0.5 * random.random(2000), 0.01, 0.99)
    found = compare(SPEC, y, Scored(p, 0.5), None, None)
    share = y.mean()
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert found.baseline["log_loss"] == pytest.approx(entropy)
    assert found.baseline["brier"] == pytest.approx(share * (1 - share))
    assert found.baseline["auc"] == 0.5
    assert found.baseline["recall"] == 1.0  # always churn
    assert found.challenger["log_loss"] == pytest.approx(sklearn_log_loss(y, p))
    assert sum(found.challenger[cell] for cell in ("tn", "fp", "fn", "tp")) == 2000
    assert found.differences == {}
    high = compare(SPEC, y, Scored(p, 0.99), Scored(p, 0.5), "3")
    assert high.baseline == found.baseline  # whatever the threshold
    assert high.champion == found.challenger  # at its own
    assert high.differences["log_loss"] == Interval(0, 0, 0)
    assert high.differences["recall"].high < 0
