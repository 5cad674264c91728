"""An ingest that is killed: nothing is doubled, nothing lost, online and offline."""

from __future__ import annotations

import json
import os
import random
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq

from core.settings import PROJECT, Settings
from core.spec import load_spec
from feature_repo.ingest import ingest, raw_table
from feature_repo.online import OnlineFeatures
from tests.conftest import AS_OF
from tests.feature_repo.conftest import applied, template  # noqa: F401  (fixtures)
from tests.feature_repo.test_incremental import DAY, HOUR, ORDERS, rebuilt, rows_of
from tests.preloaded import commands_folder

SPEC = load_spec("customer_churn_model")


def online(settings: Settings, customers, as_of):
    reader = OnlineFeatures(settings, SPEC.feature_service, tuple(SPEC.features))
    try:
        return reader.read([{"customer_id": each} for each in customers], as_of)
    finally:
        reader.close()


# For each line (settings, as_of, n) an ingest that ends itself at the n-th step that Python's audit
# hooks tell of; what Delta and DuckDB write lies between these. Forked: imports take far longer.
INGEST = """
import json, os, signal, sys
from datetime import datetime
import great_expectations, ibis.backends.duckdb, feast.repo_operations
import feature_repo.extensions.offline, feature_repo.refresh
from feature_repo.datasets import load_dataset
from feature_repo.ingest import ingest
from core.settings import Settings

load_dataset("orders")

def run(given, as_of, left):
    settings = Settings.model_validate(given)
    def step(event, args):
        nonlocal left
        ours = str(settings.home) in str(args[:2]) and (event != "open" or ".lock" in str(args[0]))
        if ours or event == "socket.connect":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
    ingest(settings, "orders", datetime.fromisoformat(as_of))
    return left

for line in sys.stdin:
    child = os.fork()
    if not child:
        print(run(*json.loads(line)), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("killed", flush=True)
"""


def test_killed_at_any_step_and_tried_again_nothing_is_doubled_or_lost(
    applied, tmp_path
):
    """Late rows and corrections too, online values included, as if nothing had happened."""
    chance, source = random.Random(7), tmp_path / "source"
    source.mkdir()
    settings = applied.model_copy(update={"sources": {"orders": str(source)}})
    here = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")}
    ingests = subprocess.Popen(
        [commands_folder() / "python", "-c", INGEST], cwd=PROJECT, env=here, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    killed, steps = 0, 10**9
    for hour in range(6):
        as_of, file = AS_OF + hour * HOUR, source / "orders.parquet"
        known = pq.read_table(file).to_pylist() if file.exists() else []
        changed = [
            row | {"dollar_value": row["dollar_value"] + 1} for row in known[::9]
        ]
        more = [{"order_id": hour * 100 + n, "customer_id": chance.randint(1, 20),
                 "order_ts": as_of - chance.randint(0, 6 if hour else 200) * DAY,
                 "number_of_cds": 1, "dollar_value": float(n)} for n in range(30)]  # fmt: skip
        rows = {row["order_id"]: row for row in [*known, *changed, *more]}
        pq.write_table(
            pa.Table.from_pylist(list(rows.values()), schema=ORDERS.schema), file
        )
        given = [settings.model_dump(mode="json"), as_of.isoformat(), steps]
        ingests.stdin.write(json.dumps(given) + "\n")
        ingests.stdin.flush()
        end = ingests.stdout.readline().strip()
        if not hour:
            total = steps - int(end)
        killed += end == "killed"
        steps = total * (hour + 1) // 6
    ingests.communicate()
    assert killed >= 4
    ingest(settings, "orders", as_of, full=True)
    raw = raw_table(settings, ORDERS)
    landed = (
        raw.read()
        .drop_columns(["ingested_at", "superseded"])
        .sort_by("order_id")
        .to_pylist()
    )
    assert landed == sorted(rows.values(), key=lambda row: row["order_id"])
    found = rows_of(settings)
    assert found.equals(rebuilt(settings, raw))
    newest = {
        row["customer_id"]: row
        for row in found.to_pylist()
        if row["event_timestamp"] <= as_of
    }
    served = online(settings, sorted(newest), as_of)
    for row, values in zip(
        (newest[key] for key in sorted(newest)), served, strict=True
    ):
        assert values == values | {
            name: row[name] for name in values.keys() & row.keys()
        }
