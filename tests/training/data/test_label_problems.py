"""What `gyre check` finds in the label: repeated keys, rows that come too late, leaks of it."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feature_engine.check import label_problems
from feature_engine.ingest.source import pull
from feature_engine.offline.labels import dataset_labels
from feature_repo.definition import Label
from tests.conftest import AS_OF, new_settings
from tests.training.conftest import ORDERS, SHIPPED
from training.data.leaks import leak_remarks
from training.data.snapshots import plan_snapshots

DAY = timedelta(days=1)
LABEL = ORDERS.labels[SHIPPED.label]


def every_label_twice(orders, snapshots):
    labels = LABEL.expression(orders, snapshots)
    return labels.union(labels)


def test_repeated_labels_and_labels_that_later_rows_change_are_named(tmp_path):
    rows = pull(new_settings(tmp_path), ORDERS, AS_OF).read_all()
    rows = rows.filter(pc.equal(pc.bit_wise_and(rows["customer_id"], 7), 0))
    first_event = pc.min(rows[ORDERS.event_time]).as_py()
    planned = plan_snapshots(first_event, AS_OF, LABEL, SHIPPED.snapshots)
    for changes, message in (
        ({"horizon": 10 * DAY}, "expected labels that are known after"),
        ({"expression": every_label_twice}, "expected one row for each customer_id"),
    ):
        dataset = replace(ORDERS, labels={SHIPPED.label: replace(LABEL, **changes)})
        source = dataset_labels(new_settings(tmp_path), dataset, SHIPPED.label)
        (line,) = label_problems(SHIPPED, source, rows, planned.test)
        assert f"label churned_90d: {message}" in line


def test_a_negative_time_is_refused_when_the_file_is_read():
    for times in ((-DAY, DAY), (DAY, -DAY)):
        with pytest.raises(ValueError, match="of 0 or more, found"):
            Label(LABEL.expression, *times)


@pytest.mark.parametrize("task", ["classification", "multiclass", "regression"])
def test_a_feature_that_decides_the_label_and_an_auc_near_one_are_named(task):
    features = {"honest": "double", "word": "string", "leak": "double"}
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
    spec = SHIPPED.model_copy(update={"task": task, "features": features})
    (remark,) = leak_remarks(spec, rows, {"auc": 0.7})
    assert remark.startswith("leak alone almost determines churned_90d")
    remarks = [*leak_remarks(spec, rows, {"auc": 0.99})]
    assert any(remark.startswith("AUC 0.9900 is near 1") for remark in remarks)
