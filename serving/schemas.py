"""What clients may send and what they get, built from a spec. Strict: no type is guessed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, FailFast, Field, TypeAdapter, create_model

from stack.json_types import Int64
from stack.spec import FLOAT32, ModelSpec

MAX_ROWS = 10_000
Double = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-FLOAT32, le=FLOAT32)]
Text = Annotated[str, Field(strict=True)]
TYPES: dict[str, Any] = {"int64": Int64, "double": Double, "string": Text}
FORBID = ConfigDict(extra="forbid", protected_namespaces=())
ANSWER: dict[str, Any] = {
    "prediction": float,
    "probability": float,
    "model_version": str,
    "request_id": str,
    "features_from": Literal["request", "online", "merged", "cache", "defaults"],
    "in_population": bool,
    "logged": bool,
}
"""Fields of an answer behind the key."""
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
    """The types of one model.

    one, many: what reads a body, by whether it is to be merged: then a row has any features, else
    all or none. flat: rows that bring the key, the features or both by name. The rest is what /docs
    show: `instances` of `flat`; `scored` is an answer with `score` for the probability.
    """

    one: dict[bool, type[BaseModel]]
    many: dict[bool, TypeAdapter[Any]]
    flat: TypeAdapter[Any]
    title: str
    request: Any
    instances: Any
    answer: Any
    scored: Any


def rows_of(item: Any) -> Any:
    """Type of a list of `item`."""
    return Annotated[list[item], Len(1, MAX_ROWS)]


def fast(rows: Any) -> Any:
    """Type of `rows` whose first bad row ends the check."""
    return Annotated[rows, FailFast()]


def feedback_schema(specs: Sequence[ModelSpec]) -> type[Feedback]:
    """A line of feedback where `specs` are served."""
    classes = all(spec.task == "classification" for spec in specs)
    return create_model("Feedback", __base__=Feedback, actual=OUTCOMES[classes])


def build_schemas(spec: ModelSpec, nullable: frozenset[str] = frozenset()) -> Schemas:
    """nullable: features that may be null, as they were in training."""
    title = "".join(part.capitalize() for part in spec.name.split("_"))

    def make(name: str, fields: dict[str, Any]) -> type[BaseModel]:
        return create_model(title + name, __config__=FORBID, **fields)

    def optional(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: (kind, None) for name, kind in fields.items()}

    key = {name: TYPES[kind] for name, kind in spec.entity_key.items()}
    every = {
        name: TYPES[kind] | None if name in nullable else TYPES[kind]
        for name, kind in spec.features.items()
    }
    some = make("SomeFeatures", optional(every))
    one = {
        False: make("Request", key | {"features": (make("Features", every), None)}),
        True: make("MergeRequest", key | {"features": (some, None)}),
    }
    flat = make("Instance", optional(key) | optional(every))
    # A number that is predicted has no probability.
    number = {name: kind for name, kind in ANSWER.items() if name != "probability"}
    nullable_key = {name: kind | None for name, kind in key.items()}
    return Schemas(
        one=one,
        many={merge: TypeAdapter(fast(rows_of(row))) for merge, row in one.items()},
        flat=TypeAdapter(fast(rows_of(flat))),
        title=title,
        request=one[False],
        instances=rows_of(make("Key", key) | make("Row", optional(key) | every)),
        answer=make("Answer", key | (number if spec.task == "regression" else ANSWER)),
        scored=make("Score", nullable_key | {"score": float} | number),
    )
