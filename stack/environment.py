"""The environment of the stack's processes and of shells: names of variables of every tool."""

import base64
import hmac
import json
import os
import secrets
import sys
from hashlib import sha256
from pathlib import Path

from core import UNREPORTED
from core.access.private_home import secret_mode
from core.errors import StackError
from core.files import replace_file
from core.project import CLONE
from core.settings import PORTS, SHARED, Settings
from feature_repo.published.config import feast_config_path

MARK = "GYRE_STACK"
"""Variable with the stack's home, which only processes of its supervisor have, and no shell."""
SOCKET = "GYRE_STACK_SOCKET"
"""Variable with the supervisor's socket, for the same processes."""
LOGIN = "admin"
"""User of Airflow with all rights."""
REDIS_BINARY = "GYRE_STACK_REDIS"
"""Variable with the server that supervisord starts as Redis, for the same processes."""
SECRETS = ("fernet", "api", "jwt", "password")
"""Secrets of Airflow."""
HINDERING = {
    "AIRFLOW_CONFIG",  # the stack's own file has its options
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONPATH",
    "PROMETHEUS_MULTIPROC_DIR",  # Feast's import sets it to a folder that ends with the process
    "PROMETHEUS_MULTIPROCESS_DIR",
}
"""Variables that no program inherits, as they would mislead it."""
OF_SETTINGS = (
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "AIRFLOW__API__HOST",
    "AIRFLOW__API__PORT",
)
"""Beginnings of variables that no program inherits: settings of Gyre have these options, and Airflow
gives its tasks a database that leads nowhere."""


def child_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that a process or a shell needs to work with this stack; no secrets."""
    home = settings.home
    # A temporary installation does not share GYRE_REDIS_URL, GYRE_ONLINE_STORE__TYPE and so on.
    shared = (*SHARED, "without")
    unset = {f"GYRE_{name.upper()}" for name in shared if not getattr(settings, name)}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("GYRE_")
        and not name.startswith(MARK)
        and name.split("__")[0] not in unset
    }
    if settings.project != CLONE:
        environment["GYRE_PROJECT"] = str(settings.project)  # wherever the process runs
    if settings.without:
        environment["GYRE_WITHOUT"] = " ".join(sorted(settings.without))
    if settings.mlflow_prefix:
        environment["GYRE_MLFLOW_PREFIX"] = settings.mlflow_prefix
    for name in PORTS:
        port = getattr(settings, f"{name}_port")
        environment[f"GYRE_{name.upper()}_PORT"] = str(port)
    programs = Path(sys.executable).parent
    path = os.environ.get("PATH", os.defpath)
    return (
        environment
        | UNREPORTED
        | {
            "GYRE_HOME": str(home),
            "GYRE_SECRETS_DIR": str(settings.secrets_dir),
            "GYRE_SERVING_WORKERS": str(settings.serving_workers),
            "FEAST_FS_YAML_FILE_PATH": str(feast_config_path(settings)),
            "MLFLOW_TRACKING_URI": settings.mlflow_address,
            "AIRFLOW_HOME": str(home / "airflow"),
            "MPLCONFIGDIR": str(home / "matplotlib"),
            "MPLBACKEND": "agg",
            "PATH": f"{programs}{os.pathsep}{path}",
            "HOME": os.environ.get("HOME") or str(home),
            "GIT_PYTHON_REFRESH": "quiet",
            # A process's title would overwrite the environment that `gyre down` reads.
            "SPT_NOENV": "1",
        }
    )


def process_environment(settings: Settings) -> dict[str, str]:
    """Return `child_environment` on top of this process's environment, without misleading variables."""
    left_out = HINDERING | (set() if settings.redis_url else {"REDIS_URL"})
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in left_out and not name.startswith(("GYRE_", *OF_SETTINGS))
    }
    return inherited | child_environment(settings)


def load_secrets(settings: Settings) -> dict[str, str]:
    """Return the secrets of Airflow by their name in SECRETS.

    Raises:
        StackError: The stack was never started.

    """
    folder = settings.secrets_dir
    files = {name: folder / f"airflow_{name}" for name in SECRETS}
    if os.access(folder, os.X_OK) and all(file.exists() for file in files.values()):
        return {name: file.read_text().strip() for name, file in files.items()}
    try:
        return dict[str, str](json.loads(_secrets(settings).read_text()))
    except FileNotFoundError as exc:
        raise StackError(f"{settings.home} holds no stack yet: gyre up") from exc


def make_secrets(settings: Settings) -> None:
    """Make the secrets that are neither given nor there, for their owner alone."""
    path = _secrets(settings)
    try:
        content = load_secrets(settings)
    except StackError:
        content = {
            "fernet": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "api": secrets.token_urlsafe(32),
            "jwt": secrets.token_urlsafe(64),
            "password": secrets.token_urlsafe(12),
        }
        replace_file(path, json.dumps(content), mode=0o600)
    password = content["password"]
    # Passwords of Airflow's users follow from it: each container of a team has the same ones.
    passwords = {
        name: hmac.new(password.encode(), name.encode(), sha256).hexdigest()[:16]
        for name in settings.airflow_roles
    }
    replace_file(
        path.with_name("passwords.json"),
        json.dumps(passwords | {LOGIN: password}),
        mode=0o600,
    )
    # The file with the password of the stack's Redis.
    if settings.starts("redis") and not settings.redis_config.exists():
        line = f"requirepass {secrets.token_urlsafe(32)}\n"
        replace_file(settings.redis_config, line, mode=secret_mode(settings))


def _secrets(settings: Settings) -> Path:
    return settings.home / "airflow" / "secrets.json"
