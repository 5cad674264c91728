"""The page of serving's routes, from the OpenAPI document of a real worker without a stack."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx

from core.settings import Settings
from serving.app import create_app

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NOBODY = "127.0.0.1:9"
"""Where neither MLflow nor Redis answers."""
STATUS_TEXTS = {
    401: "Tokens are set, and none of them was sent.",
    404: "No stored view knows the entity, or there is no such model.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The field that is wrong is named.",
    429: "Too many requests wait: try again after `Retry-After` seconds.",
    503: "No model; features are missing and the spec says refuse; the broker is away or full.",
}
HEAD = """# Routes of serving

They are those of the OpenAPI document, which serving shows at `/docs`. Fields are those of the
shipped model. `{name}` is the name of a model.
[Serving](../serving.md) says how the protocols differ. Bodies and answers are JSON.

An answer other than 200 or 202 says why. Instead of 422, KServe, Open Inference and MLflow say 400.

| status | when |
|---|---|
"""


def routes() -> str:
    """Return a table of routes for each tag. Routes that differ in their path alone share a row."""
    logging.disable(
        logging.CRITICAL
    )  # the worker says that it finds no MLflow and no Redis
    document = asyncio.run(_document())
    page = HEAD + "".join(
        f"| {status} | {why} |\n" for status, why in STATUS_TEXTS.items()
    )
    tags = defaultdict[str, dict[tuple[str, ...], list[str]]](lambda: defaultdict(list))
    for route, operation in _operations(document):
        body = _fields(document, operation.get("requestBody", {}))
        answer = _fields(document, next(iter(operation["responses"].values())))
        tags[operation["tags"][0]][operation["description"], body, answer].append(
            f"`{route}`"
        )
    for tag, rows in tags.items():
        page += f"\n## {tag}\n\n| route | does | body | answer |\n|---|---|---|---|\n"
        page += "".join(
            f"| {' '.join(paths)} | {' | '.join(row)} |\n"
            for row, paths in rows.items()
        )
    return page


async def _document() -> dict[str, Any]:
    with TemporaryDirectory() as home:
        own = ("data_url", "default_model", "serving_tokens_file")
        settings: dict[str, Any] = dict.fromkeys(own)
        settings |= {"mlflow_url": f"http://{NOBODY}", "redis_url": f"redis://{NOBODY}"}
        app = create_app(Settings(home=Path(home), **settings))
        transport = httpx.ASGITransport(app)
        async with (
            app.app.router.lifespan_context(app.app),
            httpx.AsyncClient(
                transport=transport, base_url="http://localhost"
            ) as client,
        ):
            document: dict[str, Any] = (await client.get("/openapi.json")).json()
        return document


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each method and path with its operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def _fields(document: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """Return the fields of a body or an answer; nothing where the document has no schema."""
    schema = part.get("content", {}).get("application/json", {}).get("schema")
    return _text(document, schema) if schema else ""


def _text(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "items" in schema:
        return f"a list of these: {_text(document, schema['items'])}"
    if several := schema.get("anyOf", schema.get("oneOf")):
        return ", or ".join(dict.fromkeys(_text(document, each) for each in several))
    return (
        ", ".join(f"`{name}`" for name in schema.get("properties", ())) or "an object"
    )
