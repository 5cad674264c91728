"""How Feast reads a feature service, by the functions that it resolves each of its reads with."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from feast import ValueType, utils
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores import redis as stock
from redis.exceptions import RedisError

from feature_repo.extensions.online import NewestOnlineStore
from feature_repo.on_demand import NotDirectError, check_plain, plain_source
from feature_repo.online import answer
from feature_repo.serving_plan import KeySample, PlannedFeature, PlannedFunction, PlannedView
from feature_repo.store import TYPES
from stack.moment import microseconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from feature_repo.serving_plan import Value
    from stack.spec import Entity, FeatureType

SOME: dict[FeatureType, int | float | str] = {"int64": 1, "double": 1.0, "string": "a"}
KEY_VALUES: dict[str, tuple[int | str, ...]] = {
    "int64": (1, 0, -1, 2**63 - 1, -(2**63), 2**40),
    "string": ("a", "", "ü", "€😀", "x" * 300, "0"),
}
AS_OF = "as_of"
logger = logging.getLogger(__name__)


class Resolved:
    """What Feast resolves of one service before each of its own reads."""

    def __init__(self, store: Any, service: Any) -> None:
        self._store, self._service = store, service
        self._online = store._get_provider().online_store  # noqa: SLF001
        options = store.config.online_store
        if type(self._online) is not NewestOnlineStore or options.redis_type != "redis":
            raise NotDirectError(f"the online store is {options.type} ({options.redis_type})")
        found = utils._get_online_request_context(store.registry, store.project, service, False)  # noqa: SLF001, FBT003
        _, self._on_demand, self._entities, self._types, _, self._grouped = found[:6]
        self._asked, needed, entityless = found[6:]
        if entityless:
            raise NotDirectError("a view has no entity")
        if needed - {AS_OF}:
            raise NotDirectError(f"request data {sorted(needed - {AS_OF})} is not as_of")

    def views(self) -> Iterator[PlannedView]:
        taken = {AS_OF, *self._types}
        for table, names in self._grouped:
            if twice := taken & set(names):
                raise NotDirectError(f"two columns are named {min(twice)}")
            taken |= set(names)
            yield self._view(table, sorted(names))

    def _view(self, table: Any, names: list[str]) -> PlannedView:
        config = self._store.config
        view = stock._versioned_fv_name(table, config)  # noqa: SLF001
        _, fields = self._online._generate_hset_keys_for_features(  # noqa: SLF001
            table, [*names], fv_name_override=view
        )
        kinds_of = {field.name: _kind(field) for field in table.features if field.name in names}
        joins, alias = sorted(table.join_keys), table.projection.join_key_map
        kinds = {alias.get(join, join): self._types[alias.get(join, join)].name for join in joins}
        if other := {k: v for k, v in kinds.items() if v.lower() not in KEY_VALUES}:
            raise NotDirectError(f"keys {other} are neither int64 nor string")
        return PlannedView(
            name=table.name,
            keys={name: "int64" if kind == "INT64" else "string" for name, kind in kinds.items()},
            prefix=serialize_entity_key_prefix(joins, config.entity_key_serialization_version),
            suffix=config.project.encode(),
            time=fields[-1].encode(),
            ttl_us=round(table.ttl.total_seconds() * 1e6) if table.ttl else 0,
            features=tuple(
                PlannedFeature(
                    name=name, kind=kinds_of[name], field=field, tag=_tag(kinds_of[name])
                )
                for name, field in zip(names, fields, strict=False)
            ),
        )

    def functions(self) -> Iterator[PlannedFunction]:
        """On-demand views that are asked for, as Feast calls them after it read the rest."""
        columns = {table.name: names for table, names in self._grouped}
        renamed = [t.name for t, _ in self._grouped if t.projection.name_to_use() != t.name]
        for view in self._on_demand:
            if renamed:
                raise NotDirectError(f"{view.name} is on demand beside {renamed[0]}, renamed")
            check_plain(view)
            sources = {p.name: p for p in view.source_feature_view_projections.values()}
            seen = [name for source in sources for name in columns[source]]
            full = {f"{p.name}__{f.name}": f.name for p in sources.values() for f in p.features}
            inputs = {name: name for name in (*self._types, AS_OF, *seen)} | full
            source, name = plain_source(view.name, view.feature_transformation.udf_string)
            yield PlannedFunction(
                name=view.name, source=source, function=name, inputs=inputs,
                outputs={field.name: _kind(field) for field in view.projection.features},
            )  # fmt: skip

    def samples(self, views: Sequence[PlannedView]) -> Iterator[KeySample]:
        kinds = {name: kind for view in views for name, kind in view.keys.items()}
        for n in range(len(KEY_VALUES["int64"])):
            values = {k: KEY_VALUES[kind][n - i] for i, (k, kind) in enumerate(kinds.items())}
            yield KeySample(key=values, hashes=self.hashes(values))

    def hashes(self, key: Entity) -> tuple[bytes, ...]:
        """Name of the entity's hash in each view, all by Feast's own functions."""
        protos = {
            name: utils.python_values_to_proto_values([value], self._types[name])
            for name, value in key.items()
        }
        found = []
        for table, _ in self._grouped:
            rows, _, _ = utils._get_unique_entities(table, protos, self._entities)  # noqa: SLF001
            keys = utils._get_entity_key_protos(rows)  # noqa: SLF001
            found += self._online._generate_redis_keys_for_entities(self._store.config, keys)  # noqa: SLF001
        return tuple(found)

    def answer(self, key: Entity, now: datetime) -> dict[str, Value] | None:
        """Return Feast's answer at `now`; None where it fails.

        Raises:
            RedisError: it could not ask.

        """
        try:
            found = answer(self._store, self._service, [{**key, AS_OF: microseconds(now)}], now)
        except RedisError:
            raise
        except Exception as exc:  # noqa: BLE001  (one damaged row is no reason to have no plan)
            logger.warning("%s of %s: Feast: %s", self._service.name, dict(key), exc)
            return None
        return {name: found[name][0] for name in sorted(self._asked)}


def _kind(field: Any) -> FeatureType:
    if str(field.dtype) not in TYPES:
        raise NotDirectError(f"{field.name} is {field.dtype}, not one of {', '.join(TYPES)}")
    return TYPES[str(field.dtype)]


@cache
def _tag(kind: FeatureType) -> int:
    """Return the first byte of any value of a type, as Feast serialises it."""
    (value,) = utils.python_values_to_proto_values([SOME[kind]], ValueType[kind.upper()])
    return bytes(value.SerializeToString())[0]
