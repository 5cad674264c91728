"""feature_store.yaml of an installation: its registry, its stores, the places of its views.

With GYRE_FEAST_REPO it is the file of a team's own repository, which is not changed.
"""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml
from redis.connection import parse_url

from core.files import replace_file
from core.project import CLONE, PROJECT, STORE, is_own_store
from core.settings import Settings

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
    if settings.feast_repo:
        # As Feast reads it, which expands $NAME.
        content = os.path.expandvars(feast_config_path(settings).read_text())
        return dict[str, Any](yaml.safe_load(content))
    config: dict[str, Any] = yaml.safe_load(store_file().read_text())
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


def store_file() -> Path:
    """Return Gyre's `feature_store.yaml`: of the clone, if that of the project is a team's."""
    file = PROJECT / STORE
    return file if is_own_store(file) and file.is_file() else CLONE / STORE


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


def online_store_type(settings: Settings) -> str:
    """Return the type of the online store, as feature_store.yaml names it."""
    store = feast_config(settings, COMMAND_TIMEOUT_SECONDS).get("online_store")
    return str(store["type"] if isinstance(store, dict) else store or "sqlite")


def online_redis(settings: Settings) -> str:
    """Return the address of the Redis that is the online store, with its password.

    Where another store is the online store, it is the Redis of the installation.
    """
    if settings.feast_repo is None or online_store_type(settings) != "redis":
        return settings.redis_address
    store = feast_config(settings, COMMAND_TIMEOUT_SECONDS).get("online_store")
    connection = "localhost:6379"  # Feast's default
    if isinstance(store, dict):
        connection = str(store.get("connection_string", connection))
    host, *parts = connection.split(",")
    # As Feast's Redis store reads them: a value is JSON, or else a text.
    options: dict[str, Any] = {}
    for part in parts:
        name, _, text = part.partition("=")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    user = quote(str(options.pop("username", "")), safe="")
    password = quote(str(options.pop("password", "")), safe="")
    login = f"{user}:{password}@" if user or password else ""
    scheme = "rediss" if options.pop("ssl", False) else "redis"
    database = options.pop("db", 0)
    rest = {name: value for name, value in options.items() if name.startswith("ssl_")}
    return f"{scheme}://{login}{host}/{database}?{urlencode(rest)}".rstrip("?")


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
    return (settings.feast_repo or settings.home) / "feature_store.yaml"


def write_feast_config(settings: Settings) -> None:
    """Write the file for Feast's own commands; a team's repository has one already.

    Only its owner can read it, as an address may hold a password.
    """
    if settings.feast_repo:
        return
    registry_path(settings).parent.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_dump(feast_config(settings, COMMAND_TIMEOUT_SECONDS))
    replace_file(feast_config_path(settings), content, mode=0o600)
