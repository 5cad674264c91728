"""Nobody reads or writes a file of the machine through MLflow, and no route is served by accident."""

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import httpx
import mlflow
import pytest
from mlflow.entities import ViewType

from core.errors import ArtifactError, RegistryError
from core.settings import Settings
from mlflow_server.api.rest import read_artifact
from mlflow_server.api.tracking import Tracking
from mlflow_server.server.locations import Locations
from mlflow_server.server.routes import SERVED, route_name
from tests.conftest import BIN, mlflow_server, unused_port
from tests.mlflow_server.conftest import client
from tests.mlflow_server.refused_routes import REFUSED

LIST_ROUTES = """
import json
from mlflow.server import app as flask_app
from mlflow.server.fastapi_app import app

routes = [(method, route.path) for route in app.routes for method in getattr(route, "methods", ())]
for rule in flask_app.url_map.iter_rules():
    routes += [(method, rule.rule) for method in rule.methods - {"HEAD", "OPTIONS"}]
print(json.dumps(routes))
"""
SECRET = "what only the owner of the stack may read"
API = "api/2.0/mlflow"


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A file beside the store of the server."""
    file = tmp_path_factory.mktemp("owner") / "redis.conf"
    file.write_text(SECRET)
    return file


def post(settings, path, **body):
    return httpx.post(f"{settings.mlflow_address}/{path}", json=body, timeout=60)


def error_of(answer):
    assert answer.status_code in {400, 403}, answer.text
    return answer.json()["message"]


def test_each_route_of_mlflow_is_served_or_refused():
    listing = subprocess.run(
        [BIN / "python", "-c", LIST_ROUTES], check=True, capture_output=True
    ).stdout
    routes = {route_name(*route) for route in json.loads(listing)}
    assert routes - SERVED == REFUSED
    assert not SERVED - routes


@pytest.mark.parametrize(
    "call",
    [
        "POST /ajax-api/3.0/mlflow/assistant/message",
        "PUT /ajax-api/3.0/mlflow/assistant/config",
        "GET /ajax-api/2.0/mlflow/gateway-proxy?gateway_path=x",
        "POST /ajax-api/2.0/mlflow/upload-artifact?run_uuid=x&path=y",
        "POST /api/2.0/mlflow/webhooks",
        "POST /api/3.0/mlflow/gateway/secrets/create",
        "POST /api/2.0/mlflow/artifacts/presigned-upload-url",
        "POST /gateway/mlflow/v1/chat/completions",
        "POST /ajax-api/3.0/jobs/",
        "POST /api/3.0/mlflow/workspaces",
    ],
)
def test_a_refused_route_does_nothing(settings, call):
    method, path = call.split()
    answer = httpx.request(method, settings.mlflow_address + path, json={})
    assert answer.status_code in {403, 404, 405}


@pytest.mark.parametrize("spelling", ["artifact_location", "artifactLocation"])
@pytest.mark.parametrize("api", ["api", "ajax-api"])
@pytest.mark.parametrize("encoded", [1, 2])
@pytest.mark.parametrize(
    "place",
    [
        "file://{folder}",
        "{folder}",
        "FILE:{folder}",
        "file:{folder}/x/..",
        "mlflow-artifacts://elsewhere/x",
        "mlflow-artifacts:/../{folder}",
        "mlflow-artifacts:/%2e%2e/{folder}",
        "mlflow-artifacts:/a/.%09./x",
        "mlflow-artifacts:////127.0.0.1:1/x",
        "mlflow-artifacts:///127.0.0.1:1/x",
        "mlflow-artifacts:/\t/127.0.0.1:1/x",
        "mlflow-artifacts:/.//127.0.0.1:1/x",
        "mlflow-artifacts:/%2f127.0.0.1:1/x",
        "mlflow-artifacts:x",
        "runs:/x/y",
        "models:/x/1",
        "dummy-source",
        "\0{folder}",
        "{folder}/link/x",
        "{folder}/%2e%2e/{folder.name}/link/x",
        "s3://bucket/x",
        "http://127.0.0.1:1/x",
        "dbfs:/x",
        "ftp://127.0.0.1/x",
    ],
)
def test_an_experiment_outside_the_store_is_not_made(
    settings, tmp_path, spelling, api, encoded, place
):
    # Now it leads into the store; its owner can turn it at any time.
    (tmp_path / "link").symlink_to(settings.home / "mlflow" / "artifacts")
    body = {"name": f"{tmp_path}", spelling: place.format(folder=tmp_path)}
    content = json.dumps(body)
    for _ in range(encoded - 1):
        content = json.dumps(content)
    answer = httpx.post(
        f"{settings.mlflow_address}/{api}/2.0/mlflow/experiments/create",
        content=content,
        headers={"content-type": "application/json"},
    )
    error_of(answer)
    assert client(settings).get_experiment_by_name(body["name"]) is None


@pytest.mark.parametrize(
    "source",
    ["file://{folder}", "{folder}", "s3://b/x", "http://127.0.0.1:1/", "gs://b/x"],
)
def test_a_version_outside_the_store_is_not_made(settings, model, tmp_path, source):
    where = source.format(folder=tmp_path)
    run = client(settings).create_run("0").info
    answer = post(
        settings,
        f"{API}/model-versions/create",
        name=model,
        source=where,
        run_id=run.run_id,
    )
    assert error_of(answer)
    assert len(client(settings).search_model_versions(f"name = '{model}'")) == 5


def test_a_trace_outside_the_store_is_not_made(settings, tmp_path):
    tags = {"mlflow.artifactLocation": f"file://{tmp_path}"}
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    info = {
        "trace_id": "tr-1",
        "trace_location": place,
        "request_time": "2026-01-01T00:00:00Z",
        "state": "OK",
        "tags": tags,
    }
    answer = post(settings, "api/3.0/mlflow/traces", trace={"trace_info": info})
    assert "not in the store" in error_of(answer)
    older = {
        "experiment_id": "0",
        "timestamp_ms": 1,
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }
    answer = post(settings, f"{API}/traces", **older)
    assert "not in the store" in error_of(answer)


@pytest.mark.parametrize("leads_to", ["secret", "store"])
def test_what_a_database_holds_from_before_is_not_opened(tmp_path, secret, leads_to):
    """As it was: an experiment in another folder, whose run has a link as its artifacts."""
    settings = Settings(home=tmp_path / "home", mlflow_port=unused_port())
    with mlflow_server(settings, BIN / "python"):
        api = client(settings)
        experiment_id = api.create_experiment("before")
        run_id = api.create_run(experiment_id).info.run_id
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    store = settings.home / "mlflow" / "artifacts"
    places = {"secret": secret.parent, "store": store}
    (theirs / "artifacts").symlink_to(places[leads_to])
    uri = f"file://{theirs / 'artifacts'}"
    with closing(sqlite3.connect(settings.home / "mlflow" / "mlflow.db")) as database:
        database.execute("UPDATE runs SET artifact_uri = ?", [uri])
        database.commit()
    with mlflow_server(settings, BIN / "python"):
        asked = {"run_uuid": run_id, "run_id": run_id, "path": secret.name}
        for path in ("get-artifact", "api/2.0/mlflow/artifacts/list"):
            answer = httpx.get(f"{settings.mlflow_address}/{path}", params=asked)
            assert "not in the store" in error_of(answer), path
            assert SECRET not in answer.text
        query = (
            "query($d: MlflowListArtifactsInput!) "
            "{mlflowListArtifacts(input: $d) {rootUri files {path}}}"
        )
        document = {"query": query, "variables": {"d": {"runId": run_id}}}
        answer = httpx.post(f"{settings.mlflow_address}/graphql", json=document)
        assert secret.name not in answer.text
        assert "not in the store" in answer.text
        with pytest.raises(ArtifactError, match="not in the store"):
            read_artifact(settings, uri, secret.name)
        tracking = Tracking(settings)
        with pytest.raises(RegistryError, match="not in the store"):
            tracking.log_text(run_id, "theirs", secret.name)
        with pytest.raises(RegistryError, match="not in the store"):
            tracking.download_artifacts(run_id, secret.name, f"{tmp_path}")
    assert secret.read_text() == SECRET


def test_a_link_out_of_the_store_is_no_part_of_it(settings, secret):
    api = client(settings)
    run = api.create_run("0").info
    api.log_text(run.run_id, "text", "file.txt")
    store = settings.home / "mlflow" / "artifacts"
    (folder,) = store.rglob(f"{run.run_id}/artifacts")
    (folder / "link").symlink_to(secret.parent)
    below = folder.relative_to(store)
    proxied = f"{API.replace('mlflow', 'mlflow-artifacts')}/artifacts/{below}/link"
    address = f"{settings.mlflow_address}/{proxied}"
    asked = {"run_uuid": run.run_id, "path": f"link/{secret.name}"}
    answers = [
        httpx.get(f"{address}/{secret.name}"),
        httpx.put(f"{address}/{secret.name}", content=b"theirs"),
        httpx.put(f"{address}/new", content=b"theirs"),
        httpx.delete(f"{address}/{secret.name}"),
        httpx.get(f"{settings.mlflow_address}/get-artifact", params=asked),
    ]
    assert [answer.is_error for answer in answers] == [True] * len(answers)
    assert [*secret.parent.iterdir()] == [secret]
    assert secret.read_text() == SECRET


def test_mlflows_own_client_works_as_before(settings, tmp_path):
    mlflow.set_tracking_uri(settings.mlflow_address)
    (tmp_path / "a.txt").write_text("a")
    experiment = client(settings).create_experiment(f"{tmp_path}")
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_artifact(f"{tmp_path / 'a.txt'}", "folder")
        mlflow.log_metric("m", 1.0)
    found = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/folder/a.txt")
    assert found == "a"
    (row,) = client(settings).search_runs([experiment], run_view_type=ViewType.ALL)
    assert row.data.metrics == {"m": 1.0}
    named = client(settings).create_experiment(
        f"{tmp_path}, named", "mlflow-artifacts:/somewhere"
    )
    assert (
        client(settings).get_experiment(named).artifact_location.endswith("somewhere")
    )
    client(settings).delete_experiment(experiment)


@pytest.mark.parametrize(
    ("store", "location", "is_in"),
    [
        ("/store", "/store/1", True),
        ("/store", "file:///store/1", True),
        ("/store", "/store/../etc", False),
        ("/store", "/stores", False),
        ("/store", "store/1", False),
        ("/store", "FILE:/store/1", False),
        ("/my store", "file:///my%20store/1", True),
        ("/my store", "/my store/1", True),
        ("/store", "/%2e%2e/store/1", False),
        ("/store", "/store/\n1", False),
        ("/store", "s3://store/1", False),
        ("s3://bucket/gyre", "s3://bucket/gyre/1", True),
        ("s3://bucket/gyre", "s3://bucket/gyre2", False),
        ("s3://bucket/gyre", "s3://bucket/gyre/../x", False),
        ("s3://bucket/gyre", "s3://bucket/gyre/%2E%2e/x", False),
        ("s3://bucket/gyre", "s3://bucket/gyre/1?endpoint_url=http://x", False),
        ("s3://bucket/gyre", "/etc", False),
        ("", ".", False),
        ("mlflow-artifacts:/", ".", False),
        ("s3://bucket/gyre", "file:///etc", False),
    ],
)
def test_a_location_is_in_a_store_or_not(store, location, is_in):
    assert Locations(store).has(location) is is_in


@pytest.mark.journey
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_of_the_machine_reads_and_writes_nothing_by_curl(
    settings, secret, tmp_path
):
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o111)
    script = Path(__file__).with_name("attack.sh")
    done = subprocess.run(
        ["bash", script, settings.mlflow_address, tmp_path, secret],
        user="nobody",
        group="nogroup",
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert SECRET not in done.stdout
    assert done.stdout.count("not in the store") == 2
    assert not [*tmp_path.rglob("code.py")]
