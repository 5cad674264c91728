"""The versions of one model that a worker has loaded, and which of them holds which role."""

import asyncio
import logging
from collections.abc import Iterable

from core.settings import Settings
from core.spec import ModelSpec
from feature_repo.published.config import online_store_type
from mlflow_server.roles import CHALLENGER, RoleAssignment
from serving.features.source import FeatureSource
from serving.memory import exempt_from_collection
from serving.metrics import MODEL_INFO, REFUSED, SWAPS
from serving.versions.copies import LocalCopies, Origin
from serving.versions.model import LoadedModel
from serving.versions.opening import open_version, reason_of
from serving.versions.roles import Roles
from serving.versions.signature import Signature, sign

CLOSE_SECONDS = 30.0
logger = logging.getLogger(__name__)


class LoadedVersions:
    """Follows one model. `roles` is replaced by one assignment, on the event loop.

    Attributes:
        spec: Spec of the model, as it is now.
        roles: The version in each role.
        signature: Fields that clients send.
        refused: By version, why a version in a role is not served.
        copies: Files that this machine keeps of the model.

    """

    def __init__(self, settings: Settings, spec: ModelSpec) -> None:
        self.spec = spec
        self.roles = Roles()
        self.signature: Signature = sign(spec, production=None, others=())
        self.refused: dict[str, str] = {}
        self.copies = LocalCopies(settings, spec.name)
        self._settings = settings
        self._idle_source = FeatureSource(settings, None)
        self._loaded: list[LoadedModel] = []
        self._closing = set[asyncio.Task[None]]()
        self._assigned: RoleAssignment | None = None
        # Set from the start: Prometheus sees no increase from nothing.
        REFUSED.labels(spec.name)

    @property
    def current(self) -> LoadedModel | None:
        """The version in production."""
        return self.roles.production

    @property
    def sources(self) -> list[FeatureSource]:
        """Sources of the loaded versions; without a version, one that only pings the store."""
        sources = [*dict.fromkeys(model.features for model in self._loaded)]
        return sources or [self._idle_source]

    @property
    def features(self) -> FeatureSource:
        """Source of the version that answers; without a version, one that only pings the store."""
        return self.current.features if self.current else self._idle_source

    @property
    def problem(self) -> str | None:
        """Why no prediction can be made now."""
        is_answering = self.current is not None and self.current.session.problem is None
        return None if is_answering else self.state

    @property
    def state(self) -> str:
        """A text: which version answers, or why none does, and which ones are refused."""
        sentences = []
        if self.current is not None:
            problem = self.current.session.problem or "answers"
            sentences.append(f"version {self.current.version} {problem}")
        for version, reason in self.refused.items():
            sentences.append(f"version {version} is refused: {reason}")
        return "; ".join(sentences) or (
            f"{self.spec.name} has no version in production here yet: train one, or wait "
            "for its copy"
        )

    def follow_spec(self, spec: ModelSpec) -> None:
        """Take the spec as it is now."""
        self.spec = spec
        self._sign()

    def classes(self, version: str) -> tuple[str, ...]:
        """Return the names of the classes of a version that has answered."""
        for model in self._loaded:
            if model.version == version:
                return model.contract.classes
        return self.signature.classes

    async def follow(self, registered: RoleAssignment | None) -> list[str]:
        """Give the roles to the versions that MLflow names.

        Args:
            registered: The roles in MLflow; None: MLflow has no model of this name.

        Returns:
            Versions in a role that have no good copy here, production first.

        """
        if registered is None or registered == self._assigned:
            return []
        models = {}
        missing = []
        for role, version in registered.versions.items():
            models[role] = await self._load(version, registered.created)
            if models[role] is None:
                missing.append(version)
        production = models.get("production")
        unfit = {}
        for role, model in models.items():
            difference = _difference(model, production)
            if model is not None and difference:
                models[role] = None
                unfit[model.version] = f"it cannot be {role}: {difference}"
        if production is None:
            await self.start_without_registry()
            models["production"] = self.current
        else:
            self.copies.note_production(production.version, registered.created)
        self._swap(Roles(**models, percent=registered.percent(CHALLENGER)))
        # The version before it, too, so that a rollback takes no time.
        recent_models = [
            await self._load(version, created)
            for version, created in self.copies.production().items()
        ]
        self._keep([*self.roles.by_name().values(), *recent_models])
        self._note_refusals(missing)
        for version, reason in unfit.items():
            self._refuse(version, reason)
        self._assigned = None if missing else registered
        return missing

    async def start_without_registry(self) -> None:
        """If no version answers yet, let the last production answer, or the one before it."""
        for version, created in self.copies.production().items():
            model = None if self.current else await self._load(version, created)
            if model is not None:
                self._swap(Roles(production=model))

    def close(self) -> None:
        """Forget all versions. Answers that have begun still end."""
        self._swap(Roles())
        self._keep([])

    async def _load(self, version: str, created: int) -> LoadedModel | None:
        """Load the copy of a version, if there is a good one.

        Args:
            version: Number of the version.
            created: When the model was registered.

        """
        origin = self.copies.origin(version)
        if origin is None or created != origin.created:
            return None
        for model in self._loaded:
            if model.version == version and model.origin == origin:
                return model
        try:
            model = await asyncio.to_thread(self._open, version, origin)
        except Exception as exc:  # noqa: BLE001  (whatever it is, the version is not served)
            self._refuse(version, reason_of(exc))
            self.copies.remove(version)
            return None
        # A source that is not open yet would give defaults.
        await model.features.probe()
        self._keep([*self._loaded, model])
        logger.info("%s: version %s is loaded", self.spec.name, version)
        return model

    def _open(self, version: str, origin: Origin) -> LoadedModel:
        contract, session = open_version(
            folder=self.copies.folder / version,
            digests=origin.digests,
            spec=self.spec,
            online_store=online_store_type(self._settings),
        )
        features = FeatureSource(self._settings, contract)
        for source in self.sources:
            if source.identity == features.identity:
                features = source
        return LoadedModel(version, origin, contract, session, features)

    def _note_refusals(self, missing: list[str]) -> None:
        """Say why versions are missing; forget refusals of all others."""
        self.copies.keep_refusals(missing)
        for version in self.refused.keys() - missing:
            del self.refused[version]
        for version in missing:
            refusal = self.copies.refusal(version)
            if refusal is not None:
                self._refuse(version, refusal.reason)

    def _refuse(self, version: str, reason: str) -> None:
        """Note why a version is not served; log each reason once."""
        if self.refused.get(version) == reason:
            return
        self.refused[version] = reason
        REFUSED.labels(self.spec.name).inc()
        logger.error("%s: version %s is refused: %s", self.spec.name, version, reason)

    def _swap(self, roles: Roles) -> None:
        """Give the roles to versions that are loaded."""
        if roles == self.roles:
            return
        roles_before = self.roles
        self.roles = roles
        for role, model in roles_before.by_name().items():
            MODEL_INFO.labels(self.spec.name, model.version, role).set(0)
        for role, model in roles.by_name().items():
            MODEL_INFO.labels(self.spec.name, model.version, role).set(1)
        production = roles.production
        if production is not None and production is not roles_before.production:
            SWAPS.labels(self.spec.name).inc()
            logger.info("%s: version %s answers", self.spec.name, production.version)
        self._sign()
        exempt_from_collection()

    def _keep(self, models: Iterable[LoadedModel | None]) -> None:
        """Keep some versions, production first, and close the others."""
        sources = self.sources
        models_before = self._loaded
        self._loaded = [*dict.fromkeys(model for model in models if model is not None)]
        unused_models = [model for model in models_before if model not in self._loaded]
        unused_sources = [source for source in sources if source not in self.sources]
        if unused_models or unused_sources:
            task = asyncio.create_task(_close(unused_models, unused_sources))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._sign()

    def _sign(self) -> None:
        """Make the signature of the loaded versions."""
        production = self.current.contract if self.current else None
        others = [model.contract for model in self._loaded if model is not self.current]
        self.signature = sign(self.spec, production, others)


def _difference(model: LoadedModel | None, production: LoadedModel | None) -> str:
    """Say how a version differs from production, whose requests it would score."""
    if model is None or production is None:
        return ""
    for name in ("task", "classes", "entity_key"):
        own = getattr(model.contract, name)
        other = getattr(production.contract, name)
        if own != other:
            return f"{name} is {own}, in production {other}"
    return ""


async def _close(
    models: Iterable[LoadedModel], sources: Iterable[FeatureSource]
) -> None:
    """Close versions and sources once no answer needs them any more."""
    await asyncio.sleep(CLOSE_SECONDS)
    for model in models:
        model.session.close()
    for source in sources:
        await source.close()
