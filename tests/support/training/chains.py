"""What the chains share: each is a program that goes through the loop inside its own project."""

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyarrow.compute as pc

from core.project import CLONE
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import write_views
from feature_repo.datasets import load_dataset
from feature_repo.published.store import publish_beside
from mlflow_server.api.pages import CARD
from mlflow_server.api.tracking import Tracking
from monitoring.log.tables import predictions
from stack.environment import process_environment
from tests.conftest import AS_OF, answers, new_settings, running, wait_until
from tests.support.tools.clone import finished, outer_environment
from training import chain
from training.artifacts import PROOF, artifact_bytes
from training.data.frame import feature_columns, snapshot_rows
from training.reproduce import reproduce
from training.stages.dataset import load_frame

STORE = "feature_repo/feature_store.yaml"
results = {}
"""What a chain prints as one JSON object."""


def own_project(folder, name):
    """A use case of this folder, as a project of its own."""
    project = folder / "project"
    shutil.copytree(CLONE / "tests" / "training" / name, project)
    shutil.copy(CLONE / STORE, project / STORE)
    return project


def in_project(project, command):
    """Return what a command of the shell prints with a project that is a folder of its own."""
    environment = outer_environment() | {"GYRE_PROJECT": str(project)}
    return finished(command, CLONE, environment).stdout


def settings_of(*datasets):
    """An installation in the folder that the command names, which has each dataset's file."""
    folder = Path(sys.argv[1])
    sources = {name: str(folder / f"{name}.parquet") for name in datasets}
    return new_settings(folder / "home", sources=sources)


def store(settings, dataset, rows):
    """Take rows in as of their events, and compute their features."""
    table = raw_table(settings, dataset)
    rows = rows.append_column("ingested_at", rows[dataset.event_time])
    table.merge(rows, dataset.key, dataset.schema.names)
    write_views(settings, dataset, table)


def train(settings, spec, as_of, key):
    """The reason is a person's words."""
    reason = f"<b>{key}</b>"
    return chain.train(settings, spec, as_of, key=key, reason=reason, who="test")


def open_run(settings, spec, as_of, key, **more):
    more |= {"key": key, "reason": "test", "who": "test"}
    return chain.open_run(settings, spec, as_of, **more)


def learn(settings, spec, weak_spec, weak_as_of):
    """Train a version, and one that replaces it; return the run of the new one."""
    dataset = load_dataset(spec.dataset)
    publish_beside(settings, dataset)
    store(settings, dataset, pull(settings, dataset, AS_OF).read_all())
    train(settings, weak_spec, weak_as_of, "old")
    new = train(settings, spec, AS_OF, "new")
    assert new.outcome == "version 2 is in production, in place of 1"
    report = reproduce(settings, spec.name, new.version)
    assert report.reproduced, report.summary()
    tracking = Tracking(settings)
    assert json.loads(artifact_bytes(tracking, new.run_id, PROOF))["reasons"] == []
    run = tracking.run(new.run_id)
    results["params"] = run.params
    results["metrics"] = run.metrics
    results["card"] = artifact_bytes(tracking, new.run_id, CARD).decode()
    return new.run_id


@contextmanager
def client(settings, spec):
    """A client of a server that has loaded the model."""
    command = [sys.executable, "-m", "serving"]
    environment = process_environment(settings) | {"GYRE_DEFAULT_MODEL": spec.name}
    address = settings.serving_address
    with running(command, settings.home / "serving.log", **environment):
        wait_until("the model", lambda: answers(f"{address}/v1/models/{spec.name}"))
        with httpx.Client(base_url=address, timeout=60) as http:
            yield http


def ask(http, settings, spec, run_id):
    """Ask for each row of the test snapshots; return the labels, as feedback about them."""
    frame, plan = load_frame(Tracking(settings), run_id)
    rows = snapshot_rows(frame, plan.test)
    instances = feature_columns(spec, rows).to_dict("records")
    pairs = zip(rows.select([*spec.entity_key]).to_pylist(), instances, strict=True)
    body = [key | {"features": instance} for key, instance in pairs]
    results["served"] = http.post("/predict", json=body[0]).json()
    path = f"/v1/models/{spec.name}:predict"
    kserve = http.post(path, json={"instances": instances[:2]}).json()
    results["kserve"] = kserve["predictions"][0]
    predicted = http.post("/predict/batch", json=body).json()
    results["predicted"] = [answer["prediction"] for answer in predicted]
    results["labels"] = rows["label"].to_pylist()
    return [
        {"request_id": answer["request_id"], "actual": label}
        for answer, label in zip(predicted, results["labels"], strict=True)
    ]


def read_log(settings):
    """Keep what the log has of the first answer."""
    columns = ["prediction", "probability", "probabilities"]
    is_first = pc.field("request_id") == results["served"]["request_id"]
    rows = predictions(settings).read(columns=columns, where=is_first)
    (results["logged"],) = rows.to_pylist()


def print_results():
    sys.stdout.write(json.dumps(results))
