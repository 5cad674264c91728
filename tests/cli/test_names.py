"""Columns of any name go the whole way: new, ingest, correction, events, training, forget."""

import json
import shlex
import sys
from datetime import UTC, datetime, timedelta
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.tables.table import Table
from feature_repo.definition import OWN_COLUMNS, name_problems
from tests.conftest import new_settings
from tests.support.tools.clone import (
    Copy,
    events,
    fewer_trees,
    mlflow_and_redis,
    online_answer,
    serving,
)
from tests.support.tools.names import NAMES

ENTITIES = (
    "Customer",
    "select",
    "ID",
    "user_id",
    "x1",
    "group",
    "json",
    "schema",
    "order",
    "time",
)
LETTERS = " .\"'%;[]()\\`$#@!?*/,:=<>|~^&-_0aZäß語\u00a0😀"
SENDER = """
import json, sys
from datetime import datetime
from core.settings import load_settings
from feature_repo.datasets import load_dataset
from serving.additions.events import checked_events
from tests.support.feature_engine.installation import Events
dataset = load_dataset("way")
events = Events(load_settings(), dataset)
schema = events.consumer.schema.model_dump_json().encode()
arrival = datetime.fromisoformat(sys.argv[1])
events.receives(arrival, *checked_events(schema, sys.argv[2].encode()))
events.close()
"""


def draw(chance, count):
    """Return names of any letters that differ by more than capitals."""
    names = []
    while len(names) < count:
        letters = chance.choices(LETTERS, k=chance.randint(1, 8))
        name = chance.choice([chance.choice(NAMES), "".join(letters)])
        if not name_problems([*names, name], OWN_COLUMNS):
            names.append(name)
    return names


class Way:
    """A project with a use case whose columns have drawn names."""

    def __init__(self, folder, settings, chance):
        self.project = Copy(folder, settings)
        self.entity = chance.choice(ENTITIES)
        names = draw(chance, 45)
        others = [name for name in names if name.lower() != self.entity.lower()]
        self.key, self.time, self.amount, self.code, *self.others = others
        outcome = ["--label=event", f"--outcome={self.others[0]}"]
        self.label = chance.choice([["--label=silence"], outcome])
        self.rows = []
        for number, entity, time, amount in events():
            row = dict.fromkeys(self.others, chance.randrange(7))
            row[self.others[0]] = entity % 2  # which says how often it comes
            row |= {self.key: number, self.amount: amount, self.code: f"00{entity}"}
            self.rows.append(row | {self.entity: entity, self.time: time})
        self.file = folder / "rows.parquet"
        self.save()

    def save(self):
        rows = pa.Table.from_pylist(self.rows)
        position = rows.schema.get_field_index(self.time)
        times = rows[self.time].cast(pa.timestamp("us", "UTC"))
        pq.write_table(rows.set_column(position, self.time, times), self.file)

    def raw(self):
        names = [self.key, self.entity, self.amount]
        schema = pa.schema([(name, pa.int64()) for name in names[:2]])
        schema = schema.append(pa.field(self.amount, pa.float64()))
        table = Table(self.project.settings, "raw/way", schema)
        rows = table.read().to_pylist()
        return {row[self.key]: row for row in rows}

    def send(self, *rows):
        now = datetime.now(UTC)
        text = json.dumps(rows, default=lambda time: time.isoformat())
        arguments = shlex.join([now.isoformat(), text])
        output = self.project.run(f"{sys.executable} sender.py {arguments}")
        assert "way: " not in output, output

    def go(self):
        run = self.project.run
        columns = {"key": self.key, "entity": self.entity, "time": self.time}
        options = [f"--{option}={name}" for option, name in columns.items()]
        options += [*self.label, f"--from={self.file}"]
        run(f"gyre new way {shlex.join(options)}")
        fewer_trees(self.project.folder / "models" / "way.toml")
        assert "way: ok; rows: a sample of" in run("gyre check way")
        run("cd feature_repo && feast apply")
        assert f"{len(self.rows)} new, 0 corrected, 0 quara" in run("gyre ingest way")
        self.rows[0][self.amount] = 0.25
        self.rows[1][self.amount] = 0.5
        self.rows.append(self.rows[2] | {self.key: None})
        self.save()
        output = run("gyre ingest way --full")
        assert "0 new, 2 corrected, 1 quarantined" in output
        now = datetime.now(UTC) - timedelta(minutes=1)
        event = self.rows[3] | {self.key: 10**6, self.time: now, self.entity: 7}
        (self.project.folder / "sender.py").write_text(SENDER)
        self.send(event)
        self.send(event | {self.amount: 77.0}, self.rows[4] | {self.amount: 88.0})
        raw = self.raw()
        assert raw[10**6][self.amount] == 77.0
        assert raw[4][self.amount] == 88.0
        assert (raw[0][self.amount], raw[1][self.amount]) == (0.25, 0.5)
        # What an event corrected is not new.
        assert "0 new, 0 corrected, 0 quarantined" in run("gyre ingest way --full")
        assert "version 1 is in production" in run("gyre train way --force")

    def forget(self):
        """Score an entity, and forget it."""
        settings = self.project.settings
        # The shipped model has no version here; nor does the tests' folder come before the project's.
        more = self.project.environment | {"PYTHONSAFEPATH": "1"}
        with serving(settings, "live", **more):
            url = f"{settings.serving_address}/models/way/predict"
            assert online_answer(url, {self.entity: 7})[self.entity] == 7
            self.project.run(f"gyre forget way -- --{self.entity} 7")
        kept = {row[self.entity] for row in self.raw().values()}
        assert kept == {row[self.entity] for row in self.rows} - {7}


def go(folder, seed, **more):
    settings = new_settings(folder / ".gyre", demo_start=None, **more)
    with mlflow_and_redis(settings):
        way = Way(folder, settings, Random(seed))
        print(seed, way.key, way.entity, way.time, way.amount, way.label)  # noqa: T201
        way.go()
        way.forget()


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(6))
def test_columns_of_any_name_go_the_whole_way(tmp_path, number):
    engine = "spark" if number == 0 else "duckdb"
    go(tmp_path, Random().getrandbits(32), engine=engine)
