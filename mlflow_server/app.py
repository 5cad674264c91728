"""What uvicorn serves: MLflow's application, its database made or checked first.

`mlflow server` does the same before it starts uvicorn. Left to the first request, it would take
longer than our clients wait, and `/health` would answer before anything else can.
"""

from __future__ import annotations

import os

from mlflow.server.handlers import initialize_backend_stores

initialize_backend_stores(
    os.environ["_MLFLOW_SERVER_FILE_STORE"],
    os.environ["_MLFLOW_SERVER_REGISTRY_STORE"],
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"],
)

from mlflow.server.fastapi_app import app  # noqa: E402  (after its database)

__all__ = ["app"]
