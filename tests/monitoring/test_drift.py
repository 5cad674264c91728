"""Columns without values on one side or both: no exception, and no `ok`."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from monitoring.drift import compared, measure
from monitoring.verdict import judge
from stack.spec import MISSING, load_spec

LIMITS = load_spec("customer_churn_model").drift
DRAW = np.random.default_rng(0)
FULL = pd.DataFrame({"orders": DRAW.normal(size=400), "score": DRAW.random(400)})
EMPTY = FULL.assign(orders=np.nan)
WORDLESS = "orders: nothing to compare with, the reference has no value of it"


@pytest.mark.parametrize(
    ("reference", "current", "verdict", "said"),
    [
        (FULL, FULL, "ok", []),
        (FULL, EMPTY, "bad", ["orders: 100% null, 0% before"]),
        (EMPTY, FULL, "insufficient_data", [WORDLESS]),
        (EMPTY, EMPTY, "ok", []),  # nothing has changed: score is compared
        (FULL.iloc[:0], FULL, "insufficient_data", [WORDLESS, WORDLESS.replace("orders", "score")]),
    ],
)
def test_a_column_without_values_is_named(tmp_path, reference, current, verdict, said):
    found = measure(reference, current, tmp_path, LIMITS.significant)
    assert (tmp_path / "report.html").exists()
    got, bad, notes = judge(LIMITS, len(current), found, [])
    assert (got, bad + notes) == (verdict, said)


@pytest.mark.parametrize("values", [[0.3, 0.1 + 0.2], [1e16, 1e16 + 2]])
def test_numbers_that_evidently_cannot_show_are_judged_without_its_report(tmp_path, values):
    near = FULL.assign(orders=values * 200)
    found = measure(near, near, tmp_path, LIMITS.significant)
    assert found.unreported.startswith("ValueError: ")
    assert (found.psi, found.p_values) == ({"orders": 0.0, "score": 0.0}, {})
    assert judge(LIMITS, 400, found, [])[0] == "ok"
    found = measure(near, near.assign(score=0.5), tmp_path, LIMITS.significant)
    assert judge(LIMITS, 400, found, [])[0] == "bad"
    assert measure(FULL, FULL, tmp_path, LIMITS.significant).unreported is None


def test_what_the_reference_never_had_is_counted_and_tests_are_told_for_information(tmp_path):
    plans = FULL.assign(plan=pd.Series(["a", "b"] * 200, dtype=object))
    shown = plans["plan"].where(plans.index >= 40, "c")
    moved = plans.assign(plan=shown, orders=plans["orders"] + 1, score=plans["score"] * 0.8)
    found = measure(plans, moved, tmp_path, LIMITS.significant)
    assert found.new_categories == {"plan": 0.1}
    out_of_range = (moved["orders"] > plans["orders"].max()).mean()
    assert found.out_of_range == {"orders": pytest.approx(out_of_range)}
    assert 0 < out_of_range < 0.05
    assert found.means.now == pytest.approx(0.8 * found.means.before)
    assert set(found.p_values) == {"orders", "plan", "score"}
    assert found.p_values["orders"] == pytest.approx(
        ks_2samp(plans["orders"], moved["orders"]).pvalue
    )
    significant = [value >= LIMITS.significant for value in found.psi.values()]
    assert found.drifted_share == pytest.approx(np.mean(significant))
    verdict, bad, _ = judge(LIMITS, 400, found, [])
    assert verdict == "bad"
    assert "plan: 10% of categories that the reference has not" in bad
    assert any(text.startswith("score: mean ") for text in bad)
    same = measure(plans, plans, tmp_path, LIMITS.significant)
    assert min(same.p_values.values()) == pytest.approx(1)
    assert same.drifted_share == 0


def test_one_category_only_and_a_text_without_values_are_told_and_no_exception(tmp_path):
    one = FULL.assign(plan=pd.Series(["a"] * 400, dtype=object))
    assert judge(LIMITS, 400, measure(one, one, tmp_path, 0.25), []) == ("ok", [], [])
    other = one.assign(plan=pd.Series(["b"] * 400, dtype=object))
    verdict, bad, _ = judge(LIMITS, 400, measure(one, other, tmp_path, 0.25), [])
    assert verdict == "bad"
    assert "plan: 100% of categories that the reference has not" in bad
    empty = one.assign(plan=pd.Series([None] * 400, dtype=object))
    verdict, bad, _ = judge(LIMITS, 400, measure(one, empty, tmp_path, 0.25), [])
    assert (verdict, bad) == ("bad", ["plan: 100% null, 0% before"])


def test_a_text_that_is_null_counts_as_null_though_a_model_is_given_a_word_for_it(tmp_path):
    def plans(nulls):
        return FULL.assign(plan=np.array(["a", "b"] * 200, object)).mask(
            np.arange(400)[:, None] < np.array([0, 0, nulls]), MISSING
        )

    found = measure(plans(40), plans(76), tmp_path, LIMITS.significant)
    assert (found.reference_null_share["plan"], found.null_share["plan"]) == (0.1, 0.19)
    assert found.psi["plan"] == pytest.approx(0, abs=0.001)
    assert judge(LIMITS, 400, found, [])[:2] == ("bad", ["plan: 19% null, 10% before"])
    found = measure(plans(0), plans(400), tmp_path, LIMITS.significant)
    assert judge(LIMITS, 400, found, [])[:2] == ("bad", ["plan: 100% null, 0% before"])
    assert found.new_categories == {}
    report = json.loads((tmp_path / "report.json").read_text())["metrics"]
    nulls = {each["config"]["column"]: each["value"]["share"] for each in report
             if each["config"]["type"].endswith("MissingValueCount")}  # fmt: skip
    assert nulls == {"orders": 0, "score": 0, "plan": 1}


def test_new_categories_are_those_beyond_what_the_reference_makes_likely():
    drawn, share = np.random.default_rng(5), 1.0 / np.arange(1, 5001)

    def rows(n, more=()):
        names = [*drawn.choice(5000, n, p=share / share.sum()).astype(str), *more]
        return pd.DataFrame({"postcode": names, "score": drawn.random(len(names))})

    reference = rows(5000)
    assert compared(reference, rows(2000)).new_categories["postcode"] < 0.02
    assert compared(reference, rows(1800, ["0000"] * 200)).new_categories["postcode"] > 0.08


@pytest.mark.parametrize("nulls", [0.3, 0.9])
def test_nulls_as_usual_are_not_told_as_drift_by_chance(nulls):
    drawn = np.random.default_rng(4)

    def rows(n):
        spent = np.where(drawn.random(n) < nulls, np.nan, drawn.gamma(2, 30, n))
        return pd.DataFrame({"spent": spent, "score": drawn.random(n)})

    reference, windows = rows(7000), [rows(200) for _ in range(200)]
    told = [judge(LIMITS, 200, compared(reference, each), [])[1] for each in windows]
    assert sum(map(bool, told)) <= 2
