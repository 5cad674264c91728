"""The gates of a spec, as decisions over measured numbers."""

import numpy as np
import pytest

from core.project import PROJECT
from core.spec import load_spec
from core.spec.training import AgainstChampion, BetterThanBaseline, Limit
from tests.support.training.scored_rows import some_rows
from tests.training.conftest import SHIPPED
from training.evaluation.metrics import Interval, Scored, all_metrics
from training.evaluation.results import Evaluation
from training.stages.evaluate import measure_models
from training.stages.gate import apply_gates

DELIVERY = load_spec("delivery", PROJECT / "tests/training/deliveries/models")
BETTER_THAN_BASELINE = BetterThanBaseline(
    metric="log_loss", rule="better_than_baseline"
)
NOT_WORSE = AgainstChampion(
    metric="log_loss", rule="not_worse_than_champion", margin_percent=0.5
)
BETTER = AgainstChampion(
    metric="log_loss", rule="better_than_champion", margin_percent=2
)
AT_ALL_BETTER = BETTER.model_copy(update={"margin_percent": 0})


def evaluation(value=0.6, difference=(-0.02, -0.03, -0.01), metric="log_loss", **more):
    champions = {"champion_version": "1", "champion": {metric: 0.625}} | more
    return Evaluation(
        rows=100, challenger={metric: value}, baseline={metric: 0.67},
        differences={metric: Interval(*difference)}, **champions,
    )  # fmt: skip


def passes(gate, measured):
    """Whether the gate passes; the last outcome is that of the ONNX proof."""
    outcome, _ = apply_gates([gate], measured)
    return outcome.passed


def test_a_model_better_than_the_best_constant_passes_and_an_equal_model_does_not():
    assert passes(BETTER_THAN_BASELINE, evaluation())
    assert not passes(BETTER_THAN_BASELINE, evaluation(value=0.67))


@pytest.mark.parametrize(
    ("gate", "metric", "difference", "passed"),
    [
        (NOT_WORSE, "log_loss", (-0.02, -0.03, -0.01), True),
        (NOT_WORSE, "log_loss", (0.0, -0.003, 0.0031), True),  # 0.5 % are 0.003125
        (NOT_WORSE, "log_loss", (-0.001, -0.006, 0.004), False),  # might be 0.6 % worse
        (NOT_WORSE, "log_loss", (0.0001, -0.002, 0.002), False),  # is worse
        (NOT_WORSE, "auc", (0.01, -0.003, 0.03), True),  # of more, the lower end counts
        (NOT_WORSE, "auc", (0.01, -0.02, 0.03), False),
        (BETTER, "log_loss", (-0.0125, -1, 1), True),  # 2 % of 0.625, to the bit
        (BETTER, "log_loss", (-0.0124, -1, 1), False),
        (BETTER, "auc", (0.0125, -1, 1), True),
        (BETTER, "auc", (0.0124, -1, 1), False),
        (AT_ALL_BETTER, "log_loss", (-1e-9, -1, 1), True),
        (AT_ALL_BETTER, "log_loss", (0, -1, 1), False),
    ],
)
def test_a_challenger_passes_if_confidently_no_worse_or_better_by_the_margin(
    gate, metric, difference, passed
):
    gate = gate.model_copy(update={"metric": metric})
    measured = evaluation(difference=difference, metric=metric)
    assert passes(gate, measured) is passed


@pytest.mark.parametrize(
    ("rule", "value", "passed"),
    [
        ("at_least", 0.3, True),
        ("at_least", 0.3001, False),
        ("at_most", 0.3, True),
        ("at_most", 0.2999, False),
    ],
)
def test_a_limit_holds_for_metrics_and_figures(rule, value, passed):
    measured = evaluation(value=0.3, metric="recall", figures={"largest_gap": 0.3})
    for metric in ("recall", "largest_gap"):
        gate = Limit(metric=metric, rule=rule, value=value)
        outcome, _ = apply_gates([gate], measured)
        assert outcome.passed is passed
        assert f"{metric} is 0.3, required: {rule}" in outcome.text


def test_nan_passes_no_gate():
    nan = float("nan")
    measured = evaluation(value=nan, difference=(nan, nan, nan))
    least = Limit(metric="log_loss", rule="at_least", value=0)
    most = Limit(metric="log_loss", rule="at_most", value=0)
    for gate in (BETTER_THAN_BASELINE, NOT_WORSE, BETTER, least, most):
        assert not passes(gate, measured)


def test_an_onnx_file_with_different_scores_is_refused_by_any_spec():
    assert [outcome.passed for outcome in apply_gates([], evaluation())] == [True]
    (refused,) = apply_gates([], evaluation(unproved="real: largest difference 0.3"))
    assert not refused.passed
    assert "largest difference 0.3" in refused.text


def test_both_rules_pass_without_a_champion_and_fail_with_an_unavailable_champion():
    for gate in (NOT_WORSE, BETTER):
        assert passes(gate, evaluation(champion_version=None))
        outcome, _ = apply_gates([gate], evaluation(unavailable="digest is wrong"))
        assert not outcome.passed
        assert "digest is wrong" in outcome.text


def test_the_champion_is_measured_at_its_own_threshold():
    y, p = some_rows(200)
    measured = measure_models(SHIPPED, y, Scored(p, 0.99), Scored(p, 0.5), "3")
    expected = all_metrics(y, Scored(p, 0.5), SHIPPED.costs)
    assert measured.champion == pytest.approx(expected)
    assert measured.differences["log_loss"] == Interval(0, 0, 0)
    assert measured.differences["recall"].high < 0


@pytest.mark.parametrize(
    ("spec", "y", "few"),
    [
        (SHIPPED, [1] * 3 + [0] * 2997, {"1": "3 of 3,000"}),
        (SHIPPED, [1] * 20 + [0] * 20, {}),
        (SHIPPED, [1] * 60 + [0] * 19, {"0": "19 of 79"}),
        (SHIPPED.model_copy(update={"least_class_rows": 3}), [1] * 3 + [0] * 99, {}),
        (DELIVERY, [0] * 50 + [1] * 19 + [2] * 40, {"on_time": "19 of 109"}),
        (DELIVERY, [0] * 50 + [1] * 50, {"late": "0 of 100"}),
    ],
)
def test_a_test_set_with_few_rows_of_a_class_is_refused_with_its_figures(spec, y, few):
    y = np.array(y)
    shares = np.eye(max(len(spec.classes), 2))[y] * 0.5 + 0.25
    model = Scored(shares if spec.classes else shares[:, 1], spec.threshold)
    measured = measure_models(spec, y, model, None, None)
    outcomes = apply_gates([], measured, spec.least_class_rows)
    refused = [outcome.text for outcome in outcomes if not outcome.passed]
    assert len(refused) == len(few)
    for text, (name, count) in zip(refused, few.items(), strict=True):
        assert text.startswith(f"{count} test rows are of class {name}, required: at")
