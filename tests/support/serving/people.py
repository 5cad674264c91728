"""A shop online in a Redis of its own: every type, composite keys, nulls, values that expire."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import uvloop
from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from redis import Redis

from core.settings import Settings
from feature_repo.datasets.orders import ORDERS
from feature_repo.published.feast_reader import OnlineFeatures
from feature_repo.published.redis_names import state_key
from feature_repo.published.specification import look_up_specification
from feature_repo.published.store import open_store, publish_beside
from mlflow_server.manifest import ModelManifest
from serving.features.source import FeatureSource
from tests.conftest import new_settings, redis_server
from tests.serving.conftest import SPEC

DAY = timedelta(days=1)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
VALUES = {
    "count": (0, 1, 127, 128, 300, -1, -(2**40), 2**63 - 1, -(2**63), None),
    "amount": (0.0, -0.0, 1.5, -2.25e300, 5e-324, float("inf"), 1.0, 3.0, -7.0, None),
    "name": ("", "a", "ü€😀", "x" * 127, "x" * 128, "x" * 20_000, "\x00", "0", " ", None),
    "size": (0, 1, -1, 127, 128, 2**31 - 1, -(2**31), 300, None, 7),
    "ratio": (0.0, -0.0, 0.1, 1.5, float("inf"), 1e-45, 3.4e38, -7.0, None, 1.0),
    "member": (True, False, True, None, False, True, True, False, None, True),
    "joined": (0, 1, -1, 1_700_000_000, -(2**63), 4_102_444_800, -2_208_988_800, 59, None, 3600),
}  # fmt: skip
"""What ten customers have, -4 to 5."""
SHOPS = ("", "a", "ü€😀", "x" * 300)
PLAIN = ("count", "amount", "name")
TYPED = ("size", "ratio", "member", "joined")
NAMES = (*PLAIN, *TYPED, "stock", "visits")

customer = Entity(
    name="customer", join_keys=["customer_id"], value_type=ValueType.INT64
)
shop = Entity(name="shop", join_keys=["shop_code"], value_type=ValueType.STRING)


def schema(**fields):
    return [Field(name=name, dtype=dtype) for name, dtype in fields.items()]


def view(name, /, *entities, ttl=timedelta(0), **fields):
    source = FileSource(name=name, path="unused.parquet", timestamp_field="at")
    return FeatureView(
        name=name,
        entities=list(entities),
        schema=schema(**fields),
        source=source,
        ttl=ttl,
    )


moment = RequestSource(name="moment", schema=schema(as_of=Int64))
CART_FIELDS = schema(
    cart_value=Float64, coupon=String, items=Int64, boxes=Int32, rate=Float32, gift=Bool,
    due=UnixTimestamp,
)  # fmt: skip
CART = RequestSource(name="cart", schema=CART_FIELDS)
PERSON = view(
    "person", customer, count=Int64, amount=Float64, name=String, size=Int32,
    ratio=Float32, member=Bool, joined=UnixTimestamp,
)  # fmt: skip
LEVEL = view("level", customer, ttl=DAY, stock=Int64)
VISIT = view("visit", customer, shop, visits=Int64)
VIEWS = (PERSON, LEVEL, VISIT)


def failing(inputs):
    return {"inverse": [1 / count for count in inputs["count"]]}


def offered(inputs):
    from datetime import timedelta  # noqa: PLC0415  (Feast stores the function alone)

    import numpy as np  # noqa: PLC0415  (a plain int is an int64 to Feast, a float a double)

    amounts = zip(inputs["cart_value"], inputs["person__amount"], strict=True)
    moments = zip(inputs["items"], inputs["as_of"], strict=True)
    return {
        "above": [
            None if amount is None else cart - amount for cart, amount in amounts
        ],
        "offer": [f"{coupon}!" for coupon in inputs["coupon"]],
        "more": [items + now % 7 for items, now in moments],
        "crates": [np.int32(boxes // 2) for boxes in inputs["boxes"]],
        "third": [np.float32(rate / 3) for rate in inputs["rate"]],
        "bought": [not gift for gift in inputs["gift"]],
        "since": inputs["joined"],
        "late": [due + timedelta(seconds=90.75) for due in inputs["due"]],
    }


def offered_by_pandas(inputs):
    return inputs[["cart_value"]].rename(columns={"cart_value": "halved"}) / 2


def on_demand(function, *sources, mode="python", **fields):
    decorate = on_demand_feature_view(
        sources=list(sources), schema=schema(**fields), mode=mode
    )
    return decorate(function)


FAILING = on_demand(failing, PERSON, inverse=Float64)
OFFERED = on_demand(
    offered, PERSON, CART, moment, above=Float64, offer=String, more=Int64, crates=Int32,
    third=Float32, bought=Bool, late=UnixTimestamp, since=UnixTimestamp,
)  # fmt: skip
HALVED = on_demand(offered_by_pandas, PERSON, CART, mode="pandas", halved=Float64)
ON_DEMAND = (FAILING, OFFERED, HALVED)
SERVICES = {
    "mixed": [PERSON[[*PLAIN, *TYPED]], LEVEL, VISIT],
    "plain": [PERSON[[*PLAIN]]],
    "failing": [PERSON[["count"]], FAILING],
    "offered": [PERSON[["amount"]], OFFERED],
    "halved": [PERSON[["amount"]], HALVED],
}


@dataclass
class Shop:
    settings: Settings
    store: Any
    redis: Redis

    def write(self, view, keys, values):
        protos = [
            Value(string_val=key) if isinstance(key, str) else Value(int64_val=key)
            for key in keys.values()
        ]
        key = EntityKey(join_keys=[*keys], entity_values=protos)
        row = {}
        for feature in view.features:
            kind = feature.dtype.to_value_type().name.lower()
            row[feature.name] = Value(**{f"{kind}_val": values.get(feature.name)})
        rows = [(key, row, NOON, None)]
        self.store._get_provider().online_write_batch(
            self.store.config, view, rows, None
        )

    def fill(self):
        self.redis.flushdb()
        for n in range(10):
            person = {name: values[n] for name, values in VALUES.items()}
            self.write(PERSON, {"customer_id": n - 4}, person)
            self.write(LEVEL, {"customer_id": n - 3}, {"stock": n})
            for code in SHOPS:
                keys = {"shop_code": code, "customer_id": n - 2}
                self.write(VISIT, keys, {"visits": n * 1000 + len(code)})
        self.write(PERSON, {"customer_id": 77}, {})
        state = json.dumps({"version": None, "time": NOON.isoformat(), "next": None})
        for view in VIEWS:
            self.redis.set(state_key(self.store.project, view.name), state)

    def feast(self, service, names, keys, as_of):
        store = open_store(self.settings, 60)
        reader = OnlineFeatures(self.settings, service, names, store)
        pairs = zip(keys, as_of, strict=True)
        return [row for key, at in pairs for row in reader.read([key], at)]

    def lookup(self, service):
        """How the service is read, with a state of each view, as views of datasets have it."""
        lookup = look_up_specification(self.settings, service, (__name__,))
        views = [
            view.model_copy(update={"state": state_key(self.store.project, view.name)})
            for view in lookup.views
        ]
        return lookup.model_copy(update={"views": tuple(views)})

    def contract(self, service="mixed", names=NAMES):
        return ModelManifest(
            model=SPEC.name, entity_key={"customer_id": "int64"}, feature_service=service,
            features=dict.fromkeys(names, "double"), defaults={}, population=SPEC.population,
            as_of="", lookup=self.lookup(service),
        )  # fmt: skip

    @asynccontextmanager
    async def source(self, service="mixed", names=NAMES, **changed):
        settings = self.settings.model_copy(update=changed)
        source = FeatureSource(settings, self.contract(service, names))
        try:
            await source.probe()
            # This machine may be busy.
            while str(source.problem).endswith((" ms", "opened")):
                await asyncio.sleep(0.02)
                await source.probe()
            yield source
        finally:
            await source.close()

    def read(self, service, names, keys, moments=NOON):
        """Read rows as a worker does."""

        async def read():
            async with self.source(service, names) as source:
                return await online(source, keys, moments)

        return uvloop.run(read())


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    settings = new_settings(tmp_path_factory.mktemp("reader") / "home")
    settings.home.mkdir()
    with (
        redis_server(settings.redis_port, settings.home),
        Redis(port=settings.redis_port) as redis,
    ):
        publish_beside(settings, ORDERS)
        store = open_store(settings, 5)
        services = [
            FeatureService(name=name, features=views)
            for name, views in SERVICES.items()
        ]
        store.apply([customer, shop, *VIEWS, *ON_DEMAND, *services])
        yield Shop(settings, store, redis)


@pytest.fixture
def stocked(template):
    template.fill()
    return template


def people(*numbers):
    return [{"customer_id": n} for n in numbers]


def features(rows):
    """What rows of the store have: by name, or None of an unknown entity."""
    return [row and row.features for row in rows]


async def online(source, keys, as_of=NOON):
    """Features that are not from the cache. as_of: one for all, or of each key."""
    moments = as_of if isinstance(as_of, list) else [as_of] * len(keys)
    for _ in range(200):
        rows, origin = await source.read(keys, moments)
        if origin == "online":
            return features(rows)
        await asyncio.sleep(0.02)
        await source.probe()
    raise AssertionError(source.problem)
