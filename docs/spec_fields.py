"""The page of a spec's fields, from its JSON Schema and the comments in the source."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

from core.project import CLONE
from core.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}
KINDS = {
    "number": "number",
    "integer": "whole number",
    "string": "text",
    "boolean": "true, false",
}
HEAD = """# Fields of a spec

This is all that `models/NAME.toml` may hold. [The guide](../use-case-reference.md#the-spec) says
how to choose. `gyre check NAME` says what is wrong with a file.
"""


def spec() -> str:
    """Return a table of each part of a spec, in the order in which the parts are named."""
    schema = ModelSpec.model_json_schema()
    meanings = dict(_meanings())
    page = HEAD
    for name in dict.fromkeys(["ModelSpec", *_parts(schema, schema["$defs"])]):
        part = schema["$defs"].get(name, schema)
        page += f"\n## {name}\n\n{part['description']}\n\n"
        page += "| field | values | default | meaning |\n|---|---|---|---|\n"
        for field, values in part["properties"].items():
            default = (
                "required" if field in part.get("required", ()) else _default(values)
            )
            meaning = meanings.get((name, field), "")
            page += f"| `{field}` | {_values(values)} | {default} | {meaning} |\n"
    return page


def _parts(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    """Yield the definitions that `part` names, each followed by those that it names."""
    for field in part["properties"].values():
        for piece in json.dumps(field).split('"#/$defs/')[1:]:
            name = piece.partition('"')[0]
            yield name
            yield from _parts(definitions[name], definitions)


def _default(values: Mapping[str, Any]) -> str:
    """A part has its own table, with its own defaults."""
    default = values.get("default")
    return (
        ""
        if default is None or isinstance(default, dict)
        else f"`{json.dumps(default)}`"
    )


def _values(schema: Mapping[str, Any]) -> str:
    """Return in words what a JSON Schema takes."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if several := schema.get("anyOf", schema.get("oneOf")):
        return ", or ".join(
            _values(each) for each in several if each.get("type") != "null"
        )
    if "enum" in schema or "const" in schema:
        return ", ".join(
            f"`{value}`" for value in schema.get("enum", [schema.get("const")])
        )
    if schema["type"] == "array":
        return f"a list of: {_values(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"a table, each value: {_values(schema['additionalProperties'])}"
    bounds = ", ".join(
        f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema
    )
    return f"{KINDS.get(schema['type'], 'a table')} {bounds}".strip()


def _meanings() -> Iterator[tuple[tuple[str, str], str]]:
    """Yield class and field, with the comment behind the field and the text below it."""
    for file in (CLONE / "core" / "spec").glob("*.py"):
        source = file.read_text("utf-8")
        lines = source.splitlines()
        classes = (
            node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)
        )
        for part in classes:
            for node, after in zip(part.body, [*part.body[1:], None], strict=True):
                if isinstance(node, ast.AnnAssign):
                    comment = lines[(node.end_lineno or node.lineno) - 1].partition(
                        "  # "
                    )[2]
                    meaning = " ".join(f"{comment} {_text(after)}".split())
                    name = ast.unparse(node.target).rstrip("_")
                    yield (part.name, name), meaning


def _text(node: ast.stmt | None) -> str:
    text = node.value if isinstance(node, ast.Expr) else None
    return str(text.value) if isinstance(text, ast.Constant) else ""
