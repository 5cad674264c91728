"""feature_store.yaml of an installation: its registry, its stores, the places of its views."""

import json
from pathlib import Path
from typing import Any

import yaml
from redis.connection import parse_url

from core.files import replace_file
from core.settings import PROJECT, Settings

VIEWS_FOLDER = "features"
"""Folder of the data that holds the Delta table of each feature view."""
COMMAND_TIMEOUT_SECONDS = 5.0
"""How long Feast's own commands wait for Redis."""


def feast_config(settings: Settings, timeout: float) -> dict[str, Any]:
    """Return the content of the file for an installation.

    Args:
        settings: Settings of the installation.
        timeout: Seconds that Redis may take for a call.

    """
    content = (PROJECT / "feature_repo" / "feature_store.yaml").read_text()
    config: dict[str, Any] = yaml.safe_load(content)
    registry_address = f"sqlite:///{registry_path(settings)}?timeout=30"
    config["registry"]["path"] = settings.schema_url("feast") or registry_address
    config["offline_store"]["cache"] = str(settings.cache)
    if settings.engine == "spark":
        config["offline_store"]["spark_master"] = settings.spark_master
        config["offline_store"]["scratch"] = str(settings.scratch)
    if settings.online_store:
        options = settings.online_store.items()
        config["online_store"] = {name: yaml.safe_load(text) for name, text in options}
    elif "connection_string" in config["online_store"]:
        config["online_store"]["connection_string"] = feast_connection(
            settings, timeout
        )
    return config


def feast_connection(settings: Settings, timeout: float) -> str:
    """Return `redis_address` in the form of Feast's Redis store.

    Args:
        settings: Settings of the installation.
        timeout: Seconds that Redis may take for a call.

    """
    options: dict[str, Any] = parse_url(settings.redis_address)  # type: ignore[no-untyped-call]
    address = f"{options.pop('host')}:{options.pop('port', 6379)}"
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    options["socket_timeout"] = timeout
    options["socket_connect_timeout"] = timeout
    parts = [f"{name}={_as_json(value)}" for name, value in options.items()]
    return ",".join([address, *parts])


def _as_json(value: Any) -> str:
    """Write a value as JSON without a comma or a dollar sign.

    Feast splits the connection at commas, reads its values as JSON, and expands $NAME in its file.
    """
    return json.dumps(value).replace(",", r"\u002c").replace("$", r"\u0024")


def view_address(settings: Settings, view: str) -> str:
    """Return the address of the table of a feature view: a folder, or `s3://…`."""
    return str(settings.data / VIEWS_FOLDER / view)


def registry_path(settings: Settings) -> Path:
    """Return the file of Feast's registry; without a PostgreSQL it holds the registry."""
    return settings.home / "feast" / "registry.db"


def feast_config_path(settings: Settings) -> Path:
    """Return the path of the file, which FEAST_FS_YAML_FILE_PATH names for Feast's commands."""
    return settings.home / "feature_store.yaml"


def write_feast_config(settings: Settings) -> None:
    """Write the file for Feast's own commands.

    Only its owner can read it, as an address may hold a password.
    """
    registry_path(settings).parent.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_dump(feast_config(settings, COMMAND_TIMEOUT_SECONDS))
    replace_file(feast_config_path(settings), content, mode=0o600)
