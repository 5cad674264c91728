"""One model in production: follows the alias, proves a version, swaps it in whole."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.promotion import reconcile
from mlflow_server.served_model import wrong_files
from serving.model import LoadedModel, open_version, settle
from stack.errors import RegistryError

if TYPE_CHECKING:
    from mlflow_server.registry import Registry
    from serving.features import FeatureSource, FeatureSources
    from serving.metrics import Metrics
    from stack.settings import Settings
    from stack.spec import ModelSpec

POLL_SECONDS = 2.0
LONGEST_PAUSE = 60.0
KEPT = 3
"""Local copies kept, the one in use included."""
logger = logging.getLogger(__name__)


class LocalCopy(BaseModel):
    """`production.json`: what a restart without MLflow serves, once its digests hold again."""

    version: str
    tags: dict[str, str]


@dataclass
class Refusal:
    """Why a version does not answer, and when it is tried again (monotonic seconds)."""

    reason: str
    next_try: float
    pause: float = POLL_SECONDS


class Holder:
    """`current` is replaced by one assignment; everything else belongs to the polling thread."""

    def __init__(
        self,
        settings: Settings,
        spec: ModelSpec,
        registry: Registry,
        sources: FeatureSources,
        metrics: Metrics,
    ) -> None:
        self.spec = spec
        self.current: LoadedModel | None = None
        self.registry_problem: str | None = None
        self.refused: dict[str, Refusal] = {}
        self._settings, self._registry, self._metrics = settings, registry, metrics
        self._sources = sources
        self._ledger: Ledger | None = None
        self._folder = settings.home / "serving" / "models" / spec.name
        self._alias: str | None = None
        self._asked, self._registered = False, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=spec.name, daemon=True)

    def start(self) -> None:
        _ = self.features  # known to the probe ahead of the model: an empty start is probed too
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        if self._ledger is not None:
            self._ledger.close()

    @property
    def state(self) -> str:
        """What answers, or why nothing does; and what was refused."""
        name = self.spec.name
        if not self._asked:
            return f"{name} is being loaded"
        parts = [f"version {self.current.version} answers"] if self.current else []
        if self.registry_problem:
            parts.append(self.registry_problem)
        elif not self._alias:
            what = "in production" if self._registered else "registered"
            parts.append(f"nothing {what} yet for {name}: train one")
        parts += [f"version {v} is refused: {r.reason}" for v, r in self.refused.items()]
        return "; ".join(parts)

    @property
    def features(self) -> FeatureSource:
        """Where the answering version looks up; before there is one, where the spec says."""
        if self.current:
            return self.current.features
        spec = self.spec
        return self._sources.source(spec.feature_service, spec.entity_key, spec.features)

    def ledger_rows(self) -> list[LedgerRow]:
        """Oldest first. Raises RegistryError if the database does not answer."""
        if self._ledger is None:
            raise RegistryError("promotion ledger: not open yet")
        return self._ledger.rows(self.spec.name)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception:
                logger.exception("%s: polling failed", self.spec.name)
            self._stop.wait(POLL_SECONDS)

    def poll(self) -> None:
        """One round: read the alias, serve what it names, then let the ledger know."""
        name = self.spec.name
        try:
            alias = self._registry.production(name)
            if alias is None:
                self._registered = bool(self._registry.versions(name))
        except RegistryError as exc:
            self.registry_problem = str(exc)
            if self.current is None:
                self._start_from_local_copy()
        else:
            self.registry_problem, self._alias = None, alias
            self._follow(alias)
            self._tell_ledger()
        self._asked = True

    def _tell_ledger(self) -> None:
        try:
            self._ledger = self._ledger or Ledger(self._settings)
            reconcile(self._registry, self._ledger, self.spec.name)
        except RegistryError as exc:
            logger.warning("%s: %s", self.spec.name, exc)

    def _follow(self, version: str | None) -> None:
        if version is None or (self.current and self.current.version == version):
            self.refused = {}  # what is refused matters while it is asked for
            return
        earlier = self.refused.get(version)
        if earlier and time.monotonic() < earlier.next_try:
            return
        try:
            self._swap(self._fetch(version))
        except Exception as exc:  # noqa: BLE001  (anything wrong keeps the old version)
            self._refuse(version, exc, earlier)

    def _fetch(self, version: str) -> LocalCopy:
        """Make sure a verified copy of `version` lies in its final folder."""
        found = self._registry.version(self.spec.name, version)
        copy, final = LocalCopy(version=version, tags=found.tags), self._folder / version
        if final.is_dir() and wrong_files(final, found.tags):
            shutil.rmtree(final)
        if not final.is_dir():
            part = self._folder / f"{version}.part"
            shutil.rmtree(part, ignore_errors=True)
            self._registry.download(found, part)
            if not wrong_files(part, found.tags):
                part.rename(final)
        return copy

    def _swap(self, copy: LocalCopy) -> None:
        folder = self._folder / copy.version
        if not folder.is_dir():  # what was downloaded is not what was registered: say what
            folder = folder.with_name(f"{copy.version}.part")
        contract, session = open_version(folder, copy.tags, self.spec)
        source = self._sources.source(
            contract.feature_service, contract.entity_key, contract.features
        )
        before, name = self.current, self.spec.name
        self.current = LoadedModel(copy.version, contract, session, source, datetime.now(UTC))
        self.refused = {}
        logger.info("%s: version %s answers", name, copy.version)
        if before:
            self._metrics.model_info.remove(name, before.version)
        self._metrics.model_info.labels(name, copy.version).set(1)
        try:
            self._keep(copy)
        except OSError as exc:
            logger.warning("%s: a start without MLflow would not find %s: %s", name, copy, exc)
        settle()

    def _keep(self, copy: LocalCopy) -> None:
        """Remember `copy` for a start without MLflow, and let the oldest others go."""
        part = self._folder / "production.json.part"
        part.write_text(copy.model_dump_json())
        part.rename(self._folder / "production.json")
        (self._folder / copy.version).touch()
        copies = [path for path in self._folder.iterdir() if path.is_dir()]
        for path in sorted(copies, key=lambda p: p.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(path, ignore_errors=True)

    def _start_from_local_copy(self) -> None:
        remembered = self._folder / "production.json"
        if not remembered.is_file():
            return
        try:
            self._swap(LocalCopy.model_validate_json(remembered.read_bytes()))
        except Exception as exc:  # noqa: BLE001  (a damaged copy is refused like any other)
            self._refuse("(local copy)", exc, self.refused.get("(local copy)"))

    def _refuse(self, version: str, exc: Exception, earlier: Refusal | None) -> None:
        reason = " ".join(f"{type(exc).__name__}: {exc}".split())[:500]
        pause = min(earlier.pause * 2, LONGEST_PAUSE) if earlier else POLL_SECONDS
        refusal = Refusal(reason, time.monotonic() + pause, pause)
        self.refused = {**self.refused, version: refusal}  # others read it: never changed in place
        if earlier is None or earlier.reason != reason:
            self._metrics.refused.labels(self.spec.name).inc()
            logger.error("%s: version %s is refused: %s", self.spec.name, version, reason)
