"""What uvicorn serves: MLflow's application, its database made or checked first.

`mlflow server` does the same before it starts uvicorn. Left to the first request, it would take
longer than our clients wait, and `/health` would answer before anything else can.
"""

import os

from mlflow.server.handlers import initialize_backend_stores

STORES = ("FILE_STORE", "REGISTRY_STORE", "ARTIFACT_ROOT")
initialize_backend_stores(*(os.environ[f"_MLFLOW_SERVER_{name}"] for name in STORES))

from mlflow.server.fastapi_app import app  # noqa: E402, F401  (after its database)
