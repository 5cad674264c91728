"""The login at a team's MLflow that is wrong for a while."""

import shutil
from dataclasses import replace

import psutil

from tests.conftest import unused_port, wait_until
from tests.support.serving.load import under_load
from tests.support.tools.team_mlflow import USER, team_mlflow

NEW_PASSWORD = "another-long-password"


def asks_mlflow(client):
    return client.get("/status").json()["resources"]["mlflow"]


def write_credentials(home, password):
    """As MLflow's client reads them."""
    lines = ["[mlflow]", f"mlflow_tracking_username = {USER[0]}"]
    lines.append(f"mlflow_tracking_password = {password.replace('%', '%%')}")
    (home / ".mlflow").mkdir(exist_ok=True)
    (home / ".mlflow" / "credentials").write_text("\n".join(lines))


def at_team(rig, team, home):
    """The same parts, but for MLflow and what belongs to it."""
    (home / "serving").mkdir(parents=True)
    shutil.copytree(rig.settings.home / "feast", home / "feast")
    (home / "data").symlink_to(rig.settings.home / "data")
    changed = {"home": home, "serving_port": unused_port(), "mlflow_url": team.address}
    return replace(rig, settings=rig.settings.model_copy(update=changed))


def test_serving_goes_on_with_a_wrong_login_and_recovers_without_a_restart(
    rig, tmp_path, monkeypatch
):
    with team_mlflow(tmp_path / "team") as team:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(team.authority))
        monkeypatch.setenv("GYRE_MLFLOW_URL", team.address)
        write_credentials(tmp_path, USER[1])
        here = at_team(rig, team, tmp_path / "home")
        first = here.register(-1.0).version
        second = here.register(0.5).version
        here.promote(first)
        log = here.folder / "serving.log"
        start = log.stat().st_size if log.exists() else 0
        with here.serving() as (client, process):
            here.answers_as(client, first)
            with under_load(client) as answers:
                new_login = {"username": USER[0], "password": NEW_PASSWORD}
                team.as_admin("PATCH", "users/update-password", **new_login)
                wait_until("a refusal", lambda: not asks_mlflow(client)["ok"])
                detail = asks_mlflow(client)["detail"]
                assert "\n" not in detail
                assert f"the login of the user {USER[0]!r} (401" in detail
                assert "or ~/.mlflow/credentials" in detail
                here.known_to_be_ready(client)
                write_credentials(tmp_path, NEW_PASSWORD)
                wait_until("the login", lambda: asks_mlflow(client)["ok"])
                here.swap(client, second)
            assert {answer.status for answer in answers} == {200}
            assert {answer.version for answer in answers} == {first, second}
            shown_texts = [client.get("/status").text, client.get("/metrics").text]
            server = psutil.Process(process.pid)
            for each in (server, *server.children(recursive=True)):
                shown_texts += each.cmdline()
        shown_texts.append(log.read_bytes()[start:].decode())
    for text in shown_texts:
        assert USER[1] not in text
        assert NEW_PASSWORD not in text
