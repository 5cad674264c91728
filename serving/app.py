"""The application: resources opened in order, one set of routes per model, closed in reverse."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi_offline import FastAPIOffline

from mlflow_server.registry import Registry
from serving.features import Features, FeatureSources, online_features
from serving.health import Health
from serving.holder import Holder
from serving.metrics import Metrics
from serving.pages import add_pages
from serving.prediction_log import AppendLog, FeedbackLog
from serving.routes import add_routes
from serving.scorer import Scorer
from stack.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastapi import FastAPI

    from stack.settings import Settings
    from stack.spec import ModelSpec


def create_app(
    settings: Settings,
    specs: Sequence[ModelSpec],
    open_features: Callable[..., Features] = online_features,
) -> FastAPI:
    """Everything is made here, nothing is opened before the application starts.

    Raises:
        SettingsError: GYRE_DEFAULT_MODEL is none of `specs`.

    """
    names = [spec.name for spec in specs]
    if settings.default_model not in names:
        raise SettingsError(f"GYRE_DEFAULT_MODEL: {settings.default_model!r} is not in {names}")
    metrics, registry = Metrics(), Registry(settings)
    sources = FeatureSources(settings, open_features)
    folder = settings.home / "serving" / "log"
    log, feedback = AppendLog(folder, "predictions", metrics), FeedbackLog(folder, metrics)
    holders = [Holder(settings, spec, registry, sources, metrics) for spec in specs]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        resources: list[Any] = [log, feedback, sources, *holders]
        async with AsyncExitStack() as opened:
            for resource in resources:
                resource.start()
                opened.callback(resource.close)
            yield

    app = FastAPIOffline(title="Gyre", version="1", lifespan=lifespan)
    scorers = [Scorer(holder.spec, holder, log, metrics) for holder in holders]
    default = scorers[names.index(settings.default_model)]
    add_routes(app, metrics, scorers, default, feedback)
    logs = [("prediction log", log), ("feedback log", feedback)]
    add_pages(app, settings, Health(default.holder, holders, logs), metrics)
    return app
