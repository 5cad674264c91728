"""Writes look-up specifications, by the functions that Feast resolves each of its reads with."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from importlib.metadata import version
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from feast import utils
from feast.errors import FeastObjectNotFoundException
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores import redis as stock
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo import datasets
from feature_repo.extensions.online import NewestOnlineStoreConfig
from feature_repo.on_demand import UnsupportedError, digest, module_source, plain_source
from feature_repo.store import TYPES, mark, open_store
from mlflow_server.lookup import LookupSpecification, OnDemandFunction, StoredFeature, StoredView
from stack.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stack.settings import Settings
    from stack.spec import FeatureType

DEADLINE = 1.0
"""Seconds; only the registry is read here."""
AS_OF = "as_of"
SAMPLES: dict[FeatureType, Any] = {
    "int64": Value(int64_val=1),
    "double": Value(double_val=1.0),
    "string": Value(string_val="a"),
}
PLAIN = {"mode": "python", "singleton": False, "write_to_online_store": False, "aggregations": []}
"""Attributes of an on-demand view that is nothing but a function over columns."""


def look_up_specification(
    settings: Settings, service: str, modules: Sequence[str] | None = None
) -> LookupSpecification:
    """Return how Feast, as it is published and installed now, reads `service`.

    modules: where on-demand functions are defined; by default, the project's datasets.

    Raises:
        DataError: the service is not published.

    """
    store = open_store(settings, DEADLINE)
    try:
        published = store.get_feature_service(service)
    except FeastObjectNotFoundException as exc:
        raise DataError(
            f"feature service {service!r} is not published: cd feature_repo && feast apply"
        ) from exc
    if modules is None:
        modules = [each.name for each in iter_modules(datasets.__path__, f"{datasets.__name__}.")]
    writer = {"feast": version("feast"), "online_store": store.config.online_store.type}
    try:
        return LookupSpecification(**writer, **_resolved(store, published, modules))
    except UnsupportedError as exc:
        return LookupSpecification(**writer, unsupported=str(exc))


def _resolved(store: Any, service: Any, modules: Sequence[str]) -> dict[str, Any]:
    """Views and functions of a service, as Feast resolves them before each of its own reads."""
    options = store.config.online_store
    redis_type = getattr(options, "redis_type", "no Redis")
    if not isinstance(options, NewestOnlineStoreConfig) or redis_type != "redis":
        raise UnsupportedError(f"the online store is {options.type} ({redis_type})")
    # Feast has no public way to any of what it resolves and encodes.
    context = utils._get_online_request_context(store.registry, store.project, service, False)  # noqa: SLF001, FBT003
    _, on_demand, _, key_types, _, grouped, _, needed, entityless = context
    if entityless:
        raise UnsupportedError("a view has no entity")
    if needed - {AS_OF}:
        raise UnsupportedError(f"request data {sorted(needed - {AS_OF})} is not as_of")
    columns = Counter((AS_OF, *key_types, *(name for _, names in grouped for name in names)))
    if twice := [name for name, count in columns.items() if count > 1]:
        raise UnsupportedError(f"two columns are named {min(twice)}")
    every = (*on_demand, *(view for view, _ in grouped))
    renamed = [view.name for view in every if view.projection.name_to_use() != view.name]
    if on_demand and renamed:
        raise UnsupportedError(f"{on_demand[0].name} is on demand, {renamed[0]} is renamed")
    names_of = {view.name: sorted(names) for view, names in grouped}  # Feast's order is random
    return {
        "functions": tuple(_function(view, key_types, names_of, modules) for view in on_demand),
        "views": tuple(_view(store, view, names, key_types) for view, names in grouped),
    }


def _view(store: Any, view: Any, names: Sequence[str], key_types: Mapping[str, Any]) -> StoredView:
    config = store.config
    stored_as = stock._versioned_fv_name(view, config)  # noqa: SLF001
    features = {field.name: _kind(field) for field in view.features if field.name in names}
    joins = sorted(view.join_keys)
    columns = [view.projection.join_key_map.get(join, join) for join in joins]
    keys = {column: key_types[column].name.lower() for column in columns}
    if not {*keys.values()} <= {"int64", "string"}:
        raise UnsupportedError(f"keys {keys} are not all int64 or string")
    return StoredView(
        keys=keys,
        prefix=serialize_entity_key_prefix(joins, config.entity_key_serialization_version),
        suffix=config.project.encode(),
        time=f"_ts:{stored_as}".encode(),
        mark=mark(store, view.name),
        ttl_us=round(view.ttl.total_seconds() * 1e6) if view.ttl else 0,
        features=tuple(
            StoredFeature(
                name=name,
                kind=kind,
                field=stock._mmh3(f"{stored_as}:{name}"),  # noqa: SLF001
                tag=SAMPLES[kind].SerializeToString()[0],
            )
            for name, kind in sorted(features.items())
        ),
    )


def _function(
    view: Any, keys: Iterable[str], names_of: Mapping[str, Sequence[str]], modules: Sequence[str]
) -> OnDemandFunction:
    """An on-demand view that is asked for, as Feast calls it after it read the rest."""
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
        inputs={column: column for column in (*keys, AS_OF, *seen)} | full,
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
