"""The command line of the MLflow server: uvicorn, with the variables of `mlflow server`.

`mlflow server` itself stays in memory (a further 0.22 GB) to wait for uvicorn. If it is killed,
uvicorn stays behind and holds the port.
"""

import os
import sys

from core.access.private_home import make_home
from core.settings import Settings, load_settings
from mlflow_server.api.store import own_store


def command(settings: Settings) -> list[str]:
    """Return the command line of the server, one process, which needs `environment`."""
    address = ["--host", settings.mlflow_host, "--port", str(settings.mlflow_port)]
    quiet = ["--workers", "1", "--no-access-log", "--log-level", "warning"]
    return [
        sys.executable,
        "-m",
        "uvicorn",
        *address,
        *quiet,
        "mlflow_server.server.app:app",
    ]


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that the server needs; make the folder of its database."""
    make_home(settings)
    folder = settings.home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    addresses = {
        "GYRE_DATABASE_URL": settings.database_url,
        "GYRE_LEDGER_URL": settings.ledger_url,
    }
    # psycopg 3 sends texts as texts, and MLflow compares versions, which are numbers, with them.
    store = (
        settings.schema_url("mlflow", "psycopg2") or f"sqlite:///{folder / 'mlflow.db'}"
    )
    # Private names: `mlflow server` sets `_MLFLOW_…` for its own uvicorn. They are needed until
    # that command leaves no process behind, or they have public names.
    # The ledger's address is for promotions in MLflow's UI.
    return {
        "GYRE_HOME": str(settings.home),
        "GYRE_MLFLOW_PORT": str(settings.mlflow_port),
        "GYRE_BEHIND_PROXY": str(settings.behind_proxy),
        **{name: address for name, address in addresses.items() if address},
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_REGISTRY_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": own_store(settings),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        # MLflow's own lets pages of any port of localhost write and read, and takes names such as
        # 10.evil.example for addresses. Gyre's rules for all servers are in its place.
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # takes 2 GB with its consumers
    }


def main() -> None:
    """Replace this process by the server."""
    settings = load_settings()
    os.execve(sys.executable, command(settings), os.environ | environment(settings))  # noqa: S606  (no shell)


if __name__ == "__main__":
    main()
