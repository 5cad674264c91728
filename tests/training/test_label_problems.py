"""What `gyre check` finds in the label of all rows: repeated keys, and rows that come too late."""

from dataclasses import replace
from datetime import timedelta

import pyarrow.compute as pc
import pytest

from feature_repo.definition import Label
from feature_repo.source import pull
from tests.conftest import AS_OF, new_settings
from tests.training.conftest import ORDERS, SHIPPED
from training.check import label_problems
from training.snapshots import plan

DAY = timedelta(days=1)
LABEL = ORDERS.labels[SHIPPED.label]


def every_label_twice(orders, snapshots):
    labels = LABEL.expression(orders, snapshots)
    return labels.union(labels)


def test_repeated_labels_and_labels_that_later_rows_change_are_named(tmp_path):
    rows = pull(new_settings(tmp_path), ORDERS, AS_OF).read_all()
    rows = rows.filter(pc.equal(pc.bit_wise_and(rows["customer_id"], 7), 0))
    first_event = pc.min(rows[ORDERS.event_time]).as_py()
    planned = plan(first_event, AS_OF, LABEL, SHIPPED.snapshots)
    for changes, message in (
        ({}, None),
        ({"horizon": 10 * DAY}, "expected labels that are known after"),
        ({"expression": every_label_twice}, "expected one row for each customer_id"),
    ):
        label = replace(LABEL, **changes)
        dataset = replace(ORDERS, labels={SHIPPED.label: label})
        lines = [*label_problems(SHIPPED, dataset, rows, planned.test)]
        assert len(lines) == (0 if message is None else 1)
        assert all(f"label churned_90d: {message}" in line for line in lines)


def test_a_negative_time_is_refused_when_the_file_is_read():
    for times in ((-DAY, DAY), (DAY, -DAY)):
        with pytest.raises(ValueError, match="of 0 or more, found"):
            Label(LABEL.expression, *times)
