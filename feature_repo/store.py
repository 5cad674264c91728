"""Feast's offline side: join features to moments, and fill the online store.

Definitions are published with Feast's own `feast apply` in this folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import sys
import warnings
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import feast
import yaml
from feast.errors import FeastObjectNotFoundException
from feast.repo_config import RepoConfig

from feature_repo.contract import contract
from feature_repo.datasets import dataset_of
from feature_repo.features import unbuilt, view_path
from stack.errors import DataError
from stack.moment import BEGINNING

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    import pandas as pd
    import pyarrow as pa

    from feature_repo.definition import Dataset
    from stack.settings import Settings
    from stack.spec import FeatureType

REPOSITORY = Path(__file__).parent
TYPES: dict[str, FeatureType] = {"Int64": "int64", "Float64": "double", "String": "string"}

KINDS = ("Entity", "FeatureView", "OnDemandFeatureView", "FeatureService")
WRITE_DEADLINE = 10.0
"""Seconds a batch of online writes may take; reads have a deadline of their own."""


def open_store(settings: Settings, deadline: float) -> feast.FeatureStore:
    """Feast as `feature_store.yaml` says, with this installation's paths and addresses.

    Raises:
        DataError: nothing was ever published here.

    """
    config = _config(settings, deadline)
    if not Path(config.registry.path).exists():
        raise DataError("the definitions are not published: cd feature_repo && feast apply")
    return feast.FeatureStore(config=config)


def defined(dataset: Dataset, kind: str) -> list[Any]:
    """Feast's objects of a kind (KINDS) in `dataset`'s module."""
    module = import_module(f"feature_repo.datasets.{dataset.name}")
    return [each for each in vars(module).values() if isinstance(each, getattr(feast, kind))]


def publish_beside(settings: Settings, dataset: Dataset) -> None:
    """Publish `dataset`'s definitions, as the code has them, in a home made for a rebuild.

    As `feast apply` does, but in this process and over the home's own files: seconds less.
    """
    objects = copy.deepcopy([each for kind in KINDS for each in defined(dataset, kind)])
    for each in objects:
        if isinstance(each, feast.FeatureView):
            each.batch_source.file_options.uri = str(view_path(settings, each.name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that on-demand views are experimental
        feast.FeatureStore(config=_config(settings, WRITE_DEADLINE)).apply(objects)


def _config(settings: Settings, deadline: float) -> RepoConfig:
    raw: dict[str, Any] = yaml.safe_load((REPOSITORY / "feature_store.yaml").read_text())
    raw["registry"]["path"] = str(settings.home / "feast" / "registry.db")
    raw["offline_store"] = settings.feast_offline_store
    if "connection_string" in raw["online_store"]:
        raw["online_store"]["connection_string"] = settings.feast_connection(deadline)
    # Says on every start that the flag against failing reads matters less with a file registry.
    logging.getLogger("feast.repo_config").setLevel(logging.ERROR)
    config = RepoConfig(**raw)
    config.repo_path = REPOSITORY
    return config


def online_client(store: feast.FeatureStore) -> Any:
    """The Redis client that Feast's online store uses; there is no public way to it."""
    online = store._get_provider().online_store  # noqa: SLF001
    return online._get_client(store.config.online_store)  # noqa: SLF001


def mark(store: feast.FeatureStore, view: str) -> str:
    """Key that stands in Redis since `view` was materialised there in full."""
    return f"gyre:complete:{store.project}:{view}"


def not_built(settings: Settings, store: feast.FeatureStore, views: Collection[str]) -> list[str]:
    """Say of which of `views` values are missing or of another expression: applied, not built."""
    found = []
    for view in store.list_feature_views():
        dataset = dataset_of(view.name) if view.name in views else None
        if dataset is None:
            continue
        problem = unbuilt(settings, dataset, view.name, [field.name for field in view.features])
        if problem is None and view.most_recent_end_time is None:
            problem = (
                f"{view.name}: applied, not built (never brought online); "
                f"run: gyre ingest {dataset.name}"
            )
        found += [problem] if problem else []
    return found


class FeatureStore:
    """What ingest and training ask of Feast."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._store = settings, open_store(settings, WRITE_DEADLINE)

    def historical(self, service: str, frame: pd.DataFrame) -> pa.Table:
        """Join the features of `service` to each row as they were at its event_timestamp.

        frame: join keys, event_timestamp (UTC), and the request columns of on-demand views
        (`as_of`: int64 microseconds). Rows come back in an order of Feast's choosing.

        Raises:
            DataError: a view was published whose rows were not computed since.

        """
        self._service(service)
        for name in contract(self._store.registry.proto(), service):
            dataset = dataset_of(name)
            fields = [field.name for field in self._view(name).features] if dataset else []
            problem = dataset and unbuilt(self._settings, dataset, name, fields)
            if problem:
                raise DataError(problem)
        job = self._store.get_historical_features(entity_df=frame, features=self._service(service))
        return job.to_arrow()

    def materialise(self, dataset: Dataset, as_of: datetime, *, rewrite: bool = False) -> None:
        """Bring what is dated after the last time up to `as_of` online, nothing later.

        rewrite: everything, older than what is online or not; what is no more is removed.

        Raises:
            DataError: Redis was restarted again and again meanwhile.

        """
        online = online_client(self._store)
        for name in dataset.views:
            # The registry remembers what was materialised, not whether Redis still holds it.
            kept = online.exists(mark(self._store, name))
            known = self._view(name).most_recent_end_time
            last = known if kept else None
            # Removed and published again: Feast forgot the view, its values are still there.
            whole = rewrite or (kept and known is None)
            start = BEGINNING if whole else last or BEGINNING
            end = max(as_of, known or as_of)  # Feast believes that all up to `known` is there
            if start < end:
                self._fill(name, start, end, rewrite=whole)
                online.set(mark(self._store, name), as_of.isoformat())

    def _fill(self, name: str, start: datetime, end: datetime, *, rewrite: bool) -> None:
        store, view = self._store._get_provider().online_store, self._view(name)  # noqa: SLF001
        for begin in (start, BEGINNING, BEGINNING):
            before = self._redis_run()
            whole = store.rewriting(self._store.config, view) if rewrite else nullcontext()
            with redirect_stdout(sys.stderr), whole:  # Feast prints; stdout is the report's
                self._store.materialize(begin, end, feature_views=[name])
            if self._redis_run() == before:
                return
            # A Redis that was restarted meanwhile may have lost what was written before.
        raise DataError(f"{name}: Redis was restarted three times while its values were written")

    def _redis_run(self) -> str:
        return str(online_client(self._store).info("server")["run_id"])

    def not_built(self, dataset: Dataset) -> list[str]:
        """Say which views of `dataset` were published and have no values of their expression."""
        return not_built(self._settings, self._store, dataset.views)

    def watermark(self, dataset: Dataset) -> datetime | None:
        """Return up to when all views of `dataset` are online, None if one never was."""
        ends = [self._view(name).most_recent_end_time for name in dataset.views]
        return None if None in ends else min(ends)

    def feature_types(self, service: str) -> dict[str, str]:
        """Names and types of what `service` gives, in its order; Feast's own where we have none."""
        return {
            field.name: TYPES.get(str(field.dtype), str(field.dtype))
            for projection in self._service(service).feature_view_projections
            for field in projection.features
        }

    def feature_views(self, service: str) -> dict[str, str]:
        """Name of the view that gives each feature of `service`, in its order."""
        return {
            field.name: projection.name
            for projection in self._service(service).feature_view_projections
            for field in projection.features
        }

    def key_types(self, service: str) -> dict[str, str]:
        """Names and types of the join keys of every view that `service` reads."""
        names = contract(self._store.registry.proto(), service)
        views = [view for view in self._store.list_feature_views() if view.name in names]
        keys = [key for view in views for key in view.entity_columns]
        return {key.name: TYPES.get(str(key.dtype), str(key.dtype)) for key in keys}

    def definition_hash(self, service: str) -> str:
        """SHA-256 of the service's definition: its views, fields, sources and functions."""
        self._service(service)
        found = contract(self._store.registry.proto(), service)
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def _view(self, name: str) -> feast.FeatureView:
        try:
            return self._store.get_feature_view(name)
        except FeastObjectNotFoundException as exc:
            raise DataError(
                f"view {name!r} is not published: cd feature_repo && feast apply"
            ) from exc

    def _service(self, name: str) -> feast.FeatureService:
        try:
            return self._store.get_feature_service(name)
        except FeastObjectNotFoundException as exc:
            raise DataError(
                f"feature service {name!r} is not published: cd feature_repo && feast apply"
            ) from exc
