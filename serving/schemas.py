"""What clients may send and what they get, built from a spec. Strict: no type is guessed."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, TypeAdapter, create_model

from stack.spec import ModelSpec

MAX_ROWS = 10_000
FLOAT32 = 3.4028234663852886e38
"""Models compute in float32: a larger number would be infinite inside."""

Int64 = Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)]
Double = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-FLOAT32, le=FLOAT32)]
Text = Annotated[str, Field(strict=True)]
TYPES: dict[str, Any] = {"int64": Int64, "double": Double, "string": Text}
FORBID = ConfigDict(extra="forbid", protected_namespaces=())
ANSWER: dict[str, Any] = {
    "prediction": (float, ...),
    "probability": (float, ...),
    "model_version": (str, ...),
    "request_id": (str, ...),
    "features_from": (Literal["request", "online", "merged", "cache", "defaults"], ...),
    "in_population": (bool, ...),
    "logged": (bool, ...),
}


class Feedback(BaseModel):
    model_config = FORBID
    request_id: Annotated[str, Field(strict=True, pattern=r"^[0-9A-Za-z-]{1,64}$")]
    actual: Annotated[float, Field(strict=True, ge=0, le=1, multiple_of=1)]


@dataclass(frozen=True)
class Schemas:
    """The models of one spec; a row and a list of rows with all features or, to merge, any."""

    one: dict[bool, TypeAdapter[Any]]
    many: dict[bool, TypeAdapter[Any]]
    instances: type[BaseModel]
    request: type[BaseModel]
    answer: type[BaseModel]


def rows_of(item: Any) -> Any:
    """Type of a list of `item`; its first bad row ends the check."""
    return Annotated[list[item], FailFast(), Field(min_length=1, max_length=MAX_ROWS)]


def build_schemas(spec: ModelSpec) -> Schemas:
    title = "".join(part.capitalize() for part in spec.name.split("_"))
    types = {name: TYPES[kind] for name, kind in spec.features.items()}
    every: dict[str, Any] = {name: (kind, ...) for name, kind in types.items()}
    some: dict[str, Any] = {name: (kind, None) for name, kind in types.items()}
    key: dict[str, Any] = {spec.entity_key: (Int64, ...)}

    def make(name: str, fields: dict[str, Any]) -> Any:
        return create_model(title + name, __config__=FORBID, **fields)

    request = make("Request", key | {"features": (make("Features", every), None)})
    merged = make("MergeRequest", key | {"features": (make("SomeFeatures", some), None)})
    instance = make("Instance", {spec.entity_key: (Int64, None)} | some)
    return Schemas(
        one={False: TypeAdapter(request), True: TypeAdapter(merged)},
        many={False: TypeAdapter(rows_of(request)), True: TypeAdapter(rows_of(merged))},
        instances=make("Instances", {"instances": (rows_of(instance), ...)}),
        request=request,
        answer=make("Answer", key | ANSWER),
    )


FEEDBACK: TypeAdapter[Feedback] = TypeAdapter(Feedback)
FEEDBACKS: TypeAdapter[list[Feedback]] = TypeAdapter(rows_of(Feedback))
