"""Writes look-up specifications: how Feast, as published and installed now, reads a service."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from pkgutil import iter_modules
from typing import Any

import feast
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores.redis import RedisOnlineStoreConfig

from core.settings import Settings
from core.spec import FeatureType
from feature_repo import datasets
from feature_repo.on_demand import (
    UnsupportedError,
    digest,
    function_source,
    module_source,
)
from feature_repo.online_state import state_key
from feature_repo.online_writer import hash_fields, tag
from feature_repo.service_views import published, service_views
from feature_repo.store import AS_OF, TYPES, open_store, request_data
from mlflow_server.served_model import (
    LookupSpecification,
    OnDemandFunction,
    StoredFeature,
    StoredView,
)

READ_TIMEOUT_SECONDS = 1.0
"""Only the registry is read here."""
MICROSECOND = timedelta(microseconds=1)
PLAIN_FUNCTION = {
    "mode": "python",
    "singleton": False,
    "write_to_online_store": False,
    "aggregations": [],
}
"""Attributes of an on-demand view that is nothing but a function over columns."""


def look_up_specification(
    settings: Settings,
    service: str,
    modules: Sequence[str] = (),
) -> LookupSpecification:
    """Return how `service` is read, or why only Feast can read it.

    Args:
        settings: Of the installation.
        service: Name of a published feature service.
        modules: Where on-demand functions are defined. Default: the datasets of the project.

    Raises:
        DataError: The service is not published, or a request cannot bring its request data.

    """
    store = open_store(settings, READ_TIMEOUT_SECONDS)
    with published(f"feature service {service!r}"):
        feature_service = store.get_feature_service(service)
    views = service_views(store, feature_service)
    request_types = request_data(store, feature_service)
    specification = LookupSpecification(
        feast=version("feast"),
        online_store=store.config.online_store.type,
        request_data=request_types,
    )
    try:
        _check_online_store(store)
        stored = {view.name: _stored_view(store, view) for view in views.stored}
        columns = {AS_OF, *request_types}.union(*(view.keys for view in stored.values()))
        functions = [_function(view, columns, stored, modules) for view in views.on_demand]
    except UnsupportedError as exc:
        return specification.model_copy(update={"unsupported": str(exc)})
    parts = {"views": tuple(stored.values()), "functions": tuple(functions)}
    return specification.model_copy(update=parts)


def _check_online_store(store: feast.FeatureStore) -> None:
    options = store.config.online_store
    if not isinstance(options, RedisOnlineStoreConfig) or options.redis_type != "redis":
        raise UnsupportedError(f"the online store is {options.type}, not one Redis")


def _stored_view(store: feast.FeatureStore, view: Any) -> StoredView:
    projection = view.projection
    if projection.name_to_use() != view.name or projection.join_key_map:
        raise UnsupportedError(f"view {view.name} is read under another name or key")
    key_types = {key.name: key.dtype.to_value_type().name.lower() for key in view.entity_columns}
    config = store.config
    joins = sorted(key_types)
    fields = sorted(projection.features)
    time, *hash_names = hash_fields(config, view, [field.name for field in fields])
    features = []
    for field, hash_name in zip(fields, hash_names, strict=True):
        feature = StoredFeature(
            name=field.name,
            kind=_kind(field),
            field=hash_name,
            tag=tag(field.dtype.to_value_type()),
        )
        features.append(feature)
    time_to_live = view.ttl or timedelta()
    prefix = serialize_entity_key_prefix(joins, config.entity_key_serialization_version)
    return StoredView(
        name=view.name,
        keys={join: key_types[join] for join in joins},
        prefix=prefix,
        suffix=config.project.encode(),
        time=time,
        state=state_key(store.project, view.name),
        ttl_us=time_to_live // MICROSECOND,
        features=tuple(features),
    )


def _function(
    view: Any,
    columns: set[str],
    stored: Mapping[str, StoredView],
    modules: Sequence[str],
) -> OnDemandFunction:
    """Return how Feast calls an on-demand view: with `columns` of the request and its sources."""
    for attribute, plain in PLAIN_FUNCTION.items():
        value = getattr(view, attribute)
        if value != plain:
            raise UnsupportedError(f"on-demand view {view.name}: {attribute} is {value}")
    inputs = {column: column for column in sorted(columns)}
    for projection in view.source_feature_view_projections.values():
        features = stored[projection.name].features
        inputs |= {feature.name: feature.name for feature in features}
        for field in projection.features:
            inputs[f"{projection.name}__{field.name}"] = field.name
    function = view.feature_transformation
    name = function.udf.__name__
    source = function_source(function.udf_string, name)
    outputs = {field.name: _kind(field) for field in view.projection.features}
    return OnDemandFunction(
        module=_module(name, source, modules),
        function=name,
        sha256=digest(source),
        inputs=inputs,
        outputs=outputs,
    )


def _module(name: str, source: str, modules: Sequence[str]) -> str:
    """Return the module that defines the function as it was published."""
    for module in modules or _dataset_modules():
        with suppress(UnsupportedError):
            if module_source(module, name) == source:
                return module
    raise UnsupportedError(f"{name}: no dataset of the project defines it as published")


def _dataset_modules() -> list[str]:
    return [f"{datasets.__name__}.{module.name}" for module in iter_modules(datasets.__path__)]


def _kind(field: feast.Field) -> FeatureType:
    kind = str(field.dtype)
    if kind not in TYPES:
        raise UnsupportedError(f"{field.name} is {kind}, not one of {', '.join(TYPES)}")
    return TYPES[kind]
