"""Feast's own answers, read without Feast: the same rows, or its reader's."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import uvloop
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.on_demand import NotDirectError, plain_source
from feature_repo.plan_writer import ensure_plan
from feature_repo.serving_plan import PlannedFeature, PlannedView, load_plan, plan_path
from feature_repo.store import mark
from serving.decoding import WRONG_BYTES, double, int64, string
from serving.features import CANARY_SECONDS
from serving.metrics import FEATURE_FALLBACKS
from serving.reader import ViewReader
from serving.redis_connection import command
from stack.errors import DataError
from stack.settings import PROJECT
from tests.conftest import unused_port
from tests.serving.shop import DAY, NAMES, NOON, PLAIN, SHOPS, online, people, stocked, template  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
TICK = timedelta(microseconds=1)
LOOPS = [asyncio.run, uvloop.run]


def fallbacks(reason):
    return FEATURE_FALLBACKS.labels(reason)._value.get()


async def until(ready, seconds=20):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("run", LOOPS)
def test_rows_are_feasts_for_every_value_key_age_and_lack(stocked, run):  # noqa: F811
    keys = [{"customer_id": n, "shop_code": code} for n in (*range(-6, 9), 77, 2**63 - 1)
            for code in (*SHOPS, "?")]  # fmt: skip
    ages = (0 * TICK, DAY, DAY + TICK, -TICK)
    pairs = [(key, NOON + age) for age in ages for key in keys]
    random.Random(1).shuffle(pairs)
    keys, as_of = map(list, zip(*pairs, strict=True))

    async def read():
        async with stocked.source() as source:
            assert (source.problem, source.fallback, source.watermark) == (None, None, NOON)
            return [(await online(source, [key], at))[0] for key, at in pairs]

    rows, before = run(read()), fallbacks("encoding")
    found = zip(pairs, rows, stocked.feast("mixed", NAMES, keys, as_of), strict=True)
    assert [each for each in found if repr(each[1]) != repr(each[2])][:3] == []
    assert {row["stock"] for row in rows if row} == {None, *range(10)}

    async def together():
        async with stocked.source() as source:
            return await online(source, keys, as_of)

    assert (run(together()), fallbacks("encoding")) == (rows, before)


def test_a_view_under_another_name_and_key_is_read_by_them(stocked):  # noqa: F811
    keys = [{"customer_id": n, "seller_id": 1 - n} for n in range(-5, 6)]
    names = (*PLAIN, "stock")

    async def read():
        async with stocked.source("renamed", names) as source:
            assert (source.problem, source.fallback) == (None, None)
            return await online(source, keys)

    found = uvloop.run(read())
    assert found == stocked.feast("renamed", names, keys, [NOON] * len(keys))
    assert (found[5]["count"], found[5]["stock"]) == (300, 4)


def test_an_unknown_entity_and_one_of_nulls_are_none_beside_one_that_is_known(stocked):  # noqa: F811
    async def read():
        async with stocked.source("plain", PLAIN) as source:
            return await online(source, people(-3, 5000, 77))

    assert uvloop.run(read()) == [{"count": 1, "amount": -0.0, "name": "a"}, None, None]


@given(
    st.integers(-(2**63), 2**63 - 1), st.text(max_size=300), st.text(st.characters(codec="ascii"))
)
def test_names_of_hashes_are_those_that_feast_makes(number, text, project):
    names = ("customer_id", "shop_code")
    prefix = serialize_entity_key(EntityKey())[:0] + struct.pack("<I", 2)
    prefix += b"".join(struct.pack("<II", 2, len(n)) + n.encode() for n in names)
    plan = PlannedView(
        name="v", keys={"customer_id": "int64", "shop_code": "string"}, prefix=prefix,
        suffix=project.encode(), time=b"_ts:v", ttl_us=0,
        features=(PlannedFeature(name="f", kind="int64", field=b"\r\n12", tag=0x20),),
    )  # fmt: skip
    values = [Value(int64_val=number), Value(string_val=text)]
    name = serialize_entity_key(EntityKey(join_keys=names, entity_values=values))
    asked = ViewReader(plan).command({"customer_id": number, "shop_code": text})
    assert asked == command(b"HMGET", name + project.encode(), b"_ts:v", b"\r\n12")


@given(st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=20_000))
def test_values_are_what_was_written(number, amount, text):
    assert int64(Value(int64_val=number).SerializeToString()) == number
    assert repr(double(Value(double_val=amount).SerializeToString())) == repr(amount)
    assert string(Value(string_val=text).SerializeToString()) == text


tags = st.sampled_from([b"\x20", b"\x29", b"\x12", b"\x18", b"\x35", b"\x22", b""])


@given(tags, st.binary(max_size=12) | st.integers(0, 3).map(lambda n: b"\xff" * 8 + bytes([n])))
def test_whatever_bytes_are_stored_they_are_read_as_feast_does_or_not_at_all(tag, body):
    for decode, kind in ((int64, "int64_val"), (double, "double_val"), (string, "string_val")):
        try:
            found = decode(tag + body)
        except WRONG_BYTES:
            continue
        try:
            theirs = Value.FromString(tag + body)
        except DecodeError:
            raise AssertionError(found) from None
        assert theirs.WhichOneof("val") == (None if found is None else kind)
        assert found is None or repr(found) == repr(getattr(theirs, kind))


@pytest.mark.parametrize(
    ("reason", "raw"),
    [("absent", None), ("encoding", Value(int32_val=7).SerializeToString()), ("encoding", b"\x20")],
)
def test_a_row_of_other_bytes_goes_through_feast_alone(stocked, reason, raw):  # noqa: F811
    name, fields = stocked.hash_of(-3)
    stocked.redis.hdel(name, fields["count"])
    if raw is not None:
        stocked.redis.hset(name, fields["count"], raw)
    ensure_plan(stocked.settings, "plain")

    async def read():
        async with stocked.source("plain", PLAIN) as source:
            keys, known = people(-3, -2), {"count": 127, "amount": 1.5, "name": "ü€😀"}
            rows, origin = await source.read(keys, [NOON] * 2)
            assert (rows[1], origin) == (known, "cache")  # until Feast is there
            assert (source.problem, source.fallback) == (None, None)

            if raw == b"\x20":  # Feast cannot either
                await until(source._feast.done)
                assert (await source.read(keys, [NOON] * 2))[1] == "cache"
                assert source.problem is None
                return
            await online(source, keys)
            before = fallbacks(reason)
            rows = await online(source, keys)
            assert fallbacks(reason) > before
            assert rows == stocked.feast("plain", PLAIN, keys, [NOON] * 2)

    uvloop.run(read())


def plant(shop, encode, service="plain"):
    """Store the counts of all canaries anew, at the event time they have."""
    for canary in load_plan(shop.settings, service).canaries:
        name, fields = shop.hash_of(canary.key["customer_id"])
        raw = shop.redis.hget(name, fields["count"])
        if raw:
            value = encode(Value.FromString(raw).int64_val).SerializeToString()
            shop.redis.hset(name, fields["count"], value)


def test_another_encoding_of_what_stands_is_noticed_and_feast_answers_everything(stocked):  # noqa: F811
    keys, moments = people(-3, 0), [NOON] * 2

    async def read():
        async with stocked.source("plain", PLAIN) as source:
            plant(stocked, lambda n: Value(double_val=float(n)))
            await source.probe()
            assert "other bytes" in source.fallback
            before = fallbacks("canary")
            found = await online(source, keys)
            assert fallbacks("canary") >= before + 2
            assert found == stocked.feast("plain", PLAIN, keys, moments)
            assert repr(found[0]["count"]) == "1.0"
            plant(stocked, lambda _: Value(int64_val=5))
            ensure_plan(stocked.settings, "plain")
            await source.probe()
            assert source.fallback is None
            return (await online(source, keys))[0]["count"]

    assert uvloop.run(read()) == 5


def test_a_correction_of_a_canary_is_borne_until_its_plan_is_overdue(stocked):  # noqa: F811
    async def read():
        async with stocked.source("plain", PLAIN) as source:
            plant(stocked, lambda _: Value(int64_val=5))
            await source.probe()
            assert source.fallback is None
            ensure_plan(stocked.settings, "plain")
            await source.probe()
            assert source._doubtful_since is None
            plant(stocked, lambda _: Value(int64_val=6))
            await source.probe()
            source._doubtful_since -= CANARY_SECONDS
            await source.probe()
            assert "other bytes" in source.fallback
            return await online(source, people(-3))

    assert uvloop.run(read()) == [{"count": 6, "amount": -0.0, "name": "a"}]


def altered(shop, change, service="plain"):
    path = plan_path(shop.settings, service)
    plan = json.loads(path.read_bytes())
    change(plan)
    path.write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("version", lambda plan: plan["standing"].update(feast="0.1.0")),
        ("keys", lambda plan: plan["views"][0].update(prefix="00")),
        ("tag", lambda plan: plan["views"][0]["features"][0].update(tag=0x18)),
        ("canary", lambda plan: plan["canaries"][0]["found"].update(count=12345)),
    ],
)
def test_a_plan_that_does_not_hold_here_is_not_used(stocked, reason, change):  # noqa: F811
    altered(stocked, change)

    async def read():
        async with stocked.source("plain", PLAIN) as source:
            assert (source.problem, source.fallback.partition(":")[0]) == (None, reason)
            before = fallbacks(reason)
            found = await online(source, people(-3, -2))
            assert fallbacks(reason) >= before + 2
            return found

    expected = stocked.feast("plain", PLAIN, people(-3, -2), [NOON] * 2)
    assert uvloop.run(read()) == expected


def test_what_no_plan_can_say_is_read_by_feast_and_said(stocked):  # noqa: F811
    async def read():
        async with stocked.source("pandas", ("amount", "thrice")) as source:
            assert source.fallback == "plan: on-demand view by_pandas: mode is pandas"
            assert source.watermark == NOON
            return await online(source, people(-2))

    assert uvloop.run(read()) == [{"amount": 1.5, "thrice": 4.5}]


def test_a_plan_is_written_when_something_changed_and_only_then(stocked, tmp_path):  # noqa: F811
    settings = stocked.settings
    path = ensure_plan(settings, "plain")

    def written():
        before = path.stat().st_mtime_ns
        assert ensure_plan(settings, "plain") == path
        return path.stat().st_mtime_ns != before

    assert not written()
    stocked.redis.set(mark(stocked.store, "person"), (NOON + DAY).isoformat())
    assert (written(), written()) == (True, False)
    stocked.store.apply(stocked.store.get_feature_service("plain"))
    assert (written(), written()) == (True, False)
    path.write_text("{")
    with pytest.raises(DataError, match="Invalid JSON"):
        load_plan(settings, "plain")
    assert (written(), written()) == (True, False)
    with pytest.raises(DataError, match="'nobody' is not published"):
        ensure_plan(settings, "nobody")
    unreachable = settings.model_copy(update={"redis_port": unused_port()})
    assert ensure_plan(unreachable, "plain") == path  # nothing can be told: it holds
    path.unlink()
    ensure_plan(unreachable, "plain")
    assert (load_plan(settings, "plain").canaries, written()) == ((), True)


def test_without_a_plan_or_without_what_it_should_give_nothing_is_read(stocked):  # noqa: F811
    async def read(names):
        async with stocked.source("plain", names) as source:
            assert await source.read(people(1), [NOON]) == ([None], "cache")
            return source.down

    assert "has no nonsense" in asyncio.run(read(("count", "nonsense")))
    plan_path(stocked.settings, "plain").unlink()
    assert "no serving plan of 'plain'" in asyncio.run(read(PLAIN))


def test_a_redis_that_was_emptied_holds_no_features(stocked):  # noqa: F811
    async def read():
        async with stocked.source("plain", PLAIN) as source:
            known = await online(source, people(-3))
            stocked.redis.flushdb()
            await source.probe()
            assert "holds no features (any more): gyre ingest" in source.problem
            return known, await source.read(people(-3, -2), [NOON] * 2)

    (known,), found = uvloop.run(read())
    assert found == ([known, None], "cache")


def test_a_plan_that_breaks_does_not_break_who_reads_already(stocked):  # noqa: F811
    path = plan_path(stocked.settings, "plain")

    async def read():
        async with stocked.source("plain", PLAIN) as source:
            for text in ("{", None):
                path.write_text(text) if text else path.unlink()
                await source.probe()
                assert (source.problem, source.fallback) == (None, None)
                await online(source, people(-3))

    uvloop.run(read())


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("lambda inputs: inputs", "not one function"),
        ("async def f(x):\n    return x", "not one function"),
        ("def f(x):\n    return {'a': np.log(x['b'])}", "it uses np"),
        ("def f(x):\n    return {'a': [DAY for _ in x]}", "it uses DAY"),
        ("x = (", "not one function"),
    ],
)
def test_functions_that_a_worker_could_not_call_are_named(source, why):
    with pytest.raises(NotDirectError, match=why):
        plain_source("of_view", source)


def test_a_function_is_stripped_of_what_only_its_module_knows():
    text = """    @decorated(schema=[Field()])
    def f(x: Any, *, y: Some = 1) -> dict[str, Any]:
        def g(z: Other) -> Any:
            return math_of(z)
        import math
        math_of = math.floor
        return {"a": [g(each) for each in x["b"]]}
"""
    source, name = plain_source("of_view", text)
    names = {}
    exec(source, names)
    assert names[name]({"b": [1.5]}) == {"a": [1]}


def test_a_worker_that_reads_imports_no_feast():
    heavy = {"feast", "pandas", "ibis", "mlflow", "sqlalchemy", "pyarrow", "google.protobuf"}
    code = f"import sys, serving.features; print({heavy} & set(sys.modules))"
    found = subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT)
    assert found == b"set()\n"
