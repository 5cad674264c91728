"""Inside a project with a multiclass model: from parcels to the verdict of the monitor.

Prints one JSON object; test_multiclass.py runs it and checks what it holds.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from pydantic_core import to_jsonable_python

from core.spec import load_spec
from core.training_spec import Training
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.source import pull
from feature_repo.store import publish_beside
from feature_repo.views import write_views
from mlflow_server.pages import CARD
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.collect import predictions
from monitoring.monitor import monitor
from stack.environment import process_environment
from tests.conftest import (
    AS_OF,
    answers,
    mlflow_server,
    new_settings,
    running,
    wait_until,
)
from training import chain
from training.artifacts import PROOF, read
from training.batch import score_population
from training.batch import scores as batch_scores
from training.check import check
from training.dataset import load_frame
from training.frame import at, features
from training.reproduce import reproduce

NAME = "delivery"
SPEC = load_spec(NAME)
PARCELS = load_dataset("parcels")
OLD = AS_OF - timedelta(days=21)
results = {}


def install(settings) -> None:
    results["check"], _ = check(settings, SPEC, AS_OF)
    publish_beside(settings, PARCELS)
    rows = pull(settings, PARCELS, AS_OF).read_all()
    table = raw_table(settings, PARCELS)
    rows = rows.append_column("ingested_at", rows["delivered_at"])
    table.merge(rows, PARCELS.key, PARCELS.schema.names)
    write_views(settings, PARCELS, table)


def train(settings, spec, as_of, key):
    return chain.train(settings, spec, as_of, key=key, reason=key, who="test")


def learn(settings) -> str:
    """Train an old and a new version; return the run of the new one."""
    parameters = {"leaves": [4], "trees": 2}
    weak = Training(function=SPEC.training.function, parameters=parameters)
    old = train(settings, SPEC.model_copy(update={"training": weak}), OLD, "old")
    new = train(settings, SPEC, AS_OF, "new")
    tracking = Tracking(settings)
    run_id = new.run_id
    results["trained"] = [to_jsonable_python(report) for report in (old, new)]
    results["metrics"] = tracking.run(run_id).metrics
    results["proof"] = json.loads(read(tracking, run_id, PROOF))
    results["card"] = read(tracking, run_id, CARD).decode()
    report = reproduce(settings, NAME, Registry(settings).production(NAME))
    results["reproduced"] = [report.reproduced, report.summary()]
    results["batch"] = score_population(settings, SPEC, AS_OF).rows
    columns = ["prediction", "probability", "probabilities"]
    results["batch_row"] = batch_scores(settings).read(columns=columns).to_pylist()[0]
    return run_id


def serve(settings, run_id) -> None:
    """Ask the server for every courier of the test snapshot, and report what came true."""
    frame, plan = load_frame(Tracking(settings), run_id)
    rows = at(frame, plan.test)
    instances = features(SPEC, rows).to_dict("records")
    outcomes = [SPEC.classes[position] for position in rows["label"].to_pylist()]
    pairs = zip(rows["courier"].to_pylist(), instances, strict=True)
    body = [{"courier": key, "features": instance} for key, instance in pairs]
    address = settings.serving_address
    log = settings.home / "serving.log"
    command = [sys.executable, "-m", "serving"]
    with (
        running(command, log, **process_environment(settings)),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        wait_until("serving", lambda: answers(f"{address}/health/live"))
        path = f"/v1/models/{NAME}"
        wait_until("the model", lambda: client.get(path).status_code == 200)
        results["served"] = client.post("/predict", json=body[0]).json()
        kserve = client.post(f"{path}:predict", json={"instances": instances[:2]})
        results["kserve"] = kserve.json()["predictions"]
        predicted = client.post("/predict/batch", json=body).json()
        feedback = [
            {"request_id": answer["request_id"], "actual": outcome}
            for answer, outcome in zip(predicted, outcomes, strict=True)
        ]
        feedback[0]["actual"] = "lost"
        feedback[1]["actual"] = SPEC.classes.index(outcomes[1])
        results["feedback"] = client.post("/feedback", json=feedback).json()
        report = monitor(settings, SPEC, datetime.now(UTC))
    results["predicted"] = [answer["prediction"] for answer in predicted]
    results["outcomes"] = outcomes
    results["figures"] = report.figures
    results["verdict"] = [report.verdict, report.words]
    results["left_out"] = report.outcomes_left_out
    stored = predictions(settings).read().to_pylist()
    request_id = results["served"]["request_id"]
    (row,) = (row for row in stored if row["request_id"] == request_id)
    columns = ("prediction", "probability", "probabilities")
    results["logged"] = {name: row[name] for name in columns}


if __name__ == "__main__":
    sources = {"parcels": sys.argv[2]}
    home = new_settings(Path(sys.argv[1]), sources=sources, default_model=NAME)
    with mlflow_server(home):
        install(home)
        serve(home, learn(home))
    sys.stdout.write(json.dumps(results))
