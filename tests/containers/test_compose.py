"""deploy/compose.yaml as docs/deploy.md has it: what would be pulled is stood in for.

Podman 4.3 runs no health check by itself, and starts nothing in order: here a loop does both.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from ast import literal_eval
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from core.project import CLONE
from tests.conftest import BIN, at_most, unused_port, wait_until
from tests.containers.conftest import logs
from tests.faults.conftest import more
from tests.support.serving.load import repeated
from tests.support.tools.clone import finished
from tests.support.tools.images import CLONE_ID, podman

pytestmark = pytest.mark.containers
PAGE = (CLONE / "docs" / "deploy.md").read_text()
_, SECRETS, _, TRAIN, PREDICT = re.findall(
    r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
)
COMPOSE = yaml.safe_load((CLONE / "deploy" / "compose.yaml").read_text())
SERVICES = {
    name: each for name, each in COMPOSE["services"].items() if "profiles" not in each
}
SPARK = ("spark-master", "spark-worker")
PORTS = ("SERVING_PORT", "CONSOLE_PORT", "MLFLOW_PORT", "AIRFLOW_PORT", "GRAFANA_PORT")
PROJECT = f"gyre-{CLONE_ID}"
MODEL = "customer_churn_model"
PASSWORD = "a password"
ANN = ("ann", PASSWORD)
NETWORK = "172.29.48"
REPLICAS = {"serving-a": f"{NETWORK}.11", "serving-b": f"{NETWORK}.12"}
ALIAS = "ajax-api/2.0/mlflow/registered-models/alias"
BODY = {"customer_id": 1}
CLIENTS = 4
ENDED = {"condition": "service_completed_successfully"}
JOBS = """
import json
from urllib.request import urlopen
state = json.load(urlopen("http://127.0.0.1:8080/json/"))
print([job["state"] for job in state["completedapps"]])
"""


class Team:
    """Who follows the page, in a folder of their own."""

    def __init__(self, folder, images):
        self.folder = folder
        self.ports = {name: unused_port() for name in PORTS}
        network = {"LISTEN": "127.0.0.1", "NETWORK": NETWORK}
        self.settings = images | network | self.ports
        hidden = shutil.ignore_patterns("secrets", ".env")
        shutil.copytree(CLONE / "deploy", folder / "deploy", ignore=hidden)

    def shell(self, script, timeout=1500, **variables):
        environment = os.environ | {"PASSWORD": PASSWORD} | variables
        return finished(script, self.folder, environment, 0, timeout).stdout

    def compose(self, arguments, **variables):
        command = (
            f"cd deploy && {BIN}/podman-compose --in-pod=false --project-name={PROJECT}"
        )
        self.shell(f"{command} {arguments}", 600, **variables)

    def start(self, service):
        self.compose(f"up --detach --no-deps {service}")

    def up(self):
        """What `docker compose up --wait` does."""
        for name, service in SERVICES.items():
            for need in service.get("depends_on", {}).items():
                wait_until(f"{need}", partial(fulfilled, *need))
            self.start(name)
        for name, service in SERVICES.items():
            if "healthcheck" in service:
                wait_until(name, partial(is_healthy, name))

    def ask(self, port, method, path, person=ANN, **more):
        """Ask through nginx."""
        url = f"https://localhost:{self.ports[port]}/{path}"
        options = {"auth": person, "verify": self.trusted(), "timeout": 600}
        return httpx.request(method, url, **options, **more)

    def trusted(self):
        certificate = f"{self.folder}/deploy/secrets/tls_certificate"
        return httpx.create_ssl_context(verify=certificate)

    def client(self):
        tokens = self.folder / "deploy" / "secrets" / "serving_tokens"
        _, token = tokens.read_text().strip().split(":")
        return httpx.Client(
            base_url=f"https://localhost:{self.ports['SERVING_PORT']}", verify=self.trusted(),
            headers={"authorization": f"Bearer {token}"}, timeout=30,
        )  # fmt: skip

    def gyre(self, command):
        return podman("exec", container("worker"), "gyre", *command.split(), ends=200)


def container(service):
    return f"{PROJECT}_{service}_1"


def is_healthy(name):
    with suppress(AssertionError):
        podman("healthcheck", "run", container(name))
        return True
    return False


def fulfilled(name, need):
    if need["condition"] == "service_healthy":
        return is_healthy(name)
    state = "--format={{.State.Status}} {{.State.ExitCode}}"
    with suppress(AssertionError):
        return podman("inspect", state, container(name)) == "exited 0"
    return False


@pytest.fixture(scope="module")
def team(build, stand_ins, tmp_path_factory):
    # What `gyre` holds, and Spark besides.
    images = {"GYRE_IMAGE": build("spark"), "SERVING_IMAGE": build("serving")}
    team = Team(tmp_path_factory.mktemp("team"), images)
    team.shell(SECRETS)
    with (team.folder / "deploy" / ".env").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in team.settings.items())
    try:
        team.up()
        yield team
    finally:
        for name in (*SERVICES, *SPARK):  # pytest shows it where a test fails
            lines = subprocess.getoutput(f"podman logs --tail 40 {container(name)}")
            sys.stdout.write(f"== {name}\n{lines}\n")
        team.compose("--profile=spark down --volumes --timeout=2")


@pytest.fixture(scope="module")
def trained(team):
    """The first version, by the page; the second by the shell. Answers what the first predicted."""
    return team.shell(TRAIN + PREDICT)


def versions(address):
    """Versions that a replica has in production."""
    text = httpx.get(f"http://{address}:8000/metrics", timeout=60).text
    line = rf'^gyre_model_info{{model="{MODEL}",role="production",version="(\d+)"}} 1'
    return re.findall(line, text, re.MULTILINE)


def is_answering(address, version):
    with suppress(httpx.HTTPError):
        return versions(address) == [version]
    return False


def test_the_first_version_is_trained_by_celery_workers_and_predicts_through_nginx(
    team, trained
):
    answer = yaml.safe_load(trained.splitlines()[-1])
    assert answer["model_version"] == "1"
    assert answer["logged"] is True
    assert "Task execute_workload" in logs(container("worker"))
    assert "airflow:ann" in team.gyre(f"ledger {MODEL}")


@pytest.mark.parametrize(
    "port", ["MLFLOW_PORT", "AIRFLOW_PORT", "CONSOLE_PORT", "GRAFANA_PORT"]
)
def test_nginx_refuses_strangers_and_foreign_origins(team, port):
    for stranger in (None, ("ann", "no"), ("mallory", PASSWORD)):
        assert team.ask(port, "GET", "", stranger).status_code == 401
    if port != "GRAFANA_PORT":
        assert team.ask(port, "GET", "").status_code == 200
    headers = {"sec-fetch-site": "cross-site"}
    foreign = team.ask(port, "POST", ALIAS, headers=headers, json={})
    assert foreign.status_code == 403


def test_serving_requires_its_own_token_and_hides_its_metrics(team):
    assert team.ask("SERVING_PORT", "POST", "predict", json=BODY).status_code == 401
    assert team.ask("SERVING_PORT", "GET", "health/live").status_code == 200
    assert team.ask("SERVING_PORT", "GET", "metrics").status_code == 404


def test_a_promotion_by_hand_has_the_user_of_nginx_and_reaches_both_replicas(
    team, trained
):
    team.gyre(f"train {MODEL} --force")
    for address in REPLICAS.values():
        wait_until("version 2", lambda at=address: versions(at) == ["2"], at_most(5))
    change = {"name": MODEL, "alias": "production", "version": "1"}
    claims = {"x-forwarded-user": "mallory", "x-remote-user": "mallory"}
    answer = team.ask("MLFLOW_PORT", "POST", ALIAS, json=change, headers=claims)
    assert answer.is_success
    began = time.monotonic()
    for address in REPLICAS.values():
        wait_until("version 1", lambda at=address: versions(at) == ["1"], at_most(5))
    assert time.monotonic() - began < at_most(5)
    *_, last = team.gyre(f"ledger {MODEL}").splitlines()
    assert re.search(r"2 → 1 +mlflow-ui:ann", last)


def test_predictions_continue_while_a_replica_is_killed(team, trained):
    """Nginx asks the other one, but for an answer whose first bytes it has passed on."""
    answers = []
    cut = []

    def ask(client):
        try:
            answers.append(client.post("/predict", json=BODY))
        except httpx.RemoteProtocolError as exc:
            cut.append(exc)

    with ExitStack() as clients:
        for _ in range(CLIENTS):
            client = clients.enter_context(team.client())
            clients.enter_context(repeated(partial(ask, client), 0))
        more(answers)
        podman("kill", container("serving-a"))
        more(answers)
    team.start("serving-a")
    wait_until("its versions", lambda: is_answering(REPLICAS["serving-a"], "1"))
    assert {answer.status_code for answer in answers} == {200}
    assert len(cut) < CLIENTS, "at most what was in flight there"
    ids = [answer.json()["request_id"] for answer in answers]
    assert len(set(ids)) == len(ids)


def test_the_workers_of_the_profile_spark_compute_features_for_an_airflow_task(
    team, trained
):
    for name in SPARK:
        team.compose(f"--profile=spark up --detach --no-deps {name}")
        wait_until(name, partial(is_healthy, SPARK[0]))
    team.compose("up --detach --no-deps --force-recreate worker", ENGINE="spark")
    order = {"order_id": 900_001, "number_of_cds": 1, "dollar_value": 24.9} | BODY
    order["order_ts"] = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    with team.client() as client:
        assert client.post("/events/orders", json=order).is_success
    ingest, _ = TRAIN.split(f"run train_{MODEL}")
    team.shell(ingest)
    states = podman("exec", container("spark-master"), "python", "-c", JOBS)
    assert {*literal_eval(states)} == {"FINISHED"}


def test_the_metrics_of_all_replicas_and_the_console_can_be_scraped(team):
    file = CLONE / "deploy" / "prometheus" / "compose.yml"
    targets = yaml.safe_load(file.read_text())
    (group,) = targets["scrape_configs"][0]["static_configs"]
    assert group["targets"] == ["serving-a:8000", "serving-b:8000", "console:8001"]
    for target in group["targets"]:
        script = f"import urllib.request as u; print(u.urlopen('http://{target}/metrics').status)"
        assert podman("exec", container("worker"), "python", "-c", script) == "200"


def test_redis_starts_again_after_a_full_disk_has_left_a_hole_in_its_file(team):
    """The hole is written by hand: the disk of a volume is the machine's."""
    name = container("redis")
    secret = team.folder / "deploy" / "secrets" / "redis_conf"
    _, password = secret.read_text().split()
    ask = ("exec", name, "redis-cli", "--no-auth-warning", "-a", password)
    assert podman(*ask, "SET", "before", "1") == "OK"
    podman("kill", name)
    volume = podman("volume", "inspect", "--format={{.Mountpoint}}", f"{PROJECT}_redis")
    *_, file = sorted(Path(volume).glob("appendonlydir/*.incr.aof"))
    after = b"*3\r\n$3\r\nSET\r\n$5\r\nafter\r\n$1\r\n2\r\n"
    with file.open("ab") as opened:
        opened.write(after[:10] + bytes(64) + after)
    team.start("redis")
    wait_until("its refusal", lambda: "Bad file format" in logs(name))
    team.start("redis-file")
    wait_until("the mended file", partial(fulfilled, "redis-file", ENDED))
    assert "were taken out" in logs(container("redis-file"))
    team.start("redis")
    wait_until("redis", partial(is_healthy, "redis"))
    assert podman(*ask, "MGET", "before", "after").split() == ["1", "2"]
