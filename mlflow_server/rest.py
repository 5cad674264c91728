"""MLflow's REST API by plain HTTP: MLflow takes 2 s to import, and 150 MB."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from core.errors import RegistryError
from core.settings import Settings
from mlflow_server.roles import ROLES
from mlflow_server.version_tags import unpacked

TIMEOUT_SECONDS = 5
TLS = httpx.create_ssl_context()
"""Of all calls: to make one takes 20 ms."""


@dataclass(frozen=True)
class Version:
    """One registered version; `version` is MLflow's number as text."""

    model: str
    version: str
    run_id: str
    tags: dict[str, str]


def call_mlflow(
    settings: Settings,
    call: str,
    body: dict[str, Any] | None = None,
    **query: str,
) -> dict[str, Any]:
    """Return MLflow's answer, to a POST if there is a body; empty of what does not exist.

    Raises:
        RegistryError: MLflow does not answer, or refuses.

    """
    try:
        answer = httpx.request(
            "POST" if body else "GET",
            f"{settings.mlflow_address}/api/2.0/mlflow/{call}",
            json=body,
            params=query,
            timeout=TIMEOUT_SECONDS,
            verify=TLS,
        )
        if answer.status_code == HTTPStatus.NOT_FOUND and "error_code" in answer.json():
            return {}
        content: dict[str, Any] = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as exc:
        line = str(exc).partition("\n")[0]
        raise RegistryError(
            f"MLflow does not answer (is it up?): {call}: {line}"
        ) from exc
    return content


def versions_in_roles(settings: Settings) -> list[tuple[str, Version]]:
    """Return each role of each model that is taken, with the version."""
    answer = call_mlflow(settings, "registered-models/search", max_results="1000")
    pairs: list[tuple[str, Version]] = []
    for model in answer.get("registered_models", []):
        for alias in model.get("aliases", []):
            role = alias["alias"]
            if role in ROLES:
                number = str(alias["version"])
                version = _version(settings, model["name"], number)
                pairs.append((role, version))
    return pairs


def _version(settings: Settings, model: str, number: str) -> Version:
    answer = call_mlflow(settings, "model-versions/get", name=model, version=number)
    version = answer.get("model_version", {})  # empty: it was deleted meanwhile
    tags = {tag["key"]: tag["value"] for tag in version.get("tags", [])}
    return Version(model, number, version.get("run_id", ""), unpacked(tags))


def tag_version(settings: Settings, version: Version, name: str, value: str) -> None:
    """Set a tag beside those that the version was registered with."""
    body = {
        "name": version.model,
        "version": version.version,
        "key": name,
        "value": value,
    }
    call_mlflow(settings, "model-versions/set-tag", body)
