"""One model in production: follows the alias, proves a version, swaps it in whole."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow_server.alerts import alert
from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.promotion import reconcile
from mlflow_server.records import DecisionRow, Records
from mlflow_server.registry import Registry
from mlflow_server.served_model import ServedModel, wrong_files
from serving.features import FeatureSource, settle
from serving.metrics import MODEL_INFO, REFUSED, SOURCE_SILENCE, WATERMARK_AGE
from serving.model import LoadedModel, open_version
from stack.errors import RegistryError
from stack.settings import Settings
from stack.spec import ModelSpec

RETRY_SECONDS = 10.0
KEPT = 3
"""Local copies kept, the one in use included."""
REMEMBERED = "production.json"
"""Version and tags that a restart without MLflow serves, once the digests hold again."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """Why the version in production does not answer; `since` in monotonic seconds."""

    version: str
    reason: str
    since: float


class Holder:
    """`current` is replaced by one assignment; everything else belongs to the polling thread."""

    def __init__(self, settings: Settings, spec: ModelSpec) -> None:
        self.spec, self._settings, self._registry = spec, settings, Registry(settings)
        self.current: LoadedModel | None = None
        self.registry_problem: str | None = None
        self._waiting: str | None = f"{spec.name} is being loaded"
        self._refusal: Refusal | None = None
        self._ledger: Ledger | None = None
        self._records: Records | None = None
        self._folder = settings.home / "serving" / "models" / spec.name
        self.wake = threading.Event()
        self.features = self._source(spec)
        """Where the answering version looks up; before there is one, where the spec says."""
        WATERMARK_AGE.labels(spec.name).set_function(lambda: age(self.features.watermark))
        silence = SOURCE_SILENCE.labels(spec.dataset)
        silence.set_function(lambda: age(self.features.newest_event))

    @property
    def state(self) -> str:
        """What answers, or why nothing does; and what was refused."""
        answers = f"version {self.current.version} answers" if self.current else None
        why, no = self.registry_problem or self._waiting, self._refusal
        refused = f"version {no.version} is refused: {no.reason}" if no else None
        return "; ".join(part for part in (answers, why, refused) if part)

    def probe(self) -> None:
        self.features.probe()

    def look_at_source(self) -> None:
        self.features.look_at_source(self.spec.dataset)

    def history(self) -> Sequence[LedgerRow] | None:
        """Return the ledger's rows, oldest first; None if its database does not answer."""
        try:
            return self._ledger.rows(self.spec.name) if self._ledger else None
        except RegistryError:
            return None

    def decisions(self) -> Sequence[DecisionRow] | None:
        """Return what the monitor decided, oldest first; None if its database does not answer."""
        try:
            return self._records.decisions(self.spec.name) if self._records else None
        except RegistryError:
            return None

    def poll(self) -> None:
        """One round, every 2 s: read the alias, serve what it names, then let the ledger know."""
        name = self.spec.name
        try:
            version = self._registry.production(name)
            what = "in production" if version or self._registry.versions(name) else "registered"
        except RegistryError as exc:
            if self.current is None:
                self._start_from_local_copy()
            self.registry_problem = str(exc)
            return
        self._follow(version)
        self._waiting = None if version else f"nothing {what} yet for {name}: train one"
        self.registry_problem = None
        try:
            self._ledger = self._ledger or Ledger(self._settings)
            self._records = self._records or Records(self._settings)
            if reconcile(self._registry, self._ledger, name):  # it may have moved the alias
                self._follow(self._registry.production(name))
        except RegistryError as exc:
            logger.warning("%s: %s", name, exc)

    def close(self) -> None:
        self.features.close()
        for store in (self._ledger, self._records):
            if store is not None:
                store.close()

    def _source(self, of: ModelSpec | ServedModel) -> FeatureSource:
        return FeatureSource(self._settings, of.feature_service, tuple(of.features), self.wake)

    def _follow(self, version: str | None) -> None:
        if version is None or (self.current and self.current.version == version):
            self._refusal = None
            return
        no = self._refusal
        if no and no.version == version and time.monotonic() < no.since + RETRY_SECONDS:
            return
        try:
            self._swap(version, self._fetch(version))
        except Exception as exc:  # noqa: BLE001  (anything wrong keeps the old version)
            self._refuse(version, exc)
            if self.current is None:  # started anew: the last good one is on disk
                refusal = self._refusal
                self._start_from_local_copy()
                self._refusal = refusal  # what is asked for is still what was refused

    def _fetch(self, version: str) -> dict[str, str]:
        """Get the files of `version`, unless a good copy is here already. Return its tags."""
        found, folder = self._registry.version(self.spec.name, version), self._folder / version
        if wrong_files(folder, found.tags):
            shutil.rmtree(folder, ignore_errors=True)
            self._registry.download(found, folder)
        return found.tags

    def _swap(self, version: str, tags: dict[str, str]) -> None:
        contract, session = open_version(self._folder / version, tags, self.spec)
        features, name, before = self._features_for(contract), self.spec.name, self.current
        self.current = LoadedModel(version, contract, session, features, datetime.now(UTC))
        if features is not self.features:
            self.features, replaced = features, self.features
            replaced.close()
        self._refusal = None
        logger.info("%s: version %s answers", name, version)
        if before:
            MODEL_INFO.remove(name, before.version)
        MODEL_INFO.labels(name, version).set(1)
        try:
            self._keep(version, tags)
        except OSError as exc:
            logger.warning("%s: a start without MLflow would not find %s: %s", name, version, exc)
        settle()

    def _features_for(self, contract: ServedModel) -> FeatureSource:
        """Return the source at hand, or one for what the new version looks up, opened."""
        source = self._source(contract)
        if source.asked == self.features.asked:
            return self.features
        source.probe()
        return source

    def _keep(self, version: str, tags: dict[str, str]) -> None:
        """Remember `version` for a start without MLflow, and let the oldest others go."""
        part = self._folder / f"{REMEMBERED}.part"
        part.write_text(json.dumps({"version": version, "tags": tags}))
        part.rename(self._folder / REMEMBERED)
        (self._folder / version).touch()
        copies = [path for path in self._folder.iterdir() if path.is_dir()]
        for path in sorted(copies, key=lambda p: p.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(path, ignore_errors=True)

    def _start_from_local_copy(self) -> None:
        remembered = self._folder / REMEMBERED
        if not remembered.is_file():
            return
        try:
            self._swap(**json.loads(remembered.read_bytes()))
        except Exception as exc:  # noqa: BLE001  (a damaged copy is refused like any other)
            self._refuse("(local copy)", exc)

    def _refuse(self, version: str, exc: Exception) -> None:
        before, reason = self._refusal, " ".join(f"{type(exc).__name__}: {exc}".split())[:500]
        self._refusal = Refusal(version, reason, time.monotonic())
        if before is None or (before.version, before.reason) != (version, reason):
            REFUSED.labels(self.spec.name).inc()
            logger.error("%s: version %s is refused: %s", self.spec.name, version, reason)
            said = (f"version {version} is refused", self.state)
            threading.Thread(target=self._alert, args=said, daemon=True).start()

    def _alert(self, cause: str, message: str) -> None:
        """Tell of a refusal; in a thread of its own, because a receiver may be slow."""
        try:
            with closing(Records(self._settings)) as records:
                alert(self._settings, records, self.spec.name, cause, message, datetime.now(UTC))
        except Exception as exc:  # noqa: BLE001  (whatever it is, answers go on)
            logger.warning("%s: no alert that %s: %s", self.spec.name, cause, exc)


def age(moment: datetime | None) -> float:
    """Seconds since `moment`; NaN if it is unknown."""
    return (datetime.now(UTC) - moment).total_seconds() if moment else float("nan")
