"""A feature that decides the label is named; an honest one is not."""

import numpy as np
import pyarrow as pa
import pytest

from tests.training.conftest import SHIPPED
from training.leaks import leak_remarks

FEATURES = {"honest": "double", "word": "string", "leak": "double"}


@pytest.mark.parametrize("task", ["classification", "multiclass", "regression"])
def test_a_feature_that_decides_the_label_and_an_auc_near_one_are_named(task):
    random = np.random.default_rng(1)
    y = random.integers(0, 3 if task == "multiclass" else 2, 1000)
    leak = y * 5.0
    leak[:5] = np.nan  # a few rows without it change nothing
    rows = pa.table(
        {
            "honest": y + random.normal(size=1000) * 2,
            "word": random.choice(["a", "b"], 1000),
            "leak": pa.array(leak, from_pandas=True),
            "label": y * 100.0 if task == "regression" else y,
        }
    )
    spec = SHIPPED.model_copy(update={"task": task, "features": FEATURES})
    (remark,) = leak_remarks(spec, rows, {"auc": 0.7})
    assert remark.startswith("leak alone almost determines churned_90d")
    remarks = [*leak_remarks(spec, rows, {"auc": 0.99})]
    assert any(remark.startswith("AUC 0.9900 is near 1") for remark in remarks)
