"""The keeper: follows the registry for the workers, which talk to neither MLflow nor Feast.

What holds a role is fetched, checked and tried here once; then it is announced (announcement.py).
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from feature_repo.freshness import freshness
from mlflow_server.alerts import alert
from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.promotion import reconcile
from mlflow_server.reconcile import history, last_applied
from mlflow_server.records import Records
from mlflow_server.registry import PRODUCTION, Registry, Version
from mlflow_server.served_model import DIGEST_TAG, wrong_files
from serving.announcement import Held, ModelState, Role, local_copy
from serving.metrics import REFUSED, SOURCE_SILENCE
from serving.model import open_version
from serving.observed import Observed
from stack.errors import GyreError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from feature_repo.freshness import Freshness
    from stack.settings import Settings
    from stack.spec import ModelSpec

RETRY_SECONDS, MOST_SECONDS = 10.0, 60.0
ANSWERING: tuple[Role, ...] = ("production", "challenger", "shadow")
logger = logging.getLogger(__name__)


Stamp = list[tuple[str, int, int]]


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served; not tried again until `until`, monotonic seconds."""

    reason: str
    until: float
    wait: float = RETRY_SECONDS

    @classmethod
    def of(cls, reason: str, before: Refusal | None, now: float) -> Refusal:
        """Wait twice as long each time that the reason is the same, a minute at most."""
        same = before is not None and before.reason == reason
        wait = min(2 * before.wait, MOST_SECONDS) if before and same else RETRY_SECONDS
        return cls(reason, now + wait, wait)


class Follower:
    """One model: `state` is what to announce. Used by one thread, but for what others read."""

    def __init__(self, settings: Settings, spec: ModelSpec, before: ModelState | None) -> None:
        """before: what was announced when a keeper last ran."""
        self.spec, self._settings, self._registry = spec, settings, Registry(settings)
        self._ledger: Ledger | None = None
        self._known: list[LedgerRow] | None = None
        """The ledger's rows when it last answered."""
        self._telling = threading.Lock()
        self.aliases: Observed[Mapping[str, str]] = Observed()
        """What MLflow last said of who holds a role; unknown: it does not answer."""
        self.freshness: Observed[Freshness] = Observed()
        self._refused: dict[str, Refusal] = {}
        self._tried: dict[str, tuple[Held, Stamp]] = {}
        """Versions whose local copy holds, and what it looked like then."""
        REFUSED.labels(spec.name)  # there from the start: Prometheus sees no increase from nothing
        waiting = None if before and before.roles else f"{spec.name} is being loaded"
        self.state = ModelState(roles=before.roles if before else {}, waiting=waiting)

    def poll(self) -> None:
        """One round: read who holds a role, have it here, let the ledger know."""
        name = self.spec.name
        try:
            held = self._registry.aliases(name)
            self.aliases = Observed(held, datetime.now(UTC))
            what = "in production" if held or self._registry.versions(name) else "registered"
        except RegistryError as exc:
            self.aliases = Observed(why=str(exc))
            self._tell(registry_problem=str(exc), waiting=None)
            return
        rows = self._rows()
        self._follow(held, rows)
        empty = None if PRODUCTION in held else f"nothing {what} yet for {name}: train one"
        self._tell(registry_problem=None, waiting=empty)
        try:
            self._ledger = self._ledger or Ledger(self._settings)
            changed = reconcile(self._registry, self._ledger, name)  # it may have moved an alias
            if changed or rows is None:
                self._follow(self._registry.aliases(name), self._rows())
        except (GyreError, OSError) as exc:
            logger.warning("%s: %s", name, exc)

    def look_at_source(self) -> None:
        """See how old the features are and whether they are built."""
        try:
            found = freshness(self._settings, self.spec.dataset)
        except GyreError as exc:
            self.freshness = Observed(why=str(exc))
            self._tell(not_built=None)
        else:
            self.freshness = Observed(found, datetime.now(UTC))
            self._tell(not_built=[*found.not_built], newest_event=found.newest)
        age = SOURCE_SILENCE.labels(self.spec.dataset)
        newest = self.state.newest_event
        age.set((datetime.now(UTC) - newest).total_seconds() if newest else float("nan"))

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()

    def _rows(self) -> list[LedgerRow] | None:
        """Return the ledger's rows, oldest first, as it last answered; None: it never has."""
        with suppress(RegistryError):
            if self._ledger is not None:
                self._known = self._ledger.rows(self.spec.name)
        return self._known

    def _tell(self, **changed: object) -> None:
        with self._telling:  # two threads do
            self.state = self.state.model_copy(update=changed)

    def _follow(self, aliases: Mapping[str, str], rows: Sequence[LedgerRow] | None) -> None:
        """Announce what can be served of what holds a role; else production stays as it was."""
        wanted: dict[Role, str] = {role: aliases[role] for role in ANSWERING if role in aliases}
        before = self.state.roles
        if rows is None and "previous" in before:
            wanted["previous"] = before["previous"].version
        if earlier := [v for v in history(rows or []) if v != wanted.get("production")]:
            wanted["previous"] = earlier[-1]
        roles = {role: held for role, version in wanted.items() if (held := self._held(version))}
        if "production" not in roles and "production" in before:
            roles["production"] = before["production"]
        if "challenger" in roles:
            percent = self._percent(wanted["challenger"], rows)
            roles["challenger"] = roles["challenger"].model_copy(update={"percent": percent})
        asked = {v: no for v, no in self._refused.items() if v in wanted.values()}
        self._refused = asked
        self._tell(roles=roles, refused={v: no.reason for v, no in asked.items()})

    def _percent(self, version: str, rows: Sequence[LedgerRow] | None) -> int:
        """Of an alias that no row is about, nobody has said for how many: 0."""
        if rows is None:  # not asked yet: as it was announced before
            known = self.state.roles.get("challenger")
            return known.percent if known and known.version == version else 0
        last = last_applied(rows, "challenger")
        return last.percent if last and last.to_version == version else 0

    def _held(self, version: str) -> Held | None:
        """Have the files of `version` here, tried; None: it is refused."""
        known, no = self._tried.get(version), self._refused.get(version)
        if no and time.monotonic() < no.until:
            return None
        folder = local_copy(self._settings, self.spec.name, version)
        if known and known[1] == _stamp(folder):
            return known[0]
        try:
            found = self._registry.version(self.spec.name, version)
            if wrong_files(folder, found.tags):
                self._fetch(found, folder)
            open_version(folder, found.tags, self.spec)
        except Exception as exc:  # noqa: BLE001  (anything wrong keeps the old version)
            self._refuse(version, exc)
            return None
        digests = {tag: of for tag, of in found.tags.items() if tag.startswith(DIGEST_TAG)}
        self._refused.pop(version, None)
        held = Held(version=version, digests=digests)
        self._tried[version] = held, _stamp(folder)
        return held

    def _fetch(self, version: Version, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            self._registry.download(version, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a part of it may fill the disk
            raise

    def let_go(self) -> None:
        """Remove local copies that hold no role any more; after that was announced."""
        kept = {held.version for held in self.state.roles.values()}
        folder = local_copy(self._settings, self.spec.name, "-").parent
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in kept and path.name not in self._refused:
                shutil.rmtree(path, ignore_errors=True)
                self._tried.pop(path.name, None)

    def _refuse(self, version: str, exc: Exception) -> None:
        before = self._refused.get(version)
        reason = " ".join(f"{type(exc).__name__}: {exc}".split())[:500]
        self._refused[version] = Refusal.of(reason, before, time.monotonic())
        if before is None or before.reason != reason:
            REFUSED.labels(self.spec.name).inc()
            logger.error("%s: version %s is refused: %s", self.spec.name, version, reason)
            answering, cause = self.state.roles.get("production"), f"version {version} is refused"
            answers = f"version {answering.version} answers; " if answering else ""
            said = (cause, f"{answers}{cause}: {reason}")
            threading.Thread(target=self._alert, args=said, daemon=True).start()

    def _alert(self, cause: str, message: str) -> None:
        """Tell of a refusal; in a thread of its own, because a receiver may be slow."""
        try:
            with closing(Records(self._settings)) as records:
                alert(self._settings, records, self.spec.name, cause, message, datetime.now(UTC))
        except Exception as exc:  # noqa: BLE001  (whatever it is, the round goes on)
            logger.warning("%s: no alert that %s: %s", self.spec.name, cause, exc)


def _stamp(folder: Path) -> Stamp:
    """What changes when a file of `folder` does: name, size and time of each."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files]
