"""Values of a request for on-demand functions: read, checked, logged and documented."""

import asyncio
import json
from itertools import product

import numpy as np
import pytest
import uvloop
from feast import FeatureService, RequestSource
from feast.types import Bytes, Float64, Int64

from core.errors import DataError
from core.spec import INPUTS, Population
from feature_repo.published.specification import look_up_specification
from serving.features.source import FeatureSource
from serving.prediction_log.append_log import AppendLog
from serving.repository import ModelRepository
from serving.versions.copies import Origin
from serving.versions.model import LoadedModel
from serving.versions.roles import Roles
from tests.serving.conftest import (
    SPEC,
    application,
    body_of,
    client_of,
    onnx_graph,
    opened_version,
    read_log,
)
from tests.support.serving.people import (  # noqa: F401  (fixtures)
    DAY,
    NOON,
    OFFERED,
    PERSON,
    features,
    on_demand,
    online,
    people,
    schema,
    stocked,
    template,
)
from tests.support.serving.refusals import PATHS, refusal

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
FIELDS = {
    "cart_value": "double", "coupon": "string", "items": "int64", "boxes": "int32",
    "rate": "float32", "gift": "bool", "due": "timestamp",
}  # fmt: skip
KINDS = {
    "above": "double", "amount": "double", "offer": "string", "more": "int64", "crates": "int32",
    "third": "float32", "bought": "bool", "late": "timestamp", "since": "timestamp",
}  # fmt: skip
NAMES = tuple(KINDS)
CARTS = SPEC.model_copy(
    update={
        "feature_service": "offered", "segment": None, "features": KINDS,
        "population": Population(feature="amount", below=1_000),
    }
)  # fmt: skip
DEFAULTS = dict.fromkeys(KINDS, 1) | {"offer": "a"}
DATA = {
    "cart_value": 12.5, "coupon": "ten", "items": 2, "boxes": 5, "rate": 0.1, "gift": False,
    "due": "2026-11-20T13:00:00.5+01:00",
}  # fmt: skip
KEY = {"customer_id": -2}
ROW = KEY | DATA
READ = DATA | {"rate": float(np.float32(0.1)), "due": NOON}
"""As functions see it."""
LOGGED = READ | {"due": "2026-11-20T12:00:00Z"}
GIVEN = {
    "amount": 1.5, "above": 11.0, "offer": "ten!", "more": 4, "crates": 2, "third": 0.25,
    "bought": True, "late": "2026-11-20T12:01:30Z", "since": "2026-11-20T12:01:30Z",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_hurry(monkeypatch):
    """Redis may be late on a busy machine: these tests are about values."""
    monkeypatch.setattr("serving.features.redis_reader.READ_SECONDS", 10.0)


def test_rows_equal_feasts_rows_for_all_request_data(stocked):
    small = {"cart_value": -0.0, "coupon": "", "items": -(2**63), "boxes": -1}
    large = {"cart_value": 1e300, "coupon": "ü€😀\x00", "items": 2**62}
    requests = (
        READ,
        READ | small | {"gift": True},
        READ | large | {"due": NOON - 9 * DAY},
    )
    customers = people(-4, -3, -2, 5, 77, 5000)
    keys = [customer | data for customer in customers for data in requests]
    moments = [NOON + n * DAY for n in range(len(keys))]
    lookup = stocked.contract("offered", NAMES).lookup
    assert (lookup.unsupported, lookup.request_data) == (None, FIELDS)
    rows = stocked.read("offered", NAMES, keys, moments)
    expected = stocked.feast("offered", NAMES, keys[:-3], moments[:-3])
    # Of an unknown customer Feast returns what the request has.
    assert repr(rows) == repr([*expected, None, None, None])


def test_feast_calls_a_pandas_function_and_its_last_rows_are_used_while_redis_hangs(
    stocked,
):
    names = ("amount", "halved")
    row = KEY | READ

    async def read():
        async with stocked.source("halved", names) as source:
            assert await online(source, [row]) == [{"amount": 1.5, "halved": 6.25}]
            stocked.redis.client_pause(2_000)
            rows, origin = await source.read([row, row | {"items": 3}], [NOON, NOON])
            assert source.problem == "Feast: no answer within 0.5 s"
            return features(rows), origin

    lookup = stocked.contract("halved", names).lookup
    assert "offered_by_pandas is no plain function" in lookup.unsupported
    # The row of other request data is not known.
    assert uvloop.run(read()) == ([{"amount": 1.5, "halved": 6.25}, None], "cache")


@pytest.mark.parametrize(
    ("name", "dtype", "reason"),
    [
        ("amount", Float64, "a key, a feature or Gyre has that name"),
        ("card", Bytes, "expected one type of Int32, .*, String, found Bytes"),
        ("cart_value", Int64, "expected one type of Int32, .*, String, found"),
    ],
)
def test_a_field_that_no_request_can_have_is_refused_at_registration(
    stocked, name, dtype, reason
):
    def bad(inputs):
        return {"bad": inputs["amount"]}

    source = RequestSource(name=f"of_{name}", schema=schema(**{name: dtype}))
    view = on_demand(bad, PERSON, source, bad=Float64)
    service = FeatureService(name=f"bad_{name}", features=[OFFERED, view])
    stocked.store.apply([view, service])
    message = f"service bad_{name}: request data {name}: {reason}"
    with pytest.raises(DataError, match=message):
        look_up_specification(stocked.settings, service.name)


async def load_version(shop, folder, version, service, names):
    """Load a version as a worker does; its score is the sigmoid of its first feature."""
    kinds = {name: KINDS[name] for name in names}
    changes = {
        "features": kinds, "defaults": DEFAULTS, "threshold": 0.5,
        "population": CARTS.population,
    }  # fmt: skip
    contract = shop.contract(service, names).model_copy(update=changes)
    inputs = {name: INPUTS[kind] for name, kind in kinds.items()}
    nodes = f"number = Cast <to = 1> ({names[0]}) score = Sigmoid (number)"
    place = folder / version
    place.mkdir()
    opened = opened_version(place, contract, onnx_graph(inputs, nodes), CARTS)
    source = FeatureSource(shop.settings, contract)
    while source.problem is not None:
        await source.probe()
    return LoadedModel(version, Origin(created=1, digests={}), *opened, source)


async def ask(shop, home, requests, is_on_trial):
    log = AppendLog(home, "predictions")
    log.open()
    repository = ModelRepository(shop.settings, log)
    repository.update([CARTS])
    takes_data = await load_version(shop, home, "1", "offered", NAMES)
    roles = Roles(production=takes_data)
    if is_on_trial:
        plain = await load_version(shop, home, "2", "plain", ("amount",))
        roles = Roles(production=plain, challenger=takes_data, percent=100)
    versions = repository.find(CARTS.name).versions
    versions._swap(roles)
    versions._keep(roles.by_name().values())
    async with client_of(application(shop.settings, repository)) as client:
        answers = [
            await client.post(path, content=json.dumps(body)) for path, body in requests
        ]
    await repository.wait_for_answers()
    await repository.close()
    log.close()
    return answers


def post(shop, home, *requests, is_on_trial=False):
    """Return the application's answers to pairs of path and body.

    is_on_trial: the version that takes request data is a challenger of one that takes none.
    """
    return asyncio.run(ask(shop, home, requests, is_on_trial))


def test_every_protocol_takes_request_data_as_columns_and_logs_it(stocked, tmp_path):
    requests = [(path, body_of(protocol, ROW)) for protocol, path in PATHS.items()]
    with_features = KEY | {"features": GIVEN}
    # With every feature in the request its data is not needed.
    requests += [("/predict", with_features), ("/predict", with_features | DATA)]
    answers = post(stocked, tmp_path, *requests)
    assert [answer.status_code for answer in answers] == [200] * 7
    rows = read_log(tmp_path)
    assert [row["request_data"] for row in rows] == [LOGGED] * 5 + [{}, LOGGED]
    for row in rows[:5]:
        assert row["entity"] == "-2"
        assert row["features"]["above"] == 11.0
        assert row["features"]["late"] == "2026-11-20T12:01:30Z"
    assert len({row["probability"] for row in rows}) == 1
    assert [row["features_from"] for row in rows[5:]] == ["request", "request"]


WRONG = [
    ("cart_value", float("nan")), ("cart_value", "many"), ("cart_value", None), ("coupon", 3),
    ("items", 2**63), ("items", 1.5), ("boxes", 2**31), ("rate", 1e39), ("gift", 1),
    ("due", 1_700_000_000), ("due", "2026-11-20T12:00:00"), ("due", "0001-01-01T00:00:00+01:00"),
]  # fmt: skip


def test_wrong_or_absent_request_data_is_4xx_and_named_in_every_protocol(
    stocked, tmp_path
):
    rows = [(ROW | {name: value}, name) for name, value in WRONG]
    for name, kind in FIELDS.items():
        row = dict(ROW)
        del row[name]
        rows.append((row, f"{name} ({kind}): version 1 needs it beside the key"))
    cases = [*product(PATHS, rows)]
    requests = [
        (PATHS[protocol], body_of(protocol, row)) for protocol, (row, _) in cases
    ]
    answers = post(stocked, tmp_path, *requests)
    for (protocol, (row, reason)), answer in zip(cases, answers, strict=True):
        assert reason in refusal(answer, protocol), (protocol, row)
    assert read_log(tmp_path) == []


def test_clients_may_send_the_request_data_of_a_challenger(stocked, tmp_path):
    (batch,) = post(stocked, tmp_path, ("/predict/batch", [ROW, KEY]), is_on_trial=True)
    assert [row["model_version"] for row in batch.json()] == ["1", "2"]
