"""One customer is forgotten: gone from every place, everybody else as before, and kept out."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from redis import Redis
from typer.testing import CliRunner

from cli.main import typer_app
from core.errors import DataError, RegistryError, SettingsError
from core.spec import load_spec
from feature_repo.broker import Stream
from feature_repo.consumer import EventConsumer
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.forgotten import forgotten_file
from feature_repo.ingest import ingest
from feature_repo.online import OnlineFeatures
from feature_repo.online_state import ends_key
from feature_repo.source import pull
from feature_repo.views import view_files
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.collect import collect, outcomes, predictions
from monitoring.forget import Key, Search
from monitoring.run import load_reference
from serving.prediction_log import AppendLog
from stack.environment import process_environment
from tests.conftest import (
    AS_OF,
    feast_apply,
    mlflow_server,
    new_settings,
    redis_server,
    wait_until,
)
from tests.feature_repo.conftest import consuming
from training import chain
from training.batch import score_population, scores
from training.dataset import load_frame
from training.reproduce import reproduce

SPEC, ORDERS = load_spec("customer_churn_model"), load_dataset("orders")
FOREST = {
    "name": "f",
    "type": "random_forest",
    "parameters": {"n_estimators": 5, "max_depth": 4},
}
SMALL = SPEC.model_validate(SPEC.model_dump() | {"estimators": [FOREST]})
ID = 987162587
"""Nothing else has it."""
OTHER, NEW, TEXT, BINARY = 21, 13, str(ID).encode(), struct.pack("<q", ID)
STREAM = "gyre:events:orders"


def order(number, customer, at, amount=10.0):
    return {"order_id": number, "customer_id": customer, "order_ts": at,
            "number_of_cds": 1, "dollar_value": amount}  # fmt: skip


def line(number, customer, **change):
    row = {
        "request_id": f"r{number}", "model": SPEC.name, "version": "1", "role": "production",
        "received": AS_OF, "as_of": AS_OF, "entity": str(customer), "request_data": {},
        "features": {}, "features_from": "online", "probability": 0.5, "prediction": 1.0,
        "probabilities": None, "in_population": True,
    }  # fmt: skip
    return row | change


class Home:
    """An installation of which every place holds rows of the customer."""

    def __init__(self, settings):
        self.settings = settings
        self.redis = Redis.from_url(settings.redis_address)

    def gyre(self, *arguments):
        env = process_environment(self.settings) | {"GYRE_SOURCES__ORDERS": self.source}
        return CliRunner().invoke(typer_app, [*arguments], env=env)

    @property
    def source(self):
        return self.settings.sources["orders"]

    def fill(self):
        settings = self.settings
        ingest(settings, "orders", AS_OF)
        own = raw_table(settings, ORDERS).read(where=pc.field("customer_id") == ID)
        moved = own["order_id"][0].as_py()
        with consuming(settings, ORDERS) as send:
            send(
                AS_OF + timedelta(hours=1),
                order(10**9, OTHER, AS_OF),
                order(moved, OTHER, AS_OF),
            )
            send(AS_OF + timedelta(hours=2), order(10**9 + 1, ID, AS_OF, amount=-1.0))
        ingest(settings, "orders", AS_OF + timedelta(hours=3))
        # As the consumer notes a customer whose windows end soon.
        member = json.dumps(["customer_features", ID])
        self.redis.zadd(ends_key("gyre", "orders"), {member: AS_OF.timestamp() * 1e6})
        report = chain.train(
            settings, SMALL, AS_OF, key="k", reason="first", who="test"
        )
        assert report.version == "1", report.outcome
        score_population(settings, SPEC, AS_OF)
        folder = settings.home / "serving" / "log"
        folder.mkdir(parents=True)
        torn = json.dumps(line(1, ID), default=str, separators=(",", ":"))
        (folder / "predictions-1-1.jsonl").write_text(f"{torn}\n{torn[:250]}\n")
        (folder / "feedback-1-1.jsonl").write_text(self.told("r1") + self.told("r2"))
        collect(settings)
        assert [*folder.glob("*.malformed")]

    def told(self, request_id):
        row = {"request_id": request_id, "actual": 1.0, "received": AS_OF.isoformat()}
        return json.dumps(row) + "\n"

    def online(self, customer):
        reader = OnlineFeatures(
            self.settings, SPEC.feature_service, tuple(SPEC.features)
        )
        try:
            return reader.read([{"customer_id": customer}], AS_OF + timedelta(hours=3))[
                0
            ]
        finally:
            reader.close()

    def others(self):
        """What others have: tables, features, answers of the model to frames."""
        settings, other = self.settings, pc.field("customer_id") != ID
        raw = raw_table(settings, ORDERS).read(where=other).drop_columns("superseded")
        rows = pa.concat_tables(
            [pq.read_table(f) for f in view_files(settings, "customer_features")]
        )
        registry, (frame, _) = (
            Registry(settings),
            load_frame(Tracking(settings), self.run_id),
        )
        return {
            "raw": raw.sort_by("order_id"),
            "features": rows.filter(other).sort_by(
                [("customer_id", "ascending"), ("event_timestamp", "ascending")]
            ),
            "frame": frame.filter(other),
            "scores": scores(settings)
            .read(where=pc.field("entity") != str(ID))
            .sort_by("entity"),
            "answers": predictions(settings)
            .read(where=pc.field("entity") != str(ID))
            .sort_by("request_id"),
            "outcomes": outcomes(settings).read(where=pc.field("request_id") == "r2"),
            "online": self.online(OTHER),
            "model": registry.served(registry.version(SPEC.name, "1"))[1].content,
        }

    @property
    def run_id(self):
        return Registry(self.settings).version(SPEC.name, "1").run_id

    def mentions(self):
        """Files of the home, and keys of Redis, that hold the customer's id in any form."""
        keys = {
            key: key + (self.redis.dump(key) or b"") for key in self.redis.scan_iter()
        }
        for key in self.redis.scan_iter(_type="ZSET"):  # a dump of one is compressed
            keys[key] = b" ".join(self.redis.zrange(key, 0, -1))
        found = [
            str(key) for key, held in keys.items() if TEXT in held or BINARY in held
        ]
        for path in self.settings.home.rglob("*"):
            if (
                path.is_file()
                and not path.is_symlink()
                and path != self.settings.home / "source.parquet"
            ):
                held = path.read_bytes()
                if path.suffix == ".parquet":
                    held += json.dumps(
                        pq.read_table(path).to_pylist(), default=str
                    ).encode()
                if TEXT in held or (BINARY in held and path.suffix != ".parquet"):
                    found.append(str(path.relative_to(self.settings.home)))
        return found


@contextmanager
def beside(settings, log):
    """Run what a stack runs: serving's flush, and a consumer, which begins once the key is out."""
    stream, ended = Stream(settings, "test"), threading.Event()
    consumer = EventConsumer(settings, ORDERS, stream)

    def run():
        while not ended.wait(0.1):
            log.flush()
            if forgotten_file(settings).exists():
                consumer.step()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        stream.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = new_settings(tmp_path_factory.mktemp("forgetful"))
    source = made.home / "source.parquet"
    rows = pull(made, ORDERS, AS_OF).read_all()
    few = [5, NEW, OTHER, *range(37, 24_000, 24)]
    rows = rows.filter(pc.field("customer_id").isin(few))
    ids = pc.if_else(pc.equal(rows["customer_id"], 5), ID, rows["customer_id"])
    rows = rows.set_column(rows.column_names.index("customer_id"), "customer_id", ids)
    pq.write_table(rows, source)
    settings = made.model_copy(update={"sources": {"orders": str(source)}})
    with redis_server(settings.redis_port, settings.home), mlflow_server(settings):
        feast_apply(settings)
        home = Home(settings)
        home.fill()
        yield home


def test_without_a_key_of_another_or_of_nobody_nothing_is_changed(home):
    before = raw_table(home.settings, ORDERS).version
    for arguments, kind, said in (
        (
            ("orders",),
            SettingsError,
            "expected customer_churn_model|expected orders --customer_id VALUE",
        ),
        (
            ("orders", "--order_id", "1"),
            SettingsError,
            "expected customer_churn_model|expected orders --customer_id VALUE",
        ),
        (
            ("orders", "--customer_id", "x"),
            SettingsError,
            "expected a whole number, found 'x'",
        ),
        (
            ("orders", "--customer_id", "1", "--customer_id", "2"),
            SettingsError,
            "whole number",
        ),
        (
            ("nothing", "--customer_id", "1"),
            SettingsError,
            "found nothing --customer_id",
        ),
        ((SPEC.name, "--customer_id", "123456789"), DataError, "nothing was changed"),
    ):
        done = home.gyre("forget", *arguments)
        assert (type(done.exception), done.exit_code) == (kind, 1), done.output
        assert re.search(said, str(done.exception))
    assert raw_table(home.settings, ORDERS).version == before
    assert not (home.settings.data / "forgotten.json").exists()


def test_one_is_gone_from_every_place_and_all_others_are_as_before(home):
    settings, log = (
        home.settings,
        AppendLog(home.settings.home / "serving" / "log", "predictions"),
    )
    log.open()
    log.write([line(2, OTHER), line(3, ID)])
    log.flush()
    collect(settings)
    home.redis.xadd(STREAM, {"events": json.dumps([
        order(10**9 + 2, ID, AS_OF.isoformat()), order(10**9 + 3, NEW, AS_OF.isoformat())
    ])}, id=f"{int(AS_OF.timestamp() + 9000) * 1000}-1")  # fmt: skip
    before = home.others()
    assert len(home.mentions()) > 12, home.mentions()
    counted = home.gyre("forget", SPEC.name, "--customer_id", str(ID), "--dry-run")
    assert "training frames" in counted.output
    with beside(settings, log):
        said = home.gyre("forget", SPEC.name, "--customer_id", str(ID))
        wait_until("the other's event", lambda: home.redis.xlen(STREAM) == 0)
    log.close()
    assert said.exit_code == 0, said.output + repr(said.exception)
    places = (
        "raw/orders",
        "features",
        "online values",
        "stream",
        "quarantine/orders",
        "scores",
    )
    for place in (
        *places,
        "training frames",
        "prediction log",
        "predictions",
        "outcomes",
    ):
        assert re.search(rf"^{place}.*: [1-9]", said.output, re.MULTILINE), place
    assert home.mentions() == []
    after = home.others()
    new = after["raw"].filter(pc.field("order_id") != 10**9 + 3)
    assert [*after["raw"]["order_id"]].count(pa.scalar(10**9 + 3)) == 1
    for name in before.keys() - {"raw", "features"}:
        assert after[name] == before[name], name
    assert new == before["raw"]
    mine = pc.field("customer_id") != NEW
    assert after["features"].filter(mine) == before["features"].filter(mine)


def test_asked_again_nothing_is_found_also_after_the_source_delivered_it_again(home):
    again = home.gyre("forget", "orders", "--customer_id", str(ID))
    assert (again.exit_code, again.output.splitlines()[0]) == (0, "nothing is found")
    ingest(home.settings, "orders", AS_OF + timedelta(days=1), full=True)
    assert home.mentions() == []
    again = home.gyre("forget", "orders", "--customer_id", str(ID))
    assert again.output.startswith("nothing is found\nout of reach:\n  backups")


def test_the_version_serves_as_reference_and_says_why_it_cannot_be_built_again(home):
    version = Registry(home.settings).version(SPEC.name, "1")
    reference = load_reference(home.settings, SMALL, version)
    assert (
        len(reference.rows)
        == int(Tracking(home.settings).run(home.run_id).params["test_rows"]) - 1
    )
    with pytest.raises(RegistryError, match="rows of an entity were forgotten on 20"):
        reproduce(home.settings, SPEC.name, "1")


@pytest.mark.nightly
def test_one_that_is_killed_anywhere_is_completed_by_the_next(home):
    command = [
        Path(sys.executable).with_name("gyre"),
        "forget",
        SPEC.name,
        "--customer_id",
    ]
    environment = process_environment(home.settings) | {
        "GYRE_SOURCES__ORDERS": home.source
    }
    search = Search(home.settings, Key("customer_id", OTHER))
    whole, killed = search.counts(), []
    held = "raw/orders", "features of orders", "online values of orders", "scores"
    assert {*held, "training frames of customer_churn_model"} <= whole.keys()
    raw = raw_table(home.settings, ORDERS)
    before = raw.version
    with subprocess.Popen([*command, str(OTHER)], env=environment) as process:
        wait_until(
            "the first rows to go", lambda: raw.version > before, process=process
        )
        process.kill()
    assert 0 < len(search.counts()) < len(whole)
    for seconds in range(1, 400):
        with subprocess.Popen([*command, str(OTHER)], env=environment) as process:
            try:
                if process.wait(seconds / 2) == 0:
                    break
            except subprocess.TimeoutExpired:
                process.kill()
        killed.append(len(search.counts()))
    assert process.returncode == 0, killed
    assert search.counts() == {}
    assert home.gyre("forget", SPEC.name, "--customer_id", str(OTHER)).exit_code == 0
