"""A registered model that was deleted and made anew: its versions count from 1 again."""

from datetime import timedelta

import pytest

from core.errors import PromotionRefusedError
from core.spec import load_spec
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.promotion.ledger import Ledger, now
from monitoring.decisions.causes import (
    moment_since_promotion,
    open_decisions,
    read_retrainings,
)
from monitoring.decisions.store import DecisionRow, newest_decisions, store_decision
from monitoring.run import load_past
from tests.conftest import mlflow_server, new_settings
from tests.mlflow_server.conftest import Roles, client, new_model
from training.stages.register import settled

SPEC = load_spec("customer_churn_model")


@pytest.fixture
def roles(tmp_path):
    settings = new_settings(tmp_path)
    with mlflow_server(settings), Ledger(settings) as ledger:
        new_model(settings, 3, name=SPEC.name)
        yield Roles(settings, Registry(settings), ledger, SPEC.name)


def decide(roles, version):
    created = roles.registry.assignment(SPEC.name).created
    row = DecisionRow(
        model=SPEC.name, version=version, as_of=now(), verdict="bad", action="retrain",
        rule="drift", reason="r", cause="c", words="w", inputs="{}", entities=1, created=created,
    )  # fmt: skip
    store_decision(roles.settings, row)


def make_anew(roles):
    client(roles.settings).delete_registered_model(SPEC.name)
    new_model(roles.settings, 3, name=SPEC.name)


def test_nothing_of_a_deleted_model_counts_for_the_one_of_its_name(roles):
    settings = roles.settings
    for version in "123":
        roles.promote(version)
    decide(roles, "3")
    make_anew(roles)
    tracking = Tracking(settings)
    tags = {"as_of": (now() - timedelta(days=9)).isoformat()}
    run_id = tracking.start_or_find_run(SPEC.experiment, "anew", "anew", tags)

    assert roles.reconcile() == []
    assert settled(settings, SPEC, run_id, "1") is None
    assert open_decisions(settings, SPEC, now()) == []
    start = now() - timedelta(days=9)
    assert moment_since_promotion(settings, SPEC.name, start) == start
    row = roles.promote("1")
    model = roles.registry.assignment(SPEC.name)
    # The fourth says that the model was deleted.
    assert (row.sequence, row.from_version) == (5, None)
    past = load_past(settings, model, "1", now())
    assert (past.promotion, past.previous) == (row, None)
    assert newest_decisions(settings, SPEC.name, created=model.created) == []
    decisions, _ = read_retrainings(settings, SPEC, model.created)
    assert decisions == []
    with pytest.raises(PromotionRefusedError, match="nothing to go back to"):
        roles.rollback()
    # A person sets in MLflow what the deleted model had last.
    client(settings).set_registered_model_alias(SPEC.name, "production", "3")
    actions = [row.action for row in roles.rows[3:]]
    assert actions == ["by hand", "promote", "by hand"]
    assert roles.rollback().to_version == "1"
    assert [row.sequence for row in roles.rows] == [1, 2, 3, 4, 5, 6, 7]
