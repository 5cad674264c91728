"""What clients may send and what they get, built from a spec. Strict: no type is guessed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, FailFast, Field, TypeAdapter, create_model

from core.json_types import Float32, Int32, Int64, Timestamp
from core.spec import FLOAT32, FeatureType, ModelSpec

MAX_ROWS = 10_000
Double = Annotated[
    float, Field(strict=True, allow_inf_nan=False, ge=-FLOAT32, le=FLOAT32)
]
Text = Annotated[str, Field(strict=True)]
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
ANSWER: dict[str, Any] = {
    "prediction": float,
    "probability": float,
    "model_version": str,
    "request_id": str,
    "features_from": Literal[
        "request", "online", "partly", "merged", "cache", "defaults"
    ],
    "in_population": bool,
    "logged": bool,
}
"""Of an answer, behind the key."""


class Contribution(BaseModel):
    value: bool | float | str | None
    contribution: float


class Feedback(BaseModel):
    """Of any prediction, where numbers are predicted too: a line of feedback names no model."""

    model_config = FORBID
    request_id: Annotated[str, Field(strict=True, pattern=r"^[0-9A-Za-z-]{1,64}$")]
    actual: Annotated[float, Field(strict=True, allow_inf_nan=False)]


class ClassFeedback(Feedback):
    actual: Annotated[float, Field(strict=True, ge=0, le=1, multiple_of=1)]


class NameFeedback(Feedback):
    """Of any prediction, where there are models of many classes: also a class's name."""

    actual: Annotated[float, Field(strict=True, allow_inf_nan=False)] | Text  # type: ignore[assignment]


@dataclass(frozen=True)
class Schemas:
    """one, many: what reads a body, by whether it is to be merged: then with any features, else all
    or none. flat: rows with the key, the features or both by name. The rest is for /docs.
    """

    one: dict[bool, type[BaseModel]]
    many: dict[bool, TypeAdapter[Any]]
    flat: TypeAdapter[Any]
    request: Any
    instance: Any
    answer: Any
    explained: Any
    scored: Any


def rows_of(item: Any) -> Any:
    return Annotated[list[item], Len(1, MAX_ROWS)]


def fast(rows: Any) -> Any:
    """The first bad row ends the check. Has no hash: not for /docs."""
    return Annotated[rows, FailFast()]


def feedback_schema(specs: Sequence[ModelSpec]) -> type[Feedback]:
    if any(spec.classes for spec in specs):
        return NameFeedback
    classes = all(spec.task == "classification" for spec in specs)
    return ClassFeedback if classes else Feedback


def build_schemas(
    spec: ModelSpec,
    nullable: Collection[str],
    data: Mapping[str, FeatureType],
    needed: Collection[str],
) -> Schemas:
    """nullable: features that may be null, as they were in training.

    data: types of the request data; needed: of it where features are looked up.
    """
    title = "".join(part.capitalize() for part in spec.name.split("_"))

    def make(name: str, fields: dict[str, Any]) -> type[BaseModel]:
        return create_model(title + name, __config__=FORBID, **fields)

    key, every, given = _typed(spec.entity_key), _typed(spec.features), _typed(data)
    every |= {name: kind | None for name, kind in every.items() if name in nullable}
    any_data = _optional(given)
    all_data = any_data | {name: kind for name, kind in given.items() if name in needed}
    whole, some = make("Features", every), make("SomeFeatures", _optional(every))
    one = {
        False: make("Request", key | any_data | {"features": (whole, None)}),
        True: make("MergeRequest", key | any_data | {"features": (some, None)}),
    }
    shown: Any = one[False]
    if all_data != any_data:
        shown = make("LookUp", key | all_data | {"features": (whole, None)})
        shown |= make("Given", key | any_data | {"features": whole})
    flat = make("Instance", _optional(key) | any_data | _optional(every))
    answer, scored = _answered(spec)
    return Schemas(
        one=one,
        many={merge: TypeAdapter(fast(rows_of(row))) for merge, row in one.items()},
        flat=TypeAdapter(fast(rows_of(flat))),
        request=shown,
        instance=make("Key", key | all_data)
        | make("Row", _optional(key) | any_data | every),
        answer=make("Answer", key | answer),
        explained=make("Explanation", key | _explained(spec, answer)),
        scored=make(
            "Score", {name: kind | None for name, kind in key.items()} | scored
        ),
    )


def _explained(spec: ModelSpec, answer: Mapping[str, Any]) -> dict[str, Any]:
    example = {next(iter(spec.features)): {"value": 7, "contribution": 0.31}}
    parts = (dict[str, Contribution], Field(examples=[example]))
    said = {
        name: kind
        for name, kind in answer.items()
        if name not in {"request_id", "logged"}
    }
    return said | {"model": str, "expected": float, "contributions": parts}


def _typed(fields: Mapping[str, FeatureType]) -> dict[str, Any]:
    return {name: TYPES[kind] for name, kind in fields.items()}


def _optional(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: (kind, None) for name, kind in fields.items()}


def _answered(spec: ModelSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what follows the key in an answer, and in a score of the other protocols."""
    # A number that is predicted has no probability.
    number = {name: kind for name, kind in ANSWER.items() if name != "probability"}
    if spec.task == "regression":
        return number, {"score": float} | number
    if spec.task == "classification":
        return ANSWER, {"score": float} | number
    classes = {"prediction": str, "probabilities": dict[str, float]}
    return ANSWER | classes, {"score": list[float]} | number | {"prediction": str}
