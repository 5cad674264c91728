"""Requests per second of one serving worker: features of a team's own Feast view, beside ours.

    python -m benchmarks.team.serving [seconds per measurement, 3 if not given]

Both answer with the same ONNX file and the same values of 10,000 customers in one Redis. Ours were
written by Gyre's ingest, theirs by `feast materialize` of a view of theirs over a parquet file; the
model came by `gyre adopt`. Servers and Redis run on the first core, the load generator on the last.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.serving import closed
from benchmarks.support import servers
from benchmarks.support.measure import ROUNDS, promised, title
from core.spec import load_spec
from core.timestamps import microseconds
from feature_repo.published.service import PublishedService
from tests.conftest import BIN, unused_port
from tests.serving.conftest import SPEC, Rig
from tests.support.serving.flood import post
from training.adopt import adopt

if TYPE_CHECKING:
    from benchmarks.support.servers import Server

CUSTOMERS = range(1, 10_001)
MODEL = "team_churn"
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
TYPES = {"int64": "Int64", "double": "Float64", "string": "String"}
STORE = """
project: team
provider: local
registry: data/registry.db
online_store: {{type: redis, connection_string: "127.0.0.1:{port},db=1"}}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.types import Float64, Int64, String

customer = Entity(name="customer", join_keys=["customer_id"])
source = FileSource(path="data/values.parquet", timestamp_field="event_timestamp")
fields = [{fields}]
view = FeatureView(
    name="theirs", entities=[customer], ttl=timedelta(days=400), source=source, schema=fields
)
service = FeatureService(name="theirs_v1", features=[view])
"""
MODEL_SPEC = """
name = "{model}"
experiment = "{model}"
entity_key = "customer_id"
feature_service = "theirs_v1"
schedule = "@weekly"
seed = 7
threshold = 0.5

[label]
source = "{table}"
name = ""
horizon_days = 0

[costs]
action = 1
loss = 10
averted = 0.2

[features]
{features}

[snapshots]
every = "day"
train = 3
rows = "label"

[serving]
missing_features = "defaults"
"""


def write_repository(rig: Rig, folder: Path) -> None:
    """Write and publish a team's repository with the values of our view, all 20 days old."""
    questions = pd.DataFrame({"customer_id": CUSTOMERS})
    questions = questions.assign(event_timestamp=NOW, as_of=microseconds(NOW))
    service = PublishedService(rig.settings, SPEC.feature_service)
    values = service.historical(questions).to_pandas()
    values = values[["customer_id", *SPEC.features]]
    (folder / "data").mkdir(parents=True)
    values.assign(event_timestamp=NOW - 20 * DAY).to_parquet(
        folder / "data" / "values.parquet"
    )
    fields = [
        f"Field(name={name!r}, dtype={TYPES[kind]})"
        for name, kind in SPEC.features.items()
    ]
    (folder / "feature_store.yaml").write_text(
        STORE.format(port=rig.settings.redis_port)
    )
    (folder / "views.py").write_text(DEFINITIONS.format(fields=", ".join(fields)))
    until = NOW.replace(tzinfo=None).isoformat()
    for arguments in (["apply"], ["materialize-incremental", until]):
        subprocess.run(
            [BIN / "feast", *arguments], cwd=folder, check=True, capture_output=True
        )


def start_theirs(opened: ExitStack, rig: Rig, folder: Path) -> Server:
    """Adopt our version for the team's view, and serve it."""
    repository = folder / "feature_repo"
    write_repository(rig, repository)
    table = folder / "rows.parquet"
    rows = pd.DataFrame({"customer_id": [*CUSTOMERS]})
    days = [NOW - (1 + number % 6) * DAY for number in range(len(rows))]
    rows.assign(event_timestamp=days).to_parquet(table)
    features = [f'{name} = "{kind}"' for name, kind in SPEC.features.items()]
    (folder / "models").mkdir()
    (folder / "models" / f"{MODEL}.toml").write_text(
        MODEL_SPEC.format(model=MODEL, table=table, features="\n".join(features))
    )
    home = folder / "home"
    home.mkdir()
    settings = rig.settings.model_copy(
        update={"home": home, "feast_repo": repository, "serving_port": unused_port()}
    )
    spec = load_spec(MODEL, folder / "models")
    source = f"models:/{settings.mlflow_name(SPEC.name)}/1"
    report = adopt(settings, spec, source, NOW, key="bench", reason="bench", who="b")
    assert report.version, report.outcome
    theirs = Rig(settings, folder, opened)
    os.environ["GYRE_PROJECT"] = str(folder)
    with servers.on_first_core():
        client, process = opened.enter_context(theirs.serving(serving_workers=1))
    del os.environ["GYRE_PROJECT"]
    theirs.known_to_be_ready(client)
    answer = client.post("/predict", json={"customer_id": CUSTOMERS[0]}).json()
    assert answer["features_from"] == "online", answer
    requests = [post("/predict", b'{"customer_id":%d}' % key) for key in CUSTOMERS]
    return servers.Server(settings.serving_port, requests, (rig.redis, process))


def main(seconds: float) -> None:
    with servers.installed() as (opened, rig, ours):
        theirs = start_theirs(opened, rig, rig.folder / "team")
        title("/predict on a team's Feast view in Redis, and on ours")
        for connections in (1, 16):
            ratios = []
            for _ in range(ROUNDS):
                our_rate = closed(ours, connections, seconds).rate
                their_rate = closed(theirs, connections, seconds).rate
                print(
                    f"{connections:3} connections{our_rate:10,.0f}/s{their_rate:10,.0f}/s"
                )
                ratios.append(their_rate / our_rate)
            what = (
                f"/predict on a team's view, times ours, at {connections} connections"
            )
            promised(what, statistics.median(ratios), 0.95, "x", least=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 3.0)
