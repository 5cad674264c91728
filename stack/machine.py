"""Before a stack starts: problems of the machine, and the preparation of the home.

Problems are ports, disk space, the layout of the home, and addresses that cannot be reached.
"""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from core.connectors.addresses import is_bucket
from core.errors import BrokerUnavailableError, RegistryError, StackError
from core.files import bucket_problem, replace_file
from core.packages import with_extra
from core.settings import LAYOUT, PORTS, Settings, is_free
from feature_repo.online_store import find_server, redis_problem
from feature_repo.published.config import write_feast_config
from mlflow_server.api.registry import Registry
from mlflow_server.database import open_database
from stack.airflow_api import WRITE_POOL, AirflowApi
from stack.airflow_config import write_airflow_config
from stack.environment import make_secrets
from stack.supervisor import members

LAYOUT_FILE = "layout"
"""File of a home with the number of its layout."""
FOLDERS = ("run", "logs", "redis", "mlflow", "airflow", "feast", "serving", "data")
LEAST_FREE_BYTES = 10**9
EXTRAS = {
    "database_url": ("psycopg", "postgres"),
    "ledger_url": ("psycopg", "postgres"),
    "data_url": ("obstore", "s3"),
    "artifacts_url": ("boto3", "s3"),
    "events_url": ("confluent_kafka", "kafka"),
}
"""Setting → the module that it needs, and the extra of Gyre that has it."""


def machine_problems(settings: Settings) -> list[str]:
    """Return the problems and their remedies, one line each.

    Nothing is changed, except that a database gets its tables and a bucket an object `gyre`.
    """
    return [
        *layout_problems(settings.home),
        *disk_problems(settings.home),
        *port_problems(settings),
        *server_problems(settings),
        *connection_problems(settings),
        *mlflow_problems(settings),
        *airflow_problems(settings),
    ]


def prepare(settings: Settings) -> None:
    """Make the home's folders and secrets, and the configuration of Feast and Airflow."""
    for name in FOLDERS:
        (settings.home / name).mkdir(parents=True, exist_ok=True)
    replace_file(settings.home / LAYOUT_FILE, f"{LAYOUT}\n")
    make_secrets(settings)
    write_airflow_config(settings)
    write_feast_config(settings)


def layout_problems(home: Path) -> list[str]:
    """Return a problem if a stack has used the home with another layout than this release's."""
    file = home / LAYOUT_FILE
    layout = file.read_text().strip() if file.exists() else "1"
    is_used = (home / "airflow" / "secrets.json").exists()
    if not is_used or layout == LAYOUT:
        return []
    remedy = "set GYRE_HOME to a new folder, or use the release that made the home"
    return [f"{home} has layout {layout}, this release needs layout {LAYOUT}: {remedy}"]


def disk_problems(home: Path, least: int = LEAST_FREE_BYTES) -> list[str]:
    """Return a problem if the home cannot be written, or if fewer than `least` bytes are free."""
    remedy = "set GYRE_HOME to another folder"
    folder = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
        return [f"{folder} cannot be written: {remedy}"]
    free = shutil.disk_usage(folder).free
    if free >= least:
        return []
    sizes = f"{free / 1e9:.1f} GB free, {least / 1e9:.1f} GB are needed"
    return [f"{folder} has {sizes}: free some, or {remedy}"]


def server_problems(settings: Settings) -> list[str]:
    """Return a problem if the stack has a Redis of its own and no server to start as that."""
    if not settings.starts("redis"):
        return []
    try:
        find_server()
    except StackError as exc:
        return [str(exc)]
    return []


def connection_problems(settings: Settings) -> list[str]:
    """Return a problem for each database, broker or bucket of a setting that cannot be reached."""
    lines = [
        f"GYRE_{setting.upper()} needs the package {module}: {with_extra(extra)}"
        for setting, (module, extra) in EXTRAS.items()
        if getattr(settings, setting) and not find_spec(module)
    ]
    if lines:
        return lines
    if settings.database_url or settings.ledger_url:
        try:
            open_database(settings).dispose()
        except RegistryError as exc:
            lines.append(str(exc))
    for name in ("data_url", "artifacts_url"):
        url = getattr(settings, name) or ""
        problem = bucket_problem(url) if is_bucket(url) else None
        if problem:
            lines.append(f"GYRE_{name.upper()} {problem}")
    problem = None if settings.starts("redis") else redis_problem(settings)
    if problem:
        lines.append(f"GYRE_REDIS_URL {problem}")
    if settings.events_url:
        from core.connectors.kafka import broker_count  # noqa: PLC0415  (only teams have it)

        try:
            broker_count(settings)
        except BrokerUnavailableError as exc:
            lines.append(f"GYRE_EVENTS_URL {settings.events_url}: {exc}")
    return lines


def mlflow_problems(settings: Settings) -> list[str]:
    """Return a problem if a team's MLflow does not answer or refuses the login."""
    if settings.starts("mlflow"):
        return []
    try:
        Registry(settings).models()
    except RegistryError as exc:
        return [f"GYRE_MLFLOW_URL: {exc}"]
    return []


def airflow_problems(settings: Settings) -> list[str]:
    """Return a problem if a team's Airflow does not answer, or refuses Gyre's user what it needs.

    The pool of one writer is made there unless it is there.
    """
    if settings.starts("airflow") or "airflow" in settings.without:
        return []
    try:
        with AirflowApi(settings, timeout=10) as airflow:
            airflow.pool(WRITE_POOL, 1)
    except StackError as exc:
        return [f"GYRE_AIRFLOW_URL: {exc}"]
    return []


def port_problems(settings: Settings) -> Iterator[str]:
    """Yield a problem for each port that two programs have or another process holds."""
    variables: dict[int, str] = {}
    is_up = bool(members(settings.home))
    for name in PORTS:
        if not settings.starts(name):
            continue  # it runs elsewhere
        port = getattr(settings, f"{name}_port")
        variable = f"GYRE_{name.upper()}_PORT"
        host = settings.listens_on(name)
        if port in variables:
            yield (
                f"{variable} and {variables[port]} are both {port}: "
                "give one another port"
            )
        elif not is_free(host, 0):
            yield f"{host} is no address of this machine: {name} cannot listen on it"
        elif not is_up and not is_free(host, port):
            yield (
                f"port {port} ({name}) is taken: "
                f"stop the program that listens there, or set {variable} to a free port"
            )
        variables.setdefault(port, variable)
