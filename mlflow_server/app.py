"""What uvicorn serves: MLflow's application, its database made or checked before `/health` answers.

An alias changed in MLflow's UI, or by any client of it, has its ledger row before the answer.
"""

import logging
import os
from http import HTTPStatus

from flask import Response, request
from mlflow.server import app as flask_app
from mlflow.server.handlers import initialize_backend_stores

from core.settings import load_settings
from mlflow_server.promotion import write_down

STORES = ("FILE_STORE", "REGISTRY_STORE", "ARTIFACT_ROOT")
# `mlflow server` only looks what its app is.
if "_MLFLOW_SERVER_FILE_STORE" in os.environ:
    initialize_backend_stores(
        *(os.environ[f"_MLFLOW_SERVER_{name}"] for name in STORES)
    )

from mlflow.server.fastapi_app import app  # noqa: E402, F401  (after its database)

ALIAS_PATH = "/mlflow/registered-models/alias"
USER_HEADERS = ("X-Forwarded-User", "X-Remote-User")
"""Where a proxy that asks people who they are says it."""
SETTINGS = load_settings()
logger = logging.getLogger(__name__)


@flask_app.after_request  # type: ignore[untyped-decorator]  # MLflow does not type it
def record_alias(response: Response) -> Response:
    """Write a role that was changed past Gyre into the ledger, with the proxy's user."""
    changes = request.method in {"POST", "DELETE"} and request.path.endswith(ALIAS_PATH)
    if not changes or response.status_code != HTTPStatus.OK:
        return response
    asked = request.get_json(force=True)
    users = [request.headers[name] for name in USER_HEADERS if name in request.headers]
    version = str(asked["version"]) if request.method == "POST" else None
    change = asked["name"], asked["alias"], version, ":".join(["mlflow-ui", *users[:1]])
    try:
        write_down(SETTINGS, *change)
    except Exception:  # MLflow has the change; the next reconcile calls it out of band
        logger.exception("no ledger row yet of %s", change)
    return response
