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
from feature_repo.views import view_table
from mlflow_server.pyfunc import read_version
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.collect import collect, outcomes, predictions
from monitoring.forget import count_rows
from monitoring.places import Key
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
from tests.monitoring import log
from training import chain
from training.batch import score_population, scores
from training.dataset import load_frame
from training.reproduce import reproduce

SPEC = load_spec("customer_churn_model")
ORDERS = load_dataset("orders")
FOREST = {
    "name": "f",
    "type": "random_forest",
    "parameters": {"n_estimators": 5, "max_depth": 4},
}
SMALL = SPEC.model_validate(SPEC.model_dump() | {"estimators": [FOREST]})
ID = 987162587
"""Nothing else has it."""
OTHER = 21
NEW = 13
TEXT = str(ID).encode()
BINARY = struct.pack("<q", ID)
SOURCE = "source.parquet"
STREAM = "gyre:events:orders"
KNOWN_KEYS = "expected orders --customer_id VALUE or customer_churn_model --customer_id"
PLACES_WITH_ROWS = [
    "raw rows",
    "features",
    "online values",
    "rows in quarantine",
    "requests of events",
    "training frames",
    "prediction log",
    "outcomes",
    "predictions",
    "scores",
]


def order(number, customer, at, amount=10.0):
    return {"order_id": number, "customer_id": customer, "order_ts": at,
            "number_of_cds": 1, "dollar_value": amount}  # fmt: skip


def line(number, customer, **change):
    values = {"model": SPEC.name, "entity": str(customer), "features": {}} | change
    return log.answer(f"r{number}", AS_OF, **values)


def outcome(number):
    return log.feedback(f"r{number}", 1.0, AS_OF)


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
        rows = raw_table(settings, ORDERS).read(where=pc.field("customer_id") == ID)
        moved = rows["order_id"][0].as_py()
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
        tracking = Tracking(settings)
        name = f"{SPEC.experiment}_monitoring"
        self.monitoring_run = tracking.start_or_find_run(name, "k", "k", {})
        tracking.log_text(
            self.monitoring_run, str(ID), f"reports/{AS_OF:%Y-%m-%dT%H%M%S}/report.html"
        )
        torn = json.dumps(line(1, ID), separators=(",", ":"))[:250]
        file = log.write(settings, "predictions-1-1.jsonl", line(1, ID), torn)
        log.write(settings, "feedback-1-1.jsonl", outcome(1), outcome(2))
        collect(settings)
        assert str(ID) in file.with_suffix(".malformed").read_text()

    def online(self, customer):
        reader = OnlineFeatures(
            self.settings, SPEC.feature_service, tuple(SPEC.features)
        )
        rows = reader.read([{"customer_id": customer}], AS_OF + timedelta(hours=3))
        reader.close()
        return rows

    def others(self):
        """What others have: tables, features, answers of the model to frames."""
        settings = self.settings
        is_other = pc.field("customer_id") != ID
        is_about_other = pc.field("entity") != str(ID)
        raw = raw_table(settings, ORDERS).read(where=is_other)
        files = view_table(settings, "customer_features").files()
        rows = pa.concat_tables([pq.read_table(file) for file in files])
        order = [("customer_id", "ascending"), ("event_timestamp", "ascending")]
        frame, _ = load_frame(Tracking(settings), self.run_id)
        answers = predictions(settings).read(where=is_about_other)
        registry = Registry(settings)
        _, model = read_version(registry, registry.version(SPEC.name, "1"))
        return {
            "raw": raw.drop_columns("superseded").sort_by("order_id"),
            "features": rows.filter(is_other).sort_by(order),
            "frame": frame.filter(is_other),
            "scores": scores(settings).read(where=is_about_other).sort_by("entity"),
            "answers": answers.sort_by("request_id"),
            "outcomes": outcomes(settings).read(where=pc.field("request_id") == "r2"),
            "online": self.online(OTHER),
            "model": model.content,
        }

    @property
    def run_id(self):
        return Registry(self.settings).version(SPEC.name, "1").run_id

    def mentions(self):
        """Files of the home, and keys of Redis, that hold the customer's id in any form."""
        contents = {}
        for key in self.redis.scan_iter():
            contents[str(key)] = key + (self.redis.dump(key) or b"")
        for key in self.redis.scan_iter(_type="ZSET"):  # a dump of one is compressed
            contents[str(key)] = b" ".join(self.redis.zrange(key, 0, -1))
        for path in self.settings.home.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.name != SOURCE:
                contents[str(path)] = path.read_bytes()
                if path.suffix == ".parquet":
                    rows = pq.read_table(path).to_pylist()
                    contents[str(path)] = json.dumps(rows, default=str).encode()
        return [
            name
            for name, content in contents.items()
            if TEXT in content or BINARY in content
        ]


@contextmanager
def running_stack(settings, serving_log):
    """Run serving's flush, and a consumer, which begins once the key is kept out."""
    stream, ended = Stream(settings, "test"), threading.Event()
    consumer = EventConsumer(settings, ORDERS, stream)

    def run():
        while not ended.wait(0.1):
            serving_log.flush()
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
    plain = new_settings(tmp_path_factory.mktemp("forgetful"))
    source = plain.home / SOURCE
    rows = pull(plain, ORDERS, AS_OF).read_all()
    few = [5, NEW, OTHER, *range(37, 24_000, 24)]
    rows = rows.filter(pc.field("customer_id").isin(few))
    ids = pc.if_else(pc.equal(rows["customer_id"], 5), ID, rows["customer_id"])
    rows = rows.set_column(rows.column_names.index("customer_id"), "customer_id", ids)
    pq.write_table(rows, source)
    settings = plain.model_copy(update={"sources": {"orders": str(source)}})
    with redis_server(settings.redis_port, settings.home), mlflow_server(settings):
        feast_apply(settings)
        home = Home(settings)
        home.fill()
        yield home


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("orders",), SettingsError, KNOWN_KEYS),
        (("orders", "--customer_id", "x"), SettingsError, "a whole number, found 'x'"),
        ((SPEC.name, "--customer_id", "123456789"), DataError, "nothing was changed"),
    ],
)
def test_a_key_that_is_missing_wrong_or_unknown_changes_nothing(
    home, arguments, error, message
):
    version = raw_table(home.settings, ORDERS).version
    ended = home.gyre("forget", *arguments)
    assert (type(ended.exception), ended.exit_code) == (error, 1), ended.output
    assert re.search(message, str(ended.exception))
    assert raw_table(home.settings, ORDERS).version == version
    assert not forgotten_file(home.settings).exists()


def test_a_customer_is_gone_from_every_place_and_all_others_are_as_before(home):
    settings = home.settings
    serving_log = AppendLog(settings.home / "serving" / "log", "predictions")
    serving_log.open()
    serving_log.write([line(2, OTHER), line(3, ID), line(4, ID, **log.FAILURE)])
    log.write(settings, "feedback-1-2.jsonl", outcome(4))
    serving_log.flush()
    collect(settings)
    home.redis.xadd(STREAM, {"events": json.dumps([
        order(10**9 + 2, ID, AS_OF.isoformat()), order(10**9 + 3, NEW, AS_OF.isoformat())
    ])}, id=f"{int(AS_OF.timestamp() + 9000) * 1000}-1")  # fmt: skip
    before = home.others()
    assert len(home.mentions()) > 12, home.mentions()
    counted = home.gyre("forget", SPEC.name, "--customer_id", str(ID), "--dry-run")
    assert "training frames" in counted.output
    with running_stack(settings, serving_log):
        ended = home.gyre("forget", SPEC.name, "--customer_id", str(ID))
        wait_until("the other's event", lambda: home.redis.xlen(STREAM) == 0)
    serving_log.close()
    assert ended.exit_code == 0, ended.output + repr(ended.exception)
    places_with_rows = re.findall(
        r"^([a-z ]+): [1-9]\d* rows$", ended.output, re.MULTILINE
    )
    assert places_with_rows == PLACES_WITH_ROWS
    assert not [*settings.data_docs.glob("**/*.html")]
    assert not Tracking(settings).list_artifacts(home.monitoring_run, "reports")
    assert home.mentions() == []
    assert set(outcomes(settings).read()["request_id"].to_pylist()) == {"r2"}
    after = home.others()
    new = after["raw"].filter(pc.field("order_id") != 10**9 + 3)
    assert [*after["raw"]["order_id"]].count(pa.scalar(10**9 + 3)) == 1
    for name in before.keys() - {"raw", "features"}:
        assert after[name] == before[name], name
    assert new == before["raw"]
    mine = pc.field("customer_id") != NEW
    assert after["features"].filter(mine) == before["features"].filter(mine)


def test_a_forgotten_customer_stays_out_though_the_source_has_it_again(home):
    ingest(home.settings, "orders", AS_OF + timedelta(days=1), full=True)
    assert home.mentions() == []
    again = home.gyre("forget", "orders", "--customer_id", str(ID))
    assert again.output.startswith("nothing is found\nout of reach:\n  backups")
    with pytest.raises(RegistryError, match="rows of an entity were forgotten on 20"):
        reproduce(home.settings, SPEC.name, "1")


@pytest.mark.nightly
def test_a_killed_forget_is_completed_by_the_next(home):
    gyre = Path(sys.executable).with_name("gyre")
    command = [gyre, "forget", SPEC.name, "--customer_id", str(OTHER)]
    environment = process_environment(home.settings)
    environment |= {"GYRE_SOURCES__ORDERS": home.source}
    key = Key("customer_id", OTHER)
    counts = count_rows(home.settings, key)
    raw = raw_table(home.settings, ORDERS)
    version = raw.version
    with subprocess.Popen(command, env=environment) as process:
        wait_until("rows to go", lambda: raw.version > version, process=process)
        process.kill()
    assert 0 < len(count_rows(home.settings, key)) < len(counts)
    subprocess.run(command, env=environment, check=True)
    assert count_rows(home.settings, key) == {}
