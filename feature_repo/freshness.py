"""Freshness: up to when a dataset is complete and online, and when its source last had an event.

Two figures: ingest that stands still lets the first age, a silent source the second alone.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import TypeAdapter
from upath import UPath

from core.errors import DataError
from core.files import reached, read_file, replace_file
from core.settings import Settings

LATE = timedelta(hours=2)
"""Ingest is hourly, so features are complete up to an hour ago: the promise, and once missed."""
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Freshness:
    """Of one dataset, aware UTC; None: nothing was ingested yet.

    watermark: up to when the source was read and its features are online.
    newest: event time of its newest row. silence: how long there may be none.
    not_built: views that were published and whose values were not computed since, in words.
    services: the feature services that read one of its views.
    """

    dataset: str
    watermark: datetime | None
    newest: datetime | None
    silence: timedelta
    not_built: tuple[str, ...] = ()
    services: tuple[str, ...] = ()

    def problems(self, as_of: datetime, late: timedelta = LATE) -> list[tuple[str, str]]:
        """Say what is not built, and what is too old at `as_of`. late: how old features may be.

        A cause, the same for as long as it lasts, and why.
        """
        found = [(each, each) for each in self.not_built]
        for what, moment, limit in (
            ("features are not complete", self.watermark, late),
            ("source is silent", self.newest, self.silence),
        ):
            if moment is not None and as_of - moment > limit:
                cause, age = f"{self.dataset}: {what}", as_of - moment
                since = f"since {moment:%Y-%m-%d %H:%M} UTC: {age / HOUR:.0f} h"
                found.append((cause, f"{cause} {since}, at most {limit / HOUR:.0f} h are expected"))
        return found


def freshness(settings: Settings, name: str) -> Freshness:
    """Read both figures of dataset `name`, and what is not built.

    Raises:
        DataError: there is no such dataset, or its definitions are not published.

    """
    from feature_repo.datasets import load_dataset  # noqa: PLC0415  (the console does without Feast)
    from feature_repo.features import raw_table  # noqa: PLC0415
    from feature_repo.store import FeatureStore  # noqa: PLC0415

    dataset = load_dataset(name)
    store = FeatureStore(settings)
    newest = raw_table(settings, dataset).newest(dataset.event_time)
    views = tuple(store.not_built(dataset)), tuple(store.services(dataset))
    return Freshness(name, store.watermark(dataset), newest, dataset.silence, *views)


FRESHNESS = TypeAdapter(Freshness)


def record_freshness(settings: Settings, name: str) -> None:
    """Leave the figures of dataset `name` for readers without Feast; raises as `freshness` does."""
    replace_file(_recorded_at(settings, name), FRESHNESS.dump_json(freshness(settings, name)))


def recorded_freshness(settings: Settings, name: str, service: str) -> list[Freshness]:
    """Return the figures of dataset `name`, and of those `service` reads, as ingests left them.

    Raises:
        DataError: none of `name` has ended, or what one left cannot be read.

    """
    own = _recorded_at(settings, name)
    try:
        with reached("its report"):
            others = sorted(own.parent.glob("*.json"), key=str)
            paths = [own, *(path for path in others if path != own)]
            found = [FRESHNESS.validate_json(read_file(path)) for path in paths]
    except (DataError, ValueError) as exc:
        raise DataError(f"no ingest of {name} has ended yet: gyre ingest {name} ({exc})") from exc
    return [each for each in found if each.dataset == name or service in each.services]


def _recorded_at(settings: Settings, name: str) -> UPath:
    return settings.reports / "freshness" / f"{name}.json"
