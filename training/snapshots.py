"""Which moments are trained on, tested on and chosen by. Pure functions over time.

The newest matured snapshots are the test set. One may train for a later one v only if the time of
its last row + horizon is at or before v: otherwise rows of v would be known through its labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pandas as pd

from core.errors import TrainingError
from core.training_spec import Every, Snapshots
from feature_repo.definition import Label

FOLDS = 3
"""Newest forward folds that choose an estimator; more cost time and speak of older customers."""
FREQUENCIES = {"day": "D", "week": "W-MON", "month": "MS"}
TICK, DAY = timedelta(microseconds=1), timedelta(days=1)


@dataclass(frozen=True, order=True)
class Snapshot:
    """The rows at `start` to `last` (aware UTC), both included; of members that is one moment."""

    start: datetime
    last: datetime


@dataclass(frozen=True)
class Fold:
    """Train on `train`, judge on `validation`."""

    train: tuple[Snapshot, ...]
    validation: tuple[Snapshot, ...]


@dataclass(frozen=True)
class Plan:
    """What one training run looks at, each oldest first."""

    test: tuple[Snapshot, ...]
    train: tuple[Snapshot, ...]
    folds: tuple[Fold, ...]

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Every snapshot the run needs rows of, oldest first."""
        of_folds = {
            each for fold in self.folds for each in (*fold.train, *fold.validation)
        }
        return tuple(sorted({*self.test, *self.train, *of_folds}))


def starts(every: Every, after: datetime, until: datetime) -> tuple[datetime, ...]:
    """Days, Mondays or first days of months, 00:00 UTC, in (after, until]."""
    # One object, or pandas refuses them.
    ends = (
        after.astimezone(UTC),
        until.astimezone(UTC),
    )
    days = pd.date_range(*ends, freq=FREQUENCIES[every], normalize=True)
    return tuple(day.to_pydatetime() for day in days if day > after)


def matured(
    snapshots: Snapshots, after: datetime, until: datetime
) -> tuple[Snapshot, ...]:
    """Snapshots that begin after `after`, with their last row at or before `until`."""
    if snapshots.rows == "label":
        edges = starts(snapshots.every, after, until + TICK)
        return tuple(Snapshot(start, end - TICK) for start, end in pairwise(edges))
    return tuple(Snapshot(at, at) for at in starts(snapshots.every, after, until))


def plan(
    first_event: datetime, as_of: datetime, label: Label, snapshots: Snapshots
) -> Plan:
    """Choose test, training and fold snapshots for a run at `as_of`."""
    size, tests, wait = snapshots.train, snapshots.test, label.horizon + label.lateness
    known = matured(snapshots, first_event, as_of - wait)
    if not known:
        raise TrainingError(
            f"no label has matured as of {as_of:%Y-%m-%d}: the data begins on "
            f"{first_event:%Y-%m-%d} and the labels of a {snapshots.every} need {wait / DAY:g} days"
        )

    def known_at(later: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
        before = (each for each in known if each < later[0])
        return tuple(
            each for each in before if each.last + label.horizon <= later[0].start
        )

    test = known[-tests:]
    train = known_at(test)
    if not train:
        raise TrainingError(
            f"nothing to train on as of {as_of:%Y-%m-%d}: no {snapshots.every} ends "
            f"{label.horizon / DAY:g} days before the test set, {dates(test)}"
        )
    ends = range(len(train), 0, -tests)[:FOLDS]
    judged = [train[max(end - tests, 0) : end] for end in reversed(ends)]
    folds = tuple(
        Fold(before[-size:], each) for each in judged if (before := known_at(each))
    )
    return Plan(test, train[-size:], folds)


def dates(snapshots: Sequence[Snapshot]) -> str:
    """Days on which the first and the last of them begin."""
    first, last = (f"{each.start:%Y-%m-%d}" for each in (snapshots[0], snapshots[-1]))
    return first if first == last else f"{first} to {last}"
