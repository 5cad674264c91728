"""Columns without values on one side or both: no exception, and no `ok`."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from core.spec import MISSING, load_spec
from monitoring.checks.drift import compared, measure
from monitoring.decision import judge

LIMITS = load_spec("customer_churn_model").monitoring
DRAW = np.random.default_rng(0)
FULL = pd.DataFrame({"orders": DRAW.normal(size=400), "score": DRAW.random(400)})
EMPTY = FULL.assign(orders=np.nan)
WORDLESS = "orders: nothing to compare with, the reference has no value of it"


def values(results):
    return {each.name: each.value for each in results}


def remarks(results):
    return [each.remark for each in results if each.remark]


def bad(results):
    return [each.remark for each in results if each.status == "bad"]


@pytest.mark.parametrize(
    ("reference", "current", "verdict", "said"),
    [
        (FULL, FULL, "ok", []),
        (FULL, EMPTY, "bad", ["orders: 100% null, 0% before"]),
        (EMPTY, FULL, "insufficient_data", [WORDLESS]),
        (EMPTY, EMPTY, "ok", []),  # nothing has changed: score is compared
        (
            FULL.iloc[:0],
            FULL,
            "insufficient_data",
            [WORDLESS, WORDLESS.replace("orders", "score")],
        ),
    ],
)
def test_a_column_without_values_is_named(tmp_path, reference, current, verdict, said):
    found = measure(LIMITS, reference, current, tmp_path)
    assert (tmp_path / "report.html").exists()
    assert (judge(found), remarks(found)) == (verdict, said)


@pytest.mark.parametrize("numbers", [[0.3, 0.1 + 0.2], [1e16, 1e16 + 2]])
def test_numbers_that_evidently_cannot_show_are_judged_without_its_report(
    tmp_path, numbers
):
    near = FULL.assign(orders=numbers * 200)
    found = measure(LIMITS, near, near, tmp_path)
    (told,) = remarks(found)
    assert told.startswith("Evidently made no report: ValueError: ")
    assert (values(found)["psi_orders"], values(found)["psi_score"]) == (0.0, 0.0)
    assert judge(found) == "ok"
    assert judge(measure(LIMITS, near, near.assign(score=0.5), tmp_path)) == "bad"
    assert remarks(measure(LIMITS, FULL, FULL, tmp_path)) == []


def test_what_the_reference_never_had_is_counted(tmp_path):
    plans = FULL.assign(plan=pd.Series(["a", "b"] * 200, dtype=object))
    shown = plans["plan"].where(plans.index >= 40, "c")
    moved = plans.assign(
        plan=shown, orders=plans["orders"] + 1, score=plans["score"] * 0.8
    )
    found = measure(LIMITS, plans, moved, tmp_path)
    by_name = values(found)
    assert by_name["unseen_plan"] == 0.1
    out_of_range = (moved["orders"] > plans["orders"].max()).mean()
    assert by_name["unseen_orders"] == pytest.approx(out_of_range)
    assert 0 < out_of_range < 0.05
    assert by_name["mean_score"] == pytest.approx(0.8 * plans["score"].mean())
    assert judge(found) == "bad"
    assert "plan: 10% of categories that the reference has not" in bad(found)
    assert any(text.startswith("score: mean ") for text in bad(found))


def test_one_category_only_and_a_text_without_values_are_told_and_no_exception(
    tmp_path,
):
    one = FULL.assign(plan=pd.Series(["a"] * 400, dtype=object))
    assert remarks(measure(LIMITS, one, one, tmp_path)) == []
    other = one.assign(plan=pd.Series(["b"] * 400, dtype=object))
    found = bad(measure(LIMITS, one, other, tmp_path))
    assert "plan: 100% of categories that the reference has not" in found
    empty = one.assign(plan=pd.Series([None] * 400, dtype=object))
    assert bad(measure(LIMITS, one, empty, tmp_path)) == ["plan: 100% null, 0% before"]


def test_a_text_that_is_null_counts_as_null_though_a_model_is_given_a_word_for_it(
    tmp_path,
):
    def plans(nulls):
        return FULL.assign(plan=np.array(["a", "b"] * 200, object)).mask(
            np.arange(400)[:, None] < np.array([0, 0, nulls]), MISSING
        )

    found = measure(LIMITS, plans(40), plans(76), tmp_path)
    assert values(found)["nulls_plan"] == 0.19
    assert values(found)["psi_plan"] == pytest.approx(0, abs=0.001)
    assert bad(found) == ["plan: 19% null, 10% before"]
    found = measure(LIMITS, plans(0), plans(400), tmp_path)
    assert bad(found) == ["plan: 100% null, 0% before"]
    assert "unseen_plan" not in values(found)
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
    assert values(compared(LIMITS, reference, rows(2000)))["unseen_postcode"] < 0.02
    more = rows(1800, ["0000"] * 200)
    assert values(compared(LIMITS, reference, more))["unseen_postcode"] > 0.08


@pytest.mark.parametrize("nulls", [0.3, 0.9])
def test_nulls_as_usual_are_not_told_as_drift_by_chance(nulls):
    drawn = np.random.default_rng(4)

    def rows(n):
        spent = np.where(drawn.random(n) < nulls, np.nan, drawn.gamma(2, 30, n))
        return pd.DataFrame({"spent": spent, "score": drawn.random(n)})

    reference, windows = rows(7000), [rows(200) for _ in range(200)]
    told = [bad(compared(LIMITS, reference, each)) for each in windows]
    assert sum(map(bool, told)) <= 2
