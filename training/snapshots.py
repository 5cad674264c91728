"""Which moments are trained on, tested on and chosen by. Pure functions over time.

The newest matured snapshot is the test set. A snapshot t may train for a later snapshot v only if
t + horizon is at or before v: otherwise rows of v would be known through the labels of t. The
folds that choose an estimator keep the same gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from stack.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

FOLDS = 3
"""Newest forward folds that choose an estimator; more cost time and speak of older customers."""


@dataclass(frozen=True)
class Fold:
    """Train on `train`, judge on `validation`."""

    train: tuple[datetime, ...]
    validation: datetime


@dataclass(frozen=True)
class Plan:
    """What one training run looks at; all times aware UTC."""

    test: datetime
    train: tuple[datetime, ...]
    folds: tuple[Fold, ...]

    @property
    def moments(self) -> tuple[datetime, ...]:
        """Every snapshot the run needs rows of, oldest first."""
        fold_moments = {m for fold in self.folds for m in (*fold.train, fold.validation)}
        return tuple(sorted({self.test, *self.train, *fold_moments}))


def month_starts(after: datetime, until: datetime) -> tuple[datetime, ...]:
    """First days of months, 00:00 UTC, in (after, until]."""
    months = range(after.year * 12 + after.month - 1, until.year * 12 + until.month)
    starts = (datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC) for month in months)
    return tuple(start for start in starts if after < start <= until)


def plan(
    first_event: datetime, as_of: datetime, horizon: timedelta, lateness: timedelta, size: int
) -> Plan:
    """Choose test, training and fold snapshots for a run at `as_of`.

    size: how many of the newest snapshots that the gap allows are trained on.

    Raises:
        TrainingError: no snapshot has matured, or none lies a horizon before the newest one.

    """
    matured = month_starts(first_event, as_of - horizon - lateness)
    if not matured:
        raise TrainingError(
            f"no label has matured as of {as_of:%Y-%m-%d}: the data begins on "
            f"{first_event:%Y-%m-%d} and a label needs {(horizon + lateness).days} days"
        )
    test = matured[-1]
    train = _before(matured, test, horizon)
    if not train:
        raise TrainingError(
            f"nothing to train on as of {as_of:%Y-%m-%d}: no snapshot lies {horizon.days} days "
            f"before the newest matured one, {test:%Y-%m-%d}"
        )
    folds = tuple(
        Fold(known[-size:], validation)
        for validation in train[-FOLDS:]
        if (known := _before(matured, validation, horizon))
    )
    return Plan(test, train[-size:], folds)


def _before(
    moments: Sequence[datetime], later: datetime, horizon: timedelta
) -> tuple[datetime, ...]:
    return tuple(moment for moment in moments if moment + horizon <= later)
