"""How the MLflow server starts.

Uvicorn is started directly (see `app`), with the variables that `mlflow server`
would hand to it. That command stays in memory only to wait for uvicorn (a further 0.22 GB), and
when it is killed it leaves uvicorn behind, holding the port.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from stack.settings import LOOPBACK

if TYPE_CHECKING:
    from stack.settings import Settings


def command(settings: Settings) -> list[str]:
    """Command line of the server: one process, loopback only. Needs `environment`."""
    address = ["--host", LOOPBACK, "--port", str(settings.mlflow_port)]
    quiet = ["--workers", "1", "--no-access-log", "--log-level", "warning"]
    return [sys.executable, "-m", "uvicorn", *address, *quiet, "mlflow_server.app:app"]


def environment(settings: Settings) -> dict[str, str]:
    """Variables the server needs, and only those. Creates the folder of the database.

    The server's own rules for Host and Origin are kept: localhost, and private addresses as Host.
    """
    folder = settings.home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    database = {"GYRE_DATABASE_URL": settings.database_url} if settings.database_url else {}
    store = settings.database_url or f"sqlite:///{folder / 'mlflow.db'}"
    return {
        # Where the ledger is, for promotions made in MLflow's UI.
        "GYRE_HOME": str(settings.home),
        "GYRE_MLFLOW_PORT": str(settings.mlflow_port),
        **database,
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_REGISTRY_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": settings.artifacts_url or str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # takes 2 GB with its consumers
    }
