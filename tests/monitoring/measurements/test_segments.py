"""Bias in production: positive rates and performance of segments, and the gaps between them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from core.spec import MISSING, load_spec
from monitoring.checks.report import report_results
from monitoring.decisions.decision import describe, judge
from monitoring.log.outcomes import Outcomes
from monitoring.measurements.segments import segments_of_outcomes, segments_of_window
from training.evaluation.metrics import Scored
from training.evaluation.psi import UsualSpread
from training.evaluation.reference import Reference

LIMITS = {"demographic_parity_difference": 0.3, "equal_opportunity_difference": 0.2}
SHIPPED = load_spec("customer_churn_model")
SPEC = SHIPPED.model_copy(
    update={
        "segment": ("customer_segment", "region"),
        "audit": {"region": "string"},
        "monitoring": SHIPPED.monitoring.model_copy(
            update={"fewest": 100, "bias": LIMITS}
        ),
    }
)
EVALUATED = pd.DataFrame(
    {
        "customer_segment": ["loyal"] * 100 + ["new"] * 100,
        "score": np.tile([0.8, 0.2], 100),
    }
)
REFERENCE = Reference(
    rows=EVALUATED.assign(label=1.0), features={}, snapshot=None, threshold=0.5,
    evaluated={}, spread=UsualSpread(),
)  # fmt: skip


def predictions(**positive):
    """As many rows of each segment as there are 1s and 0s predicted of it."""
    frames = [
        pd.DataFrame(
            {
                "customer_segment": [None if name == MISSING else name] * (ones + nils),
                "score": [0.9] * ones + [0.1] * nils,
            }
        )
        for name, (ones, nils) in positive.items()
    ]
    return pd.concat(frames, ignore_index=True)


def window_figures(window, spec=SPEC, reference=REFERENCE):
    return {each.name: each for each in segments_of_window(spec, window, reference)}


def test_the_positive_rate_of_each_segment_stands_beside_the_references():
    window = predictions(
        loyal=(30, 120), new=(80, 20), few=(99, 0), **{MISSING: (60, 60)}
    )
    found = window_figures(window)
    assert {name: each.value for name, each in found.items()} == {
        "positive_rate/customer_segment=loyal": 0.2,
        f"positive_rate/customer_segment={MISSING}": 0.5,
        "positive_rate/customer_segment=new": 0.8,
        "demographic_parity_difference/customer_segment": pytest.approx(0.6),
    }
    loyal = found["positive_rate/customer_segment=loyal"]
    assert (
        "0.200 of a segment of customer_segment, 0.500 in the reference" in loyal.words
    )
    assert "loyal" not in loyal.words
    assert found["demographic_parity_difference/customer_segment"].is_bad
    numbers = SPEC.model_copy(update={"task": "regression"})
    means = window_figures(window, numbers, replace(REFERENCE, threshold=None))
    assert means["mean_prediction/customer_segment=loyal"].value == pytest.approx(0.26)
    assert len(means) == 3


def test_names_of_figures_are_those_of_mlflow_and_of_one_segment_each():
    urls = {"https://a.example/": (60, 40), "a&b": (60, 40), "a|b": (60, 40)}
    names = {*window_figures(predictions(**urls))}
    assert len(names) == 4
    assert [name for name in names if "//" in name or name.endswith("/")] == []
    assert "positive_rate/customer_segment=https___a.example_-" in " ".join(names)


def outcomes(kind="backfilled", found=(500, 900)):
    """Of region a: 500 of 1,000 true 1s are found; of b 900 of 1,000."""
    labels = np.tile([1] * 1000 + [0] * 1000, 2)
    answers = [[0.9] * count + [0.1] * (2000 - count) for count in found]
    rows = pa.table({"region": ["a"] * 2000 + ["b"] * 2000, "label": labels})
    return Outcomes(kind, "May", rows, Scored(np.concatenate(answers), 0.5))


def test_performance_of_each_segment_and_the_gaps_between_them_are_measured():
    found = {each.name: each for each in segments_of_outcomes(SPEC, outcomes())}
    assert found["backfilled/f1/region=a"].value == pytest.approx(1000 / 1500)
    assert found["backfilled/f1/region=b"].value == pytest.approx(1800 / 1900)
    assert found["backfilled/log_loss/region=a"].rows == 2000
    gap = found["backfilled/equal_opportunity_difference/region"]
    assert gap.value == pytest.approx(0.4)
    # Beyond 0.2 and three standard errors.
    assert gap.limit == pytest.approx(0.2 + 3 * np.sqrt(0.25 / 1000 + 0.09 / 1000))
    assert gap.is_bad
    chance = {
        each.name: each
        for each in segments_of_outcomes(SPEC, outcomes(found=(500, 720)))
    }
    assert not chance["backfilled/equal_opportunity_difference/region"].is_bad
    assert not found["backfilled/demographic_parity_difference/region"].is_bad
    assert found["backfilled/largest_gap/region"].limit is None
    few = SPEC.monitoring.model_copy(update={"fewest": 1500})  # of the 1s alone
    spec = SPEC.model_copy(update={"monitoring": few})
    names = {each.name for each in segments_of_outcomes(spec, outcomes())}
    assert "backfilled/f1/region=a" in names
    assert "backfilled/equal_opportunity_difference/region" not in names
    few = SPEC.monitoring.model_copy(update={"fewest": 3000})
    spec = SPEC.model_copy(update={"monitoring": few})
    assert [*segments_of_outcomes(spec, outcomes())] == []


def test_a_gap_beyond_its_limit_alerts_and_makes_no_window_bad(tmp_path):
    window = predictions(loyal=(10, 90), new=(90, 10))
    metrics = [*window_figures(window).values()]
    metrics += segments_of_outcomes(SPEC, outcomes("online"))
    passive = replace(REFERENCE, rows=REFERENCE.rows.iloc[:0])
    results = report_results(SPEC.monitoring, passive, window, metrics, tmp_path)
    by_name = {result.name: result for result in results}
    alerted = {result.name for result in results if result.status == "alert"}
    assert alerted == {
        "demographic_parity_difference/customer_segment",
        "online/equal_opportunity_difference/region",
    }
    limit = by_name["demographic_parity_difference/customer_segment"].limit
    assert limit == pytest.approx(0.3 + 3 * np.sqrt(2 * 0.09 / 100))
    assert {result.kind for result in results} == {"bias"}
    assert judge(results) == "ok"
    assert "segments" not in describe("ok", results)
    assert "positive_rate/customer_segment" in (tmp_path / "report.json").read_text()
