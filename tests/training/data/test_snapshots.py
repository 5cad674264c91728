"""Which snapshots train, test and choose: the gap between them holds everywhere."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import TrainingError
from core.spec.training import Snapshots
from feature_repo.definition import Label
from training.data.frame import TIME_TYPE
from training.data.snapshots import (
    FOLDS,
    Fold,
    Plan,
    Snapshot,
    matured,
    period_starts,
    plan_snapshots,
)
from training.stages.train import with_usable_folds

HORIZON = timedelta(days=90)
LATENESS = timedelta(days=2)
LABEL = Label(lambda rows, _: rows, HORIZON, LATENESS)
MONTHLY = Snapshots(every="month", train=3)
FIRST = datetime(2025, 9, 24, tzinfo=UTC)
TICK = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
PERIODS = st.sampled_from(["day", "week", "month"])
LONGEST = {"day": DAY, "week": 7 * DAY, "month": 31 * DAY}


def hours(most):
    return st.integers(0, most).map(lambda number: number * HOUR)


SNAPSHOTS = st.builds(
    Snapshots,
    every=PERIODS,
    train=st.integers(1, 12),
    test=st.integers(1, 8),
    rows=st.sampled_from(["members", "label"]),
)


@settings(max_examples=40, deadline=None)
@given(SNAPSHOTS, hours(24 * 1200), hours(24 * 100), hours(48))
def test_no_training_row_has_a_label_unknown_at_the_first_evaluation_row(
    snapshots, age, horizon, lateness
):
    as_of = FIRST + age
    label = Label(LABEL.expression, horizon, lateness)
    try:
        planned = plan_snapshots(FIRST, as_of, label, snapshots)
    except TrainingError:
        # Two snapshots and, of the first, all that is waited for: less is too little history.
        longest = (snapshots.test + 3) * LONGEST[snapshots.every]
        assert age < longest + 2 * horizon + lateness
        return
    pairs = [(planned.train, planned.test)]
    pairs += [(fold.train, fold.validation) for fold in planned.folds]
    for train, later in pairs:
        assert all(part.last + horizon <= later[0].start for part in train)
        assert 1 <= len(train) <= snapshots.train
        assert [*train, *later] == sorted({*train, *later})
    past = matured(snapshots, FIRST, as_of)
    over = [part for part in past if part.last + horizon + lateness <= as_of]
    assert [*planned.test] == over[-snapshots.test :]
    start = planned.test[0].start
    before = over[: -snapshots.test]
    trainable = [part for part in before if part.last + horizon <= start]
    assert [*planned.train] == trainable[-snapshots.train :]
    assert len(planned.folds) <= FOLDS


@settings(max_examples=30, deadline=None)
@given(PERIODS, hours(24 * 400), hours(24 * 100))
def test_snapshots_of_a_label_are_whole_periods_and_leave_no_row_out(
    every, begins, length
):
    first = FIRST + begins
    last = first + length
    edges = period_starts(every, first, last)
    parts = matured(Snapshots(every=every, train=1, rows="label"), first, last - TICK)
    assert [part.start for part in parts] == [*edges[:-1]]
    assert [part.last + TICK for part in parts] == [*edges[1:]]
    assert {edge.time() for edge in edges} <= {datetime.min.time()}
    if every == "week":
        assert {edge.weekday() for edge in edges} <= {0}
    if every == "month":
        assert {edge.day for edge in edges} <= {1}
    of_members = matured(Snapshots(every=every, train=1), first, last)
    assert of_members == tuple(Snapshot(edge, edge) for edge in edges)


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (60, "begins on 2025-09-24 and the labels of a month need 92 days"),
        (130, "nothing to train on as of 2026-02-01: no month ends 90 days before"),
    ],
)
def test_too_little_history_is_reported_in_one_line(days, message):
    with pytest.raises(TrainingError, match=message):
        plan_snapshots(FIRST, FIRST + days * DAY, LABEL, MONTHLY)


def test_folds_without_validation_rows_or_with_one_label_are_left_out():
    days = [FIRST + n * DAY for n in range(6)]
    parts = [Snapshot(day, day) for day in days]
    folds = [Fold((parts[n],), (parts[n + 1],)) for n in range(3)]
    # The second trains on one label only, the third has no validation row.
    times = pa.array([days[n] for n in (0, 0, 1, 1, 2, 2)], TIME_TYPE)
    frame = pa.table({"event_timestamp": times, "label": [0, 1, 1, 1, 0, 1]})
    planned = Plan((parts[5],), (parts[4],), tuple(folds))
    assert with_usable_folds(frame, planned).folds == (folds[0],)
