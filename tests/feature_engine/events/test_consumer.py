"""`gyre consume` as a process: it takes edits of the project, and no dataset waits for another."""

import json
import os
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from redis import Redis

from core.locks import ONLINE_LOCK, one_writer
from core.project import CLONE
from feature_engine.events.broker import IDLE_AFTER, consumer_problem
from feature_repo.published.config import write_feast_config
from feature_repo.published.redis_names import hash_fields, hash_names
from feature_repo.published.store import open_store
from mlflow_server.alerts import Alerts
from stack.environment import process_environment
from tests.conftest import (
    BIN,
    at_most,
    new_settings,
    redis_server,
    running,
    wait_until,
)
from tests.support.tools.preloaded import commands_folder

MODULE = """
from datetime import timedelta

import pyarrow as pa
from feast import Entity, ValueType

from feature_repo.datasets.people import person
from gyre import Dataset, Window, Windows, feature_view

SCHEMA = {
    "id": pa.int64(),
    "person": pa.int64(),
    "at": pa.timestamp("us", tz="UTC"),
    "paid": pa.float64(),
}
WINDOWS = [Window(None, "count", name="NAME_count")]
DATASET = Dataset(
    name="NAME",
    schema=pa.schema(SCHEMA),
    key=("id",),
    event_time="at",
    entity="person",
    look_back=timedelta(days=2),
    silence=timedelta(days=9),
    views={"NAME": Windows("person", "at", WINDOWS)},
    labels={},
)
view = feature_view(DATASET, "NAME", [person])
"""
HELPER = """
from feast import Entity, ValueType

person = Entity(name="person", join_keys=["person"], value_type=ValueType.INT64)
people = Entity(name="people", join_keys=["people"], value_type=ValueType.INT64)
"""
SPEND = 'WINDOWS = [Window("paid", "sum", timedelta(days=9), name="NAME_spend"), '
START = datetime.now(UTC) - timedelta(days=1)


class Project:
    """A folder with two datasets of one kind, and a helper that says its own name."""

    def __init__(self, folder):
        self.folder = folder
        self.settings = new_settings(folder / ".gyre", demo_start=None)
        self.datasets = folder / "feature_repo" / "datasets"
        self.datasets.mkdir(parents=True)
        (folder / "models").mkdir()
        (folder / ".gyre").mkdir()
        shutil.copy(CLONE / "feature_repo" / "feature_store.yaml", self.datasets.parent)
        self.suites = self.datasets.parent / "expectations"
        self.suites.mkdir()
        (self.datasets / "people.py").write_text(HELPER)
        self.environment = process_environment(self.settings)
        self.environment["GYRE_PROJECT"] = str(folder)
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.environment["PATH"] = f"{self.programs}:{os.environ['PATH']}"
        self.start_from(commands_folder())
        for name in ("visits", "stays"):
            self.define(name)
            self.allow(name, 1_000)
            source = folder / f"{name}.parquet"
            self.environment[f"GYRE_SOURCES__{name.upper()}"] = str(source)
        self.deliver("visits", [self.row(1)])
        self.deliver("stays", [self.row(1)])
        self.log = folder / "consumer.log"
        self.redis = Redis(port=self.settings.redis_port)
        self.event_number = 1_000_000

    def row(self, number, person=1, paid=2.0):
        at = START + timedelta(milliseconds=100 * number)
        return {"id": number, "person": person, "at": at, "paid": paid}

    def deliver(self, name, rows):
        columns = {
            "id": pa.int64(),
            "person": pa.int64(),
            "at": pa.timestamp("us", tz="UTC"),
            "paid": pa.float64(),
        }
        table = pa.Table.from_pylist(rows, pa.schema(columns))
        pq.write_table(table, self.folder / f"{name}.parquet")

    def define(self, name, windows="WINDOWS = ["):
        text = MODULE.replace("WINDOWS = [", windows).replace("NAME", name)
        (self.datasets / f"{name}.py").write_text(text)

    def allow(self, name, most):
        rule = {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "paid", "max_value": most},
        }
        suite = {"name": name, "expectations": [rule]}
        (self.suites / f"{name}.json").write_text(json.dumps(suite))

    def run(self, *command, folder="."):
        subprocess.run(
            [commands_folder() / command[0], *command[1:]],
            cwd=self.folder / folder,
            env=self.environment,
            capture_output=True,
            check=True,
        )

    def publish(self, *names):
        write_feast_config(self.settings)
        self.run("feast", "apply", folder="feature_repo")
        for name in names:
            self.run("gyre", "ingest", name)

    def sends(self, name, **changes):
        """Put an event of a person on the stream as serving does."""
        self.event_number += 1
        row = self.row(self.event_number) | {"at": datetime.now(UTC).isoformat()}
        text = json.dumps([row | changes])
        self.redis.xadd(f"gyre:events:{name}", {"events": text})

    def place(self, feature, person):
        """Return hash and field of a feature in Redis, of a view as it is published now."""
        store = open_store(self.settings)
        view = store.get_feature_view(feature.partition("_")[0])
        (name,) = hash_names(store.config, view, [(person,)])
        _, field = hash_fields(store.config, view, [feature])
        return name, field

    def waits_for(self, feature, value, seconds, person=1):
        """Return the seconds until a feature has a value."""
        start = time.monotonic()
        name, field = self.place(feature, person)

        def is_there():
            message = Value.FromString(self.redis.hget(name, field) or b"")
            kind = message.WhichOneof("val")
            return kind is not None and getattr(message, kind) == value

        wait_until(f"{feature} = {value}", is_there, at_most(seconds))
        return time.monotonic() - start

    def start_from(self, folder):
        """Have `gyre` mean the program of a folder from now on."""
        program = self.programs / "gyre"
        program.unlink(missing_ok=True)
        program.symlink_to(folder / "gyre")

    def consuming(self):
        return running(["gyre", "consume"], self.log, **self.environment)

    def waits_for_a_new_start(self, number):
        wait_until(
            f"new start {number}",
            lambda: self.log.read_bytes().count(b"starting again") >= number,
            at_most(10),
        )


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    with redis_server(project.settings.redis_port, tmp_path), project.redis:
        yield project


@pytest.mark.journey
def test_a_running_consumer_takes_every_edit_and_a_broken_file_stops_only_its_dataset(
    project,
):
    project.publish("visits", "stays")
    with project.consuming() as process:
        project.sends("visits")
        project.waits_for("visits_count", 2, 60)
        # Once, the interpreter starts anew, too.
        project.start_from(BIN)
        project.define("visits", SPEND)
        project.publish("visits")
        # An event before that goes online with the next ingest.
        project.waits_for_a_new_start(1)
        project.sends("visits")
        project.waits_for("visits_spend", 6.0, 10)
        project.start_from(commands_folder())
        project.allow("visits", 10)
        project.waits_for_a_new_start(2)
        project.sends("visits", paid=50.0)
        project.sends("visits", paid=7.0)
        project.waits_for("visits_spend", 13.0, 10)
        (project.datasets / "visits.py").write_text("WINDOWS = (")
        project.sends("stays")
        project.waits_for("stays_count", 2, 10)
        project.waits_for_a_new_start(3)
        project.sends("visits")
        project.sends("stays")
        project.waits_for("stays_count", 3, 10)
        wait_until(
            "the reason", lambda: b"visits.py:1: Syntax" in project.log.read_bytes()
        )
        project.define("visits", SPEND)
        project.define("more")
        project.allow("more", 10)
        project.waits_for("visits_spend", 15.0, 10)
        streams = "gyre:events"
        wait_until("its schema", lambda: project.redis.hexists(streams, "more"))
        # A dataset that is gone takes no events: serving answers 404.
        (project.datasets / "more.py").unlink()
        wait_until("its end", lambda: not project.redis.hexists(streams, "more"))
        # Nor does one whose file makes none any more; a file with an error may make one.
        project.define("more")
        wait_until("its schema", lambda: project.redis.hexists(streams, "more"))
        (project.datasets / "visits.py").write_text("DATASET = (")
        (project.datasets / "more.py").write_text("# DATASET = Dataset()")
        wait_until("its end", lambda: not project.redis.hexists(streams, "more"))
        assert {*project.redis.hkeys(streams)} == {b"visits", b"stays"}
        assert project.redis.xlen("gyre:events:visits") == 0
        assert process.poll() is None


@pytest.mark.journey
def test_no_dataset_waits_for_another_and_a_consumer_that_works_long_is_known_to_live(
    project,
):
    project.publish("visits", "stays")
    locks = [ONLINE_LOCK.format(name) for name in ("visits", "stays")]
    with project.consuming():
        project.sends("stays")
        project.waits_for("stays_count", 2, 60)
        with one_writer(project.settings, locks[0]):
            project.sends("visits")
            time.sleep(1)
            project.sends("stays")
            assert project.waits_for("stays_count", 3, 1) < at_most(1)
            assert project.redis.xlen("gyre:events:visits") == 1
            with one_writer(project.settings, locks[1]):
                project.sends("stays")
                time.sleep(1 + IDLE_AFTER / 1000)
                assert consumer_problem(project.settings) is None
        project.waits_for("visits_count", 2, 12)
        project.waits_for("stays_count", 4, 12)


def test_an_ingest_by_hand_ends_the_alert_that_airflow_failed_to_ingest_the_dataset(
    project,
):
    now = datetime.now(UTC)
    with Alerts(project.settings) as alerts:
        for name in ("visits", "stays"):
            alerts.alert_failure(name, f"ingest.ingest_{name}", "OSError: no disk", now)
        project.publish("visits")
        assert alerts.rows("visits") == []
        assert len(alerts.rows("stays")) == 1
