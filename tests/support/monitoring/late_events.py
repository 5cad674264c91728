"""Events that wait."""

from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

from redis import Redis

from feature_engine.events.broker import show_life
from feature_engine.events.redis_broker import RedisStream
from feature_repo.event_schema import EventSchema


@contextmanager
def late_events(settings):
    """A dataset with a request that a consumer has read, and has not processed for an hour."""
    schema = EventSchema(dataset="late", columns={}, required=[], event_time="at")
    hour_ago = int((datetime.now(UTC) - timedelta(hours=1)).timestamp() * 1000)
    with (
        closing(RedisStream(settings, "late", "test")) as stream,
        Redis.from_url(settings.redis_address) as redis,
    ):
        show_life(redis, [schema])
        stream.declare()
        redis.xadd("gyre:events:late", {"events": "[]"}, id=f"{hour_ago}-0")
        stream.read()
        yield
        redis.delete("gyre:events:late")
        redis.hdel("gyre:events", "late")
