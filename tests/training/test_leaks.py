"""A feature that knows the label is named; an honest one is not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from core.spec import load_spec
from training.leaks import leak_remarks

SPEC = load_spec("customer_churn_model").model_copy(
    update={"features": {"honest": "double", "word": "string", "knows": "double"}}
)


def rows_of(task):
    random = np.random.default_rng(1)
    y = random.integers(0, 3 if task == "multiclass" else 2, 1000)
    if task == "regression":
        y = random.normal(size=1000).round(0)
    knows = y * 10.0
    knows[:5] = np.nan  # a few rows without it change nothing
    return pa.table(
        {
            "honest": y + random.normal(size=1000) * 2,
            "word": random.choice(["a", "b"], 1000),
            "knows": pa.array(knows, from_pandas=True),
            "label": y,
        }
    )


@pytest.mark.parametrize("task", ["classification", "multiclass"])
def test_the_feature_that_decides_the_label_is_named(task):
    spec = SPEC.model_copy(update={"task": task})
    (remark,) = leak_remarks(spec, rows_of(task), {"auc": 0.7})
    assert remark.startswith("knows alone all but decides churned_90d")


def test_of_numbers_too():
    spec = SPEC.model_copy(update={"task": "regression"})
    rows = rows_of("regression")
    y = rows["label"].to_numpy()
    exact = rows.set_column(2, "knows", pa.array((y > 0) * 5.0))
    exact = exact.set_column(3, "label", pa.array((y > 0) * 100.0))
    names = [remark.split()[0] for remark in leak_remarks(spec, exact, {})]
    assert names == ["knows"]


def test_an_auc_near_one_is_a_remark():
    honest = SPEC.model_copy(update={"features": {"honest": "double"}})
    rows = rows_of("classification")
    assert list(leak_remarks(honest, rows, {"auc": 0.8})) == []
    (remark,) = leak_remarks(honest, rows, {"auc": 0.99})
    assert remark.startswith("AUC 0.9900 is near 1")
