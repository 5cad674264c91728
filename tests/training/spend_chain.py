"""Inside a project with the second use case: from its orders to the verdict of the monitor.

Writes one JSON object to a file; test_spend.py runs it and checks what it holds.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
from pydantic_core import to_jsonable_python

from core.spec import load_spec
from core.training_spec import Limit
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.source import pull
from feature_repo.store import publish_beside
from feature_repo.views import write_views
from mlflow_server.pages import CARD
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
from training.artifacts import EVALUATION, PROOF, read
from training.dataset import load_frame
from training.frame import at, features
from training.reproduce import reproduce

NAME = "next_quarter_spend"
SPEC = load_spec(NAME)
SPEND = load_dataset("spend")
OLD = AS_OF - timedelta(days=180)
LENIENT = Limit(metric="rmse", rule="at_most", value=1000)
results = {}


def install(settings) -> None:
    publish_beside(settings, SPEND)
    rows = pull(settings, SPEND, AS_OF).read_all()
    table = raw_table(settings, SPEND)
    rows = rows.append_column("ingested_at", rows["order_ts"])
    table.merge(rows, SPEND.key, SPEND.schema.names)
    write_views(settings, SPEND, table)


def train(settings, spec, as_of, key):
    return chain.train(settings, spec, as_of, key=key, reason=key, who="test")


def learn(settings) -> str:
    """Train an old and a new version; return the run of the new one."""
    old = train(settings, SPEC.model_copy(update={"gates": (LENIENT,)}), OLD, "old")
    new = train(settings, SPEC, AS_OF, "new")
    tracking = Tracking(settings)
    run = tracking.run(new.run_id)
    results["trained"] = [to_jsonable_python(report) for report in (old, new)]
    results["params"] = run.params
    results["metrics"] = run.metrics
    results["evaluation"] = json.loads(read(tracking, new.run_id, EVALUATION))
    results["proof"] = json.loads(read(tracking, new.run_id, PROOF))
    results["card"] = read(tracking, new.run_id, CARD).decode()
    report = reproduce(settings, NAME, new.version)
    results["reproduced"] = [report.reproduced, report.summary()]
    return new.run_id


def serve(settings, run_id) -> None:
    """Ask the server for every member of the test snapshot, and report what came true."""
    frame, plan = load_frame(Tracking(settings), run_id)
    rows = at(frame, plan.test)
    instances = features(SPEC, rows).to_dict("records")
    outcomes = rows["label"].to_pylist()
    keys = rows.select([*SPEC.entity_key]).to_pylist()
    pairs = zip(keys, instances, strict=True)
    body = [key | {"features": instance} for key, instance in pairs]
    address = settings.serving_address
    log = settings.home / "serving.log"
    environment = process_environment(settings) | {"GYRE_DEFAULT_MODEL": NAME}
    with (
        running([sys.executable, "-m", "serving"], log, **environment),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        wait_until("serving", lambda: answers(f"{address}/health/live"))
        path = f"/v1/models/{NAME}"
        wait_until("the model", lambda: client.get(path).status_code == 200)
        results["served"] = client.post("/predict", json=body[0]).json()
        kserve = client.post(f"{path}:predict", json={"instances": instances[:1]})
        results["kserve"] = kserve.json()["predictions"][0]
        predicted = client.post("/predict/batch", json=body).json()
        feedback = [
            {"request_id": answer["request_id"], "actual": outcome}
            for answer, outcome in zip(predicted, outcomes, strict=True)
        ]
        recorded = client.post("/feedback", json=feedback[:1000])
        infinite = '{"request_id": "a", "actual": 1e999}'
        refused = client.post("/feedback", content=infinite)
        results["feedback"] = [recorded.json(), refused.status_code]
        results["by_chance"] = verdict(settings, AS_OF)
        worse = [row | {"actual": row["actual"] + 500} for row in feedback[1000:]]
        client.post("/feedback", json=worse)
    results["worse"] = verdict(settings, AS_OF + timedelta(hours=1))
    errors = np.array([answer["prediction"] for answer in predicted]) - outcomes
    results["rmse_of_answers"] = float(np.sqrt(np.mean(errors**2)))
    stored = predictions(settings).read().to_pylist()
    request_id = results["served"]["request_id"]
    (row,) = (row for row in stored if row["request_id"] == request_id)
    results["logged"] = {name: row[name] for name in ("probability", "prediction")}


def verdict(settings, as_of):
    report = monitor(settings, SPEC, as_of)
    words = [result.words for result in report.results if result.status == "bad"]
    return {"bad": words, "figures": report.figures}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sources = {"spend": str(folder / "orders.parquet")}
    home = new_settings(folder / "home", sources=sources, default_model=NAME)
    with mlflow_server(home):
        install(home)
        serve(home, learn(home))
    (folder / "results.json").write_text(json.dumps(results))
