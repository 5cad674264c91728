"""Inside a project with a multiclass model: from parcels to what monitor says.

Prints one JSON object; test_multiclass.py runs it, and judges what it says.
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
from monitoring.collect import join_outcomes, predictions
from monitoring.experiment import Experiment, evaluate
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
from training.artifacts import EVALUATION, PLOTS, PROOF, fetched, read
from training.batch import score_population
from training.batch import scores as batch_scores
from training.check import check
from training.dataset import load_frame
from training.frame import at, features
from training.reproduce import reproduce

NAME = "delivery"
SPEC, PARCELS = load_spec(NAME), load_dataset("parcels")
OLD = AS_OF - timedelta(days=21)
said = {}


def install(settings) -> None:
    said["check"] = check(settings, SPEC, AS_OF)
    other = SPEC.model_copy(update={"classes": ("early", "on_time", "lost")})
    said["check_other"] = check(settings, other, AS_OF)[0]
    publish_beside(settings, PARCELS)
    rows, raw = pull(settings, PARCELS, AS_OF).read_all(), raw_table(settings, PARCELS)
    known = rows.append_column("ingested_at", rows["delivered_at"])
    raw.merge(known, PARCELS.key, rows.column_names)
    write_views(settings, PARCELS, raw)


def learn(settings) -> None:
    weak = Training(
        function=SPEC.training.function, parameters={"leaves": [4], "trees": 2}
    )
    old = SPEC.model_copy(update={"training": weak})
    made = [
        chain.train(settings, spec, as_of, key=key, reason=key, who="test", force=True)
        for key, spec, as_of in (("old", old, OLD), ("new", SPEC, AS_OF))
    ]
    run_id, tracking, registry = made[1].run_id, Tracking(settings), Registry(settings)
    said["trained"] = [to_jsonable_python(report) for report in made]
    said["metrics"] = tracking.run(run_id).metrics
    said["evaluation"] = json.loads(read(tracking, run_id, EVALUATION))
    said["proof"] = json.loads(read(tracking, run_id, PROOF))
    said["card"] = read(tracking, run_id, CARD).decode()
    with fetched(tracking, run_id, PLOTS) as folder:
        said["plots"] = sorted(path.name for path in folder.iterdir())
    again = reproduce(settings, NAME, registry.production(NAME))
    said["reproduced"] = [again.reproduced, again.summary()]
    said["batch"] = score_population(settings, SPEC, AS_OF).rows
    said["batch_row"] = batch_scores(settings).read().drop(["as_of"]).to_pylist()[0]


def serve(settings) -> None:
    """Ask the real server for everybody of the test snapshot, and tell it what came true."""
    frame, plan = load_frame(Tracking(settings), said["trained"][1]["run_id"])
    rows = at(frame, plan.test)
    given, names = features(SPEC, rows).to_dict("records"), SPEC.classes
    actual = [names[position] for position in rows["label"].to_pylist()]
    keys = rows["courier"].to_pylist()
    body = [
        {"courier": key, "features": row} for key, row in zip(keys, given, strict=True)
    ]
    command, log = [sys.executable, "-m", "serving"], settings.home / "serving.log"
    with (
        running(command, log, **process_environment(settings)),
        httpx.Client(base_url=settings.serving_address, timeout=60) as client,
    ):
        wait_until(
            "serving", lambda: answers(f"{settings.serving_address}/health/live")
        )
        path = f"/v1/models/{NAME}"
        wait_until("the model", lambda: client.get(path).status_code == 200)
        said["served"] = client.post("/predict", json=body[0]).json()
        said["v1"] = client.post(
            f"{path}:predict", json={"instances": given[:2]}
        ).json()
        records = {"dataframe_records": given[:2]}
        said["mlflow"] = client.post("/invocations", json=records).json()
        kinds = {"int64": "INT64", "double": "FP64", "string": "BYTES"}
        inputs = [
            {
                "name": n,
                "shape": [2],
                "datatype": kinds[k],
                "data": [row[n] for row in given[:2]],
            }
            for n, k in SPEC.features.items()
        ]
        path = f"/v2/models/{NAME}"
        said["v2"] = client.post(f"{path}/infer", json={"inputs": inputs}).json()[
            "outputs"
        ]
        said["v2_outputs"] = client.get(path).json()["outputs"]
        answered = client.post("/predict/batch", json=body).json()
        told = [
            {
                "request_id": answer["request_id"],
                "actual": names.index(name) if odd % 2 else name,
            }
            for odd, (answer, name) in enumerate(zip(answered, actual, strict=True))
        ]
        told[0]["actual"] = "lost"
        said["feedback"] = client.post("/feedback", json=told).json()
        said["predicted"] = [[each["prediction"] for each in answered], actual]
        found = monitor(settings, SPEC, datetime.now(UTC))
    said["monitor"] = {"figures": found.figures, "words": found.words, "verdict": found.verdict,
                       "left_out": found.outcomes_left_out}  # fmt: skip
    stored = predictions(settings).read().to_pylist()
    (first,) = (
        row for row in stored if row["request_id"] == said["served"]["request_id"]
    )
    columns = ("prediction", "probability", "probabilities")
    said["logged"] = {name: first[name] for name in columns}
    known = join_outcomes(settings, SPEC, AS_OF).known
    own = Experiment("2", "1", 50, AS_OF - timedelta(days=100_000), None)
    report = evaluate(settings, SPEC, own, known, AS_OF)
    said["experiment"] = report.means["production"]


if __name__ == "__main__":
    home = new_settings(
        Path(sys.argv[1]), sources={"parcels": sys.argv[2]}, default_model=NAME
    )
    with mlflow_server(home):
        install(home)
        learn(home)
        serve(home)
    sys.stdout.write(json.dumps(said))
