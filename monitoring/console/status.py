"""What is known of a model. This process imports neither Feast nor MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from core.settings import Settings
from core.spec import ModelSpec
from core.user_code import dataset_names
from feature_repo.freshness import Freshness, recorded_freshness
from mlflow_server.ledger import Ledger
from mlflow_server.pages import ModelRuns, Pages
from mlflow_server.records import ModelRows, Records, model_rows
from monitoring.console.cached_reader import CachedReader, Reading
from monitoring.serving_status import ServingStatus


@dataclass(frozen=True)
class ModelStatus:
    spec: ModelSpec
    serving: Reading[ServingStatus]
    aliases: Reading[Mapping[str, str]]
    freshness: Reading[list[Freshness]]
    rows: Reading[ModelRows]
    runs: Reading[ModelRuns]


class ModelReaders:
    """A cached reader for each source of one model, in the order of `ModelStatus`."""

    def __init__(self, settings: Settings, spec: ModelSpec, serving: CachedReader[Any]) -> None:
        self._settings, self._spec, pages = settings, spec, Pages(settings)
        self.all: tuple[CachedReader[Any], ...] = (
            serving,
            CachedReader(lambda: pages.aliases(spec.name)),
            CachedReader(lambda: recorded_freshness(settings, spec.dataset, spec.feature_service)),
            CachedReader(lambda: model_rows(*self._stores, spec.name, dataset_names(spec.dataset))),
            CachedReader(lambda: pages.runs(spec.name, spec.experiment), seconds=30),
        )

    def status(self) -> ModelStatus:
        return ModelStatus(self._spec, *(reader.reading for reader in self.all))

    @cached_property
    def _stores(self) -> tuple[Ledger, Records]:
        """Opened by the first read that finds the database up."""
        return Ledger(self._settings), Records(self._settings)
