"""The broker of events: a team's Kafka (GYRE_EVENTS_URL), else Redis Streams."""

import time
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from core.errors import BrokerUnavailableError, DataError, SettingsError
from core.packages import missing_client
from core.settings import Settings
from core.user_code import DATASETS, makes_dataset
from feature_engine.events.interface import Broker, ConsumerLag
from feature_engine.events.redis_broker import RedisBroker
from feature_engine.events.schema import ALIVE, SCHEMAS, published_schemas
from feature_repo.event_schema import EventSchema
from feature_repo.online_store import redis_client

MAX_LAG_SECONDS = 60.0
"""How long an entry may wait. Most wait for less than one second, and for some seconds while the
consumer starts, compacts files or waits for a lock: after a minute somebody has to look."""
CLOCKS_DIFFER = timedelta(seconds=60)
"""How far a clock may be ahead of the broker's."""
PLANNED_SECONDS = 300.0
"""Time for Redis to begin a rewrite of its file: before, it ends a copy that it saves."""
IDLE_AFTER = 5_000
"""Milliseconds after which a consumer that does not show its life is taken for dead."""


def broker(settings: Settings) -> Broker:
    """Return the broker of an installation.

    Raises:
        SettingsError: The client of Kafka is missing.

    """
    if not settings.events_url:
        return RedisBroker(settings)
    try:
        from feature_engine.events.kafka_broker import KafkaBroker  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise SettingsError(f"GYRE_EVENTS_URL {missing_client(exc)}") from exc
    return KafkaBroker(settings)


def consumer_lags(settings: Settings) -> dict[str, ConsumerLag]:
    """Return the lag of each dataset that has events.

    Raises:
        BrokerUnavailableError: Redis or the broker does not answer.

    """
    schemas = published_schemas(settings)
    events_broker = broker(settings)
    return {schema.dataset: events_broker.lag(schema) for schema in schemas}


def broker_time(settings: Settings) -> datetime:
    """Return now, aware UTC, by the clock that dates events; by this host's if no broker answers.

    Raises:
        DataError: This host's clock is over a minute ahead: what it writes would be from the future.

    """
    here = datetime.now(UTC)
    try:
        there = broker(settings).now()
    except BrokerUnavailableError:
        return here
    if here - there > CLOCKS_DIFFER:
        seconds = (here - there).total_seconds()
        text = f"this host's clock is {seconds:.0f} s ahead of the broker's"
        raise DataError(f"{text}: nothing was changed; put it right")
    return there


def may_events_wait(settings: Settings, dataset: str, until: datetime) -> bool:
    """Whether events of a dataset wait for the consumer, or may wait, as no broker answers.

    Args:
        settings: Settings of the installation.
        dataset: Name of the dataset.
        until: Time (aware UTC) up to which such an event was acknowledged.

    """
    try:
        for schema in published_schemas(settings):
            if schema.dataset == dataset:
                lag = broker(settings).lag(schema)
                return lag.entries > 0 and (lag.oldest is None or lag.oldest <= until)
    except BrokerUnavailableError:
        return True
    return False


def waiting(settings: Settings, dataset: str) -> Iterator[bytes]:
    """Yield the entries of a dataset that wait for the consumer."""
    for schema in published_schemas(settings):
        if schema.dataset == dataset:
            yield from broker(settings).waiting(schema)


def show_life(redis: Redis, schemas: Iterable[EventSchema]) -> None:
    """Have Redis note that a consumer lives, and the columns of its events."""
    redis.set(ALIVE, "", px=IDLE_AFTER)
    for schema in schemas:
        redis.hset(SCHEMAS, schema.dataset, schema.model_dump_json())


def withdraw(redis: Redis, names: Collection[str]) -> list[str]:
    """Take no more events of datasets that are gone; return their names. Events that wait stay.

    Args:
        redis: Client of Redis.
        names: Names of the project's datasets, also of those that are broken.

    """
    keys: Any = redis.hkeys(SCHEMAS)
    gone = sorted({key.decode() for key in keys}.difference(names))
    if gone:
        redis.hdel(SCHEMAS, *gone)
    return gone


def consumer_problem(settings: Settings) -> str | None:
    """Return the reason why no consumer reads events; None if one does, or no dataset takes any."""
    if not any(map(makes_dataset, DATASETS.glob("*.py"))):
        return None
    try:
        with redis_client(settings) as redis:
            if redis.exists(ALIVE):
                return None
    except RedisError as exc:
        return f"Redis: {exc}"
    return (
        "no consumer reads the events; windows that end go online with the next ingest"
    )


def rewrite_file(settings: Settings) -> None:
    """Have Redis write its file anew, without deleted data; a managed Redis may refuse.

    Raises:
        DataError: Redis could not, as on a full disk: its file still has deleted data.

    """
    with redis_client(settings) as redis:
        try:
            _await_rewrite(redis)  # a rewrite under way has begun before
            redis.bgrewriteaof()
            is_written = _await_rewrite(redis)
        except ResponseError:
            is_written = settings.redis_url is not None
    if not is_written:
        raise DataError(
            "Redis could not write its file anew, which still has deleted data: is the disk full?"
        )


def _await_rewrite(redis: Any) -> bool:
    """Wait while Redis writes its file anew, and while it plans to, as during a copy to disk.

    Returns:
        Whether the last rewrite succeeded, and none is planned.

    """
    planned_end = time.monotonic() + PLANNED_SECONDS
    while True:
        state = redis.info("persistence")
        is_planned = bool(state["aof_rewrite_scheduled"])
        may_begin = is_planned and time.monotonic() < planned_end
        if not (may_begin or state["aof_rewrite_in_progress"]):
            return not is_planned and state["aof_last_bgrewrite_status"] == "ok"
        time.sleep(0.1)
