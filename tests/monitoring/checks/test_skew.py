"""Real skew: ingest, Feast, Redis, its reader and the prediction log."""

import sys
from contextlib import closing
from datetime import timedelta
from importlib import import_module
from random import Random

import pandas as pd
import pytest
from feast import FeatureService, Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64
from redis import Redis

from core import user_code
from feature_engine.ingest.pipeline import catch_up
from feature_engine.offline.raw import raw_table
from feature_engine.online.values import OnlineValues
from feature_engine.online.window_ends import WindowEnds
from feature_repo import datasets
from feature_repo.datasets.orders import customer_features_view
from feature_repo.published import store
from feature_repo.published.redis_names import hash_fields, hash_names
from feature_repo.published.service import PublishedService
from feature_repo.published.store import open_store, publish_beside
from monitoring.checks.skew import (
    judge_skew,
)
from tests.conftest import AS_OF
from tests.support.feature_engine.installation import (  # noqa: F401
    applied,
    consuming,
    land_orders,
    online_reader,
    template,
)
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, SPEC, order, shop  # noqa: F401
from tests.support.monitoring.online_customers import (
    CONTRACT,
    MINUTE,
    Serving,
    customers,
    serving,  # noqa: F401  (a fixture)
)


def first_orders():
    return [order(n, n, AS_OF - n * DAY, 5.0 + n) for n in range(1, 8)]


@pytest.mark.journey
def test_rows_landed_within_the_hour_and_events_since_their_arrival_are_no_skew(
    shop, serving
):
    orders = first_orders()
    shop.has(*orders)
    shop.ingest(AS_OF)
    serving.ask(AS_OF + 5 * MINUTE, *customers(1, 2, 3, 4, 5))
    assert serving.differing() == [set()] * 5
    with consuming(shop.settings, ORDERS) as send:
        send(AS_OF + 10 * MINUTE, order(22, 2, AS_OF + 8 * MINUTE, 1.0))
        serving.ask(AS_OF + 20 * MINUTE, *customers(1, 2))
    orders.append(order(11, 1, AS_OF + MINUTE, 3.0))
    shop.has(*orders)
    shop.ingest(AS_OF + HOUR)
    assert serving.differing() == [set()] * 7


def test_a_window_that_ended_two_seconds_ago_is_no_skew(shop, serving):
    end = AS_OF + 2 * HOUR  # of the 30 days' window
    # Of the moments of 20 minutes and of 2 s before, the first is of another order.
    earlier = end - 10 * MINUTE
    shop.has(order(1, 1, end - 30 * DAY, 5.0), order(2, 1, earlier - 30 * DAY, 6.0))
    shop.ingest(earlier + MINUTE)
    # Nothing brings the end online.
    serving.ask(end + timedelta(seconds=1), *customers(1))
    assert serving.differing() == [set()]


@pytest.mark.journey
def test_a_wrong_online_value_raises_an_alert_without_entity_or_value(shop, serving):
    """A late row is none: nobody knew it. Another value of customer 3 in Redis is."""
    orders = first_orders()
    shop.has(*orders)
    shop.ingest(AS_OF)
    for minute in range(5):
        serving.ask(AS_OF + minute * MINUTE, *customers(*range(1, 8)))
    shop.has(*orders, order(12, 3, AS_OF - 10 * HOUR, 3.0))
    shop.ingest(AS_OF + 2 * HOUR)
    write_by_hand(shop.settings, ORDERS, [(3,)], lifetime_orders=7)
    for minute in range(5):
        serving.ask(AS_OF + 2 * HOUR + minute * MINUTE, *customers(*range(1, 8)))
    differing = serving.differing()
    assert differing[:35] == [set()] * 35
    assert sum(map(bool, differing)) == 5
    results = {result.name: result for result in judge_skew("churn", "1", differing)}
    assert results["skew/vectors"].value == 70
    assert results["skew/share"].value == pytest.approx(1 / 14)
    alert = results["skew/lifetime_orders"]
    assert alert.status == "alert"
    assert alert.words == (
        "lifetime_orders: 7.1% of 70 vectors had another value online than offline"
    )
    assert alert.incident == "skew of version 1: lifetime_orders"
    assert not [name for name in results if "segment" in name]


def write_by_hand(settings, dataset, keys, **numbers):
    """Give entities other whole numbers in Redis than their view has."""
    (name,) = dataset.views
    store = open_store(settings)
    view = store.get_feature_view(name)
    _, *fields = hash_fields(store.config, view, [*numbers])
    values = [
        Value(int64_val=number).SerializeToString() for number in numbers.values()
    ]
    with Redis(port=settings.redis_port) as redis:
        for name in hash_names(store.config, view, keys):
            redis.hset(name, mapping=dict(zip(fields, values, strict=True)))


DEPARTURES = """
from datetime import timedelta

import pyarrow as pa
from feast import Entity, FeatureService, ValueType

from gyre import Dataset, Window, Windows, feature_view

HOUR = timedelta(hours=1)
TIME = pa.timestamp("us", "UTC")
SCHEMA = {"flight": pa.int64(), "origin": pa.string(), "at": TIME, "minutes": pa.float64()}
WINDOWS = [
    Window(None, "count", HOUR, name="flights_1h"),
    Window("minutes", "sum", HOUR, name="minutes_1h"),
    Window("minutes", "mean", HOUR, name="delay_1h"),
]
DEPARTURES = Dataset(
    name="departures",
    schema=pa.schema(SCHEMA),
    key=("flight",),
    event_time="at",
    entity="origin",
    look_back=timedelta(days=7),
    silence=timedelta(hours=48),
    views={"airport": Windows("origin", "at", WINDOWS, delay=DELAY)},
    labels={},
)
airport = Entity(name="airport", join_keys=["origin"], value_type=ValueType.STRING)
airport_view = feature_view(DEPARTURES, "airport", [airport])
airport_v1 = FeatureService(name="airport_v1", features=[airport_view])
"""
AIRPORTS = [f"A{number}" for number in range(20)]


class Hub:
    """Airports whose departures of an hour arrive at its end, as an hourly source has it."""

    def __init__(self, settings, folder, monkeypatch, delay="timedelta(0)"):
        text = DEPARTURES.replace("DELAY)", f"{delay})")
        (folder / "departures.py").write_text(text)
        monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(folder)])
        for module in (datasets, store, user_code):
            monkeypatch.setattr(module, "DATASETS", folder)
        monkeypatch.setattr(user_code, "PROJECT", folder)
        monkeypatch.delitem(
            sys.modules, "feature_repo.datasets.departures", raising=False
        )
        self.dataset = import_module("feature_repo.datasets.departures").DEPARTURES
        publish_beside(settings, self.dataset)
        self.settings = settings
        self.raw = raw_table(settings, self.dataset)
        kinds = {"flights_1h": "int64", "minutes_1h": "double", "delay_1h": "double"}
        change = {
            "entity_key": {"origin": "string"},
            "feature_service": "airport_v1",
            "features": kinds,
        }
        self.serving = Serving(settings, CONTRACT.model_copy(update=change))
        self.chance = Random(1)
        self.flights = 0

    def hour(self, end):
        """Land the departures of an hour, up to the minute."""
        rows = []
        for minute in range(60):
            for airport in self.chance.sample(AIRPORTS, 8):
                at = end - minute * MINUTE
                self.flights += 1
                flight = {"flight": self.flights, "origin": airport, "at": at}
                rows.append(flight | {"minutes": self.chance.uniform(-5, 60)})
        self.land(end, *rows)

    def land(self, arrival, *rows):
        land_orders(self.settings, self.dataset, rows, arrival)
        with closing(self.online()) as online:
            catch_up(online, arrival)

    def online(self):
        return OnlineValues(self.settings, self.dataset, self.raw)

    def ask(self, moment):
        """Let windows end as the consumer does, then answer for every airport."""
        with closing(self.online()) as online:
            ends = WindowEnds(online)
            while ends.step(moment):
                pass
        return self.serving.ask(moment, *({"origin": name} for name in AIRPORTS))


@pytest.mark.journey
def test_windows_of_an_hour_on_an_hourly_source_are_no_skew_and_wrong_values_are(
    applied, tmp_path, monkeypatch
):
    hub = Hub(applied, tmp_path, monkeypatch)
    for number in range(4):
        hub.hour(AS_OF + number * HOUR)
        for minute in (3, 41):
            hub.ask(AS_OF + number * HOUR + minute * MINUTE)
    late = {"flight": 10**6, "origin": "A3", "at": AS_OF + HOUR / 2, "minutes": 5.0}
    hub.land(AS_OF + 4 * HOUR, late)
    vector_count = 8 * len(AIRPORTS)
    assert hub.serving.differing() == [set()] * vector_count
    wrong = [(airport,) for airport in AIRPORTS[:15]]
    write_by_hand(applied, hub.dataset, wrong, flights_1h=999)
    hub.serving.ask(AS_OF + 4 * HOUR + MINUTE, *({"origin": key} for (key,) in wrong))
    differing = hub.serving.differing()
    assert differing == [set()] * vector_count + [{"flights_1h"}] * len(wrong)
    results = {result.name: result for result in judge_skew("m", "1", differing)}
    assert results["skew/flights_1h"].status == "alert"


@pytest.mark.journey
@pytest.mark.parametrize(
    ("delay", "fewest", "most"),
    [("timedelta(0)", 0.8, 1.0), ("timedelta(hours=1, minutes=5)", 0.0, 0.0)],
)
def test_features_with_a_delay_are_in_training_what_they_were_online(
    applied, tmp_path, monkeypatch, delay, fewest, most
):
    hub = Hub(applied, tmp_path, monkeypatch, delay)
    answers = []
    for number in range(4):
        hub.hour(AS_OF + number * HOUR)
        for minute in (3, 57) if number else ():
            moment = AS_OF + number * HOUR + minute * MINUTE
            rows = zip(AIRPORTS, hub.ask(moment), strict=True)
            answers += [{"origin": name, "moment": moment, **row} for name, row in rows]
    hub.hour(AS_OF + 4 * HOUR)
    asked = pd.DataFrame(answers)
    frame = asked[["origin"]].assign(event_timestamp=asked["moment"])
    frame["position"] = range(len(frame))
    service = PublishedService(applied, "airport_v1")
    trained = service.historical(frame).sort_by("position")["flights_1h"].to_pylist()
    pairs = zip(asked["flights_1h"], trained, strict=True)
    share = sum(online != offline for online, offline in pairs) / len(asked)
    assert fewest <= share <= most


@pytest.mark.parametrize(
    ("count", "differing", "is_alert"),
    [(1000, 15, False), (1000, 25, True), (7, 2, False), (7, 3, True)],
)
def test_a_share_of_skew_raises_an_alert_beyond_the_limit_and_beyond_chance(
    count, differing, is_alert
):
    vectors = [{"orders"}] * differing + [set()] * (count - differing)
    results = {result.name: result for result in judge_skew("m", "1", vectors)}
    assert ("skew/orders" in results) is is_alert
    assert results["skew/share"].status == "note"


def test_answers_that_cannot_be_compared_are_left_out(shop, serving):
    shop.has(*first_orders())
    shop.ingest(AS_OF)
    (features,) = serving.ask(AS_OF, *customers(1))
    for entity in (None, "1.5", "x"):
        serving.write(AS_OF, entity, features)
    serving.write(AS_OF, "1", dict([*features.items()][1:]))
    serving.write(AS_OF, "1", features, features_from="cache")
    serving.write(AS_OF, "1", features, version="2")
    serving.write(AS_OF, "99", features, features_from="partly")
    # Nobody knows 99.
    assert sorted(map(len, serving.differing())) == [0, len(features)]


CART = RequestSource(name="cart", schema=[Field(name="cart_value", dtype=Float64)])


@on_demand_feature_view(
    sources=[customer_features_view, CART],
    schema=[Field(name="cart_above", dtype=Float64)],
    mode="python",
)
def cart_against_average(inputs):
    pairs = zip(inputs["cart_value"], inputs["avg_order_value"], strict=True)
    return {"cart_above": [value - average for value, average in pairs]}


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
def test_features_of_request_data_are_computed_again_from_the_log(shop):
    service = FeatureService(name="carts", features=[cart_against_average])
    open_store(shop.settings, 5).apply([cart_against_average, service])
    shop.has(*first_orders())
    shop.ingest(AS_OF)
    lookup = {"request_data": {"cart_value": "double"}}
    change = {
        "feature_service": "carts",
        "features": {"cart_above": "double"},
        "lookup": CONTRACT.lookup.model_copy(update=lookup),
    }
    serving = Serving(shop.settings, CONTRACT.model_copy(update=change))
    cart = {"cart_value": 10.0}
    moment = AS_OF + HOUR / 2
    (row,) = serving.read(moment, {"customer_id": 1} | cart)
    assert row == {"cart_above": 4.0}
    serving.write(moment, "1", row, request_data=cart)
    serving.write(moment + MINUTE, "1", row, request_data={"cart_value": 11.0})
    assert serving.differing() == [set(), {"cart_above"}]
