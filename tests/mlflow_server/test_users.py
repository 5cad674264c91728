"""Behind a configured proxy, the ledger names the user of a change in MLflow's UI."""

import json

import httpx
import pytest

UI = "mlflow-ui"
NAMED = {
    f"{UI}:bob": {"X-Remote-User": "bob"},
    f"{UI}:ann": {"X-Forwarded-User": "ann", "X-Remote-User": "bob"},
    UI: {"Authorization": "Basic YW5uOnNlY3JldA=="},
}
"""Who is written down for a request with these headers."""


@pytest.mark.parametrize("encoded", [1, 2])
def test_a_change_has_the_user_that_the_proxy_names(roles, encoded):
    """Older clients encode a body twice."""
    url = f"{roles.settings.mlflow_address}/ajax-api/2.0/mlflow/registered-models/alias"
    for version, (who, headers) in zip("123", NAMED.items(), strict=True):
        body = {"name": roles.model, "alias": "production", "version": version}
        content = json.dumps(body)
        if encoded > 1:
            content = json.dumps(content)
        all_headers = headers | {"content-type": "application/json"}
        answer = httpx.post(url, content=content, headers=all_headers, timeout=600)
        assert answer.status_code == 200
        row = roles.rows[-1]
        assert (row.to_version, row.who) == (version, who)
