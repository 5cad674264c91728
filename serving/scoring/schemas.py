"""Types of the bodies that clients send and get. No value is converted to a type."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

from annotated_types import Len
from pydantic import (
    AwareDatetime,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    with_config,
)
from typing_extensions import TypedDict

from core.json_types import Float32, Int32, Int64, Timestamp
from core.spec import FLOAT32, FeatureType
from serving.versions.signature import Signature

MAX_ROWS = 10_000
Double = Annotated[
    float, Field(strict=True, allow_inf_nan=False, ge=-FLOAT32, le=FLOAT32)
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]
PredictionId = Annotated[
    str, Field(strict=True, pattern=r"^[0-9A-Za-z._:/+=@-]{1,137}$")
]
"""At most 128 characters of a proxy's id, a hyphen and 8 digits."""
TYPES: dict[FeatureType, Any] = {
    "int32": Int32,
    "int64": Int64,
    "float32": Annotated[Double, Float32],
    "double": Double,
    "bool": Annotated[bool, Field(strict=True)],
    "timestamp": Timestamp,
    "string": Text,
}
FORBID = ConfigDict(extra="forbid", protected_namespaces=())


@dataclass(frozen=True)
class Schemas:
    """Readers of the bodies of one model.

    Attributes:
        row: Reads a row of Gyre's protocol: the key, request data, and all `features` or none.
        rows: Reads a list of these.
        records: Reads a list of rows that have the key, the features or both side by side.
        prediction: Reads a prediction that was made elsewhere: its id, moment, score and version,
            the key, and all `features`, which may be null.
        predictions: Reads a list of these.

    """

    row: TypeAdapter[dict[str, Any]]
    rows: TypeAdapter[list[dict[str, Any]]]
    records: TypeAdapter[list[dict[str, Any]]]
    prediction: TypeAdapter[dict[str, Any]]
    predictions: TypeAdapter[list[dict[str, Any]]]


def object_type(
    name: str, required: Mapping[str, Any], optional: Mapping[str, Any]
) -> Any:
    """Return the type of a JSON object that has these fields and no others."""
    fields = dict(required)
    for field, kind in optional.items():
        fields[field] = NotRequired[kind]
    made: Any = TypedDict(name, fields)  # type: ignore[misc]
    return with_config(FORBID)(made)


def rows_reader(row: Any) -> TypeAdapter[Any]:
    """Return a reader of 1 to MAX_ROWS rows of a type. The first bad row ends the check."""
    return TypeAdapter(Annotated[list[row], Len(1, MAX_ROWS), FailFast()])


def field_types(fields: Mapping[str, FeatureType]) -> dict[str, Any]:
    return {name: TYPES[kind] for name, kind in fields.items()}


def build_schemas(signature: Signature) -> Schemas:
    """Make the readers of the bodies of a model."""
    key = field_types(signature.entity_key)
    data = field_types(signature.request_data)
    features = field_types(signature.features)
    further = field_types(signature.further)
    for fields in (features, further):
        for name in signature.nullable & fields.keys():
            fields[name] |= None
    all_features = object_type("Features", features, further)
    row = object_type("Row", key, {**data, "features": all_features})
    record = object_type("Record", {}, {**key, **data, **features, **further})
    given = {name: kind | None for name, kind in features.items()}
    sent = {
        "request_id": PredictionId,
        "predicted_at": AwareDatetime,
        "score": Number | list[Number],
        **key,
        "features": object_type("GivenFeatures", given, {}),
    }
    prediction = object_type("Prediction", sent, {"version": Text})
    return Schemas(
        row=TypeAdapter(row),
        rows=rows_reader(row),
        records=rows_reader(record),
        prediction=TypeAdapter(prediction),
        predictions=rows_reader(prediction),
    )
