"""What the stack's processes find in their environment: one place that knows every tool's names."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from stack import UNREPORTED
from stack.errors import StackError
from stack.preflight import MARK
from stack.settings import LOOPBACK, PROJECT

if TYPE_CHECKING:
    from stack.settings import Settings

LOGIN = "admin"
SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"


def child_environment(settings: Settings) -> dict[str, str]:
    """Return what any process or shell needs to work with this stack; no secrets of ours."""
    home = settings.home
    ours = {name: value for name, value in os.environ.items() if name.startswith("GYRE_")}
    ours.pop(MARK, None)
    return ours | {
        "GYRE_HOME": str(home),
        "GYRE_SERVING_PORT": str(settings.serving_port),
        "GYRE_CONSOLE_PORT": str(settings.console_port),
        "GYRE_SERVING_WORKERS": str(settings.serving_workers),
        "GYRE_MLFLOW_PORT": str(settings.mlflow_port),
        "GYRE_AIRFLOW_PORT": str(settings.airflow_port),
        "GYRE_REDIS_PORT": str(settings.redis_port),
        "FEAST_FS_YAML_FILE_PATH": str(_feast_config(settings)),
        "MLFLOW_TRACKING_URI": settings.mlflow_address,
        "AIRFLOW_HOME": str(home / "airflow"),
        "PYTHONPYCACHEPREFIX": str(home / "pycache"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "MPLBACKEND": "agg",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": os.environ.get("HOME") or str(home),
        **UNREPORTED,
        "GIT_PYTHON_REFRESH": "quiet",
        "SPT_NOENV": "1",  # process titles must not overwrite the environment that `down` reads
    }


def process_environment(settings: Settings) -> dict[str, str]:
    """Return `child_environment` on top of this process's own, without what would hinder it.

    Feast, where it is imported, names a folder for metrics that goes when its process ends.
    """
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONPATH",
               "PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR"}  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    return inherited | child_environment(settings)


def airflow_environment(settings: Settings) -> dict[str, str]:
    """Airflow's configuration (for why each is here see DECISIONS.md); holds its secrets."""
    folder, key, base = settings.home / "airflow", load_secrets(settings), settings.airflow_address
    options = {
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": "2",
        "CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "CORE__PLUGINS_FOLDER": str(PROJECT / "dags" / "plugins"),
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": str(settings.replay is not None),
        "CORE__FERNET_KEY": key["fernet"],
        "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "1",
        "CORE__AUTH_MANAGER": SIMPLE,
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{LOGIN}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "CORE__EXECUTION_API_SERVER_URL": f"{base}/execution/",
        "API__HOST": LOOPBACK,
        "API__PORT": str(settings.airflow_port),
        "API__BASE_URL": base,
        "API__WORKERS": "1",
        "API__SECRET_KEY": key["api"],
        "API_AUTH__JWT_SECRET": key["jwt"],
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}?timeout=30",
        "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "WORKERS__EXECUTION_API_TIMEOUT": "30",
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
        "DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
        "LOGGING__NAMESPACE_LEVELS": "airflow.models.dag=WARNING",
        "USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    return {f"AIRFLOW__{name}": value for name, value in options.items()}


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
    for file, content in (
        (path.with_name("passwords.json"), {LOGIN: made["password"]}),
        (path, made),
    ):
        new = file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(json.dumps(content))
        new.rename(file)


def write_feast_config(settings: Settings) -> None:
    """Write feature_repo/feature_store.yaml again with this stack's registry and stores."""
    config = yaml.safe_load((PROJECT / "feature_repo" / "feature_store.yaml").read_text())
    config["registry"]["path"] = str(settings.home / "feast" / "registry.db")
    config["offline_store"] = settings.feast_offline_store
    if "connection_string" in config["online_store"]:
        config["online_store"]["connection_string"] = settings.feast_connection(5.0)
    (settings.home / "feast").mkdir(parents=True, exist_ok=True)
    path = _feast_config(settings)
    path.touch(mode=0o600)  # an address may hold a password
    path.write_text(yaml.safe_dump(config))


def _secrets(settings: Settings) -> Path:
    return settings.home / "airflow" / "secrets.json"


def _feast_config(settings: Settings) -> Path:
    return settings.home / "feature_store.yaml"
