"""The versions of one model that a worker has loaded, and which of them holds which role."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.features import FeatureSource, settle
from serving.local_copies import LocalCopies
from serving.metrics import MODEL_INFO, REFUSED, SWAPS
from serving.model import LoadedModel, open_version
from stack.spec import entity_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from serving.local_copies import Origin
    from serving.registered import RegisteredModel, Role
    from stack.settings import Settings
    from stack.spec import Entity, ModelSpec

CLOSE_SECONDS = 30.0
SHORTEST_WAIT = 10.0
LONGEST_WAIT = 60.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Roles:
    """Who answers, who answers `percent` of the entities instead, and who only watches.

    previous: the version in production before; loaded, so that the way back takes no time.
    """

    production: LoadedModel | None = None
    challenger: LoadedModel | None = None
    percent: int = 0
    shadow: LoadedModel | None = None
    previous: LoadedModel | None = None

    def role_of(self, key: Entity | None) -> Role:
        """Who answers for `key`, always the same; rows without a key are production's."""
        if self.challenger is None or key is None or bucket(self.challenger, key) >= self.percent:
            return "production"
        return "challenger"

    def model(self, role: Role) -> LoadedModel:
        """Who holds a role that `role_of` gave; there is a version in production."""
        model: LoadedModel = getattr(self, role)
        return model

    def named(self) -> dict[Role, LoadedModel]:
        roles: tuple[Role, ...] = ("production", "challenger", "shadow")
        return {role: model for role in roles if (model := getattr(self, role)) is not None}


def bucket(challenger: LoadedModel, key: Entity) -> float:
    """Where an entity lies in [0, 100): the same for a challenger's life, another for the next."""
    salted = f"{challenger.contract.model}:{challenger.version}:{entity_text(key)}"
    digest = hashlib.blake2b(salted.encode(), digest_size=8).digest()
    return int.from_bytes(digest) * 100 / 2**64


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version is not served; since when, and when it was last tried (monotonic seconds)."""

    reason: str
    since: float
    tried: float

    def is_due(self, now: float) -> bool:
        """Whether to try again: after as long as it has failed, within 10 to 60 s."""
        wait = min(max(self.tried - self.since, SHORTEST_WAIT), LONGEST_WAIT)
        return now >= self.tried + wait


Key = tuple[str | int, ...]
"""A version, when its registered model was made, and the digests of its files."""


class ModelVersions:
    """One model in a worker. `roles` is replaced by one assignment, on the event loop."""

    def __init__(self, settings: Settings, spec: ModelSpec) -> None:
        self.spec = spec
        self.roles = Roles()
        self.waiting: str | None = f"{spec.name} is being loaded"
        self.refused: dict[str, Refusal] = {}
        self.copies = LocalCopies(settings, spec.name)
        self._settings = settings
        self._idle_source = FeatureSource(settings, None)
        self._loaded: dict[Key, LoadedModel] = {}
        self._assigned: RegisteredModel | None = None
        REFUSED.labels(spec.name)  # there from the start: Prometheus sees no increase from nothing

    @property
    def current(self) -> LoadedModel | None:
        return self.roles.production

    @property
    def sources(self) -> list[FeatureSource]:
        """Where the loaded versions look features up, each once."""
        sources = {id(model.features): model.features for model in self._loaded.values()}
        return [*sources.values()] or [self._idle_source]

    @property
    def features(self) -> FeatureSource:
        """Where the answering version looks up; before there is one, what only pings the store."""
        return self.current.features if self.current else self._idle_source

    @property
    def state(self) -> str:
        """What answers, or why nothing does; and what was refused."""
        answers = f"version {self.current.version} answers" if self.current else None
        refused = [
            f"version {version} is refused: {refusal.reason}"
            for version, refusal in self.refused.items()
        ]
        return "; ".join(part for part in (answers, self.waiting, *refused) if part)

    async def assign(self, registered: RegisteredModel | None) -> bool:
        """Have the versions that MLflow names answer; True: one of them is to be fetched first."""
        if registered is None or "production" not in registered.versions:
            what = "registered" if registered is None else "in production"
            self.waiting = f"nothing {what} yet for {self.spec.name}: train one"
        else:
            self.waiting = None
        if registered is None or registered == self._assigned:
            return False
        models = {
            role: await self._load(version, registered.created)
            for role, version in registered.versions.items()
        }
        if self.current is None and models.get("production") is None:
            await self.start_without_registry()
        self._swap(models, registered.percent)
        self._assigned = registered if all(models.values()) else None
        missing = {registered.versions[role] for role, model in models.items() if model is None}
        self.refused = {
            version: refusal for version, refusal in self.refused.items() if version in missing
        }
        return any(
            version not in self.refused or self.refused[version].is_due(time.monotonic())
            for version in missing
        )

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Note why a fetch refused versions; tell of each reason once."""
        now = time.monotonic()
        for version, reason in reasons.items():
            before = self.refused.get(version)
            if before is not None and before.reason == reason:
                self.refused[version] = Refusal(reason, before.since, now)
            else:
                self.refused[version] = Refusal(reason, now, now)
                REFUSED.labels(self.spec.name).inc()
                logger.error("%s: version %s is refused: %s", self.spec.name, version, reason)

    async def start_without_registry(self) -> None:
        """Where nothing answers yet: answer by the newest complete copy that holds."""
        for version in self.copies.newest() if self.current is None else ():
            origin = self.copies.origin(version)
            model = await self._load(version, origin.created) if origin else None
            if model:
                self._swap({"production": model}, 0)
                self.waiting = None
                return

    async def _load(self, version: str, created: int) -> LoadedModel | None:
        """Return the version, tried; None: there is no copy of it here that holds."""
        name = self.spec.name
        origin = self.copies.origin(version)
        if origin is None or origin.created != created:
            return None
        key: Key = (version, created, *sorted(origin.digests.values()))
        if key in self._loaded:
            return self._loaded[key]
        try:
            model = await asyncio.to_thread(self._open, version, origin)
        except Exception as exc:  # noqa: BLE001  (whatever it is, the version is not served)
            reason = " ".join(f"{type(exc).__name__}: {exc}".split())
            logger.warning("%s: the copy of version %s is no good: %s", name, version, reason)
            self.refused[version] = Refusal(reason, time.monotonic(), -math.inf)  # due now
            self.copies.remove(version)
            return None
        await model.features.probe()  # one that is not open yet would answer with defaults
        self._loaded[key] = model
        logger.info("%s: version %s is loaded", name, version)
        return model

    def _open(self, version: str, origin: Origin) -> LoadedModel:
        contract, session = open_version(self.copies.path(version), origin.digests, self.spec)
        features = FeatureSource(self._settings, contract)
        for source in self.sources:
            if source.asked == features.asked:
                features = source
        return LoadedModel(version, contract, session, features)

    def _swap(self, models: Mapping[Role, LoadedModel | None], percent: int) -> None:
        """Give the roles to what is loaded; production stays where its version is not."""
        before = self.roles
        production = models.get("production") or before.production
        after = Roles(
            production=production,
            challenger=models.get("challenger"),
            percent=percent,
            shadow=models.get("shadow"),
            previous=models.get("previous"),
        )
        if after == before:
            return
        self.roles = after
        self._release(after)
        self._count(before, after)
        settle()

    def _release(self, roles: Roles) -> None:
        """Forget versions without a role; close their sources once no answer reads there."""
        held = {id(model) for model in (*roles.named().values(), roles.previous) if model}
        before = self.sources
        self._loaded = {key: model for key, model in self._loaded.items() if id(model) in held}
        after = self.sources
        for source in before:
            if source not in after:
                asyncio.get_running_loop().call_later(CLOSE_SECONDS, _close, source)

    def close(self) -> None:
        """Forget all versions; answers that have begun still end."""
        before, self.roles = self.roles, Roles()
        self._release(self.roles)
        self._count(before, self.roles)

    def _count(self, before: Roles, after: Roles) -> None:
        name = self.spec.name
        if before.production is not after.production and after.production:
            SWAPS.labels(name).inc()
            self.copies.mark_production(after.production.version)
            logger.info("%s: version %s answers", name, after.production.version)
        for role, model in before.named().items():
            MODEL_INFO.labels(name, model.version, role).set(0)
        for role, model in after.named().items():
            MODEL_INFO.labels(name, model.version, role).set(1)


_closing = set[asyncio.Task[None]]()


def _close(source: FeatureSource) -> None:
    task = asyncio.get_running_loop().create_task(source.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
