"""Writes serving plans: how Feast itself would read a feature service, and what it then says."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from feast import ValueType, utils
from feast.errors import FeastError, FeastObjectNotFoundException
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key_prefix
from feast.infra.online_stores import redis as stock
from redis import Redis
from redis.exceptions import RedisError

from feature_repo.contract import contract
from feature_repo.extensions.online import NewestOnlineStore
from feature_repo.on_demand import NotDirectError, check_plain, plain_source
from feature_repo.online import answer
from feature_repo.serving_plan import (
    Canary,
    KeySample,
    PlannedFeature,
    PlannedFunction,
    PlannedView,
    ServingPlan,
    Standing,
    load_plan,
    plan_path,
)
from feature_repo.store import TYPES, mark, open_store
from stack.errors import DataError
from stack.moment import microseconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from feature_repo.serving_plan import Value
    from stack.settings import Settings
    from stack.spec import Entity, FeatureType

DEADLINE = 0.5
"""Seconds that Redis may take for one call."""
CANARIES = 16
SCANS, SCANNED = 50, 2_000
"""Rounds in search of canaries, and keys a round: Redis answers nobody else during one."""
SOME: dict[FeatureType, int | float | str] = {"int64": 1, "double": 1.0, "string": "a"}
KEY_VALUES: dict[str, tuple[int | str, ...]] = {
    "int64": (1, 0, -1, 2**63 - 1, -(2**63), 2**40),
    "string": ("a", "", "ü", "€😀", "x" * 300, "0"),
}
AS_OF = "as_of"
logger = logging.getLogger(__name__)
Stored = tuple[tuple[bytes | None, ...], ...]


def ensure_plan(settings: Settings, service: str) -> Path:
    """Write the plan of `service` unless what is there is up to date; return its path.

    Up to date: the registry and Feast are what they were, nothing was materialised since, and no
    canary's values are others at the same event time. That costs two trips to Redis. Without Redis
    what can be told holds, and a new plan has no canaries yet.

    Raises:
        DataError: the service is not published.

    """
    path = plan_path(settings, service)
    with closing(_client(settings)) as redis:
        if not _up_to_date(settings, service, redis):
            plan = _plan(settings, service, redis)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            part.write_text(plan.model_dump_json(indent=1))
            part.replace(path)
    return path


def _client(settings: Settings) -> Redis:
    return Redis.from_url(
        settings.redis_address, socket_timeout=DEADLINE, socket_connect_timeout=DEADLINE
    )


def _up_to_date(settings: Settings, service: str, redis: Redis) -> bool:
    try:
        plan = load_plan(settings, service)
    except DataError:
        return False
    known = plan.standing
    if (known.feast, known.registry) != (version("feast"), _registry(settings)):
        return False
    try:
        if known.marks != _marks(redis, plan.marks):
            return False
        live = _stored(redis, plan.views, plan.canaries)
    except RedisError:
        return True
    return not any(
        was != now and was[0] == now[0]
        for canary, stored in zip(plan.canaries, live, strict=True)
        for was, now in zip(canary.stored, stored, strict=True)
    )


def _registry(settings: Settings) -> tuple[int, int]:
    try:
        found = (settings.home / "feast" / "registry.db").stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _marks(redis: Redis, marks: Sequence[bytes]) -> tuple[str | None, ...]:
    found: Any = redis.mget(marks) if marks else []
    return tuple(None if each is None else each.decode() for each in found)


def _stored(
    redis: Redis, views: Sequence[PlannedView], entities: Sequence[KeySample]
) -> list[Stored]:
    """Of each entity and view the event time's bytes and each feature's."""
    fields = [[view.time, *(feature.field for feature in view.features)] for view in views]
    with redis.pipeline(transaction=False) as pipe:
        for entity in entities:
            for name, wanted in zip(entity.hashes, fields, strict=True):
                pipe.hmget(name, wanted)  # type: ignore[arg-type]  # bytes are fine
        rows = iter(pipe.execute())
    return [tuple(tuple(next(rows)) for _ in views) for _ in entities]


def _plan(settings: Settings, service: str, redis: Redis) -> ServingPlan:
    stamp, store = _registry(settings), open_store(settings, DEADLINE)
    try:
        asked = store.get_feature_service(service)
    except FeastObjectNotFoundException as exc:
        raise DataError(
            f"feature service {service!r} is not published: cd feature_repo && feast apply"
        ) from exc
    marks = tuple(_mark_keys(store, service))
    standing = Standing(feast=version("feast"), registry=stamp, marks=_marks_if_any(redis, marks))
    begun = ServingPlan(service=service, standing=standing, marks=marks)
    try:
        planned = _Planned(store, asked)
        views, functions = tuple(planned.views()), tuple(planned.functions())
        samples = tuple(planned.samples(views))
    except (NotDirectError, FeastError, ValueError, KeyError) as exc:
        return begun.model_copy(update={"not_direct": str(exc)})
    try:
        canaries = tuple(planned.canaries(redis, views))
    except RedisError:
        canaries = ()
    found = {"views": views, "functions": functions, "samples": samples, "canaries": canaries}
    return begun.model_copy(update=found)


def _mark_keys(store: Any, service: str) -> Iterator[bytes]:
    names = contract(store.registry.proto(), service)
    for view in store.list_feature_views():
        if view.name in names:
            yield mark(store, view.name).encode()


def _marks_if_any(redis: Redis, marks: Sequence[bytes]) -> tuple[str | None, ...]:
    try:
        return _marks(redis, marks)
    except RedisError:
        return (None,) * len(marks)


class _Planned:
    """What Feast resolves of one service before each of its own reads."""

    def __init__(self, store: Any, service: Any) -> None:
        self._store, self._service = store, service
        self._online = store._get_provider().online_store  # noqa: SLF001
        options = store.config.online_store
        if type(self._online) is not NewestOnlineStore or options.redis_type != "redis":
            raise NotDirectError(f"the online store is {options.type} ({options.redis_type})")
        found = utils._get_online_request_context(store.registry, store.project, service, False)  # noqa: SLF001, FBT003
        self._refs, self._on_demand, self._entities, self._types, _, self._grouped = found[:6]
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
            yield KeySample(key=values, hashes=self._hashes(values))

    def _hashes(self, key: Entity) -> tuple[bytes, ...]:
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

    def canaries(self, redis: Redis, views: Sequence[PlannedView]) -> Iterator[Canary]:
        """Entities that Redis knows, but those that are written meanwhile or Feast cannot read."""
        keys = [KeySample(key=k, hashes=self._hashes(k)) for k in _known(redis, views)]
        before, now = _stored(redis, views, keys), datetime.now(UTC)
        found = [self._answer(each.key, now) for each in keys]
        after = _stored(redis, views, keys)
        for each, was, values, stored in zip(keys, before, found, after, strict=True):
            if stored == was and values is not None:
                yield Canary(key=each.key, hashes=each.hashes, as_of=now, stored=stored,
                             found=values)  # fmt: skip

    def _answer(self, key: Entity, now: datetime) -> dict[str, Value] | None:
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


def _known(redis: Redis, views: Sequence[PlannedView]) -> list[dict[str, int | str]]:
    """Return up to 16 entities that Redis holds values of, for views of different keys combined."""
    groups = {(view.prefix, *view.keys): view for view in views}
    found: dict[Any, list[Mapping[str, int | str]]] = {group: [] for group in groups}
    cursor = 0
    for _ in range(SCANS):
        cursor, names = redis.scan(cursor, count=SCANNED)  # type: ignore[misc]
        for group, view in groups.items():
            found[group] += [key for name in names if (key := _key(view, name))]
        if cursor == 0 or all(len(keys) >= CANARIES for keys in found.values()):
            break
    parts = sorted(filter(None, found.values()), key=lambda keys: -len(keys[0]))
    entities = []
    for n in range(min(CANARIES, max(map(len, parts), default=0))):
        entity: dict[str, int | str] = {}
        for keys in parts:
            entity = {**keys[n % len(keys)], **entity}
        entities.append(entity)
    columns = {name for view in views for name in view.keys}
    return [entity for entity in entities if entity.keys() == columns]


def _key(view: PlannedView, name: bytes) -> dict[str, int | str] | None:
    """Return the values that the name of a hash of `view` is made of; None if it is no such."""
    if not (name.startswith(view.prefix) and name.endswith(view.suffix)):
        return None
    try:
        values = deserialize_entity_key(name[: -len(view.suffix)]).entity_values
    except ValueError:
        return None
    kinds = [value.WhichOneof("val") for value in values]
    if kinds != [f"{kind}_val" for kind in view.keys.values()]:
        return None
    pairs = zip(view.keys, values, kinds, strict=True)
    return {column: getattr(value, kind) for column, value, kind in pairs}
