"""Freshness: up to when a dataset is complete and online, and when its source last had an event.

Two figures: ingest that stands still lets the first age, a silent source the second alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from stack.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from stack.settings import Settings

LATE = timedelta(hours=2)
"""Ingest is hourly, so features are complete up to an hour ago: the promise, and once missed."""


@dataclass(frozen=True)
class Freshness:
    """Of one dataset, aware UTC; None: nothing was ingested yet.

    watermark: up to when the source was read and its features are online.
    newest: event time of its newest row. silence: how long there may be none.
    not_built: views that were published and whose values were not computed since, in words.
    """

    dataset: str
    watermark: datetime | None
    newest: datetime | None
    silence: timedelta
    not_built: tuple[str, ...] = ()

    def problems(self, as_of: datetime) -> list[tuple[str, str]]:
        """Say what is not built, and what is too old at `as_of`.

        A cause, the same for as long as it lasts, and why.
        """
        found = [(each, each) for each in self.not_built]
        for what, moment, limit in (
            ("features are not complete", self.watermark, LATE),
            ("source is silent", self.newest, self.silence),
        ):
            if moment is not None and as_of - moment > limit:
                hours, most = ((age / timedelta(hours=1)) for age in (as_of - moment, limit))
                since = f"since {moment:%Y-%m-%d %H:%M} UTC"
                cause = f"{self.dataset}: {what}"  # the same while it moves, and stays too late
                told = f"{cause} {since}: {hours:.0f} h, at most {most:.0f} h are expected"
                found.append((cause, told))
        return found


def freshness(settings: Settings, name: str) -> Freshness:
    """Read both figures of dataset `name`, and what is not built.

    Raises:
        DataError: there is no such dataset, or its definitions are not published.

    """
    from feature_repo.datasets import load_dataset  # noqa: PLC0415  (the console does without Feast)
    from feature_repo.store import FeatureStore  # noqa: PLC0415

    dataset = load_dataset(name)
    store = FeatureStore(settings)
    return Freshness(
        name, store.watermark(dataset), newest_event(settings, name), dataset.silence,
        tuple(store.not_built(dataset)),
    )  # fmt: skip


def newest_event(settings: Settings, name: str) -> datetime | None:
    """Event time of the newest row of dataset `name`, None before the first."""
    from feature_repo.datasets import load_dataset  # noqa: PLC0415
    from feature_repo.features import raw_table  # noqa: PLC0415

    dataset = load_dataset(name)
    return raw_table(settings, dataset).newest(dataset.event_time)


FRESHNESS = TypeAdapter(Freshness)


def record_freshness(settings: Settings, name: str) -> None:
    """Leave the figures of dataset `name` for readers without Feast; raises as `freshness` does."""
    path = _recorded_at(settings, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(FRESHNESS.dump_json(freshness(settings, name)))
    new.replace(path)


def recorded_freshness(settings: Settings, name: str) -> Freshness:
    """Return the figures as the last ingest left them.

    Raises:
        DataError: none has ended, or what it left cannot be read.

    """
    path = _recorded_at(settings, name)
    try:
        return FRESHNESS.validate_json(path.read_bytes())
    except FileNotFoundError as exc:
        raise DataError(f"no ingest of {name} has ended yet: gyre ingest {name}") from exc
    except ValueError as exc:
        raise DataError(f"{path} cannot be read, the next ingest replaces it: {exc}") from exc


def _recorded_at(settings: Settings, name: str) -> Path:
    return settings.home / "reports" / "freshness" / f"{name}.json"
