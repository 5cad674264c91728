"""What a worker serves: each model by its name and the names it is also served as.

Models come and go while the worker runs: routes ask here at every request.
"""

from collections.abc import Iterator, Sequence

from serving.errors import NotFoundError
from serving.model_versions import ModelVersions
from serving.prediction_log import AppendLog
from serving.schemas import Schemas, build_schemas
from serving.scorer import Scorer
from stack.settings import Settings
from stack.spec import ModelSpec, default_spec


class Deployment:
    """One model: what holds its versions, what scores with them, what clients may send."""

    def __init__(self, holder: ModelVersions, log: AppendLog) -> None:
        self.holder = holder
        self.scorer = Scorer(holder, log)
        self._schemas: Schemas | None = None
        self._made_for: tuple[object, object] = (None, None)

    @property
    def spec(self) -> ModelSpec:
        return self.holder.spec

    @property
    def names(self) -> tuple[str, ...]:
        return (self.spec.name, *self.spec.served_as)

    @property
    def schemas(self) -> Schemas:
        """Made anew with each spec and version: a version knows which features may be null."""
        spec = self.holder.spec
        current = self.holder.current
        for_spec, for_version = self._made_for
        if self._schemas is None or spec is not for_spec or current is not for_version:
            nullable = frozenset(current.contract.nullable) if current else frozenset[str]()
            self._made_for = (spec, current)
            self._schemas = build_schemas(spec, nullable)
        return self._schemas


class ModelRepository:
    """Used on one event loop. `holders` is each model's, by its name: it is changed in place."""

    def __init__(self, settings: Settings, log: AppendLog) -> None:
        self.holders: dict[str, ModelVersions] = {}
        self._settings = settings
        self._log = log
        self._deployments: dict[str, Deployment] = {}
        self._by_name: dict[str, Deployment] = {}
        self._default: Deployment | None = None

    def __iter__(self) -> Iterator[Deployment]:
        return iter(self._deployments.values())

    @property
    def default(self) -> Deployment | None:
        return self._default

    def update(self, specs: Sequence[ModelSpec]) -> list[ModelVersions]:
        """Serve exactly `specs`. Who is in it unchanged is not touched; what goes is returned.

        A model whose versions still fit its new spec answers on with them.
        """
        gone: list[ModelVersions] = []
        for name in self._deployments.keys() - {spec.name for spec in specs}:
            gone.append(self.holders.pop(name))
            del self._deployments[name]
        for spec in specs:
            deployment = self._deployments.get(spec.name)
            if deployment is not None and _versions_fit(deployment.spec, spec):
                deployment.holder.spec = spec
                continue
            if deployment is not None:
                gone.append(deployment.holder)
            self.holders[spec.name] = ModelVersions(self._settings, spec)
            self._deployments[spec.name] = Deployment(self.holders[spec.name], self._log)
        self._by_name = {name: each for each in self for name in each.names}
        default = default_spec(self._settings, specs)
        self._default = self._deployments[default.name] if default else None
        return gone

    def find(self, name: str | None) -> Deployment:
        """Return the model called `name`, or the default one.

        Raises:
            NotFoundError: says which there are.

        """
        found = self._default if name is None else self._by_name.get(name)
        if found is not None:
            return found
        if name is None:
            paths = ", ".join(f"/models/{model}/predict" for model in self._deployments)
            there = f"there is {paths}" if paths else "none is served"
            raise NotFoundError(f"no model is the default one (GYRE_DEFAULT_MODEL): {there}")
        there = ", ".join(self._deployments) or "none"
        raise NotFoundError(f"no model {name!r}: there is {there}")

    async def ended(self) -> None:
        """Wait for what is under way."""
        for model in self:
            await model.scorer.ended()

    def first(self) -> Deployment:
        """Return the default model; without one, any that has a version.

        Raises:
            NotFoundError: there is none at all.

        """
        if self._default is not None:
            return self._default
        with_version_first = sorted(self, key=lambda model: model.holder.current is None)
        return with_version_first[0] if with_version_first else self.find(None)


def _versions_fit(before: ModelSpec, after: ModelSpec) -> bool:
    """Whether what is loaded of `before` can answer for `after` (see model.open_version)."""
    parts = ("entity_key", "task", "feature_service", "features")
    return all(getattr(before, part) == getattr(after, part) for part in parts)
