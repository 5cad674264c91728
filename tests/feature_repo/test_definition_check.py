"""Before anything is written online, ingest asks what versions in a role were trained with."""

import re
import shutil
from datetime import timedelta

import pytest
from mlflow import MlflowClient

from core.errors import RegistryError
from feature_engine.ingest.pipeline import ingest
from feature_engine.ingest.record import read_record
from feature_repo.datasets.orders import SERVED_FEATURES
from feature_repo.definition import DEFINITION_TAG
from feature_repo.published.definition_check import DefinitionChangedError
from feature_repo.published.service import PublishedService
from feature_repo.published.store import open_store
from tests.conftest import (
    AS_OF,
    mlflow_server,
    run_feast,
    unused_port,
)
from tests.support.feature_engine.installation import Snapshot, published
from tests.support.feature_engine.shop import HOUR, VIEW, Shop

MODEL = "customer_churn_model"
SERVICE = "customer_churn_v1"
FUNCTION = "customer_recency"
SCHEMA = f"service.{SERVICE}"
OTHER_HASH = "0123456789abcdef"
LINE_OF_GYRE = re.compile("^gyre: (.*)", re.MULTILINE)
TRAINED = f"version 1 of {MODEL} (production) was trained with another definition"


class Stack(Shop):
    """An installation with Redis and MLflow, in which a version needs no training."""

    def __init__(self, settings):
        super().__init__(settings, settings.sources["orders"])
        self.client = MlflowClient(settings.mlflow_address, settings.mlflow_address)

    def ingest(self, hours, **changed_settings):
        settings = self.settings.model_copy(update=changed_settings)
        return ingest(settings, "orders", AS_OF + hours * HOUR)

    def definitions(self):
        return PublishedService(self.settings, SERVICE).definitions()

    def register(self, **other_definitions):
        """Put a version into production that was trained with other definitions than now's."""
        tags = {"feature_service": SERVICE, "table.raw.orders": "1"}
        for name, definition in (self.definitions() | other_definitions).items():
            tags[DEFINITION_TAG + name] = definition
        self.client.create_registered_model(MODEL)
        run = self.client.create_run("0").info
        self.client.create_model_version(MODEL, run.artifact_uri, run.run_id, tags)
        self.client.set_registered_model_alias(MODEL, "production", "1")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory, some_orders):
    home = tmp_path_factory.mktemp("checked")
    sources = {"orders": str(some_orders)}
    with published(home, sources=sources) as settings, mlflow_server(settings):
        ingest(settings, "orders", AS_OF)
        yield Snapshot(settings, "ingested")


@pytest.fixture
def stack(snapshot):
    stack = Stack(snapshot.restore())
    yield stack
    for model in stack.client.search_registered_models():
        stack.client.delete_registered_model(model.name)


@pytest.mark.parametrize(
    ("name", "view"),
    [
        (VIEW, f"customer_features ({', '.join(SERVED_FEATURES)})"),
        (FUNCTION, "customer_recency (days_since_last_order, customer_tenure_days)"),
        (SCHEMA, SCHEMA),
    ],
)
def test_a_changed_definition_is_refused_and_the_features_become_late(
    stack, name, view
):
    stack.register(**{name: OTHER_HASH})
    before = stack.online(AS_OF, *range(1, 50))
    with pytest.raises(DefinitionChangedError) as refusal:
        stack.ingest(1)
    assert f"{view} changed: {TRAINED}." in str(refusal.value)
    assert "GYRE_CHANGE_LIVE_FEATURES=true gyre ingest orders" in str(refusal.value)
    assert stack.online(AS_OF, *range(1, 50)) == before
    record = read_record(stack.settings, "orders")
    ((cause, _),) = record.problems(AS_OF + 3 * HOUR, 2 * HOUR)
    assert cause == "orders: features are not complete"


def test_a_change_accepted_once_is_accepted_until_the_next_change(stack):
    stack.register(**{VIEW: OTHER_HASH})
    stack.ingest(1, change_live_features=True)
    stack.ingest(2)
    tag = f"accepted_definition.{VIEW}"
    note = stack.client.get_model_version(MODEL, "1").tags[tag]
    assert f"at {AS_OF + HOUR:%Y-%m-%d %H:%M} UTC by " in note
    stack.client.set_model_version_tag(MODEL, "1", tag, "fedcba9876543210 by somebody")
    with pytest.raises(DefinitionChangedError):
        stack.ingest(3)


def test_an_unchanged_view_is_ingested_without_mlflow_and_a_changed_view_is_not(
    stack, caplog
):
    stack.register()
    port = unused_port()
    stack.ingest(1, mlflow_port=port)
    assert "orders: definitions are not compared: MLflow does not answer" in caplog.text
    shutil.rmtree(stack.settings.data / "features" / VIEW)
    with pytest.raises(RegistryError, match="MLflow does not answer"):
        stack.ingest(2, mlflow_port=port)


def test_feast_apply_reports_changes_that_the_next_ingest_refuses(stack):
    stack.register(**{VIEW: OTHER_HASH})
    (line,) = LINE_OF_GYRE.findall(run_feast(stack.settings, "apply"))
    assert line.startswith("customer_features (total_orders_30d, ")
    assert f"changed: {TRAINED}: gyre ingest will refuse that" in line
    without_mlflow = {"GYRE_MLFLOW_PORT": str(unused_port())}
    (line,) = LINE_OF_GYRE.findall(run_feast(stack.settings, "apply", **without_mlflow))
    assert line.startswith(
        "the definitions of versions in a role are not known: MLflow"
    )


def test_the_time_to_live_of_a_view_is_part_of_the_schema(stack):
    before = stack.definitions()
    store = open_store(stack.settings, 60)
    view = store.get_feature_view(VIEW)
    view.ttl = timedelta(days=30)
    store.apply(view)
    definitions = stack.definitions()
    assert {name for name in before if definitions[name] != before[name]} == {SCHEMA}
