"""What the stack's processes find in their environment: one place that knows every tool's names."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stack.errors import StackError
from stack.settings import LOOPBACK, PROJECT

if TYPE_CHECKING:
    from stack.settings import Settings

FEAST_CONFIG = PROJECT / "feature_repo" / "feature_store.yaml"
LOGIN = "admin"
_SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
_QUIET = {
    "DO_NOT_TRACK": "1",
    "FEAST_USAGE": "False",
    "GX_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "SPT_NOENV": "1",  # process titles must not overwrite the environment that `down` reads
}


def child_environment(settings: Settings) -> dict[str, str]:
    """Return what any process or shell needs to work with this stack; no secrets of ours."""
    home = settings.home
    set_here = {name: value for name, value in os.environ.items() if name.startswith("GYRE_")}
    set_here.pop("GYRE_STACK", None)
    ports = {
        f"GYRE_{name.upper()}": str(getattr(settings, name))
        for name in ("serving_port", "mlflow_port", "airflow_port", "redis_port")
    }
    return {
        **set_here,
        **ports,
        **_QUIET,
        "GYRE_HOME": str(home),
        "FEAST_FS_YAML_FILE_PATH": str(home / "feature_store.yaml"),
        "MLFLOW_TRACKING_URI": settings.mlflow_address,
        "AIRFLOW_HOME": str(home / "airflow"),
        "PYTHONPYCACHEPREFIX": str(home / "pycache"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "MPLBACKEND": "agg",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": os.environ.get("HOME") or str(home),
    }


def process_environment(settings: Settings) -> dict[str, str]:
    """Return `child_environment` on top of this process's own, without what would hinder it."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONPATH"}
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    return inherited | child_environment(settings)


def airflow_environment(settings: Settings) -> dict[str, str]:
    """Airflow's configuration (for why each is here see DECISIONS.md); holds its secrets."""
    folder, key = settings.home / "airflow", load_secrets(settings)
    base = settings.airflow_address
    options = {
        "CORE": {
            "LOAD_EXAMPLES": "False",
            "EXECUTOR": "LocalExecutor",
            "PARALLELISM": "2",
            "DAGS_FOLDER": str(PROJECT / "dags"),
            "PLUGINS_FOLDER": str(PROJECT / "dags" / "plugins"),
            "DAGS_ARE_PAUSED_AT_CREATION": "False",
            "FERNET_KEY": key["fernet"],
            "MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "1",
            "AUTH_MANAGER": _SIMPLE,
            "SIMPLE_AUTH_MANAGER_USERS": f"{LOGIN}:admin",
            "SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
            "EXECUTION_API_SERVER_URL": f"{base}/execution/",
        },
        "API": {
            "HOST": LOOPBACK,
            "PORT": str(settings.airflow_port),
            "BASE_URL": base,
            "WORKERS": "1",
            "SECRET_KEY": key["api"],
        },
        "API_AUTH": {"JWT_SECRET": key["jwt"]},
        "DATABASE": {"SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}?timeout=30"},
        "WORKERS": {"MIN_HEARTBEAT_INTERVAL": "1", "EXECUTION_API_TIMEOUT": "30"},
        "SCHEDULER": {"SCHEDULER_IDLE_SLEEP_TIME": "0.5", "ORPHANED_TASKS_CHECK_INTERVAL": "30"},
        "DAG_PROCESSOR": {
            "PARSING_PROCESSES": "1",
            "REFRESH_INTERVAL": "5",
            "BUNDLE_REFRESH_CHECK_INTERVAL": "1",
            "MIN_FILE_PROCESS_INTERVAL": "600",
        },
        "LOGGING": {"NAMESPACE_LEVELS": "airflow.models.dag=WARNING"},
        "USAGE_DATA_COLLECTION": {"ENABLED": "False"},
    }
    return {
        f"AIRFLOW__{section}__{name}": value
        for section, values in options.items()
        for name, value in values.items()
    }


def load_secrets(settings: Settings) -> dict[str, str]:
    """Return the stack's secrets.

    Raises:
        StackError: this stack was never started.

    """
    try:
        return dict[str, str](json.loads(_secrets(settings).read_text()))
    except FileNotFoundError as exc:
        raise StackError(f"{settings.home} holds no stack yet: make up") from exc


def make_secrets(settings: Settings) -> None:
    """Make the stack's secrets once, readable by their owner alone."""
    path = _secrets(settings)
    if path.exists():
        return
    made = {
        "fernet": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "api": secrets.token_urlsafe(32),
        "jwt": secrets.token_urlsafe(64),
        "password": secrets.token_urlsafe(12),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, content in (("passwords.json", {LOGIN: made["password"]}), (path.name, made)):
        new = path.with_name(f".{name}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        new.rename(path.with_name(name))


def _secrets(settings: Settings) -> Path:
    return settings.home / "airflow" / "secrets.json"


def _assign(value: str, line: re.Match[str]) -> str:
    return f"{line[1]} {value}"


def write_feast_config(settings: Settings) -> None:
    """Write feature_repo/feature_store.yaml again with this stack's registry and online store."""
    text = FEAST_CONFIG.read_text()
    for key, value in (
        ("path", str(settings.home / "feast" / "registry.db")),
        ("connection_string", settings.feast_connection(5.0)),
    ):
        text, count = re.subn(rf"(?m)^(\s+{key}:).*$", partial(_assign, json.dumps(value)), text)
        if count != 1:
            raise ValueError(f"{FEAST_CONFIG}: expected one line `{key}:`, found {count}")
    (settings.home / "feast").mkdir(parents=True, exist_ok=True)
    path = settings.home / "feature_store.yaml"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        path.chmod(0o600)  # an address may hold a password
