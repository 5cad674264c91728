"""What clients may send and what they get, built from a spec. Strict: no type is guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    Tag,
    TypeAdapter,
    create_model,
)

from stack.spec import ModelSpec  # noqa: TC001  (used at run time by the builders)

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


def _zero_or_one(actual: float) -> float:
    if actual not in (0.0, 1.0):
        raise ValueError("expected 0 or 1")
    return actual


class Feedback(BaseModel):
    model_config = FORBID
    request_id: Annotated[str, Field(strict=True, pattern=r"^[0-9A-Za-z-]{1,64}$")]
    actual: Annotated[
        float,
        Field(strict=True, json_schema_extra={"enum": [0, 1]}),
        AfterValidator(_zero_or_one),
    ]


@dataclass(frozen=True)
class Schemas:
    """The models of one spec. `body` by (batch, merge): a row or a list, all features or any."""

    body: dict[tuple[bool, bool], TypeAdapter[Any]]
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
    no_key: dict[str, Any] = {spec.entity_key: (Int64, None)}

    def make(name: str, fields: dict[str, Any]) -> Any:
        return create_model(title + name, __config__=FORBID, **fields)

    request = make("Request", key | {"features": (make("Features", every), None)})
    merged = make("MergeRequest", key | {"features": (make("SomeFeatures", some), None)})
    instance = _instance(make("InstanceByKey", key), make("InstanceByFeatures", no_key | every))
    kinds = {False: request, True: merged}
    return Schemas(
        body={
            (batch, merge): TypeAdapter(rows_of(kind) if batch else kind)
            for merge, kind in kinds.items()
            for batch in (False, True)
        },
        instances=make("Instances", {"instances": (rows_of(instance), ...)}),
        request=request,
        answer=make("Answer", key | ANSWER),
    )


def _instance(by_key: Any, by_features: Any) -> Any:
    """Type of one instance, told by its names, so that an error is that of the kind meant."""
    names = by_key.model_fields.keys()

    def kind(row: Any) -> str:
        return "key" if isinstance(row, dict) and row.keys() <= names else "features"

    key, features = Annotated[by_key, Tag("key")], Annotated[by_features, Tag("features")]
    return Annotated[key | features, Discriminator(kind)]


FEEDBACK: TypeAdapter[Feedback] = TypeAdapter(Feedback)
FEEDBACKS: TypeAdapter[list[Feedback]] = TypeAdapter(rows_of(Feedback))
