"""The models that a worker serves now."""

from collections.abc import Collection, Iterator, Sequence

from core.settings import Settings
from core.spec import ModelSpec, default_spec
from serving.errors import NotFoundError
from serving.prediction_log.append_log import AppendLog
from serving.scoring.schemas import Schemas, build_schemas
from serving.scoring.scorer import Scorer
from serving.versions.loaded import LoadedVersions
from serving.versions.signature import Signature


class Deployment:
    """One model as clients see it.

    Attributes:
        name: Name of the model.
        versions: Its versions that are loaded.
        scorer: Answers by these versions.

    """

    def __init__(self, settings: Settings, spec: ModelSpec, log: AppendLog) -> None:
        self.name = spec.name
        self.versions = LoadedVersions(settings, spec)
        self.scorer = Scorer(self.versions, log)
        self._schemas: Schemas
        self._schemas_of: Signature | None = None

    @property
    def schemas(self) -> Schemas:
        """Schemas of the bodies. New ones only where they differ: pydantic keeps its types for ever."""
        signature = self.versions.signature
        if signature != self._schemas_of:
            self._schemas = build_schemas(signature)
            self._schemas_of = signature
        return self._schemas


class ModelRepository:
    """All models of a worker, used on one event loop.

    Attributes:
        models: Models by name.
        default: The model that answers where a request names none.

    """

    def __init__(self, settings: Settings, log: AppendLog) -> None:
        self.models: dict[str, Deployment] = {}
        self.default: Deployment | None = None
        self._settings = settings
        self._log = log

    def __iter__(self) -> Iterator[Deployment]:
        return iter(self.models.values())

    def update(self, specs: Sequence[ModelSpec], unread: Collection[str] = ()) -> None:
        """Serve these models and no others.

        Args:
            specs: Specs of the models. They change no answer of a version that is loaded.
            unread: Names of models whose spec cannot be read. They keep the spec from before.

        """
        models_before = self.models
        self.models = {}
        for spec in specs:
            model = models_before.get(spec.name)
            if model is None:
                model = Deployment(self._settings, spec, self._log)
            else:
                model.versions.follow_spec(spec)
            self.models[spec.name] = model
        for name, model in models_before.items():
            if name in unread:
                self.models[name] = model
            elif name not in self.models:
                model.versions.close()
        read_specs = [model.versions.spec for model in self.models.values()]
        default = default_spec(self._settings, read_specs)
        self.default = self.models[default.name] if default else None

    def find(self, name: str | None) -> Deployment:
        """Return the model called `name`, or the default one.

        Raises:
            NotFoundError: There is no such model.

        """
        if name is not None:
            if name in self.models:
                return self.models[name]
            raise NotFoundError(
                f"no model {name!r}: there is {', '.join(self.models) or 'none'}"
            )
        if self.default is not None:
            return self.default
        paths = ", ".join(f"/models/{name}/predict" for name in self.models)
        remedy = f"there is {paths}" if paths else "none is served"
        raise NotFoundError(
            f"no model is the default one (GYRE_DEFAULT_MODEL): {remedy}"
        )

    def first(self) -> Deployment | None:
        """Return the default model; without a default, any model, if possible one with a version."""
        models = sorted(self, key=lambda model: model.versions.current is None)
        if self.default is not None or not models:
            return self.default
        return models[0]

    async def wait_for_answers(self) -> None:
        """Wait for the answers that are under way."""
        for model in self:
            await model.scorer.wait_for_answers()

    async def close(self) -> None:
        """Close the connections of all versions."""
        for model in self:
            for source in model.versions.sources:
                await source.close()
