"""The page of serving's routes, from the OpenAPI document of a real worker without a stack."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from core.settings import Settings
from core.spec import load_specs
from serving.app import create_app
from serving.openapi import WHY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NOBODY = "127.0.0.1:9"
"""Where neither MLflow nor Redis answers."""
HEAD = """# Routes of serving

They are those of the OpenAPI document, which serving shows at `/docs`. Fields are those of the
shipped model. `{name}` is the name of a model, or one of its `served_as`.
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
    page = HEAD + "".join(f"| {status} | {why} |\n" for status, why in WHY.items())
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
        app = create_app(Settings(home=Path(home), **settings)).app
        async with app.router.lifespan_context(app):
            return app.openapi()


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each method and path with its operation; of a model's names the first one alone."""
    first = {spec.name for spec in load_specs()}
    others = {name for spec in load_specs() for name in spec.served_as}
    for path, methods in document["paths"].items():
        parts = re.split("([/:])", path)
        if others.isdisjoint(parts):
            general = "".join("{name}" if part in first else part for part in parts)
            for method, operation in methods.items():
                yield f"{method.upper()} {general}", operation


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
