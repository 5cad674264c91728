"""`POST /events/orders`: on file and online before the answer, landed once whatever happens."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from feature_repo.datasets import load_dataset
from feature_repo.ingest import ingest, raw_table

if TYPE_CHECKING:
    from tests.serving.conftest import Rig, Served

URL = "/events/orders"
NEW = 900_000
"""Keys of orders and customers that the shipped file does not have begin here."""
ONLINE = {"accepted": 1, "logged": True, "online": True}


def order(number: int, customer: int, amount: float = 10.0, **changed: Any) -> dict[str, Any]:
    return {"order_id": NEW + number, "customer_id": customer, "dollar_value": amount,
            "number_of_cds": 1, "order_ts": datetime.now(UTC).isoformat(), **changed}  # fmt: skip


def raw(rig: Rig) -> dict[int, float]:
    rows = raw_table(rig.settings, load_dataset("orders")).read().to_pylist()
    assert len(rows) == len({row["order_id"] for row in rows})
    return {r["order_id"] - NEW: r["dollar_value"] for r in rows if r["order_id"] >= NEW}


def ingested(rig: Rig) -> Any:
    return ingest(rig.settings, "orders", datetime.now(UTC))


@pytest.fixture
def features(rig: Rig, served: Served) -> Any:
    """The features that the server scores a customer with; None: it knows no such customer."""

    def of(customer: int) -> Any:
        answer = rig.predict(served.client, customer)
        return None if answer.status_code == 404 else rig.rows()[-1]["features"]

    return of


def test_an_order_changes_what_the_next_prediction_is_made_of_within_a_second(
    rig: Rig, served: Served, features: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = []
    for number in range(20):
        customer = 100 + number
        before, start = features(customer)["lifetime_orders"], time.perf_counter()
        answer = served.client.post(URL, json=order(number, customer))
        assert (answer.status_code, answer.json()) == (200, ONLINE)
        while features(customer)["lifetime_orders"] != before + 1:
            assert time.perf_counter() < start + 5
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    with capsys.disabled():
        print(  # noqa: T201  (the figure is the point)
            f"\nevent to prediction: median {seconds[10]:.3f} s, slowest {seconds[-1]:.3f} s"
        )
    assert seconds[10] < 1


def test_the_first_order_of_a_customer_and_the_same_again_and_corrected(
    rig: Rig, served: Served, features: Any
) -> None:
    sent, customer = order(100, NEW), NEW
    assert features(customer) is None
    for _ in range(2):
        assert served.client.post(URL, json=sent).json() == ONLINE
        found = features(customer)
        assert (found["lifetime_orders"], found["lifetime_value"]) == (1, 10.0)
    corrected = sent | {"dollar_value": 12.5}
    assert served.client.post(URL, json=[sent, corrected]).json() == ONLINE | {"accepted": 2}
    assert features(customer)["lifetime_value"] == 12.5
    for _ in range(2):
        ingested(rig)
        assert raw(rig)[100] == 12.5
        assert features(customer)["lifetime_value"] == 12.5
    as_json_may_write_it = corrected | {"customer_id": float(customer)}
    assert served.client.post(URL, json=as_json_may_write_it).json() == ONLINE
    assert features(customer)["lifetime_orders"] == 1


def test_events_of_one_customer_at_the_same_time_all_count(
    rig: Rig, served: Served, features: Any
) -> None:
    with ThreadPoolExecutor(20) as clients:
        rows = [order(200 + n, NEW + 1) for n in range(100)]
        answers = [*clients.map(lambda row: served.client.post(URL, json=row).json(), rows)]
    assert answers == [ONLINE] * 100
    assert features(NEW + 1)["lifetime_orders"] == 100


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        ({"extra": 1}, "extra", "Extra"),
        ({"customer_id": None}, "customer_id", "integer"),
        ({"order_id": "1"}, "order_id", "integer"),
        ({"order_id": 2**63}, "order_id", "less than"),
        ({"number_of_cds": 1.5}, "number_of_cds", "integer"),
        ({"dollar_value": "5"}, "dollar_value", "number"),
        ({"order_ts": "2026-11-20T10:00:00"}, "order_ts", "timezone"),
        ({"order_ts": 1_700_000_000}, "order_ts", "datetime"),
        ({"order_ts": "2999-01-01T00:00:00Z"}, "order_ts", "future"),
    ],
)
def test_what_is_no_event_is_refused_by_name(
    rig: Rig, served: Served, change: dict[str, Any], where: str, what: str
) -> None:
    size = sum(path.stat().st_size for path in rig.settings.events.iterdir())
    for body in (order(300, 1) | change, [order(300, 1), order(301, 1) | change]):
        answer = served.client.post(URL, json=body)
        assert answer.status_code == 422
        assert where in answer.text
        assert what in answer.text
    assert sum(path.stat().st_size for path in rig.settings.events.iterdir()) == size


def test_the_edges_of_the_route(served: Served) -> None:
    client, missing = served.client, order(300, 1)
    del missing["dollar_value"]
    assert "dollar_value" in client.post(URL, json=missing).text
    assert client.post(URL, json=[]).status_code == 422
    assert client.post(URL, json=[order(n, 1) for n in range(1_001)]).status_code == 422
    assert client.post(URL, content=b" " * 1_000_001).status_code == 413
    unknown = client.post("/events/refunds", json={})
    assert (unknown.status_code, unknown.json()["detail"]) == (
        404, "no dataset 'refunds': there is orders",
    )  # fmt: skip
    body = client.get("/openapi.json").json()["components"]["schemas"]["OrdersEvent"]
    assert body["properties"]["order_ts"]["format"] == "date-time"
    assert 'gyre_events_total{dataset="orders",outcome="refused"}' in client.get("/metrics").text


def test_an_offset_other_than_utc_is_the_same_moment(
    rig: Rig, served: Served, features: Any
) -> None:
    at = datetime.now(UTC) - timedelta(days=40)
    elsewhere = f"{(at + timedelta(hours=5)).replace(tzinfo=None).isoformat()}+05:00"
    assert served.client.post(URL, json=order(310, NEW + 3, order_ts=elsewhere)).json() == ONLINE
    found = features(NEW + 3)
    assert (found["days_since_last_order"], found["total_orders_30d"]) == (40, 0)
