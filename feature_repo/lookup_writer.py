"""Writes look-up specifications: how Feast, as published and installed now, reads a service."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pkgutil import iter_modules
from typing import Any

from feast import OnDemandFeatureView
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.infra.key_encoding_utils import serialize_entity_key_prefix

from core.settings import Settings
from core.spec import FeatureType
from feature_repo import datasets
from feature_repo.extensions.online import NewestOnlineStoreConfig, hash_fields, tag
from feature_repo.on_demand import UnsupportedError, digest, module_source, plain_source
from feature_repo.store import AS_OF, TYPES, mark, open_store, published, request_data
from mlflow_server.served_model import (
    LookupSpecification,
    OnDemandFunction,
    StoredFeature,
    StoredView,
)

DEADLINE = 1.0
"""Seconds; only the registry is read here."""
PLAIN = {"mode": "python", "singleton": False, "write_to_online_store": False, "aggregations": []}
"""Attributes of an on-demand view that is nothing but a function over columns."""


def look_up_specification(
    settings: Settings, service: str, modules: Sequence[str] | None = None
) -> LookupSpecification:
    """Return how `service` is read, or why only Feast can read it.

    modules: where on-demand functions are defined; by default, the project's datasets.

    Raises:
        DataError: the service is not published, or a request cannot bring its request data.

    """
    store = open_store(settings, DEADLINE)
    with published(f"feature service {service!r}"):
        found = store.get_feature_service(service)
    if modules is None:
        modules = [each.name for each in iter_modules(datasets.__path__, f"{datasets.__name__}.")]
    writer: dict[str, Any] = {"request_data": request_data(store, found)}
    writer |= {"feast": version("feast"), "online_store": store.config.online_store.type}
    try:
        return LookupSpecification(**writer, **_resolved(store, found, modules))
    except UnsupportedError as exc:
        return LookupSpecification(**writer, unsupported=str(exc))


def _resolved(store: Any, service: Any, modules: Sequence[str]) -> dict[str, Any]:
    """Views and functions of a service, as Feast resolves them before each of its own reads."""
    options = store.config.online_store
    redis_type = getattr(options, "redis_type", "no Redis")
    if not isinstance(options, NewestOnlineStoreConfig) or redis_type != "redis":
        raise UnsupportedError(f"the online store is {options.type} ({redis_type})")
    on_demand, stored = _views(store, service)
    if any(DUMMY_ENTITY_NAME in view.entities for view, _ in stored):
        raise UnsupportedError("a view has no entity")
    key_types = {
        view.projection.join_key_map.get(key.name, key.name): key.dtype.to_value_type()
        for view, _ in stored
        for key in view.entity_columns
    }
    columns = Counter([AS_OF, *key_types, *(name for _, names in stored for name in names)])
    if twice := [name for name, count in columns.items() if count > 1]:
        raise UnsupportedError(f"two columns are named {min(twice)}")
    every = (*on_demand, *(view for view, _ in stored))
    renamed = [view.name for view in every if view.projection.name_to_use() != view.name]
    if on_demand and renamed:
        raise UnsupportedError(f"{on_demand[0].name} is on demand, {renamed[0]} is renamed")
    names_of = {view.name: names for view, names in stored}
    asked = {AS_OF, *key_types, *(name for v in on_demand for name in v.get_request_data_schema())}
    return {
        "functions": tuple(_function(view, asked, names_of, modules) for view in on_demand),
        "views": tuple(_view(store, view, names, key_types) for view, names in stored),
    }


def _views(store: Any, service: Any) -> tuple[list[Any], list[tuple[Any, list[str]]]]:
    """On-demand views of `service`, and stored views, each with the features that are read."""
    on_demand, stored, features = [], dict[str, Any](), defaultdict[str, set[str]](set)
    projections = deque(service.feature_view_projections)
    while projections:
        projection = projections.popleft()
        view = store.registry.get_any_feature_view(projection.name, store.project, allow_cache=True)
        view = view.with_projection(projection)
        if isinstance(view, OnDemandFeatureView):
            on_demand.append(view)
            projections.extend(view.source_feature_view_projections.values())
        else:
            name = projection.name_to_use()
            stored.setdefault(name, view)
            features[name] |= {field.name for field in projection.features}
    return on_demand, [(view, sorted(features[name])) for name, view in stored.items()]


def _view(store: Any, view: Any, names: Sequence[str], key_types: Mapping[str, Any]) -> StoredView:
    config = store.config
    fields_of = {field.name: field for field in view.features}
    features = {name: _kind(fields_of[name]) for name in names}
    time, *fields = hash_fields(config, view, names)
    joins = sorted(view.join_keys)
    columns = [view.projection.join_key_map.get(join, join) for join in joins]
    keys = {column: key_types[column].name.lower() for column in columns}
    if not {*keys.values()} <= {"int64", "string"}:
        raise UnsupportedError(f"keys {keys} are not all int64 or string")
    stored = (
        StoredFeature(name=n, kind=kind, field=field, tag=tag(fields_of[n].dtype.to_value_type()))
        for (n, kind), field in zip(features.items(), fields, strict=True)
    )
    return StoredView(
        keys=keys,
        prefix=serialize_entity_key_prefix(joins, config.entity_key_serialization_version),
        suffix=config.project.encode(),
        time=time,
        mark=mark(store, view.name),
        ttl_us=round(view.ttl.total_seconds() * 1e6) if view.ttl else 0,
        features=tuple(stored),
    )


def _function(
    view: Any, asked: Iterable[str], names_of: Mapping[str, Sequence[str]], modules: Sequence[str]
) -> OnDemandFunction:
    """An on-demand view as Feast calls it after it read the rest. asked: columns of the request."""
    for what, plain in PLAIN.items():
        if (found := getattr(view, what)) != plain:
            raise UnsupportedError(f"on-demand view {view.name}: {what} is {found}")
    name = view.feature_transformation.udf.__name__
    source = plain_source(view.feature_transformation.udf_string, name)
    sources = view.source_feature_view_projections.values()
    seen = [column for each in sources for column in names_of[each.name]]
    full = {f"{each.name}__{f.name}": f.name for each in sources for f in each.features}
    return OnDemandFunction(
        module=_module(name, source, modules),
        function=name,
        sha256=digest(source),
        inputs={column: column for column in (*sorted(asked), *seen)} | full,
        outputs={field.name: _kind(field) for field in view.projection.features},
    )


def _module(name: str, source: str, modules: Sequence[str]) -> str:
    for module in modules:
        with suppress(UnsupportedError):
            if module_source(module, name) == source:
                return module
    raise UnsupportedError(f"{name}: no dataset of the project defines it as published")


def _kind(field: Any) -> FeatureType:
    if str(field.dtype) not in TYPES:
        raise UnsupportedError(f"{field.name} is {field.dtype}, not one of {', '.join(TYPES)}")
    return TYPES[str(field.dtype)]
