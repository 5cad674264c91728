"""Before anything is written online, ingest asks what versions in a role were trained with."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta

import pytest
from mlflow import MlflowClient
from redis import Redis

from core.errors import RegistryError
from core.settings import PROJECT
from feature_repo.dataset_record import read_record
from feature_repo.datasets.orders import SERVED_FEATURES
from feature_repo.definition_check import DefinitionChangedError
from feature_repo.definition_hash import DEFINITION_TAG
from feature_repo.ingest import ingest
from feature_repo.service import PublishedService
from feature_repo.store import open_store
from stack.environment import process_environment
from tests.conftest import (
    AS_OF,
    feast_apply,
    mlflow_server,
    new_settings,
    redis_server,
    unused_port,
)
from tests.feature_repo.conftest import Snapshot, online_reader
from tests.preloaded import commands_folder

MODEL, SERVICE = "customer_churn_model", "customer_churn_v1"
HOUR = timedelta(hours=1)
VIEW, FUNCTION, SCHEMA = "customer_features", "customer_recency", f"service.{SERVICE}"
ANOTHER = {VIEW: "0123456789abcdef"}
TRAINED = f"version 1 of {MODEL} (production) was trained with another definition"


class Stack:
    """An installation with Redis and MLflow, in which a version needs no training."""

    def __init__(self, settings):
        self.settings = settings
        self.client = MlflowClient(settings.mlflow_address, settings.mlflow_address)

    def ingest(self, hours=0, **changed):
        settings = self.settings.model_copy(update=changed)
        return ingest(settings, "orders", AS_OF + hours * HOUR)

    def register(self, dataset="orders", service=SERVICE, **other):
        """Put a version into production: with the definitions published now but for `other`."""
        definitions = PublishedService(self.settings, SERVICE).definitions() | other
        hashes = {f"{DEFINITION_TAG}{name}": text for name, text in definitions.items()}
        hashes[f"table.raw.{dataset}"] = "1"
        tags = {"feature_service": service, "lineage": json.dumps(hashes)}
        self.client.create_registered_model(MODEL)
        run = self.client.create_run("0").info
        self.client.create_model_version(MODEL, run.artifact_uri, run.run_id, tags)
        self.client.set_registered_model_alias(MODEL, "production", "1")

    def tags(self):
        return self.client.get_model_version(MODEL, "1").tags

    def online(self):
        reader = online_reader(self.settings, SERVICE, ["lifetime_orders", "lifetime_value"])
        return reader.read([{"customer_id": number} for number in range(1, 50)], AS_OF)

    def alerts(self):
        path = self.settings.home / "logs" / "alerts.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["message"] for line in lines]

    def feast_apply(self, **variables):
        done = subprocess.run(
            [commands_folder() / "feast", "apply"],
            cwd=PROJECT / "feature_repo",
            env=process_environment(self.settings) | variables,
            capture_output=True,
            check=True,
            text=True,
        )
        return [line for line in done.stderr.splitlines() if line.startswith("gyre: ")]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory, some_orders):
    settings = new_settings(
        tmp_path_factory.mktemp("checked"), sources={"orders": str(some_orders)}
    )
    with (
        redis_server(settings.redis_port, settings.home),
        mlflow_server(settings, commands_folder() / "python"),
    ):
        Redis(port=settings.redis_port).config_set("appendonly", "no")
        feast_apply(settings)
        ingest(settings, "orders", AS_OF)
        yield Snapshot(settings, "ingested")


@pytest.fixture
def stack(snapshot):
    stack = Stack(snapshot.restore())
    (stack.settings.home / "logs" / "alerts.log").unlink(missing_ok=True)
    yield stack
    for model in stack.client.search_registered_models():
        stack.client.delete_registered_model(model.name)


def test_what_was_trained_with_the_definitions_of_now_holds_up_no_ingest(stack):
    stack.register()
    assert stack.ingest(1).as_of == AS_OF + HOUR
    assert stack.feast_apply() == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (VIEW, f"customer_features ({', '.join(SERVED_FEATURES)})"),
        (FUNCTION, "customer_recency (days_since_last_order, customer_tenure_days)"),
        (SCHEMA, "service.customer_churn_v1"),
    ],
)
def test_another_definition_is_refused_and_the_features_become_late(stack, name, said):
    stack.register(**{name: "0123456789abcdef"})
    before = stack.online()
    for hours in (1, 2):
        with pytest.raises(DefinitionChangedError) as refusal:
            stack.ingest(hours)
        assert f"{said} changed: {TRAINED}." in str(refusal.value)
        assert "GYRE_CHANGE_LIVE_FEATURES=true gyre ingest orders" in str(refusal.value)
    assert stack.online() == before
    record = read_record(stack.settings, "orders")
    assert record.problems(AS_OF + 2 * HOUR) == []
    ((cause, _),) = record.problems(AS_OF + 3 * HOUR)
    assert cause == "orders: features are not complete"


def test_an_explicit_word_holds_until_the_next_change(stack):
    stack.register(**ANOTHER)
    stack.ingest(1, change_live_features=True)
    stack.ingest(2)
    accepted = f"accepted_definition.{VIEW}"
    assert f"at {AS_OF + HOUR:%Y-%m-%d %H:%M} UTC by " in stack.tags()[accepted]
    stack.client.set_model_version_tag(MODEL, "1", accepted, "fedcba9876543210 by somebody")
    with pytest.raises(DefinitionChangedError):
        stack.ingest(3)


def test_a_service_that_is_gone_is_another_definition(stack):
    stack.register(service="customer_churn_v0")
    with pytest.raises(DefinitionChangedError, match=f"{VIEW}, {FUNCTION}, {SCHEMA}"):
        stack.ingest(1)
    stack.ingest(1, change_live_features=True)
    stack.ingest(2)


def test_versions_that_read_another_dataset_do_not_count(stack):
    stack.register(dataset="visits", **ANOTHER)
    stack.ingest(1)


def test_without_mlflow_the_same_view_goes_on_and_another_does_not(stack, caplog):
    stack.register()
    away = unused_port()
    stack.ingest(1, mlflow_port=away)
    assert "orders: definitions are not compared: MLflow does not answer" in caplog.text
    (stack.settings.data / "features" / VIEW / "_delta_log").rename(stack.settings.home / "log")
    with pytest.raises(RegistryError, match="MLflow does not answer"):
        stack.ingest(2, mlflow_port=away)


def test_feast_apply_says_what_the_next_ingest_refuses(stack):
    stack.register(**ANOTHER)
    (line,) = stack.feast_apply()
    assert line.startswith("gyre: customer_features (total_orders_30d, ")
    assert f"changed: {TRAINED}: gyre ingest will refuse that" in line
    (line,) = stack.feast_apply(GYRE_MLFLOW_PORT=str(unused_port()))
    assert line.startswith("gyre: what versions in a role were trained with is not known: MLflow")


def test_how_long_values_hold_is_part_of_the_schema(stack):
    definitions = PublishedService(stack.settings, SERVICE).definitions()
    store = open_store(stack.settings, 60)
    view = store.get_feature_view(VIEW)
    view.ttl = timedelta(days=30)
    store.apply(view)
    now = PublishedService(stack.settings, SERVICE).definitions()
    assert {name for name in now if now[name] != definitions[name]} == {SCHEMA}
