"""`gyre config`: each setting with its source, and no secret."""

import json
import re

import pytest

from core.project import PROJECT
from core.settings import Settings
from tests.support.tools.clone import finished, outer_environment

HIDDEN = "hidden-by-gyre"
LOGIN = f"ann:{HIDDEN}@host"
SECRETS = {
    "GYRE_REDIS_URL": f"redis://:{HIDDEN}@host:6379/0",
    "GYRE_ONLINE_STORE__CONNECTION_STRING": HIDDEN,
    "GYRE_ONLINE_STORE__TYPE": "dynamodb",
    "GYRE_KAFKA__SASL_PASSWORD": HIDDEN,
    "GYRE_SCHEMA_REGISTRY__BASIC_AUTH_USER_INFO": HIDDEN,
    "GYRE_AIRFLOW_PASSWORD": HIDDEN,
    "GYRE_AIRFLOW_TOKEN": HIDDEN,
    "GYRE_LEDGER_URL": f"postgresql://host/gyre?password={HIDDEN}",
    "GYRE_DATABASE_URL": f"postgresql://host/gyre?password={HIDDEN}",
    "GYRE_ARTIFACTS_URL": f"sftp://{LOGIN}/artifacts",
    "GYRE_SOURCES__ORDERS": f"postgresql://{LOGIN}/shop#orders",
    "GYRE_ALERT_URLS": f"slack://{HIDDEN}",
}


@pytest.fixture
def config(tmp_path):
    """A command of a shell with a home, and with variables that tests add."""
    (tmp_path / "home").mkdir()
    variables = outer_environment() | {"GYRE_HOME": f"{tmp_path}/home"}

    def call(arguments="", code=0, **more):
        command = f"gyre config {arguments}"
        return finished(command, PROJECT, variables | more, code)

    return call


def rows(done):
    return {row["setting"]: row for row in json.loads(done.stdout)}


def test_each_setting_has_its_value_and_its_source(config, tmp_path):
    home = tmp_path / "home"
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "gyre_default_model").write_text("customer_churn_model")
    (secrets / "gyre_engine").write_text("spark")
    (home / "gyre.env").write_text(
        "GYRE_SERVING_WORKERS=3\nGYRE_ENGINE=duckdb\nGYRE_HOST=127.0.0.2\n"
    )
    variables = {
        "GYRE_SECRETS_DIR": str(secrets),
        "REDIS_URL": "redis://host:6379",
        "GYRE_HOST": "127.0.0.3",
    }
    settings = rows(config("--json", **variables))
    assert [*settings] == [f"GYRE_{name.upper()}" for name in Settings.model_fields]
    for name, value, source in (
        ("HOME", str(home), "environment"),
        ("HOST", "127.0.0.3", "environment"),
        ("REDIS_URL", "set", "environment"),
        ("ENGINE", "duckdb", "gyre.env"),
        ("SERVING_WORKERS", 3, "gyre.env"),
        ("DEFAULT_MODEL", "set", "secret file"),
        ("BEHIND_PROXY", False, "default"),
    ):
        row = {"setting": f"GYRE_{name}", "value": value, "source": source}
        assert settings[f"GYRE_{name}"] == row
    table = config(**variables).stdout
    assert re.search(r"^GYRE_HOST +127\.0\.0\.3 +environment$", table, re.MULTILINE)
    (row,) = rows(config("GYRE_HOST --json", **variables)).values()
    meaning = Settings.model_fields["host"].description
    assert row == settings["GYRE_HOST"] | {"meaning": meaning}
    error = config("GYRE_HOSTS", 2).stderr
    assert (
        error == "gyre: GYRE_HOSTS is not a setting; gyre config lists all settings\n"
    )


def test_no_secret_is_shown(config):
    assert HIDDEN not in config(**SECRETS).stdout
    done = config("--json", **SECRETS)
    assert HIDDEN not in done.stdout
    settings = rows(done)
    for name in SECRETS:
        row = settings[name.partition("__")[0]]
        assert (row["value"], row["source"]) == ("set", "environment"), name


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal_and_has_no_colour_where_none_is_wanted(
    config, width
):
    terminal = f"; stty cols {width}; gyre config GYRE_DATA_URL; gyre config"
    command = f"> /dev/null; script --quiet --command '{terminal[2:]}' /dev/null"
    text = config(command, TERM="xterm-256color", NO_COLOR="1").stdout
    assert not re.search(r"\x1b\[[\d;]*[34]\dm", text)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")
    assert "GYRE_CHANGE_LIVE_FEATURES" in plain
    assert max(len(line) for line in plain.splitlines()) <= width
