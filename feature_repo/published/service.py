"""A feature service as it is published: its views, features, keys and request data."""

import json
import logging
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import feast
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.errors import FeastObjectNotFoundException

# As Feast's own reads resolve a service.
from feast.utils import _get_feature_views_to_use

from core.errors import DataError
from core.settings import Settings
from core.spec import FRAME_COLUMNS, FeatureType, ModelSpec
from feature_repo.datasets import dataset_of
from feature_repo.definition import POSITION, TIMESTAMP, Dataset
from feature_repo.definition_hash import (
    function_definition,
    source_definition,
    view_definition,
)
from feature_repo.on_demand import digest, input_columns
from feature_repo.published.store import open_store

log = logging.getLogger(__name__)
FEATURE_TYPES: dict[str, FeatureType] = {
    "Int32": "int32",
    "Int64": "int64",
    "Float32": "float32",
    "Float64": "double",
    "Bool": "bool",
    "UnixTimestamp": "timestamp",
    "String": "string",
}
"""Names of Feast's types in a spec."""
ARROW: dict[str, pa.DataType] = {
    kind: TIMESTAMP if kind == "timestamp" else pa.type_for_alias(kind)
    for kind in FEATURE_TYPES.values()
}
RELATIVE_TOLERANCE = 1e-9
"""How far floats may differ that are one value; whole numbers and strings may not."""
AS_OF = "as_of"
"""Request data that Gyre adds to each request."""


class PublishedService:
    """A feature service in Feast's registry, with the views that it reads.

    Attributes:
        settings: Settings of the installation.
        feast_service: Feast's object of the service.
        stored: Views that the service or one of its on-demand views reads. The projection of each
            view holds all features that are read.
        on_demand: On-demand views of the service.
        features: Types of the features of the service, in its order.
        feature_views: Name of the view of each feature.
        join_keys: Join keys of each stored view.
        key_types: Types of all join keys.

    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        store: feast.FeatureStore | None = None,
    ) -> None:
        """Resolve the views of a service.

        Args:
            settings: Settings of the installation.
            name: Name of the service.
            store: Feast's store; by default that of the installation.

        Raises:
            DataError: The service, or one of its views, is not published.

        """
        self.settings = settings
        self.store = store or open_store(settings)
        self.name = name
        try:
            self.feast_service = self.store.get_feature_service(name)
            self.stored, self.on_demand = _get_feature_views_to_use(
                registry=self.store.registry,
                project=self.store.project,
                features=self.feast_service,
                allow_cache=True,
            )
        except FeastObjectNotFoundException as exc:
            folder = settings.feast_repo or "feature_repo"
            raise DataError(f"{exc}; run: cd {folder} && feast apply") from exc
        self.features: dict[str, str] = {}
        self.feature_views: dict[str, str] = {}
        for projection in self.feast_service.feature_view_projections:
            types = field_types(projection.features)
            self.features |= types
            self.feature_views |= dict.fromkeys(types, projection.name)
        self.join_keys: dict[str, list[str]] = {}
        self.key_types: dict[str, str] = {}
        for view in self.stored:
            self.join_keys[view.name] = view.join_keys
            self.key_types |= field_types(view.entity_columns)

    @cached_property
    def request_data(self) -> dict[str, FeatureType]:
        """Types of the values that a request brings beside keys and `as_of`.

        Raises:
            DataError: A type is none of FEATURE_TYPES, or a key, a feature or Gyre has the name.

        """
        reserved = {"features", *FRAME_COLUMNS, *self.key_types}
        for view in (*self.on_demand, *self.stored):
            reserved |= field_types(view.features).keys()
        sources: list[Any] = []
        for view in self.on_demand:
            sources += view.source_request_sources.values()
        types: dict[str, Any] = {}
        for source in sources:
            for name, kind in field_types(source.schema).items():
                if name == AS_OF:
                    continue
                place = f"feature service {self.name}: request data {name}"
                if name in reserved:
                    reason = "a key, a feature or Gyre has that name: rename it"
                    raise DataError(f"{place}: {reason}")
                known_kind = types.setdefault(name, kind)
                if kind not in ARROW or kind != known_kind:
                    expected = f"expected one type of {', '.join(FEATURE_TYPES)}"
                    raise DataError(f"{place}: {expected}, found {kind}")
        return types

    def datasets(self) -> dict[str, Dataset]:
        """Return the datasets of the stored views, by name."""
        datasets = [dataset_of(view) for view in self.join_keys]
        return {dataset.name: dataset for dataset in datasets if dataset}

    def historical(self, frame: pd.DataFrame) -> pa.Table:
        """Join features to rows as they were at each row's event_timestamp.

        A view that was published, but not computed since, gives the values of its old expression:
        see `feature_engine.offline.views.require_built`.

        Args:
            frame: Join keys, event_timestamp (aware UTC), and the request data of on-demand views,
                such as `as_of` (int64 microseconds).

        Returns:
            The rows with their features, in any order. A column of the frame with a feature's name
            is left out, unless it is request data.

        """
        frame = self._without_features(frame)
        job = self.store.get_historical_features(
            entity_df=frame.assign(**{POSITION: range(len(frame))}),
            features=self.feast_service,
        )
        rows = job.to_arrow()
        if rows.num_rows > len(frame):
            # Feast's SQL stores repeat a row where two rows of a view have the same times.
            positions = rows[POSITION].to_pandas()
            rows = rows.filter(pa.array(~positions.duplicated()))
        rows = rows.drop_columns(POSITION)
        for name, kind in self.features.items():
            if kind in ARROW:
                position = rows.schema.get_field_index(name)
                rows = rows.set_column(position, name, as_stored(rows[name], kind))
        return rows

    def _without_features(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Leave out columns that would take the place of a feature, and say so.

        Raises:
            DataError: A feature has the name of a column that every frame has, such as `label`.

        """
        names = self.features.keys() | input_columns(self.on_demand)
        names -= self.request_data.keys() | self.key_types.keys()
        reserved = names & FRAME_COLUMNS & {*frame.columns}
        if reserved:
            raise DataError(
                f"feature service {self.name}: {', '.join(sorted(reserved))} is a feature there, and "
                "a column of every frame: give the feature another name"
            )
        taken = [name for name in frame.columns if name in names]
        if taken:
            log.warning(
                "%s: columns of the rows with the name of a feature are left out, as the feature "
                "counts: %s",
                self.name,
                ", ".join(taken),
            )
        return frame.drop(columns=taken)

    def definitions(self) -> dict[str, str]:
        """Return a hash of the definition of each view, and of the schema, by name.

        Features of a view that the service does not read do not count. The program that fills the
        source of a view of plain Feast is not covered.
        """
        hashes: dict[str, str] = {}
        schema: dict[str, Any] = {}
        for view in self.stored:
            features = field_types(view.projection.features)
            schema[view.name] = [
                features,
                field_types(view.entity_columns),
                str(view.ttl),
            ]
            dataset = dataset_of(view.name)
            if dataset is not None:
                unread = field_types(view.features).keys() - features.keys()
                hashes[view.name] = view_definition(
                    dataset, view.name, frozenset(unread)
                )
            else:
                hashes[view.name] = source_definition(view)
        for view in self.on_demand:
            schema[view.name] = [field_types(view.projection.features), view.mode]
            hashes[view.name] = function_definition(view.feature_transformation)
        text = json.dumps(schema, sort_keys=True)
        hashes[f"service.{self.name}"] = digest(text)
        return hashes


class RequestFeatures(PublishedService):
    """The features of a model without a service: requests and the label's rows have all of them."""

    def __init__(self, settings: Settings, spec: ModelSpec) -> None:
        self.settings = settings
        self.name = ""
        self.stored = []
        self.on_demand = []
        self.features = dict(spec.features)
        self.feature_views = {}
        self.join_keys = {}
        self.key_types = dict(spec.entity_key)

    def historical(self, frame: pd.DataFrame) -> pa.Table:
        """Return the rows, which have the features already.

        Raises:
            DataError: A feature is missing.

        """
        for name in self.features:
            if name not in frame.columns:
                raise DataError(
                    f"expected a column for each feature among the label's rows, no {name}: "
                    "the spec names no feature_service"
                )
        return pa.Table.from_pandas(frame, preserve_index=False)

    def definitions(self) -> dict[str, str]:
        """Return none: nothing is computed."""
        return {}


def service_of(settings: Settings, spec: ModelSpec) -> PublishedService:
    """Return the feature service of a model.

    Raises:
        DataError: The service is not published.

    """
    if spec.feature_service:
        return PublishedService(settings, spec.feature_service)
    return RequestFeatures(settings, spec)


def service_names(
    settings: Settings, dataset: Dataset, store: feast.FeatureStore
) -> list[str]:
    """Return the names of the published services that read a view of a dataset."""
    names = [service.name for service in store.list_feature_services()]
    services = [PublishedService(settings, name, store) for name in names]
    return [
        service.name for service in services if service.join_keys.keys() & dataset.views
    ]


def as_stored(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """Cast a column to the type that Feast stores: an on-demand function may return another type."""
    if kind == "timestamp" and pa.types.is_timestamp(column.type):
        column = pc.floor_temporal(column, unit="second")
    return column.cast(ARROW[kind])


def is_same_value(offline: Any, online: Any) -> bool:
    """Whether two values of a feature are one: nulls are equal, and floats within 1e-9."""
    if isinstance(offline, float) and isinstance(online, float):
        if math.isnan(offline) and math.isnan(online):
            return True
        return math.isclose(offline, online, rel_tol=RELATIVE_TOLERANCE)
    return bool(offline == online)


def field_types(fields: Iterable[feast.Field]) -> dict[str, Any]:
    """Return the types of fields by name; a type that no spec has keeps Feast's name."""
    return {
        field.name: FEATURE_TYPES.get(str(field.dtype), str(field.dtype))
        for field in fields
    }
