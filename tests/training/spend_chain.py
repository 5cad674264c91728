"""Inside a project with the second use case: from its orders to what the monitor says.

Prints one JSON object; test_spend.py runs it, and judges what it says.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import httpx
import ibis
import numpy as np
from pydantic_core import to_jsonable_python

from core.errors import GyreError
from core.spec import load_spec
from core.training_spec import Estimator, Limit, Range, Search
from feature_repo.datasets import load_dataset
from feature_repo.definition import Label
from feature_repo.features import raw_table
from feature_repo.source import pull
from feature_repo.store import publish_beside
from feature_repo.views import write_views
from mlflow_server.pages import CARD
from mlflow_server.registry import Registry
from mlflow_server.tracking import PARENT_TAG, Tracking, tag_equals
from monitoring.checks.performance import measure
from monitoring.collect import predictions
from monitoring.monitor import monitor
from monitoring.outcomes import backfilled_outcomes
from stack.environment import process_environment
from tests.conftest import (
    AS_OF,
    answers,
    mlflow_server,
    new_settings,
    running,
    wait_until,
)
from tests.mlflow_server.conftest import client
from training import chain
from training.artifacts import EVALUATION, PLOTS, fetched, read
from training.dataset import load_frame
from training.frame import at, features
from training.reproduce import reproduce

NAME = "next_quarter_spend"
FOREST = Estimator(
    name="random_forest",
    type="random_forest",
    parameters={"n_estimators": 10, "max_depth": 6, "min_samples_leaf": 20},
    space={"max_depth": Range(low=3, high=8)},
)
SHIPPED, SPEND = load_spec(NAME), load_dataset("spend")
SPEC = SHIPPED.model_copy(
    update={"estimators": (*SHIPPED.estimators, FOREST), "search": Search(trials=4)}
)
OLD = AS_OF - timedelta(days=180)
LENIENT = Limit(metric="rmse", rule="at_most", value=1000)
said = {}


def install(settings) -> None:
    publish_beside(settings, SPEND)
    rows, table = pull(settings, SPEND, AS_OF).read_all(), raw_table(settings, SPEND)
    table.merge(
        rows.append_column("ingested_at", rows["order_ts"]),
        SPEND.key,
        rows.column_names,
    )
    write_views(settings, SPEND, table)


def train(settings, as_of, key, spec=SPEC):
    return chain.train(
        settings, spec, as_of, key=key, reason=key, who="test", force=True
    )


def learn(settings) -> None:
    old = train(settings, OLD, "old", SPEC.model_copy(update={"gates": (LENIENT,)}))
    new = train(settings, AS_OF, "new")
    tracking, registry = Tracking(settings), Registry(settings)
    run = tracking.run(new.run_id)
    said["trained"] = [to_jsonable_python(report) for report in (old, new)]
    said["run"] = {"params": run.params, "metrics": run.metrics}
    said["trials"] = [
        trial.metrics
        for trial in tracking.runs(SPEC.experiment, tag_equals(PARENT_TAG, new.run_id))
    ]
    said["evaluation"] = json.loads(read(tracking, new.run_id, EVALUATION))
    said["proof"] = json.loads(read(tracking, new.run_id, "proof.json"))
    said["card"] = read(tracking, new.run_id, CARD).decode()
    with fetched(tracking, new.run_id, PLOTS) as folder:
        said["plots"] = sorted(path.name for path in folder.iterdir())
    version = registry.version(NAME, new.version)
    said["description"] = (
        client(settings).get_model_version(NAME, version.version).description
    )
    again = reproduce(settings, NAME, new.version)
    said["reproduced"] = [again.reproduced, again.summary()]


def serve(settings) -> None:
    """Ask the real server for everybody of the test snapshot, and tell it what came true."""
    frame, plan = load_frame(Tracking(settings), said["trained"][1]["run_id"])
    rows = at(frame, plan.test)
    given = features(SPEC, rows).to_dict("records")
    actual = rows["label"].to_pylist()
    keys = rows.select([*SPEC.entity_key]).to_pylist()
    body = [key | {"features": row} for key, row in zip(keys, given, strict=True)]
    command, log = [sys.executable, "-m", "serving"], settings.home / "serving.log"
    with (
        running(command, log, **process_environment(settings), GYRE_DEFAULT_MODEL=NAME),
        httpx.Client(base_url=settings.serving_address, timeout=60) as client,
    ):
        wait_until(
            "serving", lambda: answers(f"{settings.serving_address}/health/live")
        )
        loaded = f"/v1/models/{NAME}"
        wait_until("the model", lambda: client.get(loaded).status_code == 200)
        said["served"] = [client.post("/predict", json=body[0]).json()]
        instances = {"instances": [given[0]]}
        kserve = client.post(f"/v1/models/{NAME}:predict", json=instances)
        said["kserve"] = kserve.json()["predictions"]
        answered = client.post("/predict/batch", json=body).json()
        told = [
            {"request_id": answer["request_id"], "actual": value}
            for answer, value in zip(answered, actual, strict=True)
        ]
        said["feedback"] = [
            client.post("/feedback", json=told[:1000]).json(),
            client.post(
                "/feedback", content='{"request_id": "a", "actual": 1e999}'
            ).status_code,
        ]
        predicted = np.array([answer["prediction"] for answer in answered])
        said["rmse_of_answers"] = float(np.sqrt(np.mean((predicted - actual) ** 2)))
        said["monitor"] = [look(settings, AS_OF)]
        worse = [row | {"actual": row["actual"] + 500} for row in told[1000:]]
        client.post("/feedback", json=worse)
    said["monitor"].append(look(settings, AS_OF + timedelta(hours=1)))
    stored = predictions(settings).read().to_pylist()
    (first,) = (
        row for row in stored if row["request_id"] == said["served"][0]["request_id"]
    )
    said["logged"] = {name: first[name] for name in ("probability", "prediction")}
    before = plan.test[-1].start - timedelta(days=1)
    old = backfilled_outcomes(settings, SPEC, "1", before, AS_OF)
    said["replay"] = {each.metric: each.value for each in measure(SPEC, old, {})}


def look(settings, as_of):
    found = monitor(settings, SPEC, as_of)
    return {
        "bad": [result.words for result in found.results if result.status == "bad"],
        "figures": found.figures,
        "verdict": found.verdict,
    }


def refuse(settings) -> None:
    """What cannot be learnt from, or with: the one line, and the gate on record."""
    mine = SPEND.labels["spend_90d"]

    def labelled(change):
        return Label(
            lambda rows, moments: change(mine.expression(rows, moments)),
            mine.horizon,
            mine.lateness,
        )

    infinite = ibis.literal(float("inf"))
    SPEND.labels["text"] = labelled(lambda t: t.mutate(label=t.label.cast("string")))
    SPEND.labels["one"] = labelled(lambda t: t.mutate(label=ibis.literal(3.5)))
    SPEND.labels["infinite"] = labelled(
        lambda t: t.mutate(label=(t.label > 200).ifelse(infinite, t.label))
    )
    bad = {
        "n_estimators": 5,
        "learning_rate": -1.0,
    }  # which XGBoost refuses when it is fitted
    wrong = Estimator(name="boosting", type="xgboost", parameters=bad)
    changes = {label: {"label": label} for label in ("text", "one", "infinite")}
    changes["parameters"] = {"estimators": (wrong,), "search": None}
    tracking = Tracking(settings)
    said["refused"] = {}
    for key, change in changes.items():
        try:
            train(settings, OLD, key, SPEC.model_copy(update=change))
        except GyreError as exc:
            run = next(run for run in tracking.runs(SPEC.experiment) if run.key == key)
            said["refused"][key] = [str(exc), run.status, run.tags["outcome"]]


if __name__ == "__main__":
    home = new_settings(
        Path(sys.argv[1]), sources={"spend": sys.argv[2]}, default_model=NAME
    )
    with mlflow_server(home):
        install(home)
        learn(home)
        serve(home)
        refuse(home)
    sys.stdout.write(json.dumps(said))
