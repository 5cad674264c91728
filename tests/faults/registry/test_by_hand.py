"""Roles changed in MLflow's UI, or by a client of it, past Gyre's own commands."""

from threading import Thread

import httpx
import pytest

from mlflow_server.api.registry import Registry
from mlflow_server.promotion.promote import promote
from tests.conftest import at_most, wait_until
from tests.mlflow_server.conftest import ANN, client
from tests.support.serving.load import under_load

UI = "mlflow-ui"
FORGED = (
    {"X-Remote-User": "bob"},
    {"X-Forwarded-User": "ann", "X-Remote-User": "bob"},
    {"Authorization": "Basic YW5uOnNlY3JldA=="},
)
"""Headers that name nobody, as no proxy is configured (with one: mlflow_server/test_users.py)."""


def in_ui(settings, model, version, role="production", **headers):
    """Do what MLflow's UI does where somebody edits the aliases of a version."""
    body = {"name": model, "alias": role} | ({"version": version} if version else {})
    url = f"{settings.mlflow_address}/ajax-api/2.0/mlflow/registered-models/alias"
    method = "POST" if version else "DELETE"
    return httpx.request(method, url, json=body, headers=headers, timeout=600)


def change(row):
    assert row.applied_at
    return row.role, row.from_version, row.to_version, row.who


@pytest.mark.timed
def test_a_role_changed_by_hand_is_in_the_ledger_at_once_and_served_within_5_s(
    rig, served, ledger
):
    """8: roles set and deleted under load; without production the version before goes on."""
    model = rig.spec.name
    first = served.first
    second = served.second
    with under_load(served.client) as answers:
        for role, previous, version, answering in (
            ("production", first, second, second),
            ("challenger", None, first, second),
            ("challenger", first, None, second),
            ("production", second, None, second),
            ("production", None, first, first),
        ):
            before = ledger.rows(model)
            assert in_ui(rig.settings, model, version, role).status_code == 200
            *earlier, row = ledger.rows(model)
            assert earlier == before
            assert change(row) == (role, previous, version, UI)
            rig.answers_as(served.client, answering, at_most(5))
    assert row.why == "alias production set in MLflow"
    assert {a.status for a in answers} == {200}


def test_an_alias_moved_by_hand_is_entered_and_no_header_names_a_user(roles):
    """8: by the UI, or by `MlflowClient` in a notebook."""
    place = (roles.settings, roles.model)
    roles.promote("1")
    before = "1"
    for version, headers in zip("345", FORGED, strict=True):
        in_ui(*place, version, **headers)
        assert change(roles.rows[-1]) == ("production", before, version, UI)
        before = version
    assert roles.stages["5"] == "Production"
    client(roles.settings).set_registered_model_alias(roles.model, "production", "2")
    assert change(roles.rows[-1]) == ("production", "5", "2", UI)
    in_ui(*place, None)
    assert "Production" not in roles.stages.values()
    assert roles.rollback().to_version == "2"


class Interrupted(Registry):
    """Somebody moves the alias in the UI as soon as the promotion has moved it."""

    hand: Thread

    def set_alias(self, model, role, version):
        moved = super().set_alias(model, role, version)
        if role == "production":
            self.hand.start()
            wait_until("the hand", lambda: self.production(model) == "4")
        return moved


def test_an_alias_moved_by_hand_during_a_promotion_is_the_next_row_of_the_ledger(roles):
    """8: what a person did stays."""
    roles.promote("1")
    interrupted = Interrupted(roles.settings)
    interrupted.hand = Thread(target=in_ui, args=(roles.settings, roles.model, "4"))
    promote(interrupted, roles.ledger, roles.model, "2", **ANN)
    interrupted.hand.join()
    rows = [change(row) for row in roles.rows[1:]]
    assert rows == [("production", "1", "2", "ann"), ("production", "2", "4", UI)]
    assert roles.aliases == {"production": "4"}
