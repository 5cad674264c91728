"""Redis, MLflow, serving, consumer and commands of a small installation, on a disk to be filled."""

import json
import shlex
import shutil
import subprocess
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from redis import Redis
from redis.exceptions import RedisError

from core.project import CLONE, PROJECT
from core.tables.query import query_table
from feature_repo.online_store import find_server
from feature_repo.published.config import write_feast_config
from stack.environment import REDIS_BINARY, make_secrets, process_environment
from stack.programs import REDIS
from tests.conftest import (
    answers,
    mlflow_server,
    new_settings,
    running,
    wait_until,
)
from tests.faults.histories.commands import Command
from tests.faults.histories.steps import MOST_PAID, PERSONS
from tests.support.feature_engine.installation import online_reader
from tests.support.tools.preloaded import commands_folder
from tests.support.tools.small_disk import small_disk

MEGABYTES = 64
"""Of the disk: MLflow's database takes some."""
STREAM = "gyre:events:visits"
RANGE = 1_000
"""Numbers of keys, and of persons, that a history has for itself."""
FEATURES = ("visits_count", "visits_spend")
DEFINITION = """
from datetime import timedelta

import pyarrow as pa
from feast import Entity, FeatureService, ValueType

from gyre import Dataset, Window, Windows, feature_view

SCHEMA = {
    "id": pa.int64(),
    "person": pa.int64(),
    "at": pa.timestamp("us", tz="UTC"),
    "paid": pa.float64(),
}
WINDOWS = [
    Window(None, "count", name="visits_count"),
    Window("paid", "sum", timedelta(days=9), name="visits_spend"),
]
VISITS = Dataset(
    name="visits",
    schema=pa.schema(SCHEMA),
    key=("id",),
    event_time="at",
    entity="person",
    look_back=timedelta(days=30),
    silence=timedelta(days=30),
    views={"visits": Windows("person", "at", WINDOWS)},
    labels={},
)
person = Entity(name="person", join_keys=["person"], value_type=ValueType.INT64)
view = feature_view(VISITS, "visits", [person])
service = FeatureService(name="visits", features=[view])
"""
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "person": pa.int64(),
        "at": pa.timestamp("us", tz="UTC"),
        "paid": pa.float64(),
    }
)


class Stack:
    """An installation of one dataset, `visits`. Close it at the end.

    Attributes:
        base: First number of the keys and persons of the history under way.

    """

    def __init__(self, folder):
        self.folder = folder
        self.base = 0
        self.start_time = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
        self.source = folder / "visits.parquet"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.project = folder / "project"
        self.disk = folder / "home"
        self.disk.mkdir()
        self.command_number = 0
        self.redis_process = None
        self.consumer = None
        self.opened = ExitStack()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self):
        open_part = self.opened.enter_context
        open_part(small_disk(self.disk, MEGABYTES))
        sources = {"visits": str(self.source)}
        self.settings = new_settings(self.disk, demo_start=None, sources=sources)
        self._write_project()
        make_secrets(self.settings)
        self.environment = process_environment(self.settings)
        self.environment["GYRE_PROJECT"] = str(self.project)
        self.environment["GYRE_SOURCES__VISITS"] = str(self.source)
        open_part(mlflow_server(self.settings))
        self.start_redis()
        self.redis = open_part(closing(Redis.from_url(self.settings.redis_address)))
        write_feast_config(self.settings)
        applied = self.feast("apply")
        assert applied.returncode == 0, applied.stderr
        self._open_commands()
        self.deliver_file([[0, 0, 1.0]])
        first = self.run("ingest", "visits")
        assert first.wait() == 0, first.text
        self.start_consumer()
        command = [str(commands_folder() / "python"), "-m", "serving"]
        open_part(running(command, self.logs / "serving.log", **self.environment))
        address = self.settings.serving_address
        wait_until("serving", partial(answers, f"{address}/health/live"))
        self.client = open_part(httpx.Client(base_url=address, timeout=5))
        reader = online_reader(self.settings, "visits", FEATURES)
        self.reader = open_part(closing(reader))

    def begin(self):
        """Give a new history numbers of its own."""
        self.base += RANGE
        if not self.consumer.is_alive:
            self.start_consumer()

    def close(self):
        with self.opened:
            if self.consumer is not None:
                self.consumer.kill()
            if self.redis_process is not None:
                self.kill_redis()

    def _write_project(self):
        repository = self.project / "feature_repo"
        for name in ("datasets", "expectations"):
            (repository / name).mkdir(parents=True)
        (self.project / "models").mkdir()
        shutil.copy(CLONE / "feature_repo" / "feature_store.yaml", repository)
        (repository / "datasets" / "visits.py").write_text(DEFINITION)
        self.allow(MOST_PAID)

    def allow(self, most_paid):
        rule = {
            "type": "expect_column_values_to_be_between",
            # Without `mostly` it would stop a delivery.
            "kwargs": {"column": "paid", "max_value": most_paid, "mostly": 0.9},
        }
        suite = {"name": "visits", "expectations": [rule]}
        file = self.project / "feature_repo" / "expectations" / "visits.json"
        file.write_text(json.dumps(suite))

    def feast(self, *arguments):
        """Return the finished process of a command of Feast."""
        return subprocess.run(
            [commands_folder() / "feast", *arguments],
            cwd=self.project / "feature_repo",
            env=self.environment,
            check=False,
            capture_output=True,
            text=True,
        )

    def _open_commands(self):
        self.forks = subprocess.Popen(
            [
                commands_folder() / "python",
                "-m",
                "tests.faults.histories.commands",
            ],
            cwd=PROJECT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.opened.callback(self._close_commands)
        assert self.forks.stdout.readline() == "ready\n"

    def _close_commands(self):
        self.forks.stdin.close()
        self.forks.stdout.close()
        self.forks.kill()
        self.forks.wait()

    def run(self, *arguments, clock=0):
        """Begin a command of Gyre; its clock is that many seconds ahead."""
        self.command_number += 1
        output = self.logs / f"{self.command_number:04}-{arguments[0]}.txt"
        output.touch()
        self.forks.stdin.write(json.dumps([arguments, str(output), clock]) + "\n")
        self.forks.stdin.flush()
        return Command(int(self.forks.stdout.readline()), output)

    # Redis

    def start_redis(self):
        """Start Redis as `gyre up` has it started."""
        variables = self.environment | {REDIS_BINARY: str(find_server())}
        (self.disk / "redis").mkdir(exist_ok=True)
        command = REDIS % {f"ENV_{name}": text for name, text in variables.items()}
        with (self.logs / "redis.log").open("ab") as output:
            self.redis_process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *shlex.split(command)],
                cwd=PROJECT,
                env=variables,
                stdout=output,
                stderr=output,
            )

    def kill_redis(self):
        """Kill Redis; return whether it was alive."""
        was_alive = self.redis_process.poll() is None
        self.redis_process.kill()
        self.redis_process.wait()
        return was_alive

    def answers(self):
        """Whether Redis answers, and has read its file."""
        with suppress(RedisError):
            return bool(self.redis.ping())
        return False

    # The consumer

    def start_consumer(self, clock=0):
        self.consumer = self.run("consume", clock=clock)

    def end_consumer(self):
        """Have the consumer end as `gyre down` does; return whether it did within a minute."""
        if self.consumer.is_alive:
            self.consumer.process.terminate()
            with suppress(TimeoutError):
                self.consumer.wait(60)
                return True
            self.consumer.kill()
            return False
        return True

    # Rows

    def fields(self, row):
        key, person, paid = row
        at = self.start_time - timedelta(minutes=key)
        return {
            "id": self.base + key,
            "person": self.base + person,
            "at": at,
            "paid": paid,
        }

    def deliver_file(self, rows):
        """Have the source hold these rows, and no others."""
        table = pa.Table.from_pylist([self.fields(row) for row in rows], SCHEMA)
        part = self.source.with_suffix(".part")
        pq.write_table(table, part)
        part.rename(self.source)

    def post(self, rows):
        """Send events in one request; return the status, 0 if there is no answer."""
        events = []
        for row in rows:
            fields = self.fields(row)
            events.append(fields | {"at": f"{fields['at']:%Y-%m-%dT%H:%M:%SZ}"})
        with suppress(httpx.TransportError):
            return self.client.post("/events/visits", json=events).status_code
        return 0

    def waiting(self):
        """Return the number of requests that the consumer has not acknowledged."""
        return self.redis.xlen(STREAM)

    def scratch(self):
        """Return the folder that an ingest has from the beginning of its reading to its end."""
        return self.settings.cache / "visits.ingest"

    def rows(self):
        """Return the table's rows of this history: (person, paid) by key.

        Raises:
            AssertionError: A key is there twice.

        """
        first, end = self.base, self.base + RANGE
        query = f'SELECT "id", person, paid FROM here WHERE "id" >= {first} AND "id" < {end}'
        rows = query_table(self.settings, "raw/visits", query)
        by_key = {
            row["id"] - first: (row["person"] - first, row["paid"]) for row in rows
        }
        assert len(by_key) == len(rows), "a key is twice in the table"
        return by_key

    def quarantine(self):
        """Return the rows in quarantine of this history, as tuples."""
        rows = query_table(self.settings, "quarantine/visits", 'SELECT "row" FROM here')
        fields = [json.loads(row["row"]) for row in rows]
        return [
            (row["id"] - self.base, row["person"] - self.base, row["paid"])
            for row in fields
            if self.base <= row["id"] < self.base + RANGE
        ]

    def online(self):
        """Return the features that each person has online, (count, sum); (0, 0.0) for none."""
        keys = [{"person": self.base + person} for person in PERSONS]
        values = {}
        rows = self.reader.read(keys, datetime.now(UTC))
        for person, row in zip(PERSONS, rows, strict=True):
            row = row or {}  # noqa: PLW2901
            count = row.get(FEATURES[0]) or 0
            values[person] = (count, row.get(FEATURES[1]) or 0.0)
        return values
