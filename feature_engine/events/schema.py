"""The columns of a dataset's events. It imports no Feast, no Arrow.

The consumer publishes them in Redis, also where Kafka is the broker: `gyre:events` is a hash with
the EventSchema (JSON) of each dataset.
"""

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Lt
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, with_config
from redis.asyncio import Redis as AsyncRedis
from typing_extensions import TypedDict

from core.errors import BrokerUnavailableError, DataError
from core.json_types import Float64, Int64, exact_time
from core.settings import Settings
from core.timestamps import EARLIEST_TIME, LATEST_TIME
from feature_repo.online_store import redis_client, redis_errors

if TYPE_CHECKING:
    from feature_repo.definition import Dataset

SCHEMAS = "gyre:events"
TIMEOUT_SECONDS = 1.0
"""How long Redis may take for one call of serving."""
ARROW_TYPES: dict[str, Any] = {
    "bool": bool,
    "int8": Int64,
    "int16": Int64,
    "int32": Int64,
    "int64": Int64,
    "float": Float64,
    "double": Float64,
    "string": str,
    "timestamp[us, tz=UTC]": Annotated[
        AwareDatetime, Ge(EARLIEST_TIME), Lt(LATEST_TIME), BeforeValidator(exact_time)
    ],
}
"""Arrow types that a column of an event may have, and the types of their values in JSON."""
EVENT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class EventSchema(BaseModel):
    """The columns of a dataset's events.

    Attributes:
        dataset: Name of the dataset.
        columns: Name to Arrow type.
        required: Columns that may not be null.
        event_time: The column with the event's time.
        entity: The column that identifies the entity.
        topic: The topic that others write the events to; empty: serving takes them.

    """

    dataset: str
    columns: dict[str, str]
    required: list[str]
    event_time: str
    entity: str = ""
    topic: str = ""

    def row_type(self) -> Any:
        """Return the type of one event: every column, strictly, times with an offset."""
        fields: dict[str, Any] = {}
        for name, kind in self.columns.items():
            value_type = ARROW_TYPES[kind]
            if name not in self.required:
                value_type |= None
            fields[name] = value_type
        # No model: its attributes cannot have every name.
        event: Any = TypedDict("Event", fields)  # type: ignore[misc]
        return with_config(EVENT)(event)


def event_schema(dataset: "Dataset", never_null: set[str]) -> EventSchema:
    """Return the schema of a dataset's events.

    Args:
        dataset: The dataset; its key, entity and event time are never null.
        never_null: Columns that a rule of its suite forbids to be null.

    Raises:
        DataError: A column has a type that no event can carry.

    """
    required = {*dataset.key, dataset.entity, dataset.event_time, *never_null}
    columns = {}
    for field in dataset.schema:
        kind = str(field.type)
        if kind not in ARROW_TYPES:
            expected = ", ".join(ARROW_TYPES)
            raise DataError(
                f"{dataset.name}.{field.name}: expected {expected}, found {kind}"
            )
        columns[field.name] = kind
        if not field.nullable:
            required.add(field.name)
    return EventSchema(
        dataset=dataset.name,
        columns=columns,
        required=sorted(required),
        event_time=dataset.event_time,
        entity=dataset.entity,
        topic=dataset.topic.name if dataset.topic else "",
    )


class PublishedSchemas:
    """Serving's view of the schemas."""

    def __init__(self, settings: Settings) -> None:
        self._redis = AsyncRedis.from_url(
            settings.redis_address, socket_timeout=TIMEOUT_SECONDS
        )

    async def read(self) -> dict[str, bytes]:
        """Return the EventSchema (JSON) of each dataset that has events; at least one has.

        Raises:
            BrokerUnavailableError: Redis does not answer, or no consumer ever ran.

        """
        with redis_errors():
            schemas = await self._redis.hgetall(SCHEMAS)  # type: ignore[misc]  # (sync or not)
        if not schemas:
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
