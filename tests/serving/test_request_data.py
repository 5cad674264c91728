"""What a request brings beside the key for on-demand functions: read, checked, logged, shown."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
import uvloop
from fastapi import FastAPI
from feast import FeatureService, Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bytes, Float64, Int64, String
from onnx import TensorProto, helper

from core.errors import DataError
from core.spec import INPUTS, Population
from feature_repo.lookup_writer import look_up_specification
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, SCORE, digest_tags
from monitoring.collect import collect, predictions
from serving.app import add_routes
from serving.features import FeatureSource
from serving.model import LoadedModel, Origin, open_version
from serving.model_versions import Roles
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository
from serving.schemas import build_schemas
from tests.serving.conftest import ONNX_TYPES, SPEC
from tests.serving.shop import (  # noqa: F401  (fixtures)
    DAY,
    NOON,
    PERSON,
    features,
    online,
    stocked,
    template,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
NAMES = ("amount", "above", "offer", "more", "crates", "third", "bought", "late")
FIELDS = {
    "cart_value": "double", "coupon": "string", "items": "int64", "boxes": "int32",
    "rate": "float32", "gift": "bool", "due": "timestamp",
}  # fmt: skip
CARTS = SPEC.model_copy(
    update={
        "name": "carts", "served_as": (), "feature_service": "offered", "segment": None,
        "features": {"amount": "double", "above": "double", "offer": "string", "more": "int64",
                     "crates": "int32", "third": "float32", "bought": "bool", "late": "timestamp"},
        "population": Population(feature="amount", below=1_000),
    }
)  # fmt: skip
DEFAULTS = {"amount": 1.0, "above": 2.0, "offer": "a", "more": 3, "crates": 1, "third": 0.5,
            "bought": 1, "late": 1_700_000_000_000_000}  # fmt: skip
DATA = {"cart_value": 12.5, "coupon": "ten", "items": 2, "boxes": 5, "rate": 0.1, "gift": False,
        "due": "2026-11-20T13:00:00.5+01:00"}  # fmt: skip
ROW = {"customer_id": -2} | DATA
DUE = datetime(2026, 11, 20, 12, tzinfo=UTC)
READ = DATA | {"rate": float(np.float32(0.1)), "due": DUE}
"""As functions see it."""
WRITTEN = READ | {"due": "2026-11-20T12:00:00Z"}
GIVEN = {"amount": 1.5, "above": 11.0, "offer": "ten:b", "more": 4, "crates": 2, "third": 0.25,
         "bought": True, "late": "2026-11-20T12:01:30Z"}  # fmt: skip


def asked(*data):
    return [
        {"customer_id": n} | each
        for n in (-4, -3, -2, -1, 5, 77, 5000)
        for each in data
    ]


def test_rows_are_feasts_for_every_request_data(stocked):
    keys = asked(
        READ,
        READ
        | {
            "cart_value": -0.0,
            "coupon": "",
            "items": -(2**63),
            "boxes": -1,
            "gift": True,
        },
        READ
        | {
            "cart_value": 1e300,
            "coupon": "ü€😀\x00",
            "items": 2**62,
            "due": DUE - 9 * DAY,
        },
    )
    as_of = [NOON + n * DAY for n in range(len(keys))]

    async def read():
        async with stocked.source("offered", NAMES) as source:
            return await online(source, keys, as_of)

    lookup = stocked.contract("offered", NAMES).lookup
    assert (lookup.unsupported, lookup.request_data) == (None, FIELDS)
    assert stocked.contract("mixed").lookup.request_data == {}
    found = uvloop.run(read())
    expected = stocked.feast("offered", NAMES, keys, as_of)
    expected[-3:] = [None] * 3  # of nobody Feast knows what the request alone says
    assert repr(found) == repr(expected)
    assert found[6]["above"] == 12.5 - 1.5
    last = found[6]["crates"], found[6]["third"], found[6]["bought"], found[6]["late"]
    assert last == (2, np.float32(READ["rate"] / 3), True, DUE + timedelta(seconds=90))
    assert found[6]["offer"].startswith("ten:")


def test_feasts_own_reader_takes_request_data_too(stocked):
    async def read():
        async with stocked.source("halved", ("amount", "halved")) as source:
            return await online(source, [ROW | READ, ROW | READ | {"cart_value": 5.0}])

    lookup = stocked.contract("halved", ("amount", "halved")).lookup
    assert (bool(lookup.unsupported), lookup.request_data) == (True, FIELDS)
    halves = [{"amount": 1.5, "halved": 6.25}, {"amount": 1.5, "halved": 2.5}]
    assert uvloop.run(read()) == halves


def test_the_last_known_features_are_those_of_the_same_request_data(stocked):
    async def read():
        async with stocked.source("offered", NAMES) as source:
            row = ROW | READ
            known = await online(source, [row])
            source.problem = "down"
            return known, await source.read([row, row | {"items": 3}], [NOON, NOON])

    (known,), (rows, origin) = uvloop.run(read())
    assert (features(rows), origin) == ([known, None], "cache")


@pytest.mark.parametrize(
    ("name", "dtype", "why"),
    [
        ("amount", Float64, "a key, a feature or Gyre has that name"),
        ("bad", Float64, "a key, a feature or Gyre has that name"),
        ("customer_id", Int64, "a key, a feature or Gyre has that name"),
        ("label", String, "a key, a feature or Gyre has that name"),
        ("features", String, "a key, a feature or Gyre has that name"),
        ("card", Bytes, "expected one type of Int32, .*, String, found Bytes"),
        ("cart_value", Int64, "expected one type of Int32, .*, String, found"),
    ],
)
def test_a_field_that_no_request_can_bring_is_refused_at_registration(
    stocked, name, dtype, why
):
    def bad(inputs):
        return {"bad": inputs["amount"]}

    from tests.serving.shop import OFFERED  # noqa: PLC0415

    source = RequestSource(name=f"of_{name}", schema=[Field(name=name, dtype=dtype)])
    made = on_demand_feature_view(
        name=f"bad_{name}", sources=[PERSON, source], mode="python",
        schema=[Field(name="bad", dtype=Float64)],
    )(bad)  # fmt: skip
    service = FeatureService(name=f"bad_{name}", features=[OFFERED, made])
    stocked.store.apply([made, service])
    with pytest.raises(
        DataError, match=f"service bad_{name}: request data {name}: {why}"
    ):
        look_up_specification(stocked.settings, service.name)


def graph(features):
    """Score = sigmoid of the first feature, of which all are inputs."""
    first, *_ = features
    nodes = [
        helper.make_node("Cast", [first], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Sigmoid", ["number"], [SCORE]),
    ]
    inputs = [
        helper.make_tensor_value_info(n, ONNX_TYPES[INPUTS[k]], [None])
        for n, k in features.items()
    ]
    outputs = [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, [None])]
    made = helper.make_graph(nodes, "first", inputs, outputs)
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


async def loaded(shop, folder, version, service, names):
    """A version as a worker loads it: of registered files, its features opened."""
    features = {name: CARTS.features[name] for name in names}
    written = shop.contract(service, names).model_copy(
        update={"model": "carts", "features": features, "defaults": DEFAULTS, "threshold": 0.5,
                "population": CARTS.population}
    )  # fmt: skip
    place = folder / version
    place.mkdir()
    (place / CONTRACT_FILE).write_text(written.model_dump_json())
    (place / ONNX_FILE).write_bytes(graph(features).SerializeToString())
    contract, session = open_version(place, digest_tags(place), CARTS)
    source = FeatureSource(shop.settings, contract)
    while source.problem is not None:
        await source.probe()
    return LoadedModel(
        version, Origin(created=1, digests={}), contract, session, source
    )


@asynccontextmanager
async def serving(shop, home, **more):
    """A client of the application, with a version that takes request data, or `more` roles."""
    log = AppendLog(home / "serving" / "log", "predictions")
    log.open()
    repository = ModelRepository(shop.settings, log)
    repository.update([CARTS])
    takes = await loaded(
        shop,
        home,
        "1",
        "offered",
        ("above", *(name for name in NAMES if name != "above")),
    )
    plain = await loaded(shop, home, "2", "plain", ("amount",))
    known = {"takes": takes, "plain": plain}
    roles = {
        role: known.get(name, name)
        for role, name in (more or {"production": "takes"}).items()
    }
    repository.find("carts").holder._swap(Roles(**roles))
    transport = httpx.ASGITransport(add_routes(FastAPI(), repository, None))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        yield client
    await repository.ended()
    for model in known.values():
        await model.features.close()
    log.close()


PATHS = {
    "plain": "/predict", "batch": "/models/carts/predict/batch", "merged": "/predict?merge=true",
    "v1": "/v1/models/carts:predict", "v2": "/v2/models/carts/infer", "mlflow": "/invocations",
}  # fmt: skip
DATATYPES = {
    "customer_id": "INT64", "cart_value": "FP64", "coupon": "BYTES", "items": "INT64",
    "boxes": "INT32", "rate": "FP32", "gift": "BOOL", "due": "BYTES",
}  # fmt: skip


def body_of(protocol, row):
    """A row with request data in the place that the protocol has for it."""
    if protocol == "v1":
        return {"instances": [row]}
    if protocol == "mlflow":
        return {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}
    if protocol == "v2":
        return {
            "inputs": [
                {
                    "name": name,
                    "shape": [1],
                    "data": [value],
                    "datatype": DATATYPES[name],
                }
                for name, value in row.items()
            ]
        }
    return [row] if protocol == "batch" else row


def post(shop, home, *bodies, **roles):
    """Answers of one application: (path, body) each."""

    async def ask():
        async with serving(shop, home, **roles) as client:
            return [
                await client.post(path, content=json.dumps(body))
                for path, body in bodies
            ]

    return asyncio.run(ask())


def logged(shop, home):
    settings = shop.settings.model_copy(update={"home": home})
    collect(settings)
    rows = predictions(settings).read().sort_by("received").to_pylist()
    return [
        row | {n: json.loads(row[n]) for n in ("request_data", "features")}
        for row in rows
    ]


def test_every_protocol_takes_request_data_as_columns_of_the_row_and_logs_it(
    stocked, tmp_path
):
    answers = post(
        stocked, tmp_path, *((PATHS[each], body_of(each, ROW)) for each in PATHS)
    )
    assert [answer.status_code for answer in answers] == [200] * 6, [
        a.text for a in answers
    ]
    rows = logged(stocked, tmp_path)
    assert len(rows) == 6
    assert {row["features_from"] for row in rows} <= {"online", "cache"}
    assert all(row["request_data"] == WRITTEN for row in rows)
    assert {(row["features"]["above"], row["entity"]) for row in rows} == {(11.0, "-2")}
    typed = {(row["features"]["bought"], row["features"]["late"]) for row in rows}
    assert typed == {(True, "2026-11-20T12:01:30Z")}
    assert len({row["probability"] for row in rows}) == 1


WRONG = [
    ("cart_value", float("nan")), ("cart_value", float("inf")), ("cart_value", "many"),
    ("cart_value", None), ("cart_value", True), ("coupon", 3), ("coupon", None),
    ("items", 2**63), ("items", 1.5), ("items", "2"), ("boxes", 2**31), ("rate", 1e39),
    ("gift", 1), ("gift", "yes"), ("due", 1_700_000_000), ("due", "1700000000"),
    ("due", "2026-11-20T12:00:00"), ("due", "0001-01-01T00:00:00+01:00"), ("due", "noon"),
]  # fmt: skip


def test_what_is_wrong_or_absent_is_4xx_and_named_in_every_protocol(stocked, tmp_path):
    rows = [(name, ROW | {name: value}) for name, value in WRONG]
    rows += [(name, {n: v for n, v in ROW.items() if n != name}) for name in DATA]
    cases = [(each, name, row) for each in PATHS for name, row in rows]
    answers = post(
        stocked,
        tmp_path,
        *((PATHS[each], body_of(each, row)) for each, _, row in cases),
    )
    for (protocol, name, row), answer in zip(cases, answers, strict=True):
        status = 400 if protocol in {"v1", "v2", "mlflow"} else 422
        assert answer.status_code == status, (protocol, row, answer.text)
        assert name in answer.text
        if name not in row:
            said = f"{name} ({FIELDS[name]}): version 1 needs it beside the key, found none"
            assert said in answer.text
    assert logged(stocked, tmp_path) == []


def test_with_every_feature_in_the_request_its_data_is_not_needed(stocked, tmp_path):
    key, some = {"customer_id": -2}, {"amount": 1.5}
    whole = key | {"features": GIVEN}
    answers = post(
        stocked, tmp_path, ("/predict", whole), ("/predict", whole | DATA),
        (PATHS["v1"], {"instances": [key | GIVEN, GIVEN | DATA]}),
        (PATHS["merged"], key | DATA | {"features": some}),
        (PATHS["merged"], key | {"features": some}),
    )  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 422]
    rows = logged(stocked, tmp_path)
    assert [row["features_from"] for row in rows] == ["request"] * 4 + ["merged"]
    assert [row["request_data"] for row in rows[:2]] == [{}, WRITTEN]
    assert (
        "boxes (int32), cart_value (double), coupon (string), due (times"
        in answers[-1].text
    )


def test_the_document_has_the_fields_typed_and_required(stocked, tmp_path):
    async def read():
        async with serving(stocked, tmp_path) as client:
            document = (await client.get("/openapi.json")).json()
            metadata = (await client.get("/v2/models/carts")).json()
            return document, metadata

    document, metadata = asyncio.run(read())
    schemas = document["components"]["schemas"]
    for name in ("CartsLookUp", "CartsKey"):
        assert set(schemas[name]["required"]) == {"customer_id", *FIELDS}
        kinds = {field: schemas[name]["properties"][field]["type"] for field in FIELDS}
        numbers = dict.fromkeys(("cart_value", "rate"), "number")
        whole = dict.fromkeys(("items", "boxes"), "integer")
        texts = dict.fromkeys(("coupon", "due"), "string")
        assert kinds == numbers | whole | texts | {"gift": "boolean"}
    assert set(schemas["CartsGiven"]["required"]) == {"customer_id", "features"}
    body = document["paths"]["/models/carts/predict"]["post"]["requestBody"]["content"]
    (shown,) = (each["schema"]["anyOf"] for each in body.values())
    assert [each["$ref"].rpartition("/")[2] for each in shown] == [
        "CartsLookUp",
        "CartsGiven",
    ]
    inputs = {each["name"]: each["datatype"] for each in metadata["inputs"]}
    assert DATATYPES.items() <= inputs.items()


def test_a_model_without_request_data_has_the_bodies_it_had():
    schemas = build_schemas(SPEC, (), {}, ())
    assert schemas.request is schemas.one[False]
    assert [*schemas.request.model_fields] == ["customer_id", "features"]


def test_clients_may_send_what_a_version_in_another_role_takes(stocked, tmp_path):
    key = {"customer_id": -2}
    roles = {"production": "plain", "challenger": "takes", "percent": 100}
    bodies = [
        ("/predict", ROW),
        ("/predict", key),
        ("/predict", key | {"shoe_size": 44}),
    ]
    bodies += [("/predict/batch", [ROW, key])]
    answers = post(stocked, tmp_path, *bodies, **roles)
    assert [answer.status_code for answer in answers] == [200, 200, 422, 200]
    assert [answers[n].json()["model_version"] for n in (0, 1)] == ["1", "2"]
    assert [row["model_version"] for row in answers[3].json()] == ["1", "2"]
