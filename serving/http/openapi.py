"""How a route that reads its body itself is described: by types and by an example."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from starlette.routing import Route

from core.spec import FeatureType
from serving.versions.loaded import LoadedVersions

EXAMPLES: dict[FeatureType, Any] = {
    "int32": 1,
    "int64": 1,
    "float32": 1.0,
    "double": 1.0,
    "bool": True,
    "timestamp": "2026-01-01T00:00:00Z",
    "string": "a",
}
OBJECT = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Document:
    """Bodies of a route.

    Attributes:
        body: Type of a request's body.
        example: A body that is accepted as it stands.
        answer: Type of an answer's body.

    """

    body: TypeAdapter[Any]
    example: Any
    answer: TypeAdapter[Any] = OBJECT


@dataclass(frozen=True)
class Operation:
    """A POST route to describe.

    Attributes:
        path: Path of the route, with at most one parameter.
        names: Values of the parameter.
        tag: Group of the route in the documentation.
        function: Its name and its docstring say what the route does.
        document: Bodies of the route.
        status: Status of an answer.

    """

    path: str
    names: Sequence[str]
    tag: str
    function: Callable[..., Any]
    document: Document
    status: int = 200


class DescribedRoute(Route):
    """A route that FastAPI does not describe, as it reads its body itself."""

    async def describe(self) -> Operation | None:
        """Return the description of the route; None: nobody can call it now."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connections of the route."""


def example_features(model: LoadedVersions) -> dict[str, Any]:
    """Return features that the version that answers can score: its defaults."""
    current = model.current
    defaults = current.contract.defaults if current else {}
    example = {}
    for name, kind in model.signature.features.items():
        example[name] = EXAMPLES[kind]
        if kind not in {"bool", "timestamp"}:  # which a version keeps as numbers
            example[name] = defaults.get(name, EXAMPLES[kind])
    return example
