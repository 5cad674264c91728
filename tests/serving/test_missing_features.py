"""What the spec says of missing features where the store holds nulls (without it: faults/)."""

from __future__ import annotations

import asyncio
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pandas as pd
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from redis import Redis

from core.spec import MISSING
from feature_repo.store import open_store
from monitoring.monitor import monitor
from serving.app import create_app
from tests.serving.conftest import KNOWN, SPEC, contract

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLES = 7_000_001
LATE = 7_000_009
"""Customers that the shipped orders do not have."""


def refusing(
    rig: Any, home: Path, monkeypatch: pytest.MonkeyPatch, *customers: int
) -> list[httpx.Response]:
    """Answers of an application in this process, told to refuse, once its model is loaded."""
    rig.copy_what_serves(home)
    serving = rig.spec.serving.model_copy(update={"missing_features": "refuse"})
    spec = rig.spec.model_copy(update={"serving": serving})
    monkeypatch.setattr("serving.watcher.load_specs", lambda: [spec])
    app = create_app(rig.settings.model_copy(update={"home": home}))

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with (
            app.app.router.lifespan_context(app.app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            for _ in range(12_000):
                state = await client.get("/v1/models/customer_churn_model")
                redis = (await client.get("/health/ready")).json()["resources"]["redis"]
                if state.status_code == 200 and redis["detail"] != "not opened yet":
                    break
                await asyncio.sleep(0.05)
            bodies = [{"customer_id": customer} for customer in customers]
            return [await client.post("/predict", json=body) for body in bodies]

    return asyncio.run(run())


@pytest.fixture(scope="module")
def holes(rig: Any) -> int:
    """A customer whose stored row has nulls, as a source with gaps would leave it."""
    now = datetime.now(UTC)
    row = {
        "customer_id": HOLES, "event_timestamp": now, "created": now,
        "total_orders_30d": 1, "total_orders_90d": 2, "total_spend_30d": 10.5,
        "total_spend_90d": 20.0, "lifetime_orders": 3, "lifetime_value": None,
        "avg_order_value": 20.08, "customer_segment": "repeat",
        "last_order_us": None, "first_order_us": int(now.timestamp() * 1e6),
    }  # fmt: skip
    types = {"lifetime_value": "float64", "last_order_us": "Int64"}
    store = open_store(rig.settings, 5.0)
    store.write_to_online_store("customer_features", pd.DataFrame([row]).astype(types))
    return HOLES


def test_a_stored_null_is_as_in_training_a_text_of_its_own(
    rig: Any, served: Any
) -> None:
    now = datetime.now(UTC)
    row = {
        "customer_id": HOLES + 1, "event_timestamp": now, "created": now,
        "total_orders_30d": 1, "total_orders_90d": 2, "total_spend_30d": 10.5,
        "total_spend_90d": 20.0, "lifetime_orders": 3, "lifetime_value": 30.0,
        "avg_order_value": 20.08, "customer_segment": None,
        "last_order_us": int(now.timestamp() * 1e6), "first_order_us": int(now.timestamp() * 1e6),
    }  # fmt: skip
    frame = pd.DataFrame([row]).astype({"customer_segment": "string"})
    open_store(rig.settings, 5.0).write_to_online_store("customer_features", frame)
    answer = rig.predict_online(served.client, HOLES + 1).json()
    logged = next(r for r in rig.rows() if r["request_id"] == answer["request_id"])
    assert logged["features"]["customer_segment"] == MISSING


def test_a_stored_null_is_not_a_number_for_doubles_and_the_spec_s_matter_otherwise(
    rig: Any, served: Any, holes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"customer_id": holes}
    filled = {**row, "features": {"days_since_last_order": 12}}
    assert (
        served.client.post("/predict", json=row).json()["features_from"] == "defaults"
    )
    merged = rig.online(
        lambda: served.client.post("/predict?merge=true", json=filled)
    ).json()
    assert merged["features_from"] == "merged"
    logged = next(r for r in rig.rows() if r["request_id"] == merged["request_id"])
    assert logged["features"]["lifetime_value"] is None
    (refused,) = refusing(rig, tmp_path, monkeypatch, holes)
    assert refused.status_code == 503
    assert "days_since_last_order is null" in refused.json()["detail"]


@pytest.fixture
def two_views(rig: Any, served: Any) -> Iterator[None]:
    """A version in production that reads two features from a view which only LATE is in."""
    lookup = contract().lookup
    (view,) = lookup.views
    in_second = ("lifetime_value", "avg_order_value")
    second = {
        "name": "customer_value",
        "prefix": b"value " + view.prefix,
        "features": tuple(
            feature for feature in view.features if feature.name in in_second
        ),
    }
    first = {
        "features": tuple(each for each in view.features if each.name not in in_second)
    }
    views = (view.model_copy(update=first), view.model_copy(update=second))
    version = rig.register(
        -0.5, lookup=lookup.model_copy(update={"views": views})
    ).version
    name = views[1].prefix + struct.pack("<IIq", 4, 8, LATE) + view.suffix
    with Redis(port=rig.settings.redis_port) as redis:
        for feature in views[1].features:
            redis.hset(name, feature.field, Value(double_val=7.5).SerializeToString())
        rig.promote(version)
        rig.answers_as(served.client, version)
        yield
        rig.promote(served.first)
        rig.answers_as(served.client, served.first)
        redis.delete(name)


@pytest.mark.usefixtures("two_views")
def test_a_view_without_a_row_of_the_key_is_said_in_answer_log_and_refusal(
    rig: Any, served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = rig.predict_online(served.client, KNOWN).json()
    assert answer["features_from"] == "partly"
    logged = next(
        row for row in rig.rows() if row["request_id"] == answer["request_id"]
    )
    assert (logged["features_from"], logged["features"]["lifetime_value"]) == (
        "partly",
        None,
    )
    assert logged["features"]["lifetime_orders"] > 0
    figures = monitor(rig.settings, SPEC, datetime.now(UTC)).figures
    assert figures["skew_mismatched"] == 2 * figures["skew_vectors"] > 0, (
        "offline both have values"
    )
    unknown = rig.predict_online(served.client, LATE + 1)
    assert (unknown.status_code, unknown.json()["detail"]) == (
        404, f"customer_id {LATE + 1} is not known to the feature store",
    )  # fmt: skip
    known, late, unknown = refusing(rig, tmp_path, monkeypatch, KNOWN, LATE, LATE + 1)
    assert (known.status_code, unknown.status_code) == (200, 404)
    assert (late.status_code, late.json()["detail"]) == (
        503,
        f"no features for a prediction: view customer_features has no row of customer_id {LATE}",
    )
