"""Which snapshots train, test and choose: the gap holds everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.errors import TrainingError
from training.frame import TIME
from training.snapshots import Fold, Plan, month_starts, plan
from training.train import with_usable_folds

HORIZON, LATENESS = timedelta(days=90), timedelta(days=2)
FIRST = datetime(2025, 9, 24, tzinfo=UTC)


@given(st.integers(0, 900), st.integers(1, 6))
def test_no_snapshot_trains_for_one_within_its_horizon(days, size):
    as_of = FIRST + timedelta(days=days)
    try:
        found = plan(FIRST, as_of, HORIZON, LATENESS, size)
    except TrainingError:
        assert days < 92 + 31 + 90 + 31
        return
    assert found.test + HORIZON + LATENESS <= as_of
    assert all(t + HORIZON <= found.test for t in found.train)
    assert 1 <= len(found.train) <= size
    for fold in found.folds:
        assert fold.validation + HORIZON <= found.test
        assert fold.train
        assert all(t + HORIZON <= fold.validation for t in fold.train)


def test_the_test_snapshot_is_the_newest_matured_one():
    found = plan(FIRST, datetime(2026, 11, 1, tzinfo=UTC), HORIZON, LATENESS, 3)
    assert found.test == datetime(2026, 8, 1, tzinfo=UTC)  # 1 August + 92 days is 1 November
    found = plan(FIRST, datetime(2026, 10, 31, 23, tzinfo=UTC), HORIZON, LATENESS, 3)
    assert found.test == datetime(2026, 7, 1, tzinfo=UTC)


def test_a_short_history_has_no_folds():
    found = plan(FIRST, datetime(2026, 5, 24, tzinfo=UTC), HORIZON, LATENESS, 3)
    assert found.folds == ()
    assert found.train == (datetime(2025, 10, 1, tzinfo=UTC), datetime(2025, 11, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("days", "message"), [(60, "no label has matured"), (130, "nothing to train")]
)
def test_too_little_history_is_said(days, message):
    with pytest.raises(TrainingError, match=message):
        plan(FIRST, FIRST + timedelta(days=days), HORIZON, LATENESS, 3)


def test_folds_without_rows_to_judge_by_or_of_one_label_are_left_out():
    month = [datetime(2026, number, 1, tzinfo=UTC) for number in range(1, 7)]
    folds = [Fold((month[at],), month[at + 1]) for at in (0, 1, 2)]
    rows = [(month[0], 0), (month[0], 1), (month[1], 1), (month[1], 1)]
    rows += [(month[2], 0), (month[2], 1)]
    moments, labels = zip(*rows, strict=True)
    frame = pa.table({"event_timestamp": pa.array(moments, TIME), "label": labels})
    planned = Plan(month[5], (month[4],), tuple(folds))
    # The second trains on one label only, the third has nobody to judge by.
    assert with_usable_folds(frame, planned).folds == (folds[0],)


def test_month_starts_exclude_the_first_event_and_include_the_end():
    starts = month_starts(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))
    assert starts == (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))
