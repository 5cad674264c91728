"""What deploy/compose.yaml, env.example and secrets.sh say of each other; no container is started."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from core.project import CLONE
from core.settings import load_settings

DEPLOY = CLONE / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
EXAMPLE = (DEPLOY / "env.example").read_text()
BROKER = COMPOSE["services"]["kafka"]
ADDRESS = "kafka://kafka:9092"
VARIABLES = ("EVENTS_URL", "PREDICTIONS_TOPIC", "DECISIONS_TOPIC")
"""Of Kafka, in deploy/.env."""
SECRETS = ("gyre_kafka", "gyre_schema_registry")
LOGIN = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_username": "gyre",
    "sasl_password": "secret",
}
REGISTRY = {"url": "https://registry.example.com"}


@pytest.fixture
def secrets(tmp_path):
    """The folder that secrets.sh fills."""
    script = shutil.copy(DEPLOY / "secrets.sh", tmp_path)
    subprocess.run([script], check=True, capture_output=True)
    return tmp_path / "secrets"


@pytest.fixture
def read(secrets, tmp_path, monkeypatch):
    """Reads the settings of Kafka as a container does, by variables of deploy/.env."""

    def read(**variables):
        monkeypatch.setenv("GYRE_SECRETS_DIR", str(secrets))
        for name in VARIABLES:
            variable = f"GYRE_{name}"
            assert COMPOSE["x-environment"][variable] == f"${{{name}:-}}"
            monkeypatch.setenv(variable, variables.get(name, ""))
        return load_settings(home=tmp_path / "home")

    return read


def test_every_secret_is_used_declared_and_written(secrets):
    declared = COMPOSE["secrets"]
    used = {
        name
        for service in COMPOSE["services"].values()
        for name in service.get("secrets", ())
    }
    assert used == declared.keys()
    assert used == {file.name for file in secrets.iterdir()}
    for name, secret in declared.items():
        assert secret == {"file": f"secrets/{name}"}


def test_every_variable_of_the_example_is_read():
    named = {*re.findall(r"^(?:# )?([A-Z_]+)=", EXAMPLE, re.MULTILINE)}
    assert {*VARIABLES} <= named
    assert named - {"COMPOSE_PROFILES"} <= {*re.findall(r"\$\{(\w+)", TEXT)}


def test_without_a_kafka_no_setting_of_one_is_there(read):
    settings = read()
    assert settings.events_url is None
    assert settings.kafka == {}
    assert settings.schema_registry == {}
    assert not settings.predictions_topic
    assert not settings.decisions_topic


def test_logins_are_in_the_files_alone_and_no_empty_one_reaches_librdkafka(
    read, secrets
):
    nested = ("GYRE_KAFKA", "GYRE_SCHEMA_REGISTRY")
    assert not [name for name in COMPOSE["x-environment"] if name.startswith(nested)]
    for name, content in zip(SECRETS, (LOGIN, REGISTRY), strict=True):
        (secrets / name).write_text(json.dumps(content))
    settings = read(EVENTS_URL=ADDRESS, PREDICTIONS_TOPIC="predictions")
    assert settings.events_url == ADDRESS
    assert settings.kafka == LOGIN
    assert settings.schema_registry == REGISTRY
    assert settings.predictions_topic == "predictions"


def test_the_broker_of_the_profile_is_reached_by_the_name_of_its_service():
    assert f"\n# EVENTS_URL={ADDRESS}\n" in EXAMPLE
    assert BROKER["profiles"] == ["kafka"]
    host, port = ADDRESS.removeprefix("kafka://").split(":")
    assert host in COMPOSE["services"]
    environment = BROKER["environment"]
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{host}:{port}"
    # Who may write metadata is not asked: no other container reaches the controller.
    listeners = f"PLAINTEXT://:{port},CONTROLLER://127.0.0.1:9093"
    assert environment["KAFKA_LISTENERS"] == listeners
    assert BROKER["healthcheck"]["test"][-1].endswith(port)
    (volume,) = BROKER["volumes"]
    assert volume == f"kafka:{environment['KAFKA_LOG_DIRS']}"
    assert "kafka" in COMPOSE["volumes"]
    assert "ports" not in BROKER
    assert "mem_limit" in BROKER


def test_nothing_waits_for_a_broker_that_a_team_may_not_start():
    for service in COMPOSE["services"].values():
        if "profiles" not in service:
            assert "kafka" not in service.get("depends_on", {})
