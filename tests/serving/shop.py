"""A shop online in a Redis of its own: every type, composite keys, nulls, values that expire."""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
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

from feature_repo.datasets.orders import ORDERS
from feature_repo.lookup_writer import look_up_specification
from feature_repo.online import OnlineFeatures
from feature_repo.online_state import state_key
from feature_repo.store import open_store, publish_beside
from mlflow_server.served_model import ServedModel
from serving.features import FeatureSource
from tests.conftest import new_settings, redis_server
from tests.serving.conftest import SPEC

if TYPE_CHECKING:
    from core.settings import Settings

DAY = timedelta(days=1)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
INTS = (0, 1, 127, 128, 300, -1, -(2**40), 2**63 - 1, -(2**63), None)
DOUBLES = (0.0, -0.0, 1.5, -2.25e300, 5e-324, float("inf"), 1.0, 3.0, -7.0, None)
TEXTS = ("", "a", "ü€😀", "x" * 127, "x" * 128, "x" * 20_000, "\x00", "0", " ", None)
SIZES = (0, 1, -1, 127, 128, 2**31 - 1, -(2**31), 300, None, 7)
RATIOS = (0.0, -0.0, 0.1, 1.5, float("inf"), 1e-45, 3.4e38, -7.0, None, 1.0)
MEMBERS = (True, False, True, None, False, True, True, False, None, True)
JOINED = (
    0,
    1,
    -1,
    1_700_000_000,
    -(2**63),
    4_102_444_800,
    -2_208_988_800,
    59,
    None,
    3600,
)
SHOPS = ("", "a", "ü€😀", "x" * 300)
PLAIN = ("count", "amount", "name")
TYPED = ("size", "ratio", "member", "joined")
NAMES = (
    *PLAIN,
    *TYPED,
    "stock",
    "visits",
    "seen_days",
    "label",
    "twice",
    "since",
    "thrifty",
)

customer = Entity(
    name="customer", join_keys=["customer_id"], value_type=ValueType.INT64
)
shop = Entity(name="shop", join_keys=["shop_code"], value_type=ValueType.STRING)


def view(name, /, *entities, ttl=timedelta(0), **fields):
    source = FileSource(
        name=f"{name}_source", path="unused.parquet", timestamp_field="at"
    )
    return FeatureView(
        name=name,
        entities=list(entities),
        schema=schema(**fields),
        source=source,
        ttl=ttl,
    )


def schema(**fields):
    return [Field(name=name, dtype=dtype) for name, dtype in fields.items()]


moment = RequestSource(name="moment", schema=schema(as_of=Int64))
PERSON = view(
    "person", customer, count=Int64, amount=Float64, name=String, seen_us=Int64, size=Int32,
    ratio=Float32, member=Bool, joined=UnixTimestamp,
)  # fmt: skip
LEVEL = view("level", customer, ttl=DAY, stock=Int64)
VISIT = view("visit", customer, shop, visits=Int64)
VIEWS = (PERSON, LEVEL, VISIT)


def derived(inputs: dict[str, Any]) -> dict[str, Any]:
    day = 86_400_000_000
    amounts = inputs["person__amount"]
    for at, name in enumerate(inputs["name"]):
        inputs["name"][at] = name or "none"  # its own copy
    pairs = zip(inputs["as_of"], inputs["seen_us"], strict=True)
    return {
        "seen_days": [
            None if seen is None else (now - seen) // day for now, seen in pairs
        ],
        "label": [f"{name}!" for name in inputs["name"]],
        "twice": [None if amount is None else 2 * amount for amount in amounts],
        "since": inputs["joined"],
        "thrifty": [None if m is None else not m for m in inputs["member"]],
    }


def failing(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"inverse": [1 / count for count in inputs["count"]]}


DERIVED = on_demand_feature_view(
    sources=[PERSON, moment],
    schema=schema(
        seen_days=Int64, label=String, twice=Float64, since=UnixTimestamp, thrifty=Bool
    ),
    mode="python",
)(derived)
FAILING = on_demand_feature_view(
    sources=[PERSON], schema=schema(inverse=Float64), mode="python"
)(failing)
CART = RequestSource(
    name="cart",
    schema=schema(
        cart_value=Float64, coupon=String, items=Int64, boxes=Int32, rate=Float32, gift=Bool,
        due=UnixTimestamp,
    ),
)  # fmt: skip


def offered(inputs: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(inputs["cart_value"], inputs["amount"], strict=True)
    named = zip(inputs["coupon"], inputs["name"], strict=True)
    counts = zip(inputs["items"], inputs["count"], inputs["as_of"], strict=True)
    from datetime import timedelta  # noqa: PLC0415  (Feast stores the function alone)

    import numpy as np  # noqa: PLC0415  (a plain int is an int64 to Feast, a float a double)

    return {
        "crates": [np.int32(boxes // 2) for boxes in inputs["boxes"]],
        "third": [np.float32(rate / 3) for rate in inputs["rate"]],
        "bought": [not gift for gift in inputs["gift"]],
        "late": [due + timedelta(seconds=90.75) for due in inputs["due"]],
        "above": [
            None if amount is None else value - amount for value, amount in pairs
        ],
        "offer": [f"{coupon}:{name}" for coupon, name in named],
        "more": [
            None if count is None else items + now % 7 for items, count, now in counts
        ],
    }


def offered_by_pandas(inputs):
    return inputs[["cart_value"]].rename(columns={"cart_value": "halved"}) / 2


OFFERED = on_demand_feature_view(
    sources=[PERSON, CART, moment],
    schema=schema(
        above=Float64, offer=String, more=Int64, crates=Int32, third=Float32, bought=Bool,
        late=UnixTimestamp,
    ),
    mode="python",
)(offered)  # fmt: skip
OFFERED_BY_PANDAS = on_demand_feature_view(
    sources=[PERSON, CART], schema=schema(halved=Float64), mode="pandas"
)(offered_by_pandas)
SOLD = LEVEL.with_name("of_seller").with_join_key_map({"customer_id": "seller_id"})
SERVICES = (
    FeatureService(name="renamed", features=[PERSON[[*PLAIN]], SOLD]),
    FeatureService(
        name="mixed", features=[PERSON[[*PLAIN, *TYPED]], LEVEL, VISIT, DERIVED]
    ),
    FeatureService(name="plain", features=[PERSON[[*PLAIN]]]),
    FeatureService(name="failing", features=[PERSON[["count"]], FAILING]),
    FeatureService(name="offered", features=[PERSON[["amount"]], OFFERED]),
    FeatureService(name="halved", features=[PERSON[["amount"]], OFFERED_BY_PANDAS]),
)


@dataclass
class Shop:
    settings: Settings
    store: Any
    redis: Redis

    def write(self, view, keys, values, at=NOON):
        protos = {
            name: Value(string_val=key)
            if isinstance(key, str)
            else Value(int64_val=key)
            for name, key in keys.items()
        }
        key = EntityKey(join_keys=[*protos], entity_values=[*protos.values()])
        row = {}
        for feature in view.features:
            kind = feature.dtype.to_value_type().name.lower()
            value = values.get(feature.name)
            row[feature.name] = Value(**{f"{kind}_val": value})
        online = self.store._get_provider().online_store
        online.online_write_batch(self.store.config, view, [(key, row, at, None)], None)

    def fill(self):
        self.redis.flushdb()
        for n in range(10):
            seen = None if n == 3 else int((NOON - n * DAY).timestamp() * 1e6)
            person = {
                "count": INTS[n], "amount": DOUBLES[n], "name": TEXTS[n], "seen_us": seen,
                "size": SIZES[n], "ratio": RATIOS[n], "member": MEMBERS[n], "joined": JOINED[n],
            }  # fmt: skip
            self.write(PERSON, {"customer_id": n - 4}, person)
            self.write(LEVEL, {"customer_id": n - 3}, {"stock": n})
            for at, code in enumerate(SHOPS):
                keys = {"shop_code": code, "customer_id": n - 2}
                self.write(VISIT, keys, {"visits": n * 100 + at})
        self.write(PERSON, {"customer_id": 77}, {})
        for view in VIEWS:
            self.say_online(view, NOON)

    def say_online(self, view, time):
        """Write the state of a view; time: None while a first fill goes on."""
        text = time and time.isoformat()
        state = {"version": None, "time": text, "next": None}
        self.redis.set(state_key(self.store.project, view.name), json.dumps(state))

    def feast(self, service, names, keys, as_of):
        reader = OnlineFeatures(
            self.settings, service, names, open_store(self.settings, 60)
        )
        pairs = zip(keys, as_of, strict=True)
        return [row for key, at in pairs for row in reader.read([key], at)]

    def contract(self, service="mixed", names=NAMES, **changed):
        lookup = look_up_specification(self.settings, service, (__name__,))
        return ServedModel(
            model="m", entity_key={"customer_id": "int64"}, feature_service=service,
            features=dict.fromkeys(names, "double"), defaults={}, population=SPEC.population,
            as_of="", lookup=lookup.model_copy(update=changed),
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

    def hash_of(self, customer_id, service="plain"):
        view = self.contract(service).lookup.views[0]
        value = struct.pack("<IIq", 4, 8, customer_id)
        return view.prefix + value + view.suffix, {
            f.name: f.field for f in view.features
        }


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    settings = new_settings(tmp_path_factory.mktemp("reader") / "home")
    settings.home.mkdir()
    with redis_server(settings.redis_port, settings.home):
        publish_beside(settings, ORDERS)
        store = open_store(settings, 5)
        on_demand = [DERIVED, FAILING, OFFERED, OFFERED_BY_PANDAS]
        store.apply([customer, shop, *VIEWS, *on_demand, *SERVICES])
        redis = Redis(port=settings.redis_port)
        yield Shop(settings, store, redis)
        redis.close()


@pytest.fixture
def stocked(template):
    template.fill()
    return template


def people(*numbers):
    return [{"customer_id": n} for n in numbers]


def features(rows):
    """What rows of the store have: by name, or None of an unknown entity."""
    return [row and row.features for row in rows]


async def online_rows(source, keys, moments):
    """Rows that are not from the cache."""
    for _ in range(200):
        rows, origin = await source.read(keys, moments)
        if origin == "online":
            return rows
        await asyncio.sleep(0.02)
        await source.probe()
    raise AssertionError(source.problem)


async def online(source, keys, as_of=NOON):
    """Features that are not from the cache; as above. as_of: one for all, or of each."""
    moments = as_of if isinstance(as_of, list) else [as_of] * len(keys)
    return features(await online_rows(source, keys, moments))
