"""What the spec says of missing features where the store holds nulls (without it: faults/)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pandas as pd
import pytest

from core.spec import MISSING
from feature_repo.store import open_store
from serving.app import create_app

if TYPE_CHECKING:
    from pathlib import Path

HOLES = 7_000_001


def refusing(rig: Any, home: Path, body: Any, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    """Answer of an application in this process, told to refuse, once its model is loaded."""
    rig.copy_what_serves(home)
    serving = rig.spec.serving.model_copy(update={"missing_features": "refuse"})
    spec = rig.spec.model_copy(update={"serving": serving})
    monkeypatch.setattr("serving.watcher.load_specs", lambda: [spec])
    app = create_app(rig.settings.model_copy(update={"home": home}))

    async def run() -> httpx.Response:
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
            return await client.post("/predict", json=body)

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


def test_a_stored_null_is_as_in_training_a_text_of_its_own(rig: Any, served: Any) -> None:
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
    assert served.client.post("/predict", json=row).json()["features_from"] == "defaults"
    merged = rig.online(lambda: served.client.post("/predict?merge=true", json=filled)).json()
    assert merged["features_from"] == "merged"
    logged = next(r for r in rig.rows() if r["request_id"] == merged["request_id"])
    assert logged["features"]["lifetime_value"] is None
    refused = refusing(rig, tmp_path, row, monkeypatch)
    assert refused.status_code == 503
    assert "days_since_last_order is null" in refused.json()["detail"]
