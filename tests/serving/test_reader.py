"""Feast's own answers, read without Feast: the same rows, or its reader's."""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
import sys
from datetime import timedelta
from itertools import product

import pytest
import uvloop
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.settings import PROJECT
from feature_repo.lookup_writer import look_up_specification
from feature_repo.on_demand import digest, function_source, load_function, module_source
from mlflow_server.served_model import (
    CONTRACT_FILE,
    ONNX_FILE,
    LookupSpecification,
    StoredFeature,
    StoredView,
    digest_tags,
)
from serving.errors import ModelRefusedError
from serving.lookup import VALUE_FIELDS, ViewReader, decoder
from serving.metrics import UNREADABLE_FEATURES
from serving.opening import open_version
from tests.serving.conftest import SPEC, contract, tiny_onnx
from tests.serving.shop import (  # noqa: F401  (fixtures)
    DAY,
    NAMES,
    NOON,
    PERSON,
    PLAIN,
    SHOPS,
    features,
    online,
    online_rows,
    people,
    stocked,
    template,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
TICK = timedelta(microseconds=1)
LOOPS = [asyncio.run, uvloop.run]


def unreadable():
    return UNREADABLE_FEATURES._value.get()


def rows_of(shop, service, names, keys):
    """Rows as a worker reads them at noon, without Feast unless the service needs it."""

    async def read():
        async with shop.source(service, names) as source:
            rows = await online(source, keys)
            assert source.problem is None
            return rows

    return uvloop.run(read())


@pytest.mark.parametrize("run", LOOPS)
def test_rows_are_feasts_for_every_value_key_age_and_lack(stocked, run):
    customers = [*range(-6, 9), 77, 2**63 - 1]
    shops = (*SHOPS, "?")
    ages = (0 * TICK, DAY, DAY + TICK, -TICK)
    reads = [
        ({"customer_id": customer, "shop_code": shop}, NOON + age)
        for age, customer, shop in product(ages, customers, shops)
    ]
    random.Random(1).shuffle(reads)
    keys = [key for key, _ in reads]
    moments = [moment for _, moment in reads]

    async def read():
        async with stocked.source() as source:
            assert stocked.contract().lookup.unsupported is None
            assert (source.problem, source.watermark) == (None, NOON)
            together = await online(source, keys, moments)
            alone = [(await online(source, [key], moment))[0] for key, moment in reads]
            return together, alone

    before = unreadable()
    rows, alone = run(read())
    nobody = dict.fromkeys(NAMES) | {"label": "none!"}
    expected = stocked.feast("mixed", NAMES, keys, moments)
    for position, (key, row) in enumerate(zip(keys, expected, strict=True)):
        if row == nobody and key["customer_id"] != 77:
            expected[position] = None
    assert list(map(repr, rows)) == list(map(repr, expected))
    assert alone == rows
    assert {row["stock"] for row in rows if row} == {None, *range(10)}
    assert unreadable() == before


def test_views_without_a_row_of_the_key_or_a_young_one_are_named(stocked):
    keys = [{"customer_id": n, "shop_code": "a"} for n in (-4, -3, -2, 5000)]

    async def read(at):
        async with stocked.source() as source:
            rows = await online_rows(source, keys, [at] * len(keys))
            return [row and row.absent_views for row in rows]

    assert uvloop.run(read(NOON)) == [("level", "visit"), ("visit",), (), None]
    old = [("level", "visit"), ("level", "visit"), ("level",), None]
    assert uvloop.run(read(NOON + DAY + TICK)) == old


def test_an_unknown_entity_and_one_of_nulls_are_none_beside_one_that_is_known(stocked):
    rows = rows_of(stocked, "plain", PLAIN, people(-3, 5000, 77))
    assert rows == [{"count": 1, "amount": -0.0, "name": "a"}, None, None]


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.text(max_size=300),
    st.text(st.characters(codec="ascii")),
)
def test_names_of_hashes_are_those_that_feast_makes(number, text, project):
    names = ("customer_id", "shop_code")
    prefix = struct.pack("<I", 2)
    prefix += b"".join(struct.pack("<II", 2, len(n)) + n.encode() for n in names)
    view = StoredView(
        name="view", keys={"customer_id": "int64", "shop_code": "string"}, prefix=prefix,
        suffix=project.encode(), time=b"_ts:v", state="m", ttl_us=0,
        features=(StoredFeature(name="f", kind="int64", field=b"\r\n12"),),
    )  # fmt: skip
    values = [Value(int64_val=number), Value(string_val=text)]
    name = serialize_entity_key(EntityKey(join_keys=names, entity_values=values))
    command = ViewReader(view).command({"customer_id": number, "shop_code": text})
    assert command == (b"HMGET", name + project.encode(), b"_ts:v", b"\r\n12")


FIELDS = {
    "int32": ("int32_val", st.integers(-(2**31), 2**31 - 1)),
    "int64": ("int64_val", st.integers(-(2**63), 2**63 - 1)),
    "float32": ("float_val", st.floats(width=32)),
    "double": ("double_val", st.floats()),
    "bool": ("bool_val", st.booleans()),
    "timestamp": (
        "unix_timestamp_val",
        st.integers(-62135596800, 253402300799) | st.just(-(2**63)),
    ),
    "string": ("string_val", st.text(max_size=20_000)),
}


@pytest.mark.parametrize("kind", VALUE_FIELDS)
@given(data=st.data())
def test_values_are_what_was_written(kind, data):
    field, values = FIELDS[kind]
    written = Value(**{field: data.draw(values)})
    value = decoder(kind)(written.SerializeToString())
    assert repr(value) == repr(feast_value_type_to_python_type(written))


TAGS = [
    Value(**{field: 1}).SerializeToString()[:1]
    for field, _ in FIELDS.values()
    if field != "string_val"
]
tags = st.sampled_from([*TAGS, b"\x12", b"\x22", b""])


numbers = st.integers(0, 3).map(lambda n: b"\xff" * 8 + bytes([n]))


@given(tags, st.binary(max_size=12) | numbers)
def test_whatever_bytes_are_stored_they_are_read_as_feast_does_or_not_at_all(tag, body):
    for kind, (field, _) in FIELDS.items():
        try:
            value = decoder(kind)(tag + body)
        except (ValueError, OverflowError, DecodeError):
            continue
        feasts = Value.FromString(tag + body)
        fields = {field}
        if value is None:
            fields = {None, "unix_timestamp_val"}
        assert feasts.WhichOneof("val") in fields
        assert repr(value) == repr(feast_value_type_to_python_type(feasts))


@pytest.mark.parametrize(
    "raw",
    [Value(int32_val=7).SerializeToString(), b"\x20", b"\x29\0\0"],
)
def test_a_row_of_other_bytes_fails_alone_and_is_counted(stocked, raw):
    name, fields = stocked.hash_of(-3)
    stocked.redis.hset(name, fields["count"], raw)
    before = unreadable()
    rows = rows_of(stocked, "plain", PLAIN, people(-3, -2, 5000))
    assert rows == [{}, {"count": 127, "amount": 1.5, "name": "ü€😀"}, None]
    assert unreadable() == before + 1


def test_a_row_that_a_function_fails_at_fails_alone(stocked):
    nobody = dict.fromkeys(("count", "amount", "name"))
    stocked.write(PERSON, {"customer_id": 88}, nobody | {"seen_us": 1})
    first, failed, last = rows_of(
        stocked, "failing", ("count", "inverse"), people(-3, 88, -2)
    )
    assert first == {"count": 1, "inverse": 1.0}
    assert failed == {}
    assert last == {"count": 127, "inverse": 1 / 127}


def test_an_absent_field_is_null_as_feast_has_it(stocked):
    name, fields = stocked.hash_of(-3)
    stocked.redis.hdel(name, fields["count"])
    expected = stocked.feast("plain", PLAIN, people(-3), [NOON])
    assert expected == [{"count": None, "amount": -0.0, "name": "a"}]
    assert rows_of(stocked, "plain", PLAIN, people(-3)) == expected


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"feast": "0.1.0"}, "is of Feast 0.1.0 with redis, here is .*: train again"),
        ({"online_store": "sqlite"}, "is of Feast .* with sqlite, here is .*"),
        ({"views": ()}, "the look-up specification lacks "),
        ({"sha256": "0"}, "is not the function that this version was trained with"),
        ({"function": "gone"}, "gone is not the function that this version"),
    ],
)
def test_a_version_whose_specification_is_not_of_here_is_refused(
    tmp_path, changed, reason
):
    lookup = contract().lookup.model_dump()
    place = lookup if changed.keys() <= lookup.keys() else lookup["functions"][0]
    place |= changed
    altered = contract().model_copy(update={"lookup": LookupSpecification(**lookup)})
    (tmp_path / CONTRACT_FILE).write_text(altered.model_dump_json())
    (tmp_path / ONNX_FILE).write_bytes(tiny_onnx(0.0).SerializeToString())
    with pytest.raises((ModelRefusedError, DataError), match=reason):
        open_version(tmp_path, digest_tags(tmp_path), SPEC)


def test_what_feast_reads_is_the_last_known_value_while_its_store_hangs(stocked):
    names = ("count", "stock")
    keys = [{"customer_id": 1, "seller_id": 0}]
    reason = stocked.contract("renamed", names).lookup.unsupported
    assert reason == "view level is read under another name or key"

    async def read():
        async with stocked.source("renamed", names) as source:
            assert await online(source, keys) == [{"count": -1, "stock": 3}]
            stocked.redis.client_pause(2_000)
            rows, origin = await source.read(keys, [NOON])
            assert (features(rows), origin) == ([{"count": -1, "stock": 3}], "cache")
            assert source.problem == "Feast: no answer within 0.5 s"
            assert await online(source, keys) == [{"count": -1, "stock": 3}]

    uvloop.run(read())


def test_a_service_that_is_not_published_has_no_specification(stocked):
    with pytest.raises(DataError, match=r"nobody does not exist .* feast apply"):
        look_up_specification(stocked.settings, "nobody")


def test_a_redis_that_was_emptied_holds_no_features(stocked):
    async def read():
        async with stocked.source("plain", PLAIN) as source:
            last_rows = await online(source, people(-3))
            stocked.redis.flushdb()
            for _ in range(2):
                await source.probe()
                assert "holds no features (any more): gyre ingest" in source.problem
                stocked.say_online(PERSON, None)  # a first fill goes on
            return last_rows, await source.read(people(-3, -2), [NOON] * 2)

    (last_row,), (rows, origin) = uvloop.run(read())
    assert (features(rows), origin) == ([last_row, None], "cache")


def test_a_function_is_loaded_without_what_only_its_module_knows():
    decorated = """    @decorated(schema=[Field()])
    def f(x: Any, *, y: Some = 1) -> dict[str, Any]:
        'What it does.'  # and how
        return x
"""
    plain = "def f(x: Any, *, y: Some=1) -> dict[str, Any]: return x"
    assert function_source(decorated, "f") == function_source(plain, "f")
    sha256 = digest(module_source("tests.serving.shop", "failing"))
    function = load_function("tests.serving.shop", "failing", sha256)
    assert function({"count": [2]}) == {"inverse": [0.5]}
    for source in ("f = lambda x: x", "async def f(x):\n    return x", "x = ("):
        assert function_source(source, "f") == ""


def test_a_worker_that_reads_imports_no_feast():
    heavy = {"feast", "pandas", "ibis", "mlflow", "sqlalchemy", "pyarrow"}
    code = f"import sys, serving.features; print({heavy} & set(sys.modules))"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT)
    assert output == b"set()\n"
