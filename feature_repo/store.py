"""What ingest and training ask of Feast: its definitions, and features joined to moments."""

import copy
import warnings
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from importlib import import_module
from itertools import cycle, islice
from typing import Any

import feast
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.repo_config import RepoConfig
from redis.exceptions import RedisError

from core.errors import DataError, FeaturesUnavailableError
from core.settings import PROJECT, Settings
from core.spec import OURS, FeatureType
from core.timestamps import BEGINNING
from core.user_code import dataset_names
from feature_repo.datasets import dataset_of, load_dataset
from feature_repo.definition import Dataset
from feature_repo.definition_hash import definitions
from feature_repo.feast_config import feast_config, registry_path
from feature_repo.features import TIME
from feature_repo.online_state import connect_redis, read_state, state_key
from feature_repo.service_views import published, service_views
from feature_repo.views import unbuilt, view_address

TYPES: dict[str, FeatureType] = {
    "Int32": "int32",
    "Int64": "int64",
    "Float32": "float32",
    "Float64": "double",
    "Bool": "bool",
    "UnixTimestamp": "timestamp",
    "String": "string",
}
"""Feast's types of features, and their names in a spec."""
ARROW: dict[str, pa.DataType] = {
    kind: TIME if kind == "timestamp" else pa.type_for_alias(kind) for kind in TYPES.values()
}
AS_OF = "as_of"
"""Request data that Gyre brings by itself."""
SAMPLES: dict[FeatureType, Any] = {
    "int32": (1, 2, 9),
    "int64": (1, 2, 9),
    "float32": (0.5, 2.0, 9.0),
    "double": (0.5, 2.0, 9.0),
    "bool": (True, False, False),
    "timestamp": (BEGINNING, datetime(2000, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)),
    "string": ("a", "b", ""),
}
"""Request data where no request is at hand."""
KINDS = ("Entity", "FeatureView", "OnDemandFeatureView", "FeatureService")
"""Classes of Feast's objects that a dataset module defines."""
WRITE_DEADLINE = 10.0
"""Seconds that Redis may take for a write."""


def open_store(settings: Settings, deadline: float) -> feast.FeatureStore:
    """Open Feast as `feature_store.yaml` says, with this installation's paths and addresses.

    Args:
        settings: Of the installation.
        deadline: Seconds that Redis may take for a command.

    Raises:
        DataError: Nothing was ever published here.

    """
    if not settings.database_url and not registry_path(settings).exists():
        raise DataError("the definitions are not published: cd feature_repo && feast apply")
    config = _config(settings, deadline)
    config.registry.schema_mode = "skip"  # `feast apply` alone creates tables
    return feast.FeatureStore(config=config)


def defined(dataset: Dataset, kind: str) -> list[Any]:
    """Return Feast's objects of one of KINDS in the module of a dataset."""
    module = import_module(f"feature_repo.datasets.{dataset.name}")
    feast_class = getattr(feast, kind)
    return [value for value in vars(module).values() if isinstance(value, feast_class)]


def publish_beside(settings: Settings, *datasets: Dataset) -> None:
    """Publish definitions in a temporary installation, as `feast apply` does.

    Those of `datasets`, and of the datasets that their modules import.
    """
    names = [dataset.name for dataset in datasets]
    imported = [load_dataset(name) for name in dataset_names(*names) if name not in names]
    objects_by_id: dict[int, Any] = {}
    for dataset in (*datasets, *imported):
        for kind in KINDS:
            objects_by_id |= {id(value): value for value in defined(dataset, kind)}
    objects = copy.deepcopy(list(objects_by_id.values()))
    for value in objects:
        if isinstance(value, feast.FeatureView):
            value.batch_source.file_options.uri = view_address(settings, value.name)
    registry_path(settings).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that on-demand views are experimental
        feast.FeatureStore(config=_config(settings, WRITE_DEADLINE)).apply(objects)


def _config(settings: Settings, deadline: float) -> RepoConfig:
    config = RepoConfig(**feast_config(settings, deadline))
    config.repo_path = PROJECT / "feature_repo"
    return config


def as_stored(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """Cast a column to the type that Feast stores: an on-demand function may give another."""
    if kind == "timestamp" and pa.types.is_timestamp(column.type):
        column = pc.floor_temporal(column, unit="second")
    return column.cast(ARROW[kind])


def request_data(store: feast.FeatureStore, service: Any) -> dict[str, FeatureType]:
    """Return names and types of what a service takes from a request beside key and `as_of`.

    Raises:
        DataError: A type is none of TYPES, or something else has the name.

    """
    views = service_views(store, service)
    reserved = {"features", *OURS}
    sources: list[Any] = []
    for view in (*views.on_demand, *views.stored):
        reserved |= _types([*view.features, *view.entity_columns]).keys()
        sources += getattr(view, "source_request_sources", {}).values()
    for projection in service.feature_view_projections:
        reserved |= set(projection.join_key_map.values())
    types: dict[str, Any] = {}
    for source in sources:
        for name, kind in _types(source.schema).items():
            if name == AS_OF:
                continue
            place = f"feature service {service.name}: request data {name}"
            if name in reserved:
                raise DataError(f"{place}: a key, a feature or Gyre has that name: rename it")
            if kind not in TYPES.values() or types.setdefault(name, kind) != kind:
                raise DataError(f"{place}: expected one type of {', '.join(TYPES)}, found {kind}")
    return types


class FeatureStore:
    """What ingest and training ask of Feast.

    A service or a view that is not published raises DataError with the remedy.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = open_store(settings, WRITE_DEADLINE)

    def historical(self, service: str, frame: pd.DataFrame) -> pa.Table:
        """Join features to rows as they were at each row's event_timestamp.

        Args:
            service: Name of a feature service.
            frame: Join keys, event_timestamp (aware UTC), and the request data of on-demand views,
                such as `as_of` (int64 microseconds).

        Returns:
            The rows in an order of Feast's choosing.

        Raises:
            DataError: A view was published whose rows were not computed since.

        """
        feature_service = self._service(service)
        for view in self._stored_views(service):
            dataset = dataset_of(view.name)
            problem = self._unbuilt(dataset, view) if dataset else None
            if problem:
                raise DataError(problem)
        job = self._store.get_historical_features(entity_df=frame, features=feature_service)
        rows = job.to_arrow()
        for name, kind in self.feature_types(service).items():
            if kind in ARROW:
                position = rows.schema.get_field_index(name)
                rows = rows.set_column(position, name, as_stored(rows[name], kind))
        return rows

    def not_built(self, dataset: Dataset) -> list[str]:
        """Say which views of a dataset were published and have no values of their expression."""
        problems = []
        for view in self._store.list_feature_views():
            if view.name not in dataset.views:
                continue
            problem = self._unbuilt(dataset, view)
            if problem is None and self._view_online_until(view.name) is None:
                state = "applied, not built (never brought online)"
                problem = f"{view.name}: {state}; run: gyre ingest {dataset.name}"
            if problem:
                problems.append(problem)
        return problems

    def online_until(self, dataset: Dataset) -> datetime | None:
        """Return up to when all views of a dataset are online, None if one never was.

        Raises:
            FeaturesUnavailableError: Redis, which knows it, does not answer.

        """
        times = [self._view_online_until(name) for name in dataset.views]
        known_times = [time for time in times if time is not None]
        return min(known_times) if len(known_times) == len(times) else None

    def feature_types(self, service: str) -> dict[str, str]:
        """Return names and types of what a service gives, in its order."""
        types: dict[str, str] = {}
        for projection in self._service(service).feature_view_projections:
            types |= _types(projection.features)
        return types

    def feature_views(self, service: str) -> dict[str, str]:
        """Return the name of the view that gives each feature of a service, in its order."""
        names: dict[str, str] = {}
        for projection in self._service(service).feature_view_projections:
            names |= dict.fromkeys(_types(projection.features), projection.name)
        return names

    def views(self, service: str) -> dict[str, list[str]]:
        """Return names and join keys of the stored views that a service reads."""
        return {view.name: view.join_keys for view in self._stored_views(service)}

    def datasets(self, service: str, label: str | None = None) -> list[Dataset]:
        """Return the datasets of a service's views, and first the dataset `label`."""
        datasets = [load_dataset(label)] if label else []
        for view in sorted(self.views(service)):
            dataset = dataset_of(view)
            if dataset:
                datasets.append(dataset)
        return list({dataset.name: dataset for dataset in datasets}.values())

    def request_data(self, service: str) -> dict[str, FeatureType]:
        """Return `request_data` of a service by its name."""
        return request_data(self._store, self._service(service))

    def sample_request_data(self, service: str, rows: int) -> dict[str, list[Any]]:
        """Return columns of request data where no request is at hand: SAMPLES in turn."""
        types = self.request_data(service)
        return {name: list(islice(cycle(SAMPLES[kind]), rows)) for name, kind in types.items()}

    def key_types(self, service: str) -> dict[str, str]:
        """Return names and types of the join keys of every view that a service reads."""
        types: dict[str, str] = {}
        for view in self._stored_views(service):
            types |= _types(view.entity_columns)
        return dict(sorted(types.items()))

    def definitions(self, service: str) -> dict[str, str]:
        """Return what the features of a service mean: see `definition_hash.definitions`."""
        return definitions(self._store, self._service(service))

    def services(self, dataset: Dataset) -> list[str]:
        """Return names of the published services that read a view of a dataset."""
        names = [service.name for service in self._store.list_feature_services()]
        return [name for name in names if self.views(name).keys() & dataset.views]

    def _stored_views(self, service: str) -> list[Any]:
        return service_views(self._store, self._service(service)).stored

    def _unbuilt(self, dataset: Dataset, view: feast.FeatureView) -> str | None:
        return unbuilt(self._settings, dataset, view.name, _types(view.features))

    def _view_online_until(self, view: str) -> datetime | None:
        try:
            with closing(connect_redis(self._settings, WRITE_DEADLINE)) as redis:
                state = read_state(redis, state_key(self._store.project, view))
        except RedisError as exc:
            raise FeaturesUnavailableError(f"Redis: {exc}") from exc
        return None if state is None else state.time

    def _service(self, name: str) -> feast.FeatureService:
        with published(f"feature service {name!r}"):
            return self._store.get_feature_service(name)


def _types(fields: Iterable[feast.Field]) -> dict[str, str]:
    """Return names and types of fields; Feast's own name of a type where we have none."""
    return {field.name: TYPES.get(str(field.dtype), str(field.dtype)) for field in fields}
