"""Definitions of other projects' resources, made of the schemas that `tests/kubernetes` keeps."""

import json
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).parents[2] / "kubernetes"


def definition(kind: str, group: str, version: str, plural: str) -> dict[str, Any]:
    """Return a CustomResourceDefinition of a JSON schema.

    Args:
        kind: Of the resource, as `InferenceService`; its schema is in a file of that name.
        group: Of the API, as `serving.kserve.io`.
        version: Of the API, as `v1beta1`.
        plural: The name of the resource, as `inferenceservices`.

    Returns:
        The object; a field that the schema does not have is refused by strict validation.

    """
    file = SCHEMAS / f"{kind.lower()}.schema.json"
    schema = _structural(json.loads(file.read_text()))
    properties = schema["properties"]
    properties["metadata"] = {"type": "object"}
    properties["status"] = _free_object()
    served = {
        "name": version,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    names = {"kind": kind, "plural": plural, "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": names,
            "versions": [served],
        },
    }


def _structural(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what a definition allows of a schema.

    It allows no constant and no list of types. `additionalProperties: false` is what strict validation
    does anyway.
    """
    if isinstance(schema.get("type"), list):
        return {"x-kubernetes-int-or-string": True}
    if "const" in schema:
        return {"type": "string", "enum": [schema["const"]]}
    kept = {key: value for key, value in schema.items() if not key.startswith("$")}
    if kept.get("additionalProperties") is False:
        del kept["additionalProperties"]
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _structural(kept[key])
    if "properties" in kept:
        properties = kept["properties"]
        kept["properties"] = {
            name: _structural(properties[name]) for name in properties
        }
    elif kept.get("type") == "object" and "additionalProperties" not in kept:
        return _free_object()
    return kept


def _free_object() -> dict[str, Any]:
    return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
