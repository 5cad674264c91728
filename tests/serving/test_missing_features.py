"""What the spec says of missing features, with a feature port that has none or holes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx

from serving.app import create_app
from stack.errors import FeaturesUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime


class Holes:
    """Features in memory, some of them null."""

    def __init__(self, row: dict[str, Any], *null: str) -> None:
        self._row = row | dict.fromkeys(null)

    def read(self, keys: Sequence[int | str], as_of: datetime) -> list[Any]:
        assert as_of.tzinfo
        return [dict(self._row) for _ in keys]

    def ping(self) -> None: ...
    def watermark(self) -> None: ...
    def close(self) -> None: ...


def none(*_: Any) -> Any:
    raise FeaturesUnavailableError("Redis: connection refused")


def ask(
    rig: Any, policy: str, features: Callable[..., Any], body: dict[str, Any]
) -> httpx.Response:
    """Answer of an application in this process, once its model is loaded."""
    home = rig.folder / f"in-process-{policy}-{features.__name__}"
    serving = rig.spec.serving.model_copy(update={"missing_features": policy})
    spec = rig.spec.model_copy(update={"serving": serving})
    app = create_app(rig.settings.model_copy(update={"home": home}), [spec], features)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            for _ in range(200):
                state = await client.get("/v1/models/customer_churn_model")
                redis = (await client.get("/health/ready")).json()["resources"]["redis"]
                if state.status_code == 200 and redis["detail"] != "not opened yet":
                    break
                await asyncio.sleep(0.05)
            return await client.post("/predict", json=body)

    return asyncio.run(run())


def test_refuse_is_503_with_retry_after_and_features_in_the_request_still_answer(
    rig: Any, served: Any
) -> None:
    answer = ask(rig, "refuse", none, {"customer_id": 4})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "connection refused" in answer.json()["detail"]
    answer = ask(rig, "refuse", none, {"customer_id": 4, "features": rig.features})
    assert (answer.status_code, answer.json()["model_version"]) == (200, served.first)


def test_defaults_answer_and_say_so(rig: Any, served: Any) -> None:
    answer = ask(rig, "defaults", none, {"customer_id": 4}).json()
    assert (answer["features_from"], answer["model_version"]) == ("defaults", served.first)


def test_a_stored_null_is_not_a_number_for_doubles_and_the_spec_s_matter_otherwise(
    rig: Any, served: Any
) -> None:
    def no_value(*_: Any) -> Holes:
        return Holes(rig.features, "lifetime_value")

    def no_days(*_: Any) -> Holes:
        return Holes(rig.features, "days_since_last_order", "lifetime_value")

    assert served.first
    answer = ask(rig, "refuse", no_value, {"customer_id": 4})
    assert (answer.status_code, answer.json()["features_from"]) == (200, "online")
    row = rig.rows(home=rig.folder / "in-process-refuse-no_value")[-1]
    assert row["features"]["lifetime_value"] is None
    assert ask(rig, "defaults", no_days, {"customer_id": 4}).json()["features_from"] == "defaults"
    refused = ask(rig, "refuse", no_days, {"customer_id": 4})
    assert refused.status_code == 503
    assert "days_since_last_order is null" in refused.json()["detail"]
