"""Figures of each minute of the last 24 hours: sampled, and kept in GYRE_HOME."""

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter, ValidationError

from core.files import replace_file
from core.settings import Settings
from feature_engine.events.interface import ConsumerLag
from monitoring.console.cached_reader import CachedReader, read_all
from monitoring.console.panels.traffic import (
    EVENTS,
    Counts,
    Figures,
    counts_of,
    rates,
    traffic_of,
)
from monitoring.serving_status import read_metrics, replicas_of

SAMPLE_SECONDS = 20.0
"""Time between two samples."""
WINDOW = timedelta(seconds=70)
"""How old a sample may be to tell of the last minute; reading one may take some seconds."""
KEPT_MINUTES = 24 * 60
Row = dict[str, Figures]
"""Figures by `model/NAME` (`traffic_of`), `events/DATASET` (a minute) and `lag/DATASET` (seconds)."""
FILE = TypeAdapter(dict[int, Row])
logger = logging.getLogger(__name__)


class Replica:
    """A replica of serving, and its samples of the last minute."""

    def __init__(self, address: str) -> None:
        self.reader = CachedReader(lambda: counts_of(read_metrics(address)))
        self._samples: dict[datetime, Counts] = {}

    def rates(self) -> Counts:
        """Return the rates of the last minute; empty: it has not answered, or only once."""
        sample = self.reader.reading
        if sample.value is None or sample.at is None or sample.at in self._samples:
            return Counts()
        samples = {**self._samples, sample.at: sample.value}
        start = sample.at - WINDOW
        self._samples = {at: samples[at] for at in samples if at > start}
        return rates(self._samples)


class Recorder:
    """Samples the counters of serving and the lags of the consumer.

    Attributes:
        minutes: Rows by the number of minutes since 1970, the oldest first. What did not answer in a
            minute has no figures in its row.

    """

    def __init__(
        self,
        settings: Settings,
        models: Iterable[str],
        lags: CachedReader[dict[str, ConsumerLag]],
    ) -> None:
        """Read the rows that were kept. A file that cannot be read is renamed."""
        self._settings = settings
        self._models = models
        self._lags = lags
        self._replicas: dict[str, Replica] = {}
        self._file = settings.home / "console" / "minutes.json"
        self.minutes: dict[int, Row] = {}
        try:
            self.minutes = FILE.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValidationError) as exc:
            damaged_file = self._file.with_suffix(".damaged")
            with suppress(OSError):
                self._file.replace(damaged_file)
            logger.warning(
                "figures by minute begin anew: %s cannot be read; it is now %s: %s",
                self._file,
                damaged_file,
                exc,
            )

    def run(self, stopped: threading.Event) -> None:
        """Record at every multiple of SAMPLE_SECONDS, a full minute too, until `stopped` is set."""
        while not stopped.wait(SAMPLE_SECONDS - time.time() % SAMPLE_SECONDS):
            try:
                self.record(datetime.now(UTC))
            except Exception as exc:  # noqa: BLE001  (whatever it is, it is tried again)
                logger.warning("no figures of this minute: %s", exc)
        self.write()

    def record(self, now: datetime) -> None:
        """Note the figures of the minute up to now; write all rows once a minute."""
        self._replicas = {
            address: self._replicas.get(address) or Replica(address)
            for address in replicas_of(self._settings).values()
        }
        replicas = self._replicas.values()
        read_all([self._lags, *(replica.reader for replica in replicas)])
        counts = Counts()
        for replica in replicas:
            counts.update(replica.rates())
        row: Row = {}
        if counts:
            for model in self._models:
                row[f"model/{model}"] = traffic_of(model, counts)
        for dataset, lag in (self._lags.reading.value or {}).items():
            row[f"lag/{dataset}"] = [round(lag.seconds(now), 1)]
            if counts:
                row[f"events/{dataset}"] = [counts[EVENTS, "", dataset]]
        # The minute that is just over, if now is its end.
        middle = now - timedelta(seconds=SAMPLE_SECONDS / 2)
        minute = int(middle.timestamp() // 60)
        minutes = {**self.minutes, minute: self.minutes.get(minute, {}) | row}
        oldest = minute - KEPT_MINUTES + 1
        # Later minutes are those of a clock that was wrong.
        self.minutes = {at: minutes[at] for at in minutes if oldest <= at <= minute}
        if now.second < SAMPLE_SECONDS:
            self.write()

    def write(self) -> None:
        """Keep the rows for the next console; without room on the disk they stay in memory."""
        try:
            replace_file(self._file, FILE.dump_json(self.minutes))
        except OSError as exc:
            logger.warning("figures by minute are not kept: %s: %s", self._file, exc)

    def rows(self, subject: str) -> dict[int, Figures]:
        """Return the figures of a subject by minute."""
        rows = self.minutes.items()
        return {minute: row[subject] for minute, row in rows if subject in row}

    @property
    def newest(self) -> tuple[datetime, Row]:
        """The last minute: its beginning, aware UTC, and its row."""
        minute = max(self.minutes, default=0)
        return datetime.fromtimestamp(60 * minute, UTC), self.minutes.get(minute, {})
