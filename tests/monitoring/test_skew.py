"""Each outcome of skew, made for real: ingest, Feast, Redis, its reader and the prediction log."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from feast import FeatureService, Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, String
from redis import Redis

from core.monitoring_spec import Monitoring
from core.spec import entity_of, entity_text
from feature_repo.datasets.orders import customer_features_view
from feature_repo.online import OnlineFeatures
from feature_repo.store import open_store
from mlflow_server.served_model import LookupSpecification, ServedModel
from monitoring.checks.skew import Audit, classify, mismatches, read, sample
from monitoring.collect import collect, predictions
from serving.prediction_log import AppendLog
from tests.conftest import AS_OF
from tests.feature_repo.conftest import applied, consuming, template  # noqa: F401  (fixtures)
from tests.feature_repo.test_composite_keys import Shop as Baskets
from tests.feature_repo.test_composite_keys import order as basket_order
from tests.feature_repo.test_composite_keys import spend  # noqa: F401
from tests.feature_repo.test_ingest import DAY, ORDERS, SPEC, order, shop  # noqa: F401

LIMITS = Monitoring()
UNREAD = LookupSpecification(feast="", online_store="")
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
SPENT = {"total_spend_30d", "total_spend_90d", "lifetime_value", "avg_order_value"}
BASKETS = ("orders_3m", "spend_3m", "orders_12m", "spend_12m", "months_since_last_order",
           "avg_order_value", "order_kind")  # fmt: skip


def contract(spec=SPEC, **changed):
    of_spec = {
        name: getattr(spec, name)
        for name in ("entity_key", "feature_service", "features")
    }
    return ServedModel(**of_spec | {"model": "m", "defaults": {}, "population": SPEC.population,
                                    "as_of": AS_OF.isoformat(), "lookup": UNREAD}
                       | changed)  # fmt: skip


class Asking:
    """What serving does of a request, without the model: read online, write down."""

    def __init__(self, settings, dataset=ORDERS, served=None):
        self.settings, self.dataset, self.served = (
            settings,
            dataset,
            served or contract(),
        )
        self.log, self.count = (
            AppendLog(settings.home / "serving" / "log", "predictions"),
            0,
        )
        self.log.open()

    def ask(self, at, *keys):
        reader = OnlineFeatures(
            self.settings, self.served.feature_service, tuple(self.served.features)
        )
        for key, features in zip(keys, reader.read(keys, at), strict=True):
            self.write(at, entity_text(key), features)
        reader.close()

    def write(self, at, entity, features, **changed):
        self.count += 1
        row = {
            "request_id": str(self.count), "model": "m", "version": "1", "role": "production",
            "received": at.isoformat(), "as_of": at.isoformat(), "entity": entity,
            "features": features, "features_from": "online", "probability": 0.5,
            "prediction": 1.0, "in_population": True,
        }  # fmt: skip
        assert self.log.write([row | changed])

    def told(self):
        """Remarks by incident."""
        return {
            each.incident: each.remark for each in mismatches("1", self.vectors()[0])
        }

    def look(self):
        """How many values are of each outcome."""
        return self.vectors()[1]

    def vectors(self):
        collect(self.settings)
        rows = predictions(self.settings).read(
            where=pc.field("features_from") == "online"
        )
        vectors = read(rows, self.served)
        self.unfit = len(rows) - len(vectors)
        audit = Audit(self.settings, [self.dataset], self.served, LIMITS)
        return vectors, classify(audit, vectors)


@pytest.fixture
def asking(shop):
    return Asking(shop.settings)


def who(number):
    return {"customer_id": number}


def classes(found):
    return {name: count for name, count in found.items() if count}


def first_orders():
    return [order(n, n, AS_OF - n * DAY, 5.0 + n) for n in range(1, 8)]


def test_what_landed_later_is_stale_and_no_skew(shop, asking):
    orders = first_orders()
    shop.has(*orders)
    shop.ingest(AS_OF)
    at = AS_OF + HOUR / 2
    asking.ask(at, *map(who, (1, 2, 3, 4, 5)))
    assert classes(asking.look()) == {"equal": 50}
    stale = order(11, 1, AS_OF + MINUTE, 3.0)
    late = order(12, 3, AS_OF - 10 * HOUR, 3.0)
    # Of 4 both: a new order, and an older one that is corrected beside it.
    both = order(13, 4, at - MINUTE, 3.0)
    corrected = [order(n, n, AS_OF - n * DAY, 50.0) for n in (2, 4)]
    shop.has(*(each for n, each in enumerate(orders, 1) if n not in {2, 4}),
             *corrected, stale, late, both)  # fmt: skip
    shop.ingest(AS_OF + HOUR)
    found = asking.look()
    assert asking.told() == {}
    # Of 1, 3 and 4 all but tenure, of 2 what was spent, of 5 nothing.
    assert classes(found) == {"equal": 19, "stale": 9 + 9 + 4 + 9}
    asking.ask(AS_OF + HOUR, *map(who, (1, 2, 3, 4, 5)))
    assert asking.look()["equal"] == found["equal"] + 50


def test_a_window_that_ended_is_stale_for_two_seconds_and_then_mismatched(shop, asking):
    end = AS_OF + MINUTE  # of the 30 days' window
    shop.has(order(1, 1, end - 30 * DAY, 5.0), order(2, 2, AS_OF - DAY, 5.0))
    shop.ingest(AS_OF)
    asking.ask(end + SECOND, who(1))  # nothing brings the end of the window online
    assert classes(asking.look()) == {"equal": 8, "stale": 2}
    asking.ask(end + 3 * SECOND, who(1), who(2))
    assert classes(asking.look()) == {"equal": 26, "stale": 2, "mismatched": 2}
    assert [*asking.told()] == [
        "skew of version 1: total_orders_30d", "skew of version 1: total_spend_30d",
    ]  # fmt: skip


def planted(settings, number, **changed):
    """Give customer `number` the hash of another one in Redis, as Feast encodes it."""
    redis = Redis(port=settings.redis_port)
    keys = {n: key for key in redis.keys("*") for n in (number, changed["of"])
            if n.to_bytes(8, "little") in key}  # fmt: skip
    redis.hset(keys[number], mapping=redis.hgetall(keys[changed["of"]]))
    redis.close()


def test_a_planted_value_is_named_with_customer_and_feature(shop, asking):
    shop.has(*first_orders(), order(11, 1, AS_OF - 40 * DAY, 3.0))
    shop.ingest(AS_OF)
    planted(shop.settings, 3, of=1)
    at = AS_OF + HOUR / 2
    asking.ask(at, *map(who, range(1, 8)))
    asking.ask(at + MINUTE, who(3))
    shop.ingest(AS_OF + HOUR)
    found, alerts = asking.look(), asking.told()
    assert alerts["skew of version 1: lifetime_orders"] == (
        f"skew of lifetime_orders: customer_id 3 at {at + MINUTE:%Y-%m-%d %H:%M:%S} UTC: "
        "online 2, offline 1; and 1 more"
    )
    assert (
        "online 'repeat', offline 'new'"
        in alerts["skew of version 1: customer_segment"]
    )
    assert "skew of version 1: total_orders_30d" not in alerts  # 1 of both
    assert found["mismatched"] == 2 * len(alerts)
    assert all("customer_id 3 " in remark for remark in alerts.values())


def test_entities_that_nobody_knows_and_rows_that_are_no_vectors(shop, asking):
    shop.has(*first_orders())
    shop.ingest(AS_OF)
    asking.ask(AS_OF, who(1))
    row = json.loads(predictions_of(asking)[0]["features"])
    asking.write(AS_OF, "99", row)
    for entity in (None, "1.5", "x"):
        asking.write(AS_OF, entity, row)
    asking.write(AS_OF, "1", dict(list(row.items())[1:]))
    found = asking.look()
    assert classes(found) == {"equal": 10, "mismatched": 10}
    assert asking.unfit == 4
    told = asking.told()["skew of version 1: lifetime_value"]
    assert "customer_id 99" in told
    assert "offline None" in told


def predictions_of(asking):
    collect(asking.settings)
    return predictions(asking.settings).read().to_pylist()


def test_an_event_and_its_correction_are_known_from_their_arrival(shop, asking):
    shop.has(*first_orders())
    shop.ingest(AS_OF)
    late = order(21, 1, AS_OF - 5 * HOUR, 3.0)
    with consuming(shop.settings, ORDERS) as send:
        asking.ask(AS_OF + 5 * MINUTE, who(1))
        send(AS_OF + 10 * MINUTE, late, order(22, 2, AS_OF + 5 * MINUTE, 1.0))
        asking.ask(AS_OF + 20 * MINUTE, who(1), who(2))
        shop.ingest(AS_OF + 25 * MINUTE)
        assert "mismatched" not in classes(asking.look())
        send(AS_OF + 30 * MINUTE, late | {"dollar_value": 30.0})
        asking.ask(AS_OF + 40 * MINUTE, who(1))
    shop.ingest(AS_OF + HOUR)
    landed = asking.look()
    assert landed["mismatched"] == 0
    assert landed["stale"] > 0
    assert asking.told() == {}


def test_a_key_of_two_columns_one_of_them_text(applied, spend):
    made = Baskets(applied, spend)
    month = AS_OF.replace(month=12, day=1, hour=0)
    made.land(
        [basket_order(n, n, AS_OF - n * DAY, cds=1 + n % 2) for n in range(1, 5)], month
    )
    kinds = {
        name: "double" if "spend" in name or "value" in name else "int64"
        for name in BASKETS
    }
    served = contract(
        entity_key={"customer_id": "int64", "basket": "string"},
        feature_service="next_quarter_spend_v1", features=kinds | {"order_kind": "string"},
    )  # fmt: skip
    asking = Asking(applied, spend, served)
    one, two = (
        {"customer_id": n, "basket": kind}
        for n, kind in ((1, "several"), (2, "single"))
    )
    asking.ask(month + HOUR / 2, one, two)
    assert classes(asking.look()) == {"equal": 14}
    made.land([basket_order(1, 1, AS_OF - DAY, cds=2, cents=7_700)], month + HOUR)
    assert classes(asking.look()) == {"equal": 11, "stale": 3}
    row = json.loads(predictions_of(asking)[0]["features"])
    asking.write(month + HOUR, entity_text(two), row | {"orders_3m": 8})
    assert (
        "customer_id 2, basket single" in asking.told()["skew of version 1: orders_3m"]
    )


@pytest.mark.parametrize(
    "key",
    [{"customer_id": 4}, {"basket": "4"}, {"customer_id": -1, "basket": 'a, "b"'}],
)
def test_an_entity_is_found_by_its_text(key):
    kinds = {name: "int64" if name == "customer_id" else "string" for name in key}
    assert entity_of(kinds, entity_text(key)) == key


@pytest.mark.parametrize("text", ["x", "4", '{"customer_id": 1}', "[1, 2]"])
def test_a_text_of_another_entity_is_refused(text):
    with pytest.raises(ValueError, match=r"expected an entity|Expecting value"):
        entity_of({"customer_id": "int64", "basket": "string"}, text)


def test_of_many_vectors_the_newest_are_looked_at_and_the_same_sample_of_the_others():
    count, half = 3 * LIMITS.skew_vectors, LIMITS.skew_vectors // 2
    order_of = np.random.default_rng(1).permutation(count)
    rows = pa.table({"received": order_of})
    found = sample(rows, LIMITS.skew_vectors)["received"].to_numpy()
    assert len(set(found)) == LIMITS.skew_vectors
    assert (found[:half] == np.arange(count - 1, count - 1 - half, -1)).all()
    assert found[half:].min() < count // 10
    assert (sample(rows, LIMITS.skew_vectors)["received"].to_numpy() == found).all()


CART = RequestSource(
    name="cart",
    schema=[
        Field(name="cart_value", dtype=Float64),
        Field(name="coupon", dtype=String),
    ],
)


@on_demand_feature_view(
    sources=[customer_features_view, CART],
    schema=[Field(name="cart_above", dtype=Float64), Field(name="offer", dtype=String)],
    mode="python",
)
def cart_against_average(inputs):
    pairs = zip(inputs["cart_value"], inputs["avg_order_value"], strict=True)
    named = zip(inputs["coupon"], inputs["customer_segment"], strict=True)
    return {
        "cart_above": [
            None if average is None else value - average for value, average in pairs
        ],
        "offer": [f"{coupon}:{segment}" for coupon, segment in named],
    }


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
def test_features_of_request_data_are_computed_again_from_the_log(shop):
    features = {"lifetime_value": "double", "cart_above": "double", "offer": "string"}
    parts = [customer_features_view[["lifetime_value"]], cart_against_average]
    service = FeatureService(name="carts", features=parts)
    open_store(shop.settings, 5).apply([cart_against_average, service])
    shop.has(*first_orders())
    shop.ingest(AS_OF)
    at = AS_OF + HOUR / 2
    fields = {"cart_value": "double", "coupon": "string"}
    taking = UNREAD.model_copy(update={"request_data": fields})
    served = contract(feature_service="carts", features=features, lookup=taking)
    asking = Asking(shop.settings, served=served)
    reader = OnlineFeatures(shop.settings, "carts", tuple(features))
    data = [{"cart_value": 10.0 * n, "coupon": "ten" * (n % 2)} for n in range(1, 4)]
    keys = [who(n) | each for n, each in enumerate(data, 1)]
    rows = reader.read(keys, at)
    reader.close()
    assert rows[0] == {"lifetime_value": 6.0, "cart_above": 4.0, "offer": "ten:new"}
    for key, row, brought in zip(keys, rows, data, strict=True):
        asking.write(at, str(key["customer_id"]), row, request_data=brought)
    assert classes(asking.look()) == {"equal": 9}
    asking.write(at, "1", rows[0], request_data=data[0] | {"cart_value": 11.0})
    asking.write(at, "1", rows[0], request_data={"coupon": "ten"})
    assert classes(asking.look()) == {"equal": 11, "mismatched": 1}
    assert asking.unfit == 1
    told = asking.told()["skew of version 1: cart_above"]
    assert told.endswith("online 4.0, offline 5.0")
