"""The versions of one model that a worker has loaded, and which of them holds which role."""

import asyncio
import hashlib
import logging
import math
import time
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, replace

from core.settings import Settings
from core.spec import Entity, FeatureType, ModelSpec, entity_text
from serving.features import FeatureSource, settle
from serving.metrics import MODEL_INFO, REFUSED, SWAPS
from serving.model import (
    LoadedModel,
    LocalCopies,
    Origin,
    RegisteredModel,
    open_version,
)

CLOSE_SECONDS = 30.0
SHORTEST_WAIT, LONGEST_WAIT = 10.0, 60.0
_closing = set[asyncio.Task[None]]()
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Roles:
    """percent: of the entities, which the challenger answers. previous: for the way back."""

    production: LoadedModel | None = None
    challenger: LoadedModel | None = None
    shadow: LoadedModel | None = None
    previous: LoadedModel | None = None
    percent: int = 0

    def asks_challenger(self, key: Entity | None) -> bool:
        """Whether the challenger answers for `key`: for one version always the same entities."""
        if self.challenger is None or key is None:
            return False
        salted = f"{self.challenger.contract.model}:{self.challenger.version}:{entity_text(key)}"
        digest = hashlib.blake2b(salted.encode(), digest_size=8).digest()
        return int.from_bytes(digest) * 100 / 2**64 < self.percent


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version is not served; since when, and when last tried (monotonic seconds)."""

    reason: str
    since: float
    tried: float

    def is_due(self, now: float) -> bool:
        """Whether to try again: after as long as it has failed, within 10 to 60 s."""
        return now >= self.tried + min(
            max(self.tried - self.since, SHORTEST_WAIT), LONGEST_WAIT
        )


class ModelVersions:
    """`roles` is replaced by one assignment, on the event loop."""

    def __init__(self, settings: Settings, spec: ModelSpec) -> None:
        self.spec = spec
        self.roles = Roles()
        self.request_data: dict[str, FeatureType] = {}
        """Of every version that is kept, so that clients can change before a version does."""
        self.waiting: str | None = None
        self.refused: dict[str, Refusal] = {}
        self.copies = LocalCopies(settings, spec.name)
        self._settings, self.proxied = settings, settings.behind_proxy
        self._idle_source = FeatureSource(settings, None)
        self._loaded: list[LoadedModel] = []
        self._assigned: RegisteredModel | None = None
        # There from the start: Prometheus sees no increase from nothing.
        REFUSED.labels(spec.name)

    @property
    def current(self) -> LoadedModel | None:
        return self.roles.production

    @property
    def sources(self) -> list[FeatureSource]:
        return [*dict.fromkeys(model.features for model in self._loaded)] or [
            self._idle_source
        ]

    @property
    def features(self) -> FeatureSource:
        """Where the answering version looks up; without one, what only pings the store."""
        return self.current.features if self.current else self._idle_source

    @property
    def problem(self) -> str | None:
        """Why no prediction can be made now."""
        return self.state if self.current is None or self.current.problem else None

    @property
    def state(self) -> str:
        """What answers, or why nothing does; and what was refused."""
        answers = None
        if self.current:
            answers = (
                f"version {self.current.version} {self.current.problem or 'answers'}"
            )
        refused = [
            f"version {n} is refused: {why.reason}" for n, why in self.refused.items()
        ]
        parts = (answers, self.waiting, *refused)
        return "; ".join(filter(None, parts)) or f"{self.spec.name} is being loaded"

    async def assign(self, registered: RegisteredModel | None) -> bool:
        """Have the versions that MLflow names answer; True: one of them is to be fetched first."""
        self.waiting = None
        if registered is None or "production" not in registered.versions:
            what = "registered" if registered is None else "in production"
            self.waiting = f"nothing {what} yet for {self.spec.name}: train one"
        if registered is None or registered == self._assigned:
            return False
        models: dict[str, LoadedModel | None] = {}
        for role, version in registered.versions.items():
            models[role] = await self._load(version, registered.created)
        missing = {
            version for role, version in registered.versions.items() if not models[role]
        }
        if self.current is None and not models.get("production"):
            await self.start_without_registry()
        models["production"] = models.get("production") or self.current
        roles = Roles(**models, percent=registered.percent)
        if roles != self.roles:
            self._swap(roles)
        self._assigned = None if missing else registered
        self.refused = {
            n: refusal for n, refusal in self.refused.items() if n in missing
        }
        now = time.monotonic()
        return any(
            n not in self.refused or self.refused[n].is_due(now) for n in missing
        )

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Note why a fetch refused versions; tell of each reason once."""
        now = time.monotonic()
        for version, reason in reasons.items():
            refusal = self.refused.get(version)
            if refusal is None or refusal.reason != reason:
                refusal = Refusal(reason, now, now)
                REFUSED.labels(self.spec.name).inc()
                logger.error(
                    "%s: version %s is refused: %s", self.spec.name, version, reason
                )
            self.refused[version] = replace(refusal, tried=now)

    async def start_without_registry(self) -> None:
        """Where nothing answers yet: answer by the newest complete copy that holds."""
        for version in self.copies.newest() if self.current is None else ():
            if model := await self._load(version):
                self._swap(Roles(production=model))
                self.waiting = None
                return

    async def _load(
        self, version: str, created: int | None = None
    ) -> LoadedModel | None:
        """Return the version, tried; None: no copy here holds, of the model made at `created`."""
        name = self.spec.name
        origin = self.copies.origin(version)
        if origin is None or created not in {None, origin.created}:
            return None
        for model in self._loaded:
            if (model.version, model.origin) == (version, origin):
                return model
        try:
            model = await asyncio.to_thread(self._open, version, origin)
        except Exception as exc:  # noqa: BLE001  (whatever it is, the version is not served)
            reason = " ".join(f"{type(exc).__name__}: {exc}".split())
            logger.warning(
                "%s: the copy of version %s is no good: %s", name, version, reason
            )
            # Due now.
            self.refused[version] = Refusal(reason, time.monotonic(), -math.inf)
            self.copies.remove(version)
            return None
        # One that is not open yet would answer with defaults.
        await model.features.probe()
        self._loaded.append(model)
        logger.info("%s: version %s is loaded", name, version)
        return model

    def _open(self, version: str, origin: Origin) -> LoadedModel:
        files, store = self.copies.path(version), self.copies.online_store
        contract, session = open_version(files, origin.digests, self.spec, store)
        new = FeatureSource(self._settings, contract)
        shared = (source for source in self.sources if source.asked == new.asked)
        return LoadedModel(version, origin, contract, session, next(shared, new))

    def _swap(self, roles: Roles) -> None:
        """Give the roles to what is loaded, and forget what has none."""
        before, self.roles = self.roles, roles
        name, sources = self.spec.name, self.sources
        kept = [roles.production, roles.challenger, roles.shadow, roles.previous]
        # Aliases move one by one: it will be `previous`.
        if roles.production is not None:
            kept.append(before.production)
        gone: list[FeatureSource | LoadedModel] = [
            m for m in self._loaded if m not in kept
        ]
        self._loaded = [model for model in self._loaded if model in kept]
        self.request_data = dict(
            ChainMap(*(m.contract.lookup.request_data for m in kept if m))
        )
        for each in (*gone, *{*sources}.difference(self.sources)):
            task = asyncio.create_task(_close(each))
            _closing.add(task)
            task.add_done_callback(_closing.discard)
        for held, value in ((before, 0), (roles, 1)):
            for role in ("production", "challenger", "shadow"):
                if model := getattr(held, role):
                    MODEL_INFO.labels(name, model.version, role).set(value)
        if self.current is not None and self.current is not before.production:
            SWAPS.labels(name).inc()
            self.copies.mark_production(self.current.version)
            logger.info("%s: version %s answers", name, self.current.version)
        settle()

    def close(self) -> None:
        """Forget all versions; answers that have begun still end."""
        self._swap(Roles())


async def _close(each: FeatureSource | LoadedModel) -> None:
    """Close it once no answer comes from there any more."""
    await asyncio.sleep(CLOSE_SECONDS)
    await each.close()
