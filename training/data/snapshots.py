"""The snapshots that a model is trained on, tested on and chosen by. Pure functions over time.

The newest matured snapshots are the test set. A model that is judged on snapshot v is trained on a
snapshot only if the time of its last row + horizon is at or before v: otherwise its labels would
know rows of v.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pandas as pd
from pydantic import TypeAdapter

from core.errors import TrainingError
from core.spec.training import Every, Snapshots
from feature_repo.definition import Label

FOLDS = 3
"""Newest forward folds that choose an estimator: more of them take time and are of older customers."""
FREQUENCIES = {"day": "D", "week": "W-MON", "month": "MS"}
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
LONGEST_STEPS = timedelta(days=93)
"""Longer than two snapshots of any length."""


@dataclass(frozen=True, order=True)
class Snapshot:
    """The rows from `start` to `last` (aware UTC), both included. For members both are one moment."""

    start: datetime
    last: datetime


@dataclass(frozen=True)
class Fold:
    """Train on `train`, judge on `validation`."""

    train: tuple[Snapshot, ...]
    validation: tuple[Snapshot, ...]


@dataclass(frozen=True)
class Plan:
    """The snapshots of one training, in each part the oldest first."""

    test: tuple[Snapshot, ...]
    train: tuple[Snapshot, ...]
    folds: tuple[Fold, ...]

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Every snapshot the run needs rows of, oldest first."""
        snapshots = {*self.test, *self.train}
        for fold in self.folds:
            snapshots.update(fold.train, fold.validation)
        return tuple(sorted(snapshots))


PLANS = TypeAdapter(Plan)


def period_starts(
    every: Every, after: datetime, until: datetime
) -> tuple[datetime, ...]:
    """Return days, Mondays or first days of months, 00:00 UTC, in (after, until]."""
    # With one time zone object for both, or pandas refuses them.
    days = pd.date_range(
        after.astimezone(UTC),
        until.astimezone(UTC),
        freq=FREQUENCIES[every],
        normalize=True,
    )
    return tuple(day.to_pydatetime() for day in days if day > after)


def matured(
    snapshots: Snapshots, after: datetime, until: datetime
) -> tuple[Snapshot, ...]:
    """Return snapshots that begin after `after`, with their last row at or before `until`."""
    if snapshots.rows == "label":
        edges = period_starts(snapshots.every, after, until + TICK)
        return tuple(Snapshot(start, end - TICK) for start, end in pairwise(edges))
    moments = period_starts(snapshots.every, after, until)
    return tuple(Snapshot(moment, moment) for moment in moments)


def next_matures(newest: Snapshot, label: Label, snapshots: Snapshots) -> datetime:
    """Return when the rows of the snapshot after `newest` have matured."""
    following = matured(snapshots, newest.start, newest.start + LONGEST_STEPS)[0]
    return following.last + label.horizon + label.lateness


def plan_snapshots(
    first_event: datetime, as_of: datetime, label: Label, snapshots: Snapshots
) -> Plan:
    """Choose test, training and fold snapshots for a run at `as_of`.

    Raises:
        TrainingError: Too little history has matured.

    """
    wait = label.horizon + label.lateness
    matured_snapshots = matured(snapshots, first_event, as_of - wait)
    if not matured_snapshots:
        raise TrainingError(
            f"no label has matured as of {as_of:%Y-%m-%d}: the data begins on "
            f"{first_event:%Y-%m-%d} and the labels of a {snapshots.every} need {wait / DAY:g} days"
        )
    test_count = snapshots.test
    test = matured_snapshots[-test_count:]
    train = _trainable(matured_snapshots, test[0], label)
    if not train:
        raise TrainingError(
            f"nothing to train on as of {as_of:%Y-%m-%d}: no {snapshots.every} ends "
            f"{label.horizon / DAY:g} days before the test set, {dates(test)}"
        )
    folds: list[Fold] = []
    for end in range(len(train), 0, -test_count)[:FOLDS]:
        validation = train[max(end - test_count, 0) : end]
        fold_train = _trainable(matured_snapshots, validation[0], label)
        if fold_train:
            folds.insert(0, Fold(fold_train[-snapshots.train :], validation))
    return Plan(test, train[-snapshots.train :], tuple(folds))


def _trainable(
    matured_snapshots: Sequence[Snapshot], judged: Snapshot, label: Label
) -> tuple[Snapshot, ...]:
    """Return the snapshots whose labels were known when `judged` began."""
    return tuple(
        snapshot
        for snapshot in matured_snapshots
        if snapshot < judged and snapshot.last + label.horizon <= judged.start
    )


def dates(snapshots: Sequence[Snapshot]) -> str:
    """Return the days on which the first and the last snapshot begin."""
    first = f"{snapshots[0].start:%Y-%m-%d}"
    last = f"{snapshots[-1].start:%Y-%m-%d}"
    return first if first == last else f"{first} to {last}"
