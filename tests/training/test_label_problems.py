"""What `gyre check` finds in the label of all rows: repeated keys, and rows that come too late."""

from __future__ import annotations

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

LABEL = ORDERS.labels[SHIPPED.label]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return pull(
        new_settings(tmp_path_factory.mktemp("label")), ORDERS, AS_OF
    ).read_all()


def problems_of(rows, **changes):
    label = replace(LABEL, **changes)
    dataset = replace(ORDERS, labels={SHIPPED.label: label})
    first_event = pc.min(rows[ORDERS.event_time]).as_py()
    planned = plan(first_event, AS_OF, LABEL, SHIPPED.snapshots)
    return [*label_problems(SHIPPED, dataset, rows, planned.test)]


def test_the_shipped_label_is_known_after_its_horizon(rows):
    assert problems_of(rows) == []


def test_a_label_that_later_rows_change_is_found(rows):
    (line,) = problems_of(rows, horizon=timedelta(days=10))
    assert line.startswith("label churned_90d: expected labels that are known after")
    assert "that change with later rows" in line


def test_two_labels_of_an_entity_at_one_time_are_found_in_all_rows(rows):
    def twice(orders, snapshots):
        labels = LABEL.expression(orders, snapshots)
        return labels.union(labels)

    (line,) = problems_of(rows, expression=twice)
    assert line.startswith("label churned_90d: expected one row for each customer_id")


@pytest.mark.parametrize("name", ["horizon", "lateness"])
def test_a_negative_time_is_refused_when_the_file_is_read(name):
    times = {"horizon": timedelta(days=2), "lateness": timedelta(0)}
    times[name] = timedelta(days=-2)
    with pytest.raises(ValueError, match="of 0 or more, found"):
        Label(LABEL.expression, **times)
