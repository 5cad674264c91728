"""Features of an online store, read without Feast: the same rows that Feast's reader returns."""

from datetime import timedelta
from itertools import product
from random import Random

import pytest
import uvloop
from feast.protos.feast.types.Value_pb2 import Value

from core.errors import DataError
from mlflow_server.manifest import LookupSpecification
from serving.errors import ModelRefusedError
from tests.serving.conftest import contract, opened_version, place, tiny_onnx
from tests.support.serving.people import (  # noqa: F401  (fixtures)
    DAY,
    NAMES,
    NOON,
    PERSON,
    PLAIN,
    SHOPS,
    features,
    online,
    people,
    stocked,
    template,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
MICROSECOND = timedelta(microseconds=1)
SECOND_CUSTOMER = {"count": 127, "amount": 1.5, "name": "ü€😀"}


def has_row(key, moment):
    """Whether `Shop.fill` gave a row of a view to an entity, that is young enough."""
    customer = key["customer_id"]
    is_person = customer in {*range(-4, 6), 77}
    has_level = customer in range(-3, 7) and moment <= NOON + DAY
    return (
        is_person
        or has_level
        or (customer in range(-2, 8) and key["shop_code"] in SHOPS)
    )


def test_rows_equal_feasts_rows_for_every_value_key_age_and_absence(stocked):
    customers = [*range(-6, 9), 77, 2**63 - 1]
    ages = (0 * DAY, DAY, DAY + MICROSECOND, -MICROSECOND)
    reads = [
        ({"customer_id": customer, "shop_code": code}, NOON + age)
        for age, customer, code in product(ages, customers, (*SHOPS, "?"))
    ]
    Random(1).shuffle(reads)
    keys = [key for key, _ in reads]
    moments = [moment for _, moment in reads]
    assert stocked.contract().lookup.unsupported is None
    rows = stocked.read("mixed", NAMES, keys, moments)
    expected = stocked.feast("mixed", NAMES, keys, moments)
    assert repr(rows) == repr(expected)
    for key, moment, row in zip(keys, moments, rows, strict=True):
        assert (row is not None) == has_row(key, moment)
    assert rows[keys.index({"customer_id": 77, "shop_code": "?"})] == dict.fromkeys(
        NAMES
    )
    for name in NAMES:
        values = {repr(row[name]) for row in rows if row}
        assert len(values) > 2


@pytest.mark.parametrize(
    "content", [Value(int32_val=7).SerializeToString(), b"\x20", b"\x29\0\0"]
)
def test_a_row_with_bytes_of_a_wrong_type_fails_alone(stocked, content):
    (view,) = stocked.contract("plain").lookup.views
    key, fields = place(view, -3, "count")
    stocked.redis.hset(key, mapping=dict.fromkeys(fields, content))
    rows = stocked.read("plain", PLAIN, people(-3, -2, 5000))
    assert rows == [{}, SECOND_CUSTOMER, None]


def test_a_row_that_breaks_an_on_demand_function_fails_alone(stocked):
    stocked.write(PERSON, {"customer_id": 88}, {"amount": 1.0})
    names = ("count", "inverse")
    rows = stocked.read("failing", names, people(-3, 88, -2, 5000))
    assert rows == [
        {"count": 1, "inverse": 1.0},
        {},
        {"count": 127, "inverse": 1 / 127},
        None,
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"feast": "0.1.0"}, "needs Feast 0.1.0 with redis, found .*: train again"),
        ({"online_store": "sqlite"}, "needs Feast .* with sqlite, found .*"),
        ({"views": ()}, "the look-up specification lacks "),
        ({"sha256": "0"}, "is not the function that this version was trained with"),
    ],
)
def test_a_version_whose_features_are_read_differently_here_is_refused(
    tmp_path, change, reason
):
    lookup = contract().lookup.model_dump()
    part = lookup if change.keys() <= lookup.keys() else lookup["functions"][0]
    part |= change
    altered = contract().model_copy(update={"lookup": LookupSpecification(**lookup)})
    with pytest.raises((ModelRefusedError, DataError), match=reason):
        opened_version(tmp_path, altered, tiny_onnx(0.0))


def test_an_emptied_redis_is_reported_and_the_last_known_features_are_used(
    stocked,
):
    async def read():
        async with stocked.source("plain", PLAIN) as source:
            await online(source, people(-2))
            stocked.redis.flushdb()
            await source.probe()
            assert "holds no features (any more): run gyre ingest" in source.problem
            return await source.read(people(-2, -1), [NOON] * 2)

    rows, origin = uvloop.run(read())
    assert (features(rows), origin) == ([SECOND_CUSTOMER, None], "cache")
