"""The routes of MLflow that change which version is in a role, and the ledger's rows about them."""

from collections.abc import Mapping
from typing import Any

from core.settings import Settings
from mlflow_server.promotion.by_hand import (
    write_down,
    write_down_removal,
    write_down_traffic,
)
from mlflow_server.roles import ROLES, TRAFFIC_TAG

SET_ALIAS = "POST 2.0/mlflow/registered-models/alias"
DELETE_ALIAS = "DELETE 2.0/mlflow/registered-models/alias"
SET_TAG = "POST 2.0/mlflow/registered-models/set-tag"
DELETE_TAG = "DELETE 2.0/mlflow/registered-models/delete-tag"
DELETE_VERSION = "DELETE 2.0/mlflow/model-versions/delete"
DELETE_MODEL = "DELETE 2.0/mlflow/registered-models/delete"
RENAME_MODEL = "POST 2.0/mlflow/registered-models/rename"
CHANGING = frozenset(
    {
        SET_ALIAS,
        DELETE_ALIAS,
        SET_TAG,
        DELETE_TAG,
        DELETE_VERSION,
        DELETE_MODEL,
        RENAME_MODEL,
    }
)
"""Names of the routes, as SERVED has them. Stages are in mlflow_server/server/stages.py."""


def record_change(
    settings: Settings, route: str, body: Mapping[str, Any], author: str
) -> None:
    """Write a change of a role that MLflow has just made into the ledger, unless Gyre made it.

    Args:
        settings: Settings of the installation.
        route: One of CHANGING.
        body: JSON document of the request.
        author: Author of the change.

    Raises:
        RegistryError: MLflow or the database does not answer.

    """
    model = settings.own_name(body["name"])
    if route == RENAME_MODEL:
        new_name = body["new_name"] if "new_name" in body else body["newName"]
        new_model = settings.own_name(new_name)
        if new_model is not None:
            write_down(settings, new_model, None, author)
    if model is None:
        return
    if route == SET_ALIAS:
        # MLflow takes "01" and "+1" for 1, too.
        version = str(int(body["version"]))
        write_down(settings, model, {body["alias"]: version}, author)
    elif route == DELETE_ALIAS:
        write_down(settings, model, {body["alias"]: None}, author)
    elif route == DELETE_VERSION:
        write_down(settings, model, dict.fromkeys(ROLES), author)
    elif route in {DELETE_MODEL, RENAME_MODEL}:
        write_down_removal(settings, model, author)
    elif body["key"] == TRAFFIC_TAG:
        traffic = body.get("value") if route == SET_TAG else None
        write_down_traffic(settings, model, traffic, author)
