"""The routes of MLflow that Gyre serves; every other one is refused.

Routes that are left out here run code, call other servers, keep
their passwords, or have nothing to do with runs, models, traces and prompts: the assistant, the
gateway, jobs, webhooks, registered MCP servers, workspaces.

A route stands here as METHOD and path behind `/api/` and `/ajax-api/`, by which every call can be
reached, else as its whole path. A parameter is MLflow's own.
"""

import re

SERVED = frozenset(
    line.strip()
    for line in """
    GET /
    GET /build/<path:filename>
    GET /static-files/<path:path>
    GET /health
    GET /version
    GET 3.0/mlflow/server-info
    GET 3.0/mlflow/ui-telemetry
    GET /graphql
    POST /graphql

    POST 2.0/mlflow/experiments/create
    POST 2.0/mlflow/experiments/delete
    POST 2.0/mlflow/experiments/delete-experiment-tag
    GET 2.0/mlflow/experiments/get
    GET 2.0/mlflow/experiments/get-by-name
    POST 2.0/mlflow/experiments/restore
    GET 2.0/mlflow/experiments/search
    POST 2.0/mlflow/experiments/search
    POST 2.0/mlflow/experiments/search-datasets
    POST 2.0mlflow/experiments/search-datasets
    POST 2.0/mlflow/experiments/set-experiment-tag
    POST 2.0/mlflow/experiments/update

    POST 2.0/mlflow/runs/create
    POST 2.0/mlflow/runs/delete
    POST 2.0/mlflow/runs/delete-tag
    GET 2.0/mlflow/runs/get
    POST 2.0/mlflow/runs/log-batch
    POST 2.0/mlflow/runs/log-inputs
    POST 2.0/mlflow/runs/log-metric
    POST 2.0/mlflow/runs/log-model
    POST 2.0/mlflow/runs/log-parameter
    POST 2.0/mlflow/runs/outputs
    POST 2.0/mlflow/runs/restore
    POST 2.0/mlflow/runs/search
    POST 2.0/mlflow/runs/set-tag
    POST 2.0/mlflow/runs/update
    GET 2.0/mlflow/metrics/get-history
    GET 2.0/mlflow/metrics/get-history-bulk
    GET 2.0/mlflow/metrics/get-history-bulk-interval

    GET 2.0/mlflow/artifacts/list
    GET /get-artifact
    GET /model-versions/get-artifact
    GET 2.0/mlflow-artifacts/artifacts
    DELETE 2.0/mlflow-artifacts/artifacts/{path}
    GET 2.0/mlflow-artifacts/artifacts/{path}
    PUT 2.0/mlflow-artifacts/artifacts/{path}
    POST 2.0/mlflow-artifacts/mpu/abort/{path}
    POST 2.0/mlflow-artifacts/mpu/complete/{path}
    POST 2.0/mlflow-artifacts/mpu/create/{path}
    GET 2.0/mlflow-artifacts/presigned/{path}

    POST 2.0/mlflow/logged-models
    DELETE 2.0/mlflow/logged-models/{model_id}
    GET 2.0/mlflow/logged-models/{model_id}
    PATCH 2.0/mlflow/logged-models/{model_id}
    GET 2.0/mlflow/logged-models/{model_id}/artifacts/directories
    GET 2.0/mlflow/logged-models/{model_id}/artifacts/files
    POST 2.0/mlflow/logged-models/{model_id}/params
    PATCH 2.0/mlflow/logged-models/{model_id}/tags
    DELETE 2.0/mlflow/logged-models/{model_id}/tags/{tag_key}
    POST 2.0/mlflow/logged-models/search

    DELETE 2.0/mlflow/registered-models/alias
    GET 2.0/mlflow/registered-models/alias
    POST 2.0/mlflow/registered-models/alias
    POST 2.0/mlflow/registered-models/create
    DELETE 2.0/mlflow/registered-models/delete
    DELETE 2.0/mlflow/registered-models/delete-tag
    GET 2.0/mlflow/registered-models/get
    GET 2.0/mlflow/registered-models/get-latest-versions
    POST 2.0/mlflow/registered-models/get-latest-versions
    POST 2.0/mlflow/registered-models/rename
    GET 2.0/mlflow/registered-models/search
    POST 2.0/mlflow/registered-models/set-tag
    PATCH 2.0/mlflow/registered-models/update
    POST 2.0/mlflow/model-versions/create
    DELETE 2.0/mlflow/model-versions/delete
    DELETE 2.0/mlflow/model-versions/delete-tag
    GET 2.0/mlflow/model-versions/get
    GET 2.0/mlflow/model-versions/get-download-uri
    GET 2.0/mlflow/model-versions/search
    POST 2.0/mlflow/model-versions/set-tag
    POST 2.0/mlflow/model-versions/transition-stage
    PATCH 2.0/mlflow/model-versions/update

    POST /v1/traces
    GET 2.0/mlflow/traces
    POST 2.0/mlflow/traces
    PATCH 2.0/mlflow/traces/{request_id}
    GET 2.0/mlflow/traces/{request_id}/info
    DELETE 2.0/mlflow/traces/{request_id}/tags
    PATCH 2.0/mlflow/traces/{request_id}/tags
    POST 2.0/mlflow/traces/delete-traces
    POST 2.0/mlflow/traces/link-prompts
    POST 2.0/mlflow/traces/link-to-run
    GET 2.0/mlflow/unified-traces
    GET 2.0/mlflow/get-trace-artifact
    POST 3.0/mlflow/traces
    GET 3.0/mlflow/traces/{trace_id}
    POST 3.0/mlflow/traces/{trace_id}/assessments
    DELETE 3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}
    GET 3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}
    PATCH 3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}
    DELETE 3.0/mlflow/traces/{trace_id}/tags
    PATCH 3.0/mlflow/traces/{trace_id}/tags
    GET 3.0/mlflow/traces/batchGet
    POST 3.0/mlflow/traces/batchGetInfos
    POST 3.0/mlflow/traces/calculate-filter-correlation
    POST 3.0/mlflow/traces/delete-traces
    GET 3.0/mlflow/traces/get
    POST 3.0/mlflow/traces/metrics
    POST 3.0/mlflow/traces/search
    GET 3.0/mlflow/get-trace-artifact

    POST 3.0/mlflow/datasets/create
    GET 3.0/mlflow/datasets/search
    POST 3.0/mlflow/datasets/search
    DELETE 3.0/mlflow/datasets/{dataset_id}
    GET 3.0/mlflow/datasets/{dataset_id}
    POST 3.0/mlflow/datasets/{dataset_id}/add-experiments
    GET 3.0/mlflow/datasets/{dataset_id}/experiment-ids
    DELETE 3.0/mlflow/datasets/{dataset_id}/records
    GET 3.0/mlflow/datasets/{dataset_id}/records
    POST 3.0/mlflow/datasets/{dataset_id}/records
    POST 3.0/mlflow/datasets/{dataset_id}/remove-experiments
    PATCH 3.0/mlflow/datasets/{dataset_id}/tags
    DELETE 3.0/mlflow/datasets/{dataset_id}/tags/{key}

    GET 3.0/mlflow/scorers/list
    GET 3.0/mlflow/label-schemas/list
    GET 3.0/mlflow/review-queues/list
    GET 2.0/mlflow/webhooks
    """.splitlines()
    if line.strip()
)
PREFIX = re.compile(r"^/(?:ajax-)?api/(?=\d)")
PARAMETER = re.compile(r"[<{](?:path:)?(\w+?)(?::path)?[>}]")


def route_name(method: str, path: str) -> str:
    """Return the name that a route has in SERVED, by the path that Flask or FastAPI has for it."""
    if not PREFIX.match(path):
        return f"{method} {path}"
    below = PARAMETER.sub(r"{\1}", PREFIX.sub("", path))
    return f"{method} {below.replace('{artifact_path}', '{path}')}"
