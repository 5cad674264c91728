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
    "prediction": (float, ...),
    "probability": (float, ...),
    "model_version": (str, ...),
    "request_id": (str, ...),
    "features_from": (Literal["request", "online", "merged", "cache", "defaults"], ...),
    "in_population": (bool, ...),
    "logged": (bool, ...),
}
IN_LOG = {"model_version": "version"}
"""A name of an answer that is another in the log."""
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
    """The types of one model. A row has all features; to merge, any.

    one, many, flat: read a body; flat: rows that bring the key, the features or both by name.
    The rest is what /docs show: `instances` of `flat`, with features all or none; `scored` is an
    answer with `score` for the probability.
    """

    one: dict[bool, TypeAdapter[Any]]
    many: dict[bool, TypeAdapter[Any]]
    flat: TypeAdapter[Any]
    title: str
    nobody: dict[str, None]
    """The key of a row without one."""
    fields: tuple[tuple[str, str], ...]
    """Names of an answer's fields behind the key, here and in the log."""
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
    return create_model("Feedback", __base__=Feedback, actual=(OUTCOMES[classes], ...))


def build_schemas(spec: ModelSpec, nullable: frozenset[str] = frozenset()) -> Schemas:
    """nullable: features that may be null, as they were in training."""
    title = "".join(part.capitalize() for part in spec.name.split("_"))

    def make(name: str, fields: dict[str, Any]) -> Any:
        return create_model(title + name, __config__=FORBID, **fields)

    def optional(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: (kind, None) for name, (kind, _) in fields.items()}

    every: dict[str, Any] = {
        name: (TYPES[kind] | None if name in nullable else TYPES[kind], ...)
        for name, kind in spec.features.items()
    }
    key: dict[str, Any] = {name: (TYPES[kind], ...) for name, kind in spec.entity_key.items()}
    request = make("Request", key | {"features": (make("Features", every), None)})
    some = make("SomeFeatures", optional(every))
    merged = make("MergeRequest", key | {"features": (some, None)})
    flat = make("Instance", optional(key) | optional(every))
    # A number that is predicted has no probability.
    lacking = "probability" if spec.task == "regression" else None
    answer = {name: kind for name, kind in ANSWER.items() if name != lacking}
    rest = {name: kind for name, kind in answer.items() if name != "probability"}
    nullable_key: dict[str, Any] = {name: (kind | None, ...) for name, (kind, _) in key.items()}
    return Schemas(
        one={False: TypeAdapter(request), True: TypeAdapter(merged)},
        many={
            False: TypeAdapter(fast(rows_of(request))),
            True: TypeAdapter(fast(rows_of(merged))),
        },
        flat=TypeAdapter(fast(rows_of(flat))),
        title=title,
        nobody=dict.fromkeys(spec.entity_key),
        fields=tuple((name, IN_LOG.get(name, name)) for name in answer),
        request=request,
        instances=rows_of(make("Key", key) | make("Row", optional(key) | every)),
        answer=make("Answer", key | answer),
        scored=make("Score", nullable_key | {"score": (float, ...)} | rest),
    )
