"""Inside a project whose service reads views of two datasets, each of an entity of its own.

From rows to the verdict of the monitor. Prints one JSON object, which test_several_views.py checks.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import GyreError
from core.spec import load_spec
from feature_repo.ingest import ingest
from feature_repo.parity import parity
from feature_repo.service import PublishedService
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
from training.reproduce import reproduce
from training.validate import learnable

NAME = "rebuy"
NOW = datetime.now(UTC)
BEHIND = NOW - timedelta(days=60)
SPEC = load_spec(NAME)
CHANCE = np.random.default_rng(5)
results = {}


def times(count):
    """Times of the last 250 days up to a minute ago, in order."""
    ago = np.sort(CHANCE.uniform(60, 250 * 86_400, count))[::-1]
    start = np.datetime64(NOW.replace(tzinfo=None), "us")
    return pa.array(
        start - (ago * 1e6).astype("timedelta64[us]"), pa.timestamp("us", "UTC")
    )


def number(most, count):
    return (CHANCE.beta(1, 3, count) * most).astype(int)


def write(folder):
    """Purchases of 150 customers, and visits of 25 products: the newest 60 days of these later."""
    count = 4_000
    purchases = {
        "purchase_id": np.arange(count),
        "customer_id": number(150, count),
        "product_id": number(25, count),
        "bought_at": times(count),
        "price": CHANCE.integers(1, 900, count) / 4,
    }
    pq.write_table(pa.table(purchases), folder / "purchases.parquet")
    count = 6_000
    columns = {
        "visit_id": np.arange(count),
        "product_id": CHANCE.integers(0, 25, count),
        "seen_at": times(count),
        "minutes": CHANCE.integers(1, 90, count) / 4,
    }
    visits = pa.table(columns)
    is_early = pa.array([time < BEHIND for time in visits["seen_at"].to_pylist()])
    pq.write_table(visits.filter(is_early), folder / "visits.parquet")
    return visits


def train(settings, as_of, key):
    """The report of a training, and the tags of its run."""
    report = chain.train(settings, SPEC, as_of, key=key, reason="a", who="test")
    tags = Tracking(settings).run(report.run_id).tags if report.run_id else {}
    names = ("planned_as_of", "table.raw.purchases", "table.raw.visits")
    chosen_tags = {name: tags.get(name) for name in names}
    return {"version": report.version, "outcome": report.outcome} | chosen_tags


def refusal(settings):
    try:
        train(settings, NOW, "0")
    except GyreError as exc:
        return str(exc)
    return None


def learn(settings, folder, visits):
    """Train while visits are behind, once they are not, and once more."""
    results["no_rows"] = refusal(settings)
    ingest(settings, "purchases", NOW)
    results["no_visits"] = refusal(settings)
    ingest(settings, "visits", BEHIND)
    results["behind"] = train(settings, NOW, "1")
    results["learnable"] = [learnable(settings, SPEC, NOW)]
    pq.write_table(visits, folder / "visits.parquet")
    ingest(settings, "visits", NOW)
    results["learnable"].append(learnable(settings, SPEC, NOW))
    now = datetime.now(UTC)  # after the first promotion
    results["caught_up"] = train(settings, now, "2")
    results["nothing_new"] = train(settings, now, "3")["outcome"]
    results["reproduced"] = [
        reproduce(settings, NAME, version).summary() for version in ("1", "2")
    ]


def compare(settings):
    service = PublishedService(settings, SPEC.feature_service)
    results["datasets"] = sorted(service.datasets())
    report = parity(settings, SPEC.feature_service, [BEHIND, NOW])
    results["parity"] = [report.entities, report.features, [*report.differences]]
    results["check"], _ = check(settings, SPEC, NOW)


def serve(settings):
    """Ask for pairs that nobody bought yet, for an unknown product, and for an unknown pair."""
    keys = [{"customer_id": n % 100, "product_id": n % 20} for n in range(200)]
    unknown = {"customer_id": 999, "product_id": 999}
    log = settings.home / "serving.log"
    address = settings.serving_address
    with (
        running(
            [sys.executable, "-m", "serving"], log, **process_environment(settings)
        ),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        wait_until("serving", lambda: answers(f"{address}/health/live"))
        path = "/predict"
        wait_until(
            "the model", lambda: client.post(path, json=keys[0]).status_code == 200
        )
        results["answers"] = client.post("/predict/batch", json=keys).json()
        unknown_product = keys[0] | {"product_id": 999}
        results["unknown_product"] = client.post(path, json=unknown_product).json()
        results["unknown_pair"] = client.post(path, json=unknown).status_code


def verdict(settings, as_of):
    report = monitor(settings, SPEC, as_of)
    skew = {n: v for n, v in report.figures.items() if n.startswith("skew")}
    return {"words": [result.words for result in report.results], "skew": skew}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    names = ("purchases", "visits")
    sources = {name: str(folder / f"{name}.parquet") for name in names}
    home = new_settings(folder / "home", sources=sources)
    visits = write(folder)
    with mlflow_server(home), redis_server(home.redis_port, home.home):
        feast_apply(home)
        learn(home, folder, visits)
        compare(home)
        serve(home)
        results["monitor"] = verdict(home, datetime.now(UTC))
        ingest(home, "purchases", NOW + timedelta(hours=5))
        results["one_is_late"] = verdict(home, NOW + timedelta(hours=5))
    sys.stdout.write(json.dumps(results))
