"""What a worker serves now, as models come and go: each by its name and other names."""

from collections.abc import Iterator, Sequence

from core.settings import Settings
from core.spec import ModelSpec, default_spec
from serving.errors import NotFoundError
from serving.model_versions import ModelVersions
from serving.prediction_log import AppendLog
from serving.schemas import Schemas, build_schemas
from serving.scorer import Scorer


class Deployment:
    def __init__(self, holder: ModelVersions, log: AppendLog) -> None:
        self.holder = holder
        self.scorer = Scorer(holder, log)
        self._schemas: Schemas
        self._made_for: object = None

    @property
    def spec(self) -> ModelSpec:
        return self.holder.spec

    @property
    def names(self) -> tuple[str, ...]:
        return (self.spec.name, *self.spec.served_as)

    @property
    def schemas(self) -> Schemas:
        """Made anew only where they change: pydantic's classes stay in memory for ever."""
        current = self.holder.current
        nullable = current.contract.nullable if current else ()
        needed = current.contract.lookup.request_data if current else {}
        made_for = (nullable, self.holder.request_data, needed)
        if made_for != self._made_for:
            self._schemas = build_schemas(self.spec, *made_for)
            self._made_for = made_for
        return self._schemas


class ModelRepository:
    """Used on one event loop. default: who answers where no model is named."""

    def __init__(self, settings: Settings, log: AppendLog) -> None:
        self.default: Deployment | None = None
        self._settings, self._log = settings, log
        self._deployments: dict[str, Deployment] = {}
        self._by_name: dict[str, Deployment] = {}

    def __iter__(self) -> Iterator[Deployment]:
        return iter(self._deployments.values())

    @property
    def holders(self) -> dict[str, ModelVersions]:
        return {name: model.holder for name, model in self._deployments.items()}

    def update(self, specs: Sequence[ModelSpec]) -> list[ModelVersions]:
        """Serve exactly `specs`; what goes is returned. Whose versions still fit answers on."""
        gone = self._deployments
        self._deployments = {}
        for spec in specs:
            if spec.name in gone and _versions_fit(gone[spec.name].spec, spec):
                model = gone.pop(spec.name)
                model.holder.spec = spec
            else:
                model = Deployment(ModelVersions(self._settings, spec), self._log)
            self._deployments[spec.name] = model
        self._by_name = {name: model for model in self for name in model.names}
        default = default_spec(self._settings, specs)
        self.default = self._deployments[default.name] if default else None
        return [model.holder for model in gone.values()]

    def find(self, name: str | None) -> Deployment:
        """Return the model called `name`, or the default one (NotFoundError: none)."""
        found = self.default if name is None else self._by_name.get(name)
        if found is not None:
            return found
        if name is not None:
            there = ", ".join(self._deployments) or "none"
            raise NotFoundError(f"no model {name!r}: there is {there}")
        paths = ", ".join(f"/models/{model}/predict" for model in self._deployments)
        there = f"there is {paths}" if paths else "none is served"
        raise NotFoundError(
            f"no model is the default one (GYRE_DEFAULT_MODEL): {there}"
        )

    def first(self) -> Deployment:
        """Return the default model; without one, any that has a version (NotFoundError: none)."""
        best = max(
            self, key=lambda model: model.holder.current is not None, default=None
        )
        return self.default or best or self.find(None)

    async def ended(self) -> None:
        for model in self:
            await model.scorer.ended()

    async def close(self) -> None:
        for model in self:
            for source in model.holder.sources:
                await source.close()


def _versions_fit(before: ModelSpec, after: ModelSpec) -> bool:
    """Whether what is loaded of `before` can answer for `after`."""
    parts = ("entity_key", "task", "classes", "feature_service", "features")
    return all(getattr(before, part) == getattr(after, part) for part in parts)
