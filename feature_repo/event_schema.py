"""The columns of a dataset's events, and the types of their values. It imports no Feast, no Arrow."""

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, Lt
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, with_config
from typing_extensions import TypedDict

from core.errors import DataError
from core.json_types import Float64, Int32, Int64, Single, exact_time
from core.timestamps import EARLIEST_TIME, LATEST_TIME

if TYPE_CHECKING:
    from feature_repo.definition import Dataset

ARROW_TYPES: dict[str, Any] = {
    "bool": bool,
    "int8": Annotated[Int32, Ge(-128), Le(127)],
    "int16": Annotated[Int32, Ge(-32_768), Le(32_767)],
    "int32": Int32,
    "int64": Int64,
    "float": Single,
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
        key: The columns that identify a row.
        topic: The topic that others write the events to; empty: serving takes them.

    """

    dataset: str
    columns: dict[str, str]
    required: list[str]
    event_time: str
    entity: str = ""
    key: list[str] = []
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
        key=[*dataset.key],
        topic=dataset.topic.name if dataset.topic else "",
    )
