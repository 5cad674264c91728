"""What clients may send and what they get, built from a spec. Strict: no type is guessed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    create_model,
)

from stack.json_types import Int64
from stack.spec import FLOAT32, ModelSpec

MAX_ROWS = 10_000
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
OUTCOMES: dict[bool, Any] = {
    True: Annotated[float, Field(strict=True, ge=0, le=1, multiple_of=1)],
    False: Annotated[float, Field(strict=True, allow_inf_nan=False)],
}
"""What may come true where only classes are predicted, and where numbers are too: a line of
feedback names no model.
"""


class Feedback(BaseModel):
    model_config = FORBID
    request_id: Annotated[str, Field(strict=True, pattern=r"^[0-9A-Za-z-]{1,64}$")]
    actual: float


@dataclass(frozen=True)
class Schemas:
    """The models of one spec; a row and a list of rows with all features or, to merge, any.

    flat: the type of rows that bring the key, the features or both under their names. `instances`
    is what /docs show of it, which also says that features come all or none; `scored` answers one.
    """

    one: dict[bool, TypeAdapter[Any]]
    many: dict[bool, TypeAdapter[Any]]
    flat: Any
    instances: Any
    scored: type[BaseModel]
    request: type[BaseModel]
    answer: type[BaseModel]


def rows_of(item: Any) -> Any:
    """Type of a list of `item`."""
    return Annotated[list[item], Len(1, MAX_ROWS)]


def fast(rows: Any) -> Any:
    """Type of `rows` whose first bad row ends the check."""
    return Annotated[rows, FailFast()]


def feedback_schema(specs: Sequence[ModelSpec]) -> type[Feedback]:
    """A line of feedback where `specs` are served."""
    classes = all(spec.task == "classification" for spec in specs)
    return create_model("Feedback", __base__=Feedback, actual=(OUTCOMES[classes], ...))


def answer_fields(spec: ModelSpec) -> dict[str, Any]:
    """Fields of an answer behind the key. A number that is predicted has no probability."""
    lacking = "probability" if spec.task == "regression" else None
    return {name: field for name, field in ANSWER.items() if name != lacking}


def build_schemas(spec: ModelSpec) -> Schemas:
    title = "".join(part.capitalize() for part in spec.name.split("_"))
    types = {name: TYPES[kind] for name, kind in spec.features.items()}
    every: dict[str, Any] = {name: (kind, ...) for name, kind in types.items()}
    some: dict[str, Any] = {name: (kind, None) for name, kind in types.items()}
    key: dict[str, Any] = {name: (TYPES[kind], ...) for name, kind in spec.entity_key.items()}
    maybe: dict[str, Any] = {name: (kind, None) for name, (kind, _) in key.items()}

    def make(name: str, fields: dict[str, Any]) -> Any:
        return create_model(title + name, __config__=FORBID, **fields)

    request = make("Request", key | {"features": (make("Features", every), None)})
    merged = make("MergeRequest", key | {"features": (make("SomeFeatures", some), None)})
    flat = make("Instance", maybe | some)
    answer = answer_fields(spec)
    nullable: dict[str, Any] = {name: (kind | None, ...) for name, (kind, _) in key.items()}
    rest = {name: field for name, field in answer.items() if name != "probability"}
    return Schemas(
        one={False: TypeAdapter(request), True: TypeAdapter(merged)},
        many={
            False: TypeAdapter(fast(rows_of(request))),
            True: TypeAdapter(fast(rows_of(merged))),
        },
        flat=fast(rows_of(flat)),
        instances=rows_of(make("Key", key) | make("Row", maybe | every)),
        scored=make("Score", nullable | {"score": (float, ...)} | rest),
        request=request,
        answer=make("Answer", key | answer),
    )
