"""Label drift: outcomes beside those of the evaluation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from core.spec import load_spec
from core.spec.monitoring import Monitoring
from monitoring.checks.check_list import performance
from monitoring.checks.report import report_results
from monitoring.decisions.decision import judge
from monitoring.log.outcomes import Outcomes
from monitoring.measurements.labels import label_change
from monitoring.run import _judge
from training.evaluation.metrics import Scored
from training.evaluation.psi import UsualSpread
from training.evaluation.reference import Reference

SPEC = load_spec("customer_churn_model")
NUMBERS = SPEC.model_copy(update={"task": "regression"})
CLASSES = SPEC.model_copy(update={"task": "multiclass", "classes": ("a", "b", "c")})


def of_labels(values):
    labels = np.asarray(values)
    rows = pa.table({"label": labels})
    return Outcomes("online", "June", rows, Scored(np.full(len(labels), 0.5), 0.5))


def evaluated_on(values):
    rows = pd.DataFrame({"label": values})
    return Reference(
        rows=rows, features={}, snapshot=None, threshold=0.5, evaluated={},
        spread=UsualSpread(),
    )  # fmt: skip


def change(spec, now, then):
    (measured,) = label_change(spec, of_labels(now), evaluated_on(then))
    return measured


def test_the_share_of_1s_stands_beside_that_of_the_evaluation():
    then = [1] * 300 + [0] * 700 + [np.nan] * 500
    now = change(SPEC, [1] * 600 + [0] * 400, then)
    assert now.name == "online/label_change"
    assert now.value == pytest.approx(0.3)
    assert now.limit == pytest.approx(0.1 + 3 * np.sqrt(0.24 / 1000 + 0.21 / 1000))
    assert now.is_bad
    assert now.words.startswith("share of churned_90d 1 0.600 (June), was 0.300")
    assert not change(SPEC, [1] * 420 + [0] * 580, then).is_bad
    few = [1] * 6 + [0] * 4  # as far away by chance
    assert not change(SPEC, few, then).is_bad
    wide = SPEC.monitoring.model_copy(update={"label_change": 0.4})
    patient = SPEC.model_copy(update={"monitoring": wide})
    assert not change(patient, [1] * 600 + [0] * 400, then).is_bad


def test_of_many_classes_the_one_that_moved_most_counts_a_new_one_too():
    then = [0] * 500 + [1] * 500
    now = change(CLASSES, [0] * 450 + [1] * 150 + [2] * 400, then)
    assert now.value == pytest.approx(0.4)
    assert "share of churned_90d c 0.400 (June), was 0.000" in now.words
    assert not change(CLASSES, then, then).is_bad


def test_of_numbers_the_mean_is_compared_in_standard_deviations():
    draw = np.random.default_rng(0)
    then = draw.normal(50, 10, 4000)
    assert not change(NUMBERS, draw.normal(50, 10, 4000), then).is_bad
    moved = change(NUMBERS, draw.normal(54, 10, 4000), then)
    assert moved.value == pytest.approx(0.4, abs=0.08)
    assert moved.is_bad
    constant = change(NUMBERS, [3.0] * 400, [3.0] * 400)
    assert (constant.value, constant.is_bad) == (0, False)


@pytest.mark.filterwarnings("ignore:.*encountered in s:RuntimeWarning")
def test_a_number_that_was_constant_is_compared_by_itself_and_an_infinite_one_not():
    then = [0.3] * 1000  # of which a standard deviation is not quite 0
    moved = change(NUMBERS, [0.3] * 200 + [0.9] * 200, then)
    assert moved.value == pytest.approx(0.3)
    for value in (np.inf, 1e300):  # neither has a variance
        labels = of_labels([1.0, 2.0, value] * 100)
        assert [*label_change(NUMBERS, labels, evaluated_on([1.0, 2.0]))] == []


def test_without_a_label_of_the_evaluation_nothing_is_compared():
    measured = label_change(SPEC, of_labels([1, 0]), evaluated_on([np.nan, np.nan]))
    assert [*measured] == []


def test_outcomes_that_are_all_the_same_are_a_change_and_say_nothing_of_performance():
    then = evaluated_on([1] * 300 + [0] * 700)
    (judged,) = _judge(SPEC, of_labels([0] * 400), then)
    (moved,) = judged.metrics
    assert (moved.metric, moved.is_bad) == ("label_change", True)
    run = SimpleNamespace(judged=[judged], unmeasured=[])
    (known,) = performance(run, then)
    assert (known.status, known.value) == ("note", None)
    (both,) = _judge(SPEC, of_labels([0] * 300 + [1] * 100), then)
    assert "f1" in {measured.metric for measured in both.metrics}
    assert [*performance(SimpleNamespace(judged=[both], unmeasured=[]), then)] == []


def test_label_drift_alerts_and_makes_no_window_bad(tmp_path):
    then = [1] * 300 + [0] * 700
    moved = change(SPEC, [1] * 600 + [0] * 400, then)
    reference = replace(evaluated_on(then), rows=pd.DataFrame({"label": []}))
    window = pd.DataFrame({"score": []})
    (result,) = report_results(Monitoring(), reference, window, [moved], tmp_path)
    assert (result.kind, result.status) == ("label_drift", "alert")
    assert "name label_drift in [monitoring.monitor_only]" in result.remedy
    assert judge([result]) == "ok"
