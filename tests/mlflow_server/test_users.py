"""Behind a configured proxy, the ledger names the user of a change in MLflow's UI."""

import json
from functools import partial

import httpx
import pytest

from mlflow_server.roles import TRAFFIC_TAG
from tests.mlflow_server.conftest import new_model

UI = "mlflow-ui"
NAMED = {
    f"{UI}:bob": {"X-Remote-User": "bob"},
    f"{UI}:ann": {"X-Forwarded-User": "ann", "X_Forwarded_User": "bob"},
    f"{UI}:jörg": {"X-Forwarded-User": "jörg".encode(), "X-Remote_User": "bob"},
    UI: {"Authorization": "Basic YW5uOnNlY3JldA==", "X_Remote_User": "bob"},
}
"""Who is written down for a request with these headers."""
ANN = {"X-Forwarded-User": "ann"}
ODD_SPELLINGS = ("01", "+2", " 3 ", "0_4", "\u0665")
"""Versions 1 to 5, as MLflow takes them too."""
API = "ajax-api/2.0/mlflow"
ALIAS = f"{API}/registered-models/alias"


def ask(settings, method, path, body, headers=ANN):
    """Send a request to MLflow; return its answer, which is no error of MLflow."""
    headers = [*dict(headers).items(), ("content-type", "application/json")]
    return httpx.request(
        method,
        f"{settings.mlflow_address}/{path}",
        content=body if isinstance(body, str) else json.dumps(body),
        headers=headers,
        timeout=600,
    )


@pytest.mark.parametrize("encoded", [1, 2])
def test_a_change_has_the_user_that_the_proxy_names(roles, encoded):
    """Older clients encode a body twice."""
    for version, (who, headers) in zip("1234", NAMED.items(), strict=True):
        body = {"name": roles.model, "alias": "production", "version": version}
        content = json.dumps(body)
        if encoded > 1:
            content = json.dumps(content)
        answer = ask(roles.settings, "POST", ALIAS, content, headers)
        assert answer.status_code == 200
        row = roles.rows[-1]
        assert (row.to_version, row.who) == (version, who)


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Forwarded-User", "bob"), ("X-Forwarded-User", "ann")],
        [("X-Forwarded-User", "ann"), ("X-Remote-User", "bob")],
        [("X-Forwarded-User", ""), ("X-Remote-User", "bob")],
        [("X-Remote-User", "")],
        [("X-Forwarded-User", b"ann\x85evil")],
        [("X-Forwarded-User", b"ann\x01")],
        [("X-Forwarded-User", "ann\u202e".encode())],
        [("X-Forwarded-User", b"j\xf6rg")],
    ],
)
def test_a_request_that_names_no_user_or_two_is_refused(roles, headers):
    body = {"name": roles.model, "alias": "production", "version": "1"}
    answer = httpx.post(
        f"{roles.settings.mlflow_address}/{ALIAS}", json=body, headers=headers
    )
    assert answer.status_code == 400
    assert roles.aliases == {}
    assert roles.rows == []


def test_a_version_spelled_otherwise_has_its_author(roles):
    for version, spelling in enumerate(ODD_SPELLINGS, 1):
        body = {"name": roles.model, "alias": "production", "version": spelling}
        assert ask(roles.settings, "POST", ALIAS, body).status_code == 200
        rows = roles.reconcile()
        assert len(rows) == version
        assert (rows[-1].to_version, rows[-1].who) == (str(version), f"{UI}:ann")


def test_each_change_of_a_role_has_its_author(roles):
    send = partial(ask, roles.settings)
    name = {"name": roles.model}
    tag = {**name, "key": TRAFFIC_TAG}
    roles.promote("1")
    roles.promote("2")
    roles.promote("3", role="challenger", percent=5)
    changes = [
        ("POST", "registered-models/set-tag", {**tag, "value": "3:90"}),
        ("DELETE", "registered-models/delete-tag", tag),
        ("DELETE", "model-versions/delete", {**name, "version": "03"}),
        ("DELETE", "model-versions/delete", {**name, "version": "2"}),
    ]
    roles_of_rows = []
    for method, path, body in changes:
        count = len(roles.rows)
        assert send(method, f"{API}/{path}", body).status_code == 200, path
        rows = roles.reconcile()[count:]
        assert [row.who for row in rows] == [f"{UI}:ann"], path
        assert rows[0].applied_at, path
        roles_of_rows.append((rows[0].role, rows[0].to_version, rows[0].percent))
    assert roles_of_rows == [
        ("challenger", "3", 90),
        ("challenger", "3", 0),
        ("challenger", None, 0),
        ("production", None, 0),
    ]


@pytest.mark.parametrize("way", ["delete", "rename"])
def test_a_model_that_is_gone_has_a_row_about_each_role(roles, way):
    roles.promote("1")
    roles.promote("2", role="shadow")
    method = {"delete": "DELETE", "rename": "POST"}[way]
    body = {"name": roles.model, "new_name": f"{roles.model}-new"}
    path = f"{API}/registered-models/{way}"
    assert ask(roles.settings, method, path, body).status_code == 200
    rows = roles.rows[2:]
    assert [(row.role, row.from_version, row.to_version) for row in rows] == [
        ("production", "1", None),
        ("shadow", "2", None),
    ]
    assert {row.who for row in rows} == {f"{UI}:ann"}
    assert roles.reconcile() == []
    if way == "rename":
        rows = roles.ledger.rows(body["new_name"])
        assert [(row.role, row.to_version, row.who) for row in rows] == [
            ("production", "1", f"{UI}:ann"),
            ("shadow", "2", f"{UI}:ann"),
        ]


def test_a_model_made_anew_has_none_of_the_rows_of_the_deleted_one(roles):
    roles.promote("1")
    body = {"name": roles.model}
    path = f"{API}/registered-models/delete"
    assert ask(roles.settings, "DELETE", path, body).status_code == 200
    new_model(roles.settings, 1, name=roles.model)
    row = roles.promote("1")
    assert roles.reconcile() == [row]


def test_a_promotion_of_gyre_is_nobody_elses(roles):
    """Gyre's own calls to the same routes have no second row, and wait for no lock."""
    roles.promote("1")
    roles.promote("2", role="challenger", percent=5)
    roles.promote("3", role="challenger", percent=10)
    roles.release("challenger")
    rows = roles.reconcile()
    assert [row.who for row in rows] == ["ann"] * 4
    assert (rows[-1].applied_at - rows[0].time).total_seconds() < 20
