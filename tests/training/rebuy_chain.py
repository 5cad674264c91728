"""Inside a project whose service reads views of two datasets, each of an entity of its own.

From rows to the verdict of the monitor, each checked as it comes; test_several_views.py runs it.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core.errors import GyreError
from core.spec import load_spec
from feature_engine.ingest.pipeline import ingest
from feature_engine.parity import parity
from feature_repo.published.service import PublishedService
from mlflow_server.api.tracking import Tracking
from monitoring.monitor import monitor
from tests.conftest import feast_apply, mlflow_server, redis_server, wait_until
from tests.support.training.chains import client, settings_of, train
from training.check import check
from training.reproduce import reproduce
from training.runs import nothing_new

NOW = datetime.now(UTC)
BEHIND = NOW - timedelta(days=60)
SPEC = load_spec("rebuy")
CHANCE = np.random.default_rng(5)


def times(count):
    """Times of the last 250 days up to a minute ago, in order."""
    ago = CHANCE.uniform(60, 250 * 86_400, count)
    return [NOW - timedelta(seconds=second) for second in sorted(ago, reverse=True)]


def numbers(most, count):
    return (CHANCE.beta(1, 3, count) * most).astype(int)


def write(folder):
    """Purchases of 150 customers, and visits of 25 products: the newest 60 days of these later."""
    count = 4_000
    purchases = {
        "purchase_id": np.arange(count),
        "customer_id": numbers(150, count),
        "product_id": numbers(25, count),
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
    early = visits.filter(pc.field("seen_at") < BEHIND)
    pq.write_table(early, folder / "visits.parquet")
    return visits


def learn(settings, folder, visits):
    """Train once both have rows, on what is known at both, and lineage pins both."""
    for name, as_of in (("purchases", NOW), ("visits", BEHIND)):
        line = f"^{name}: no rows yet; run: gyre ingest {name}$"
        with pytest.raises(GyreError, match=line):
            train(settings, SPEC, NOW, "early")
        ingest(settings, name, as_of)
    behind = train(settings, SPEC, NOW, "behind")
    assert behind.version == "1", behind.outcome
    assert nothing_new(settings, SPEC, NOW) is not None
    pq.write_table(visits, folder / "visits.parquet")
    ingest(settings, "visits", NOW)
    assert nothing_new(settings, SPEC, NOW) is None
    now = datetime.now(UTC)  # after the first promotion
    caught_up = train(settings, SPEC, now, "caught up")
    assert caught_up.version == "2", caught_up.outcome
    tracking = Tracking(settings)
    old_tags = tracking.run(behind.run_id).tags
    new_tags = tracking.run(caught_up.run_id).tags
    old_end = datetime.fromisoformat(old_tags["planned_as_of"])
    new_end = datetime.fromisoformat(new_tags["planned_as_of"])
    assert (new_end - old_end).days == 49  # 60 behind, 10 of the label's horizon
    assert old_tags["table.raw.purchases"] == new_tags["table.raw.purchases"]
    assert old_tags["table.raw.visits"] != new_tags["table.raw.visits"]
    report = reproduce(settings, SPEC.name, "2")
    assert report.reproduced, report.summary()


def compare(settings):
    service = PublishedService(settings, SPEC.feature_service)
    assert sorted(service.datasets()) == ["purchases", "visits"]
    report = parity(settings, SPEC.feature_service, [BEHIND, NOW])
    assert report.entities > 100, report
    assert report.features == 5, report
    assert not report.differences, report
    lines, _ = check(settings, SPEC, NOW)
    assert lines == []


def serve(settings):
    """Ask for pairs that nobody bought yet, for an unknown product, and for an unknown pair."""
    keys = [{"customer_id": n % 100, "product_id": n % 20} for n in range(200)]
    unknown_product = keys[0] | {"product_id": 999}
    unknown_pair = {"customer_id": 999, "product_id": 999}
    with client(settings, SPEC) as http:
        wait_until(
            "an answer",
            lambda: http.post("/predict", json=keys[0]).is_success,
        )
        answers = http.post("/predict/batch", json=keys).json()
        assert {answer["features_from"] for answer in answers} == {"online"}, answers
        answer = http.post("/predict", json=unknown_product).json()
        assert answer["features_from"] == "defaults", answer
        assert http.post("/predict", json=unknown_pair).status_code == 404


def judge(settings):
    """Monitor what was answered, and again when purchases alone are ingested."""
    report = monitor(settings, SPEC, datetime.now(UTC))
    assert report.figures["skew/vectors"] > 150, report.figures
    assert report.figures["skew/share"] == 0, report.results
    later = NOW + timedelta(hours=5)
    ingest(settings, "purchases", later)
    words = " ".join(result.words for result in monitor(settings, SPEC, later).results)
    assert "visits: features are not complete since" in words, words
    assert "purchases: features are not complete" not in words, words


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    home = settings_of("purchases", "visits")
    visits = write(folder)
    with mlflow_server(home), redis_server(home.redis_port, home.home):
        feast_apply(home)
        learn(home, folder, visits)
        compare(home)
        serve(home)
        judge(home)
