"""feature_repo/feature_store.yaml for one stack: its registry, its stores."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from core.files import replace_file
from core.settings import PROJECT, Settings


def feast_config(settings: Settings, deadline: float) -> dict[str, Any]:
    """Return the file's content for this stack; every call of its Redis ends in `deadline` s."""
    shipped = (PROJECT / "feature_repo" / "feature_store.yaml").read_text()
    config: dict[str, Any] = yaml.safe_load(shipped)
    if address := settings.schema_url("feast"):
        config["registry"].pop("registry_store_type", None)
        config["registry"] |= {"registry_type": "sql", "path": address}
    else:
        config["registry"]["path"] = str(settings.home / "feast" / "registry.db")
    config["offline_store"]["cache"] = str(settings.cache)
    if settings.engine == "spark":
        store = "feature_repo.extensions.spark.SparkOfflineStore"
        config["offline_store"] |= {"type": store, "master": settings.spark_master}
    if settings.online_store:
        texts = settings.online_store.items()
        config["online_store"] = {name: yaml.safe_load(text) for name, text in texts}
    elif "connection_string" in config["online_store"]:
        config["online_store"]["connection_string"] = feast_connection(settings, deadline)
    return config


def feast_connection(settings: Settings, deadline: float) -> str:
    """`redis_address` in the form of Feast's Redis store; every call ends in `deadline` s."""
    url = urlsplit(settings.redis_address)
    parts = [f"{url.hostname}:{url.port or 6379}", f"db={url.path.lstrip('/') or 0}"]
    parts += [f"socket_timeout={deadline}", f"socket_connect_timeout={deadline}"]
    if url.scheme == "rediss":
        parts.append("ssl=true")
    if url.username:
        parts.append(f"username={unquote(url.username)}")
    if url.password:
        parts.append(f"password={unquote(url.password)}")
    return ",".join(parts)


def feast_config_path(settings: Settings) -> Path:
    return settings.home / "feature_store.yaml"


def write_feast_config(settings: Settings) -> None:
    """Write the file for Feast's own commands."""
    (settings.home / "feast").mkdir(parents=True, exist_ok=True)
    # For its owner alone: an address may hold a password.
    content = yaml.safe_dump(feast_config(settings, 5.0))
    replace_file(feast_config_path(settings), content, mode=0o600)
