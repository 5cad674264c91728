"""The schemas of events as the consumer publishes them in Redis, also where Kafka is the broker.

`gyre:events` is a hash with the EventSchema (JSON) of each dataset.
"""

from typing import Any

from redis.asyncio import Redis as AsyncRedis

from core.errors import BrokerUnavailableError
from core.settings import Settings
from feature_repo.event_schema import EventSchema
from feature_repo.online_store import redis_client, redis_errors

SCHEMAS = "gyre:events"
ALIVE = "gyre:consumer"
"""Key of Redis that is there while a consumer lives."""
TIMEOUT_SECONDS = 1.0
"""How long Redis may take for one call of serving."""


class PublishedSchemas:
    """Serving's view of the schemas."""

    def __init__(self, settings: Settings) -> None:
        self._redis = AsyncRedis.from_url(
            settings.redis_address, socket_timeout=TIMEOUT_SECONDS
        )

    async def read(self) -> dict[str, bytes]:
        """Return the EventSchema (JSON) of each dataset that has events.

        Raises:
            BrokerUnavailableError: Redis does not answer, or no consumer runs that has published any.

        """
        with redis_errors():
            schemas = await self._redis.hgetall(SCHEMAS)  # type: ignore[misc]  # (sync or not)
            has_consumer = bool(schemas) or await self._redis.exists(ALIVE)
        if not has_consumer:
            raise BrokerUnavailableError(
                "no dataset takes events yet: is `gyre consume` running?"
            )
        return {name.decode(): schema for name, schema in schemas.items()}

    async def close(self) -> None:
        await self._redis.aclose()


def published_schemas(settings: Settings) -> list[EventSchema]:
    """Return the schemas that consumers have published.

    Raises:
        BrokerUnavailableError: Redis does not answer.

    """
    with redis_errors(), redis_client(settings) as redis:
        schemas: Any = redis.hvals(SCHEMAS)
    return [EventSchema.model_validate_json(schema) for schema in schemas]
