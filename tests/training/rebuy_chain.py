"""Inside a project whose service reads views of two datasets, each of an entity of its own.

From rows to what the monitor says; prints one JSON object, which test_several_views.py judges.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis import _
from pydantic_core import to_jsonable_python

from core.errors import GyreError
from core.spec import Population, load_spec
from core.user_code import dataset_names
from feature_repo.dataset_record import service_records
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.ingest import ingest
from feature_repo.parity import parity
from feature_repo.service import PublishedService
from feature_repo.views import entities
from mlflow_server.tracking import Tracking
from monitoring.monitor import monitor
from stack.environment import process_environment
from tests.conftest import (
    answers,
    feast_apply,
    mlflow_server,
    new_settings,
    redis_server,
    running,
    wait_until,
)
from training import chain
from training.check import check
from training.dataset import load_frame
from training.frame import population
from training.reproduce import reproduce
from training.validate import learnable

NAME = "rebuy"
NOW, DAY = datetime.now(UTC), timedelta(days=1)
BEHIND = NOW - 60 * DAY
SPEC = load_spec(NAME)
KEY = [*SPEC.entity_key]
said = {}


def rows(kind, count, columns):
    """Rows of the last 250 days up to a minute ago, in the order of their time."""
    chance = np.random.default_rng(len(kind))
    ago = np.sort(chance.uniform(60, 250 * 86_400, count))[::-1]
    start = np.datetime64(NOW.replace(tzinfo=None), "us")
    times = start - (ago * 1e6).astype("timedelta64[us]")
    table = {f"{kind}_id": np.arange(count)} | {
        n: make(chance, count) for n, make in columns.items()
    }
    return table, pa.array(times, pa.timestamp("us", "UTC"))


def number(most):
    return lambda chance, count: (chance.beta(1, 3, count) * most).astype(int)


def write(folder):
    """Purchases of 150 customers, and visits of 25 products: the newest 60 days of these later."""
    columns = {"customer_id": number(150), "product_id": number(25)}
    columns["price"] = lambda chance, count: chance.integers(1, 900, count) / 4
    made, at = rows("purchase", 4_000, columns)
    order = ["purchase_id", "customer_id", "product_id", "bought_at", "price"]
    pq.write_table(
        pa.table(made | {"bought_at": at}).select(order), folder / "purchases.parquet"
    )
    columns = {"product_id": lambda chance, count: chance.integers(0, 25, count)}
    columns["minutes"] = lambda chance, count: chance.integers(1, 90, count) / 4
    made, at = rows("visit", 6_000, columns)
    order = ["visit_id", "product_id", "seen_at", "minutes"]
    visits = pa.table(made | {"seen_at": at}).select(order)
    early = visits.filter(pa.array([time < BEHIND for time in at.to_pylist()]))
    pq.write_table(early, folder / "visits.parquet")
    return visits


def train(settings, as_of, spec=SPEC, **more):
    report = chain.train(settings, spec, as_of, reason="a", who="test", **more)
    tags = Tracking(settings).run(report.run_id).tags if report.run_id else {}
    return to_jsonable_python(report) | {
        "tags": {n: v for n, v in tags.items() if "." in n or "_" in n}
    }


def learn(settings, folder, visits):
    """Train while visits are behind, once they are not, and once more."""
    said["no_rows"] = refused(lambda: train(settings, NOW, key="0"))
    ingest(settings, "purchases", NOW)
    said["no_visits"] = refused(lambda: train(settings, NOW, key="0"))
    ingest(settings, "visits", BEHIND)
    said["behind"] = train(settings, NOW, key="1")
    said["waits"] = learnable(settings, SPEC, NOW)
    pq.write_table(visits, folder / "visits.parquet")
    ingest(settings, "visits", NOW)
    said["comes"] = learnable(settings, SPEC, NOW)
    now = datetime.now(UTC)  # after the first promotion
    said["caught_up"] = train(settings, now, key="2")
    said["nothing_new"] = train(settings, now, key="3")["outcome"]
    said["reproduced"] = [
        reproduce(settings, NAME, said[run]["version"]).summary()
        for run in ("behind", "caught_up")
    ]
    frame, plan = load_frame(Tracking(settings), said["caught_up"]["run_id"])
    said["frame"] = [frame.num_rows, {n: frame[n].null_count for n in SPEC.features}]
    said["last_row"] = plan.test[-1].last.isoformat()
    snapshots = SPEC.snapshots.model_copy(update={"rows": "members"})
    population_ = Population(feature="purchases_30d", below=1000)
    changes = {
        "label": "pair_again_10d",
        "snapshots": snapshots,
        "population": population_,
    }
    members = SPEC.model_copy(update={"name": "pairs", "experiment": "pairs"} | changes)
    said["members"] = train(settings, NOW, members, key="m")["version"]
    said["unlisted"] = refused(lambda: population(settings, members, NOW))


def compare(settings):
    service = PublishedService(settings, SPEC.feature_service)
    said["datasets"] = sorted(service.datasets())
    rows_ = raw_table(settings, load_dataset("purchases")).read(columns=["customer_id"])
    said["customers"] = len(rows_["customer_id"].unique())
    said["imported"] = dataset_names("purchases")
    views = service.join_keys
    said["views"] = views
    known = entities(settings, views, KEY).to_pylist()
    said["entities"] = [
        len(known),
        *(len({each[name] for each in known}) for name in KEY),
    ]
    report = parity(settings, SPEC.feature_service, [BEHIND, NOW])
    said["parity"] = [report.entities * report.features, [*report.differences]]
    said["check"] = check(settings, SPEC, NOW)


def refused(work):
    try:
        return [str(work())]
    except GyreError as exc:
        return f"{type(exc).__name__}: {exc}"


def serve(settings):
    """Ask for pairs nobody sold yet, for a product nobody knows, and for nobody and nothing."""
    asked = [{"customer_id": n % 100, "product_id": n % 20} for n in range(200)]
    command, log = [sys.executable, "-m", "serving"], settings.home / "serving.log"
    address = settings.serving_address
    with (
        running(command, log, **process_environment(settings)),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        wait_until("serving", lambda: answers(f"{address}/health/live"))
        known = lambda: client.post("/predict", json=asked[0]).status_code == 200  # noqa: E731
        wait_until("the model", known)
        said["answers"] = client.post("/predict/batch", json=asked).json()
        unknown = asked[0] | {"product_id": 999}
        said["unknown_product"] = client.post("/predict", json=unknown).json()
        nobody = client.post("/predict", json={"customer_id": 999, "product_id": 999})
        said["nobody"] = [nobody.status_code, nobody.json()]


def look(settings, as_of):
    found = monitor(settings, SPEC, as_of)
    figures = {n: v for n, v in found.figures.items() if n.startswith("skew")}
    return {"words": [result.words for result in found.results], "skew": figures}


def change(settings):
    """Another meaning of a feature of the other dataset is found when that one is ingested."""
    visits = load_dataset("visits")
    views = visits.views["product_visits"]
    again = {"minutes_30d": (_.minutes_30d + 1)}
    visits.views["product_visits"] = replace(views, derived=again)
    said["changed"] = refused(
        lambda: ingest(settings, "visits", NOW + timedelta(minutes=5))
    )
    visits.views["product_visits"] = views


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sources = {
        name: str(folder / f"{name}.parquet") for name in ("purchases", "visits")
    }
    home = new_settings(folder / "home", sources=sources)
    late = write(folder)
    with mlflow_server(home), redis_server(home.redis_port, home.home):
        feast_apply(home)
        learn(home, folder, late)
        compare(home)
        serve(home)
        said["monitor"] = look(home, datetime.now(UTC))
        ingest(home, "purchases", NOW + timedelta(hours=5))
        said["one_is_late"] = look(home, NOW + timedelta(hours=5))
        records = service_records(home, SPEC.dataset, SPEC.feature_service)
        said["freshness"] = {
            record.dataset: record.watermark.isoformat() for record in records
        }
        change(home)
    sys.stdout.write(json.dumps(said, default=str))
