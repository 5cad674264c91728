"""One customer is forgotten: gone from every place, everybody else as before, and kept out."""

import json
import re
import struct
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic_core import to_json
from redis import Redis
from typer.testing import CliRunner

from cli.main import typer_app
from core.errors import DataError, RegistryError, SettingsError
from core.spec import entity_text
from core.tables.table import Table
from feature_engine.events.broker import show_life
from feature_engine.ingest.consumer import EventConsumer
from feature_engine.ingest.forgotten import forgotten_file
from feature_engine.ingest.pipeline import ingest
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import view_table
from feature_engine.online.state import ends_key
from feature_repo.online_store import redis_client
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.model.pyfunc import read_version
from monitoring.log.collect import collect
from monitoring.log.tables import outcomes, predictions
from operations.erase import line_pattern
from operations.forget import count_rows
from operations.search import EntityKey
from serving.prediction_log.append_log import AppendLog
from stack.environment import process_environment
from tests.conftest import (
    AS_OF,
    feast_apply,
    mlflow_server,
    new_settings,
    redis_server,
    wait_until,
)
from tests.support.feature_engine.installation import consuming, online_reader
from tests.support.feature_engine.shop import HOUR, ORDERS, SPEC, order
from tests.support.monitoring import log_lines
from tests.training.conftest import changed, train
from training.batch import score_population, scores
from training.reproduce import reproduce
from training.stages.dataset import load_frame

pytestmark = pytest.mark.journey

ID = 987162587
"""Nothing else has it."""
OTHER = 21
NEW = 13
SOURCE = "source.parquet"
STREAM = "gyre:events:orders"
PLACES_WITH_ROWS = [
    "raw rows",
    "features",
    "online values",
    "requests of events",
    "rows in quarantine",
    "training frames",
    "prediction log",
    "outcomes",
    "predictions",
    "scores",
]


def line(number, customer, **change):
    values = {"model": SPEC.name, "entity": str(customer), "features": {}} | change
    return log_lines.answer(f"r{number}", AS_OF, **values)


def outcome(number):
    return log_lines.feedback(f"r{number}", 1.0, AS_OF)


class Home:
    """An installation of which every place holds rows of the customer."""

    def __init__(self, settings):
        self.settings = settings
        self.redis = Redis.from_url(settings.redis_address)
        source = {"GYRE_SOURCES__ORDERS": settings.sources["orders"]}
        self.environment = process_environment(settings) | source

    def forget(self, words):
        command = f"forget {words}"
        return CliRunner().invoke(typer_app, command, env=self.environment)

    def fill(self):
        settings = self.settings
        ingest(settings, "orders", AS_OF)
        rows = raw_table(settings, ORDERS).read(where=pc.field("customer_id") == ID)
        moved = rows["order_id"][0].as_py()
        with consuming(settings, ORDERS) as send:
            orders = [order(number, OTHER, AS_OF) for number in (10**9, moved)]
            send(AS_OF + HOUR, *orders)
            send(AS_OF + 2 * HOUR, order(10**9 + 1, ID, AS_OF, amount=-1.0))
        ingest(settings, "orders", AS_OF + 3 * HOUR)
        # As the consumer notes a customer whose windows end soon.
        member = json.dumps(["customer_features", ID])
        self.redis.zadd(ends_key("gyre", "orders"), {member: AS_OF.timestamp() * 1e6})
        report = train(settings, changed(), AS_OF, "k")
        assert report.version == "1", report.outcome
        score_population(settings, SPEC, AS_OF)
        tracking = Tracking(settings)
        name = f"{SPEC.experiment}_monitoring"
        self.monitoring_run = tracking.start_or_find_run(name, "k", "k", {})
        tracking.log_text(
            self.monitoring_run, str(ID), f"reports/{AS_OF:%Y-%m-%dT%H%M%S}/report.html"
        )
        torn = json.dumps(line(1, ID), separators=(",", ":"))[:250]
        file = log_lines.write(settings, "predictions-1-1.jsonl", line(1, ID), torn)
        log_lines.write(settings, "feedback-1-1.jsonl", outcome(1), outcome(2))
        collect(settings)
        assert str(ID) in file.with_suffix(".malformed").read_text()

    def others(self):
        """What others have but NEW: tables, features, answers of the model to frames."""
        settings = self.settings
        is_other = ~pc.field("customer_id").isin([ID, NEW])
        is_about_other = pc.field("entity") != str(ID)
        raw = raw_table(settings, ORDERS).read(where=is_other)
        files = view_table(settings, "customer_features").files()
        rows = pa.concat_tables([pq.read_table(file) for file in files])
        keys = [("customer_id", "ascending"), ("event_timestamp", "ascending")]
        registry = Registry(settings)
        version = registry.version(SPEC.name, "1")
        frame, _ = load_frame(Tracking(settings), version.run_id)
        _, model = read_version(registry, version)
        answers = predictions(settings).read(where=is_about_other)
        reader = online_reader(settings, SPEC.feature_service, SPEC.features)
        with closing(reader):
            online = reader.read([{"customer_id": OTHER}], AS_OF + 3 * HOUR)
        return {
            "raw": raw.drop_columns("superseded").sort_by("order_id"),
            "features": rows.filter(is_other).sort_by(keys),
            "frame": frame.filter(is_other),
            "scores": scores(settings).read(where=is_about_other).sort_by("entity"),
            "answers": answers.sort_by("request_id"),
            "online": online,
            "model": model.content,
        }

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
            if str(ID).encode() in content or struct.pack("<q", ID) in content
        ]


@contextmanager
def running_stack(settings, serving_log):
    """Run serving's flush, and a consumer, which begins once the key is kept out."""
    ended = threading.Event()
    consumer = EventConsumer(settings, ORDERS, "test")
    with redis_client(settings) as redis:
        show_life(redis, [consumer.schema])
    consumer.stream.declare()

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
        consumer.stream.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    plain = new_settings(tmp_path_factory.mktemp("forgetful"))
    source = plain.home / SOURCE
    rows = pull(plain, ORDERS, AS_OF).read_all()
    few = [5, NEW, OTHER, *range(37, 24_000, 48)]
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
    ("words", "error", "message"),
    [
        ("orders", SettingsError, "expected orders --customer_id VALUE"),
        ("orders --customer_id x", SettingsError, "leading zeros, found 'x'"),
        ("orders --customer_id 05", SettingsError, "leading zeros, found '05'"),
        ("orders --customer_id ' 5'", SettingsError, "leading zeros, found ' 5'"),
        ("orders --customer_id 1_3", SettingsError, "leading zeros, found '1_3'"),
        ("orders --customer_id 13.0", SettingsError, "leading zeros, found '13.0'"),
        ("orders --customer_id", SettingsError, "VALUE, found --customer_id"),
        ("orders --customer_id --dry-run", SettingsError, "VALUE, found --customer_id"),
        ("orders --customer_id=", SettingsError, "VALUE, found --customer_id="),
        ("orders --customer_id --x", SettingsError, "VALUE, found --customer_id --x"),
        ("orders --customer_id 13 --x 5", SettingsError, "found --customer_id 13 --x"),
        ("orders 13", SettingsError, "one key, --COLUMN VALUE, found 13"),
        (f"{SPEC.name} --customer_id 123456789", DataError, "nothing was changed"),
    ],
)
def test_a_key_that_is_missing_wrong_or_unknown_changes_nothing(
    home, words, error, message
):
    version = raw_table(home.settings, ORDERS).version
    ended = home.forget(words)
    assert (type(ended.exception), ended.exit_code) == (error, 1), ended.output
    assert message in str(ended.exception)
    assert raw_table(home.settings, ORDERS).version == version
    assert not forgotten_file(home.settings).exists()


def test_a_forgotten_customer_is_deleted_everywhere_and_all_others_are_unchanged(home):
    settings = home.settings
    serving_log = AppendLog(settings.home / "serving" / "log", "predictions")
    serving_log.open()
    serving_log.write([line(2, OTHER), line(3, ID), line(4, ID, **log_lines.FAILURE)])
    log_lines.write(settings, "feedback-1-2.jsonl", outcome(4))
    serving_log.flush()
    collect(settings)
    home.redis.xadd(STREAM, {"events": json.dumps([
        order(10**9 + 2, ID, AS_OF.isoformat()), order(10**9 + 3, NEW, AS_OF.isoformat())
    ])}, id=f"{int(AS_OF.timestamp() + 9000) * 1000}-1")  # fmt: skip
    before = home.others()
    assert len(home.mentions()) > 12, home.mentions()
    words = f"{SPEC.name} --customer_id {ID}"
    counted = home.forget(f"{words} --dry-run")
    assert "training frames" in counted.output
    with running_stack(settings, serving_log):
        ended = home.forget(words)
        wait_until("the other's event", lambda: home.redis.xlen(STREAM) == 0)
    serving_log.close()
    assert ended.exit_code == 0, ended.output + repr(ended.exception)
    places_with_rows = re.findall(
        r"^([a-z ]+): [1-9]\d* rows$", ended.output, re.MULTILINE
    )
    assert places_with_rows == PLACES_WITH_ROWS
    assert not [*settings.data_docs.glob("**/*.*")]
    assert not Tracking(settings).list_artifacts(home.monitoring_run, "reports")
    assert home.mentions() == []
    assert set(outcomes(settings).read()["request_id"].to_pylist()) == {"r2"}
    is_event = pc.field("order_id") == 10**9 + 3
    assert raw_table(settings, ORDERS).read(where=is_event).num_rows == 1
    after = home.others()
    for name, rows in before.items():
        assert after[name] == rows, name


def test_a_forgotten_customer_stays_out_when_the_source_repeats_its_rows(home):
    ingest(home.settings, "orders", AS_OF + timedelta(days=1), full=True)
    assert home.mentions() == []
    again = home.forget(f"orders --customer_id {ID}")
    assert again.output.startswith("nothing is found\nout of reach:\n  backups")
    with pytest.raises(RegistryError, match="rows of an entity were forgotten on 20"):
        reproduce(home.settings, SPEC.name, "1")


@pytest.mark.nightly
def test_a_killed_forget_is_completed_by_the_next(home):
    gyre = Path(sys.executable).with_name("gyre")
    command = [gyre, "forget", SPEC.name, "--customer_id", str(OTHER)]
    key = EntityKey("customer_id", OTHER)
    counts = count_rows(home.settings, key)
    raw = raw_table(home.settings, ORDERS)
    version = raw.version
    with subprocess.Popen(command, env=home.environment) as process:
        wait_until("rows to go", lambda: raw.version > version, process=process)
        process.kill()
    assert 0 < len(count_rows(home.settings, key)) < len(counts)
    subprocess.run(command, env=home.environment, check=True)
    assert count_rows(home.settings, key) == {}


def json_texts(row):
    """A row as quarantine, stream and log have it, and as JSON within JSON."""
    yield json.dumps(row, indent=2)
    for text in (json.dumps(row, sort_keys=True), to_json(row).decode()):
        yield text
        yield json.dumps({"entry": "1-1", "events": f"[{text}]"})


@pytest.mark.parametrize(
    ("value", "other_values"),
    [
        (4, (40, 14, "4", 4.5)),
        ("4", (4, "40", "a4")),
        ("a-b.c", ("a-bxc", "a-b.cd")),
        ('Zoë "Z" O\'Neil', ()),
        ("back\\slash", ()),
    ],
)
@pytest.mark.parametrize("column", ["customer_id", 'the "id" é.c\\d'])
def test_only_the_given_value_of_a_key_is_found_in_columns_and_in_json(
    settings, column, value, other_values
):
    key = EntityKey(column, value)
    texts = [
        *json_texts({column: value, "n": 1}),
        *json_texts({"a": 1, column: value}),
    ]
    other_name = column.replace(".", "x").replace("_id", "")
    other_texts = list(json_texts({other_name: value, "note": column}))
    for other_value in other_values:
        other_texts += json_texts({column: other_value})
    assert all(re.search(key.pattern, text) for text in texts)
    assert not any(re.search(key.pattern, text) for text in other_texts)
    columns = {
        "row": texts + other_texts,
        column: [value] * len(texts) + [type(value)(5)] * len(other_texts),
    }
    rows = pa.table(columns)
    table = Table(settings, "rows", rows.schema)
    table.merge(rows, ["row"], rows.column_names)
    for condition in (key.in_json("row"), key.equals):
        assert sorted(table.matching(condition, "row")) == sorted(texts)


@pytest.mark.parametrize("value", [4, "4", 'Zoë "Z"', "back\\slash"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_log_line_is_of_the_entity_in_its_own_field_wherever_that_stands(
    value, is_first
):
    pattern = line_pattern(EntityKey("customer_id", value), ["a", "b.c"])

    def is_found(entity, model="b.c", **fields):
        values = {"model": model, "entity": entity, "features": {"x": 1}} | fields
        names = sorted(values, reverse=is_first)
        return bool(pattern.search(to_json({name: values[name] for name in names})))

    of_two_columns = {"customer_id": value, "shop": 7}
    assert is_found(entity_text({"customer_id": value}))
    assert is_found(entity_text(of_two_columns))
    assert not is_found(entity_text(of_two_columns), model="other")
    assert not is_found(entity_text({"customer_id": "other", "shop": 7}))
    assert not is_found("other", features={"customer_id": value, "x": 1})
    assert not is_found("other", request_data={"customer_id": value, "x": 1})
