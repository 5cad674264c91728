"""The login at MLflow: where it is read, and what no message shows."""

import pytest

from core.errors import RegistryError, SettingsError
from core.settings import load_settings
from mlflow_server.api.login import (
    PASSWORD,
    SIGNING,
    TLS_VARIABLES,
    TOKEN,
    USERNAME,
    read_login,
    tls_context,
)

ANN = "Basic YW5uOmEgJSUgYg=="
"""Of `ann:a %% b`."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """No variable, no file; the folder of `.mlflow` and of secrets."""
    for name in (USERNAME, PASSWORD, TOKEN, *SIGNING, *TLS_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    return tmp_path


def write_credentials(home, *lines):
    (home / ".mlflow" / "credentials").write_text("\n".join(lines))


def header():
    return read_login().headers.get("authorization")


def test_a_variable_counts_more_than_mlflows_file(home, monkeypatch):
    assert header() is None
    user = "mlflow_tracking_username = ann"
    write_credentials(home, "[mlflow]", user, "mlflow_tracking_password = secret")
    assert header() == "Basic YW5uOnNlY3JldA=="
    write_credentials(home, "[mlflow]", user, "mlflow_tracking_password = a %%%% b")
    assert header() == ANN  # read anew each time
    monkeypatch.setenv(USERNAME, "bob")
    assert header() == "Basic Ym9iOmEgJSUgYg=="


def test_a_token_stands_in_for_a_missing_password(home, monkeypatch):
    monkeypatch.setenv(TOKEN, "abc")
    assert header() == "Bearer abc"
    monkeypatch.setenv(USERNAME, "ann")
    assert header() == "Bearer abc"
    monkeypatch.setenv(PASSWORD, "a %% b")
    assert header() == ANN


@pytest.mark.parametrize("line", ["mlflow_tracking_password = 5% off", "hidden"])
def test_a_file_that_mlflow_cannot_read_is_named_and_not_shown(home, line):
    write_credentials(home, "[mlflow]", "mlflow_tracking_username = ann", line)
    with pytest.raises(
        RegistryError, match=r"credentials: expected \[mlflow\]"
    ) as raised:
        read_login()
    error = raised.value
    assert error.__cause__ is None
    assert error.__suppress_context__  # a task of Airflow logs the causes, too
    assert "off" not in str(error)
    assert "hidden" not in str(error)


def test_signed_requests_are_refused_with_the_remedy(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "false")
    assert read_login().headers == {}
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    with pytest.raises(
        RegistryError, match=r"AWS_SIGV4 is set.* run a proxy that signs"
    ):
        read_login()


def test_a_refusal_names_the_user_and_no_secret(home, monkeypatch):
    monkeypatch.setenv(TOKEN, "hidden")
    users = {f"the bearer of {TOKEN}": {}, "the user 'ann'": {USERNAME: "ann"}}
    for user, variables in users.items():
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
            monkeypatch.setenv(PASSWORD, "hidden")
        login = read_login()
        for status in (401, 403):
            text = login.refusal(status, "runs/get")
            assert user in text
            assert "hidden" not in text
        assert f"correct {USERNAME} and {PASSWORD}" in login.refusal(401, "runs/get")
        assert login.refusal(200, "runs/get") is None
        assert login.refusal(500, "runs/get") is None


def test_a_certificate_that_cannot_be_read_is_named(home, monkeypatch):
    name = "MLFLOW_TRACKING_SERVER_CERT_PATH"
    monkeypatch.setenv(name, str(home / "ca.pem"))
    with pytest.raises(RegistryError, match=rf"{name}.*No such file.*ca\.pem"):
        tls_context()
    (home / "ca.pem").write_text("no certificate")
    with pytest.raises(RegistryError, match=name):
        tls_context()


def test_an_address_with_a_login_is_refused_and_not_shown(home, monkeypatch):
    monkeypatch.setenv("GYRE_MLFLOW_URL", "https://ann:hidden@mlflow.example.com")
    with pytest.raises(
        SettingsError, match=r"GYRE_MLFLOW_URL.* without a login"
    ) as raised:
        load_settings(home=home)
    assert "hidden" not in str(raised.value)
