"""No message about a setting has a secret of it, and an address that is shown has no login."""

import json
import traceback

import pytest

from core.errors import SettingsError
from core.settings import LOGINS, SECRETS, Settings, load_settings
from feature_repo.online_store import redis_place
from stack.programs import used_elsewhere

PASSWORD = "hunter2secret"
SCHEMES = {
    "DATABASE_URL": "postgresql",
    "LEDGER_URL": "postgresql",
    "REDIS_URL": "redis",
    "MLFLOW_URL": "http",
    "AIRFLOW_URL": "http",
    "SERVING_URL": "http",
    "LINKS__MLFLOW": "http",
    "DATA_URL": "s3",
    "ARTIFACTS_URL": "s3",
}
UNREADABLE = (
    "{password}/x@host",
    "{password}?x@host",
    "{password}#x@host",
    "x[{password}@host",
    "[{password}@[::1]",
    "{password}]x@host",
    "12/{password}@host",
    "12#{password}@host",
    "12?{password}@host",
    "{password}@x@host",
    "x@{password}@host",
    "{password}%40host",
    "{password}\uff20host",
    "{password}",
)
"""What may stand behind `scheme://user:`, for an address that not every client reads alike."""
VALUES = (
    ("KAFKA", {"sasl_password": PASSWORD, "group_id": "x"}),
    ("KAFKA", {"sasl_password": [PASSWORD]}),
    ("KAFKA", {f"u:{PASSWORD}@host": 1}),
    ("KAFKA", [PASSWORD]),
    ("KAFKA", PASSWORD),
    ("SCHEMA_REGISTRY", {"basic_auth_user_info": {"u": PASSWORD}}),
    ("SCHEMA_REGISTRY", PASSWORD),
    ("ONLINE_STORE", {"connection_string": [PASSWORD]}),
    ("ONLINE_STORE", PASSWORD),
    ("SOURCES", {"orders": [f"postgresql://u:{PASSWORD}@host"]}),
    ("SOURCES", {f"postgresql://u:{PASSWORD}@host": 1}),
    ("SOURCES", [f"postgresql://host?password={PASSWORD}"]),
    ("LINKS", {"mlflow": [f"http://u:{PASSWORD}"]}),
    ("LINKS", {f"http://u:{PASSWORD}@host": "http://host"}),
    ("KEEP_DAYS", {"scores": f"u:{PASSWORD}@host"}),
)


def problem(monkeypatch, name, value):
    """The message about a setting, and what a log with the causes of the error shows."""
    monkeypatch.setenv(f"GYRE_{name}", value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    log = "".join(traceback.format_exception(raised.value))
    assert PASSWORD not in log.lower()
    return str(raised.value)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("rest", UNREADABLE)
def test_an_address_that_cannot_be_read_is_not_shown(monkeypatch, name, rest):
    address = f"{SCHEMES[name]}://user:{rest.format(password=PASSWORD)}"
    text = problem(monkeypatch, name, address)
    assert text.startswith(
        f"GYRE_{name}: expected an address with a number as its port"
    )
    assert "%2F for /" in text


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_a_value_of_a_wrong_type_is_not_shown(monkeypatch, name, value):
    text = problem(monkeypatch, name, json.dumps(value))
    assert text.startswith(f"GYRE_{name}")


def test_people_with_passwords_in_place_of_roles_are_not_shown(monkeypatch):
    text = problem(monkeypatch, "AIRFLOW_USERS", f"ann:{PASSWORD}")
    assert text.startswith("GYRE_AIRFLOW_USERS: expected NAME:ROLE")


def test_the_content_of_a_secret_file_is_not_shown(monkeypatch, tmp_path):
    (tmp_path / "gyre_default_model").write_text("model")
    (tmp_path / "gyre_serving_workers").write_text(PASSWORD)
    monkeypatch.setenv("GYRE_SECRETS_DIR", str(tmp_path))
    text = problem(monkeypatch, "DEFAULT_MODEL", "model")
    assert text.startswith("GYRE_SERVING_WORKERS: ")


def test_another_value_is_shown(monkeypatch):
    text = problem(monkeypatch, "SERVING_PORT", "eighty")
    assert text.endswith("(found 'eighty')")


@pytest.mark.parametrize("name", LOGINS)
@pytest.mark.parametrize(
    "rest",
    [
        f"u:{PASSWORD}@host",
        f"{PASSWORD}@host",
        f":{PASSWORD}@host:1",
        f"{PASSWORD}%40host",
        f"host/?token={PASSWORD}",
        f"host/#{PASSWORD}",
    ],
)
def test_an_address_that_messages_show_has_no_login(monkeypatch, name, rest):
    variable = "LINKS__MLFLOW" if name == "links" else name.upper()
    text = problem(monkeypatch, variable, f"{SCHEMES[variable]}://{rest}")
    expected = "expected an address without a login and options, which messages would"
    assert text == f"GYRE_{name.upper()}: {expected} show: {LOGINS[name]}"


def test_each_of_several_addresses_of_serving_has_no_login(monkeypatch):
    addresses = f"http://one:8000 http://u:{PASSWORD}@two:8000"
    text = problem(monkeypatch, "SERVING_URL", addresses)
    assert LOGINS["serving_url"] in text


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("database_url", "postgresql://u:a%2Fb%40c%23@host:1/db?sslmode=require"),
        ("database_url", "postgresql://%2Frun%2Fpostgresql/db"),
        ("redis_url", "rediss://:a%3Fb@host:6379/0"),
        ("data_url", "s3://bucket/a@b:c"),
        ("artifacts_url", "sftp://user:password@host/artifacts"),
        ("serving_url", "http://one:8000 http://[::1]:8000"),
        ("airflow_url", "https://host:8443/airflow"),
    ],
)
def test_other_addresses_are_taken(tmp_path, name, address):
    settings = Settings(home=tmp_path, **{name: address})
    assert getattr(settings, name) == address


def test_gyre_up_names_redis_without_its_password(tmp_path):
    for login, options in ((f":{PASSWORD}@", ""), ("", f"?password={PASSWORD}")):
        address = f"redis://{login}host:6379/0{options}"
        settings = Settings(home=tmp_path, redis_url=address)
        assert PASSWORD not in redis_place(settings)
        (line,) = used_elsewhere(settings)
        assert "host:6379/0" in line
        assert PASSWORD not in line


def test_every_secret_is_a_setting():
    assert Settings.model_fields.keys() >= SECRETS | LOGINS.keys()
