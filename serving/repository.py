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
        self._schemas: Schemas
        self._made_for: tuple[object, object] = (None, None)

    @property
    def spec(self) -> ModelSpec:
        return self.holder.spec

    @property
    def names(self) -> tuple[str, ...]:
        return (self.spec.name, *self.spec.served_as)

    @property
    def schemas(self) -> Schemas:
        """Made anew only where they change: pydantic's classes stay in memory for ever.

        A version knows which of its features may be null.
        """
        spec, current = self.holder.spec, self.holder.current
        nullable = current.contract.nullable if current else ()
        if spec is not self._made_for[0] or nullable != self._made_for[1]:
            self._schemas = build_schemas(spec, frozenset(nullable))
            self._made_for = (spec, nullable)
        return self._schemas


class ModelRepository:
    """Used on one event loop. default: who answers where no model is named."""

    def __init__(self, settings: Settings, log: AppendLog) -> None:
        self.default: Deployment | None = None
        self._settings = settings
        self._log = log
        self._deployments: dict[str, Deployment] = {}
        self._by_name: dict[str, Deployment] = {}

    def __iter__(self) -> Iterator[Deployment]:
        return iter(self._deployments.values())

    @property
    def holders(self) -> dict[str, ModelVersions]:
        return {name: model.holder for name, model in self._deployments.items()}

    def update(self, specs: Sequence[ModelSpec]) -> list[ModelVersions]:
        """Serve exactly `specs`. Who is in it unchanged is not touched; what goes is returned.

        A model whose versions still fit its new spec answers on with them.
        """
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
        """Return the default model; without one, any that has a version (NotFoundError: none)."""
        best = max(self, key=lambda model: model.holder.current is not None, default=None)
        return self.default or best or self.find(None)


def _versions_fit(before: ModelSpec, after: ModelSpec) -> bool:
    """Whether what is loaded of `before` can answer for `after` (see model.open_version)."""
    parts = ("entity_key", "task", "feature_service", "features")
    return all(getattr(before, part) == getattr(after, part) for part in parts)
