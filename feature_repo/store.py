"""Feast's offline side: join features to moments, and fill the online store."""

import copy
import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import UTC, datetime
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path, PurePath
from typing import Any

import feast
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.errors import FeastObjectNotFoundException
from feast.repo_config import RepoConfig
from google.protobuf.json_format import MessageToDict

from core.errors import DataError
from core.settings import PROJECT, Settings
from core.spec import OURS, FeatureType
from core.timestamps import BEGINNING
from core.user_code import dataset_names
from feature_repo.datasets import dataset_of, load_dataset
from feature_repo.definition import Dataset
from feature_repo.extensions.online import NewestOnlineStore
from feature_repo.feast_config import feast_config
from feature_repo.features import TIME, unbuilt, view_address

TYPES: dict[str, FeatureType] = {
    "Int32": "int32",
    "Int64": "int64",
    "Float32": "float32",
    "Float64": "double",
    "Bool": "bool",
    "UnixTimestamp": "timestamp",
    "String": "string",
}
ARROW: dict[str, pa.DataType] = {
    kind: TIME if kind == "timestamp" else pa.type_for_alias(kind) for kind in TYPES.values()
}

AS_OF = "as_of"  # request data that Gyre brings by itself
SAMPLES: dict[FeatureType, Any] = {
    **dict.fromkeys(("int32", "int64"), (1, 2, 9)),
    **dict.fromkeys(("float32", "double"), (0.5, 2.0, 9.0)),
    "bool": (True, False, False),
    "timestamp": (BEGINNING, datetime(2000, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)),
    "string": ("a", "b", ""),
}
KINDS = ("Entity", "FeatureView", "OnDemandFeatureView", "FeatureService")
WRITE_DEADLINE = 10.0
"""Seconds a batch of online writes may take; reads have a deadline of their own."""
NOT_WRITTEN = frozenset({"meta", "body", "dataSourceClassType"})
"""Parts of a Feast object that change with the clock, the process or how often it was applied."""


def open_store(settings: Settings, deadline: float) -> feast.FeatureStore:
    """Feast as `feature_store.yaml` says, with this installation's paths and addresses.

    Raises:
        DataError: nothing was ever published here.

    """
    config = _config(settings, deadline)
    if config.registry.registry_type == "file" and not Path(config.registry.path).exists():
        raise DataError("the definitions are not published: cd feature_repo && feast apply")
    return feast.FeatureStore(config=config)


def defined(dataset: Dataset, kind: str) -> list[Any]:
    """Feast's objects of a kind (KINDS) in `dataset`'s module."""
    module = import_module(f"feature_repo.datasets.{dataset.name}")
    return [each for each in vars(module).values() if isinstance(each, getattr(feast, kind))]


def publish_beside(settings: Settings, *datasets: Dataset) -> None:
    """Publish definitions in a home made for a rebuild, as `feast apply` does.

    Those of `datasets`, and of the datasets that their modules import.
    """
    own = [each.name for each in datasets]
    every = [*datasets, *(load_dataset(name) for name in dataset_names(*own) if name not in own)]
    found = {id(o): o for each in every for kind in KINDS for o in defined(each, kind)}
    objects = copy.deepcopy([*found.values()])
    for each in objects:
        if isinstance(each, feast.FeatureView):
            each.batch_source.file_options.uri = view_address(settings, each.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that on-demand views are experimental
        feast.FeatureStore(config=_config(settings, WRITE_DEADLINE)).apply(objects)


def _config(settings: Settings, deadline: float) -> RepoConfig:
    # Says on every start that the flag against failing reads matters less with a file registry.
    logging.getLogger("feast.repo_config").setLevel(logging.ERROR)
    config = RepoConfig(**feast_config(settings, deadline))
    config.repo_path = PROJECT / "feature_repo"
    return config


def as_stored(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """Cast to the type that Feast stores: an on-demand function may give another."""
    if kind == "timestamp" and pa.types.is_timestamp(column.type):
        column = pc.floor_temporal(column, unit="second")
    return column.cast(ARROW[kind])


@contextmanager
def published(what: str) -> Iterator[None]:
    """Raise DataError with the remedy where Feast's registry does not know `what`."""
    try:
        yield
    except FeastObjectNotFoundException as exc:
        raise DataError(f"{what} is not published: cd feature_repo && feast apply") from exc


def online_store(store: feast.FeatureStore) -> Any:
    """Feast's online store object."""
    return store.provider.online_store


def online_client(store: feast.FeatureStore) -> Any:
    """The Redis client of a NewestOnlineStore; None of another store."""
    online = online_store(store)
    return online.client(store.config) if isinstance(online, NewestOnlineStore) else None


def mark(store: feast.FeatureStore, view: str) -> str:
    """Key that stands in Redis since `view` was materialised there in full."""
    return f"gyre:complete:{store.project}:{view}"


def request_data(store: Any, service: Any) -> dict[str, FeatureType]:
    """Names and types of what `service` takes from a request beside the key; without `as_of`.

    DataError: a type is none of TYPES, or something else has the name.
    """
    taken, sources = {"features", *OURS}, list[Any]()
    for view in _views(store, service):
        taken |= {each.name for each in (*view.features, *view.entity_columns)}
        sources += getattr(view, "source_request_sources", {}).values()
    for projection in service.feature_view_projections:
        taken |= {*projection.join_key_map.values()}
    types: dict[str, Any] = {}
    for field in (field for source in sources for field in source.schema if field.name != AS_OF):
        kind, where = _type(field), f"feature service {service.name}: request data {field.name}"
        if field.name in taken:
            raise DataError(f"{where}: a key, a feature or Gyre has that name: rename it")
        if kind not in TYPES.values() or types.setdefault(field.name, kind) != kind:
            raise DataError(f"{where}: expected one type of {', '.join(TYPES)}, found {kind}")
    return types


def _views(store: feast.FeatureStore, service: feast.FeatureService) -> list[Any]:
    """Views that `service` reads, on-demand ones and those that these read included."""
    names = {each.name for each in service.feature_view_projections}
    on_demand = [view for view in store.list_on_demand_feature_views() if view.name in names]
    for view in on_demand:
        names |= {each.name for each in view.source_feature_view_projections.values()}
    return [*on_demand, *(view for view in store.list_feature_views() if view.name in names)]


class FeatureStore:
    """What ingest and training ask of Feast."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._store = settings, open_store(settings, WRITE_DEADLINE)

    def historical(self, service: str, frame: pd.DataFrame) -> pa.Table:
        """Join the features of `service` to each row as they were at its event_timestamp (UTC).

        frame: with the request data of on-demand views (`as_of`: int64 microseconds). Rows come
        back in an order of Feast's choosing.

        Raises:
            DataError: a view was published whose rows were not computed since.

        """
        found = self._service(service)
        for view in self._stored_views(service):
            dataset = dataset_of(view.name)
            if dataset and (problem := self._unbuilt(dataset, view)):
                raise DataError(problem)
        joined = self._store.get_historical_features(entity_df=frame, features=found).to_arrow()
        for name, kind in self.feature_types(service).items():
            if kind in ARROW:
                place = joined.schema.get_field_index(name)
                joined = joined.set_column(place, name, as_stored(joined[name], kind))
        return joined

    def materialise(self, dataset: Dataset, as_of: datetime, *, rewrite: bool = False) -> None:
        """Bring what is dated after the last time up to `as_of` online, nothing later.

        rewrite: everything, older than what is online or not; what is no more is removed.

        Raises:
            DataError: Redis was restarted again and again meanwhile.

        """
        online = online_client(self._store)
        for name in dataset.views:
            # The registry remembers what was materialised, not whether Redis still holds it.
            kept = online is None or bool(online.exists(mark(self._store, name)))
            known = self._view(name).most_recent_end_time
            last = known if kept else None
            # Removed and published again: Feast forgot the view, its values are still there.
            whole = rewrite or (kept and known is None)
            start = BEGINNING if whole else last or BEGINNING
            end = max(as_of, known or as_of)  # Feast believes that all up to `known` is there
            if start < end:
                self._fill(name, start, end, rewrite=whole and online is not None)
                if online is not None:
                    online.set(mark(self._store, name), as_of.isoformat())

    def _fill(self, name: str, start: datetime, end: datetime, *, rewrite: bool) -> None:
        store, redis = online_store(self._store), online_client(self._store)
        for begin in (start, BEGINNING, BEGINNING):
            view, before = self._view(name), redis and redis.info("server")["run_id"]
            whole = store.rewriting(self._store.config, view) if rewrite else nullcontext()
            with redirect_stdout(sys.stderr), whole:  # Feast prints; stdout is the report's
                self._store.materialize(begin, end, feature_views=[name])
            if redis is None or redis.info("server")["run_id"] == before:
                return
            # A Redis that was restarted meanwhile may have lost what was written before.
        raise DataError(f"{name}: Redis was restarted three times while its values were written")

    def not_built(self, dataset: Dataset) -> list[str]:
        """Say which views of `dataset` were published and have no values of their expression."""
        views = [each for each in self._store.list_feature_views() if each.name in dataset.views]
        problems = []
        for view in views:
            problem = self._unbuilt(dataset, view)
            if problem is None and view.most_recent_end_time is None:
                what = "applied, not built (never brought online)"
                problem = f"{view.name}: {what}; run: gyre ingest {dataset.name}"
            problems.append(problem)
        return [problem for problem in problems if problem]

    def watermark(self, dataset: Dataset) -> datetime | None:
        """Return up to when all views of `dataset` are online, None if one never was."""
        ends = [self._view(name).most_recent_end_time for name in dataset.views]
        return None if None in ends else min(ends)

    def feature_types(self, service: str) -> dict[str, str]:
        """Names and types of what `service` gives, in its order; Feast's own where we have none."""
        views = self._service(service).feature_view_projections
        return {each.name: _type(each) for view in views for each in view.features}

    def views(self, service: str) -> dict[str, list[str]]:
        """Names and join keys of the stored views that `service` reads, also by on-demand views."""
        return {view.name: view.join_keys for view in self._stored_views(service)}

    def datasets(self, service: str, label: str | None = None) -> list[Dataset]:
        """Datasets of these views, and first the dataset `label`: all that a model reads."""
        found = [load_dataset(label)] if label else []
        found += filter(None, map(dataset_of, sorted(self.views(service))))
        return [*{dataset.name: dataset for dataset in found}.values()]

    def request_data(self, service: str) -> dict[str, FeatureType]:
        """`request_data` of a service by its name."""
        return request_data(self._store, self._service(service))

    def sample_request_data(self, service: str, rows: int) -> dict[str, list[Any]]:
        """Columns of its request data where no request is at hand: SAMPLES in turn."""
        types = self.request_data(service)
        return {name: [*islice(cycle(SAMPLES[kind]), rows)] for name, kind in types.items()}

    def feature_views(self, service: str) -> dict[str, str]:
        """Name of the view that gives each feature of `service`, in its order."""
        views = self._service(service).feature_view_projections
        return {each.name: view.name for view in views for each in view.features}

    def key_types(self, service: str) -> dict[str, str]:
        """Names and types of the join keys of every view that `service` reads."""
        views = self._stored_views(service)
        keys = {key.name: _type(key) for view in views for key in view.entity_columns}
        return dict(sorted(keys.items()))

    def definition_hash(self, service: str) -> str:
        """SHA-256 of the service's definition: its views, fields, sources and functions."""
        return _sha256(self._definition(service))

    def definitions(self, dataset: Dataset) -> str:
        """SHA-256 of the definitions of every service that reads a view of `dataset`."""
        return _sha256({name: self._definition(name) for name in self.services(dataset)})

    def services(self, dataset: Dataset) -> list[str]:
        """Names of the published services that read a view of `dataset`."""
        names = [service.name for service in self._store.list_feature_services()]
        return [name for name in names if self.views(name).keys() & dataset.views]

    def _definition(self, service: str) -> dict[str, Any]:
        """Return what people wrote of `service` and all it reads, by name."""
        parts = {view.name: view for view in _views(self._store, self._service(service))}
        parts[f"service {service}"] = self._service(service)
        return {name: _written(MessageToDict(each.to_proto().spec)) for name, each in parts.items()}

    def _stored_views(self, service: str) -> list[feast.FeatureView]:
        views = _views(self._store, self._service(service))
        return [view for view in views if isinstance(view, feast.FeatureView)]

    def _unbuilt(self, dataset: Dataset, view: feast.FeatureView) -> str | None:
        fields = [field.name for field in view.features]
        return unbuilt(self._settings, dataset, view.name, fields)

    def _view(self, name: str) -> feast.FeatureView:
        with published(f"view {name!r}"):
            return self._store.get_feature_view(name)

    def _service(self, name: str) -> feast.FeatureService:
        with published(f"feature service {name!r}"):
            return self._store.get_feature_service(name)


def _type(field: feast.Field) -> str:
    return TYPES.get(str(field.dtype), str(field.dtype))


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _written(v) for key, v in value.items() if key not in NOT_WRITTEN}
        if "uri" in kept:  # the folder is the installation's
            kept["uri"] = PurePath(kept["uri"]).name
        return kept
    return [_written(v) for v in value] if isinstance(value, list) else value


def _sha256(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
