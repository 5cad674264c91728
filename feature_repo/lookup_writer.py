"""Writes look-up specifications, by the functions that Feast resolves each of its reads with."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast import ValueType, utils
from feast.errors import FeastObjectNotFoundException
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores import redis as stock

from feature_repo import datasets
from feature_repo.extensions.online import NewestOnlineStore
from feature_repo.on_demand import UnsupportedError, digest, module_source, plain_source
from feature_repo.store import TYPES, mark, open_store
from mlflow_server.lookup import (
    LookupSpecification,
    OnDemandFunction,
    StoredFeature,
    StoredView,
)
from stack.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack.settings import Settings
    from stack.spec import FeatureType, KeyType

DEADLINE = 1.0
"""Seconds; only the registry is read here."""
AS_OF = "as_of"
KEY_TYPES: dict[str, KeyType] = {"INT64": "int64", "STRING": "string"}
SAMPLE_VALUES: dict[FeatureType, int | float | str] = {"int64": 1, "double": 1.0, "string": "a"}


def look_up_specification(
    settings: Settings, service: str, modules: tuple[str, ...] | None = None
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
    writer = {"feast": version("feast"), "online_store": store.config.online_store.type}
    try:
        request = _Request(store, published, modules or _dataset_modules())
        views = tuple(request.views())
        functions = tuple(request.functions())
    except UnsupportedError as exc:
        return LookupSpecification(**writer, unsupported=str(exc))
    return LookupSpecification(**writer, views=views, functions=functions)


def _dataset_modules() -> tuple[str, ...]:
    folder = Path(datasets.__file__).parent
    return tuple(f"{datasets.__name__}.{path.stem}" for path in sorted(folder.glob("[!_]*.py")))


class _Request:
    """What Feast resolves of one service before each of its own reads."""

    def __init__(self, store: Any, service: Any, modules: tuple[str, ...]) -> None:
        self._store = store
        self._modules = modules
        # Feast has no public way to any of what it resolves and encodes.
        self._online = store._get_provider().online_store  # noqa: SLF001
        options = store.config.online_store
        if type(self._online) is not NewestOnlineStore or options.redis_type != "redis":
            kind = getattr(options, "redis_type", "no Redis")
            raise UnsupportedError(f"the online store is {options.type} ({kind})")
        context = utils._get_online_request_context(store.registry, store.project, service, False)  # noqa: SLF001, FBT003
        _, self._on_demand, _, self._types, _, self._grouped, _, needed, entityless = context
        if entityless:
            raise UnsupportedError("a view has no entity")
        if needed - {AS_OF}:
            raise UnsupportedError(f"request data {sorted(needed - {AS_OF})} is not as_of")

    def views(self) -> Iterator[StoredView]:
        taken = {AS_OF, *self._types}
        for view, names in self._grouped:
            if twice := taken & set(names):
                raise UnsupportedError(f"two columns are named {min(twice)}")
            taken |= set(names)
            yield self._view(view, sorted(names))

    def _view(self, view: Any, names: list[str]) -> StoredView:
        config = self._store.config
        stored_as = stock._versioned_fv_name(view, config)  # noqa: SLF001
        _, fields = self._online._generate_hset_keys_for_features(  # noqa: SLF001
            view, [*names], fv_name_override=stored_as
        )
        kinds = {field.name: _kind(field) for field in view.features if field.name in names}
        joins = sorted(view.join_keys)
        alias = view.projection.join_key_map
        keys = {alias.get(join, join): self._types[alias.get(join, join)].name for join in joins}
        if other := {name: kind for name, kind in keys.items() if kind not in KEY_TYPES}:
            raise UnsupportedError(f"keys {other} are neither int64 nor string")
        return StoredView(
            keys={name: KEY_TYPES[kind] for name, kind in keys.items()},
            prefix=serialize_entity_key_prefix(joins, config.entity_key_serialization_version),
            suffix=config.project.encode(),
            time=fields[-1].encode(),
            mark=mark(self._store, view.name),
            ttl_us=round(view.ttl.total_seconds() * 1e6) if view.ttl else 0,
            features=tuple(
                StoredFeature(name=name, kind=kinds[name], field=field, tag=_tag(kinds[name]))
                for name, field in zip(names, fields, strict=False)
            ),
        )

    def functions(self) -> Iterator[OnDemandFunction]:
        """On-demand views that are asked for, as Feast calls them after it read the rest."""
        columns = {view.name: names for view, names in self._grouped}
        renamed = [v.name for v, _ in self._grouped if v.projection.name_to_use() != v.name]
        for view in self._on_demand:
            if renamed:
                raise UnsupportedError(f"{view.name} is on demand beside {renamed[0]}, renamed")
            _check_plain(view)
            name = view.feature_transformation.udf.__name__
            source = plain_source(view.feature_transformation.udf_string, name)
            sources = {p.name: p for p in view.source_feature_view_projections.values()}
            seen = [column for each in sources for column in columns[each]]
            full = {f"{p.name}__{f.name}": f.name for p in sources.values() for f in p.features}
            yield OnDemandFunction(
                module=self._module(name, source),
                function=name,
                sha256=digest(source),
                inputs={column: column for column in (*self._types, AS_OF, *seen)} | full,
                outputs={field.name: _kind(field) for field in view.projection.features},
            )

    def _module(self, name: str, source: str) -> str:
        for module in self._modules:
            try:
                if module_source(module, name) == source:
                    return module
            except UnsupportedError:
                continue
        raise UnsupportedError(f"{name}: no dataset of the project defines it as published")


def _check_plain(view: Any) -> None:
    reasons = {
        f"mode is {view.mode}": view.mode != "python",
        "it is a singleton": view.singleton,
        "it is written to the online store": view.write_to_online_store,
        "it aggregates": bool(view.aggregations),
        "it has an alias": view.projection.name_to_use() != view.name,
    }
    for reason, applies in reasons.items():
        if applies:
            raise UnsupportedError(f"on-demand view {view.name}: {reason}")


def _kind(field: Any) -> FeatureType:
    if str(field.dtype) not in TYPES:
        raise UnsupportedError(f"{field.name} is {field.dtype}, not one of {', '.join(TYPES)}")
    return TYPES[str(field.dtype)]


def _tag(kind: FeatureType) -> int:
    """Return the first byte of any value of a type, as Feast serialises it."""
    values = utils.python_values_to_proto_values([SAMPLE_VALUES[kind]], ValueType[kind.upper()])
    return bytes(values[0].SerializeToString())[0]
