"""Scoring paths, and what a refusal of each says."""

import json

ERROR = {"v1": "error", "v2": "error", "mlflow": "message"}
"""The field of an error that says what is wrong; `detail` of Gyre's own."""


PATHS = {
    "plain": "/predict",
    "batch": "/predict/batch",
    "v1": "/v1/models/customer_churn_model:predict",
    "v2": "/v2/models/customer_churn_model/infer",
    "mlflow": "/invocations",
}


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def error_of(answer, protocol):
    return str(strict(answer.text)[ERROR.get(protocol, "detail")])


def refusal(answer, protocol):
    """Return the error of a refused request, in the protocol's form and with its status."""
    assert answer.status_code == (400 if protocol in ERROR else 422)
    assert answer.headers["content-type"] == "application/json"
    return error_of(answer, protocol)
