"""One model in a worker: loads what the keeper announces, proves it, swaps it in whole."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from serving.announcement import Held, ModelState, Role, local_copy
from serving.features import FeatureSource
from serving.metrics import MODEL_INFO, SWAPS
from serving.model import LoadedModel, open_version
from stack.settings import Settings
from stack.spec import Entity, ModelSpec, entity_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Roles:
    """Who answers, who answers `percent` of the entities instead, and who only watches."""

    production: LoadedModel | None = None
    challenger: LoadedModel | None = None
    percent: int = 0
    shadow: LoadedModel | None = None
    previous: LoadedModel | None = None
    """Kept warm: the way back takes no loading."""

    def role_of(self, key: Entity | None) -> Role:
        """Who answers for `key`, always the same; rows without a key are production's."""
        if self.challenger is None or key is None or bucket(self.challenger, key) >= self.percent:
            return "production"
        return "challenger"

    def model(self, role: Role) -> LoadedModel:
        """Who holds a role that `role_of` gave; there is a version in production."""
        found: LoadedModel = getattr(self, role)
        return found


def bucket(challenger: LoadedModel, key: Entity) -> float:
    """Where an entity lies in [0, 100): the same for a challenger's life, another for the next."""
    salted = f"{challenger.contract.model}:{challenger.version}:{entity_text(key)}"
    digest = hashlib.blake2b(salted.encode(), digest_size=8).digest()
    return int.from_bytes(digest) * 100 / 2**64


Key = tuple[str, ...]
"""A version and the digests of its files: numbers begin again where a model is deleted."""
Loaded = dict[Key, LoadedModel | None]


def _key(held: Held) -> Key:
    return held.version, *sorted(held.digests.values())


class Holder:
    """`roles` is replaced by one assignment."""

    def __init__(self, settings: Settings, spec: ModelSpec) -> None:
        self.spec, self._settings = spec, settings
        self.roles = Roles()
        self.announced = ModelState(waiting=f"{spec.name} is being loaded")
        self._refused: dict[str, str] = {}
        self._loaded: dict[Key, LoadedModel] = {}
        self._held: dict[Role, Held] = {}
        own = FeatureSource(settings, None)
        self._sources = {own.asked: own}
        self._own = own.asked

    @property
    def current(self) -> LoadedModel | None:
        return self.roles.production

    @property
    def features(self) -> FeatureSource:
        """Where the answering version looks up; before there is one, what only probes."""
        return self.current.features if self.current else self._sources[self._own]

    @property
    def sources(self) -> list[FeatureSource]:
        return [*self._sources.values()]

    @property
    def state(self) -> str:
        """What answers, or why nothing does; and what was refused."""
        told = self.announced
        answers = f"version {self.current.version} answers" if self.current else None
        why = told.registry_problem or told.waiting
        no = {**told.refused, **self._refused}
        refused = [f"version {version} is refused: {reason}" for version, reason in no.items()]
        return "; ".join(part for part in (answers, why, *refused) if part)

    def load(self, told: ModelState) -> Loaded | None:
        """Load what is new in `told`; None: nothing is. In a thread; the roles stay as they are."""
        self.announced = told
        if told.roles == self._held:
            return None
        return {_key(held): self._load(held) for held in told.roles.values()}

    def swap(self, told: ModelState, loaded: Loaded) -> bool:
        """Give the roles to what was loaded; True if any changed."""
        before = self.roles

        def of(role: Role) -> LoadedModel | None:
            held = told.roles.get(role)
            return loaded[_key(held)] if held else None

        challenger = told.roles.get("challenger")
        self._loaded = {key: model for key, model in loaded.items() if model}
        self.roles = Roles(
            production=of("production") or before.production,
            challenger=of("challenger"),
            percent=challenger.percent if challenger else 0,
            shadow=of("shadow"),
            previous=of("previous"),
        )
        self._held = dict(told.roles) if all(loaded.values()) else {}
        self._count(before)
        return self.roles != before

    def release_sources(self) -> list[FeatureSource]:
        """Take out the feature sources that no version looks up in any more; to be closed."""
        used = {model.features.asked for model in self._loaded.values()}
        used.add(self.features.asked)
        return [self._sources.pop(asked) for asked in self._sources.keys() - used]

    def _load(self, held: Held) -> LoadedModel | None:
        """Return the version, proved; None: it is refused, and tried again at the next look."""
        if known := self._loaded.get(_key(held)):
            return known
        folder = local_copy(self._settings, self.spec.name, held.version)
        try:
            contract, session = open_version(folder, held.digests, self.spec)
        except Exception as exc:  # noqa: BLE001  (anything wrong keeps the old version)
            reason = " ".join(f"{type(exc).__name__}: {exc}".split())[:500]
            if self._refused.get(held.version) != reason:
                said = "%s: the copy of version %s here is refused: %s"
                logger.warning(said, self.spec.name, held.version, reason)
            self._refused[held.version] = reason
            return None
        self._refused.pop(held.version, None)
        source = FeatureSource(self._settings, contract)
        features = self._sources.setdefault(source.asked, source)
        logger.info("%s: version %s is loaded", self.spec.name, held.version)
        return LoadedModel(held.version, contract, session, features)

    def _count(self, before: Roles) -> None:
        name, roles = self.spec.name, self.roles
        here = {version for version, *_ in self._loaded}
        self._refused = {v: no for v, no in self._refused.items() if v not in here}
        if before.production is not roles.production:
            SWAPS.labels(name).inc()
            logger.info(
                "%s: version %s answers", name, roles.production and roles.production.version
            )
        for was, model in _named(before).items():
            MODEL_INFO.labels(name, model.version, was).set(0)
        for role, model in _named(roles).items():
            MODEL_INFO.labels(name, model.version, role).set(1)


def _named(roles: Roles) -> Mapping[str, LoadedModel]:
    found = {"production": roles.production, "challenger": roles.challenger, "shadow": roles.shadow}
    return {role: model for role, model in found.items() if model is not None}
