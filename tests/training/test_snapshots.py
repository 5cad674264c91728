"""Which snapshots train, test and choose: the gap holds everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import TrainingError
from core.training_spec import Snapshots
from feature_repo.definition import Label
from training.frame import TIME, at
from training.snapshots import FOLDS, Fold, Plan, Snapshot, dates, matured, plan, starts
from training.train import with_usable_folds

HORIZON, LATENESS = timedelta(days=90), timedelta(days=2)
LABEL = Label(lambda rows, _: rows, HORIZON, LATENESS)
MONTHLY = Snapshots(every="month", train=3)
FIRST = datetime(2025, 9, 24, tzinfo=UTC)
TICK, HOUR = timedelta(microseconds=1), timedelta(hours=1)


def moment(day, month=1, year=2026):
    return Snapshot(*[datetime(year, month, day, tzinfo=UTC)] * 2)


def hours(most):
    return st.integers(0, most).map(lambda number: number * HOUR)


SNAPSHOTS = st.builds(
    Snapshots,
    every=st.sampled_from(["day", "week", "month"]),
    train=st.integers(1, 12),
    test=st.integers(1, 8),
    rows=st.sampled_from(["members", "label"]),
)


@given(SNAPSHOTS, hours(24 * 300), hours(24 * 100), hours(48), hours(24 * 900))
def test_no_row_trains_whose_label_was_unknown_at_the_first_row_it_is_judged_by(
    snapshots, length, horizon, lateness, age
):
    as_of = FIRST + age + length
    label = Label(LABEL.expression, horizon, lateness)
    try:
        found = plan(FIRST, as_of, label, snapshots)
    except TrainingError:
        # Two snapshots and, of the first, all that is waited for: less is too little history.
        within = {"day": 1, "week": 7, "month": 31}[snapshots.every] * timedelta(days=1)
        assert age + length < (snapshots.test + 3) * within + 2 * horizon + lateness
        return
    judged = [
        (found.train, found.test),
        *((fold.train, fold.validation) for fold in found.folds),
    ]
    for train, later in judged:
        assert all(
            row + horizon <= later[0].start for each in train for row in ends(each)
        )
        assert 1 <= len(train) <= snapshots.train
        assert 1 <= len(later) <= snapshots.test
        assert [*train, *later] == sorted({*train, *later})
    known = matured(snapshots, FIRST, as_of)
    over = [each for each in known if each.last + horizon + lateness <= as_of]
    assert list(found.test) == over[-snapshots.test :]
    trainable = [each for each in known if each.last + horizon <= found.test[0].start]
    trainable = [each for each in trainable if each < found.test[0]]  # of no horizon
    assert list(found.train) == trainable[-snapshots.train :]
    assert all(each in trainable for fold in found.folds for each in fold.validation)
    assert len(found.folds) <= FOLDS


def ends(snapshot):
    return snapshot.start, snapshot.last


@given(st.sampled_from(["day", "week", "month"]), hours(24 * 400), hours(24 * 100))
def test_snapshots_of_a_label_are_whole_and_leave_no_row_out(every, begins, length):
    first, last = FIRST + begins, FIRST + begins + length
    edges = starts(every, first, last)
    found = matured(Snapshots(every=every, train=1, rows="label"), first, last - TICK)
    assert [each.start for each in found] == [*edges[:-1]]
    assert [each.last + TICK for each in found] == [*edges[1:]]
    assert {edge.time() for edge in edges} <= {datetime.min.time()}
    expected = {
        "week": lambda edge: edge.weekday() == 0,
        "month": lambda edge: edge.day == 1,
    }
    assert all(map(expected.get(every, bool), edges))
    of_members = matured(Snapshots(every=every, train=1), first, last)
    assert of_members == tuple(Snapshot(edge, edge) for edge in edges)


def test_rows_are_of_a_snapshot_from_its_first_moment_to_its_last():
    day = timedelta(days=1)
    week = [Snapshot(FIRST + n * day, FIRST + (n + 1) * day - TICK) for n in range(7)]
    times = [FIRST - TICK, FIRST, FIRST + day - TICK, FIRST + day, FIRST + 7 * day]
    frame = pa.table({"event_timestamp": pa.array(times, TIME)})
    assert at(frame, week[:1])["event_timestamp"].to_pylist() == times[1:3]
    assert at(frame, [week[6], week[1]])["event_timestamp"].to_pylist() == times[3:4]
    assert at(frame, week)["event_timestamp"].to_pylist() == times[1:4]
    assert (
        at(frame, [Snapshot(FIRST, FIRST)])["event_timestamp"].to_pylist() == times[1:2]
    )
    assert at(frame, []).num_rows == 0


def test_the_test_snapshot_is_the_newest_matured_one():
    found = plan(FIRST, datetime(2026, 11, 1, tzinfo=UTC), LABEL, MONTHLY)
    assert found.test == (moment(1, 8),)  # 1 August + 92 days is 1 November
    found = plan(FIRST, datetime(2026, 10, 31, 23, tzinfo=UTC), LABEL, MONTHLY)
    assert found.test == (moment(1, 7),)


def test_several_test_snapshots_purge_against_the_oldest_of_them():
    weekly = Snapshots(every="week", train=2, test=4)
    found = plan(FIRST, datetime(2026, 11, 2, tzinfo=UTC), LABEL, weekly)
    assert dates(found.test) == "2026-07-06 to 2026-07-27"
    assert (
        dates(found.train) == "2026-03-30 to 2026-04-06"
    )  # 7 April + 90 days is 6 July
    assert [dates(fold.validation) for fold in found.folds] == [
        "2026-01-19 to 2026-02-09",
        "2026-02-16 to 2026-03-09",
        "2026-03-16 to 2026-04-06",
    ]


def test_a_short_history_has_no_folds():
    found = plan(FIRST, datetime(2026, 5, 24, tzinfo=UTC), LABEL, MONTHLY)
    assert found.folds == ()
    assert found.train == (moment(1, 10, 2025), moment(1, 11, 2025))


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (60, "begins on 2025-09-24 and the labels of a month need 92 days"),
        (
            130,
            "nothing to train on as of 2026-02-01: no month ends 90 days before the test set",
        ),
    ],
)
def test_too_little_history_is_said(days, message):
    with pytest.raises(TrainingError, match=message):
        plan(FIRST, FIRST + timedelta(days=days), LABEL, MONTHLY)


def test_folds_without_rows_to_judge_by_or_of_one_label_are_left_out():
    month = [moment(1, number) for number in range(1, 7)]
    folds = [Fold((month[at],), (month[at + 1],)) for at in (0, 1, 2)]
    rows = [(month[0], 0), (month[0], 1), (month[1], 1), (month[1], 1)]
    rows += [(month[2], 0), (month[2], 1)]
    snapshots, labels = zip(*rows, strict=True)
    times = pa.array([each.start for each in snapshots], TIME)
    frame = pa.table({"event_timestamp": times, "label": labels})
    planned = Plan((month[5],), (month[4],), tuple(folds))
    # The second trains on one label only, the third has nobody to judge by.
    assert with_usable_folds(frame, planned).folds == (folds[0],)


def test_starts_exclude_the_first_event_and_include_the_end():
    january, march = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
    assert starts("month", january, march) == (datetime(2026, 2, 1, tzinfo=UTC), march)
    assert starts("month", january.astimezone(ZoneInfo("UTC")), march)[1:] == (march,)
    assert len(starts("day", january, march)) == 59
    mondays = starts(
        "week", datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 19, tzinfo=UTC)
    )
    assert [day.day for day in mondays] == [12, 19]
