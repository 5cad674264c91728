"""What an event of a dataset is, in plain type names: serving checks it without Feast or Arrow."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, create_model

from stack.errors import DataError
from stack.json_types import Int64

if TYPE_CHECKING:
    from feature_repo.definition import Dataset

Time = Annotated[AwareDatetime, Field(strict=True), AfterValidator(lambda at: at.astimezone(UTC))]
Double = Annotated[float, Field(strict=True, allow_inf_nan=False)]
TYPES: dict[str, Any] = {
    "bool": Annotated[bool, Field(strict=True)],
    **dict.fromkeys(("int8", "int16", "int32", "int64"), Int64),
    **dict.fromkeys(("float", "double"), Double),
    "string": Annotated[str, Field(strict=True)],
    "timestamp[us, tz=UTC]": Time,
}
"""Arrow types that a column of an event may have, and what their values are in JSON."""


class EventSchema(BaseModel):
    """Columns of a dataset's events: name to Arrow type. required: those that may not be null."""

    dataset: str
    columns: dict[str, str]
    required: list[str]
    event_time: str

    def row_model(self) -> type[BaseModel]:
        """Return the model of one event: every column, strictly, times with an offset."""
        fields: dict[str, Any] = {
            name: (TYPES[kind] if name in self.required else TYPES[kind] | None, ...)
            for name, kind in self.columns.items()
        }
        config = ConfigDict(extra="forbid", protected_namespaces=())
        return create_model(f"{self.dataset.capitalize()}Event", __config__=config, **fields)


def event_schema(dataset: Dataset, never_null: set[str]) -> EventSchema:
    """Return what an event of `dataset` is.

    never_null: columns that a rule of its suite forbids to be null; key, entity and event time are.

    Raises:
        DataError: a column has a type that no event can carry.

    """
    columns = {field.name: str(field.type) for field in dataset.schema}
    for name, kind in columns.items():
        if kind not in TYPES:
            raise DataError(f"{dataset.name}.{name}: expected {', '.join(TYPES)}, found {kind}")
    required = {*dataset.key, dataset.entity, dataset.event_time, *never_null}
    required |= {field.name for field in dataset.schema if not field.nullable}
    time = dataset.event_time
    return EventSchema(
        dataset=dataset.name, columns=columns, required=sorted(required), event_time=time
    )
