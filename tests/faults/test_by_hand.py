"""Roles changed in MLflow's UI, or by a client of it, past Gyre's own commands."""

from __future__ import annotations

import time
from threading import Thread
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from mlflow import MlflowClient

from mlflow_server.promotion import promote, reconcile, rollback
from mlflow_server.registry import Registry
from tests.conftest import at_most, wait_until
from tests.mlflow_server.conftest import client, stages
from tests.serving.load import under_load

if TYPE_CHECKING:
    from core.settings import Settings
    from mlflow_server.ledger import Ledger, LedgerRow

ANN = {"who": "ann", "why": "better"}
UI = "mlflow-ui"
NAMED = {
    f"{UI}:bob": {"X-Remote-User": "bob"},
    f"{UI}:ann": {"X-Forwarded-User": "ann", "X-Remote-User": "bob"},
    UI: {"Authorization": "Basic YW5uOnNlY3JldA=="},
}
"""Who is written down for a request with these headers."""


def in_ui(
    settings: Settings,
    model: str,
    version: str | None,
    role: str = "production",
    **headers: str,
) -> httpx.Response:
    """Do what MLflow's UI does where somebody edits the aliases of a version."""
    body = {"name": model, "alias": role} | ({"version": version} if version else {})
    url = f"{settings.mlflow_address}/ajax-api/2.0/mlflow/registered-models/alias"
    method = "POST" if version else "DELETE"
    return httpx.request(method, url, json=body, headers=headers, timeout=600)


def change(row: LedgerRow) -> tuple[str, str | None, str | None, str]:
    assert row.applied_at
    return row.role, row.from_version, row.to_version, row.who


@pytest.mark.timed
def test_a_promotion_by_hand_is_served_within_5_s_and_in_the_ledger_with_the_proxys_user(
    rig: Any, served: Any, ledger: Ledger
) -> None:
    """8: while requests are under way."""
    model = rig.spec.name
    with under_load(served.client) as answered:
        headers = {"X-Forwarded-User": "ann@example.org"}
        assert in_ui(rig.settings, model, served.second, **headers).status_code == 200
        row = ledger.rows(model)[-1]
        who = f"{UI}:ann@example.org"
        assert change(row) == ("production", served.first, served.second, who)
        assert row.why == "alias production set in MLflow"
        began = time.monotonic()
        rig.answers_as(served.client, served.second)
        assert time.monotonic() - began < at_most(5)
        rig.promote(served.first)
        rig.answers_as(served.client, served.first)
    assert {a.status for a in answered} == {200}


def test_a_broken_version_promoted_by_hand_is_refused_like_any_other(
    rig: Any, served: Any, ledger: Ledger
) -> None:
    """8: its warm-up does not hold; the ledger has it all the same."""
    model, version = rig.spec.name, rig.register(-5.0, score="Log").version
    in_ui(rig.settings, model, version)
    assert ledger.rows(model)[-1].to_version == version
    said = f"version {version} is refused: ModelRefusedError"
    rig.wait_until(said, lambda: said in served.client.get("/status").text)
    assert rig.predict(served.client).json()["model_version"] == served.first
    rig.promote(served.first)
    rig.wait_until(
        "no refusal", lambda: "is refused:" not in served.client.get("/status").text
    )


@pytest.mark.timed
def test_whatever_a_hand_changes_is_on_record_at_once_and_served_within_10_s(
    rig: Any, served: Any, ledger: Ledger
) -> None:
    """8: roles set and deleted; without a production alias the version before goes on."""
    model, settings, one, two = rig.spec.name, rig.settings, served.first, served.second
    for role, version, answering, written in (
        ("production", two, two, ("production", one, two, UI)),
        ("challenger", one, two, ("challenger", None, one, UI)),
        ("challenger", None, two, ("challenger", one, None, UI)),
        ("production", None, two, ("production", two, None, UI)),
        ("production", one, one, ("production", None, one, UI)),
    ):
        before = ledger.rows(model)
        assert in_ui(settings, model, version, role).status_code == 200
        assert ledger.rows(model)[:-1] == before
        assert change(ledger.rows(model)[-1]) == written
        rig.answers_as(served.client, answering, at_most(10))


def test_an_alias_moved_by_hand_is_written_down_with_who_the_proxy_names(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    """8: an alias moved, and deleted."""
    promote(registry, ledger, model, "1", **ANN)
    before = "1"
    for version, (who, headers) in zip("345", NAMED.items(), strict=True):
        in_ui(settings, model, version, **headers)
        assert change(ledger.rows(model)[-1]) == ("production", before, version, who)
        before = version
    assert registry.aliases(model) == {"production": "5"}
    assert stages(settings, model)["5"] == "Production"
    in_ui(settings, model, None)
    assert change(ledger.rows(model)[-1]) == ("production", "5", None, UI)
    assert "Production" not in stages(settings, model).values()
    assert len(reconcile(registry, ledger, model)) == 5
    assert rollback(registry, ledger, model, who="ann", why="oops").to_version == "5"


def test_what_mlflow_refuses_and_what_is_no_role_is_not_in_the_ledger(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    """8: no such version, no such model, another alias, the same version again."""
    promote(registry, ledger, model, "1", **ANN)
    assert in_ui(settings, model, "77").status_code == 404
    assert in_ui(settings, "never_registered", "1").status_code == 404
    assert in_ui(settings, model, "2", "candidate").status_code == 200
    assert in_ui(settings, model, "1").status_code == 200
    assert [row.who for row in ledger.rows(model)] == ["ann"]
    assert ledger.rows("never_registered") == []


def test_what_somebody_elses_mlflow_changes_is_out_of_band_at_the_next_reconcile(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    """8: MLflow's own store on the same database knows nothing of a ledger."""
    promote(registry, ledger, model, "1", **ANN)
    database = f"sqlite:///{settings.home / 'mlflow' / 'mlflow.db'}"
    foreign = MlflowClient(tracking_uri=database, registry_uri=database)
    foreign.set_registered_model_alias(model, "production", "2")
    assert len(ledger.rows(model)) == 1
    assert change(reconcile(registry, ledger, model)[1]) == (
        "production",
        "1",
        "2",
        "out of band",
    )
    assert registry.aliases(model) == {"production": "2"}


class Interrupted(Registry):
    """Somebody moves the alias in the UI as soon as the promotion has moved it."""

    hand: Thread

    def set_alias(self, model: str, role: str, version: str | None) -> bool:
        moved = super().set_alias(model, role, version)
        if role == "production":
            self.hand.start()
            wait_until("the hand", lambda: self.production(model) == "4")
        return moved


def test_a_hand_that_moves_the_alias_during_a_promotion_is_the_row_after_it(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    """8: what a person did stays."""
    promote(registry, ledger, model, "1", **ANN)
    interrupted = Interrupted(settings)
    interrupted.hand = Thread(target=in_ui, args=(settings, model, "4"))
    promote(interrupted, ledger, model, "2", **ANN)
    interrupted.hand.join()
    rows = [change(row) for row in ledger.rows(model)[1:]]
    assert rows == [("production", "1", "2", "ann"), ("production", "2", "4", UI)]
    assert registry.aliases(model) == {"production": "4"}


@pytest.mark.nightly  # MLflow waits for 20 s
def test_a_change_in_the_ui_is_made_even_where_the_ledger_cannot_be_written(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    """8: another writer holds its lock for longer than MLflow waits."""
    promote(registry, ledger, model, "1", **ANN)
    with ledger.exclusive(model):
        assert in_ui(settings, model, "2").status_code == 200
    assert len(ledger.rows(model)) == 1
    assert change(reconcile(registry, ledger, model)[1])[3] == "out of band"


def test_clients_of_mlflow_are_written_down_too(
    settings: Settings, ledger: Ledger, registry: Registry, model: str
) -> None:
    """8: `MlflowClient` in a notebook."""
    promote(registry, ledger, model, "1", **ANN)
    client(settings).set_registered_model_alias(model, "production", "2")
    assert change(ledger.rows(model)[1]) == ("production", "1", "2", UI)
