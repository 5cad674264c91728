"""What is known of a model. This process imports neither Feast nor MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from core.errors import RegistryError
from core.settings import Settings
from core.spec import ModelSpec
from core.user_code import dataset_names
from feature_repo.dataset_record import DatasetRecord, service_records
from mlflow_server.ledger import Ledger
from mlflow_server.pages import ModelPages, Pages, RunPage
from mlflow_server.records import ModelRows, Records, model_rows
from monitoring.console.cached_reader import PATIENCE, CachedReader, Reading
from monitoring.console.history import SPANS, History, read_history, traffic
from monitoring.serving_status import COUNTS, ServingStatus, counters_of

FOR_EVER = 1e9
"""Seconds."""


@dataclass(frozen=True)
class ModelStatus:
    spec: ModelSpec
    serving: Reading[ServingStatus]
    aliases: Reading[Mapping[str, str]]
    freshness: Reading[list[DatasetRecord]]
    rows: Reading[ModelRows]
    runs: Reading[RunPage | None]


def since_the_last_run(
    status: ModelStatus, role: str, version: str, now: datetime
) -> dict[str, float] | str:
    """Return what a version did since the last monitoring run, or why that is unknown."""
    serving, rows = status.serving.value, status.rows.value
    if serving is None or rows is None:
        return status.serving.why if serving is None else status.rows.why
    if not rows.decisions or not (counted := rows.decisions[-1].counted):
        return "no monitoring run has asked serving yet"
    then, counters = (
        rows.decisions[-1].as_of,
        counters_of(serving.replicas, status.spec.name),
    )
    return traffic(
        f"{role} {version}", counters, COUNTS.validate_json(counted), now - then
    )


Stores = CachedReader[tuple[Ledger, Records]]


def stores_of(settings: Settings) -> Stores:
    """Return a reader that opens ledger and records once, for all models: databases count."""
    return CachedReader(lambda: (Ledger(settings), Records(settings)), FOR_EVER)


def opened(stores: Stores) -> tuple[Ledger, Records]:
    """Wait for them; raise a RegistryError where the database cannot be reached by then."""
    stores.begin().join(PATIENCE)
    if stores.reading.value is None:
        raise RegistryError(stores.reading.why)
    return stores.reading.value


class ModelReaders:
    """A cached reader for each source of one model; `all` are in the order of `ModelStatus`.

    pages, histories (by days): what its own page shows beside them.
    """

    def __init__(
        self,
        settings: Settings,
        spec: ModelSpec,
        serving: CachedReader[Any],
        stores: Stores | None = None,
    ) -> None:
        self.spec, pages, name = spec, Pages(settings), spec.name
        stores, datasets = stores or stores_of(settings), dataset_names(spec.dataset)
        self.all: tuple[CachedReader[Any], ...] = (
            serving,
            CachedReader(lambda: pages.aliases(name)),
            CachedReader(
                lambda: service_records(settings, spec.dataset, spec.feature_service)
            ),
            CachedReader(lambda: model_rows(*opened(stores), name, datasets)),
            CachedReader(lambda: pages.training(spec.experiment), seconds=30),
        )
        self.pages: CachedReader[ModelPages]
        self.pages = CachedReader(
            lambda: pages.pages(name, spec.experiment), seconds=30
        )

        self.histories: dict[int, CachedReader[History]]
        self.histories = {
            days: CachedReader(partial(_history, stores, name, days), 30)
            for days in SPANS
        }

    def status(self) -> ModelStatus:
        return ModelStatus(self.spec, *(reader.reading for reader in self.all))


def _history(stores: Stores, model: str, days: int) -> History:
    since = datetime.now(UTC) - timedelta(days=days)
    return read_history(opened(stores)[1], model, since, SPANS[days])
