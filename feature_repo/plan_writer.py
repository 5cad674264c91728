"""Writes serving plans: how Feast itself would read a feature service, and what it then says."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from feast.errors import FeastObjectNotFoundException
from feast.infra.key_encoding_utils import deserialize_entity_key
from redis import Redis
from redis.exceptions import RedisError

from feature_repo.contract import contract
from feature_repo.resolved import Resolved
from feature_repo.serving_plan import (
    Canary,
    KeySample,
    PlannedView,
    ServingPlan,
    Standing,
    load_plan,
    plan_path,
)
from feature_repo.store import mark, open_store
from stack.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from stack.settings import Settings

DEADLINE = 0.5
"""Seconds that Redis may take for one call."""
CANARIES = 16
SCANS, SCANNED = 50, 2_000
"""Rounds in search of canaries, and keys a round: Redis answers nobody else during one."""
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
        resolved = Resolved(store, asked)
        views, functions = tuple(resolved.views()), tuple(resolved.functions())
        samples = tuple(resolved.samples(views))
    except Exception as exc:  # noqa: BLE001  (what is not understood here, Feast's reader answers)
        return begun.model_copy(update={"not_direct": str(exc) or type(exc).__name__})
    try:
        canaries = tuple(_canaries(resolved, redis, views))
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


def _canaries(resolved: Resolved, redis: Redis, views: Sequence[PlannedView]) -> Iterator[Canary]:
    """Entities that Redis knows, but those that are written meanwhile or Feast cannot read."""
    keys = [KeySample(key=key, hashes=resolved.hashes(key)) for key in _known(redis, views)]
    before, now = _stored(redis, views, keys), datetime.now(UTC)
    found = [resolved.answer(each.key, now) for each in keys]
    after = _stored(redis, views, keys)
    for each, was, values, stored in zip(keys, before, found, after, strict=True):
        if stored == was and values is not None:
            yield Canary(key=each.key, hashes=each.hashes, as_of=now, stored=stored, found=values)


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
