"""Look-up specifications: how a worker reads a published feature service as Feast reads it."""

from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import version
from pkgutil import iter_modules
from typing import Any

import feast
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores.redis import RedisOnlineStoreConfig

from core.settings import Settings
from feature_repo import datasets
from feature_repo.datasets import dataset_of
from feature_repo.on_demand import digest, function_source, module_source
from feature_repo.published.redis_names import hash_fields, state_key
from feature_repo.published.service import (
    ARROW,
    FEATURE_TYPES,
    PublishedService,
    field_types,
)
from mlflow_server.manifest import (
    LookupSpecification,
    OnDemandFunction,
    StoredFeature,
    StoredView,
)

MICROSECOND = timedelta(microseconds=1)


class UnsupportedError(Exception):
    """Only Feast's own reader can read a service."""


def look_up_specification(
    settings: Settings,
    service_name: str,
    modules: Sequence[str] = (),
) -> LookupSpecification:
    """Return how a published feature service is read, or why only Feast can read it.

    Args:
        settings: Settings of the installation.
        service_name: Name of the feature service; empty: there is none.
        modules: Modules that define on-demand functions; by default the modules of datasets.

    Raises:
        DataError: The service is not published, or its request data has a wrong type or name.

    """
    if not service_name:  # a request brings all features
        return LookupSpecification(feast=version("feast"), online_store="")
    service = PublishedService(settings, service_name)
    specification = LookupSpecification(
        feast=version("feast"),
        online_store=service.store.config.online_store.type,
        request_data=service.request_data,
    )
    try:
        _check_store_and_types(service)
        views = [_stored_view(service.store, view) for view in service.stored]
        functions = [_function(view, modules) for view in service.on_demand]
    except UnsupportedError as exc:
        return specification.model_copy(update={"unsupported": str(exc)})
    parts = {"views": tuple(views), "functions": tuple(functions)}
    return specification.model_copy(update=parts)


def _check_store_and_types(service: PublishedService) -> None:
    online_store = service.store.config.online_store
    if (
        not isinstance(online_store, RedisOnlineStoreConfig)
        or online_store.redis_type != "redis"
    ):
        raise UnsupportedError(
            f"the online store is {online_store.type}, not one Redis"
        )
    # Without functions over them, features of other types are not read.
    views = (*service.stored, *service.on_demand) if service.on_demand else ()
    for view in views:
        for name, kind in field_types(view.projection.features).items():
            if kind not in ARROW:
                expected = ", ".join(FEATURE_TYPES)
                raise UnsupportedError(f"{name} is {kind}, not one of {expected}")


def _stored_view(store: feast.FeatureStore, view: Any) -> StoredView:
    if view.projection.name_to_use() != view.name or view.projection.join_key_map:
        raise UnsupportedError(f"view {view.name} is read under another name or key")
    config = store.config
    keys = field_types(sorted(view.entity_columns))
    types = {
        name: kind
        for name, kind in field_types(sorted(view.projection.features)).items()
        if kind in ARROW
    }
    time, *hash_names = hash_fields(config, view, list(types))
    features = []
    for name, field in zip(types, hash_names, strict=True):
        features.append(StoredFeature(name=name, kind=types[name], field=field))
    time_to_live = view.ttl or timedelta()
    return StoredView(
        name=view.name,
        keys=keys,
        prefix=serialize_entity_key_prefix(
            list(keys), config.entity_key_serialization_version
        ),
        suffix=config.project.encode(),
        time=time,
        state=state_key(store.project, view.name) if dataset_of(view.name) else "",
        ttl_us=time_to_live // MICROSECOND,
        features=tuple(features),
    )


def _function(view: Any, modules: Sequence[str]) -> OnDemandFunction:
    """Return the function of an on-demand view in the project's code."""
    function = view.feature_transformation
    name = function.udf.__name__
    source = function_source(function.udf_string, name)
    options = (view.mode, view.singleton, view.write_to_online_store, view.aggregations)
    if source and options == ("python", False, False, []):
        for module in modules or _dataset_modules():
            if module_source(module, name) == source:
                return OnDemandFunction(
                    module=module,
                    function=name,
                    sha256=digest(source),
                    outputs=field_types(view.projection.features),
                )
    raise UnsupportedError(
        f"on-demand view {view.name} is no plain function of a dataset's module"
    )


def _dataset_modules() -> list[str]:
    return [
        f"{datasets.__name__}.{module.name}"
        for module in iter_modules(datasets.__path__)
    ]
