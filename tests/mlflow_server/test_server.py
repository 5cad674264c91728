"""How the server is started: one process, on loopback, for browsers of this machine only."""

from contextlib import closing

import httpx
import psutil
import pytest

from core.settings import Settings
from mlflow_server.ledger import Ledger
from tests.conftest import BIN, answers, running, unused_port, wait_until
from tests.mlflow_server.conftest import new_model


def test_the_server_is_one_process_that_listens_on_loopback(settings):
    arguments = {"mlflow_server.app:app", str(settings.mlflow_port)}
    children = psutil.Process().children(recursive=True)
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    (ours,) = [child for child in living if arguments <= {*child.cmdline()}]
    assert ours.children(recursive=True) == []
    connections = ours.net_connections()
    assert {c.laddr.ip for c in connections if c.status == "LISTEN"} == {"127.0.0.1"}
    assert ours.memory_full_info().pss < 300 * 2**20


def test_foreign_hosts_and_origins_are_refused(settings):
    ask = f"{settings.mlflow_address}/api/2.0/mlflow/experiments/get?experiment_id=0"
    make = f"{settings.mlflow_address}/api/2.0/mlflow/experiments/create"
    here = f"localhost:{settings.mlflow_port}"
    for name, status in ((here, 200), ("evil.example", 403)):
        assert httpx.get(ask, headers={"host": name}).status_code == status
        origin = {"origin": f"http://{name}"}
        answer = httpx.post(make, json={"name": name}, headers=origin)
        assert answer.status_code == status
    assert httpx.get(settings.mlflow_address).status_code == 200


@pytest.mark.nightly
def test_mlflows_own_command_enters_a_role_changed_in_the_ui_in_the_ledger(tmp_path):
    settings = Settings(home=tmp_path / "home", mlflow_port=unused_port())
    command = [str(BIN / "mlflow"), "server", "--app-name=gyre", "--workers=1"]
    address = ["--host=127.0.0.1", f"--port={settings.mlflow_port}"]
    env = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
        "GYRE_HOME": str(settings.home),
        "GYRE_MLFLOW_PORT": str(settings.mlflow_port),
    }
    settings.home.mkdir()
    with running([*command, *address], tmp_path / "log", **env) as process:
        wait_until("MLflow", lambda: answers(f"{settings.mlflow_address}/health"))
        model = new_model(settings, 1)
        url = f"{settings.mlflow_address}/api/2.0/mlflow/registered-models/alias"
        change = {"name": model, "alias": "production", "version": "1"}
        answer = httpx.post(
            url, json=change, headers={"x-forwarded-user": "ann"}, timeout=60
        )
        assert answer.status_code == httpx.codes.OK
        process.terminate()  # it passes that on to its server
        process.wait(600)
    with closing(Ledger(settings)) as ledger:
        (row,) = ledger.rows(model)
    assert (row.to_version, row.who) == ("1", "mlflow-ui:ann")
